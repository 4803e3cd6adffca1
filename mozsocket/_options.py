"""What the calls accept, checked at the call: what was wrong, and what would be right."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = (
    "BinaryType",
    "SocketOptions",
    "check_count",
    "check_flag",
    "check_host",
    "check_port",
    "check_role",
    "check_server_hostname",
    "check_ssl_context",
    "check_stream_socket",
    "identity",
)

BinaryType = Literal["arraybuffer", "string"]


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """The options of a TCPSocket, which a server's connections share. See :class:`TCPSocket`."""

    binaryType: BinaryType = "arraybuffer"
    connect_timeout: float | None = None
    local_host: str | None = None
    max_buffered_amount: int | None = None
    linger: float = 5
    useSecureTransport: bool = False
    ssl_context: ssl.SSLContext | None = None
    server_hostname: str | None = None
    handshake_timeout: float = 30
    tls_standard_compatible: bool = True
    allow_half_open: bool = False
    proxy_protocol: bool = False  # of accepted sockets

    def __post_init__(self) -> None:
        if self.binaryType not in get_args(BinaryType):
            raise ValueError(f'binaryType must be "arraybuffer" or "string", not {self.binaryType!r}')
        if self.connect_timeout is not None:
            _check_seconds("connect_timeout", self.connect_timeout)
        if self.local_host is not None:
            check_host("local_host", self.local_host)
        if self.max_buffered_amount is not None:
            check_count("max_buffered_amount", self.max_buffered_amount, 1)
        _check_seconds("linger", self.linger)
        check_flag("useSecureTransport", self.useSecureTransport)
        check_ssl_context(self.ssl_context)
        if self.server_hostname is not None:
            check_server_hostname(self.server_hostname)
        _check_seconds("handshake_timeout", self.handshake_timeout)
        check_flag("tls_standard_compatible", self.tls_standard_compatible)
        check_flag("allow_half_open", self.allow_half_open)
        check_flag("proxy_protocol", self.proxy_protocol)


def check_host(name: str, value: object) -> None:
    """:raises TypeError: if it is not a str
    :raises ValueError: if it is empty or has a NUL in it
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, a host name or an IP address, not {type(value).__name__}")
    if not value or "\0" in value:
        raise ValueError(f"{name} must be a host name or an IP address, not {value!r}")


def check_port(value: object, *, lowest: int) -> None:
    """:raises TypeError: if it is not an int
    :raises ValueError: if it is out of range
    """
    check_count("port", value, lowest, 65535)


def check_count(name: str, value: object, lowest: int, highest: int | None = None) -> None:
    """:raises TypeError: if it is not an int
    :raises ValueError: if it is out of range
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < lowest or (highest is not None and value > highest):
        bounds = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise ValueError(f"{name} must be {bounds}, not {value}")


def check_flag(name: str, value: object) -> None:
    """:raises TypeError: if it is not a bool"""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, not {type(value).__name__}")


def check_ssl_context(value: object) -> None:
    """:raises TypeError: if it is neither None nor an SSLContext"""
    if value is not None and not isinstance(value, ssl.SSLContext):
        raise TypeError(f"ssl_context must be an ssl.SSLContext, not {type(value).__name__}")


def check_role(context: ssl.SSLContext, *, server_side: bool) -> None:
    """:raises ValueError: if a context is for the other side of TLS"""
    wrong, way = (
        (ssl.PROTOCOL_TLS_CLIENT, "a server needs one made by ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)")
        if server_side
        else (ssl.PROTOCOL_TLS_SERVER, "a client needs one made by ssl.create_default_context()")
    )
    if context.protocol is wrong:
        raise ValueError(f"ssl_context is for the other side of TLS: {way}")


def check_server_hostname(value: object) -> None:
    """:raises TypeError: if it is not a str
    :raises ValueError: if it cannot be the name, or the address, in a certificate
    """
    check_host("server_hostname", value)
    if str(value).startswith("."):
        raise ValueError(f"server_hostname must not begin with a dot: {value!r}")
    try:
        identity(str(value))
    except UnicodeError as exc:
        raise ValueError(f"server_hostname must be a host name or an IP address, not {value!r}: {exc}") from exc


def identity(host: str) -> str | None:
    """The name or address that the peer's certificate must be for; None if there is none to check.

    A name is encoded as it is looked up, by IDNA 2008. Left to itself, :mod:`ssl` would encode it by IDNA 2003, and
    accept a certificate for another name: for "faß.example" that of "fass.example".

    :raises UnicodeError: if the name cannot be one
    """
    if ":" in host:  # an IPv6 address, without its zone
        return host.partition("%")[0]
    name = host.removesuffix(".")
    if name.isascii():
        name.encode("idna")  # which checks how long its labels are
        return name or None
    import idna  # AnyIO depends on it

    return idna.encode(name, uts46=True).decode("ascii")


def check_stream_socket(value: object) -> None:
    """:raises TypeError: if it is not a socket
    :raises ValueError: if it is closed, not a stream socket, or one that does TLS
    """
    if not isinstance(value, socket.socket):
        raise TypeError(f"from_socket() takes a socket.socket, not {type(value).__name__}")
    if isinstance(value, ssl.SSLSocket):
        raise ValueError("from_socket() takes a plain socket, and does TLS itself: see useSecureTransport")
    if value.fileno() == -1:
        raise ValueError("from_socket() takes an open socket, not one that is closed")
    if value.type != socket.SOCK_STREAM:
        raise ValueError(f"from_socket() takes a stream socket, not one of type {value.type!r}")


def _check_seconds(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not value >= 0:  # nor is NaN
        raise ValueError(f"{name} must be a number of seconds, 0 or more, not {value}")
