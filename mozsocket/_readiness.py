"""The seam for waiting: how the package learns that a socket can be read or written.

:func:`wait_writable` is for a socket that is connecting, :class:`Watched` for a task that waits by itself, as that of a
stream or a test does, and :class:`Registration` for a :class:`Watcher` that is to be told, as a connection or a
listening socket is. Of the last there are two kinds: :class:`TaskRegistration` has tasks that wait by AnyIO, and works
everywhere; that of :mod:`._poller` has one task for many sockets, where the system has epoll.
"""

from __future__ import annotations

import math
import select
import socket
from collections.abc import Awaitable, Callable, Coroutine
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.lowlevel

from ._eagerness import Eagerness
from ._tasks import Signal

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

__all__ = (
    "ReadResult",
    "Registration",
    "TaskRegistration",
    "Waiting",
    "Watched",
    "Watcher",
    "by_tasks",
    "wait_writable",
)

WATCH_AFTER = 0.1
"""Seconds that nothing is read before a connection is watched for its end: it may be lost meanwhile."""


def wait_writable(sock: socket.socket) -> Awaitable[None]:
    """Wait until a socket that is connecting is connected, or has failed to."""
    return anyio.wait_writable(sock)


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
            return  # as meanwhile there may have been an interrupt()
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


class ReadResult(Enum):
    """What there was to read."""

    NOTHING = 1
    SOME = 2
    MORE = 3
    """And there may be more, which the operating system tells."""
    PENDING = 4
    """And there is more, of which the operating system knows nothing: it is decrypted already, or on the way to it."""


class Watcher(Protocol):
    """What is told of a socket. Its methods are called in a task, one at a time."""

    def on_readable(self) -> ReadResult:
        """There may be something to read."""

    def on_writable(self) -> bool:
        """There may be room for more.

        :return: whether there is not enough
        """

    def on_hung_up(self) -> None:
        """While nothing is to be read: the connection is lost, or both sides have ended it."""

    def on_woken(self) -> bool:
        """After :meth:`Registration.wake`, and by tasks whenever nothing is to be read any more.

        :return: whether the end is watched for while nothing is read
        """

    def on_time(self) -> None:
        """The time that :meth:`Registration.limit` has set is over, or was."""

    def on_stopped(self) -> None:
        """Nobody waits for its socket any more, as the owner was cancelled."""

    def on_cancelled(self) -> None:
        """One of the others, by a handler of the program's, has cancelled the task that called it, which is many's."""

    def crashed(self, exc: BaseException, where: str, when: str = "") -> None:
        """Called with what one of the others has raised."""

    def spawn(self, what: str, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, None]], *args: Unpack[Ts]) -> None:
        """Start a task of the watcher's own."""


class Registration(Protocol):
    """Tells a watcher of a socket, from :meth:`begin` to :meth:`end`."""

    @property
    def reading(self) -> bool:
        """Whether the watcher is told what can be read."""
        ...

    def begin(self, watcher: Watcher) -> None:
        """Begin to tell it."""

    async def run(self) -> None:
        """What takes a task, until the socket is closed; returns at once if nothing does."""

    def read(self, wanted: bool) -> None:
        """Have the watcher told what can be read, or not."""

    def write(self) -> None:
        """Have :meth:`Watcher.on_writable` called soon."""

    def await_room(self) -> None:
        """Have :meth:`Watcher.on_writable` called when there is room, of which there is none."""

    def wake(self) -> None:
        """Have the watcher look again, soon, at what there is to do."""

    def limit(self, deadline: float) -> None:
        """Have :meth:`Watcher.on_time` called.

        :param deadline: when, by the event loop's clock; infinite for never
        """

    def end(self) -> None:
        """Tell nothing more of the socket, which is about to be closed. :meth:`wake` still works."""

    def detach(self) -> None:
        """Refer to the watcher no more: it is over."""


class Waiting(Protocol):
    """A way to wait for the sockets of one owner."""

    @property
    def takes_tasks(self) -> bool:
        """Whether each watcher has to give a task to :meth:`Registration.run`."""
        ...

    def register(self, watched: Watched) -> Registration: ...


