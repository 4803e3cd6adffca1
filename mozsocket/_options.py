"""What the calls accept. Each option is declared, described and checked here, in one place::

    SocketOptions                    every connection
    ├── ClientOptions
    │   ├── ConnectOptions           TCPSocket(), MozTCPSocket.open()
    │   └── AdoptOptions             TCPSocket.from_socket()
    └── ServerOptions
        ├── ListenOptions            TCPServerSocket(), MozTCPSocket.listen()
        └── AdoptListenerOptions     TCPServerSocket.from_socket()

:func:`takes` gives a call the parameters of such a class: to type checkers, at run time and in its help.
"""

from __future__ import annotations

import functools
import inspect
import re
import socket
import ssl
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, TypeVar, get_args

__all__ = (
    "MAX_BACKLOG",
    "AdoptListenerOptions",
    "AdoptOptions",
    "BinaryType",
    "Bytes",
    "ClientOptions",
    "ConnectOptions",
    "DataT",
    "ListenOptions",
    "ServerOptions",
    "SocketOptions",
    "Text",
    "accepts",
    "check_count",
    "check_flag",
    "check_host",
    "check_port",
    "check_role",
    "check_server_hostname",
    "check_ssl_context",
    "check_stream_socket",
    "documents",
    "identity",
    "shared",
    "takes",
)

Bytes = Literal["arraybuffer"]
Text = Literal["string"]
BinaryType = Literal["arraybuffer", "string"]

if TYPE_CHECKING:
    import typing_extensions  # for defaults (PEP 696), which Python has from 3.13 on

    DataT = typing_extensions.TypeVar("DataT", bound=bytes | str, default=bytes, covariant=True)
    BinaryTypeT = typing_extensions.TypeVar("BinaryTypeT", bound=BinaryType, default=BinaryType, covariant=True)
else:
    DataT = TypeVar("DataT", covariant=True)
    BinaryTypeT = TypeVar("BinaryTypeT", covariant=True)

MAX_BACKLOG = 65535
"""Each system caps it at its own maximum."""


MAX_KEEP_ALIVE = 32767
"""Seconds; Linux takes no more (tcp(7))."""


class _Absent:
    """What a connection finds in place of the options that others have."""

    __slots__ = ()

    connect_timeout: float | None = None
    local_host: str | None = None
    local_port: int = 0
    server_hostname: str | None = None
    proxy_protocol: bool = False


