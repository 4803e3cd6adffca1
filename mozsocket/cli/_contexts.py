"""TLS contexts from the options: which authorities to trust, and which certificate to present."""

from __future__ import annotations

import ssl
from typing import NoReturn

import click

from ._loop import words

__all__ = ("client_context", "server_context")


def client_context(cafile: str | None, *, insecure: bool) -> ssl.SSLContext | None:
    """Make the context of a client.

    :param cafile: a PEM file of authorities to trust instead of the system's
    :param insecure: whether to accept any certificate
    :return: the context; None for the package's default, which trusts the system's authorities
    :raises click.BadParameter: if the file cannot be read or holds no certificates
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
    """Make the context of a server.

    :param certfile: a PEM file with the certificate and its chain
    :param keyfile: a PEM file with the private key, if it is not in the same file
    :raises click.BadParameter: if the files cannot be read, or hold no certificate with its key
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(certfile, keyfile, _no_password)
    except OSError as exc:
        # OpenSSL does not say which file is at fault, except when both are valid but do not belong together.
        if isinstance(exc, ssl.SSLError) and exc.reason == "KEY_VALUES_MISMATCH":
            raise bad_file("--keyfile", keyfile or certfile, exc, "holds the key of another certificate") from exc
        files = f"{certfile}' and '{keyfile}" if keyfile else certfile
        raise bad_file("--certfile", files, exc, "must hold a certificate and its key in PEM") from exc
    return context


def bad_file(option: str, file: str, exc: OSError, why: str) -> click.BadParameter:
    """The error for a file: the reason given if OpenSSL rejected it, the system's if it could not be read."""
    if isinstance(exc, ssl.SSLError):
        return click.BadParameter(f"'{file}' {why}", param_hint=f"'{option}'")
    return click.BadParameter(f"'{file}': {words(exc)}", param_hint=f"'{option}'")


def _no_password() -> NoReturn:
    # By default OpenSSL prompts for the password, and without a terminal reads it from the input that is to be sent.
    raise click.BadParameter("the key is encrypted: decrypt it first, as by `openssl pkey`", param_hint="'--keyfile'")
