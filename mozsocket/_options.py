"""The options of the public calls. Each is declared, described and checked here, in one place::

    SocketOptions                    every connection
    ├── ClientOptions
    │   ├── ConnectOptions           TCPSocket(), MozTCPSocket.open()
    │   └── AdoptOptions             TCPSocket.from_socket()
    └── ServerOptions
        ├── ListenOptions            TCPServerSocket(), MozTCPSocket.listen()
        └── AdoptListenerOptions     TCPServerSocket.from_socket()

:func:`takes` gives a call the parameters of such a class, for type checkers, at run time and in ``help()``.
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
    "check_encodable_host",
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
_BINARY_TYPES: tuple[str, ...] = get_args(BinaryType)

if TYPE_CHECKING:
    import typing_extensions  # for defaults of type variables (PEP 696), new in Python 3.13

    DataT = typing_extensions.TypeVar("DataT", bound=bytes | str, default=bytes, covariant=True)
    BinaryTypeT = typing_extensions.TypeVar("BinaryTypeT", bound=BinaryType, default=BinaryType, covariant=True)
else:
    DataT = TypeVar("DataT", covariant=True)
    BinaryTypeT = TypeVar("BinaryTypeT", covariant=True)

MAX_BACKLOG = 65535
"""The longest queue of a listener; each system caps it at its own maximum."""


MAX_KEEP_ALIVE = 32767
"""The most seconds that Linux accepts for ``keep_alive`` (tcp(7))."""


class _Absent:
    """Defaults for the options that only some kinds of socket have: a connection can read them from any options."""

    __slots__ = ()

    connect_timeout: float | None = None
    local_host: str | None = None
    local_port: int = 0
    server_hostname: str | None = None
    proxy_protocol: bool = False


# In a dataclass with slots super() without arguments does not work: hence SocketOptions.__post_init__(self).


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketOptions(_Absent, Generic[BinaryTypeT]):
    """The options that every connection has, those of a server included.

    :param binaryType: ``"arraybuffer"``: data is ``bytes``; ``"string"`` (Gecko's default): data is ``str``, one
        character (U+0000 to U+00FF) per byte
    :param max_buffered_amount: the most bytes that :meth:`TCPSocket.send` buffers; None for no limit
    :param linger: seconds that :meth:`TCPSocket.close` waits, after everything was sent, for the peer to close too;
        :data:`math.inf` for no limit
    :param allow_half_open: whether the socket stays open when the peer has ended its side: ``end`` fires, and the
        program can send until it calls :meth:`TCPSocket.send_eof` or :meth:`TCPSocket.close` (Node: ``allowHalfOpen``)
    :param useSecureTransport: whether to use TLS from the start: ``open`` fires after the handshake
    :param ssl_context: with ``useSecureTransport=True`` only: what is trusted, client certificates, ALPN; None for
        :func:`ssl.create_default_context`, which checks the certificate and the name by the system's authorities. For
        STARTTLS it is an argument of :meth:`TCPSocket.upgradeToSecure`
    :param handshake_timeout: seconds that a TLS handshake may take, that of ``open()`` too, whatever its
        ``connect_timeout``; :data:`math.inf` for no limit
    :param idle_timeout: seconds without traffic, after which the connection fails with NetworkTimeoutError; None for no
        limit. Traffic is bytes received, and bytes handed to the operating system. The limit also applies while the
        socket is suspended, and so receives nothing, and while it is closing. It is checked eight times per interval,
        so the failure may come an eighth later
    :param keep_alive: whole seconds of silence, 1 to 32767, after which TCP probes whether the peer is still there
        (``SO_KEEPALIVE``); the system's settings say how often. None for no probes
    :param tls_standard_compatible: whether it is an error if a TLS connection ends without close_notify, as happens
        when an attacker cuts it off; if not, that counts as the peer's end (AnyIO's term)
    """

    if TYPE_CHECKING:  # the type of the data follows from the literal type of this option
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
        if self.binaryType not in _BINARY_TYPES:
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
    """Where a :class:`TCPSocket` connects to, and how.

    :param host: a host name or an IP address (of IPv6 without brackets)
    :param port: the port, 1 to 65535
    :param connect_timeout: seconds that resolving the name, connecting and TLS may take together; None for no limit
    :param local_host: the local address to connect from, or a host name that stands for it; None for any
    :param local_port: the local port to connect from, 1 to 65535; 0 for any free port
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
        an ``ssl_context``. A failed handshake is logged
    :param ssl_context: with ``useSecureTransport=True`` only: the certificate, what is demanded of clients, ALPN. For
        STARTTLS it is an argument of :meth:`TCPSocket.upgradeToSecure` of the accepted sockets
    :param handshake_timeout: seconds that a TLS handshake may take, and as many for the header of the PROXY protocol
    :param proxy_protocol: whether each connection begins with a header of the PROXY protocol, version 1 or 2, as a
        load balancer sends it: ``host`` and ``port`` of the accepted socket are then the client's. A connection
        without that header is logged and closed. Only for a port that nobody but the load balancer can reach
    :param max_connections: how many accepted sockets may be open, or closing, before further connections have to wait;
        None for no limit. A connection is not open during its TLS handshake, and may have to wait after it
    :param max_handshakes: how many connections may be in a TLS handshake, or have yet to send the header of the PROXY
        protocol. When there is one more, the connection that has taken longest is closed, so that silent clients keep
        nobody out
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
    """Where a :class:`TCPServerSocket` listens, and how.

    :param port: the port, 1 to 65535; 0 for any free port, see :attr:`TCPServerSocket.localPort`
    :param host: the local address to listen on, or a host name that stands for it; a name is looked up while the event
        loop waits, which may take time. ``"::"`` is every IPv6 and IPv4 address, ``"0.0.0.0"`` every IPv4 address; None
        for all addresses of both, as far as the machine has them
    :param backlog: the most connections that wait to be accepted, 0 to 65535; 0 for the system's maximum
    :param reuse_port: whether other sockets may listen on the same port and share the connections (``SO_REUSEPORT``)
    """

    port: int
    _: KW_ONLY
    host: str | None = None
    backlog: int = 0
    reuse_port: bool = False

    def __post_init__(self) -> None:
        check_port(self.port, lowest=0)
        if self.host is not None:
            check_encodable_host("host", self.host)
        check_count("backlog", self.backlog, 0, MAX_BACKLOG)
        check_flag("reuse_port", self.reuse_port)
        if self.reuse_port and not hasattr(socket, "SO_REUSEPORT"):  # pragma: no cover  (Windows)
            raise ValueError("reuse_port: this system has no SO_REUSEPORT")
        ServerOptions.__post_init__(self)


