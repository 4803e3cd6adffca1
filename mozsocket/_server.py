"""TCPServerSocket: accepts connections (Gecko: ``TCPServerSocket.webidl``)."""

from __future__ import annotations

import errno
import socket
import ssl
from typing import Any

import anyio
import anyio.lowlevel

from . import _log
from ._addresses import display, host_and_port, printable
from ._errors import explain
from ._events import Event, EventHandler, TCPServerSocketEvent, TCPSocketErrorEvent
from ._lifetime import Lifetime
from ._log import WarningLimit
from ._options import (
    BinaryType,
    SocketOptions,
    check_count,
    check_flag,
    check_host,
    check_port,
    check_role,
    check_stream_socket,
)
from ._socket import TCPSocket
from ._transport import Transport, Watched

__all__ = ("TCPServerSocket",)

ACCEPT_PAUSE = 0.1
"""Seconds to wait when the system has no room for another connection."""

_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})

# The connection is lost before it was accepted: accept() names the reason, which is no trouble of the listener's.
# Those beyond ECONNABORTED are what Linux passes on of the new connection (accept(2), "Error handling").
_LOST_NAMES = (
    "ECONNABORTED ECONNRESET EPERM EPROTO ENOPROTOOPT ENETDOWN EHOSTDOWN ENONET EHOSTUNREACH ENETUNREACH EOPNOTSUPP"
    " ETIMEDOUT"
)
_LOST = frozenset(getattr(errno, name) for name in _LOST_NAMES.split() if hasattr(errno, name))

_MAX_BACKLOG = 65535  # each system caps it at its own maximum
_PORT_TRIES = 32


