"""Framing: handlers of ``data`` that cut it into lines or length-prefixed frames, and call a handler with each.

TCP keeps no boundaries: one ``data`` may contain many lines, and the beginning of another. The bytes that a handler was
given but has not taken yet are kept with the socket (:class:`Held`), not with the handler. So one handler can serve
many sockets. The bytes wait if the socket is suspended, and if another handler, a stream or TLS takes over after a
line, whatever follows that line is theirs.
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

PIECES_AT_ONCE = 512
"""The most pieces that are cut from one ``data``: what follows them is the next, so that others have their turn. A peer
that sends the shortest lines can take the event loop for a millisecond, not for half a second.
"""

Handler = Callable[[TCPSocketEvent[Any]], Any]

T = TypeVar("T", bound="bytes | str")


def lines(
    handler: Callable[[TCPSocketEvent[T]], object], *, limit: int = 65536, unended: bool = False
) -> Callable[[TCPSocketEvent[T]], object]:
    """Make a handler of ``data`` from a handler of lines::

        socket.ondata = lines(on_line)

    The handler of lines is called for each line with a :class:`TCPSocketEvent`, whose ``data`` is the line without its
    line end (LF or CRLF). The line may be empty. While the handler is ``async`` and has not returned, the next line
    waits.

    What the handler does to the socket takes effect from the next line on. :meth:`~TCPSocket.suspend` makes the next
    line wait; :meth:`~TCPSocket.close` drops it. If the handler calls :meth:`~TCPSocket.upgradeToSecure` or
    :meth:`~TCPSocket.stream`, or sets another ``ondata``, whatever follows its line belongs to TLS, to the stream or to
    that handler.

    The connection fails, with ``error`` and then ``close``, if a line is too long (the error's name is
    ``"NetworkError"``, :data:`errno.EMSGSIZE`) or if the peer ends its direction within a line
    (``"NetworkInterruptError"``).

    One handler can serve many sockets. It is for ``ondata``, not for :meth:`~TCPSocket.addEventListener`.

    :param handler: a function or ``async def`` function that takes one event
    :param limit: the most bytes in a line, not counting its line end
    :param unended: whether bytes after the last line end are a line too when the peer ends its direction, as in some
        files
    :return: a handler of ``data``; it is ``async`` if the handler of lines is
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
    """Make a handler of ``data`` from a handler of frames, each of which is preceded by its length::

        socket.ondata = frames(on_frame, size=4)

    The handler of frames is called for each frame with a :class:`TCPSocketEvent`, whose ``data`` is the frame without
    its length. The frame may be empty. All else is as with :func:`lines`. The connection fails as soon as the length of
    a frame that is too long has arrived.

    :param handler: a function or ``async def`` function that takes one event
    :param size: the size of the length field in bytes, 1 to 8; the length is unsigned and does not include the field
    :param limit: the most bytes in a frame
    :param byteorder: the byte order of the length: ``"big"`` (network order) or ``"little"``
    :return: a handler of ``data``; it is ``async`` if the handler of frames is
    :raises TypeError: if an argument is of the wrong type
    :raises ValueError: if a number is out of range, or the byte order is unknown
    """
    check_count("size", size, 1, 8)
    check_count("limit", limit, 1)
    if byteorder not in ("big", "little"):
        raise ValueError(f"byteorder must be 'big' or 'little', not {byteorder!r}")
    return _handler_of(_Frames(size, limit, byteorder), handler)


def _handler_of(cutter: _Cutter, handler: Handler) -> Handler:
    require_callable(f"the handler of {cutter.name}()", handler)
    return (_AsyncHandler if is_async(handler) else _Handler)(cutter, handler)


# Cutting bytes into pieces: lines or frames


class _Cutter(Protocol):
    """Cuts bytes into pieces, and puts pieces together again.

    :ivar name: the name of the public function
    :ivar piece: the word for a piece, in messages
    :ivar end: the ending that is removed from a piece before it is delivered; may be empty
    :ivar limit: the most bytes in a piece
    :ivar unended: whether an incomplete piece counts as a piece when the peer ends its direction
    """

    name: str
    piece: str
    end: bytes
    limit: int
    unended: bool

    def cut(self, rest: bytearray, data: bytes) -> tuple[list[bytes], bytes]:
        """Cut off the pieces that are complete, up to the first that is too long, and :data:`PIECES_AT_ONCE` at most.

        :param rest: the bytes that the last cut has left; changed to the incomplete piece that this cut leaves
        :param data: the bytes that follow them
        :return: the pieces, and the bytes that are left uncut as there were so many
        """

    def is_too_long(self, rest: bytearray) -> bool:
        """Whether the bytes that were left begin with a piece that is too long."""

    def join(self, pieces: Iterable[bytes]) -> bytes:
        """The bytes from which the pieces were cut."""