# In a dataclass with slots super() without arguments does not work: hence SocketOptions.__post_init__(self).


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions(_Absent, Generic[BinaryTypeT]):
    """The options of every connection, which those of a server share.

    :param binaryType: ``"arraybuffer"``: data is ``bytes`` (Gecko's default is the other); ``"string"``: data is
        ``str``, one character (U+0000 to U+00FF) per byte
    :param max_buffered_amount: bytes that :meth:`TCPSocket.send` buffers at most; None for no limit
    :param linger: seconds that :meth:`TCPSocket.close` waits, after all is sent, for the peer to close too
    :param allow_half_open: whether the socket stays open when the peer has ended its side: ``end`` fires, and sending
        goes on until :meth:`TCPSocket.send_eof` or :meth:`TCPSocket.close` (Node's ``allowHalfOpen``)
    :param useSecureTransport: whether to use TLS from the start: ``open`` fires after the handshake
    :param ssl_context: with ``useSecureTransport=True`` only: what is trusted, client certificates, ALPN; None for
        :func:`ssl.create_default_context`, which checks the certificate and the name by the system's authorities. For
        STARTTLS it is an argument of :meth:`TCPSocket.upgradeToSecure`
    :param handshake_timeout: seconds that a TLS handshake may take
    :param idle_timeout: seconds in which nothing is received, nor anything sent taken by the system, after which the
        connection fails with NetworkTimeoutError; None for no limit. It is noticed up to an eighth later. While closing
        too; and while the program has suspended the socket and so receives nothing
    :param keep_alive: whole seconds of silence, 1 to 32767, after which TCP asks whether the peer is still there
        (``SO_KEEPALIVE``), as often and as long as the system is set to; None for never
    :param tls_standard_compatible: whether a peer that ends a TLS connection without saying so (close_notify), as
        also happens when an attacker cuts it off, is an error; else it is the peer's end (AnyIO's term)
    """

    if TYPE_CHECKING:  # which type the data is follows from it
        binaryType: BinaryTypeT = "arraybuffer"  # type: ignore[assignment]
    else:
        binaryType: BinaryType = "arraybuffer"
    max_buffered_amount: int | None = None
    linger: float = 5
    allow_half_open: bool = False
    useSecureTransport: bool = False
    ssl_context: ssl.SSLContext | None = None
    handshake_timeout: float = 30
    idle_timeout: float | None = None
    keep_alive: int | None = None
    tls_standard_compatible: bool = True

    def __post_init__(self) -> None:
        if self.binaryType not in get_args(BinaryType):
            raise ValueError(f'binaryType must be "arraybuffer" or "string", not {self.binaryType!r}')
        if self.max_buffered_amount is not None:
            check_count("max_buffered_amount", self.max_buffered_amount, 1)
        _check_seconds("linger", self.linger)
        check_flag("allow_half_open", self.allow_half_open)
        check_flag("useSecureTransport", self.useSecureTransport)
        check_ssl_context(self.ssl_context)
        if not self.useSecureTransport:
            _refuse_without_tls("ssl_context", self.ssl_context)
        _check_seconds("handshake_timeout", self.handshake_timeout)
        if self.idle_timeout is not None:
            _check_seconds("idle_timeout", self.idle_timeout, zero=False)
        if self.keep_alive is not None:
            check_count("keep_alive", self.keep_alive, 1, MAX_KEEP_ALIVE)
        check_flag("tls_standard_compatible", self.tls_standard_compatible)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions(SocketOptions[BinaryTypeT]):
    """The options of a :class:`TCPSocket` that the program makes.

    :param server_hostname: with ``useSecureTransport=True`` only: the name or address that the certificate must be
        for; None for the host
    """

    server_hostname: str | None = None

    def __post_init__(self) -> None:
        SocketOptions.__post_init__(self)
        if self.server_hostname is not None:
            check_server_hostname(self.server_hostname)
        if not self.useSecureTransport:
            _refuse_without_tls("server_hostname", self.server_hostname)


@dataclass(frozen=True, slots=True)
class ConnectOptions(ClientOptions[BinaryTypeT]):
    """Where a :class:`TCPSocket` is to connect, and how.

    :param host: a host name or an IP address
    :param port: the port, 1 to 65535
    :param connect_timeout: seconds that resolving the name, connecting and TLS may take together; None for no limit
    :param local_host: the address, or the name of one, to connect from; None for any
    :param local_port: the port to connect from, 1 to 65535; 0 for one that is free
    """

    host: str
    port: int
    _: KW_ONLY
    connect_timeout: float | None = None
    local_host: str | None = None
    local_port: int = 0

    def __post_init__(self) -> None:
        check_host("host", self.host)
        check_port(self.port, lowest=1)
        ClientOptions.__post_init__(self)
        if self.ssl_context is not None:
            check_role(self.ssl_context, server_side=False)
        if self.connect_timeout is not None:
            _check_seconds("connect_timeout", self.connect_timeout)
        if self.local_host is not None:
            check_host("local_host", self.local_host)
        check_count("local_port", self.local_port, 0, 65535)


