"""How the package learns that a socket can be read or written: whatever waits for a socket does so by this module.

- :func:`wait_writable` is for a socket that is connecting.
- :class:`Watched` is for a task that waits for a socket itself, such as the caller of a stream.
- :class:`Registration` is for a :class:`Watcher`, a connection or a listening socket, whose methods are called.

There are two kinds of registrations. :class:`TaskRegistration` has tasks that wait by AnyIO, and works everywhere. That
of :mod:`._poller` has one task for all the sockets of an owner, and needs a system with epoll.
"""

from __future__ import annotations

import math
import os
import select
import socket
from collections.abc import Awaitable, Callable, Coroutine
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.lowlevel

from ._eagerness import Eagerness
from ._tasks import Signal
from ._turn import in_turn

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

__all__ = (
    "NOBODY",
    "ReadResult",
    "Reader",
    "Registration",
    "TaskRegistration",
    "Waiting",
    "Watched",
    "Watcher",
    "by_tasks",
    "wait_writable",
)

WATCH_AFTER = 0.1
"""Seconds after which a connection that is not read is watched for its loss: its inbox is full, or its peer has ended.
"""


def wait_writable(sock: socket.socket) -> Awaitable[None]:
    """Wait until a socket that is connecting is connected, or has failed to connect."""
    return anyio.wait_writable(sock)


class Watched:
    """The owner of a socket, by which tasks wait for it; :meth:`close` wakes them and closes the socket.

    :ivar socket: the socket
    :ivar closed: whether :meth:`close` was called
    """

    __slots__ = ("_leaving", "_waiting", "closed", "socket")

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.closed = False
        self._waiting = 0  # how many tasks wait
        self._leaving = 0  # how many of them were woken by interrupt() and have not run yet

    def wait_readable(self) -> Coroutine[Any, Any, None]:
        """Wait until there may be something to read, or :meth:`interrupt` is called.

        :raises anyio.ClosedResourceError: if the socket is closed meanwhile
        """
        return self._wait(anyio.wait_readable)

    def wait_writable(self) -> Coroutine[Any, Any, None]:
        """Wait until something may be sent, or :meth:`interrupt` is called.

        :raises anyio.ClosedResourceError: if the socket is closed meanwhile
        """
        return self._wait(anyio.wait_writable)

    async def _wait(self, wait: Callable[[socket.socket], Awaitable[None]]) -> None:
        if self._leaving:
            await self._wait_for_those_leaving()
            return  # the caller has to check again: that wait is not woken by interrupt()
        self._waiting += 1
        try:
            await wait(self.socket)
        except anyio.ClosedResourceError:
            if self.closed:
                raise
        finally:
            self._waited()

    def interrupt(self) -> None:
        """Wake the tasks that wait, to have them check again what to wait for."""
        if self._waiting and not self.closed:
            self._leaving = self._waiting
            anyio.notify_closing(self.socket)

    async def _wait_for_those_leaving(self) -> None:
        """Wait until the tasks that were woken have run.

        On asyncio a woken task unregisters the descriptor when it runs, and so would stop the wait of any other task
        that has registered it by then.
        """
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

    async def wait_hung_up(self) -> None:
        """Wait until the connection is lost or both sides have ended it: nothing more arrives then.

        Without epoll that cannot be noticed while data is unread: then this waits forever.
        """
        try:
            poll = select.epoll()  # it reports hang-ups and errors in any case, so nothing is asked for
        except (AttributeError, OSError):  # the system has none, or no descriptor for it
            await anyio.sleep_forever()
        with poll:
            poll.register(self.socket, 0)
            await anyio.wait_readable(poll)

    def take_error(self) -> OSError | None:
        """The error by which the connection was lost, if the system has noticed one; it reports that only once."""
        try:
            code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except OSError as exc:  # the program has closed the descriptor itself
            return exc
        return OSError(code, os.strerror(code)) if code else None

    def close(self) -> None:
        """Close the socket, and wake the tasks that wait for it.

        When they run they unregister the descriptor by its number, which must not belong to another socket by then. So
        the last of them closes the socket.
        """
        if not self.closed:
            self.closed = True
            if self._waiting:
                anyio.notify_closing(self.socket)
            else:
                self.socket.close()

    async def wait_closed(self) -> None:
        """Wait, after :meth:`close`, until the tasks that waited for the socket have run, and so it is closed."""
        while self._waiting:
            await anyio.lowlevel.checkpoint()