class TaskRegistration:
    """Waits by tasks: :meth:`run` is the reader; another is the writer, for what the operating system would not take at
    once.

    :ivar reading: whether the watcher is told what can be read
    """

    __slots__ = (
        "_awaits_room",
        "_begins_anew",
        "_deadline",
        "_is_waiting",
        "_news",
        "_scope",
        "_watched",
        "_watcher",
        "_write_requested",
        "reading",
    )

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._watcher: Watcher | None = None
        self.reading = True
        self._is_waiting = False  # whether the reader waits for something to read
        self._news: anyio.Event | None = None  # what it waits for else
        self._deadline = math.inf
        self._scope: anyio.CancelScope | None = None  # while there is a deadline
        self._begins_anew = False  # whether there is to be one, or none
        self._write_requested: Signal | None = None  # made with the writer
        self._awaits_room = False  # whether that waits for room

    def begin(self, watcher: Watcher) -> None:
        self._watcher = watcher

    def read(self, wanted: bool) -> None:
        if wanted is not self.reading:
            self.reading = wanted
            self.wake()

    def wake(self) -> None:
        if self._news is not None:
            self._news.set()
            self._news = None
        elif self._is_waiting:
            self._watched.interrupt()

    def limit(self, deadline: float) -> None:
        self._deadline = deadline
        if self._scope is not None:
            self._scope.deadline = deadline
        if (self._scope is None) is not (deadline == math.inf):
            self._begins_anew = True
            if self._scope is None:
                self.wake()

    def end(self) -> None:
        self.limit(math.inf)

    def detach(self) -> None:
        self._watcher = None

    async def run(self) -> None:
        watcher = self._watcher
        assert watcher is not None
        while not self._watched.closed:
            self._begins_anew = False
            if self._deadline == math.inf:  # as a rule: a scope takes memory
                await self._read(watcher)
                continue
            with anyio.CancelScope(deadline=self._deadline) as self._scope:
                await self._read(watcher)
            scope, self._scope = self._scope, None
            if scope.cancelled_caught and not self._watched.closed:
                self._deadline = math.inf
                watcher.on_time()

    async def _read(self, watcher: Watcher) -> None:
        watched, eagerness = self._watched, Eagerness()
        while not (watched.closed or self._begins_anew):
            if not self.reading:
                await self._idle(watcher)
                continue
            found = watcher.on_readable()
            if found is not ReadResult.NOTHING:
                eagerness.found()
            if watched.closed or self._begins_anew or not self.reading:
                continue
            if eagerness.should_poll() or found is ReadResult.MORE or found is ReadResult.PENDING:
                await anyio.lowlevel.checkpoint()
            else:
                self._is_waiting = True
                try:
                    await watched.wait_readable()
                except anyio.ClosedResourceError:
                    pass
                finally:
                    self._is_waiting = False

    async def _idle(self, watcher: Watcher) -> None:
        watches_end = watcher.on_woken()
        if self.reading or self._watched.closed:
            return
        self._news = news = anyio.Event()
        if not watches_end:
            await news.wait()
            return
        with anyio.move_on_after(WATCH_AFTER):
            await news.wait()
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, watcher)
            await news.wait()
            tasks.cancel_scope.cancel()

    async def _watch(self, watcher: Watcher) -> None:
        await self._watched.wait_hung_up()
        watcher.on_hung_up()

    def write(self) -> None:
        if self._awaits_room:
            self._watched.interrupt()
        else:
            self.await_room()

    def await_room(self) -> None:
        """The writer tries once more at its next turn, as there may be room by then."""
        if self._watcher is None:
            return
        if self._write_requested is None:
            due = Signal()
            self._watcher.spawn("writer", self._run_writer, due, self._watcher)
            self._write_requested = due
        self._write_requested.set()

    async def _run_writer(self, due: Signal, watcher: Watcher) -> None:
        while not self._watched.closed:
            await due.wait()
            while watcher.on_writable():
                await anyio.lowlevel.checkpoint()  # as for reading: there may be room by then, see Eagerness
                if watcher.on_writable():
                    self._awaits_room = True
                    try:
                        await self._watched.wait_writable()
                    except anyio.ClosedResourceError:
                        return
                    finally:
                        self._awaits_room = False


class _ByTasks:
    """The portable way: each socket is waited for by tasks of its own."""

    takes_tasks = True

    def register(self, watched: Watched) -> Registration:
        return TaskRegistration(watched)


by_tasks: Waiting = _ByTasks()
