"""What TLS is told by options: whom to trust, and who we are."""

from __future__ import annotations

import ssl
from typing import NoReturn

import click

from ._loop import words

__all__ = ("client_context", "server_context")


def client_context(cafile: str | None, *, insecure: bool) -> ssl.SSLContext | None:
    """
    :param cafile: a PEM file of authorities to trust instead of the system's
    :param insecure: whether to take any certificate
    :return: None for the package's own, which trusts the system's authorities
    :raises click.BadParameter: if the file is of no use
    """
    if insecure:
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context
    if cafile is None:
        return None
    try:
        return ssl.create_default_context(cafile=cafile)
    except OSError as exc:
        raise bad_file("--cafile", cafile, exc, "holds no certificates in PEM") from exc


def server_context(certfile: str, keyfile: str | None) -> ssl.SSLContext:
    """
    :param certfile: a PEM file of the certificate and those that vouch for it
    :param keyfile: that of its key, if that is not in the same file
    :raises click.BadParameter: if the files are of no use
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certfile, keyfile, _no_password)
    except OSError as exc:
        # OpenSSL does not tell which of them is at fault, unless both are in order.
        if isinstance(exc, ssl.SSLError) and exc.reason == "KEY_VALUES_MISMATCH":
            raise bad_file("--keyfile", keyfile or certfile, exc, "holds the key of another certificate") from exc
        files = f"{certfile}' and '{keyfile}" if keyfile else certfile
        raise bad_file("--certfile", files, exc, "must hold a certificate and its key in PEM") from exc
    return context


def bad_file(option: str, file: str, exc: OSError, why: str) -> click.BadParameter:
    if isinstance(exc, ssl.SSLError):
        return click.BadParameter(f"'{file}' {why}", param_hint=f"'{option}'")
    return click.BadParameter(f"'{file}': {words(exc)}", param_hint=f"'{option}'")


def _no_password() -> NoReturn:
    # Left to itself, OpenSSL asks for it, and where there is no terminal takes it from what we are to send.
    raise click.BadParameter("the key is encrypted: decrypt it first, as by `openssl pkey`", param_hint="'--keyfile'")
