"""One event at a time: who calls the handlers.

A handler that is a plain function is called by the task that has something to tell, with no task switch, in the
context of its connection. The events of an asynchronous one are left to the dispatcher's task, which is started when it
is first needed: it awaits the handler and delivers what has become due meanwhile. So reading and writing go on beside a
slow handler. What a plain function gives to be awaited, which nobody can foresee, is handed to it too.

The task group for that task, and for others of the connection's own, is opened when there is the first: a connection
whose handlers are functions may live and end without.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from ._events import Event, Listeners, UnfinishedEvent
from ._log import SLOW
from ._raised import is_cancelled, is_cancelled_by_loop, split_exception, stray, without_task
from ._tasks import Signal
from ._turn import flush, turn

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

__all__ = ("Dispatcher", "Source")

EVENTS_PER_PUMP = 2
"""Events that are delivered at once before other tasks, or sockets, have their turn. With each, 128 KiB may be sent,
for which those wait."""


EVENTS_PER_CHECKPOINT = 4
"""The same of data that was queued. It has to be more than the reader queues meanwhile, which goes on doing so while it
finds the dispatcher busy: else a transfer that once had to wait for a handler would be slow to its end.
"""


class Source(Protocol):
    """What the events are of."""

    def next_event(self) -> tuple[Listeners, Event[Any]] | None:
        """The event that is due now, which counts as delivered, and what listens to it; None if there is none."""

    def has_pending_event(self) -> bool:
        """Whether there may be such an event."""

    @property
    def pumps_on_notify(self) -> bool:
        """Whether it calls :meth:`Dispatcher.pump` soon after :meth:`notify`, so that no task is needed for that."""

    def crashed(self, exc: BaseException, where: str, when: str = "") -> None:
        """Called with what a handler, or one of the tasks, has raised."""

    def notify(self) -> None:
        """Have the task look again that runs all this."""

    def was_slow(self, type: str, seconds: float) -> None:
        """Called when a handler of events of a type, which nothing could run beside, has taken so many seconds."""


class Dispatcher:
    """Delivers the events of one source in order, one at a time.

    It refers to the source between :meth:`begin` and :meth:`end` only, so that both are gone when they are over.

    :param listeners: what listens to them, as a rule
    :ivar busy: while a handler runs, or the dispatcher's task has been told to deliver what is due
    :ivar cancelled: whether asynchronous handlers are: functions are called still
    """

    __slots__ = (
        "_context",
        "_has_ended",
        "_listeners",
        "_pending",
        "_request_task",
        "_scope",
        "_scopes",
        "_source",
        "_spawned",
        "_task",
        "_tasks",
        "_unfinished",
        "_wake_signal",
        "busy",
        "cancelled",
    )

    def __init__(self, listeners: Listeners) -> None:
        self._listeners = listeners
        self._source: Source | None = None
        self._request_task: Callable[[], object] | None = (
            None  # starts the task with the task group; None if that has been
        )
        self._tasks: TaskGroup | None = None  # while it is open
        self._pending: list[Callable[[TaskGroup], None]] | None = None  # the tasks that wait for it
        self._spawned = False  # whether there has been one
        self._has_ended = False  # whether none is started any more
        self._scopes: tuple[anyio.CancelScope, ...] = ()  # of its owners
        self._context: Context | None = None  # what functions run in, and tasks begin with
        self._unfinished: UnfinishedEvent | None = None  # of the running handler, for the task to await
        self._wake_signal: Signal | None = None  # made with the task
        self._task: int | None = None
        self._scope: anyio.CancelScope | None = None  # around all that the task does
        self.busy = False
        self.cancelled = False

    # Its life

    def begin(
        self,
        source: Source,
        scopes: tuple[anyio.CancelScope, ...],
        context: Context,
        request_task: Callable[[], object] | None = None,
    ) -> None:
        """
        :param scopes: once one of them is cancelled, no handler runs any more
        :param context: what its functions run in
        :param host: what starts the task that calls :meth:`open_tasks`; None if that is about to
        """
        self._source, self._scopes, self._context, self._request_task = source, scopes, context, request_task

    def open_tasks(self, tasks: TaskGroup) -> None:
        """
        :param tasks: a task group for the source's own
        """
        self._tasks = tasks
        pending, self._pending = self._pending, None
        for start in pending or ():
            start(tasks)

    def end_tasks(self) -> None:
        """Those that wait for more to do."""
        if self._spawned and self._tasks is not None:
            self._tasks.cancel_scope.cancel()
        self._has_ended = True  # none is started any more, while it is waited for these

    def cancel(self) -> None:
        """Cancel all that belongs to the source, itself included."""
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def end(self) -> None:
        self._drop_unfinished()
        self._has_ended = True
        self._source = self._tasks = self._request_task = self._pending = None
        self._scopes = ()

    @property
    def scopes(self) -> tuple[anyio.CancelScope, ...]:
        """The cancel scopes of its owners, while it runs."""
        return self._scopes

    @property
    def is_owner_cancelled(self) -> bool:
        """Whether no handler runs any more."""
        return any(scope.cancel_called for scope in self._scopes)

    @property
    def context(self) -> Context:
        """What its functions run in, while it runs."""
        assert self._context is not None
        return self._context

    @property
    def runs(self) -> bool:
        """Whether tasks can be started."""
        return self._source is not None and not self._has_ended

    @property
    def has_task(self) -> bool:
        """Whether there is a task for its tasks, or soon will be."""
        return self._request_task is None

    def request_task(self) -> None:
        """Have the task for the others started, if it has not been."""
        if self._request_task is not None:
            self._request_task()
            self._request_task = None

    def spawn(self, what: str, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, None]], *args: Unpack[Ts]) -> None:
        """Start a task of the source's own, which ends with it."""
        start = partial(self._start_task, f"{what} of {self._source!r}", what, partial(function, *args))
        if self._tasks is not None:
            start(self._tasks)
            return
        if self._pending is None:
            self._pending = []
        self._pending.append(start)
        self.request_task()

    def _start_task(
        self, name: str, what: str, function: Callable[[], Coroutine[Any, Any, None]], tasks: TaskGroup
    ) -> None:
        assert self._context is not None
        self._context.copy().run(partial(tasks.start_soon, self._guard, what, function, name=name))
        self._spawned = True

    async def _guard(self, what: str, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """The last line of defence: whatever a task raises ends this source in order, and nothing else."""
        source = self._source
        if source is None:
            return  # it was over before this task had begun
        try:
            await function()
        except Exception as exc:
            source.crashed(exc, f"the {what}")
        except BaseException as exc:
            raised, passing = split_exception(exc)
            if raised is not None:
                source.crashed(raised, f"the {what}")
            if passing is None:
                return
            # On asyncio, AnyIO leaves the cancellation that ends a task, with these frames, to the garbage collector.
            del self, source, function, raised
            passing.__traceback__ = None
            if passing is exc:
                raise exc  # not `raise` alone: Python 3.10 gives it its frames back
            raise passing from None

    # Delivering

    def pump(self, *, behind_handler: bool = False) -> None:
        """Deliver what is due, here and now; to be called from a task of the source's own, never by its user.

        :param behind_handler: whether a handler has run just now
        """
        if self.busy or self._source is None:
            return  # what is due will be seen to after the running handler
        self.busy = True
        if self.cancelled:
            self._deliver_without_tasks()
        elif not self._source.has_pending_event():
            self.busy = False
        else:
            self._deliver_some(behind_handler=behind_handler)

    def deliver(self, event: Event[Any]) -> None:
        """Deliver an event before what is due; only while not busy, and if its handlers are functions."""
        self.busy = True
        unfinished = self._deliver(self._listeners, event)
        if unfinished is None:
            self.busy = False
        elif self._source is not None:
            self._start(unfinished)

    def _deliver_some(self, *, behind_handler: bool) -> None:
        source, unfinished = self._source, None
        assert source is not None
        for _ in range(EVENTS_PER_PUMP):
            if unfinished is not None or (self._listeners.async_types and source.has_pending_event()):
                break  # the task takes it, so that an asynchronous handler begins while it is still so
            found = source.next_event()
            if found is None:
                self.busy = False
                return
            if behind_handler and is_cancelled():
                return  # by a handler, before any checkpoint could tell
            behind_handler = True
            unfinished = self._deliver(*found)
            if source.pumps_on_notify and found[1].type == "drain":
                break  # the reader has its turn, which may be in this process: what it reads is in the cache then
        if unfinished is None and source.pumps_on_notify and not self._listeners.async_types:
            self.busy = False
            source.notify()
        else:
            self._start(unfinished)

    def _deliver_without_tasks(self) -> None:
        assert self._source is not None
        while (found := self._source.next_event()) is not None:
            unfinished = self._deliver(*found)
            if unfinished is not None:
                self._call_functions(unfinished)
        self.busy = False

    def _call_functions(self, unfinished: UnfinishedEvent) -> None:
        """Call those that are left of an event's, and await none."""
        try:
            unfinished.drop_and_go_on()
        except BaseException as exc:
            self._handler_raised(without_task(exc), unfinished.event)

    def cancel_handlers(self) -> None:
        """Cancel the asynchronous handler that runs, and begin no other. Functions are called still."""
        self.cancelled = True
        if self._scope is not None:
            self._scope.cancel()
        if self._source is not None:
            self._source.notify()

    def wake(self) -> None:
        """Have what is due delivered soon; may be called from anywhere."""
        source = self._source
        if self.cancelled:
            if source is not None:
                source.notify()
        elif not self.busy and source is not None:
            if source.pumps_on_notify and not self._listeners.async_types:
                source.notify()
            else:
                self._start(None)
                self.busy = True

    def _start(self, unfinished: UnfinishedEvent | None) -> None:
        self._unfinished = unfinished
        if self._wake_signal is None:
            signal = Signal()
            try:
                self.spawn("dispatcher", self._run, signal)
            except BaseException:
                self.cancelled, self.busy = True, False  # asynchronous handlers are out of the question
                self._drop_unfinished()
                raise
            self._wake_signal = signal
        self._wake_signal.set()

    async def _run(self, signal: Signal) -> None:
        self._task = anyio.get_current_task().id
        try:
            with anyio.CancelScope() as self._scope:
                if self.cancelled:  # before this task had begun
                    self._scope.cancel()
                await self._deliver_pending(signal)
        except (Exception, KeyboardInterrupt, SystemExit):  # on Trio, Ctrl-C may be raised here
            self.cancelled = True
            self._leave_rest_to_functions()
            raise
        self._leave_rest_to_functions()

    def _leave_rest_to_functions(self) -> None:
        """What is due is left to them: whoever runs all this looks again."""
        self._drop_unfinished()
        self.busy = False
        if self._source is not None:
            self._source.notify()

    async def _deliver_pending(self, signal: Signal) -> None:
        assert self._source is not None
        source = self._source
        while True:
            await signal.wait()
            await self._await_unfinished()
            delivered = 0
            while (found := source.next_event()) is not None:
                listeners, event = found
                self._unfinished = self._deliver(listeners, event)
                await self._await_unfinished()
                delivered += 1
                if delivered % EVENTS_PER_CHECKPOINT and event.type == "data":
                    await anyio.lowlevel.checkpoint_if_cancelled()
                else:
                    await anyio.lowlevel.checkpoint()
            self.busy = False

    async def _await_unfinished(self) -> None:
        if self._unfinished is not None:
            await anyio.lowlevel.checkpoint_if_cancelled()
            unfinished, self._unfinished = self._unfinished, None
            try:
                await unfinished.finish()
            except Exception as exc:
                self._handler_raised(exc, unfinished.event)
            except BaseException as exc:
                raised, passing = await self._split_exception(exc)
                if raised is not None:
                    self._handler_raised(raised, unfinished.event)
                if passing is exc:
                    raise
                if passing is not None:
                    raise passing from None

    async def _split_exception(self, exc: BaseException) -> tuple[BaseException | None, BaseException | None]:
        """:return: what a handler has raised, and what has to be raised on"""
        if isinstance(exc, anyio.get_cancelled_exc_class()) and not (is_cancelled() or await is_cancelled_by_loop(exc)):
            return stray(exc), None
        if isinstance(exc, GeneratorExit) and self._is_current():  # else it is this task that is being closed
            return exc, None
        return split_exception(exc)

    def _is_current(self) -> bool:
        """Whether the dispatcher's is the current task."""
        try:
            return anyio.get_current_task().id == self._task
        except Exception:  # there is none
            return False

    def _drop_unfinished(self) -> None:
        """Called at the end, when the task may have been cancelled before it began with it."""
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is not None:
            unfinished.drop()

    def _deliver(self, listeners: Listeners, event: Event[Any]) -> UnfinishedEvent | None:
        """Call the handlers of an event, then flush what they wrote. Once the owner is cancelled, none runs any more.

        :return: what must be awaited before the next event, if anything
        """
        for scope in self._scopes:
            if scope.cancel_called:
                return None
        written = turn.written
        if written is None:  # it is a task of the source's own that runs this
            turn.written = []
            try:
                return self._deliver(listeners, event)
            finally:
                turn.written = None
        assert self._context is not None
        try:
            if SLOW is not None:
                return self._context.run(self._call_timed, listeners, event, SLOW)
            return self._context.run(listeners.call, event)
        except BaseException as exc:
            self._handler_raised(without_task(exc), event)
            return None
        finally:
            if written:
                flush(written)

    def _call_timed(self, listeners: Listeners, event: Event[Any], limit: float) -> UnfinishedEvent | None:
        """The same, and tell of it if that holds up the event loop."""
        begun = time.monotonic()
        try:
            return listeners.call(event)
        finally:
            seconds = time.monotonic() - begun
            if seconds > limit and self._source is not None:
                self._source.was_slow(event.type, seconds)

    def _handler_raised(self, exc: BaseException, event: Event[Any]) -> None:
        assert self._source is not None
        self._source.crashed(exc, "a handler", f", on {event.type!r}")

    def is_in_handler(self) -> bool:
        """Whether the current task is running one of the handlers, asynchronously."""
        return self.busy and anyio.get_current_task().id == self._task
