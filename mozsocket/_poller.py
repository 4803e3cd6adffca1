"""One task that waits for all the sockets of an owner, by epoll: each is registered once.

AnyIO's ``wait_readable()`` registers a descriptor with the event loop at each wait, and wakes one task for one socket.
Here each owner has an epoll, in which all its sockets are registered, and one task. The task awaits the descriptor of
the epoll, then calls the watcher (a connection, a listening socket) of each socket that is ready. That works on every
event loop. A message costs no task switch, and under load one wake-up serves many sockets.

The watchers may take long, so the task lets others run after a limited amount of work (:data:`WORK_PER_TURN`). It need
not remember the sockets that it did not get to: the epoll reports a socket again as long as it is ready.

:mod:`._readiness` defines what a watcher and a registration are, and waits by tasks where the system has no epoll.
"""

from __future__ import annotations

import errno
import math
import os
import select
from collections.abc import Callable, Coroutine
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from ._eagerness import Eagerness
from ._raised import own_cancellation, pass_over, without_task
from ._readiness import NOBODY, Reader, ReadResult, Registration, Waiting, Watched, Watcher, by_tasks
from ._turn import flush, in_turn, turn

__all__ = ("Poller", "way_to_wait")

T = TypeVar("T")

VARIABLE = "MOZSOCKET_WAITING"
"""The environment variable that chooses how to wait for sockets, for debugging: ``epoll`` or ``tasks``."""

WORK_PER_TURN = 128
"""How many calls of watchers are made before other tasks run. A call with one message takes some microseconds."""

WORK_OF_LARGE_READ = WORK_PER_TURN // 2
"""How many more calls a read of the largest size counts as: it takes some tens of microseconds."""

BATCH = 64
"""The most sockets that the epoll reports at once, and the most requests met at once. Those left for a later batch may
be closed by then.
"""

_MAX_STALE_TIMERS = 64
"""How many stale timers are always kept. Beyond that, they are dropped when they are more than half of all timers."""

# Looked up once: these are used for each message.
_IN: int = getattr(select, "EPOLLIN", 0)
_OUT: int = getattr(select, "EPOLLOUT", 0)
_ENDED: int = getattr(select, "EPOLLHUP", 0) | getattr(select, "EPOLLERR", 0)
_IN_OR_ENDED = _IN | _ENDED
_OUT_OR_ENDED = _OUT | _ENDED
_ONLY_ONCE: int = getattr(select, "EPOLLET", 0)  # for hang-ups and errors alone, which epoll reports in any case
_NOTHING = ReadResult.NOTHING
_MORE = ReadResult.MORE
_PENDING = ReadResult.PENDING


