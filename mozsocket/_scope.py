"""MozTCPSocket: the scope that owns sockets and servers (MDN: ``navigator.mozTCPSocket``).

It holds one task group and one poller, by which all of its sockets and servers are run.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from ._connection import Connection
from ._lifetime import Member
from ._options import BinaryType, Bytes, ConnectOptions, ListenOptions, Text, accepts, check_flag, takes
from ._poller import way_to_wait
from ._raised import is_cancelled, is_of_cancellation, log_displaced, own_cancellation, pass_over
from ._readiness import Waiting
from ._server import TCPServerSocket, acceptor_of
from ._socket import TCPSocket, connection_of
from ._tasks import Loop, current_loop, ended, require_task
from ._unique import Referable, Strict, Unique

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

__all__ = ("MozTCPSocket",)


class MozTCPSocket(Unique, Strict, Referable):
    """Opens sockets and servers and owns them, as a task group owns tasks (MDN: ``navigator.mozTCPSocket``)::

        async with MozTCPSocket() as tcp:
            socket = tcp.open("localhost", 8007)
            socket.onopen = lambda event: socket.send(b"hello")

    The block ends when all of its sockets and servers have closed. If it is cancelled, or an exception leaves its body,
    they are closed immediately. Whatever a handler raises leaves the block in an ExceptionGroup and closes the other
    sockets, as does a failure of a connection that was reported to no handler and no waiting task. Both are only logged
    for the sockets that servers have accepted. KeyboardInterrupt and SystemExit leave the block as themselves.

    :param certified: whether :meth:`listen` may use ports below 1024 (MDN: certified apps only)
    :raises TypeError: if it is not a bool
    """

    __slots__ = ("_certified", "_context", "_exit", "_loop", "_members", "_tasks", "_waiting")

    def __init__(self, *, certified: bool = False) -> None:
        check_flag("certified", certified)
        self._certified = certified
        self._tasks: TaskGroup | None = None
        self._loop: Loop | None = None
        self._exit: KeyboardInterrupt | SystemExit | None = None  # raised by a handler, to end the program
        self._members: set[Member] = set()
        self._waiting: Waiting | None = None  # the way to wait for all sockets, inside the block
        self._context: Context | None = None  # the context in which the block was entered

    def _what_there_is(self) -> str:
        return ", and no events: set handlers on the sockets and servers that open() and listen() return"

    @property
    def cancel_scope(self) -> anyio.CancelScope:
        """The cancel scope of the block: cancelling it closes everything immediately.

        :raises RuntimeError: outside the block
        """
        return self._running("cancel_scope").cancel_scope

    @overload
    @accepts(ConnectOptions[Bytes])
    def open(self) -> TCPSocket[bytes]: ...
    @overload
    @accepts(ConnectOptions[Text])
    def open(self) -> TCPSocket[str]: ...
    @overload
    @accepts(ConnectOptions[BinaryType])
    def open(self) -> TCPSocket[bytes | str]: ...
    @takes(TCPSocket)
    def open(self, socket: TCPSocket[Any]) -> TCPSocket[Any]:
        """Open a connection (MDN: ``open``). This method does not wait: connecting begins when the caller next awaits.

        :return: a socket that is connecting
        :raises TypeError: if an argument is of the wrong type
        :raises ValueError: if an argument is out of range
        :raises RuntimeError: outside the block
        """
        tasks = self._ready_to_start("open()")
        connection = connection_of(socket)
        assert self._waiting is not None
        if self._waiting.takes_tasks:
            self._run(connection, partial(self._start_task, connection, tasks))
        else:
            open_in_turn = partial(self._open_in_turn, connection, tasks, copy_context())
            self._run(connection, partial(connection.open_soon, open_in_turn, self._end_without_task))
        return socket

    @overload
    @accepts(ListenOptions[Bytes])
    def listen(self) -> TCPServerSocket[bytes]: ...
    @overload
    @accepts(ListenOptions[Text])
    def listen(self) -> TCPServerSocket[str]: ...
    @overload
    @accepts(ListenOptions[BinaryType])
    def listen(self) -> TCPServerSocket[bytes | str]: ...
    @takes(TCPServerSocket)
    def listen(self, server: TCPServerSocket[Any]) -> TCPServerSocket[Any]:
        """Listen on a port (MDN: ``listen``). The port is bound when the call returns.

        The options that :meth:`open` has too apply to each accepted socket.

        :return: the server
        :raises TypeError: if an argument is of the wrong type
        :raises ValueError: if an argument is out of range
        :raises OSError: if the port cannot be listened on
        :raises PermissionError: if the port is below 1024 and the scope was not made with ``certified=True``
        :raises RuntimeError: outside the block
        """
        tasks = self._ready_to_start("listen()")
        port = server.localPort
        if 0 < port < 1024 and not self._certified:
            raise PermissionError(
                f"port {port}: ports below 1024 are for certified apps only; use MozTCPSocket(certified=True)"
            )
        acceptor = acceptor_of(server)
        acceptor.bind()
        self._run(acceptor, partial(self._start_task, acceptor, tasks))
        return server

    def start_soon(
        self,
        function: Callable[[Unpack[Ts]], Coroutine[Any, Any, object]],
        *args: Unpack[Ts],
        name: object = None,
    ) -> None:
        """Start a task that belongs to the scope (AnyIO: ``TaskGroup.start_soon``), for timers and other work beside
        the sockets. A handler may call this too; the task does not delay the socket's next event.

        The block ends only after the task has returned. An exception of the task leaves the block in an ExceptionGroup
        and closes the sockets.

        :param function: an ``async def`` function
        :param args: the arguments to call it with
        :param name: the name of the task, for debugging; None for the name of the function
        :raises RuntimeError: outside the block, or where AnyIO can start no task
        """
        self._ready_to_start("start_soon()").start_soon(function, *args, name=name)

    def close(self) -> None:
        """Close every socket and every server of the scope, and the sockets that the servers have accepted, each as
        :meth:`TCPSocket.close` does. Tasks of :meth:`start_soon` go on. Outside the block it does nothing.
        """
        if self._members:
            require_task("close()", self, self._loop)
        for member in tuple(self._members):
            member.close_all()

    def _running(self, what: str) -> TaskGroup:
        if self._tasks is None:
            raise RuntimeError(f"{what} outside the block: enter it with `async with MozTCPSocket() as tcp:`")
        return self._tasks

    def _ready_to_start(self, what: str) -> TaskGroup:
        """The task group, in which a task can be started now.

        :raises RuntimeError: outside the block, or where AnyIO can start no task
        """
        tasks = self._running(what)
        require_task(what, self, self._loop)
        return tasks

    def _run(self, member: Member, start: Callable[[], None]) -> None:
        """Run a new member.

        :param start: starts its task, or has the poller open it
        """
        assert self._waiting is not None
        member.wait_by(self._waiting)
        try:
            start()
        except BaseException:
            member.close()
            raise
        member.lifetime.begin()
        self._members.add(member)

    def _start_task(self, member: Member, tasks: TaskGroup) -> None:
        tasks.start_soon(self._run_member, member, tasks, name=repr(member))

    async def _run_member(self, member: Member, tasks: TaskGroup) -> None:
        try:
            await member.lifetime.run_in_scope(member, tasks.cancel_scope)
        except (KeyboardInterrupt, SystemExit) as exc:
            self._leave_by(exc, tasks)
        finally:
            self._members.discard(member)
            member.end()

    def _leave_by(self, exc: KeyboardInterrupt | SystemExit, tasks: TaskGroup) -> None:
        """End the block, which then raises this exception itself: raised in a task, it would come in a group."""
        self._exit = exc
        tasks.cancel_scope.cancel()

    def _open_in_turn(self, connection: Connection, tasks: TaskGroup, context: Context) -> None:
        """Open a connection in the poller's turn, or in a task if that takes waiting.

        :param context: the context that its handlers run in
        """
        if is_cancelled():  # a scope around this one: the poller's next checkpoint raises that, which ends it
            return
        host = partial(context.copy().run, tasks.start_soon, self._run_member, connection, tasks)
        connection.lifetime.begin_opened(connection, tasks.cancel_scope, context, host)
        own = context.copy()  # as the handlers run in the context itself
        if not own.run(connection.open_at_once):
            own.run(partial(tasks.start_soon, self._open, connection, tasks, name=repr(connection)))

    async def _open(self, connection: Connection, tasks: TaskGroup) -> None:
        """Run a connection until it is connected. From then on the poller runs it."""
        own = own_cancellation()
        before = 0 if own is None else own.count()
        try:
            await connection.open()
        except anyio.get_cancelled_exc_class():
            cancelled = is_cancelled()
            if not connection.lifetime.over:
                self._end(connection, tasks, cancelled=cancelled)
            if cancelled:
                raise  # else asyncio has cancelled just this task: that ends no other connection
        if own is not None and own.count() != before:  # a handler has cancelled this task
            connection.on_cancelled()
            await pass_over(own, before)

    def _end_without_task(self, connection: Connection) -> None:
        """End a connection that no task runs."""
        tasks = self._tasks
        if tasks is not None and not connection.lifetime.over:
            self._end(connection, tasks, cancelled=tasks.cancel_scope.cancel_called)

    def _end_remaining(self, tasks: TaskGroup) -> None:
        """End the remaining members, after all tasks have ended: a cancellation reaches neither a member that no task
        runs, nor one whose task never began.
        """
        for member in tuple(self._members):
            self._end(member, tasks, cancelled=True)

    def _end(self, member: Member, tasks: TaskGroup, *, cancelled: bool) -> None:
        found = member.lifetime.end_opened(member, cancelled=cancelled)
        self._members.discard(member)
        if isinstance(found, (KeyboardInterrupt, SystemExit)):
            self._leave_by(found, tasks)
        elif found is not None:
            tasks.start_soon(_raise, found)

    async def __aenter__(self) -> MozTCPSocket:
        if self._tasks is not None:
            raise RuntimeError("this MozTCPSocket has been entered already")
        tasks = anyio.create_task_group()
        self._loop = current_loop()
        self._context = copy_context()
        self._waiting = way_to_wait(self._start_poller, lambda: tasks.cancel_scope.cancel())
        self._tasks = await tasks.__aenter__()  # last: once it is entered, nothing may fail before it is left
        return self

    def _start_poller(self, run: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Start the poller's task in the context of the block, not in that of the handler or task that has opened the
        first socket.
        """
        assert self._tasks is not None and self._context is not None
        self._context.copy().run(partial(self._tasks.start_soon, run, name=f"poller of {self!r}"))

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._tasks is not None
        raised_by_body = exc
        try:
            try:
                if is_of_cancellation(exc):
                    raised_by_body = None
            except BaseException as interrupted:  # by Ctrl-C on Trio: the task group has to be left all the same
                raised_by_body = interrupted
            try:
                left = await ended(self._tasks, raised_by_body)
            finally:
                self._end_remaining(self._tasks)
            if raised_by_body is not exc:
                await anyio.lowlevel.checkpoint_if_cancelled()  # raises, unless it was this scope that was cancelled
        except BaseException as raised:
            if self._exit is None:
                raise
            left = raised
        finally:
            self._tasks = self._waiting = self._context = None
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


async def _raise(exc: BaseException) -> None:
    """Raise an exception in a task, so that the task group raises it."""
    try:
        raise exc
    finally:
        del exc  # its traceback refers to this frame
