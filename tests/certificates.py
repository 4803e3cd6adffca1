"""Certificates for the tests, and contexts that use them, for both sides of TLS."""

from __future__ import annotations

import functools
import ssl

import trustme

__all__ = ("AUTHORITY", "NAMES", "VERSIONS", "certificate", "client_context", "server_context")

AUTHORITY = trustme.CA()
"""What the contexts trust."""

NAMES = ("localhost", "127.0.0.1", "::1")
"""What the usual certificate is for."""

VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}


class PeerSocket(ssl.SSLSocket):
    """Closed in any case: ``wrap_socket()`` leaves one open behind if the connection is reset just then."""

    def __del__(self) -> None:
        self.close()


@functools.cache
def certificate(*names: str) -> trustme.LeafCert:
    """A certificate, and its key, for some names and addresses; by default the usual one."""
    return AUTHORITY.issue_cert(*(names or NAMES))


def server_context(
    leaf: trustme.LeafCert | None = None, *, version: ssl.TLSVersion | None = None, ask_for_certificate: bool = False
) -> ssl.SSLContext:
    """
    :param leaf: its certificate; the usual one by default
    :param version: the only version that it speaks
    :param ask_for_certificate: whether clients must show one
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
    """
    :param leaf: what it shows if it is asked for a certificate
    :param version: the only version that it speaks
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