@dataclass(frozen=True, slots=True)
class AdoptOptions(ClientOptions[BinaryTypeT]):
    """The socket that a :class:`TCPSocket` adopts, and its options.

    :param sock: a connected ``SOCK_STREAM`` socket
    """

    sock: socket.socket

    def __post_init__(self) -> None:
        check_stream_socket(self.sock)
        ClientOptions.__post_init__(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions(SocketOptions[BinaryTypeT]):
    """The options of a :class:`TCPServerSocket`.

    :param useSecureTransport: whether to use TLS from the first byte: ``connect`` fires after the handshake. It needs
        an ``ssl_context``. A connection whose handshake fails is logged
    :param ssl_context: with ``useSecureTransport=True`` only: the certificate, what is demanded of clients, ALPN. For
        STARTTLS it is an argument of :meth:`TCPSocket.upgradeToSecure` of the accepted sockets
    :param handshake_timeout: seconds that a TLS handshake may take, and the header of the PROXY protocol before it
    :param proxy_protocol: whether each connection begins with a header of the PROXY protocol, version 1 or 2, as a
        load balancer sends it: ``host`` and ``port`` of the accepted socket are then the client's. A connection
        without one is logged and closed. Only for a port that nobody but the load balancer can reach
    :param max_connections: how many accepted sockets may be open before others have to wait; None for no limit. One
        whose handshake is under way is not open yet; where that many are when it is done, it waits its turn
    :param max_handshakes: how many connections may be in a TLS handshake, or have yet to send the header of the PROXY
        protocol; for one more, that which has waited longest is given up. So those who stay silent shut out nobody
    """

    proxy_protocol: bool = False
    max_connections: int | None = None
    max_handshakes: int = 1000

    def __post_init__(self) -> None:
        SocketOptions.__post_init__(self)
        if self.ssl_context is not None:
            check_role(self.ssl_context, server_side=True)
        elif self.useSecureTransport:
            raise ValueError("useSecureTransport=True: a server needs an ssl_context with a certificate")
        check_flag("proxy_protocol", self.proxy_protocol)
        if self.max_connections is not None:
            check_count("max_connections", self.max_connections, 1)
        check_count("max_handshakes", self.max_handshakes, 1)


@dataclass(frozen=True, slots=True)
class ListenOptions(ServerOptions[BinaryTypeT]):
    """Where a :class:`TCPServerSocket` is to listen, and how.

    :param port: the port, 1 to 65535; 0 for one that is free, see :attr:`TCPServerSocket.localPort`
    :param host: the address to listen on, or the name of one of this machine, which is looked up when it binds: unlike
        an address that may take time, and the event loop waits. ``"::"`` is IPv4 too, ``"0.0.0.0"`` IPv4 alone; None
        for all of both, as far as the machine has them
    :param backlog: connections that wait to be accepted, at most, 0 to 65535; 0 for the system's maximum
    :param reuse_port: let other sockets listen on the same port, which share the connections (``SO_REUSEPORT``)
    """

    port: int
    _: KW_ONLY
    host: str | None = None
    backlog: int = 0
    reuse_port: bool = False

    def __post_init__(self) -> None:
        check_port(self.port, lowest=0)
        if self.host is not None:
            check_host("host", self.host)
        check_count("backlog", self.backlog, 0, MAX_BACKLOG)
        check_flag("reuse_port", self.reuse_port)
        if self.reuse_port and not hasattr(socket, "SO_REUSEPORT"):  # pragma: no cover  (Windows)
            raise ValueError("reuse_port: this system has no SO_REUSEPORT")
        ServerOptions.__post_init__(self)


@dataclass(frozen=True, slots=True)
class AdoptListenerOptions(ServerOptions[BinaryTypeT]):
    """The socket that a :class:`TCPServerSocket` adopts, and its options.

    :param sock: a ``SOCK_STREAM`` socket that listens
    """

    sock: socket.socket

    def __post_init__(self) -> None:
        check_stream_socket(self.sock)
        if not self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError("from_socket() takes a socket that listens: call its listen() first")
        ServerOptions.__post_init__(self)


def shared(options: SocketOptions, declaration: type[SocketOptions]) -> dict[str, Any]:
    """The options that have to be said again for another call.

    :param declaration: which they are
    """
    return {field.name: getattr(options, field.name) for field in fields(declaration)}


# From a declaration to a call

P = ParamSpec("P")
DeclaredT = TypeVar("DeclaredT")
OwnerT = TypeVar("OwnerT")
ResultT = TypeVar("ResultT")
DescribedT = TypeVar("DescribedT")


def takes(
    declaration: Callable[P, DeclaredT],
) -> Callable[[Callable[[OwnerT, DeclaredT], ResultT]], Callable[Concatenate[OwnerT, P], ResultT]]:
    """Give a method the parameters of a class: it is called with them, and gets the object made of them::

        @takes(ConnectOptions)
        def __init__(self, options: ConnectOptions) -> None: ...

    :param declaration: the class; its constructor checks what it is given
    """

    def decorate(method: Callable[[OwnerT, DeclaredT], ResultT]) -> Callable[Concatenate[OwnerT, P], ResultT]:
        accepted = inspect.signature(declaration)
        name = method.__qualname__.removesuffix(".__init__") + "()"

        def call(owner: OwnerT, /, *args: P.args, **kwargs: P.kwargs) -> ResultT:
            try:
                declared = declaration(*args, **kwargs)
            except TypeError:
                _check_fit(name, accepted, args, kwargs)
                raise
            return method(owner, declared)

        _present(call, method, accepted)
        return documents(declaration)(call)

    return decorate


def accepts(
    declaration: Callable[P, object],
) -> Callable[[Callable[[OwnerT], ResultT]], Callable[Concatenate[OwnerT, P], ResultT]]:
    """Give an overload the parameters of a class: to type checkers, the only ones to read it."""
    return lambda method: method  # type: ignore[return-value]


def documents(declaration: object) -> Callable[[DescribedT], DescribedT]:
    """Put the ``:param`` lines of a declaration into a docstring, before its other fields."""

    def decorate(described: DescribedT) -> DescribedT:
        if described.__doc__ is not None:  # as it is of a constructor, and everywhere with `python -OO`
            text, colon, others = inspect.cleandoc(described.__doc__).partition("\n:")
            described.__doc__ = f"{text.rstrip()}\n\n{_parameter_lines(declaration)}{colon}{others}"
        return described

    return decorate


def _parameter_lines(declaration: Any) -> str:
    """The ``:param`` lines of a class and of those it inherits from, in the order of its parameters. Of two for the
    same parameter its own counts.
    """
    lines: dict[str, str] = {}
    for each in reversed(inspect.getmro(declaration)):
        for found in _PARAMETER_LINES.finditer(inspect.cleandoc(each.__doc__ or "")):
            lines[found[1]] = found[0]
    return "\n".join(lines[name] for name in inspect.signature(declaration).parameters)


_PARAMETER_LINES = re.compile(r"^:param (\w+):.*(?:\n +.*)*", re.MULTILINE)


def _present(call: Any, method: Callable[..., Any], accepted: inspect.Signature) -> None:
    """Make a call look like its method, but for its parameters."""
    functools.update_wrapper(call, method)
    written = inspect.signature(method)
    owner = next(iter(written.parameters.values()))
    shown = written.replace(parameters=[owner, *accepted.parameters.values()])
    call.__signature__ = shown
    call.__annotations__ = {each.name: each.annotation for each in accepted.parameters.values()}
    call.__annotations__["return"] = shown.return_annotation


def _check_fit(name: str, accepted: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """:raises TypeError: if a call takes no such arguments, whatever their values: in its own name"""
    from difflib import get_close_matches  # which programs without a mistake have no use for

    for given in kwargs:
        if given not in accepted.parameters:
            close = get_close_matches(given, accepted.parameters, 1, 0.8)
            hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(accepted.parameters)}"
            raise TypeError(f"{name} takes no {given}: {hint}") from None
    try:
        accepted.bind(*args, **kwargs)
    except TypeError as exc:
        raise TypeError(f"{name}: {exc}") from None


# The checks


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


def _refuse_without_tls(name: str, value: object) -> None:
    """Whoever gives such an option means the connection to be encrypted, as it would be in AnyIO and asyncio.

    :raises ValueError: if an option of TLS is given where there is none
    """
    if value is not None:
        raise ValueError(
            f"{name} alone encrypts nothing: say useSecureTransport=True too or, for STARTTLS, give {name} to"
            " upgradeToSecure() instead"
        )


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


def _check_seconds(name: str, value: object, *, zero: bool = True) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not (value >= 0 if zero else value > 0):  # nor is NaN
        raise ValueError(f"{name} must be a number of seconds, {'0 or more' if zero else 'more than 0'}, not {value}")