class Polled:
    """The :class:`Registration` of one socket with a poller.

    :ivar fd: the descriptor of the socket
    :ivar watcher: what is notified of its events; None before :meth:`begin` and after :meth:`detach`
    :ivar reader: what is notified when the socket can be read: the watcher, unless that has set something else
    :ivar reading: whether it is notified when the socket can be read
    :ivar writing: whether the watcher is notified when the socket can be written
    :ivar deadline: when the watcher's time limit is over, by the event loop's clock; infinite if it has none
    :ivar is_queued: whether the poller is going to call :meth:`handle_requests`
    :ivar timed_at: the time of its timer in the poller; infinite if it has none
    """

    __slots__ = (
        "_mask",
        "_poller",
        "_wake_requested",
        "_write_requested",
        "deadline",
        "fd",
        "is_queued",
        "reader",
        "reading",
        "timed_at",
        "watcher",
        "writing",
    )

    def __init__(self, fd: int, poller: Poller) -> None:
        self._poller = poller
        self._mask: int | None = None  # the event mask in the epoll; None while the socket is not registered there
        self.fd = fd
        self.watcher: Watcher | None = None
        self.reader = NOBODY
        self.reading = True
        self.writing = False
        self.deadline = self.timed_at = math.inf
        self.is_queued = self._wake_requested = self._write_requested = False

    def begin(self, watcher: Watcher) -> None:
        self.watcher = self.reader = watcher
        self._mask = self._wanted
        self._poller.add(self, self._mask)

    async def run(self) -> None:
        """Do nothing: the task of the poller serves all sockets."""

    @property
    def _wanted(self) -> int:
        """The event mask that the epoll should have."""
        return (_IN if self.reading else 0) | (_OUT if self.writing else 0) or _ONLY_ONCE

    def read(self, wanted: bool) -> None:
        if wanted is not self.reading:
            self.reading = wanted
            self._poller.change(self)
            self._poller.note_reader(self)

    def read_by(self, reader: Reader) -> None:
        self.reader = reader
        self._poller.note_reader(self)

    def await_room(self) -> None:
        if not self.writing:
            self.writing = True
            self._poller.change(self)

    def has_room(self) -> None:
        """Stop waiting for room: there is enough."""
        if self.writing:
            self.writing = False
            self._poller.change(self)

    def register_in(self, epoll: select.epoll) -> None:
        """Register the socket in another epoll."""
        assert self._mask is not None
        try:
            epoll.register(self.fd, self._mask)
        except OSError as exc:
            if exc.errno in (errno.ENOMEM, errno.ENOSPC):
                raise
            self.wake()  # the program has closed the descriptor, so reading from it raises an error

    def apply(self, epoll: select.epoll) -> None:
        """Give the epoll the event mask that is wanted now."""
        wanted = self._wanted
        if self._mask is not None and wanted != self._mask:
            self._mask = wanted
            try:
                epoll.modify(self.fd, wanted)
            except OSError:  # the program has closed the descriptor, so reading from it raises an error
                self.wake()

    def handle_other_events(self, mask: int) -> ReadResult:
        """Notify the watcher of what the epoll has reported. The poller itself handles the usual case: data alone."""
        found, watcher = _NOTHING, self.watcher
        assert watcher is not None  # a watcher is detached only after its socket was unregistered
        if self.reading:
            if mask & _IN_OR_ENDED:
                found = self.reader.on_readable()
        elif mask & _ENDED:  # mere data is ignored: reading was stopped after this report
            watcher.on_hung_up()
        if mask & _OUT_OR_ENDED and self.writing:
            if not watcher.on_writable():
                self.has_room()
            elif found is _NOTHING:
                found = _MORE  # as much as the kernel has taken, or as is sent at once
        return found

    def handle_requests(self) -> ReadResult:
        """Make the calls that :meth:`write` and :meth:`wake` have asked for."""
        watcher = self.watcher
        assert watcher is not None
        if self._write_requested:
            self._write_requested = False
            if watcher.on_writable():
                self.await_room()
        if self._wake_requested:
            self._wake_requested = False
            watcher.on_woken()
            found = self.reader.on_readable() if self.reading else _NOTHING
            # If it has more to do, that is likely to take as long as this.
            return _MORE if self._wake_requested and found is not _PENDING else found
        return _NOTHING

    def write(self) -> None:
        self._write_requested = True
        self._poller.queue(self)

    def wake(self) -> None:
        self._wake_requested = True
        self._poller.queue(self)

    def limit(self, deadline: float) -> None:
        self.deadline = deadline
        if deadline < self.timed_at:
            self._poller.time(self)

    def end(self) -> None:
        self.deadline = math.inf
        self.reading = self.writing = self._write_requested = False
        if self._mask is not None:
            self._mask = None
            self._poller.remove(self)

    def detach(self) -> None:
        self.watcher, self.reader = None, NOBODY