class _Lines(_Cutter):
    name, piece, end = "lines", "line", b"\r"  # lines are cut at LF, so one that ended with CRLF still has its CR

    def __init__(self, limit: int, unended: bool) -> None:
        self.limit = limit
        self.unended = unended

    def cut(self, rest: bytearray, data: bytes) -> tuple[list[bytes], bytes]:
        pieces = data.split(b"\n", PIECES_AT_ONCE)
        last, uncut = pieces.pop(), b""
        if not pieces:
            rest += last
            return pieces, uncut
        if len(pieces) == PIECES_AT_ONCE:
            last, uncut = b"", last
        if rest:
            rest += pieces[0]
            pieces[0] = bytes(rest)
        rest[:] = last
        if max(map(len, pieces)) > self.limit:
            self._leave_too_long(pieces, rest)
        return pieces, uncut

    def _leave_too_long(self, pieces: list[bytes], rest: bytearray) -> None:
        """Move the first piece that is too long, and those after it, back into ``rest``."""
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

    def cut(self, rest: bytearray, data: bytes) -> tuple[list[bytes], bytes]:
        if rest:
            rest += data
            if len(rest) < self.size + self._length(rest, 0):
                return [], b""
            data = bytes(rest)
        pieces: list[bytes] = []
        at, size = 0, self.size
        while len(data) >= (start := at + size):
            end = start + (length := self._length(data, at))
            if length > self.limit or end > len(data):
                break
            pieces.append(data[start:end])
            at = end
            if len(pieces) == PIECES_AT_ONCE:
                rest.clear()
                return pieces, data[at:]
        rest[:] = data[at:]
        return pieces, b""

    def _length(self, data: bytes | bytearray, at: int) -> int:
        return int.from_bytes(data[at : at + self.size], self.byteorder)

    def is_too_long(self, rest: bytearray) -> bool:
        return len(rest) >= self.size and self._length(rest, 0) > self.limit

    def join(self, pieces: Iterable[bytes]) -> bytes:
        return b"".join([len(piece).to_bytes(self.size, self.byteorder) + piece for piece in pieces])


# The handlers of data


class _Pieces:
    """The bytes that the handler of one socket was given and has not taken, see :class:`Held`.

    :param by: the handler
    :ivar whole: the complete pieces, in reverse order
    :ivar rest: the bytes after them: an incomplete piece
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
    """A handler of ``data`` that calls a function with each piece."""

    def __init__(self, cutter: _Cutter, handler: Handler) -> None:
        self.cutter = cutter
        self._handler = handler
        self.words = f"a handler made by {cutter.name}()"

    def __repr__(self) -> str:
        return f"<{self.cutter.name}({self._handler!r})>"

    def __call__(self, event: TCPSocketEvent[Any]) -> object:
        for piece in self._pieces(event):
            result = self._handler(piece)
            if result is not None and is_to_be_awaited(result):  # the dispatcher awaits it before the next piece
                connection_of(event.target).take_back()
                return result
        return None

    def _pieces(self, event: TCPSocketEvent[Any]) -> Iterator[TCPSocketEvent[Any]]:
        """An event for each complete piece, until the pieces are taken back, which may happen while one is handled."""
        if not isinstance(event, TCPSocketEvent):
            raise TypeError(f"{self.words} is for ondata only, not for {event.type} events")
        target, end, is_text = event.target, self.cutter.end, isinstance(event.data, str)
        connection = connection_of(target)
        held = self._held(connection, event.data.encode("latin-1") if is_text else event.data)
        whole, owner = held.whole, connection.dispatcher.owner
        while whole:
            piece = whole.pop().removesuffix(end)
            yield TCPSocketEvent("data", target, piece.decode("latin-1") if is_text else piece)
            if owner is not None and owner.cancel_called:
                return  # the handlers are cancelled
        if self.cutter.is_too_long(held.rest):
            words = f"the peer sent a {self.cutter.piece} of more than {self.cutter.limit} bytes"
            connection.reject(OSError(errno.EMSGSIZE, words))

    def _held(self, connection: Connection, data: bytes) -> _Pieces:
        """Cut data, together with the bytes that were left before, into pieces for this handler."""
        held = connection.inbox.held
        if not isinstance(held, _Pieces) or held.by is not self:
            if held is not None:
                data = held.take_back() + data
            held = connection.inbox.held = _Pieces(self)
        pieces, uncut = self.cutter.cut(held.rest, data)
        if uncut:
            connection.leave_for_later(uncut)
        pieces.reverse()
        held.whole[:0] = pieces
        return held

    def finish(self, event: TCPSocketEvent[Any], rest: bytes) -> object:
        """Act on the end of the peer's direction: an incomplete piece is delivered, or makes the connection fail.

        :param event: a ``data`` event without data
        :param rest: the bytes of the incomplete piece
        """
        target, piece = event.target, self.cutter.piece
        if self.cutter.unended:
            data = rest.decode("latin-1") if isinstance(event.data, str) else rest
            return self._handler(TCPSocketEvent("data", target, data))
        words = f"the peer ended its side within a {piece}, after {len(rest)} bytes of it"
        connection_of(target).reject(ConnectionResetError(errno.ECONNRESET, words))
        return None


class _AsyncHandler(_Handler):
    """A handler of ``data`` that awaits an ``async def`` function with each piece."""

    async def __call__(self, event: TCPSocketEvent[Any]) -> None:
        for piece in self._pieces(event):
            await self._handler(piece)
