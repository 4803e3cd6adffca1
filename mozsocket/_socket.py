"""TCPSocket: a connection, as MDN's ``TCPSocket`` and Gecko's ``TCPSocket.webidl`` define it.

Three tasks at most, in the socket's own task group::

    reader ──data──▶ memory-object channel ──▶ dispatcher ──▶ handlers
    writer ──drain─▶        (bounded)                         │ send()
      ▲──────────────── send buffer ◀─────────────────────────┘

The reader is there from the connect to the end. While no handler runs and nothing is queued it calls the handler
itself. The writer and the dispatcher are started when there is first something for them: what the operating system
would not take at once or was sent outside a handler, and an asynchronous handler.

Every end of a connection goes through the closing of its transport, after which ``error``, if there was a failure, and
``close`` are due. It is closed

- by ``closeImmediately()``, and so when a handler has raised: at once;
- when the peer's end has been delivered: at once if nothing is buffered, else by the writer when all is sent;
- after ``close()``: by the writer, when all is sent and the peer has ended too, or ``linger`` is over;
- when reading fails: at once;
- when writing fails: by the writer, when what the peer had sent has been delivered;
- when the owner is cancelled: at once, and nothing is delivered any more.
"""

from __future__ import annotations

import errno
import socket as stdlib_socket
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.lowlevel
from anyio import TypedAttributeProvider
from anyio.abc import SocketAttribute

from ._addresses import display, host_and_port, plain
from ._connect import connect
from ._dispatch import TURNS, Signal, is_cancelled, turn
from ._errors import InvalidStateError, explain
from ._events import Event, EventHandler, TCPServerSocketEvent, TCPSocketErrorEvent, TCPSocketEvent
from ._inbox import QUEUED_READ_SIZE, Inbox
from ._lifetime import Lifetime
from ._options import BinaryType, SocketOptions, check_host, check_port, check_stream_socket
from ._state import ReadyState, SendBuffer, SuspendCount, octets
from ._transport import Transport, configure

if sys.version_info < (3, 11):  # AnyIO depends on the backport
    from exceptiongroup import ExceptionGroup

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from ._server import TCPServerSocket

__all__ = ("TCPSocket",)

_CONNECTING = ReadyState.CONNECTING
_OPEN = ReadyState.OPEN
_CLOSING = ReadyState.CLOSING
_CLOSED = ReadyState.CLOSED

READ_SIZE = 122_880
"""Bytes read at once, when they go straight to the handler."""

FAILURE_PATIENCE = 1
"""Seconds to wait, when nothing more can be sent, for what the peer sent before; as a rule it is there."""


