"""Transports: bytes in and out of a non-blocking stream socket.

:class:`Transport` passes bytes to and from the operating system as they are; :mod:`._tls` has one that encrypts them.
Both have the methods of :class:`ByteTransport`. None of them waits: a call that would block returns None or 0 instead
of raising an exception, and the caller waits by :attr:`Transport.watched`.
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
    """Configure a connected socket: it never blocks, and TCP sends small writes without delay (``TCP_NODELAY``).

    :param keep_alive: seconds of silence before TCP probes the peer; None for never
    """
    sock.setblocking(False)
    if keep_alive is not None:
        _keep_alive(sock, keep_alive)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except OSError:  # it is not a TCP socket; or, on macOS, the peer has reset it: the first read will raise that
        pass


def _keep_alive(sock: socket.socket, seconds: int) -> None:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if _KEEP_IDLE is not None:
            sock.setsockopt(socket.IPPROTO_TCP, _KEEP_IDLE, seconds)
    except OSError:  # it is not a TCP socket, or the peer has reset it
        pass


_NO_LINGER = struct.pack("HH" if sys.platform == "win32" else "ii", 1, 0)  # struct linger: on, for 0 seconds

_TCP_INFO = struct.Struct("68xI48xQQ")  # in linux/tcp.h: tcpi_rtt, tcpi_bytes_acked, tcpi_bytes_received


def has_ended(sock: socket.socket) -> bool:
    """Whether a socket that has no peer had one before, which has ended or reset the connection.

    Nothing is consumed: neither unread data nor the error, which the system reports only once.

    On Linux it is whether anything was ever exchanged. Elsewhere it is whether the socket is readable, which is also
    true of one whose connection attempt was refused, until that error is read. Without poll() (Windows) it is False.
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
    """What carries the bytes of a connection: a :class:`Transport`, or TLS over one.

    No method waits. One that has not done all it was asked to do has to be called again later:

    - ``sendmsg()``, ``flush()`` and ``send_eof()`` when the socket can be written if :attr:`blocked`, else after the
      next ``receive()``;
    - ``receive()`` when the socket can be read; immediately if :attr:`pending`; after ``flush()`` if :attr:`choked`.
    """

    @property
    def read_size(self) -> int:
        """The best number of bytes to read at once."""
        ...

    @property
    def send_limit(self) -> int:
        """The most bytes that one call of :meth:`sendmsg` may be given."""
        ...

    @property
    def watched(self) -> Watched:
        """The socket below, to wait for it."""
        ...

    @property
    def closed(self) -> bool:
        """Whether the socket has been closed."""
        ...

    @property
    def pending(self) -> bool:
        """Whether :meth:`receive` may have something to return or to do (data, EOF, an error, a step of a handshake)
        even if nothing more arrives."""
        ...

    @property
    def choked(self) -> bool:
        """Whether nothing can be received before :meth:`flush` has handed over TLS's answers to the peer."""
        ...

    @property
    def blocked(self) -> bool:
        """Whether the bytes that were not handed over wait for room in the operating system. Otherwise they wait for
        something from the peer."""
        ...

    @property
    def local(self) -> Any:
        """The socket's own address; None if it is closed."""
        ...

    @property
    def attributes(self) -> dict[Any, Callable[[], Any]]:
        """AnyIO's typed attributes of the connection."""
        ...

    def receive(self, size: int) -> bytes | None:
        """Read what has arrived.

        :return: at most ``size`` bytes; ``b""`` at EOF; None if nothing has arrived yet
        :raises OSError: if the connection was lost
        """
        ...

    def sendmsg(self, chunks: Sequence[Chunk]) -> int:
        """Hand over bytes.

        :return: how many of them were taken
        :raises OSError: if the connection was lost
        """
        ...

    def flush(self) -> bool:
        """Hand over what the transport itself has to send, such as answers of TLS.

        :return: whether nothing of it is left
        :raises OSError: if the connection was lost
        """
        ...

    def send_eof(self) -> bool:
        """End our direction of the connection.

        :return: whether that is done
        """
        ...

    def close(self, *, tell: bool = True) -> None:
        """Close the socket, and wake the tasks that wait for it.

        :param tell: whether the connection ends for the peer too, even while another process, such as a child, has the
            socket open
        """
        ...

    def reset(self) -> None:
        """Close the socket so that the peer finds the connection cut off."""
        ...


