"""Handlers of whole lines, or of length-prefixed frames, made into handlers of ``data``.

TCP keeps no boundaries: one ``data`` may have many lines, and the beginning of one more. What was given to a handler
and not taken by it is held by the socket, not by the handler, see :class:`Held`. So one handler serves many sockets,
and what is behind the line after which somebody else is to have the bytes is theirs, whether that is another handler,
a stream or TLS; and it waits if the socket is suspended.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Protocol, TypeVar

from ._connection import Connection
from ._events import OnlyHandler, is_async, is_to_be_awaited, require_callable
from ._options import check_count, check_flag
from ._socket import TCPSocketEvent, connection_of

__all__ = ("frames", "lines")

Handler = Callable[[TCPSocketEvent[Any]], Any]

T = TypeVar("T", bound="bytes | str")


def lines(
    handler: Callable[[TCPSocketEvent[T]], object], *, limit: int = 65536, unended: bool = False
) -> Callable[[TCPSocketEvent[T]], object]:
    """Make a handler of lines into one of ``data``::

        socket.ondata = lines(on_line)

    It is called with a :class:`TCPSocketEvent` for each line, of which ``data`` is the line without its end, LF or
    CRLF; it may be empty. While it is ``async``, the next line waits until it is done.

    What it does to the socket holds from the next line on: :meth:`~TCPSocket.suspend` lets that wait,
    :meth:`~TCPSocket.close` drops it. What is behind the line in which it calls :meth:`~TCPSocket.upgradeToSecure` or
    :meth:`~TCPSocket.stream`, or sets another ``ondata``, is part of TLS, or for the stream, or for that handler.

    A line that is too long, or that the peer has not ended when it ends its side, loses the connection: ``error`` with
    the name ``"NetworkError"`` (:data:`errno.EMSGSIZE`) or ``"NetworkInterruptError"``, then ``close``.

    The same handler can be that of many sockets. It is for ``ondata``, not for :meth:`~TCPSocket.addEventListener`.

    :param handler: a function or ``async def`` function that takes one event
    :param limit: bytes of a line, without its end, at most
    :param unended: whether what the peer sends behind the last end of a line, before it ends its side, is a line too,
        as in some files
    :return: a handler of ``data``, which is ``async`` as well if the handler is
    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if the limit is less than 1
    """
    check_count("limit", limit, 1)
    check_flag("unended", unended)
    return _handler_of(_Lines(limit, unended), handler)


def frames(
    handler: Callable[[TCPSocketEvent[T]], object],
    *,
    size: int,
    limit: int = 65536,
    byteorder: Literal["big", "little"] = "big",
) -> Callable[[TCPSocketEvent[T]], object]:
    """Make a handler of frames into one of ``data``, where each frame comes behind its length::

        socket.ondata = frames(on_frame, size=4)

    It is called with a :class:`TCPSocketEvent` for each frame, of which ``data`` is the frame without its length; it
    may be empty. All else is as with :func:`lines`. A frame that is too long loses the connection as soon as its length
    has come.

    :param handler: a function or ``async def`` function that takes one event
    :param size: bytes of the length before each frame, an unsigned number that does not count itself: 1 to 8
    :param limit: bytes of a frame at most
    :param byteorder: of the length: ``"big"`` (network order) or ``"little"``
    :return: a handler of ``data``, which is ``async`` as well if the handler is
    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if a number is out of range, or the byte order unknown
    """
    check_count("size", size, 1, 8)
    check_count("limit", limit, 1)
    if byteorder not in ("big", "little"):
        raise ValueError(f"byteorder must be 'big' or 'little', not {byteorder!r}")
    return _handler_of(_Frames(size, limit, byteorder), handler)


def _handler_of(cutter: _Cutter, handler: Handler) -> Handler:
    require_callable(f"the handler of {cutter.name}()", handler)
    return (_AsyncHandler if is_async(handler) else _Handler)(cutter, handler)


# What bytes are cut into: pieces, each with what belongs to it in the stream.


class _Cutter(Protocol):
    """
    :ivar name: of the public function
    :ivar piece: what it cuts, in words
    :ivar end: what a piece is without, if it ends with it
    :ivar limit: bytes of a piece at most
    :ivar unended: whether what there is at the peer's end is a piece too
    """

    name: str
    piece: str
    end: bytes
    limit: int
    unended: bool

    def cut(self, rest: bytearray, data: bytes) -> list[bytes]:
        """Cut off the pieces that are whole and not too long.

        :param rest: what was left of it the last time; changed to what is left now
        :param data: what comes behind
        """

    def is_too_long(self, rest: bytearray) -> bool:
        """Whether the piece that is next is."""

    def join(self, pieces: Iterable[bytes]) -> bytes:
        """The bytes that they were cut from."""


class _Lines(_Cutter):
    name, piece, end = "lines", "line", b"\r"  # what is cut is at LF

    def __init__(self, limit: int, unended: bool) -> None:
        self.limit = limit
        self.unended = unended

    def cut(self, rest: bytearray, data: bytes) -> list[bytes]:
        pieces = data.split(b"\n")
        last = pieces.pop()
        if not pieces:
            rest += last
            return pieces
        if rest:
            rest += pieces[0]
            pieces[0] = bytes(rest)
        rest[:] = last
        if max(map(len, pieces)) > self.limit:
            self._leave_too_long(pieces, rest)
        return pieces

    def _leave_too_long(self, pieces: list[bytes], rest: bytearray) -> None:
        """Leave the first that is too long, and those behind it."""
        for index, piece in enumerate(pieces):
            if len(piece.removesuffix(self.end)) > self.limit:
                rest[:0] = self.join(pieces[index:])
                del pieces[index:]
                return

    def is_too_long(self, rest: bytearray) -> bool:
        if len(rest) <= self.limit:
            return False
        return b"\n" in rest or len(rest) - rest.endswith(self.end) > self.limit

    def join(self, pieces: Iterable[bytes]) -> bytes:
        return b"".join([piece + b"\n" for piece in pieces])


class _Frames(_Cutter):
    name, piece, end, unended = "frames", "frame", b"", False

    def __init__(self, size: int, limit: int, byteorder: Literal["big", "little"]) -> None:
        self.size = size
        self.limit = limit
        self.byteorder = byteorder

    def cut(self, rest: bytearray, data: bytes) -> list[bytes]:
        if rest:
            rest += data
            if len(rest) < self.size + self._length(rest, 0):
                return []
            data = bytes(rest)
        pieces: list[bytes] = []
        at, size = 0, self.size
        while len(data) >= (start := at + size):
            end = start + (length := self._length(data, at))
            if length > self.limit or end > len(data):
                break
            pieces.append(data[start:end])
            at = end
        rest[:] = data[at:]
        return pieces

    def _length(self, data: bytes | bytearray, at: int) -> int:
        return int.from_bytes(data[at : at + self.size], self.byteorder)

    def is_too_long(self, rest: bytearray) -> bool:
        return len(rest) >= self.size and self._length(rest, 0) > self.limit

    def join(self, pieces: Iterable[bytes]) -> bytes:
        return b"".join([len(piece).to_bytes(self.size, self.byteorder) + piece for piece in pieces])


# The handlers of data


class _Pieces:
    """What one socket's handler was given, and has not taken: see :class:`Held`.

    :param by: the handler
    :ivar whole: the pieces that it can take, the next last
    :ivar rest: the bytes behind them
    """

    __slots__ = ("by", "rest", "whole")

    def __init__(self, by: _Handler) -> None:
        self.by = by
        self.whole: list[bytes] = []
        self.rest = bytearray()

    @property
    def is_pending(self) -> bool:
        return bool(self.whole)

    @property
    def is_unfinished(self) -> bool:
        return bool(self.rest)

    def finish(self, event: TCPSocketEvent[Any]) -> object:
        return self.by.finish(event, bytes(self.rest))

    def take_back(self) -> bytes:
        data = self.by.cutter.join(reversed(self.whole)) + self.rest
        self.whole.clear()
        self.rest.clear()
        return data


class _Handler(OnlyHandler):
    """A handler of data, made of a function that takes a piece."""

    def __init__(self, cutter: _Cutter, handler: Handler) -> None:
        self.cutter = cutter
        self._handler = handler
        self.words = f"what {cutter.name}() makes"

    def __repr__(self) -> str:
        return f"<{self.cutter.name}({self._handler!r})>"

    def __call__(self, event: TCPSocketEvent[Any]) -> object:
        for piece in self._pieces(event):
            result = self._handler(piece)
            if result is not None and is_to_be_awaited(result):  # first
                connection_of(event.target).take_back()
                return result
        return None

    def _pieces(self, event: TCPSocketEvent[Any]) -> Iterator[TCPSocketEvent[Any]]:
        """The pieces that there are now, as long as they are for this handler: others may take them back any time."""
        if not isinstance(event, TCPSocketEvent):
            raise TypeError(f"{self.words} is a handler of data, not of {event.type}")
        target, end, is_text = event.target, self.cutter.end, isinstance(event.data, str)
        connection = connection_of(target)
        held = self._held(connection, event.data.encode("latin-1") if is_text else event.data)
        whole, scopes = held.whole, connection.dispatcher.scopes
        while whole:
            piece = whole.pop().removesuffix(end)
            yield TCPSocketEvent("data", target, piece.decode("latin-1") if is_text else piece)
            for scope in scopes:
                if scope.cancel_called:
                    return  # no handler runs any more
        if self.cutter.is_too_long(held.rest):
            words = f"the peer sent a {self.cutter.piece} of more than {self.cutter.limit} bytes"
            connection.reject(OSError(errno.EMSGSIZE, words))

    def _held(self, connection: Connection, data: bytes) -> _Pieces:
        """:return: what this handler can take now, of data and of what there was before"""
        held = connection.inbox.held
        if not isinstance(held, _Pieces) or held.by is not self:
            if held is not None:
                data = held.take_back() + data
            held = connection.inbox.held = _Pieces(self)
        pieces = self.cutter.cut(held.rest, data)
        pieces.reverse()
        held.whole[:0] = pieces
        return held

    def finish(self, event: TCPSocketEvent[Any], rest: bytes) -> object:
        """The peer has ended its side.

        :param event: one of data without any
        :param rest: what there is of a piece
        """
        target, piece = event.target, self.cutter.piece
        if self.cutter.unended:
            data = rest.decode("latin-1") if isinstance(event.data, str) else rest
            return self._handler(TCPSocketEvent("data", target, data))
        words = f"the peer ended within a {piece}, of which it had sent {len(rest)} bytes"
        connection_of(target).reject(ConnectionResetError(errno.ECONNRESET, words))
        return None


class _AsyncHandler(_Handler):
    """The same, made of an ``async def`` function."""

    async def __call__(self, event: TCPSocketEvent[Any]) -> None:
        for piece in self._pieces(event):
            await self._handler(piece)