class TCPSocket(Lifetime, TypedAttributeProvider):
    """A TCP connection that calls handlers (MDN: ``TCPSocket``).

    Made by :meth:`MozTCPSocket.open`, accepted by a :class:`TCPServerSocket`, or used alone::

        async with TCPSocket("localhost", 6379) as socket:
            await socket.opened()

    Making one connects nothing and holds no resource; entering it does. Leaving the block calls :meth:`close` and
    waits until it is closed; leaving it by an exception calls :meth:`closeImmediately`. Cancelling the block closes
    the connection at once, and no handler runs any more.

    :param host: a host name or an IP address
    :param port: the port, 1 to 65535
    :param binaryType: ``"arraybuffer"``: data is ``bytes`` (Gecko's default is the other); ``"string"``: data is
        ``str``, one character (U+0000 to U+00FF) per byte
    :param connect_timeout: seconds that resolving the name and connecting may take together; None for no limit
    :param local_host: the address, or the name of one, to connect from; None for any
    :param max_buffered_amount: bytes that :meth:`send` buffers at most; None for no limit
    :param linger: seconds that :meth:`close` waits, after all is sent, for the peer to close too
    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if an argument is out of range
    """

    __slots__ = (
        "_accepted_by",
        "_announcement",
        "_attempt",
        "_buffer",
        "_close_told",
        "_error_told",
        "_flush_scheduled",
        "_host",
        "_inbox",
        "_opened",
        "_options",
        "_peer_ended",
        "_port",
        "_state",
        "_suspensions",
        "_transport",
        "_write_due",
    )

    #: The connection is open. Not for accepted sockets, which are open from the start.
    onopen: EventHandler[Event[TCPSocket]] = EventHandler()
    #: Everything buffered has been handed to the operating system, after a :meth:`send` that gave False.
    ondrain: EventHandler[Event[TCPSocket]] = EventHandler()
    #: Bytes have arrived.
    ondata: EventHandler[TCPSocketEvent] = EventHandler()
    #: The connection failed or was lost. ``close`` follows.
    onerror: EventHandler[TCPSocketErrorEvent[TCPSocket]] = EventHandler()
    #: The connection is closed: the last event, exactly once.
    onclose: EventHandler[Event[TCPSocket]] = EventHandler()

    def __init__(
        self,
        host: str,
        port: int,
        *,
        binaryType: BinaryType = "arraybuffer",
        connect_timeout: float | None = None,
        local_host: str | None = None,
        max_buffered_amount: int | None = None,
        linger: float = 5,
    ) -> None:
        check_host("host", host)
        check_port(port, lowest=1)
        options = SocketOptions(
            binaryType=binaryType,
            connect_timeout=connect_timeout,
            local_host=local_host,
            max_buffered_amount=max_buffered_amount,
            linger=linger,
        )
        self._set_up(host, port, options)

    def _set_up(self, host: str, port: int, options: SocketOptions) -> None:
        super().__init__()
        self._host = host
        self._port = port
        self._options = options
        self._state = _CONNECTING
        self._opened = False
        self._buffer = SendBuffer(options.max_buffered_amount)
        self._suspensions = SuspendCount()
        self._transport: Transport | None = None
        self._attempt: anyio.CancelScope | None = None  # to connect
        self._accepted_by: TCPServerSocket | None = None
        self._announcement: Event[Any] | None = None  # the first event: open, or the server's connect
        self._inbox = Inbox()
        self._write_due: Signal | None = None  # made with the writer
        self._flush_scheduled = False  # whether someone will look at the send buffer
        self._peer_ended = False  # whether nothing more will be read
        self._error_told = self._close_told = False

    @classmethod
    def from_socket(
        cls,
        sock: stdlib_socket.socket,
        *,
        binaryType: BinaryType = "arraybuffer",
        max_buffered_amount: int | None = None,
        linger: float = 5,
    ) -> TCPSocket:
        """Adopt a connected stream socket: one of a socketpair, of a SOCKS library, or inherited.

        It belongs to the TCPSocket from then on. ``open`` fires as for a connection of its own making.

        :param sock: a connected ``SOCK_STREAM`` socket
        :param binaryType: as of :class:`TCPSocket`
        :param max_buffered_amount: as of :class:`TCPSocket`
        :param linger: as of :class:`TCPSocket`
        :raises TypeError: if it is not a socket
        :raises ValueError: if it is not a connected stream socket
        """
        options = SocketOptions(binaryType=binaryType, max_buffered_amount=max_buffered_amount, linger=linger)
        return cls._adopt(sock, _peer_of(sock), options)

    @classmethod
    def _adopt(cls, sock: stdlib_socket.socket, peer: Any, options: SocketOptions) -> TCPSocket:
        self = cls.__new__(cls)
        self._set_up(*host_and_port(peer), options)
        configure(sock)
        self._transport = Transport(sock)
        return self

    @classmethod
    def _accept(
        cls, sock: stdlib_socket.socket, peer: Any, options: SocketOptions, server: TCPServerSocket
    ) -> TCPSocket:
        self = cls._adopt(sock, peer, options)
        self._started = True
        self._accepted_by = server
        self._set_ready_state(_OPEN)
        return self

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._peer()} {self._state}>"

    def _peer(self) -> str:
        return f"{display(self._host)}:{self._port}"

    # What MDN documents

    @property
    def host(self) -> str:
        """What it connects to; of an accepted or adopted socket, the peer's address."""
        return self._host

    @property
    def port(self) -> int:
        """The port it connects to; of an accepted or adopted socket, the peer's; of a UNIX-domain socket 0."""
        return self._port

    @property
    def ssl(self) -> bool:
        """Whether the connection is, or is to be, encrypted."""
        return False

    @property
    def readyState(self) -> ReadyState:
        """``"connecting"``, ``"open"``, ``"closing"`` or ``"closed"``."""
        return self._state

    @property
    def binaryType(self) -> Literal["arraybuffer", "string"]:
        """``"arraybuffer"`` if data is ``bytes``, ``"string"`` if it is ``str``."""
        return self._options.binaryType

    @property
    def bufferedAmount(self) -> int:
        """Bytes given to :meth:`send` and not yet handed to the operating system."""
        return self._buffer.amount

    def send(self, data: Buffer | str, byteOffset: int = 0, byteLength: int | None = None) -> bool:
        """Send data, or buffer it to be sent as soon as the peer takes it.

        :param data: bytes-like (copied if it is mutable), or a ``str`` of characters up to U+00FF, one a byte
        :param byteOffset: where the part to be sent begins, in bytes; clamped to the data
        :param byteLength: how long that part is, in bytes; clamped likewise; None for all the rest
        :return: False if more than 65536 bytes are now buffered. That is a hint: the data is taken all the same, and
            ``drain`` will fire when all of it is handed over
        :raises InvalidStateError: if the socket is not open
        :raises BufferError: if more than ``max_buffered_amount`` bytes would be buffered; nothing is taken then, and
            ``drain`` will fire when there is room again
        :raises TypeError: if the data is of another type
        :raises ValueError: if an offset is negative or a character above U+00FF
        """
        if type(data) is not bytes or byteOffset != 0 or byteLength is not None:
            data = octets(data, byteOffset, byteLength)
        if self._state is not _OPEN:
            raise self._not_open("send()")
        if not self._flush_scheduled:
            self._schedule_flush()
        return self._buffer.append(data)

    def suspend(self) -> None:
        """Stop ``data`` events, and through TCP the peer. Suspensions count. Allowed while connecting.

        What has been received meanwhile, and the peer's end behind it, waits for :meth:`resume`; ``drain`` and
        ``error`` do not wait.
        """
        self._suspensions.suspend()
        self._notify()  # the writer, after a failure

    def resume(self) -> None:
        """Take back one :meth:`suspend`.

        :raises InvalidStateError: if the socket is not suspended
        """
        self._suspensions.resume()
        if self._inbox.used and self._state is _OPEN and not self._suspensions:
            self._wake_dispatch()

    def close(self) -> None:
        """Close the connection in order: nothing that was sent is lost.

        ``readyState`` is ``"closing"`` at once, and there is no more ``data``. What is buffered is sent, ``drain``
        fires if it is owed, the peer is told of the end; what it still sends is discarded until it closes too, for
        ``linger`` seconds at most; then ``close`` fires. While connecting, the attempt is abandoned. Closing twice
        does no harm.
        """
        if self._state is _CONNECTING:
            self._abandon()
        elif self._state is _OPEN:
            self._wake_writer()
            self._set_ready_state(_CLOSING)
            self._inbox.discard()

    def closeImmediately(self) -> None:
        """Close the connection without sending what is buffered and without waiting for the peer; ``close`` fires.

        The peer may lose what it has not yet read, as with any plain close of a TCP connection.
        """
        if self._state is _CONNECTING:
            self._abandon()
        elif self._state is not _CLOSED:
            self._set_ready_state(_CLOSING)
            self._buffer.drop()
            self._inbox.discard()
            self._shut()

    # What mozsocket adds

    async def opened(self) -> None:
        """Wait until the connection is open.

        :raises TCPSocketError: if it failed
        :raises InvalidStateError: if it was closed first
        """
        await self._reach("opened()", lambda: self._opened, lambda: self._state is not _CONNECTING)

    async def drained(self) -> None:
        """Wait until everything given to :meth:`send` has been handed to the operating system.

        :raises TCPSocketError: if the connection was lost first
        :raises InvalidStateError: if it was closed first, without sending it
        """
        buffer = self._buffer
        await self._reach(
            "drained()",
            lambda: not (buffer.amount or buffer.dropped or self._failure),
            lambda: buffer.dropped or self._failure is not None,
        )

    async def closed(self) -> None:
        """Wait until the connection is closed and the last handler has returned.

        :raises TCPSocketError: if the connection failed or was lost
        :raises RuntimeError: in a handler of this socket, which it would wait for
        """
        self._refuse_in_handler("closed()")
        await self._reach("closed()", lambda: self._over and self._failure is None, lambda: self._over)

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes of the connection: :class:`anyio.abc.SocketAttribute`; none while connecting."""
        if self._transport is None or self._transport.closed:
            return {}
        sock = self._transport.socket
        attributes: dict[Any, Callable[[], Any]] = {
            SocketAttribute.family: lambda: sock.family,
            SocketAttribute.local_address: lambda: plain(sock.getsockname()),
            SocketAttribute.remote_address: lambda: plain(sock.getpeername()),
            SocketAttribute.raw_socket: lambda: sock,
        }
        if isinstance(sock.getsockname(), tuple):
            attributes[SocketAttribute.local_port] = lambda: sock.getsockname()[1]
            attributes[SocketAttribute.remote_port] = lambda: sock.getpeername()[1]
        return attributes

    # The ready state

    def _set_ready_state(self, state: ReadyState) -> None:
        if self._state.precedes(state):
            self._state = state
            self._opened = self._opened or state is _OPEN
            self._notify()

    def _not_open(self, what: str) -> InvalidStateError:
        error = InvalidStateError(f"{what} on a socket that is {self._state}: it must be open")
        error.__cause__ = self._failure
        return error

    def _fail(self, exc: BaseException) -> None:
        """The connection failed or was lost: nothing more can be sent. The first failure is the one that counts."""
        if self._failure is None:
            self._failure = explain(exc, self._peer())
        self._buffer.drop()
        self._notify()

    def _shut(self) -> None:
        """Close the transport, whatever is still to be told."""
        if self._transport is not None:
            self._transport.close()
        self._notify()

    def _abandon(self) -> None:
        """Close before there is a connection."""
        self._set_ready_state(_CLOSING)
        if self._attempt is not None:
            self._attempt.cancel()
        elif not self._started:
            self._over = True
            self._shut()

    # Life

    async def _live(self) -> None:
        if await self._establish():
            self._pump()
            assert self._transport is not None
            await self._read(self._transport)
            self._peer_ended = True
            self._notify()
            await self._wait_until(self._is_shut)
        self._pump()
        await self._wait_until(lambda: self._close_told and not self._busy)

    async def _establish(self) -> bool:
        """Bring about the connection and announce it.

        :return: whether there is one that the program still wants
        """
        if self._accepted_by is not None:
            self._announcement = TCPServerSocketEvent("connect", self._accepted_by, self)
        else:
            if self._transport is None:
                await self._connect()
            if self._state is _CONNECTING and self._transport is not None:
                self._announcement = Event("open", self)
                self._set_ready_state(_OPEN)
        if self._state is not _OPEN:  # it failed, or was closed meanwhile
            self._announcement = None
            self._shut()
        return self._state is _OPEN

    async def _connect(self) -> None:
        timeout = self._options.connect_timeout
        with anyio.CancelScope() as self._attempt:
            if self._state is not _CONNECTING:
                return
            try:
                with anyio.move_on_after(timeout) as limit:
                    sock = await connect(self._host, self._port, self._options.local_host)
                    configure(sock)
                    self._transport = Transport(sock)
                if limit.cancelled_caught:
                    raise TimeoutError(errno.ETIMEDOUT, f"not connected within {timeout} seconds")
            except (OSError, UnicodeError, ExceptionGroup) as exc:
                self._fail(exc)

    def _abort(self) -> None:
        self.closeImmediately()

    def _close_all(self) -> None:
        self.close()

    def _is_shut(self) -> bool:
        return self._transport is None or self._transport.closed

    def _release(self) -> None:
        self._buffer.drop()
        self._shut()
        self._set_ready_state(_CLOSED)
        self._inbox.close()

    # Reading

    async def _read(self, transport: Transport) -> None:
        """Read until the peer's end, a failure, or the transport is closed."""
        try:
            await self._read_until_end(transport)
        except OSError as exc:
            if self._state is _OPEN or self._buffer.amount:
                self._fail(exc)
            self._shut()
        except anyio.ClosedResourceError:
            pass

    async def _read_until_end(self, transport: Transport) -> None:
        turns = 0
        looked_again = False
        while not transport.closed:
            direct = not (self._busy or self._suspensions or "data" in self._async_types)
            size = READ_SIZE if direct else QUEUED_READ_SIZE
            data = transport.receive(size)
            if data is None and looked_again:
                await transport.wait_readable()
                looked_again = False
                continue
            if data is not None:
                if direct:
                    self._take(data)
                else:
                    await self._queue(data)
                if not data:
                    return
                turns += 1
                if len(data) == size and turns % TURNS and not is_cancelled():
                    continue
            # The answer to what a handler has sent is often here by the event loop's next turn, and a turn costs far
            # less than to have the operating system tell.
            await anyio.lowlevel.checkpoint()
            looked_again = True

    def _take(self, data: bytes) -> None:
        """Deliver what was read, now."""
        if self._state is not _OPEN:
            pass  # read all the same: to close with unread input destroys what the peer has yet to read (RST)
        elif data:
            self._pump(self._data_event(data))
        else:
            self._end_of_stream()

    async def _queue(self, data: bytes) -> None:
        """Have what was read delivered after what is queued, or running, or when the socket is resumed."""
        if self._state is not _OPEN:
            return
        if not self._inbox.put_nowait(data):
            try:
                await self._inbox.put(data)
            except anyio.BrokenResourceError:
                return  # closed by the program meanwhile
        if not self._suspensions:
            self._wake_dispatch()  # even if it was busy just now: it may have been done before there was room

    def _data_event(self, data: bytes) -> TCPSocketEvent:
        if self._options.binaryType == "string":
            return TCPSocketEvent("data", self, data.decode("latin-1"))
        return TCPSocketEvent("data", self, data)

    def _end_of_stream(self) -> None:
        """The peer's end has been reached by the program: what is buffered is sent, then the socket closes."""
        self._set_ready_state(_CLOSING)
        if self._flush_scheduled or self._failure is not None:
            self._wake_writer()
        else:
            self._shut()

    # Writing

    def _schedule_flush(self) -> None:
        """Have what is buffered sent: when the running handler returns, or else by the writer."""
        if turn.written is not None:
            turn.written.append(self._flush)
        else:
            self._wake_writer()
        self._flush_scheduled = True

    def _flush(self) -> None:
        if self._send_buffered() and self._state is _OPEN and self._failure is None:
            self._flush_scheduled = False
            if self._buffer.drain_due:
                self._wake_dispatch()
        else:
            self._wake_writer()

    def _send_buffered(self) -> bool:
        """Hand over what the operating system takes now.

        :return: whether nothing is left to wait for
        """
        buffer, transport = self._buffer, self._transport
        assert transport is not None
        try:
            while buffer.amount and not transport.closed:
                chunks = buffer.next_write()
                count = transport.send(chunks)
                buffer.advance(count)
                if count < sum(map(len, chunks)):
                    return False
        except OSError as exc:
            self._fail(exc)
        self._notify()
        return True

    def _wake_writer(self) -> None:
        if self._tasks is None:
            return  # closed before it began
        if self._write_due is None:
            self._tasks.start_soon(self._write, name=f"writer of {self!r}")
            self._write_due = Signal()
        self._write_due.set()

    async def _write(self) -> None:
        """The writer: hands over what has to wait, and ends the connection once there is nothing more to send."""
        assert self._write_due is not None and self._transport is not None
        while True:
            await self._write_due.wait()
            try:
                while not self._send_buffered():
                    await anyio.lowlevel.checkpoint()  # see _read()
                    if not self._send_buffered():
                        await self._transport.wait_writable()
            except anyio.ClosedResourceError:
                return
            self._flush_scheduled = False
            self._pump()
            if self._failure is not None or (self._state is not _OPEN and not self._buffer.amount):
                break
        self._transport.send_eof()
        # What the peer has sent meanwhile is read on: discarded after a close, as closing with unread input would
        # destroy what the peer has yet to read (RST); delivered after a failure, as it may tell the reason.
        if self._failure is None:
            with anyio.move_on_after(self._options.linger):
                await self._wait_until(lambda: self._peer_ended)
        else:
            await self._wait_for_the_rest()
        self._shut()

    async def _wait_for_the_rest(self) -> None:
        """After a failure, wait until all that had come is read, however slow the handlers; an error waits no longer
        if the program suspends, nor if nothing comes though nothing holds it up.
        """
        waiting = True
        while waiting:
            with anyio.move_on_after(FAILURE_PATIENCE) as limit:
                await self._wait_until(lambda: self._peer_ended or bool(self._suspensions))
            waiting = limit.cancelled_caught and (self._busy or bool(self._inbox))
        if self._suspensions:
            self._inbox.discard()  # the reader may wait for room in it

    # Dispatching

    def _next_event(self) -> Event[Any] | None:
        if self._announcement is not None:
            event, self._announcement = self._announcement, None
            return event
        if self._buffer.take_drain():
            return Event("drain", self)
        if self._state is _OPEN and not self._suspensions:
            data = self._inbox.take()
            if data:
                return self._data_event(data)
            if data is not None:
                self._end_of_stream()
        return self._last_event() if self._is_shut() else None

    def _is_due(self) -> bool:
        return (
            self._announcement is not None
            or self._buffer.drain_due
            or (self._is_shut() and not self._close_told)
            or (self._state is _OPEN and not self._suspensions and bool(self._inbox))
        )

    def _last_event(self) -> Event[Any] | None:
        self._set_ready_state(_CLOSED)
        self._inbox.discard()
        if self._failure is not None and not self._error_told:
            self._error_told = True
            self._failure_seen = self._failure_seen or self._has_listener("error")
            return TCPSocketErrorEvent("error", self, self._failure)
        if not self._close_told:
            self._close_told = True
            return Event("close", self)
        self._notify()
        return None


def _peer_of(sock: stdlib_socket.socket) -> Any:
    check_stream_socket(sock)
    try:
        return sock.getpeername()
    except OSError as exc:
        raise ValueError(f"from_socket() takes a connected socket: {exc}") from exc