class Poller:
    """Waits for the sockets of one owner, in one task. The task runs as long as there are sockets.

    :param start: starts a task of the owner
    :param fail: called if the poller fails, or if its task alone is cancelled: nothing waits for the sockets any more
    """

    __slots__ = (
        "_cancelled",
        "_changed",
        "_count",
        "_dead_timers",
        "_epoll",
        "_fail",
        "_has_failed",
        "_is_handling",
        "_is_retired",
        "_queued",
        "_readers",
        "_registrations",
        "_runs",
        "_skipped",
        "_start",
        "_timers",
        "_waits",
    )

    takes_tasks = False
    """No watcher needs a task of its own: that of the poller serves all."""

    def __init__(
        self, start: Callable[[Callable[[], Coroutine[Any, Any, None]]], object], fail: Callable[[], object]
    ) -> None:
        self._start = start
        self._fail = fail
        self._epoll: select.epoll | None = None  # made for the first socket, closed when the task ends
        self._registrations: dict[int, Polled] = {}  # by descriptor
        # The readers of the sockets that are read, by descriptor. It is a list of its own, as with thousands of
        # connections a message takes longer for each object that is not in the processor's cache.
        self._readers: list[Reader | None] = []
        self._queued: list[Polled] = []  # those that have asked for a call, whatever the epoll reports
        self._changed: list[Polled] = []  # those with a new event mask, for the epoll to get after this batch
        self._skipped: set[int] = set()  # the descriptors whose reports in this batch are ignored
        self._timers: list[tuple[float, int, Polled]] = []  # a heap; after a postponed deadline it is set again
        self._dead_timers = 0  # the number of stale timers in the heap
        self._count = count()  # orders timers of the same time
        self._runs = False  # whether the task has been started
        self._has_failed = False  # whether the task has failed: it is never started again, as its owner ends
        self._is_retired = False  # whether the epoll is to be replaced
        self._is_handling = False  # whether watchers are being called now
        self._waits = False  # whether the task awaits the epoll, and so has to be woken
        self._cancelled: Callable[[], int] | None = None  # counts the task's cancellations; None if not on asyncio

    # Called by the registrations

    def register(self, watched: Watched) -> Registration:
        return Polled(watched.socket.fileno(), self)

    def wake(self, watcher: Watcher) -> None:
        polled = Polled(-1, self)
        polled.watcher = watcher
        polled.reading = False
        polled.wake()

    def add(self, polled: Polled, mask: int) -> None:
        if self._epoll is None:
            self._epoll = select.epoll()
        self._epoll.register(polled.fd, mask)
        displaced = self._registrations.get(polled.fd)
        if displaced is not None:  # the program has closed its descriptor, so reading from it raises an error
            displaced.wake()
        self._registrations[polled.fd] = polled
        if polled.fd >= len(self._readers):
            self._readers.extend([None] * (polled.fd + 1 - len(self._readers)))
        self.note_reader(polled)
        if not self._runs:
            self._start_task()

    def note_reader(self, polled: Polled) -> None:
        """Note what is notified, if anything is, when the socket can be read."""
        if self._registrations.get(polled.fd) is polled:
            self._readers[polled.fd] = polled.reader if polled.reading else None

    def change(self, polled: Polled) -> None:
        """Have the epoll get another event mask, now or after the current batch."""
        if self._is_handling:
            self._changed.append(polled)  # it may change again, or end, before the epoll is polled
        elif self._epoll is not None:
            polled.apply(self._epoll)

    def queue(self, polled: Polled) -> None:
        """Have :meth:`Polled.handle_requests` called soon."""
        if not (polled.is_queued or self._has_failed):
            polled.is_queued = True
            self._queued.append(polled)
            if not self._runs:
                self._start_task()
            self._wake()

    def time(self, polled: Polled) -> None:
        """Set a timer for a deadline that is earlier than the socket's timer so far."""
        if polled.timed_at != math.inf:
            self._dead_timers += 1
        polled.timed_at = polled.deadline
        heappush(self._timers, (polled.deadline, next(self._count), polled))
        if self._timers[0][2] is polled:
            self._wake()

    def remove(self, polled: Polled) -> None:
        """Unregister a socket that is about to be closed.

        To close it is not enough: a forked child may have the descriptor too, and the epoll would go on reporting it.
        """
        if self._epoll is not None and not self._unregister(polled, self._epoll):
            self._retire_epoll()
        if self._is_handling:
            self._skipped.add(polled.fd)  # another socket may get this number before the batch is over
        if polled.timed_at != math.inf:
            self._forget_timer(polled)

    def _unregister(self, polled: Polled, epoll: select.epoll) -> bool:
        """Have the epoll report a socket no more.

        :return: False if that cannot be done, as the program has closed the descriptor itself
        """
        if self._registrations.get(polled.fd) is not polled:
            return False  # another socket has its number
        del self._registrations[polled.fd]
        self._readers[polled.fd] = None
        try:
            epoll.unregister(polled.fd)
        except OSError:
            return False
        return True

    def _retire_epoll(self) -> None:
        """Have the epoll replaced soon, as the program has closed a descriptor itself.

        While a forked child or a duplicate keeps the file open, the epoll goes on reporting it, under the old number.
        It cannot be unregistered: that number is free by now, or means another socket.
        """
        self._is_retired = True
        self._wake()

    def _replace_epoll(self) -> None:
        assert self._epoll is not None
        self._epoll.close()  # first, as there may be no other descriptor left
        self._epoll = select.epoll()
        for polled in self._registrations.values():
            polled.register_in(self._epoll)

    def _forget_timer(self, polled: Polled) -> None:
        polled.timed_at = math.inf
        self._dead_timers += 1
        if self._dead_timers == len(self._timers):  # with no timer at all, a turn need not look at the clock
            self._timers.clear()
            self._dead_timers = 0
        elif self._dead_timers > _MAX_STALE_TIMERS and 2 * self._dead_timers > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2].timed_at == entry[0]]
            heapify(self._timers)
            self._dead_timers = 0

    # The task

    def _start_task(self) -> None:
        self._runs = True
        try:
            self._start(self._run)
        except BaseException:
            self._runs = False
            raise

    def _wake(self) -> None:
        if self._waits:
            self._waits = False
            assert self._epoll is not None
            anyio.notify_closing(self._epoll)

    async def _run(self) -> None:
        try:
            await self._poll()
        except BaseException:
            self._has_failed = True
            self._fail()
            raise
        finally:
            self._runs = self._waits = self._is_handling = self._is_retired = False
            left = {*self._registrations.values(), *self._queued}
            for each in (self._registrations, self._readers, self._queued, self._changed, self._timers):
                each.clear()
            self._dead_timers = 0
            epoll, self._epoll = self._epoll, None
            if epoll is not None:
                epoll.close()
            for polled in left:
                if polled.watcher is not None:
                    polled.watcher.on_stopped()

    async def _poll(self) -> None:
        eagerness, own = Eagerness(), own_cancellation()
        self._cancelled = None if own is None else own.count
        while self._registrations or self._queued:
            before = 0 if own is None else own.count()
            if self._is_retired:
                self._is_retired = False
                self._replace_epoll()
            was_busy = in_turn(self._handle_all)
            if own is not None and own.count() != before:
                await pass_over(own, before)  # a handler has cancelled this task, which closes its connection only
            elif was_busy:
                eagerness.found()
                await anyio.lowlevel.checkpoint()
            elif eagerness.should_poll():
                await anyio.lowlevel.checkpoint()
            elif self._epoll is not None:
                await self._wait(self._epoll)

    async def _wait(self, epoll: select.epoll) -> None:
        self._waits = True
        try:
            if self._timers:
                with anyio.CancelScope(deadline=self._timers[0][0]):
                    await anyio.wait_readable(epoll)
            else:
                await anyio.wait_readable(epoll)
        except anyio.ClosedResourceError:
            pass  # woken by _wake()
        finally:
            self._waits = False

    def _handle_all(self) -> bool:
        """Call the watchers that have something to do, up to the amount of work for one turn.

        :return: whether there were any
        """
        work = WORK_PER_TURN
        self._is_handling = True
        self._skipped.clear()
        try:
            if self._timers:
                work -= self._handle_timers()
            while work > 0:
                queued = self._queued
                if queued:
                    queued, self._queued = queued[:BATCH], queued[BATCH:]
                    work -= self._handle_queued(queued)
                found = self._epoll.poll(0, BATCH) if self._epoll is not None else None
                if found:
                    work -= self._handle_ready(found)
                elif not queued:
                    break
                if self._changed:
                    self._apply_changes()
        finally:
            self._is_handling = False
            self._apply_changes()
        return work < WORK_PER_TURN

    def _handle_ready(self, found: list[tuple[int, int]]) -> int:
        """Call the watchers of the sockets that the epoll has reported.

        :return: how much work that was
        """
        work = len(found)
        readers, skipped, cancelled, written = self._readers, self._skipped, self._cancelled, turn.written
        before = 0 if cancelled is None else cancelled()
        for fd, mask in found:
            if skipped and fd in skipped:
                continue
            reader = readers[fd]
            if mask != _IN or reader is None:
                work += self._handle_other_events(fd, mask)
                before = 0 if cancelled is None else cancelled()
                continue
            try:
                result = reader.on_readable()
            except BaseException as exc:
                reader.crashed(without_task(exc), "the poller")
            else:
                if result is _MORE or result is _PENDING:
                    work += _work_of_large_read(self._registrations.get(fd), result)
            if written:
                flush(written)
            if cancelled is not None and cancelled() != before:
                before = cancelled()
                reader.on_cancelled()
        skipped.clear()
        return work

    def _handle_other_events(self, fd: int, mask: int) -> int:
        """Call the watcher of a socket of which the epoll has reported more than data, or data that nobody reads.

        :return: how much more work that was than usual
        """
        polled = self._registrations.get(fd)
        if polled is None:
            return 0  # the epoll is about to be replaced
        assert polled.watcher is not None  # a watcher is detached only after its socket was unregistered
        result = self._call(polled.watcher, partial(polled.handle_other_events, mask))
        return _work_of_large_read(polled, result)

    def _handle_queued(self, queued: list[Polled]) -> int:
        """Call the watchers that have asked for it. A large read makes the next batch skip that socket.

        :return: how much work that was
        """
        work = len(queued)
        had_much = set()
        for polled in queued:
            polled.is_queued = False
            result = None if polled.watcher is None else self._call(polled.watcher, polled.handle_requests)
            if result is _MORE or result is _PENDING:
                work += _work_of_large_read(polled, result)
                had_much.add(polled.fd)
        self._skipped = had_much
        return work

    def _handle_timers(self) -> int:
        """Call the watchers whose deadline has passed.

        :return: how many there were
        """
        over, now = 0, anyio.current_time()
        while self._timers and self._timers[0][0] <= now:
            at, _, polled = heappop(self._timers)
            if at != polled.timed_at:
                self._dead_timers -= 1
                continue
            polled.timed_at = math.inf
            if polled.deadline > now:
                if polled.deadline != math.inf:
                    self.time(polled)
                continue
            over += 1
            polled.deadline = math.inf
            if polled.watcher is not None:
                self._call(polled.watcher, polled.watcher.on_time)
        return over

    def _call(self, watcher: Watcher, function: Callable[[], T]) -> T | None:
        """Call a function of a watcher, and send what handlers have written. What it raises, or cancels, concerns that
        watcher alone.
        """
        cancelled = self._cancelled
        before = 0 if cancelled is None else cancelled()
        try:
            return function()
        except BaseException as exc:
            watcher.crashed(without_task(exc), "the poller")
            return None
        finally:
            if turn.written:
                flush(turn.written)
            if cancelled is not None and cancelled() != before:
                watcher.on_cancelled()

    def _apply_changes(self) -> None:
        changed, self._changed = self._changed, []
        for polled in changed:
            if self._epoll is not None:
                polled.apply(self._epoll)


def _work_of_large_read(polled: Polled | None, result: ReadResult | None) -> int:
    """How much more work a read counts as, if it was large. Data that the epoll does not know of is left for the next
    turn.

    :param polled: the socket; None if it is closed meanwhile
    """
    if result is _PENDING:
        if polled is not None:
            polled.wake()
        return WORK_PER_TURN
    return WORK_OF_LARGE_READ if result is _MORE else 0


def way_to_wait(
    start: Callable[[Callable[[], Coroutine[Any, Any, None]]], object], fail: Callable[[], object]
) -> Waiting:
    """The way to wait for the sockets of an owner: a poller where the system has epoll, else tasks.

    :param start: as for :class:`Poller`
    :param fail: likewise
    :raises ValueError: if :data:`VARIABLE` has another value, or asks for epoll and the system has none
    """
    chosen = os.environ.get(VARIABLE) or ("epoll" if hasattr(select, "epoll") else "tasks")
    if chosen == "epoll" and hasattr(select, "epoll"):
        return Poller(start, fail)
    if chosen == "tasks":
        return by_tasks
    raise ValueError(f"{VARIABLE} is {chosen!r}: it must be epoll, where the system has that, or tasks")
