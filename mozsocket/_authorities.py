"""Whom a client trusts that names no context of its own: the authorities that this system has."""

from __future__ import annotations

import os
import ssl
from collections.abc import Iterator

__all__ = ("default_context",)

_made: tuple[object, ssl.SSLContext] | None = None


def default_context() -> ssl.SSLContext:
    """The context of a client that names none: it checks certificates and host names, by the system's authorities.

    To make one takes some 10 ms and a megabyte, so clients share it, until what it is made from has changed.
    """
    global _made
    sources = tuple(_sources())
    if _made is None or _made[0] != sources:
        _made = sources, ssl.create_default_context()
    return _made[1]


def _sources() -> Iterator[object]:
    """What it is made from, as it is now: the files and folders that OpenSSL looks into, and what Python adds."""
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
