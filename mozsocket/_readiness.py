"""The seam for waiting: whatever waits for a socket does so here, by tasks and AnyIO.

:func:`wait_writable` is for a socket that is connecting, :class:`Watched` for who waits in a task of his own, as
a listener, a stream or a test does, and :class:`Registration` for who is to be told, as a connection is.
"""

from __future__ import annotations

import math
import select
import socket
from collections.abc import Awaitable, Callable, Coroutine
from enum import Enum
from typing import Any, Protocol

import anyio
import anyio.lowlevel

from ._eagerness import Eagerness
from ._tasks import Signal

__all__ = ("Found", "Registration", "Watched", "Watcher", "wait_writable")

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


class Found(Enum):
    """What there was to read."""

    NOTHING = 1
    SOME = 2
    MORE = 3
    """And there may be more, without waiting for it."""


class Watcher(Protocol):
    """Who is told. Each of these is called in a task of the watcher's own."""

    def on_readable(self) -> Found:
        """There may be something to read."""

    def on_writable(self) -> bool:
        """There may be room for more.

        :return: whether there is not enough
        """

    def on_hung_up(self) -> None:
        """While nothing is to be read: the connection is lost, or both sides have ended it."""

    def on_woken(self) -> bool:
        """While nothing is to be read: see :meth:`Registration.wake`.

        :return: whether the end is watched for meanwhile
        """

    def on_time(self) -> None:
        """The time that :meth:`Registration.limit` has set is over, or was."""


class Registration:
    """Tells a watcher of a socket, from the connect to the end: :meth:`run` is the reader, and :meth:`run_writer` the
    writer, for what the operating system would not take at once.

    :ivar reading: whether the watcher is told what can be read
    """

    __slots__ = ("_begins_anew", "_deadline", "_is_waiting", "_news", "_scope", "_watched", "_write_due", "reading")

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self.reading = True
        self._is_waiting = False  # whether the reader waits for something to read
        self._news: anyio.Event | None = None  # what it waits for else
        self._deadline = math.inf
        self._scope: anyio.CancelScope | None = None  # while there is a deadline
        self._begins_anew = False  # whether there is to be one, or none
        self._write_due: Signal | None = None  # made with the writer

    def read(self, wanted: bool) -> None:
        """Have the watcher told what can be read, or not."""
        if wanted is not self.reading:
            self.reading = wanted
            self.wake()

    def wake(self) -> None:
        """Have the reader look again at what is wanted."""
        if self._news is not None:
            self._news.set()
            self._news = None
        elif self._is_waiting:
            self._watched.interrupt()

    def limit(self, deadline: float) -> None:
        """Have :meth:`Watcher.on_time` called.

        :param deadline: when, by the event loop's clock; infinite for never
        """
        self._deadline = deadline
        if self._scope is not None:
            self._scope.deadline = deadline
        if (self._scope is None) is not (deadline == math.inf):
            self._begins_anew = True
            if self._scope is None:
                self.wake()

    async def run(self, watcher: Watcher) -> None:
        """The reader: until the socket is closed."""
        while not self._watched.closed:
            self._begins_anew = False
            if self._deadline == math.inf:  # as a rule: a scope takes memory
                await self._read(watcher)
                continue
            with anyio.CancelScope(deadline=self._deadline) as self._scope:
                await self._read(watcher)
            scope, self._scope = self._scope, None
            if scope.cancelled_caught and not self._watched.closed:
                watcher.on_time()

    async def _read(self, watcher: Watcher) -> None:
        watched, eagerness = self._watched, Eagerness()
        while not (watched.closed or self._begins_anew):
            if not self.reading:
                await self._idle(watcher)
                continue
            found = watcher.on_readable()
            if found is not Found.NOTHING:
                eagerness.found()
            if watched.closed or self._begins_anew or not self.reading:
                continue
            if eagerness.look() or found is Found.MORE:
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

    def write(self, spawn: Callable[..., None], watcher: Watcher) -> None:
        """Have the watcher told that something may be sent.

        :param spawn: what starts a task of the watcher's: see :meth:`Dispatcher.spawn`
        """
        if self._write_due is None:
            due = Signal()
            spawn("writer", self._run_writer, due, watcher)
            self._write_due = due
        self._write_due.set()

    async def _run_writer(self, due: Signal, watcher: Watcher) -> None:
        while not self._watched.closed:
            await due.wait()
            while watcher.on_writable():
                await anyio.lowlevel.checkpoint()  # as for reading: there may be room by then, see Eagerness
                if watcher.on_writable():
                    try:
                        await self._watched.wait_writable()
                    except anyio.ClosedResourceError:
                        return
