"""Pipes: whatever one socket receives, another sends. A proxy is two of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ._errors import InvalidStateError
from ._events import Event
from ._machine import OwnSide, PeerSide, ReadyState
from ._socket import TCPSocket, TCPSocketEvent, connection_of

__all__ = ("pipe",)


def pipe(source: TCPSocket[Any], target: TCPSocket[Any]) -> None:
    """Pass on what a socket receives to another socket, in one direction. For both directions, call it twice::

        pipe(client, upstream)
        pipe(upstream, client)

    The source is suspended until the target is open, and whenever the target's buffer is full. What it receives while
    the target is closing is dropped.

    - The source's peer ends its direction: if the source has ``allow_half_open``, the target calls
      :meth:`~TCPSocket.send_eof`; without that option the source closes.
    - One of the two sockets closes: the other closes too, in order.
    - One of them has failed or was lost, or one of its handlers has raised: the other is reset. If all that it has to
      send had come before, and ended, it sends that and closes in order.
    - The block of one of them is cancelled: the other closes immediately.

    The pipe adds listeners, so the ``on…`` handlers of both sockets stay free. The program still has to handle an
    ``error`` of either.

    Call it before the source can have received anything, as in the handler of ``connect``, or while the source is
    suspended. It may also be called in a handler made by :func:`lines` or :func:`frames` that sets ``ondata`` to None:
    then whatever follows that line or frame is passed on. If one of the sockets is closing or closed already, the other
    closes too.

    :param source: the socket whose ``data`` is passed on
    :param target: the socket that sends the data; may be the source, which makes an echo
    :raises TypeError: if one of them is not a TCPSocket
    :raises InvalidStateError: if the source has a :meth:`~TCPSocket.stream`, which takes the data, if
        :meth:`~TCPSocket.send_eof` of the target was called, or if the two are piped that way already
    """
    for each in (source, target):
        if not isinstance(each, TCPSocket):
            raise TypeError(f"pipe() takes TCPSockets, not {type(each).__name__}")
    if connection_of(source).machine.streams:
        raise InvalidStateError("pipe() from a socket that has a stream(), which takes the data")
    if target.readyState == ReadyState.OPEN and connection_of(target).machine.has_finished():
        raise InvalidStateError("pipe() to a socket after send_eof(): the peer has been told that no more will come")
    companions = connection_of(source).companions or ()
    if any(isinstance(each, _Pipe) and each.joins(source, target) for each in companions):
        raise InvalidStateError("pipe() from a socket to one that it is piped to already: that would send all twice")
    _Pipe(source, target).begin()


class _Pipe:
    """One direction between two sockets.

    :ivar _unsent: the bytes that the target was not given yet: it is not open, or ``max_buffered_amount`` is reached
    :ivar _holds: whether the pipe has suspended the source
    :ivar _waits: whether it waits for a ``drain`` of the target
    :ivar _ended: whether the source's peer has ended its direction, and the target is still to pass that on
    """

    def __init__(self, source: TCPSocket[Any], target: TCPSocket[Any]) -> None:
        self._source, self._target = source, target
        self._unsent = b""
        self._holds = self._waits = self._ended = False
        self._listening: tuple[tuple[TCPSocket[Any], str, Callable[[Any], None]], ...] = (
            (source, "data", self._on_data),
            (source, "end", self._on_end),
            (source, "close", self._on_source_closed),
            (target, "open", self._on_open),
            (target, "drain", self._on_drain),
            (target, "close", self._on_target_closed),
        )

    def joins(self, source: TCPSocket[Any], target: TCPSocket[Any]) -> bool:
        return self._source is source and self._target is target

    def begin(self) -> None:
        for socket, type_, listener in self._listening:
            socket.addEventListener(type_, listener)
        for socket in (self._source, self._target):
            connection_of(socket).add_companion(self)
        self._ended = connection_of(self._source).machine.peer_side is PeerSide.END_DELIVERED
        if _has_closed(self._target):
            self._on_target_closed()
        elif _has_closed(self._source):
            self._on_source_closed()
        else:
            self._go_on()

    def _detach(self) -> None:
        """Remove the listeners, by which the two sockets refer to each other."""
        for socket, type_, listener in self._listening:
            socket.removeEventListener(type_, listener)
        self._listening = ()
        for socket in (self._source, self._target):
            connection_of(socket).remove_companion(self)

    # The events of both sockets

    def _on_data(self, event: TCPSocketEvent[Any]) -> None:
        if self._target.readyState not in (ReadyState.CONNECTING, ReadyState.OPEN):
            return  # it sends no more
        data = event.data.encode("latin-1") if isinstance(event.data, str) else event.data
        self._unsent = self._unsent + data if self._unsent else data
        self._go_on()

    def _on_end(self, event: Event[TCPSocket[Any]]) -> None:
        self._ended = True
        self._go_on()

    def _on_open(self, event: Event[TCPSocket[Any]]) -> None:
        self._go_on()

    def _on_drain(self, event: Event[TCPSocket[Any]]) -> None:
        self._waits = False
        self._go_on()

    def _on_source_closed(self, event: Event[TCPSocket[Any]] | None = None) -> None:
        self._detach()
        if _has_failed(self._source) and connection_of(self._source).machine.peer_side is not PeerSide.END_DELIVERED:
            self._target.reset()
        else:
            self._send_remainder()
            self._target.close()

    def _on_target_closed(self, event: Event[TCPSocket[Any]] | None = None) -> None:
        self._detach()
        if _has_failed(self._target) and not connection_of(self._source).machine.has_finished():
            self._source.reset()
        else:
            self._source.close()

    def end(self) -> None:
        """Close both: the block of one was cancelled, which causes no event. The other may be of another block."""
        self._detach()
        with suppress(RuntimeError):  # raised if not even a task runs any more
            self._source.closeImmediately()
            self._target.closeImmediately()

    # Passing on

    def _go_on(self) -> None:
        """Pass on the data and the end, or hold the source back until that is possible."""
        state = self._target.readyState
        if state == ReadyState.OPEN and not self._waits:
            self._send()
        if state == ReadyState.CONNECTING or self._waits:
            self._hold()
        else:
            self._pass_on_end()
            self._release()

    def _send(self) -> None:
        """Send as much as the target's buffer takes. If that is full then, a ``drain`` of the target will follow."""
        target, data = self._target, self._unsent
        limit = connection_of(target).options.max_buffered_amount
        try:
            while data and not self._waits:
                chunk = data if limit is None else data[: max(limit - target.bufferedAmount, 1)]
                self._waits = not target.send(chunk)
                data = data[len(chunk) :]
        except BufferError:
            self._waits = True
        self._unsent = data

    def _send_remainder(self) -> None:
        """Send the unsent bytes, whatever the limit: nothing follows them.

        The target may be closing already, as the pipe of the other direction has closed it.
        """
        connection = connection_of(self._target)
        if self._unsent and connection.transport is not None and connection.machine.own_side is OwnSide.OPEN:
            connection.send_directly(self._unsent)

    def _pass_on_end(self) -> None:
        if self._ended and self._target.readyState == ReadyState.OPEN:
            self._ended = False
            self._target.send_eof()

    def _hold(self) -> None:
        if not self._holds:
            self._holds = True
            self._source.suspend()

    def _release(self) -> None:
        if self._holds:
            self._holds = False
            self._source.resume()


def _has_closed(socket: TCPSocket[Any]) -> bool:
    """Whether the socket's ``close`` was delivered, or never will be, as nothing runs the socket."""
    connection = connection_of(socket)
    return connection.lifetime.over or connection.machine.is_over()


def _has_failed(socket: TCPSocket[Any]) -> bool:
    """Whether the connection has failed or was lost, or one of its handlers has raised."""
    lifetime = connection_of(socket).lifetime
    return lifetime.failure is not None or bool(lifetime.crash_words)