class ReadResult(Enum):
    """What :meth:`Watcher.on_readable` has read."""

    NOTHING = 1
    SOME = 2
    MORE = 3
    """Data, and there may be more: the operating system reports it."""
    PENDING = 4
    """Data, and there is more that the operating system does not report, as it was read but not decrypted or delivered
    yet."""


class Reader(Protocol):
    """What reads from a socket."""

    def on_readable(self) -> ReadResult:
        """Read: there may be something."""

    def on_cancelled(self) -> None:
        """Notice that a method has run a handler that has cancelled the task, which others share."""

    def crashed(self, exc: BaseException, where: str, when: str = "") -> None:
        """Take an exception that a method has raised."""


class Watcher(Reader, Protocol):
    """What is notified of the events of a socket. Its methods are called in a task, one at a time."""

    def on_writable(self) -> bool:
        """Send: there may be room.

        :return: whether it has to be called again when there is more room
        """

    def on_hung_up(self) -> None:
        """Notice, while it does not read, that the connection is lost or both sides have ended it."""

    def on_woken(self) -> bool:
        """Check what there is to do: :meth:`Registration.wake` was called or, with tasks, reading has stopped.

        :return: whether :meth:`on_hung_up` is wanted while reading is stopped
        """

    def on_time(self) -> None:
        """Check the time limits: the deadline has passed. It may have been changed since."""

    def on_stopped(self) -> None:
        """Notice that nothing waits for the socket any more, as the owner was cancelled."""

    def spawn(self, what: str, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, None]], *args: Unpack[Ts]) -> None:
        """Start a task of the watcher's own."""


class _Nobody:
    """A reader where there is no watcher."""

    def on_readable(self) -> ReadResult:
        return ReadResult.NOTHING

    def on_cancelled(self) -> None: ...
    def crashed(self, exc: BaseException, where: str, when: str = "") -> None: ...


NOBODY: Reader = _Nobody()


class Registration(Protocol):
    """Notifies a watcher of the events of one socket, from :meth:`begin` to :meth:`end`."""

    @property
    def reading(self) -> bool:
        """Whether the reader is notified when the socket can be read."""
        ...

    def begin(self, watcher: Watcher) -> None:
        """Begin to notify a watcher."""

    async def run(self) -> None:
        """Wait in a task of the watcher's until the socket is closed. Return immediately if no task is needed."""

    def read(self, wanted: bool) -> None:
        """Start or stop notifying the reader when the socket can be read."""

    def read_by(self, reader: Reader) -> None:
        """Set what is notified when the socket can be read; at first the watcher is."""

    def write(self) -> None:
        """Have :meth:`Watcher.on_writable` called soon."""

    def await_room(self) -> None:
        """Have :meth:`Watcher.on_writable` called when the socket can be written; now it cannot."""

    def wake(self) -> None:
        """Have :meth:`Watcher.on_woken` called soon."""

    def limit(self, deadline: float) -> None:
        """Have :meth:`Watcher.on_time` called.

        :param deadline: when, by the event loop's clock; infinite for never
        """

    def end(self) -> None:
        """Stop waiting for the socket, which is about to be closed. :meth:`wake` still works."""

    def detach(self) -> None:
        """Drop the reference to the watcher, which is over."""


class Waiting(Protocol):
    """A way to wait for the sockets of one owner."""

    @property
    def takes_tasks(self) -> bool:
        """Whether each watcher has to provide a task for :meth:`Registration.run`."""
        ...

    def register(self, watched: Watched) -> Registration: ...

    def wake(self, watcher: Watcher) -> None:
        """Have :meth:`Watcher.on_woken` called soon, though it has no socket yet: not where it takes tasks."""


