"""A connection as an AnyIO stream, with ``receive()`` and ``send()`` in place of handlers.

The calling task itself reads from the socket and writes to it, without a task switch. Data that the operating system
does not take immediately goes into the connection's send buffer, as it does when handlers send.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
from anyio import BrokenResourceError, BusyResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ByteStream

from ._buffers import octets
from ._connection import Connection
from ._eagerness import Eagerness
from ._errors import ConnectionLostError, InvalidStateError, TCPSocketError
from ._machine import Failed, OwnSide, PeerSide, ReadyState, Security
from ._options import check_count
from ._unique import Referable, Unique

if TYPE_CHECKING:
    from typing_extensions import Buffer

__all__ = ("CONNECTION_LOST", "SocketStream")

CONNECTION_LOST: tuple[type[Exception], ...] = (
    TCPSocketError,
    ConnectionLostError,
    anyio.BrokenResourceError,
    anyio.EndOfStream,
    anyio.IncompleteRead,
)
"""The exceptions that are raised when a connection failed or was lost, or was ended by the peer; not when the program
has closed it. They come from awaiting a socket, from its methods and from its stream. A program that reconnects writes
``except CONNECTION_LOST``; around the block of a :class:`MozTCPSocket`, which raises a group, ``except*
CONNECTION_LOST``.
"""

MAX_READ = 262_144
"""The most bytes to read by one call, even if the program asks for more: allocating more costs more than another call.
"""

PEER_PATIENCE = 0.25
"""Seconds that closing the stream waits for the peer to close too. Usually the peer closes within one round trip."""

_CONNECTING = ReadyState.CONNECTING
_OPEN = ReadyState.OPEN


class SocketStream(Unique, Referable, ByteStream):
    """The stream that :meth:`TCPSocket.stream` returns; its docstring says which exceptions the methods raise."""

    __slots__ = ("_closed", "_connection", "_eagerness", "_ended", "_receiving", "_sending")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._receiving = False  # whether a task is receiving
        self._sending = False  # whether a task is sending
        self._eagerness = Eagerness()
        self._ended = False  # whether the peer's end was received
        self._closed = False  # whether the program has closed the stream

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._connection!r}>"

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """AnyIO's typed attributes of the socket."""
        return self._connection.attributes

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """Receive what has arrived; if nothing has, wait for it.

        :param max_bytes: the most bytes to receive
        :raises anyio.EndOfStream: at the peer's end
        :raises anyio.BusyResourceError: if another task is receiving
        """
        if type(max_bytes) is not int or max_bytes < 1:
            check_count("max_bytes", max_bytes, 1)
        if self._receiving:
            raise BusyResourceError("receiving from")
        self._receiving = True
        try:
            data = await self._receive(max_bytes)
        finally:
            self._receiving = False
        if not data:
            raise EndOfStream
        return data

    async def _receive(self, max_bytes: int) -> bytes:
        """Receive what has arrived; ``b""`` at the peer's end."""
        connection = self._connection
        machine = connection.machine
        # Every call has a checkpoint: before reading, if data is expected to arrive meanwhile, else after it.
        waited = self._eagerness.should_poll()
        if waited:
            await anyio.lowlevel.checkpoint()
        while True:
            if not (machine.is_streaming() or self._has_remaining_data()):
                await self._wait_for_data()
            try:
                data = self._take_available(max_bytes)
            except OSError as exc:
                connection.lose(exc)
                continue  # _wait_for_data() raises it, when what came before was received
            if data is None:
                await self._wait()
            elif waited:
                return data
            else:
                if data:
                    self._put_back(data)  # a task that is cancelled at the checkpoint loses nothing
                await anyio.lowlevel.checkpoint()
                if not data:
                    return data  # the peer's end, whatever has happened to the connection at the checkpoint
            waited = True

    async def _wait(self) -> None:
        """Wait until something may have arrived."""
        transport, lifetime = self._connection.transport, self._connection.lifetime
        assert transport is not None
        if self._eagerness.should_poll():
            await anyio.lowlevel.checkpoint()
        elif transport.choked:
            await lifetime.wait_until(lambda: not transport.choked or transport.closed)
        elif transport.pending:
            await anyio.lowlevel.checkpoint()  # the data is here already, and the peer may be waiting for our answer
        else:
            lifetime.begin_awaiting()
            try:
                await transport.watched.wait_readable()
            except anyio.ClosedResourceError:
                pass  # the next look at the connection finds that out
            finally:
                lifetime.end_awaiting()

    async def _wait_for_data(self) -> None:
        """Wait until the stream reads from the socket, or the inbox has something for it."""
        connection = self._connection
        machine = connection.machine
        while not (machine.is_streaming() or self._has_remaining_data()):
            self._raise_if_over()
            if machine.failed is Failed.NO:
                await self._connected()
            else:  # sending has failed; what the peer had sent before is being read
                await connection.lifetime.wait_until(lambda: self._has_remaining_data() or machine.shut)

    def _has_remaining_data(self) -> bool:
        """Whether the stream can receive something without the socket: data in the inbox, or the peer's end."""
        machine = self._connection.machine
        if self._closed or not (machine.ready is _OPEN or machine.failed is not Failed.NO):
            return False
        if self._connection.inbox.count:
            return machine.security is not Security.HANDSHAKE
        return self._ended or (machine.peer_side is PeerSide.END_RECEIVED and machine.failed is not Failed.TLS)

    def _take_available(self, max_bytes: int) -> bytes | None:
        """Take what has arrived, without waiting; ``b""`` at the peer's end, None if nothing has arrived.

        :raises OSError: if the connection was lost
        """
        if self._ended:
            return b""
        data = self._connection.receive(min(max_bytes, MAX_READ))
        if data is not None:
            self._eagerness.found()
            self._ended = not data
        return data

    def _put_back(self, data: bytes) -> None:
        """Put the data that was received last back at the head of the queue."""
        connection = self._connection
        connection.take_back_received(len(data))
        connection.inbox.put_back(data)

    async def send(self, item: Buffer) -> None:
        """Send bytes, and wait until the operating system has taken them all.

        If this call is cancelled while it waits, its data is sent all the same, so that no message is cut off in the
        middle. The next call first waits until that data was sent; if it is cancelled in that wait, it has sent
        nothing.

        :param item: bytes-like
        :raises anyio.BusyResourceError: if another task is sending
        """
        data = item if type(item) is bytes else _octets(item)
        self._begin_sending()
        try:
            await anyio.lowlevel.checkpoint_if_cancelled()
            connection = self._connection
            if not self._may_send():
                await self._ready_to_send()
            if connection.machine.own_side is not OwnSide.OPEN:
                raise ClosedResourceError("send() after send_eof()")
            if connection.send_directly(data):
                await anyio.lowlevel.checkpoint()  # after sending, so that the peer can answer sooner
            else:
                await self._until(lambda: not connection.outgoing.awaited)
        finally:
            self._sending = False

    def _begin_sending(self) -> None:
        if self._sending:
            raise BusyResourceError("sending to")
        self._sending = True

    async def send_eof(self) -> None:
        """Send everything, then EOF (FIN; in TLS close_notify). The program can still receive.

        This method first waits for the data of a :meth:`send` that was cancelled; if it is cancelled in that wait, it
        has not sent EOF.

        :raises anyio.BusyResourceError: if another task is sending
        """
        self._begin_sending()
        try:
            await anyio.lowlevel.checkpoint()
            await self._ready_to_send()
            self._connection.send_eof()
            await self._until(lambda: self._connection.machine.own_side is OwnSide.END_SENT)
        finally:
            self._sending = False

    def _may_send(self) -> bool:
        """Whether the stream can send now: nothing has to be waited for before, and nothing raised."""
        connection = self._connection
        machine = connection.machine
        if self._closed or machine.ready is not _OPEN or machine.failed is not Failed.NO:
            return False
        return not connection.outgoing.awaited

    async def _ready_to_send(self) -> None:
        """Wait until there is a connection, and the data of a send() that was cancelled has been sent."""
        connection = self._connection
        machine = connection.machine
        if machine.ready is _CONNECTING:
            await self._connected()
        await self._until(lambda: machine.own_side is not OwnSide.OPEN or not connection.outgoing.awaited)
        await anyio.lowlevel.checkpoint_if_cancelled()  # the task may have been cancelled just when the wait ended

    async def _until(self, reached: Callable[[], bool]) -> None:
        """Wait until a condition is met.

        :param reached: the condition
        :raises anyio.BrokenResourceError: if the connection is lost first
        :raises anyio.ClosedResourceError: if it, or the stream, is closed first
        """
        lifetime, machine = self._connection.lifetime, self._connection.machine
        await lifetime.wait_until(lambda: machine.shut or self._closed or (machine.failed is Failed.NO and reached()))
        self._raise_if_over()
        if machine.failed is not Failed.NO:
            self._raise_lost()

    async def _connected(self) -> None:
        """Wait until the connection is open and, if it is to use TLS, encrypted."""
        connection = self._connection
        try:
            await connection.opened()
            if connection.is_tls:
                await connection.secured()
        except TCPSocketError as exc:
            raise BrokenResourceError(str(exc)) from exc
        except InvalidStateError:
            raise ClosedResourceError from None

    def _raise_if_over(self) -> None:
        """Raise an exception if the connection is of no more use.

        :raises anyio.BrokenResourceError: if the connection is lost
        :raises anyio.ClosedResourceError: if it, or the stream, was closed
        """
        machine = self._connection.machine
        if self._closed:
            raise ClosedResourceError
        if machine.ready in (_CONNECTING, _OPEN) and not machine.shut:
            return
        if machine.failed is Failed.NO:
            raise ClosedResourceError
        self._raise_lost()

    def _raise_lost(self) -> None:
        """Raise the failure of the connection, which then counts as reported."""
        lifetime = self._connection.lifetime
        assert lifetime.failure is not None
        lifetime.mark_failure_reported()
        raise BrokenResourceError(str(lifetime.failure)) from lifetime.failure.again()

    async def aclose(self) -> None:
        """Close the socket in order, so that everything sent arrives, within ``linger`` seconds: data that the peer has
        not taken by then is dropped. If data of a :meth:`send` still waits, be it that the call was cancelled or has
        not returned, the socket closes immediately. It also does if this method is cancelled.

        Usually the socket is closed when this method returns. If everything was sent and only the peer has not closed
        yet, the method returns after 0.25 seconds, and the socket waits for the peer by itself, within ``linger``.
        """
        self._closed = True
        lingers = False
        try:
            await anyio.lowlevel.checkpoint()
            lingers = await self._close_in_order()
        finally:
            if not lingers:
                with anyio.CancelScope(shield=True):
                    await self._connection.close_now()

    async def _close_in_order(self) -> bool:
        """Close the socket in order, and wait for it.

        :return: True if the socket is not closed yet, but waits for nothing except the peer's end
        """
        connection = self._connection
        machine, lifetime = connection.machine, connection.lifetime
        if machine.ready is _CONNECTING or machine.shut or connection.outgoing.awaited:
            return False  # nothing to send, or data that the peer may never take: close immediately
        connection.close()
        if connection.dispatcher.runs:
            connection.flush()  # what the kernel takes now, before the time limit of closing begins
        with anyio.move_on_after(connection.options.linger):
            await lifetime.wait_until(lambda: machine.own_side is OwnSide.END_SENT or machine.shut)
            with anyio.move_on_after(PEER_PATIENCE):
                await lifetime.wait_until(lambda: machine.shut)
            return not machine.shut
        return False


def _octets(item: object) -> bytes:
    """The bytes of a bytes-like object.

    :raises TypeError: if it is not bytes-like
    """
    if not isinstance(item, str):
        try:
            return octets(item)
        except TypeError:
            pass
    raise TypeError(f"send() takes a bytes-like object, not {type(item).__name__}")