@dataclass(frozen=True, slots=True)
class AdoptListenerOptions(ServerOptions[BinaryTypeT]):
    """The socket that a :class:`TCPServerSocket` adopts, and its options.

    :param sock: a listening ``SOCK_STREAM`` socket
    """

    sock: socket.socket

    def __post_init__(self) -> None:
        check_stream_socket(self.sock)
        if not self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError("from_socket() takes a socket that listens: call its listen() first")
        ServerOptions.__post_init__(self)


def shared(options: SocketOptions, declaration: type[SocketOptions]) -> dict[str, Any]:
    """The options that are passed on to another call.

    :param options: the options given
    :param declaration: the class that declares those to pass on
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
    """Give a method the parameters of a class. It is called with them, and gets an object of that class::

        @takes(ConnectOptions)
        def __init__(self, options: ConnectOptions) -> None: ...

    :param declaration: the class; its constructor checks the arguments
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
    """Give an overload the parameters of a class, for type checkers: nothing else reads overloads."""
    return lambda method: method  # type: ignore[return-value]


def documents(declaration: object) -> Callable[[DescribedT], DescribedT]:
    """Put the ``:param`` lines of a declaration into a docstring, before its other fields."""

    def decorate(described: DescribedT) -> DescribedT:
        if described.__doc__ is not None:  # constructors have none, and with `python -OO` nothing has
            text, colon, others = inspect.cleandoc(described.__doc__).partition("\n:")
            described.__doc__ = f"{text.rstrip()}\n\n{_parameter_lines(declaration)}{colon}{others}"
        return described

    return decorate


def _parameter_lines(declaration: Any) -> str:
    """The ``:param`` lines of a class and its bases, in the order of its parameters. A class may describe a parameter
    anew: its own line then replaces that of the base.
    """
    lines: dict[str, str] = {}
    for each in reversed(inspect.getmro(declaration)):
        for found in _PARAMETER_LINES.finditer(inspect.cleandoc(each.__doc__ or "")):
            lines[found[1]] = found[0]
    return "\n".join(lines[name] for name in inspect.signature(declaration).parameters)


_PARAMETER_LINES = re.compile(r"^:param (\w+):.*(?:\n +.*)*", re.MULTILINE)


def _present(call: Any, method: Callable[..., Any], accepted: inspect.Signature) -> None:
    """Make a call look like its method, except for the parameters."""
    functools.update_wrapper(call, method)
    written = inspect.signature(method)
    owner = next(iter(written.parameters.values()))
    shown = written.replace(parameters=[owner, *accepted.parameters.values()])
    call.__signature__ = shown
    call.__annotations__ = {each.name: each.annotation for each in accepted.parameters.values()}
    call.__annotations__["return"] = shown.return_annotation


def _check_fit(name: str, accepted: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check that a call accepts these arguments, whatever their values. Python's own message would name the class that
    declares the options, not the call.

    :raises TypeError: if it does not
    """
    from difflib import get_close_matches  # imported for mistakes only

    for given in kwargs:
        if given not in accepted.parameters:
            close = get_close_matches(given, accepted.parameters, 1, 0.8)
            hint = f"did you mean {close[0]}?" if close else f"it takes {', '.join(accepted.parameters)}"
            raise TypeError(f"{name} takes no {given}: {hint}") from None
    try:
        accepted.bind(*args, **kwargs)
    except TypeError as exc:
        hint = "; options are keyword arguments, such as linger=5" if "too many positional" in str(exc) else ""
        raise TypeError(f"{name}: {exc}{hint}") from None


# The checks


def check_host(name: str, value: object) -> None:
    """Check a host name or address.

    :raises TypeError: if it is not a str
    :raises ValueError: if it is empty or has a NUL in it
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, a host name or an IP address, not {type(value).__name__}")
    if not value or "\0" in value:
        raise ValueError(f"{name} must be a host name or an IP address, not {value!r}")


_NOT_IN_NAMES = re.compile(r"[\[\]/:]")

_LIKE_IPV6 = re.compile(r"[0-9a-f.]*:[0-9a-f.]*:[0-9a-f:.]*(%.+)?", re.IGNORECASE)


def check_encodable_host(name: str, value: object) -> None:
    """Check a host name or address that is not the path of an adopted UNIX-domain socket: it has to be one.

    :raises TypeError: if it is not a str
    :raises ValueError: if it cannot be a host
    """
    check_host(name, value)
    if _NOT_IN_NAMES.search(str(value)) and not _LIKE_IPV6.fullmatch(str(value)):
        raise ValueError(f"{name} must be a host name or an IP address, without brackets or a port, not {value!r}")
    try:
        if identity(str(value)) is None:
            raise UnicodeError("label empty")
    except UnicodeError as exc:
        raise ValueError(f"{name} must be a host name or an IP address, not {value!r}: {exc}") from exc


def check_port(value: object, *, lowest: int) -> None:
    """Check the number of a port.

    :raises TypeError: if it is not an int
    :raises ValueError: if it is out of range
    """
    check_count("port", value, lowest, 65535)


def check_count(name: str, value: object, lowest: int, highest: int | None = None) -> None:
    """Check a whole number.

    :raises TypeError: if it is not an int
    :raises ValueError: if it is out of range
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < lowest or (highest is not None and value > highest):
        bounds = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise ValueError(f"{name} must be {bounds}, not {value}")


def check_flag(name: str, value: object) -> None:
    """Check an option that is on or off.

    :raises TypeError: if it is not a bool
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, not {type(value).__name__}")


def check_ssl_context(value: object) -> None:
    """Check the type of a context.

    :raises TypeError: if it is neither None nor an SSLContext
    """
    if value is not None and not isinstance(value, ssl.SSLContext):
        raise TypeError(f"ssl_context must be an ssl.SSLContext, not {type(value).__name__}")


def _refuse_without_tls(name: str, value: object) -> None:
    """Refuse an option of TLS for a connection without TLS. Whoever passes one expects the connection to be encrypted,
    as it would be in AnyIO and asyncio.

    :raises ValueError: if the option is given
    """
    if value is not None:
        raise ValueError(
            f"{name} alone encrypts nothing: pass useSecureTransport=True too or, for STARTTLS, give {name} to"
            " upgradeToSecure() instead"
        )


def check_role(context: ssl.SSLContext, *, server_side: bool) -> None:
    """Check that a context is for our side of TLS.

    :raises ValueError: if it is for the other side
    """
    wrong, remedy = (
        (ssl.PROTOCOL_TLS_CLIENT, "a server needs one made by ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)")
        if server_side
        else (ssl.PROTOCOL_TLS_SERVER, "a client needs one made by ssl.create_default_context()")
    )
    if context.protocol is wrong:
        raise ValueError(f"ssl_context is for the other side of TLS: {remedy}")


def check_server_hostname(value: object) -> None:
    """Check a name or address that a certificate must be for.

    :raises TypeError: if it is not a str
    :raises ValueError: if no certificate can be for it
    """
    check_host("server_hostname", value)
    if str(value).startswith("."):
        raise ValueError(f"server_hostname must not begin with a dot: {value!r}")
    check_encodable_host("server_hostname", value)


def identity(host: str) -> str | None:
    """The name or address that the peer's certificate must be for; None if the host has none.

    A name is encoded by IDNA 2008, as for looking it up. :mod:`ssl` would encode it by IDNA 2003, and accept a
    certificate for another name: for "faß.example" that of "fass.example".

    :raises UnicodeError: if the name cannot be one
    """
    if ":" in host:  # an IPv6 address, without its zone
        return host.partition("%")[0]
    name = host.removesuffix(".")
    if name.isascii():
        name.encode("idna")  # checks the length of its labels
        return name or None
    import idna  # AnyIO depends on it

    return idna.encode(name, uts46=True).decode("ascii")


def check_stream_socket(value: object) -> None:
    """Check a socket that is to be adopted.

    :raises TypeError: if it is not a socket
    :raises ValueError: if it is closed, not a stream socket, of another family, or an :class:`ssl.SSLSocket`
    """
    if not isinstance(value, socket.socket):
        raise TypeError(f"from_socket() takes a socket.socket, not {type(value).__name__}")
    if isinstance(value, ssl.SSLSocket):
        raise ValueError("from_socket() takes a plain socket, and does TLS itself: see useSecureTransport")
    if value.fileno() == -1:
        raise ValueError("from_socket() takes an open socket, not one that is closed")
    if value.type != socket.SOCK_STREAM:
        raise ValueError(f"from_socket() takes a stream socket, not one of type {value.type!r}")
    if value.family not in _FAMILIES:
        raise ValueError(f"from_socket() takes a socket of IPv4, IPv6 or a UNIX domain, not one of {value.family!r}")


_FAMILIES = (socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_UNIX", None))


def _check_seconds(name: str, value: object, *, zero: bool = True) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    try:
        float(value)
    except OverflowError:
        raise ValueError(f"{name} must be a number of seconds, and is too large for one") from None
    if not (value >= 0 if zero else value > 0):  # true for NaN too
        raise ValueError(f"{name} must be a number of seconds, {'0 or more' if zero else 'more than 0'}, not {value}")