class TCPServerSocket(Lifetime):
    """Listens on a port and accepts connections (Gecko: ``TCPServerSocket``).

    Made by :meth:`MozTCPSocket.listen`, or used alone::

        async with TCPServerSocket(8007) as server:
            server.onconnect = greet
            await server.closed()

    Entering it binds the port; :exc:`OSError` is raised there. Leaving the block calls :meth:`close` and waits until
    the accepted sockets have closed too; leaving it by an exception closes them immediately.

    :param port: the port, 1 to 65535; 0 for one that is free, see :attr:`localPort`
    :param host: the address to listen on, or the name of one of this machine, which is looked up when it binds: unlike
        an address that may take time, and the event loop waits. ``"::"`` is IPv4 too, ``"0.0.0.0"`` IPv4 alone; None
        for all of both, as far as the machine has them
    :param binaryType: of the accepted sockets, as of :class:`TCPSocket`
    :param backlog: connections that wait to be accepted, at most, 0 to 65535; 0 for the system's maximum
    :param max_connections: how many accepted sockets may be open before others have to wait; None for no limit. One
        whose handshake is under way is not open yet; where that many are when it is done, it waits its turn
    :param max_handshakes: how many connections may be in a TLS handshake, or have yet to send the header of the PROXY
        protocol; for one more, that which has waited longest is given up. So those who stay silent shut out nobody
    :param reuse_port: let other sockets listen on the same port, which share the connections (``SO_REUSEPORT``)
    :param max_buffered_amount: of the accepted sockets, as of :class:`TCPSocket`
    :param linger: of the accepted sockets, as of :class:`TCPSocket`
    :param useSecureTransport: whether to use TLS from the first byte: ``connect`` fires after the handshake. It needs
        an ``ssl_context``. A connection whose handshake fails is logged
    :param ssl_context: the certificate, what is demanded of clients, ALPN; for TLS from the first byte, and for
        :meth:`TCPSocket.upgradeToSecure` of the accepted sockets
    :param handshake_timeout: seconds that a TLS handshake may take, and the header of the PROXY protocol before it
    :param tls_standard_compatible: of the accepted sockets, as of :class:`TCPSocket`
    :param allow_half_open: of the accepted sockets, as of :class:`TCPSocket`
    :param proxy_protocol: whether each connection begins with a header of the PROXY protocol, version 1 or 2, as a
        load balancer sends it: ``host`` and ``port`` of the accepted socket are then the client's. A connection
        without one is logged and closed. Only for a port that nobody but the load balancer can reach
    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if an argument is out of range
    """

    __slots__ = (
        "__weakref__",
        "_adopted",
        "_backlog",
        "_bound",
        "_closed",
        "_connections",
        "_error_told",
        "_handshaking",
        "_host",
        "_max_connections",
        "_max_handshakes",
        "_open",
        "_options",
        "_port",
        "_queuing",
        "_reuse_port",
        "_warnings",
    )

    onconnect: EventHandler[TCPServerSocketEvent] = EventHandler(
        "A connection has been accepted. Its ``data`` starts when the handler has returned."
    )
    onerror: EventHandler[TCPSocketErrorEvent[TCPServerSocket]] = EventHandler("The server cannot go on listening.")

    def __init__(
        self,
        port: int,
        *,
        host: str | None = None,
        binaryType: BinaryType = "arraybuffer",
        backlog: int = 0,
        max_connections: int | None = None,
        max_handshakes: int = 1000,
        reuse_port: bool = False,
        max_buffered_amount: int | None = None,
        linger: float = 5,
        useSecureTransport: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        handshake_timeout: float = 30,
        tls_standard_compatible: bool = True,
        allow_half_open: bool = False,
        proxy_protocol: bool = False,
    ) -> None:
        check_port(port, lowest=0)
        if host is not None:
            check_host("host", host)
        check_count("backlog", backlog, 0, _MAX_BACKLOG)
        check_flag("reuse_port", reuse_port)
        if reuse_port and not hasattr(socket, "SO_REUSEPORT"):  # pragma: no cover  (Windows)
            raise ValueError("reuse_port: this system has no SO_REUSEPORT")
        options = SocketOptions(
            binaryType=binaryType,
            max_buffered_amount=max_buffered_amount,
            linger=linger,
            useSecureTransport=useSecureTransport,
            ssl_context=ssl_context,
            handshake_timeout=handshake_timeout,
            tls_standard_compatible=tls_standard_compatible,
            allow_half_open=allow_half_open,
            proxy_protocol=proxy_protocol,
        )
        self._set_up(port, max_connections, max_handshakes, options)
        self._host = host
        self._backlog = backlog or _MAX_BACKLOG
        self._reuse_port = reuse_port

    def _set_up(self, port: int, max_connections: int | None, max_handshakes: int, options: SocketOptions) -> None:
        super().__init__()
        if max_connections is not None:
            check_count("max_connections", max_connections, 1)
        check_count("max_handshakes", max_handshakes, 1)
        if options.ssl_context is not None:
            check_role(options.ssl_context, server_side=True)
        elif options.useSecureTransport:
            raise ValueError("useSecureTransport=True: a server needs an ssl_context with a certificate")
        self._port = port
        self._max_connections = max_connections
        self._max_handshakes = max_handshakes
        self._options = options
        self._bound: list[Watched] = []
        self._adopted = False  # whether others may listen on the same socket: a service manager, sibling processes
        self._connections: set[TCPSocket] = set()  # all that were accepted, and have not ended
        self._handshaking: dict[TCPSocket, None] = {}  # those of them that are not done with that, the oldest first
        self._queuing: dict[TCPSocket, None] = {}  # those that are, and wait until they may be open
        self._open: set[TCPSocket] = set()
        self._warnings = WarningLimit()
        self._closed = False
        self._error_told = False

    @classmethod
    def from_socket(
        cls,
        sock: socket.socket,
        *,
        binaryType: BinaryType = "arraybuffer",
        max_connections: int | None = None,
        max_handshakes: int = 1000,
        max_buffered_amount: int | None = None,
        linger: float = 5,
        useSecureTransport: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        handshake_timeout: float = 30,
        tls_standard_compatible: bool = True,
        allow_half_open: bool = False,
        proxy_protocol: bool = False,
    ) -> TCPServerSocket:
        """Adopt a listening stream socket, which belongs to the TCPServerSocket from then on.

        :param sock: a ``SOCK_STREAM`` socket that listens
        :param binaryType: as of :class:`TCPServerSocket`, and so are the others
        :raises TypeError: if it is not a socket, or an argument is of the wrong type
        :raises ValueError: if it is not a listening stream socket, or an argument is out of range
        """
        check_stream_socket(sock)
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ValueError("from_socket() takes a socket that listens: call its listen() first")
        options = SocketOptions(
            binaryType=binaryType,
            max_buffered_amount=max_buffered_amount,
            linger=linger,
            useSecureTransport=useSecureTransport,
            ssl_context=ssl_context,
            handshake_timeout=handshake_timeout,
            tls_standard_compatible=tls_standard_compatible,
            allow_half_open=allow_half_open,
            proxy_protocol=proxy_protocol,
        )
        self = cls.__new__(cls)
        address = sock.getsockname()
        self._set_up(address[1] if isinstance(address, tuple) else 0, max_connections, max_handshakes, options)
        sock.setblocking(False)
        self._bound = [Watched(sock)]
        self._adopted = True
        return self

    def __repr__(self) -> str:
        state = "closed" if self._closed else "listening" if self._bound else "not entered"
        return f"<{type(self).__name__} :{self._port} {state}>"

    @property
    def localPort(self) -> int:
        """The port it listens on, or did; of a UNIX-domain socket 0."""
        return self._port

    def close(self) -> None:
        """Stop listening. Accepted sockets live on. Closing twice does no harm."""
        if not self._closed:
            self._require_task("close()")
            self._closed = True
            for listener in self._bound:
                if not self._adopted:
                    _stop_listening(listener.socket)
                listener.close()
            self._notify()

    async def closed(self) -> None:
        """Wait until it listens no more.

        :raises TCPSocketError: if it could not go on listening
        """
        await self._reach("closed()", lambda: self._closed and self._failure is None, lambda: self._closed)

    def _bind(self) -> None:
        """:raises OSError: if the port cannot be listened on"""
        if not self._bound and not self._closed:
            bound = _listen(self._host, self._port, self._backlog, self._reuse_port)
            self._port = bound[0].getsockname()[1]
            self._bound = [Watched(sock) for sock in bound]

    async def __aenter__(self) -> TCPServerSocket:
        self._bind()
        return await super().__aenter__()

    def _in_handler(self) -> bool:
        # The server ends when its connections have, and they when their handlers have returned.
        return super()._in_handler() or any(connection._in_handler() for connection in self._connections)

    def _abort(self) -> None:
        self.close()
        for connection in tuple(self._connections):
            connection.closeImmediately()

    def _cancel_handlers(self) -> None:
        super()._cancel_handlers()
        for connection in tuple(self._connections):
            connection._cancel_handlers()

    def _close_all(self) -> None:
        self.close()
        for connection in tuple(self._connections):
            connection.close()

    async def _live(self) -> None:
        for listener in self._bound:
            if not self._closed:
                self._spawn("accept loop", self._accept_from, listener)
        while self._busy or self._connections or not self._closed:
            await self._change()
            if self._handlers_cancelled:
                self._pump()

    def _release(self) -> None:
        self.close()
        self._warnings.close(self)

    async def _accept_from(self, listener: Watched) -> None:
        try:
            while not self._closed:
                if self._is_full():
                    await self._wait_until(lambda: self._closed or not self._is_full())
                elif await self._accept_one(listener):
                    await anyio.lowlevel.checkpoint()  # connections that come in masses wait for those that are there
                else:
                    await listener.wait_readable()
        except anyio.ClosedResourceError:
            pass

    async def _accept_one(self, listener: Watched) -> bool:
        """:return: whether there may be another"""
        try:
            sock, peer = listener.socket.accept()
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno in _NO_ROOM:
                await self._wait_for_room(exc, listener)
            elif exc.errno not in _LOST:
                await self._fail(exc)
        else:
            try:
                self._welcome(sock, peer)
            except Exception as exc:  # of the program's: it is no trouble of other connections
                _log.error("%r could not take a connection", self, exc_info=exc)
                sock.close()
        return True

    async def _wait_for_room(self, exc: OSError, listener: Watched) -> None:
        """The system has none for another connection. There may be fewer descriptors than ``max_handshakes``: then the
        handshake that has waited longest gives way too, when somebody else has come.
        """
        self._warnings.error(self, "no room", "%r cannot accept, and tries again in %s s: %s", self, ACCEPT_PAUSE, exc)
        if exc.errno not in _NO_DESCRIPTORS or not self._handshaking:
            await anyio.sleep(ACCEPT_PAUSE)
            return
        await listener.wait_readable()
        if self._handshaking:
            oldest = self._give_up_oldest()
            with anyio.move_on_after(ACCEPT_PAUSE):
                await self._wait_until(lambda: oldest not in self._connections)

    def _welcome(self, sock: socket.socket, peer: Any) -> None:
        if not self._has_listener("connect"):
            shown = printable(display(*host_and_port(peer)))
            self._warn("no onconnect", "%r has no onconnect: the connection from %s is closed", self, shown)
            Transport(sock).close()
            return
        connection = TCPSocket._accept(sock, peer, self._options, self)
        self._connections.add(connection)
        if self._options.useSecureTransport or self._options.proxy_protocol:
            self._begin_handshake(connection)
        else:
            self._open.add(connection)
        try:
            self._spawn("connection", self._serve, connection)
        except BaseException:
            self._forget(connection)
            raise

    def _begin_handshake(self, connection: TCPSocket) -> None:
        if len(self._handshaking) >= self._max_handshakes:
            self._give_up_oldest()
        self._handshaking[connection] = None

    def _give_up_oldest(self) -> TCPSocket:
        oldest = next(iter(self._handshaking))
        del self._handshaking[oldest]
        oldest._give_way()
        return oldest

    async def _admit(self, connection: TCPSocket) -> None:
        """Count a connection as open when its handshake is done, and when it may be: those that wait come in turn."""
        self._handshaking.pop(connection, None)
        self._queuing[connection] = None
        await self._wait_until(
            lambda: (
                self._max_connections is None
                or (len(self._open) < self._max_connections and next(iter(self._queuing)) is connection)
            )
        )
        del self._queuing[connection]
        self._open.add(connection)
        self._notify()

    async def _serve(self, connection: TCPSocket) -> None:
        try:
            leaving = await connection._run_accepted(*self._scopes)
            if leaving is not None:
                self._crashed(leaving, "a connection")
        finally:
            self._forget(connection)

    def _forget(self, connection: TCPSocket) -> None:
        self._connections.discard(connection)
        self._handshaking.pop(connection, None)
        self._queuing.pop(connection, None)
        self._open.discard(connection)
        self._notify()

    def _is_full(self) -> bool:
        return self._max_connections is not None and len(self._open) + len(self._queuing) >= self._max_connections

    def _warn(self, kind: str, message: str, *args: object) -> None:
        self._warnings.warn(self, kind, message, *args)

    async def _fail(self, exc: OSError) -> None:
        assert self._tasks is not None
        self._failure = explain(exc)
        self.close()
        if self._has_listener("error"):
            self._failure_seen = True
            self._wake_dispatch()
        await self._let_awaiters_know()
        if not self._failure_seen:
            self._tasks.cancel_scope.cancel()  # for a scope to be told now, and not when the last connection ends

    def _is_due(self) -> bool:
        return self._failure is not None and not self._error_told

    def _next_event(self) -> Event[Any] | None:
        if self._failure is None or self._error_told:
            self._notify()
            return None
        self._error_told = True
        return TCPSocketErrorEvent("error", self, self._failure)


