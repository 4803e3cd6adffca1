"""Bytes in and out of a non-blocking stream socket.

AnyIO tells when; the operating system moves the bytes, and nothing lies between. What would block gives None or 0
instead of an exception's cost to every caller, so that the callers read straight on.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import sys
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import anyio
import anyio.lowlevel
from anyio.abc import SocketAttribute

from ._addresses import plain
from ._state import Chunk

__all__ = ("Transport", "Watched", "configure", "has_ended")


def configure(sock: socket.socket) -> None:
    """Make a connected socket as ours are: never blocking, and nothing held back to be sent with later bytes."""
    sock.setblocking(False)
    if sock.family in (socket.AF_INET, getattr(socket, "AF_INET6", None)):
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:  # pragma: no cover  (macOS: the peer has reset it already, which the first read will tell)
            pass


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


class Watched:
    """A socket that tasks wait for, owned: :meth:`close` closes it.

    :ivar socket: the socket
    :ivar closed: whether it has been closed
    """

    __slots__ = ("_leaving", "_waiting", "closed", "socket")

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.closed = False
        self._waiting = 0  # how many tasks wait
        self._leaving = 0  # how many of them are woken, and yet to run

    def wait_readable(self) -> Coroutine[Any, Any, None]:
        """Wait until there may be something to read, or :meth:`interrupt`.

        :raises anyio.ClosedResourceError: if it is closed meanwhile
        """
        return self._wait(anyio.wait_readable)

    def wait_writable(self) -> Coroutine[Any, Any, None]:
        """Wait until something may be sent, or :meth:`interrupt`.

        :raises anyio.ClosedResourceError: if it is closed meanwhile
        """
        return self._wait(anyio.wait_writable)

    async def _wait(self, wait: Callable[[socket.socket], Awaitable[None]]) -> None:
        if self._leaving:
            await self._wait_for_those_leaving()
        self._waiting += 1
        try:
            await wait(self.socket)
        except anyio.ClosedResourceError:
            if self.closed:
                raise
        finally:
            self._waited()

    def interrupt(self) -> None:
        """Wake who waits, to look again at what to wait for."""
        if self._waiting and not self.closed:
            self._leaving = self._waiting
            anyio.notify_closing(self.socket)

    async def _wait_for_those_leaving(self) -> None:
        """On asyncio, who has been woken gives up waiting for the socket, and would do so for who waits by then."""
        while self._leaving:
            await anyio.lowlevel.checkpoint()
        if self.closed:
            raise anyio.ClosedResourceError

    def _waited(self) -> None:
        self._waiting -= 1
        if self._leaving:
            self._leaving -= 1
        if self.closed and not self._waiting:
            self.socket.close()

    def close(self) -> None:
        """Close the socket, and wake who waits for it.

        Its number must not be another's before they have woken, as they then give up waiting for that number. So it
        is the last of them that closes it.
        """
        if not self.closed:
            self.closed = True
            if self._waiting:
                anyio.notify_closing(self.socket)
            else:
                self.socket.close()

    async def wait_closed(self) -> None:
        """After :meth:`close`, wait until those who waited for it have woken, and so it is closed."""
        while self._waiting:
            await anyio.lowlevel.checkpoint()


class Transport(Watched):
    """A connected socket, for bytes."""

    __slots__ = ("_eof_sent", "_lost", "_peer_ended")

    read_size = 122_880
    """How many bytes are best read at once: what :func:`malloc` need not map (measured)."""

    send_limit = sys.maxsize
    """How many bytes it takes at once."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock)
        self._eof_sent = False  # whether the peer has been told that no more will come
        self._peer_ended = False
        self._lost: tuple[Any, ...] | None = None  # the arguments of what said that there is no connection any more

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
        try:
            if len(chunks) == 1:
                return self.socket.send(chunks[0])
            if hasattr(self.socket, "sendmsg"):
                return self.socket.sendmsg(chunks)
            return self.socket.send(b"".join(chunks))  # pragma: no cover  (Windows)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            # Whoever is told first is the only one whom the system tells: after that, reading gives ``b""`` as if the
            # peer had ended. If it really had before it was lost, the error is EPIPE (Linux).
            if exc.errno != errno.EPIPE:
                self._lost = exc.args
            raise

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

    async def wait_hung_up(self) -> None:
        """Wait until nothing more can come than what the operating system has: the connection is lost, or both sides
        have ended it. Where no epoll tells that while there is something to read, for good.
        """
        try:
            poll = select.epoll()  # with nothing asked for, which it tells in any case
        except (AttributeError, OSError):  # there is none, or no descriptor for it
            await anyio.sleep_forever()
        with poll:
            poll.register(self.socket, 0)
            await anyio.wait_readable(poll)

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
        super().close()

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
