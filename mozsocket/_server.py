"""TCPServerSocket: accepts connections, as Gecko's ``TCPServerSocket.webidl`` defines it.

It checks the program's arguments, and has an :class:`Acceptor` do the work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from ._acceptor import Acceptor
from ._events import Event, EventHandler, EventTarget, TCPSocketErrorEvent
from ._options import (
    AdoptListenerOptions,
    BinaryType,
    Bytes,
    DataT,
    ListenOptions,
    ServerOptions,
    Text,
    accepts,
    documents,
    shared,
    takes,
)
from ._socket import TCPSocket

__all__ = ("TCPServerSocket", "TCPServerSocketEvent", "acceptor_of")

SelfT = TypeVar("SelfT", bound="TCPServerSocket[Any]")


class TCPServerSocketEvent(Event["TCPServerSocket[DataT]"], Generic[DataT]):
    """``connect``: a server has accepted a connection."""

    __slots__ = ("_socket",)
    __match_args__ = ("type", "target", "socket")

    def __init__(self, type: str, target: TCPServerSocket[DataT], socket: TCPSocket[DataT]) -> None:
        super().__init__(type, target)
        self._socket = socket

    @property
    def socket(self) -> TCPSocket[DataT]:
        """The accepted socket, open."""
        return self._socket

    def _details(self) -> str:
        return f" {self.socket!r}"


@documents(ListenOptions)
class TCPServerSocket(EventTarget, Generic[DataT]):
    """Listens on a port and accepts connections (Gecko: ``TCPServerSocket``).

    Made by :meth:`MozTCPSocket.listen`, or used alone::

        async with TCPServerSocket(8007) as server:
            server.onconnect = greet
            await server.closed()

    Entering the block binds the port, and raises :exc:`OSError` if that fails. Leaving the block calls :meth:`close`
    and waits until the accepted sockets have closed too; leaving it by an exception closes them immediately.

    The options that a :class:`TCPSocket` has too apply to each accepted socket.

    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if an argument is out of range
    """

    __slots__ = ("_acceptor",)

    onconnect: EventHandler[TCPServerSocketEvent[DataT]] = EventHandler(
        "A connection has been accepted. Its ``data`` events start when the handler has returned. Without a handler or"
        " listener each connection is closed at once, and a warning is logged."
    )
    onerror: EventHandler[TCPSocketErrorEvent[TCPServerSocket[DataT]]] = EventHandler(
        "The server can no longer listen."
    )

    # pyright does not infer the type of data from `self` here: for text write TCPServerSocket[str](…).
    @overload
    @accepts(ListenOptions[Bytes])
    def __init__(self: TCPServerSocket[bytes]) -> None: ...
    @overload
    @accepts(ListenOptions[Text])
    def __init__(self: TCPServerSocket[str]) -> None: ...
    @overload
    @accepts(ListenOptions[BinaryType])
    def __init__(self: TCPServerSocket[bytes | str]) -> None: ...
    @takes(ListenOptions)
    def __init__(self, options: ListenOptions) -> None:
        super().__init__()
        self._acceptor = Acceptor(type(self).__name__, options, self._listeners)

    if TYPE_CHECKING:  # which event a listener gets: of "connect" and "error" their own classes, else Event

        @overload
        def addEventListener(
            self,
            type: Literal["connect"],
            listener: Callable[[TCPServerSocketEvent[DataT]], object],
            *,
            once: bool = False,
        ) -> None: ...
        @overload
        def addEventListener(
            self,
            type: Literal["error"],
            listener: Callable[[TCPSocketErrorEvent[TCPServerSocket[DataT]]], object],
            *,
            once: bool = False,
        ) -> None: ...
        @overload
        def addEventListener(
            self, type: str, listener: Callable[[Event[TCPServerSocket[DataT]]], object], *, once: bool = False
        ) -> None: ...
        def addEventListener(self, type: str, listener: Callable[[Any], object], *, once: bool = False) -> None: ...

    @overload
    @classmethod
    @accepts(AdoptListenerOptions[Bytes])
    def from_socket(cls: type[SelfT]) -> SelfT: ...
    @overload
    @classmethod
    @accepts(AdoptListenerOptions[Text])
    def from_socket(cls) -> TCPServerSocket[str]: ...
    @overload
    @classmethod
    @accepts(AdoptListenerOptions[BinaryType])
    def from_socket(cls) -> TCPServerSocket[bytes | str]: ...
    @classmethod
    @takes(AdoptListenerOptions)
    def from_socket(cls: type[SelfT], options: AdoptListenerOptions) -> SelfT:
        """Adopt a listening stream socket, which the TCPServerSocket owns from then on.

        The ``__init__()`` of a subclass is called with the port of that socket, and the same options.

        :raises TypeError: if it is not a socket, or an argument is of the wrong type
        :raises ValueError: if it is not a listening stream socket, or an argument is out of range
        """
        address = options.sock.getsockname()
        port = address[1] if isinstance(address, tuple) else 0
        self = cls(port, **shared(options, ServerOptions))
        options.sock.setblocking(False)
        self._acceptor.listen_on([options.sock], adopted=True)
        return self

    def __repr__(self) -> str:
        return repr(self._acceptor)

    @property
    def localPort(self) -> int:
        """The port it listens on, or listened on until it was closed; of a UNIX-domain socket 0."""
        return self._acceptor.port

    @property
    def connections(self) -> tuple[TCPSocket[DataT], ...]:
        """The accepted sockets that are open, in the order in which they became open: that in which they were accepted,
        unless TLS or the PROXY protocol comes before. A socket that is closing is no longer among them.
        """
        return self._acceptor.open_sockets

    def close(self) -> None:
        """Stop listening. Accepted sockets stay open. Closing twice does no harm.

        Connections that were accepted already, up to 16 at once, still fire ``connect``. To accept one alone, set
        ``max_connections=1``.
        """
        self._acceptor.close()

    async def closed(self) -> None:
        """Wait until the server has stopped listening.

        :raises TCPSocketError: if it stopped because of a failure
        """
        await self._acceptor.closed()

    async def __aenter__(self: SelfT) -> SelfT:
        acceptor = acceptor_of(self)
        acceptor.bind()
        try:
            await acceptor.lifetime.enter(acceptor)
        except BaseException:
            if not acceptor.lifetime.started:
                acceptor.close()
            raise
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._acceptor.lifetime.leave(self._acceptor, exc)


def acceptor_of(server: TCPServerSocket[Any]) -> Acceptor:
    """The acceptor inside of a server, ready to be run."""
    acceptor = server._acceptor
    if not acceptor.lifetime.started:
        acceptor.attach(server, partial(TCPServerSocketEvent, "connect", server))
    return acceptor