def _stop_listening(sock: socket.socket) -> None:
    """Where the system can (Linux), at once: the socket itself is closed when the accept loop has woken.

    That ends the listening of every process that has the socket.
    """
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def _listen(host: str | None, port: int, backlog: int, reuse_port: bool) -> list[socket.socket]:
    """Sockets that listen on one port of each address of a host."""
    if host is None:
        addresses: list[tuple[int, tuple[Any, ...]]] = [
            (family, (address, port)) for family, address in _ALL_INTERFACES
        ]
    else:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    for _ in range(_PORT_TRIES - 1):
        try:
            return _listen_on_each(addresses, backlog, reuse_port)
        except OSError as exc:
            # The port that the first address got may be taken on another address.
            if exc.errno != errno.EADDRINUSE or port or len(addresses) == 1:
                raise
    return _listen_on_each(addresses, backlog, reuse_port)


_ALL_INTERFACES = [(socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")]  # noqa: S104


def _listen_on_each(
    addresses: list[tuple[int, tuple[Any, ...]]], backlog: int, reuse_port: bool
) -> list[socket.socket]:
    bound: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, (host, port, *rest) in addresses:
            if bound and not port:
                port = bound[0].getsockname()[1]
            address = (host, port, *rest)
            try:
                bound.append(_listen_on(family, address, backlog, reuse_port, alone=len(addresses) == 1))
            except OSError as exc:
                exc.filename = display(*host_and_port(address))  # for its message
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = exc  # this machine may have one of IPv4 and IPv6 only
        if missing is not None and not bound:
            raise missing
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    return bound


def _listen_on(family: int, address: tuple[Any, ...], backlog: int, reuse_port: bool, *, alone: bool) -> socket.socket:
    """:param alone: whether it is the only address, so that a wildcard is one for IPv4 too"""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # pragma: no cover  (Windows, where SO_REUSEADDR steals ports)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # "::" by itself is IPv4 too, as with Node and others, whatever the system's own setting is.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not alone)
        sock.bind(address)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock
