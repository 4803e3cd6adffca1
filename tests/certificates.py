"""Certificates for the tests, and TLS contexts of both sides that use them."""

from __future__ import annotations

import functools
import ssl

import trustme

__all__ = ("AUTHORITY", "NAMES", "VERSIONS", "certificate", "client_context", "server_context")

AUTHORITY = trustme.CA()
"""The authority that the contexts trust."""

NAMES = ("localhost", "127.0.0.1", "::1")
"""The names and addresses that the usual certificate is valid for."""

VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}


class PeerSocket(ssl.SSLSocket):
    """Always closes the socket: ``wrap_socket()`` leaves one open if the connection is reset at that moment."""

    def __del__(self) -> None:
        self.close()


@functools.cache
def certificate(*names: str) -> trustme.LeafCert:
    """A certificate with its key, for some names and addresses; by default for :data:`NAMES`."""
    return AUTHORITY.issue_cert(*(names or NAMES))


def server_context(
    leaf: trustme.LeafCert | None = None, *, version: ssl.TLSVersion | None = None, ask_for_certificate: bool = False
) -> ssl.SSLContext:
    """The context of a server.

    :param leaf: its certificate; by default the usual one
    :param version: the only TLS version that it speaks
    :param ask_for_certificate: whether clients must present a certificate
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (leaf or certificate()).configure_cert(context)
    if ask_for_certificate:
        AUTHORITY.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return _for_peers(context, version)


def client_context(
    leaf: trustme.LeafCert | None = None, *, version: ssl.TLSVersion | None = None, trusting: bool = True
) -> ssl.SSLContext:
    """The context of a client.

    :param leaf: the certificate that it presents if the server asks for one
    :param version: the only TLS version that it speaks
    :param trusting: whether it trusts the authority
    """
    context = ssl.SSLContext(
        ssl.PROTOCOL_TLS_CLIENT
    )  # create_default_context() would read the system's authorities too
    if trusting:
        AUTHORITY.configure_trust(context)
    if leaf is not None:
        leaf.configure_cert(context)
    return _for_peers(context, version)


def _for_peers(context: ssl.SSLContext, version: ssl.TLSVersion | None) -> ssl.SSLContext:
    context.sslsocket_class = PeerSocket
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context
