"""Bytes in and out of a non-blocking stream socket.

The operating system moves the bytes, and nothing lies between. What would block gives None or 0 instead of an
exception's cost to every caller, so that the callers read straight on. Nothing here waits: that is for the callers, by
what :attr:`Transport.watched` offers.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from anyio.abc import SocketAttribute

from ._addresses import plain
from ._buffers import Chunk
from ._readiness import Watched

__all__ = ("ByteTransport", "Transport", "configure", "has_ended")


_KEEP_IDLE: int | None = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))  # the latter: macOS


def configure(sock: socket.socket, keep_alive: int | None = None) -> None:
    """Make a connected socket as ours are: never blocking, and nothing held back to be sent with later bytes.

    :param keep_alive: seconds of silence before TCP probes the peer; None for never
    """
    sock.setblocking(False)
    if keep_alive is not None:
        _keep_alive(sock, keep_alive)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:  # it is not of TCP; or, on macOS, the peer has reset it already, which the first read will tell
        pass


def _keep_alive(sock: socket.socket, seconds: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if _KEEP_IDLE is not None:
            sock.setsockopt(socket.IPPROTO_TCP, _KEEP_IDLE, seconds)
    except OSError:  # it is not of TCP, or reset already
        pass


_NO_LINGER = struct.pack("HH" if sys.platform == "win32" else "ii", 1, 0)  # struct linger: on, for 0 seconds

_TCP_INFO = struct.Struct("68xI48xQQ")  # of linux/tcp.h: a round trip's time, bytes acknowledged, bytes received


def has_ended(sock: socket.socket) -> bool:
    """Of a socket that has no peer: whether it had one, that has reset the connection or ended it. What is to be read
    then, and the error, which the system tells once, are left to be read.

    Linux tells whether anything was ever exchanged. Elsewhere it is told by that it can be read from; but so can one be
    that was refused and not asked yet. False where the system has no poll() either.
    """
    if sys.platform == "linux" and sock.family in (socket.AF_INET, socket.AF_INET6):
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        return len(info) == _TCP_INFO.size and any(_TCP_INFO.unpack(info))
    if not hasattr(select, "poll"):  # pragma: no cover  (Windows)
        return False
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return any(events & select.POLLIN for _, events in poll.poll(0))


class ByteTransport(Protocol):
    """What a connection is made on: a :class:`Transport`, or TLS over one.

    A method that has not done all it was asked for is to be called again, when there is hope. What there is to wait
    for, the properties tell: room for what was not taken while :attr:`blocked`, else more of the peer's; and before
    :meth:`receive`, more of the peer's, unless :attr:`pending` or :attr:`choked`.
    """

    @property
    def read_size(self) -> int:
        """How many bytes are best read at once."""
        ...

    @property
    def send_limit(self) -> int:
        """How many bytes it takes at once."""
        ...

    @property
    def watched(self) -> Watched:
        """The socket below, to wait for."""
        ...

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        ...

    @property
    def pending(self) -> bool:
        """Whether :meth:`receive` may have something though nothing more arrives: data, an end, an error, or a step of
        a handshake."""
        ...

    @property
    def choked(self) -> bool:
        """Whether nothing is received before :meth:`flush` has handed over what the peer is answered."""
        ...

    @property
    def blocked(self) -> bool:
        """Whether what was not handed over waits for room in the operating system. Else it is for the peer to send
        something first."""
        ...

    @property
    def local(self) -> Any:
        """The address of this end; None if it is closed."""
        ...

    @property
    def attributes(self) -> dict[Any, Callable[[], Any]]:
        """AnyIO's typed attributes of the connection."""
        ...

    def receive(self, size: int) -> bytes | None:
        """What has arrived; ``b""`` at the peer's end, None if nothing is there yet.

        :raises OSError: if the connection was lost
        """
        ...

    def send(self, chunks: Sequence[Chunk]) -> int:
        """Hand over bytes.

        :return: how many of them were taken
        :raises OSError: if the connection was lost
        """
        ...

    def flush(self) -> bool:
        """Hand over what there is to send besides.

        :return: whether nothing of it is left
        :raises OSError: if the connection was lost
        """
        ...

    def send_eof(self) -> bool:
        """Tell the peer that no more will come.

        :return: whether that is done
        """
        ...

    def close(self, *, tell: bool = True) -> None:
        """Close it, and wake who waits for it.

        :param tell: whether the peer is to be told even while another process, such as a child, has the socket too
        """
        ...

    def reset(self) -> None:
        """Close it so that the peer learns that the connection was cut off."""
        ...


class Transport:
    """A connected socket, for bytes.

    :ivar watched: the socket, to wait for it
    :ivar socket: the same, itself
    """

    __slots__ = ("_eof_sent", "_lost", "_peer_ended", "socket", "watched")

    read_size = 122_880
    """How many bytes are best read at once: what :func:`malloc` need not map (measured)."""

    send_limit = sys.maxsize
    """How many bytes it takes at once."""

    pending = False
    """What is to be received, the operating system has: it tells of it."""

    choked = False
    """Nothing that is to be received waits for what is to be sent."""

    blocked = True
    """What was not taken waits for room."""

    def __init__(self, sock: socket.socket) -> None:
        self.watched = Watched(sock)
        self.socket = sock
        self._eof_sent = False  # whether the peer has been told that no more will come
        self._peer_ended = False
        self._lost: tuple[Any, ...] | None = None  # the arguments of what said that there is no connection any more

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        return self.watched.closed

    @property
    def local(self) -> Any:
        """The address of this end; None if it is closed."""
        try:
            return self.socket.getsockname()
        except OSError:
            return None

    def receive(self, size: int) -> bytes | None:
        """What has arrived, at most ``size`` bytes; ``b""`` at the peer's end, None if nothing is there yet.

        :raises OSError: if the connection was lost
        """
        try:
            data = self.socket.recv(size)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as exc:
            self._lost = exc.args
            raise
        if not data:
            if self._lost is not None:
                raise OSError(*self._lost)
            self._peer_ended = True
        return data

    def send(self, chunks: Sequence[Chunk]) -> int:
        """Hand bytes to the operating system, in one call.

        :return: how many of them it took; 0 if there was no room
        :raises OSError: if the connection was lost
        """
        if len(chunks) == 1:
            return self.send_one(chunks[0])
        try:
            if hasattr(self.socket, "sendmsg"):
                return self.socket.sendmsg(chunks)
            return self.socket.send(b"".join(chunks))  # pragma: no cover  (Windows)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            self._note_loss(exc)
            raise

    def send_one(self, chunk: Chunk) -> int:
        """The same of one chunk."""
        try:
            return self.socket.send(chunk)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            self._note_loss(exc)
            raise

    def _note_loss(self, exc: OSError) -> None:
        """Whoever is told first is the only one whom the system tells: after that, reading gives ``b""`` as if the peer
        had ended. If it really had before it was lost, the error is EPIPE (Linux).
        """
        if exc.errno != errno.EPIPE:
            self._lost = exc.args

    def flush(self) -> bool:
        """Hand over what the transport has to send besides: nothing.

        :return: whether nothing of it is left
        """
        return True

    def expect(self, count: int) -> None:
        """Have waiting last until so many bytes have arrived, or the end, where the system can (not Windows). Waking up
        for fewer costs far more than the bytes do.
        """
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
        except OSError:  # pragma: no cover  (Windows)
            pass

    def send_eof(self) -> bool:
        """Tell the peer that no more will come (FIN).

        :return: whether that is done
        """
        self._eof_sent = True
        self._shutdown(socket.SHUT_WR)
        return True

    def _shutdown(self, how: int) -> None:
        try:
            self.socket.shutdown(how)
        except OSError:
            pass  # the connection is lost already, which the next read tells

    def close(self, *, tell: bool = True) -> None:
        """Close the socket, and wake who waits for it.

        :param tell: whether the peer is to be told even while another process, such as a child, has the socket too
        """
        if tell and not (self.closed or (self._eof_sent and self._peer_ended)):
            self._shutdown(socket.SHUT_RDWR)
        self.watched.close()

    def reset(self) -> None:
        """Close the socket with a RST (RFC 9293, section 3.10.5: ABORT), whatever is yet to be sent or read. A
        UNIX-domain socket knows none: the peer finds it closed.
        """
        if not self.closed and self.socket.family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self.close(tell=False)  # a FIN would go before it
        else:
            self.close()

    @property
    def attributes(self) -> dict[Any, Callable[[], Any]]:
        """AnyIO's typed attributes of the connection."""
        sock = self.socket
        attributes: dict[Any, Callable[[], Any]] = {
            SocketAttribute.family: lambda: sock.family,
            SocketAttribute.raw_socket: lambda: sock,
        }
        local = sock.getsockname()
        attributes[SocketAttribute.local_address] = lambda: plain(local)
        if isinstance(local, tuple):
            attributes[SocketAttribute.local_port] = lambda: local[1]
        try:
            remote = sock.getpeername()
        except OSError:  # the peer has reset it, which may be yet to be read
            return attributes
        attributes[SocketAttribute.remote_address] = lambda: plain(remote)
        if isinstance(remote, tuple):
            attributes[SocketAttribute.remote_port] = lambda: remote[1]
        return attributes
