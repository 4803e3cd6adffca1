"""Calls the handlers of one socket or server, one event after the other.

A handler that is a plain function is called directly by the task in which the event arises, such as the poller's, with
no task switch, in the context of its connection. The events of an asynchronous handler are left to the dispatcher's
task, which is started when it is first needed: it awaits the handler, then delivers the events that have become pending
meanwhile. So reading and writing continue beside a slow handler. If a plain function returns an awaitable, which cannot
be known before, the task awaits it too.

The task group for that task, and for other tasks of the connection, is opened when the first of them is started: a
connection whose handlers are all functions may live and end without it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from ._events import Event, Listeners, UnfinishedEvent, is_to_be_awaited
from ._log import SLOW
from ._raised import is_cancelled, is_cancelled_by_loop, split_exception, stray, without_task
from ._tasks import Signal
from ._turn import flush, in_turn, turn

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

__all__ = ("Dispatcher", "Source")

Call: TypeAlias = Callable[[Event[Any]], UnfinishedEvent | None]
"""Calls handlers of an event, and returns it if one of them has to be awaited."""

EVENTS_PER_PUMP = 2
"""Events delivered by one call of :meth:`Dispatcher.pump`, before other tasks and sockets have their turn. The handler
of each may send 128 KiB, for which the others wait."""


EVENTS_PER_CHECKPOINT = 4
"""Data events that the dispatcher's task delivers before other tasks have their turn. While it is busy, the
reader queues what it reads. So it has to deliver more per turn than the reader queues; otherwise the queue would never
become empty again after one wait for a handler.
"""


class Source(Protocol):
    """The connection or acceptor whose events are delivered."""

    def next_event(self) -> tuple[Listeners, Event[Any]] | None:
        """Take the pending event, which then counts as delivered, with its listeners; None if no event is pending."""

    def has_pending_event(self) -> bool:
        """Whether an event may be pending."""

    @property
    def pumps_on_notify(self) -> bool:
        """Whether it calls :meth:`Dispatcher.pump` soon after :meth:`notify`, so that no task is needed for that."""

    def crashed(self, exc: BaseException, where: str, when: str = "") -> None:
        """Called with an exception that a handler, or a task of the source, has raised.

        :param where: what has raised it, in words
        :param when: on which event, in words
        """

    def leave_fast_path(self) -> None:
        """Deliver no event other than by the dispatcher: its task is about to deliver some."""

    def on_cancelled(self) -> None:
        """Close: a handler, which ran in a task of the source, has cancelled that very task."""

    def notify(self) -> None:
        """Wake the task that runs the source, to check again what there is to do."""

    def was_slow(self, type: str, seconds: float) -> None:
        """Called when a handler has held up the event loop.

        :param type: the type of the event
        :param seconds: for how long
        """


class Dispatcher:
    """Delivers the events of one source in order, one at a time.

    It refers to the source only between :meth:`begin` and :meth:`end`, so that no circle of references is left for the
    garbage collector.

    :param listeners: the listeners of the source; :meth:`Source.next_event` may give others, such as a server's
    :ivar busy: whether a handler runs, or the dispatcher's task was woken to deliver pending events
    :ivar cancelled: whether asynchronous handlers are cancelled; functions are still called
    """

    __slots__ = (
        "_context",
        "_has_ended",
        "_listeners",
        "_owner",
        "_pending",
        "_request_task",
        "_scope",
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
        # Starts the task that opens the task group; None once that was started.
        self._request_task: Callable[[], object] | None = None
        self._tasks: TaskGroup | None = None  # the task group; None while it is not open
        self._pending: list[Callable[[TaskGroup], None]] | None = None  # starts the tasks that wait for the task group
        self._spawned = False  # whether a task has been started
        self._has_ended = False  # whether no more tasks are started
        self._owner: anyio.CancelScope | None = None  # the cancel scope of its owner, while it runs
        self._context: Context | None = None  # the context of functions, copied for each task
        self._unfinished: UnfinishedEvent | None = None  # the event that the task has to finish
        self._wake_signal: Signal | None = None  # wakes the dispatcher's task; made with it
        self._task: int | None = None  # the identifier of the dispatcher's task
        self._scope: anyio.CancelScope | None = None  # the cancel scope of all that the task does
        self.busy = False
        self.cancelled = False

    # Beginning and ending

    def begin(
        self,
        source: Source,
        owner: anyio.CancelScope,
        context: Context,
        request_task: Callable[[], object] | None = None,
    ) -> None:
        """Begin to deliver the events of a source.

        :param source: the connection or acceptor
        :param owner: the cancel scope of its owner: once that is cancelled, no handler runs any more
        :param context: the context that functions run in
        :param request_task: starts the task that calls :meth:`open_tasks`; None if the caller is that task
        """
        self._source, self._owner, self._context, self._request_task = source, owner, context, request_task

    def open_tasks(self, tasks: TaskGroup) -> None:
        """Use a task group for the source's own tasks, and start those that wait for it.

        :param tasks: the task group
        """
        self._tasks = tasks
        pending, self._pending = self._pending, None
        for start in pending or ():
            start(tasks)

    def end_tasks(self) -> None:
        """Cancel the source's own tasks, which wait for more to do."""
        if self._spawned and self._tasks is not None:
            self._tasks.cancel_scope.cancel()
        self._has_ended = True  # no task is started any more while the task group waits for these

    def cancel(self) -> None:
        """Cancel all tasks of the source, with the one that runs it."""
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def end(self) -> None:
        """Deliver nothing more, and drop the references to the source and its owner."""
        self._drop_unfinished()
        self._has_ended = True
        self._source = self._owner = self._tasks = self._request_task = self._pending = None

    @property
    def owner(self) -> anyio.CancelScope | None:
        """The cancel scope of its owner; None before :meth:`begin` and after :meth:`end`."""
        return self._owner

    @property
    def is_owner_cancelled(self) -> bool:
        """Whether the owner is cancelled, so that no handler runs any more."""
        return self._owner is not None and self._owner.cancel_called

    @property
    def context(self) -> Context:
        """The context that functions run in; known from :meth:`begin` on."""
        assert self._context is not None
        return self._context

    @property
    def runs(self) -> bool:
        """Whether tasks can be started."""
        return self._source is not None and not self._has_ended

    @property
    def has_task(self) -> bool:
        """Whether the task that opens the task group runs, or is being started."""
        return self._request_task is None

    def request_task(self) -> None:
        """Start the task that opens the task group, if it was not started yet."""
        if self._request_task is not None:
            self._request_task()
            self._request_task = None

    def spawn(self, what: str, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, None]], *args: Unpack[Ts]) -> None:
        """Start a task of the source's own, which ends with the source.

        :param what: the name of the task, in words
        :param function: the function that the task runs
        :param args: the arguments of that function
        """
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
        """Run a task, and report whatever it raises to the source, which then closes. Only a cancellation passes, so
        that no other connection is affected.
        """
        source = self._source
        if source is None:
            return  # the source had ended before this task began
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
            if isinstance(passing, anyio.get_cancelled_exc_class()) and not is_cancelled():
                source.on_cancelled()  # asyncio has cancelled just this task, as a handler that it runs may do
                return
            # On asyncio, AnyIO leaves the cancellation that ends a task, with these frames, to the garbage collector.
            del self, source, function, raised
            passing.__traceback__ = None
            if passing is exc:
                raise exc  # `raise` alone would restore the traceback on Python 3.10
            raise passing from None

    # Delivering

    def pump(self, *, behind_handler: bool = False) -> None:
        """Deliver pending events. Only the poller and the source's own tasks may call this, no task of the program.

        :param behind_handler: whether a handler has just run
        """
        if self.busy or self._source is None:
            return  # the pending events are delivered after the running handler
        self.busy = True
        if self.cancelled:
            self._deliver_without_tasks()
        elif not self._source.has_pending_event():
            self.busy = False
        else:
            self._deliver_some(behind_handler=behind_handler)

    def finish(self, result: object, event: Event[Any]) -> None:
        """Finish an event that the fast path has delivered to a function: if its result is an awaitable, the task
        awaits that.
        """
        try:
            if not is_to_be_awaited(result):
                return
        except BaseException as exc:  # as a proxy without an object raises
            self.handler_raised(without_task(exc), event)
            return
        if self._source is not None:
            self.busy = True
            self._start(UnfinishedEvent(result, event, iter(())))

    def deliver(self, event: Event[Any]) -> None:
        """Deliver an event before all that are pending. Only while not busy, and if its handlers are functions."""
        self.busy = True
        unfinished = self._deliver(self._listeners.call, event)
        if unfinished is None:
            self.busy = False
        elif self._source is not None:
            self._start(unfinished)

    def _deliver_some(self, *, behind_handler: bool) -> None:
        """Deliver up to :data:`EVENTS_PER_PUMP` events, then have the others delivered soon."""
        source, unfinished, delivered = self._source, None, 0
        assert source is not None
        while delivered < EVENTS_PER_PUMP or not source.has_pending_event():
            if unfinished is not None or (self._listeners.async_types and source.has_pending_event()):
                break  # the task takes the event itself: by the time it runs, another may be pending
            found = source.next_event()
            if found is None:
                self.busy = False
                return
            if behind_handler and is_cancelled():
                return  # a handler has cancelled the owner, and no checkpoint has come since
            behind_handler = True
            listeners, event = found
            unfinished = self._deliver(listeners.call, event)
            delivered += 1
            if source.pumps_on_notify and event.type == "drain":
                break  # the peer may be in this process: it reads what was sent while that is in the processor's cache
        if unfinished is None and source.pumps_on_notify and not self._listeners.async_types:
            self.busy = False
            source.notify()
        else:
            self._start(unfinished)

    def _deliver_without_tasks(self) -> None:
        assert self._source is not None
        while (found := self._source.next_event()) is not None:
            listeners, event = found
            unfinished = self._deliver(listeners.call, event)
            if unfinished is not None:
                self._abandon(unfinished)
        self.busy = False

    def _abandon(self, unfinished: UnfinishedEvent) -> None:
        """Call the remaining handlers of an event, and await none of them."""
        try:
            unfinished.drop()
        except BaseException as exc:  # a coroutine may refuse to be closed
            self.handler_raised(without_task(exc), unfinished.event)
        else:
            self._deliver(unfinished.call_remaining, unfinished.event)

    def cancel_handlers(self) -> None:
        """Cancel the running asynchronous handler, and begin no other. Functions are still called."""
        self.cancelled = True
        if self._scope is not None:
            self._scope.cancel()
        if self._source is not None:
            self._source.notify()

    def wake(self) -> None:
        """Have pending events delivered soon. Unlike :meth:`pump`, this may be called in any task of the program."""
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
        """Wake the dispatcher's task, or start it.

        :param unfinished: an event that it has to finish before it delivers others
        """
        if self._source is not None:
            self._source.leave_fast_path()
        self._unfinished = unfinished
        if self._wake_signal is None:
            signal = Signal()
            try:
                self.spawn("dispatcher", self._run, signal)
            except BaseException:
                self.cancelled, self.busy = True, False  # without the task no asynchronous handler can run
                self._drop_unfinished()
                raise
            self._wake_signal = signal
        self._wake_signal.set()

    async def _run(self, signal: Signal) -> None:
        """Run the dispatcher's task."""
        self._task = anyio.get_current_task().id
        try:
            with anyio.CancelScope() as self._scope:
                if self.cancelled:  # it was cancelled before this task began
                    self._scope.cancel()
                await self._deliver_pending(signal)
        except (Exception, KeyboardInterrupt, SystemExit):  # on Trio, Ctrl-C may be raised here
            self.cancelled = True
            self._leave_events()
            raise
        except anyio.get_cancelled_exc_class():
            if not is_cancelled():
                self._wake_signal = None  # so that another task is started for the last events
                self._leave_events()
            raise
        self._leave_events()

    def _leave_events(self) -> None:
        """Have the pending events delivered by whoever runs the source."""
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
                self._unfinished = self._deliver(listeners.call, event)
                await self._await_unfinished()
                delivered += 1
                if delivered % EVENTS_PER_CHECKPOINT and event.type == "data":
                    await anyio.lowlevel.checkpoint_if_cancelled()
                else:
                    await anyio.lowlevel.checkpoint()
            self.busy = False

    async def _await_unfinished(self) -> None:
        """Await the asynchronous handler of the current event, and those after it."""
        if self._unfinished is not None:
            await anyio.lowlevel.checkpoint_if_cancelled()
            unfinished, self._unfinished = self._unfinished, None
            try:
                await unfinished.finish()
            except Exception as exc:
                self.handler_raised(exc, unfinished.event)
            except BaseException as exc:
                raised, passing = await self._split_exception(exc)
                if raised is not None:
                    self.handler_raised(raised, unfinished.event)
                if passing is exc:
                    raise
                if passing is not None:
                    raise passing from None

    async def _split_exception(self, exc: BaseException) -> tuple[BaseException | None, BaseException | None]:
        """Separate what an awaited handler has raised from a cancellation of this task.

        :return: what the handler has raised, and what has to be raised further
        """
        if isinstance(exc, anyio.get_cancelled_exc_class()) and not (is_cancelled() or await is_cancelled_by_loop(exc)):
            return stray(exc), None
        if isinstance(exc, GeneratorExit) and self._is_current():  # else this task's own coroutine is being closed
            return exc, None
        return split_exception(exc)

    def _is_current(self) -> bool:
        """Whether the current task is the dispatcher's."""
        try:
            return anyio.get_current_task().id == self._task
        except Exception:  # no task runs here
            return False

    def _drop_unfinished(self) -> None:
        """Drop the event that the task had to finish, if the task was cancelled before that."""
        unfinished, self._unfinished = self._unfinished, None
        if unfinished is not None:
            unfinished.drop()

    def _deliver(self, call: Call, event: Event[Any]) -> UnfinishedEvent | None:
        """Call the handlers of an event, then send what they have written. Once the owner is cancelled, none is called.

        :param call: :meth:`Listeners.call` or :meth:`UnfinishedEvent.call_remaining`
        :return: what must be awaited before the next event; None if nothing
        """
        if self._owner is None or self._owner.cancel_called:
            return None
        written = turn.written
        if written is None:  # a task of the source's own calls this; the poller, which runs many sources, has set it
            return in_turn(partial(self._deliver, call, event))
        assert self._context is not None
        try:
            if SLOW is not None:
                return self._context.run(self._call_timed, call, event, SLOW)
            return self._context.run(call, event)
        except BaseException as exc:
            self.handler_raised(without_task(exc), event)
            return None
        finally:
            if written:
                flush(written)

    def _call_timed(self, call: Call, event: Event[Any], limit: float) -> UnfinishedEvent | None:
        """Call the handlers of an event, and report it if that holds up the event loop.

        :param limit: seconds after which it is reported
        """
        begun = time.monotonic()
        try:
            return call(event)
        finally:
            seconds = time.monotonic() - begun
            if seconds > limit and self._source is not None:
                self._source.was_slow(event.type, seconds)

    def handler_raised(self, exc: BaseException, event: Event[Any]) -> None:
        """Report what a handler has raised."""
        assert self._source is not None
        self._source.crashed(exc, "a handler", f", on {event.type!r}")

    def is_in_handler(self) -> bool:
        """Whether the current task is the dispatcher's, and runs an asynchronous handler."""
        return self.busy and anyio.get_current_task().id == self._task
