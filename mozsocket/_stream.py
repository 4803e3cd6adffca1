"""A connection as an AnyIO stream: what ``receive()`` and ``send()`` do in place of the handlers.

Whoever calls them does the reading and writing, with no task switch. What the operating system would not take at once
is sent when there is room, as for the handlers.
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
"""The exceptions by which a program learns that there is no connection, or no longer, if it has not closed it itself:
from awaiting it, from its methods, or from its stream. For ``except CONNECTION_LOST`` of who connects again.
"""

MAX_READ = 262_144
"""Bytes read at once, however many may be received: to have room for more costs more than to read again."""

PEER_PATIENCE = 0.25
"""Seconds that closing waits for the peer to close too. As a rule it has done so after one round trip."""

_CONNECTING = ReadyState.CONNECTING
_OPEN = ReadyState.OPEN


class SocketStream(Unique, Referable, ByteStream):
    """What :meth:`TCPSocket.stream` gives. For what the methods raise see there."""

    __slots__ = ("_closed", "_connection", "_eagerness", "_ended", "_receiving", "_sending")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._receiving = False  # whether a task is
        self._sending = False
        self._eagerness = Eagerness()
        self._ended = False  # whether the peer has
        self._closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._connection!r}>"

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        """Those of the socket."""
        return self._connection.attributes

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """What has arrived, of which some is waited for.

        :param max_bytes: bytes at most
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
        """What has arrived; ``b""`` at the peer's end."""
        connection = self._connection
        machine = connection.machine
        waited = (
            self._eagerness.should_poll()
        )  # every call is a checkpoint: where something is expected by then, before it
        if waited:
            await anyio.lowlevel.checkpoint()
        while True:
            if not (machine.is_streaming() or self._has_remaining_data()):
                await self._wait_for_data()
            try:
                data = self._take_available(max_bytes)
            except OSError as exc:
                connection.lose(exc)
                continue  # which tells
            if data is None:
                await self._wait()
            elif waited:
                return data
            else:  # and else after it; one that is cancelled there loses nothing
                if data:
                    connection.give_back(data)
                await anyio.lowlevel.checkpoint()
                if not data:
                    return data  # the end, whatever has become of the connection meanwhile
            waited = True

    async def _wait(self) -> None:
        """Wait until there may be something."""
        if self._eagerness.should_poll():
            await anyio.lowlevel.checkpoint()
        else:
            await self._connection.wait_readable()

    async def _wait_for_data(self) -> None:
        connection = self._connection
        machine = connection.machine
        while not (machine.is_streaming() or self._has_remaining_data()):
            self._raise_if_over()
            if machine.failed is Failed.NO:
                await self._connected()
            else:  # what the peer sent before is being read
                await connection.lifetime.wait_until(lambda: self._has_remaining_data() or machine.shut)

    def _has_remaining_data(self) -> bool:
        """Whether there is something to be had of a connection that is lost: what came before, or that it had ended."""
        machine = self._connection.machine
        if self._closed or not (machine.ready is _OPEN or machine.failed is not Failed.NO):
            return False
        if self._connection.inbox.count:
            return machine.security is not Security.HANDSHAKE
        return self._ended or (machine.peer_side is PeerSide.END_RECEIVED and machine.failed is not Failed.TLS)

    def _take_available(self, max_bytes: int) -> bytes | None:
        """What has arrived; ``b""`` at the peer's end, None if nothing is there.

        :raises OSError: if the connection was lost
        """
        if self._ended:
            return b""
        data = self._connection.receive(min(max_bytes, MAX_READ))
        if data is not None:
            self._eagerness.found()
            self._ended = not data
        return data

    async def send(self, item: Buffer) -> None:
        """Send bytes, and wait until the operating system has taken them all.

        A ``send()`` that is cancelled while it waits for room is sent all the same: nothing is torn out of the stream.
        The next one waits until nothing is left of it; cancelled in that wait, it has sent nothing.

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
                await anyio.lowlevel.checkpoint()  # only now: so the answer is here sooner
            else:
                await self._until(lambda: not connection.outgoing.awaited)
        finally:
            self._sending = False

    def _begin_sending(self) -> None:
        if self._sending:
            raise BusyResourceError("sending to")
        self._sending = True

    async def send_eof(self) -> None:
        """Tell the peer that no more will come, when everything is sent; receiving goes on.

        It waits until nothing is left of a :meth:`send` that was cancelled; cancelled in that wait it has told nothing.

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
        """Whether there is nothing to wait for first, nor to raise."""
        connection = self._connection
        machine = connection.machine
        if self._closed or machine.ready is not _OPEN or machine.failed is not Failed.NO:
            return False
        return not connection.outgoing.awaited

    async def _ready_to_send(self) -> None:
        """Wait until there is a connection, and nothing is left of a send() that was given up."""
        connection = self._connection
        machine = connection.machine
        if machine.ready is _CONNECTING:
            await self._connected()
        await self._until(lambda: machine.own_side is not OwnSide.OPEN or not connection.outgoing.awaited)
        await anyio.lowlevel.checkpoint_if_cancelled()  # which may have come in the turn that it was reached in

    async def _until(self, reached: Callable[[], bool]) -> None:
        lifetime, machine = self._connection.lifetime, self._connection.machine
        await lifetime.wait_until(lambda: machine.shut or self._closed or (machine.failed is Failed.NO and reached()))
        self._raise_if_over()
        if machine.failed is not Failed.NO:
            self._raise_lost()

    async def _connected(self) -> None:
        """Wait until there is a connection to read from."""
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
        """:raises anyio.BrokenResourceError: if the connection is lost
        :raises anyio.ClosedResourceError: if it, or the stream, was closed
        """
        machine = self._connection.machine
        if self._closed:
            raise ClosedResourceError
        if machine.ready is _CONNECTING or (machine.ready is _OPEN and not machine.shut):
            return
        if machine.failed is Failed.NO:
            raise ClosedResourceError
        self._raise_lost()

    def _raise_lost(self) -> None:
        lifetime = self._connection.lifetime
        assert lifetime.failure is not None
        lifetime.mark_failure_reported()
        raise BrokenResourceError(str(lifetime.failure)) from lifetime.failure.again()

    async def aclose(self) -> None:
        """Close the socket in order, so that what was sent arrives, but within ``linger`` seconds, whatever the peer
        does: what it has not taken by then is dropped. If something is left of a :meth:`send`, which was cancelled or
        is waiting still, it closes immediately, and so it does when it is cancelled itself.

        The socket is closed when it returns. Only where nothing is missing but that the peer closes too, and that takes
        its time, it goes on waiting for that by itself, within ``linger``.
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
        """:return: whether it is only the peer's end that is missing, for which nobody need wait"""
        connection = self._connection
        machine, lifetime = connection.machine, connection.lifetime
        if machine.ready is _CONNECTING or machine.shut or connection.outgoing.awaited:
            return False  # there is nothing to close in order, or a peer that may never take what is left
        connection.close()
        connection.send_last()
        with anyio.move_on_after(connection.options.linger):
            await lifetime.wait_until(lambda: machine.own_side is OwnSide.END_SENT or machine.shut)
            with anyio.move_on_after(PEER_PATIENCE):
                await lifetime.wait_until(lambda: machine.shut)
            return not machine.shut
        return False


def _octets(item: object) -> bytes:
    """:raises TypeError: if it is not bytes-like"""
    if not isinstance(item, str):
        try:
            return octets(item)
        except TypeError:
            pass
    raise TypeError(f"send() takes a bytes-like object, not {type(item).__name__}")
