"""How a socket or a server lives: run by a scope, or by an ``async with`` block of its own."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from anyio.lowlevel import RunVar

from . import _log
from ._dispatch import Dispatcher, is_cancelled, sort_out
from ._errors import InvalidStateError, TCPSocketError
from ._events import Event

if sys.version_info < (3, 11):  # AnyIO depends on the backport
    from exceptiongroup import BaseExceptionGroup

__all__ = ("Lifetime", "current_loop", "ended", "exit_in", "is_of_cancellation", "log_displaced", "require_task")

LifetimeT = TypeVar("LifetimeT", bound="Lifetime")


def is_of_cancellation(exc: BaseException | None) -> bool:
    """Whether it is what a method has said of a socket that was closed by a cancellation, which is about to be raised
    in the program too: it need not know of both.
    """
    return isinstance(exc, InvalidStateError) and is_cancelled()


def exit_in(exc: BaseException | None) -> KeyboardInterrupt | SystemExit | None:
    """What is to end the program, in an exception that may be a group."""
    if isinstance(exc, BaseExceptionGroup):
        return next((found for inner in exc.exceptions if (found := exit_in(inner)) is not None), None)
    return exc if isinstance(exc, (KeyboardInterrupt, SystemExit)) else None


async def ended(tasks: TaskGroup, exc: BaseException | None = None) -> BaseException | None:
    """Leave the block of a task group.

    :param exc: by what
    :return: what is to leave the block around: ``exc`` unless it is taken in, or what is to end the program, which does
        not do so from within a group. On Trio, Ctrl-C may be raised in any of the tasks
    """
    try:
        if exc is None:
            await tasks.__aexit__(None, None, None)
        elif await tasks.__aexit__(type(exc), exc, exc.__traceback__):
            return None
    except BaseExceptionGroup as group:
        found = exit_in(group)
        if found is None:
            raise
        log_displaced(BaseExceptionGroup.split(group, (KeyboardInterrupt, SystemExit))[1])
        return found
    return exc


def log_displaced(exc: BaseException | None) -> None:
    """Log what is not raised, as what ends the program is raised in its place."""
    raised, _ = sort_out(exc)
    if raised is not None:
        _log.error("the program is being ended, and also raised %s", _shown(raised), exc_info=raised)


_mark: RunVar[object] = RunVar("mozsocket's mark")


def current_loop() -> object:
    """A mark of the event loop that runs here."""
    try:
        return _mark.get()
    except LookupError:
        _mark.set(mark := object())
        return mark


def require_task(what: str, loop: object) -> None:
    """
    :param what: what is called, and may have to start or wake a task
    :param loop: the mark of the event loop that it belongs to
    :raises RuntimeError: in a callback of the event loop, or another thread: AnyIO can do neither there
    """
    try:
        anyio.get_current_task()
        here = current_loop()
    except Exception:
        here = None
    if here is not loop:
        raise RuntimeError(
            f"{what} has to be called from a task of its event loop or a handler, not from a callback of that;"
            " from another thread, call it by anyio.from_thread.run_sync()"
        )


def _shown(exc: BaseException) -> str:
    try:
        return ascii(exc)
    except Exception:  # it is the program's, and may be any
        return type(exc).__name__


class Lifetime(Dispatcher):
    """Runs once, in one task, until it is closed.

    What goes wrong meanwhile is kept, for whoever owns the block that it runs in: what a handler raised, and a
    failure that neither a handler nor an awaiter was told of.
    """

    __slots__ = (
        "_awaiting",
        "_blocks",
        "_changed",
        "_crash",
        "_crashed_in",
        "_failure",
        "_failure_seen",
        "_is_contained",
        "_loop",
        "_over",
        "_started",
    )

    def __init__(self) -> None:
        super().__init__()
        self._started = False
        self._over = False
        self._crash: BaseException | None = None  # what a handler raised
        self._crashed_in = ("", "")  # in words: where, and on which event
        self._loop: object = None  # the mark of the one that it runs in
        self._is_contained = False  # whether that is nobody's trouble but its own
        self._failure: TCPSocketError | None = None
        self._failure_seen = False
        self._awaiting = 0  # how many tasks would be told of a failure
        self._changed: anyio.Event | None = None  # what they wait for; None while nobody does
        # Those entered by each task, outermost first. None if it was never entered.
        self._blocks: dict[int, list[TaskGroup | None]] | None = None  # with the task group of one of its own

    @abstractmethod
    def close(self) -> None: ...

    @abstractmethod
    def _abort(self) -> None:
        """Close immediately, with all that belongs to it."""

    @abstractmethod
    async def _live(self) -> None:
        """Everything from the start to the last event, in the task group ``_tasks``."""

    @abstractmethod
    def _release(self) -> None:
        """Give back what is held, without an event: called at the end of :meth:`_live`, however it ends."""

    # Running. There are three owners, which differ in whom they tell what went wrong.

    async def _run_in_scope(self, scope: anyio.CancelScope) -> None:
        """For a scope: as a task of a task group, which raises what nobody else was told."""
        try:
            await self._run(scope)
        except BaseException:
            found = self._take_exit()
            if found is None:
                self._log_untold()
                raise
        else:
            found = self._take_exit()
        if found is not None:
            self._log_untold()
            raise found
        self._raise_untold()

    async def _run_accepted(self, *scopes: anyio.CancelScope) -> KeyboardInterrupt | SystemExit | None:
        """For a server: one connection's trouble is logged, and is no trouble of the others.

        :return: what is to end the program, if a handler has raised that
        """
        self._is_contained = True
        try:
            await self._run(*scopes)
        except Exception as exc:
            self._crashed(exc, "the end")
        except anyio.get_cancelled_exc_class():
            if exit_in(self._crash) is None:
                raise
        finally:
            found = self._take_exit()
            self._log_untold()
        return found

    async def _run_beside_body(self, body: anyio.CancelScope) -> None:
        """For a block of its own."""
        await self._run(body)
        if self._crash is not None:
            body.cancel()

    async def _run(self, *owners: anyio.CancelScope) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks, self._loop = tasks, current_loop()
                self._keep_context()
                self._scopes = (tasks.cancel_scope, *owners)
                try:
                    await self._live()
                finally:
                    self._release()  # before the wait for the other tasks: nothing is held any longer than needed
                if self._spawned:
                    tasks.cancel_scope.cancel()  # those that wait for more to do
        except anyio.get_cancelled_exc_class():
            if is_cancelled():
                raise  # else it is asyncio's own, of this task alone: no trouble of others
        finally:
            self._drop_rest()
            self._tasks = None
            self._scopes = ()
            self._over = True
            self._notify()
        await self._let_awaiters_know()

    # Blocks. They are no context managers of contextlib's, which writes into the exceptions that pass.

    async def __aenter__(self: LifetimeT) -> LifetimeT:
        if self._over and self._blocks is not None:
            raise RuntimeError(f"{self!r} has ended: make a new one")
        if self._blocks is None:
            self._blocks = {}
        own: TaskGroup | None = None
        if self._started:
            self._refuse_in_handler("leaving its block")
        else:
            self._started = True
            own = await anyio.create_task_group().__aenter__()
            own.start_soon(self._run_beside_body, own.cancel_scope, name=repr(self))
        self._blocks.setdefault(anyio.get_current_task().id, []).append(own)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._blocks is not None
        blocks = self._blocks.get(anyio.get_current_task().id)
        if not blocks:
            raise RuntimeError(f"the block of {self!r} is left in another task than it was entered in")
        own = blocks.pop()
        if own is None:
            await self._leave_inner_block(exc)
            return False
        try:
            left = await self._leave_own_block(own, exc)
        except BaseException:
            found = self._take_exit()
            self._log_untold()
            if found is None:
                raise
        else:
            found = self._take_exit()
            if found is not None:
                log_displaced(left)
        left = left if found is None else found
        if left is not None:
            self._log_untold()
            if left is not exc:
                raise left
            return False
        self._raise_untold()
        return True

    async def _leave_own_block(self, tasks: TaskGroup, exc: BaseException | None) -> BaseException | None:
        """:return: what is to leave it instead of what nobody was told of: the body's exception, or one that ends the
        program
        """
        raised, passing = sort_out(exc)
        if exc is None:
            self.close()
        elif raised is not None:
            self._break_off()
            if is_of_cancellation(raised):
                exc = raised = None
        try:
            left = await ended(tasks, passing)
        except anyio.get_cancelled_exc_class():
            if raised is None:  # else that tells more
                raise
            return exc
        if left is not None and left is not passing:  # what ends the program
            return left
        return raised if left is None else exc

    async def _leave_inner_block(self, exc: BaseException | None) -> None:
        """Of a block within the owner's: it adds only its ending."""
        try:
            if exc is None:
                self.close()
                await self._wait_until(lambda: self._over)
        except BaseException:
            self._abort()
            raise
        if exc is not None:
            self._break_off()
        if is_of_cancellation(exc):
            await anyio.lowlevel.checkpoint_if_cancelled()
        elif isinstance(exc, Exception):
            with suppress(anyio.get_cancelled_exc_class()):  # the body's own exception tells more
                await self._wait_until(lambda: self._over)

    def _require_task(self, what: str) -> None:
        """Where what is called may have to start or wake a task: before anything is changed.

        :raises RuntimeError: in a callback of the event loop, or another thread: AnyIO can do neither there
        """
        if self._tasks is None:
            return  # it runs no more, or not yet
        require_task(f"{what} of {self!r}", self._loop)

    # Failing

    def _handler_raised(self, exc: BaseException, event: Event[Any]) -> None:
        self._crashed(exc, "a handler", f", on {event.type!r}")

    def _crashed(self, exc: BaseException, where: str, when: str = "") -> None:
        """Something of the program's has raised what nobody there caught: it ends what it happened in.

        Nothing is written into the exception, which may not bear it, or be raised in many places.
        """
        other: BaseException | None = exc
        if self._crash is None or (exit_in(exc) is not None and exit_in(self._crash) is None):
            other, self._crash = self._crash, exc
            (where, when), self._crashed_in = self._crashed_in, (where, when)
        if other is not None:
            _log.error("another of %r: %s raised %s%s", self, where, _shown(other), when, exc_info=other)
        if self._is_contained and exit_in(exc) is None:
            self._abort()
        else:
            self._break_off()

    def _break_off(self) -> None:
        """Close immediately, and wait for no handler."""
        self._abort()
        self._cancel_handlers()

    def _take_exit(self) -> KeyboardInterrupt | SystemExit | None:
        found = exit_in(self._crash)
        if found is self._crash:  # else the others of its group are to be logged
            self._crash = None
        return found

    def _raise_untold(self) -> None:
        """Tell what went wrong and nobody was told of. What a handler raised comes first, and a failure may be why."""
        crash = self._crash
        if crash is None and self._failure is not None and not self._failure_seen:
            self._failure_seen = True
            raise self._failure.again()
        self._crash = None
        self._log_untold()
        try:
            if crash is not None:
                raise crash
        finally:
            del crash  # its traceback refers to this frame

    def _warn(self, kind: str, message: str, *args: object) -> None:
        """Log a warning; for the kind, see :class:`WarningLimit`."""
        _log.warning(message, *args)

    def _log_untold(self) -> None:
        if self._failure is not None and not self._failure_seen:
            self._failure_seen = True
            self._warn(self._failure.name, "%r was lost: %s", self, self._failure)
        if self._crash is not None:
            crash, self._crash = self._crash, None
            where, when = self._crashed_in
            _log.error("%s of %r raised %s%s", where, self, _shown(crash), when, exc_info=crash)

    # Waiting

    def _notify(self) -> None:
        """Have those who wait look again."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def _reach(self, what: str, reached: Callable[[], bool], missed: Callable[[], bool]) -> None:
        """Wait until something is so, for a program that is told of a failure by it.

        :raises TCPSocketError: if it will never be so, as the connection failed or was lost
        :raises InvalidStateError: if it will never be so for another reason: it was closed first
        """
        if self._tasks is not None and current_loop() is not self._loop:
            raise RuntimeError(f"{what} of {self!r}, which runs in another event loop")
        self._awaiting += 1
        try:
            await anyio.lowlevel.checkpoint()
            if not (self._started or reached() or missed()):
                raise RuntimeError(f"{what} waits for {self!r}, which nothing runs: enter it with `async with` first")
            await self._wait_until(lambda: reached() or missed())
            await anyio.lowlevel.checkpoint_if_cancelled()  # which may have come in the turn that it was reached in
        finally:
            self._awaiting -= 1
        if reached():
            return
        if self._failure is None:
            raise InvalidStateError(f"{what}: {self!r} was closed first")
        self._failure_seen = True
        raise self._failure.again()

    async def _let_awaiters_know(self) -> None:
        """Let those who wait, and have been notified, raise what they will: then it is known who was told."""
        while self._awaiting:
            await anyio.lowlevel.checkpoint()

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = anyio.Event()
        await self._changed.wait()

    async def _wait_until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            await self._change()

    def _refuse_in_handler(self, what: str) -> None:
        """:raises RuntimeError: in a handler of its own, for which the end of all handlers would wait"""
        if self._in_handler():
            raise RuntimeError(
                f"{what} waits for the handlers of {self!r}, of which this is one: it could never finish"
            )
