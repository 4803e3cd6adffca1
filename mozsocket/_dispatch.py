"""One event at a time: which is due, and who calls the handlers.

A handler that is a plain function is called by the task that has something to tell, with no task switch. The events
of an asynchronous one are left to the dispatcher, a task that is started when it is first needed: it awaits the
handler and delivers what has become due meanwhile. So reading and writing go on beside a slow handler. What a plain
function gives to be awaited, which nobody can foresee, is handed to it too.
"""

from __future__ import annotations

import math
import sys
import threading
from abc import abstractmethod
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from ._events import Event, EventTarget, Rest

if sys.version_info < (3, 11):  # AnyIO depends on the backport
    from exceptiongroup import BaseExceptionGroup

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

__all__ = ("Dispatcher", "Signal", "is_cancelled", "sort_out", "turn", "without_task")

PUMPED = 2
"""Events that are delivered at once before other tasks run. With each, 128 KiB may be sent, for which those wait."""


DISPATCHED = 4
"""The same of data that was queued. It has to be more than the reader queues meanwhile, which goes on doing so while it
finds the dispatcher busy: else a transfer that once had to wait for a handler would be slow to its end.
"""


class Signal:
    """Wakes one waiting task. A wake-up that nobody waits for yet is kept."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = anyio.Event()


class _Turn(threading.local):
    """What is written to while a handler runs in this thread: it is flushed when the handler returns.

    :ivar written: what flushes those sockets, or None while no handler runs
    """

    written: list[Callable[[], None]] | None = None


turn = _Turn()


class Dispatcher(EventTarget):
    """An event target that delivers the events of one connection in order, one at a time."""

    __slots__ = (
        "_busy",
        "_context",
        "_dispatch_due",
        "_handler_scope",
        "_handler_task",
        "_handlers_cancelled",
        "_rest",
        "_scopes",
        "_spawned",
        "_tasks",
    )

    def __init__(self) -> None:
        super().__init__()
        self._tasks: TaskGroup | None = None  # of the tasks of this socket, while it runs
        self._spawned = False  # whether there has been one
        self._scopes: tuple[anyio.CancelScope, ...] = ()  # its own, and its owners'
        self._context: Context | None = None  # what its tasks begin with, whichever task starts them
        self._busy = False  # while a handler runs, or the dispatcher has been told to deliver what is due
        self._rest: Rest | None = None  # of the running handler, for the dispatcher to await
        self._dispatch_due: Signal | None = None  # made with the dispatcher
        self._handler_task: int | None = None
        self._handler_scope: anyio.CancelScope | None = None  # around all that the dispatcher does
        self._handlers_cancelled = False

    @abstractmethod
    def _next_event(self) -> Event[Any] | None:
        """The event that is due now, which counts as delivered; None if there is none."""

    @abstractmethod
    def _is_due(self) -> bool:
        """Whether there may be such an event."""

    @abstractmethod
    def _handler_raised(self, exc: BaseException, event: Event[Any]) -> None:
        """Called with what a handler of an event raised."""

    @abstractmethod
    def _crashed(self, exc: BaseException, where: str, when: str = "") -> None:
        """Called with what one of the tasks raised."""

    @abstractmethod
    def _notify(self) -> None:
        """Have the task look again that runs all this."""

    def _pump(self, event: Event[Any] | None = None) -> None:
        """Deliver what is due, here and now; to be called from a task of the socket's own, never by its user.

        :param event: an event to deliver before what is due; only while not busy, and if its handlers are functions
        """
        if self._busy:
            assert event is None
            return  # what is due will be seen to after the running handler
        self._busy = True
        if self._handlers_cancelled:
            self._deliver_without_tasks()
            return
        rest = self._deliver(event) if event is not None else None
        for _ in range(PUMPED):
            if rest is not None or (self._async_types and self._is_due()):
                break  # the dispatcher takes it, so that an asynchronous handler begins while it is still so
            delivered, event = event, self._next_event()
            if event is None:
                self._busy = False
                return
            if delivered is not None and is_cancelled():
                return  # by a handler, before any checkpoint could tell
            rest = self._deliver(event)
        self._start_dispatch(rest)

    def _deliver_without_tasks(self) -> None:
        while (event := self._next_event()) is not None:
            rest = self._deliver(event)
            if rest is not None:
                self._call_functions(rest)
        self._busy = False

    def _call_functions(self, rest: Rest) -> None:
        """Call those that are left of an event's, and await none."""
        try:
            rest.drop_and_go_on()
        except BaseException as exc:
            self._handler_raised(without_task(exc), rest.event)

    def _cancel_handlers(self) -> None:
        """Cancel the asynchronous handler that runs, and begin no other. Functions are called still."""
        self._handlers_cancelled = True
        if self._handler_scope is not None:
            self._handler_scope.cancel()
        self._notify()

    def _wake_dispatch(self) -> None:
        """Have what is due delivered soon; may be called from anywhere."""
        if self._handlers_cancelled:
            self._notify()
        elif not self._busy:
            self._start_dispatch(None)
            self._busy = True

    def _start_dispatch(self, rest: Rest | None) -> None:
        self._rest = rest
        if self._dispatch_due is None:
            due = Signal()
            self._spawn("dispatcher", self._dispatch, due)
            self._dispatch_due = due
        self._dispatch_due.set()

    def _spawn(self, what: str, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, None]], *args: Unpack[Ts]) -> None:
        """Start a task of the socket's own, which ends with it."""
        assert self._tasks is not None and self._context is not None
        start = partial(self._tasks.start_soon, self._guard, what, partial(function, *args), name=f"{what} of {self!r}")
        self._context.run(start)
        self._spawned = True

    async def _guard(self, what: str, function: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """The last line of defence: whatever a task raises ends this connection in order, and nothing else."""
        try:
            await function()
        except Exception as exc:
            self._crashed(exc, f"the {what}")
        except BaseException as exc:
            raised, passing = sort_out(exc)
            if raised is not None:
                self._crashed(raised, f"the {what}")
            if passing is None:
                return
            # On asyncio, AnyIO leaves the cancellation that ends a task, with these frames, to the garbage collector.
            del self, function, raised
            passing.__traceback__ = None
            if passing is exc:
                raise exc  # not `raise` alone: Python 3.10 gives it its frames back
            raise passing from None

    def _keep_context(self) -> None:
        """Have the tasks that are started from now on begin with the current context: handlers of one connection see
        what it has set, and not what another's has that sends to it.
        """
        self._context = copy_context()

    async def _dispatch(self, due: Signal) -> None:
        self._handler_task = anyio.get_current_task().id
        try:
            with anyio.CancelScope() as self._handler_scope:
                if self._handlers_cancelled:  # before this task had begun
                    self._handler_scope.cancel()
                await self._dispatch_what_is(due)
        except (Exception, KeyboardInterrupt, SystemExit):  # on Trio, Ctrl-C may be raised here
            self._handlers_cancelled = True
            self._end_dispatch()
            raise
        self._end_dispatch()

    def _end_dispatch(self) -> None:
        """Leave what is due to functions: whoever runs all this looks again."""
        self._drop_rest()
        self._busy = False
        self._notify()

    async def _dispatch_what_is(self, due: Signal) -> None:
        while True:
            await due.wait()
            await self._await_rest()
            delivered = 0
            while (event := self._next_event()) is not None:
                self._rest = self._deliver(event)
                await self._await_rest()
                delivered += 1
                if delivered % DISPATCHED and event.type == "data":
                    await anyio.lowlevel.checkpoint_if_cancelled()
                else:
                    await anyio.lowlevel.checkpoint()
            self._busy = False

    async def _await_rest(self) -> None:
        if self._rest is not None:
            await anyio.lowlevel.checkpoint_if_cancelled()
            rest, self._rest = self._rest, None
            try:
                await rest.finish()
            except Exception as exc:
                self._handler_raised(exc, rest.event)
            except BaseException as exc:
                raised, passing = await self._sort_out(exc)
                if raised is not None:
                    self._handler_raised(raised, rest.event)
                if passing is exc:
                    raise
                if passing is not None:
                    raise passing from None

    async def _sort_out(self, exc: BaseException) -> tuple[BaseException | None, BaseException | None]:
        """:return: what a handler has raised, and what has to be raised on"""
        if isinstance(exc, anyio.get_cancelled_exc_class()) and not (is_cancelled() or await is_cancelled_by_loop(exc)):
            return _stray(exc), None
        if isinstance(exc, GeneratorExit) and self._runs():  # else it is this task that is being closed
            return exc, None
        return sort_out(exc)

    def _runs(self) -> bool:
        """Whether the dispatcher is the current task."""
        try:
            return anyio.get_current_task().id == self._handler_task
        except Exception:  # there is none
            return False

    def _drop_rest(self) -> None:
        """Called at the end, when the dispatcher may have been cancelled before it began with it."""
        rest, self._rest = self._rest, None
        if rest is not None:
            rest.drop()

    def _deliver(self, event: Event[Any]) -> Rest | None:
        """Call the handlers of an event, then flush what they wrote. Once the owner is cancelled, none runs any more.

        :return: what must be awaited before the next event, if anything
        """
        for scope in self._scopes:
            if scope.cancel_called:
                return None
        written: list[Callable[[], None]] = []
        turn.written = written
        try:
            rest: Rest | None = event.target._call(event)
        except BaseException as exc:
            self._handler_raised(without_task(exc), event)
            return None
        else:
            return rest
        finally:
            turn.written = None
            for flush in written:
                flush()

    def _in_handler(self) -> bool:
        """Whether the current task is running one of this socket's handlers."""
        return self._busy and anyio.get_current_task().id == self._handler_task


def is_cancelled() -> bool:
    """Whether any scope around the current task is cancelled. Not for the hot paths: it takes microseconds."""
    return anyio.current_effective_deadline() == -math.inf


def sort_out(exc: BaseException | None) -> tuple[BaseException | None, BaseException | None]:
    """Tell what a program has raised from a cancellation. On Trio the two may come in one group.

    :return: what was raised, and what has to be raised on
    """
    cancelled = anyio.get_cancelled_exc_class()
    if isinstance(exc, BaseExceptionGroup):
        passing, raised = BaseExceptionGroup.split(exc, cancelled)
        return (exc if passing is None else raised), passing
    if isinstance(exc, (cancelled, GeneratorExit)):  # by which a coroutine is closed
        return None, exc
    return exc, None


async def is_cancelled_by_loop(exc: BaseException) -> bool:
    """Whether a cancellation is of the event loop's own kind: of the task, by asyncio, whatever scopes it is in."""
    if not type(exc).__module__.startswith("asyncio"):
        return False
    from ._asyncio import is_being_cancelled

    return await is_being_cancelled() or is_cancelled()


def without_task(exc: BaseException) -> BaseException:
    """What a function that is not asynchronous, and so cannot be cancelled, has raised."""
    return _stray(exc) if isinstance(exc, anyio.get_cancelled_exc_class()) else exc


def _stray(exc: BaseException) -> Exception:
    """For a cancellation that was not ours, such as that of a future whose result a handler took."""
    error = RuntimeError(f"a handler raised {type(exc).__name__}, though nothing had cancelled it")
    error.__cause__ = exc
    return error
