"""What one socket receives, sent by another: a proxy is two of these."""

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
    """Pass on what a socket receives to another, one way; for both ways, call it twice::

        pipe(client, upstream)
        pipe(upstream, client)

    While the target takes no more, and until it is open, the source is suspended. The peer's end is passed on by
    :meth:`~TCPSocket.send_eof`, if the source has ``allow_half_open``; without that the source closes. When either is
    closed, the other is closed too: in order, or, if the connection has failed or was lost, or a handler has raised, by
    a reset. If the block of one is cancelled, the other is closed at once.

    The handlers of both stay free: it listens beside them. An ``error`` of either is still the program's to handle.
    Call it before the source can have received anything, as in the handler of ``connect``, or while it is suspended; or
    in a handler made by :func:`lines` or :func:`frames`, which has ``ondata`` set to None: what is behind the line is
    passed on. It may be called when either of them is closing, or closed, already: then the other closes too.

    :param source: whose ``data`` is passed on
    :param target: what it is sent by; may be the source, which is an echo
    :raises TypeError: if one of them is not a TCPSocket
    :raises InvalidStateError: if the source has a :meth:`~TCPSocket.stream`, which takes the data, or
        :meth:`~TCPSocket.send_eof` of the target was called
    """
    for each in (source, target):
        if not isinstance(each, TCPSocket):
            raise TypeError(f"pipe() takes TCPSockets, not {type(each).__name__}")
    if connection_of(source).machine.streams:
        raise InvalidStateError("pipe() from a socket that has a stream(), which takes the data")
    if target.readyState == ReadyState.OPEN and connection_of(target).machine.has_finished():
        raise InvalidStateError("pipe() to a socket after send_eof(): the peer has been told that no more will come")
    _Pipe(source, target).begin()


class _Pipe:
    """
    :ivar _unsent: what the target has not taken, as its ``max_buffered_amount`` has no room
    :ivar _holds: whether it has suspended the source
    :ivar _waits: whether that is until the target drains
    :ivar _ended: whether the source's peer has ended, and the target's is to be told
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

    def begin(self) -> None:
        for socket, type_, listener in self._listening:
            socket.addEventListener(type_, listener)
        for socket in (self._source, self._target):
            connection_of(socket).add_close_callback(self._on_cancelled)
        self._ended = connection_of(self._source).machine.peer_side is PeerSide.END_DELIVERED
        if _has_closed(self._target):
            self._on_target_closed()
        elif _has_closed(self._source):
            self._on_source_closed()
        else:
            self._go_on()

    def _end(self) -> None:
        """Listen no more: the sockets refer to each other by this."""
        for socket, type_, listener in self._listening:
            socket.removeEventListener(type_, listener)
        self._listening = ()
        for socket in (self._source, self._target):
            connection_of(socket).remove_close_callback(self._on_cancelled)

    # What happens

    def _on_data(self, event: TCPSocketEvent[Any]) -> None:
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
        self._end()
        if _has_failed(self._source):
            self._target.reset()
        else:
            self._send_remainder()
            self._target.close()

    def _on_target_closed(self, event: Event[TCPSocket[Any]] | None = None) -> None:
        self._end()
        if _has_failed(self._target):
            self._source.reset()
        else:
            self._source.close()

    def _on_cancelled(self) -> None:
        """One is over without an event, as its block was cancelled; the other may be of another block."""
        self._end()
        with suppress(RuntimeError):  # if there is not even a task any more
            self._source.closeImmediately()
            self._target.closeImmediately()

    # What is to be done

    def _go_on(self) -> None:
        """Send what there is, or wait until that is possible."""
        state = self._target.readyState
        if state == ReadyState.OPEN and not self._waits:
            self._send()
        if state == ReadyState.CONNECTING or self._waits:
            self._hold()
        else:
            self._pass_on_end()
            self._release()

    def _send(self) -> None:
        """As much as fits. A ``drain`` of the target follows where that is not all, or it is enough for now."""
        target, data = self._target, self._unsent
        limit = connection_of(target).options.max_buffered_amount
        try:
            while data and not self._waits:
                part = data if limit is None else data[: max(limit - target.bufferedAmount, 1)]
                self._waits = not target.send(part)
                data = data[len(part) :]
        except BufferError:
            self._waits = True
        self._unsent = data

    def _send_remainder(self) -> None:
        """Whatever the limit, as nothing more will come; the target may be closing, by a pipe of the other way."""
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
    """Whether ``close`` has been told, or never will be, as the socket was closed before anything ran it."""
    connection = connection_of(socket)
    return connection.lifetime.over or connection.machine.is_over()


def _has_failed(socket: TCPSocket[Any]) -> bool:
    """Whether it is closed, or is about to be, in the middle of something: by a handler that has raised, too."""
    lifetime = connection_of(socket).lifetime
    return lifetime.failure is not None or bool(lifetime.crash_words)
