"""MozTCPSocket: the scope that owns sockets and servers (MDN: ``navigator.mozTCPSocket``)."""

from __future__ import annotations

import ssl
from types import TracebackType

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from ._lifetime import current_loop, ended, is_of_cancellation, log_displaced, require_task
from ._options import BinaryType, check_flag
from ._server import TCPServerSocket
from ._socket import TCPSocket
from ._unique import Unique

__all__ = ("MozTCPSocket",)


class MozTCPSocket(Unique):
    """Opens sockets and servers and owns them, as a task group owns tasks (MDN: ``navigator.mozTCPSocket``)::

        async with MozTCPSocket() as tcp:
            socket = tcp.open("localhost", 8007)
            socket.onopen = lambda event: socket.send(b"hello")

    The block ends when all of them have closed. Cancelling it, or an exception that leaves its body, closes them at
    once. What a handler raises, and a failure that nobody was told of, leaves the block in an ExceptionGroup, and ends
    the others.

    :param certified: whether :meth:`listen` may use ports below 1024 (MDN: certified apps only)
    :raises TypeError: if it is not a bool
    """

    def __init__(self, *, certified: bool = False) -> None:
        check_flag("certified", certified)
        self._certified = certified
        self._tasks: TaskGroup | None = None
        self._loop: object = None
        self._exit: KeyboardInterrupt | SystemExit | None = None  # raised by a handler, to end the program
        self._members: set[TCPSocket | TCPServerSocket] = set()

    @property
    def cancel_scope(self) -> anyio.CancelScope:
        """The cancel scope of the block: cancelling it closes everything at once.

        :raises RuntimeError: outside the block
        """
        return self._running("cancel_scope").cancel_scope

    def open(
        self,
        host: str,
        port: int,
        *,
        binaryType: BinaryType = "arraybuffer",
        connect_timeout: float | None = None,
        local_host: str | None = None,
        max_buffered_amount: int | None = None,
        linger: float = 5,
        useSecureTransport: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        handshake_timeout: float = 30,
        tls_standard_compatible: bool = True,
        allow_half_open: bool = False,
    ) -> TCPSocket:
        """Open a connection (MDN: ``open``). It returns at once, and connects when the caller next awaits.

        For the parameters, and what is raised for them, see :class:`TCPSocket`.

        :return: a socket that is connecting
        :raises RuntimeError: outside the block
        """
        tasks = self._ready_to_start("open()")
        socket = TCPSocket(
            host,
            port,
            binaryType=binaryType,
            connect_timeout=connect_timeout,
            local_host=local_host,
            max_buffered_amount=max_buffered_amount,
            linger=linger,
            useSecureTransport=useSecureTransport,
            ssl_context=ssl_context,
            server_hostname=server_hostname,
            handshake_timeout=handshake_timeout,
            tls_standard_compatible=tls_standard_compatible,
            allow_half_open=allow_half_open,
        )
        self._run(socket, tasks)
        return socket

    def listen(
        self,
        port: int,
        *,
        host: str | None = None,
        binaryType: BinaryType = "arraybuffer",
        backlog: int = 0,
        max_connections: int | None = None,
        max_handshakes: int = 1000,
        reuse_port: bool = False,
        max_buffered_amount: int | None = None,
        linger: float = 5,
        useSecureTransport: bool = False,
        ssl_context: ssl.SSLContext | None = None,
        handshake_timeout: float = 30,
        tls_standard_compatible: bool = True,
        allow_half_open: bool = False,
        proxy_protocol: bool = False,
    ) -> TCPServerSocket:
        """Listen on a port (MDN: ``listen``). It listens when the call returns.

        For the parameters, and what is raised for them, see :class:`TCPServerSocket`.

        :return: the server
        :raises OSError: if the port cannot be listened on
        :raises PermissionError: if the port is below 1024 and the scope was not made with ``certified=True``
        :raises RuntimeError: outside the block
        """
        tasks = self._ready_to_start("listen()")
        server = TCPServerSocket(
            port,
            host=host,
            binaryType=binaryType,
            backlog=backlog,
            max_connections=max_connections,
            max_handshakes=max_handshakes,
            reuse_port=reuse_port,
            max_buffered_amount=max_buffered_amount,
            linger=linger,
            useSecureTransport=useSecureTransport,
            ssl_context=ssl_context,
            handshake_timeout=handshake_timeout,
            tls_standard_compatible=tls_standard_compatible,
            allow_half_open=allow_half_open,
            proxy_protocol=proxy_protocol,
        )
        if 0 < port < 1024 and not self._certified:
            raise PermissionError(
                f"port {port}: ports below 1024 are for certified apps only; use MozTCPSocket(certified=True)"
            )
        server._bind()
        self._run(server, tasks)
        return server

    def close(self) -> None:
        """Close every socket and every server of the scope, and the sockets that the servers have accepted."""
        if self._members:
            require_task("close()", self._loop)
        for member in tuple(self._members):
            member._close_all()

    def _running(self, what: str) -> TaskGroup:
        if self._tasks is None:
            raise RuntimeError(f"{what} outside the block: enter it with `async with MozTCPSocket() as tcp:`")
        return self._tasks

    def _ready_to_start(self, what: str) -> TaskGroup:
        """:raises RuntimeError: outside the block, or where AnyIO can start no task"""
        tasks = self._running(what)
        require_task(what, self._loop)
        return tasks

    def _run(self, member: TCPSocket | TCPServerSocket, tasks: TaskGroup) -> None:
        try:
            tasks.start_soon(self._run_member, member, tasks.cancel_scope, name=repr(member))
        except BaseException:
            member.close()
            raise
        member._started = True
        self._members.add(member)

    async def _run_member(self, member: TCPSocket | TCPServerSocket, scope: anyio.CancelScope) -> None:
        try:
            await member._run_in_scope(scope)
        except (KeyboardInterrupt, SystemExit) as exc:  # which ends the program from the block, and not from a task
            self._exit = exc
            scope.cancel()
        finally:
            self._members.discard(member)

    async def __aenter__(self) -> MozTCPSocket:
        if self._tasks is not None:
            raise RuntimeError("this MozTCPSocket has been entered already")
        self._tasks = await anyio.create_task_group().__aenter__()
        self._loop = current_loop()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._tasks is not None
        try:
            told = None if is_of_cancellation(exc) else exc
            left = await ended(self._tasks, told)
            if told is not exc:
                await anyio.lowlevel.checkpoint_if_cancelled()  # if not, it was this scope's own
        except BaseException as raised:
            if self._exit is None:
                raise
            left = raised
        finally:
            self._tasks = None
            found, self._exit = self._exit, None
        if found is not None:
            if left is not found:
                log_displaced(left)
            left = found
        if left is None:
            return True
        if left is not exc:
            raise left
        return False