class Transport:
    """A transport that passes bytes to and from a connected socket as they are.

    :ivar watched: the socket, to wait for it
    :ivar socket: the socket itself
    """

    __slots__ = ("_eof_received", "_eof_sent", "_lost", "socket", "watched")

    read_size = 65_536
    """The best number of bytes to read at once: for more, :func:`malloc` takes longer at each read (measured: 0.13 µs
    more for 122,880 bytes, and 12 µs for 245,760 in a fresh process, as it maps memory for each).
    """

    send_limit = sys.maxsize
    """One call of :meth:`sendmsg` takes any number of bytes."""

    pending = False
    """Unread data is in the operating system, which reports it."""

    choked = False
    """Receiving never depends on sending."""

    blocked = True
    """Bytes that were not taken always wait for room."""

    def __init__(self, sock: socket.socket) -> None:
        self.watched = Watched(sock)
        self.socket = sock
        self._eof_sent = False
        self._eof_received = False
        self._lost: tuple[Any, ...] | None = None  # the arguments of the OSError by which the connection was lost

    @property
    def closed(self) -> bool:
        """Whether the socket has been closed."""
        return self.watched.closed

    @property
    def local(self) -> Any:
        """The socket's own address; None if it is closed."""
        try:
            return self.socket.getsockname()
        except OSError:
            return None

    def receive(self, size: int) -> bytes | None:
        """Read what has arrived.

        :return: at most ``size`` bytes; ``b""`` at EOF; None if nothing has arrived yet
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
            self._eof_received = True
        return data

    def mark_eof_received(self) -> None:
        """Note that the caller has read EOF from the socket itself."""
        self._eof_received = True

    def sendmsg(self, chunks: Sequence[Chunk]) -> int:
        """Hand bytes to the operating system, in one call.

        :return: how many of them it took; 0 if there was no room
        :raises OSError: if the connection was lost
        """
        if len(chunks) == 1:
            return self.send(chunks[0])
        try:
            if hasattr(self.socket, "sendmsg"):
                return self.socket.sendmsg(chunks)
            return self.socket.send(b"".join(chunks))  # pragma: no cover  (Windows)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            self.note_loss(exc)
            raise

    def send(self, chunk: Chunk) -> int:
        """Hand one chunk to the operating system, as :meth:`sendmsg` does."""
        try:
            return self.socket.send(chunk)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as exc:
            self.note_loss(exc)
            raise

    def note_loss(self, exc: OSError) -> None:
        """Keep the error by which the connection was lost, for :meth:`receive` to raise it again.

        The system reports it only once: after that, reading returns ``b""`` as at EOF. If the peer had really ended its
        direction before the connection was lost, the error is EPIPE (Linux), and EOF is right.
        """
        if exc.errno != errno.EPIPE:
            self._lost = exc.args

    def flush(self) -> bool:
        """Do nothing: the transport itself has nothing to send.

        :return: True
        """
        return True

    def expect(self, count: int) -> None:
        """Report the socket as readable only once so many bytes, or EOF, have arrived, where the system can.

        A wake-up for fewer bytes costs far more than the bytes do. Windows cannot.
        """
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
        except OSError:  # pragma: no cover  (Windows)
            pass

    def send_eof(self) -> bool:
        """End our direction of the connection (FIN).

        :return: True: it is done
        """
        self._eof_sent = True
        self._shutdown(socket.SHUT_WR)
        return True

    def _shutdown(self, how: int) -> None:
        try:
            self.socket.shutdown(how)
        except OSError:
            pass  # the connection is lost already: the next read raises that

    def close(self, *, tell: bool = True) -> None:
        """Close the socket, and wake the tasks that wait for it.

        :param tell: whether the connection ends for the peer too, even while another process, such as a child, has the
            socket open
        """
        if tell and not (self.closed or (self._eof_sent and self._eof_received)):
            self._shutdown(socket.SHUT_RDWR)
        self.watched.close()

    def reset(self) -> None:
        """Close the socket with a RST (RFC 9293, section 3.10.5: ABORT), whatever is still to be sent or read.

        A UNIX-domain socket has no RST: its peer finds the connection ended.
        """
        if not self.closed and self.socket.family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self.close(tell=False)  # else a FIN would be sent before the RST
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
        except OSError:  # the peer has reset it, which the next read may still have to report
            return attributes
        attributes[SocketAttribute.remote_address] = lambda: plain(remote)
        if isinstance(remote, tuple):
            attributes[SocketAttribute.remote_port] = lambda: remote[1]
        return attributes