class TaskRegistration:
    """A registration that waits by tasks: the reader is :meth:`run`; the writer is started when it is first needed.

    :ivar reading: whether the reader is notified when the socket can be read
    """

    __slots__ = (
        "_awaits_room",
        "_deadline",
        "_is_waiting",
        "_reader",
        "_scope",
        "_wake_up",
        "_watched",
        "_watcher",
        "_write_requested",
        "reading",
    )

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._watcher: Watcher | None = None
        self._reader = NOBODY
        self.reading = True
        self._is_waiting = False  # whether the reader waits until the socket can be read
        self._wake_up: anyio.Event | None = None  # what the reader waits for while reading is stopped
        self._deadline = math.inf
        self._scope: anyio.CancelScope | None = None  # while the reader waits, if there is a deadline
        self._write_requested: Signal | None = None  # wakes the writer; None before it was started
        self._awaits_room = False  # whether the writer waits until the socket can be written

    def begin(self, watcher: Watcher) -> None:
        self._watcher = self._reader = watcher

    def read(self, wanted: bool) -> None:
        if wanted is not self.reading:
            self.reading = wanted
            self.wake()

    def read_by(self, reader: Reader) -> None:
        self._reader = reader

    def wake(self) -> None:
        if self._wake_up is not None:
            self._wake_up.set()
            self._wake_up = None
        elif self._is_waiting:
            self._watched.interrupt()

    def limit(self, deadline: float) -> None:
        self._deadline = deadline
        if self._scope is not None:
            self._scope.deadline = deadline
        elif deadline != math.inf:
            self.wake()  # a wait without a limit has to begin anew

    def end(self) -> None:
        self.limit(math.inf)

    def detach(self) -> None:
        self._watcher, self._reader = None, NOBODY

    async def run(self) -> None:
        watcher, watched, eagerness = self._watcher, self._watched, Eagerness()
        assert watcher is not None
        while not watched.closed:
            if self._deadline != math.inf and self._deadline <= anyio.current_time():
                self._deadline = math.inf
                watcher.on_time()
                continue
            if not self.reading:
                await self._idle(watcher)
                continue
            found = in_turn(self._reader.on_readable)
            if found is not ReadResult.NOTHING:
                eagerness.found()
            if watched.closed or not self.reading:
                continue
            if eagerness.should_poll() or found is ReadResult.MORE or found is ReadResult.PENDING:
                await anyio.lowlevel.checkpoint()
            else:
                await self._in_time(self._until_readable)

    async def _in_time(self, wait: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Wait, until the deadline at most. The function must call no handler: in a scope that the deadline has
        cancelled, it would seem that the owner is cancelled.
        """
        if self._deadline == math.inf:  # the usual case: a scope takes memory
            await wait()
            return
        try:
            with anyio.CancelScope(deadline=self._deadline) as self._scope:
                await wait()
        finally:
            self._scope = None

    async def _until_readable(self) -> None:
        self._is_waiting = True
        try:
            await self._watched.wait_readable()
        except anyio.ClosedResourceError:
            pass
        finally:
            self._is_waiting = False

    async def _idle(self, watcher: Watcher) -> None:
        """Wait until reading is wanted, and notify the watcher of a hang-up before that, if it asks for it."""
        watches_end = watcher.on_woken()
        while not (self.reading or self._watched.closed):
            hung_up = anyio.Event()
            self._wake_up = wake_up = anyio.Event()
            try:
                await self._in_time(partial(self._until_woken, wake_up, hung_up if watches_end else None))
            finally:
                self._wake_up = None
            if not hung_up.is_set():
                return
            watches_end = False
            watcher.on_hung_up()

    async def _until_woken(self, wake_up: anyio.Event, hung_up: anyio.Event | None) -> None:
        """Wait until either event is set.

        :param hung_up: set when the peer has hung up; None if that is not to be watched
        """
        if hung_up is None:
            await wake_up.wait()
            return
        with anyio.move_on_after(WATCH_AFTER):
            await wake_up.wait()
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, hung_up, wake_up)
            await wake_up.wait()
            tasks.cancel_scope.cancel()

    async def _watch(self, hung_up: anyio.Event, wake_up: anyio.Event) -> None:
        if not self._watched.closed:  # in the turn in which this task was started
            await self._watched.wait_hung_up()
            hung_up.set()
            wake_up.set()

    def write(self) -> None:
        if self._awaits_room:
            self._watched.interrupt()
        else:
            self.await_room()

    def await_room(self) -> None:
        """Wake the writer, which tries again before it waits: there may be room by then."""
        if self._watcher is None:
            return
        if self._write_requested is None:
            requested = Signal()
            self._watcher.spawn("writer", self._run_writer, requested, self._watcher)
            self._write_requested = requested
        self._write_requested.set()

    async def _run_writer(self, requested: Signal, watcher: Watcher) -> None:
        while not self._watched.closed:
            await requested.wait()
            while watcher.on_writable():
                await anyio.lowlevel.checkpoint()  # as in Eagerness: there may be room after one turn of the event loop
                if watcher.on_writable():
                    self._awaits_room = True
                    try:
                        await self._watched.wait_writable()
                    except anyio.ClosedResourceError:
                        return
                    finally:
                        self._awaits_room = False


class _ByTasks:
    """The portable way to wait: each socket has tasks of its own."""

    takes_tasks = True

    def register(self, watched: Watched) -> Registration:
        return TaskRegistration(watched)

    def wake(self, watcher: Watcher) -> None:
        raise AssertionError("it has a task to wait in")


by_tasks: Waiting = _ByTasks()
