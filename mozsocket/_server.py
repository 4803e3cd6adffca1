"""TCPServerSocket: accepts connections (Gecko: ``TCPServerSocket.webidl``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from ._acceptor import Acceptor
from ._events import Event, EventHandler, EventTarget, TCPSocketErrorEvent, setters_of
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


@dataclass(frozen=True, slots=True, eq=False, repr=False, init=False)
class TCPServerSocketEvent(Event["TCPServerSocket[DataT]"], Generic[DataT]):
    """``connect``: a server has accepted a connection.

    :ivar socket: the accepted socket, open
    """

    socket: TCPSocket[DataT]

    def __init__(self, type: str, target: TCPServerSocket[DataT], socket: TCPSocket[DataT]) -> None:
        _set_type(self, type)
        _set_target(self, target)
        _set_socket(self, socket)

    def _details(self) -> str:
        return f" {self.socket!r}"


_set_type, _set_target, _set_socket = setters_of(TCPServerSocketEvent, "type", "target", "socket")


@documents(ListenOptions)
class TCPServerSocket(EventTarget, Generic[DataT]):
    """Listens on a port and accepts connections (Gecko: ``TCPServerSocket``).

    Made by :meth:`MozTCPSocket.listen`, or used alone::

        async with TCPServerSocket(8007) as server:
            server.onconnect = greet
            await server.closed()

    Entering it binds the port; :exc:`OSError` is raised there. Leaving the block calls :meth:`close` and waits until
    the accepted sockets have closed too; leaving it by an exception closes them immediately.

    The options that a :class:`TCPSocket` has too are those of the accepted sockets.

    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if an argument is out of range
    """

    __slots__ = ("_acceptor",)

    onconnect: EventHandler[TCPServerSocketEvent[DataT]] = EventHandler(
        "A connection has been accepted. Its ``data`` starts when the handler has returned."
    )
    onerror: EventHandler[TCPSocketErrorEvent[TCPServerSocket[DataT]]] = EventHandler(
        "The server cannot go on listening."
    )

    # pyright takes nothing from `self` here: of text it is told by TCPServerSocket[str](…).
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

    if TYPE_CHECKING:  # what a listener is called with; one of any type, with whatever happens to a server

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
        """Adopt a listening stream socket, which belongs to the TCPServerSocket from then on.

        The ``__init__()`` of a subclass is called as if it was to listen on that port, with the same options.

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
        """The port it listens on, or did; of a UNIX-domain socket 0."""
        return self._acceptor.port

    @property
    def connections(self) -> tuple[TCPSocket[DataT], ...]:
        """The accepted sockets that are open, in the order in which they were accepted; with TLS, or the PROXY
        protocol, in which they became open. One that is closing is not among them any more.
        """
        return self._acceptor.open_sockets

    def close(self) -> None:
        """Stop listening. Accepted sockets live on. Closing twice does no harm."""
        self._acceptor.close()

    async def closed(self) -> None:
        """Wait until it listens no more.

        :raises TCPSocketError: if it could not go on listening
        """
        await self._acceptor.closed()

    async def __aenter__(self: SelfT) -> SelfT:
        acceptor = acceptor_of(self)
        acceptor.bind()
        await acceptor.lifetime.enter(acceptor)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return await self._acceptor.lifetime.leave(self._acceptor, exc)


def acceptor_of(server: TCPServerSocket[Any]) -> Acceptor:
    """What is inside, ready to be run."""
    acceptor = server._acceptor
    if not acceptor.lifetime.started:
        acceptor.attach(server, partial(TCPServerSocketEvent, "connect", server))
    return acceptor
