"""The default SSL context of clients, which trusts the certificate authorities of the system."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator

__all__ = ("default_context",)

_made: tuple[object, ssl.SSLContext] | None = None  # the context that was made last, and the state of its sources


def default_context() -> ssl.SSLContext:
    """The SSL context of a client that gives none. It checks certificates, by the authorities of the system, and host
    names.

    To make one takes some 10 ms and a megabyte. So clients share one until its sources have changed.
    """
    global _made
    sources = tuple(_sources())
    if _made is None or _made[0] != sources:
        _made = sources, ssl.create_default_context()
    return _made[1]


def _sources() -> Iterator[object]:
    """The present state of what the context is made from: OpenSSL's file and folders of authorities, and the
    environment variable that Python reads for it.
    """
    paths = ssl.get_default_verify_paths()
    file = os.environ.get(paths.openssl_cafile_env, paths.openssl_cafile)
    folders = os.environ.get(paths.openssl_capath_env, paths.openssl_capath)
    for path in (file, *folders.split(os.pathsep)):
        try:
            found = os.stat(path)
        except OSError:
            yield path
        else:
            yield path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    yield os.environ.get("SSLKEYLOGFILE")
