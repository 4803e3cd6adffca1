"""How a socket or a server lives: run by a scope, or by an ``async with`` block of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from contextvars import Context, copy_context
from threading import get_ident
from typing import Protocol

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from . import _log
from ._dispatch import Dispatcher, Source
from ._errors import InvalidStateError, TCPSocketError
from ._poller import way_to_wait
from ._raised import exit_in, is_cancelled, is_of_cancellation, log_displaced, shown, split_exception
from ._readiness import Waiting
from ._tasks import Loop, current_loop, ended, require_task

__all__ = ("Lifetime", "Member")


class Member(Source, Protocol):
    """What lives: a connection, or what accepts them."""

    @property
    def dispatcher(self) -> Dispatcher: ...

    @property
    def lifetime(self) -> Lifetime: ...

    @property
    def public_object(self) -> object:
        """The public object that it is the inside of, for the log."""

    def wait_by(self, waiting: Waiting) -> None:
        """Have its sockets waited for in that way: called before it runs."""

    def close(self) -> None: ...

    def close_immediately(self) -> None:
        """With all that belongs to it."""

    def close_all(self) -> None:
        """Close in order, with all that belongs to it."""

    def cancel_handlers(self) -> None:
        """Those of all that belongs to it, too."""

    async def live(self) -> None:
        """Everything from the start to the last event, while the dispatcher has tasks."""

    def release(self) -> None:
        """Give back what is held, without an event: called at the end of :meth:`live`, however it ends."""

    def end(self) -> None:
        """Refer to nobody any more who refers to it: the last of all."""

    def is_in_handler(self) -> bool:
        """Whether the current task runs a handler that its end waits for."""

    def closed_error(self, words: str) -> InvalidStateError:
        """What is raised where it is too late for what was called.

        :param words: how it begins
        """

    @property
    def log_fields(self) -> dict[str, object]:
        """Of all records about it, for structured logs."""
        ...

    def may_log(self, kind: str) -> bool:
        """Whether one more record of a kind is to be logged; see :class:`LogLimit`."""


class Lifetime:
    """Runs a member once, in one task, until it is closed.

    What goes wrong meanwhile is kept, for whoever owns the block that it runs in: what a handler raised, and a
    failure that neither a handler nor an awaiter was told of. The member is an argument of each call: if it was kept
    here, who refers to both would be in a circle.

    :ivar failure: why the member failed, if it did
    :ivar crash_words: what a handler has raised, if one has, and where
    :ivar started: whether it runs, or did
    :ivar loop: the event loop that it runs in, once it runs
    :ivar thread: the thread of that
    :ivar over: whether it does no more
    :ivar changed: what those wait for who wait for the next change; None while nobody does
    """

    __slots__ = (
        "_awaiting",
        "_blocks",
        "_crash",
        "_crashed_in",
        "_failure_reported",
        "_is_contained",
        "changed",
        "crash_words",
        "failure",
        "loop",
        "over",
        "started",
        "thread",
    )

    def __init__(self) -> None:
        self.started = False
        self.over = False
        self.failure: TCPSocketError | None = None
        self._failure_reported = False
        self._crash: BaseException | None = None  # what a handler raised
        self.crash_words = ""
        self._crashed_in = ("", "")  # in words: where, and on which event
        self.loop: Loop | None = None
        self.thread: int | None = None
        self._is_contained = False  # whether that is nobody's trouble but its own
        self._awaiting = 0  # how many tasks would be told of a failure
        self.changed: anyio.Event | None = None
        # Those entered by each task, outermost first. None if it was never entered.
        self._blocks: dict[int, list[TaskGroup | None]] | None = None  # with the task group of one of its own

    def begin(self) -> None:
        """It is to run, by a task that is being started."""
        self.started = True

    def end_before_it_began(self) -> None:
        self.over = True

    def fail(self, failure: TCPSocketError) -> None:
        """Note why the member has failed."""
        self.failure = failure

    def mark_failure_reported(self) -> None:
        """Count the failure as told to the program."""
        self._failure_reported = True

    # Running. There are three owners, which differ in whom they tell what went wrong.

    async def run_in_scope(self, member: Member, scope: anyio.CancelScope) -> None:
        """For a scope: as a task of a task group, which raises what nobody else was told, and then ends it."""
        if self.over:
            return
        try:
            await self._run(member, scope)
        except BaseException:
            found = self._take_exit()
            if found is None:
                self._log_unreported(member)
                raise
        else:
            found = self._take_exit()
        if found is not None:
            self._log_unreported(member)
            raise found
        self._raise_unreported(member)

    def begin_opened(
        self, member: Member, scope: anyio.CancelScope, context: Context, host: Callable[[], object]
    ) -> None:
        """For a scope, of one that no task runs before there is something that only a task can do.

        :param context: what the handlers run in
        :param host: what starts a task with :meth:`run_in_scope`
        """
        self._note_loop()
        member.dispatcher.begin(member, (scope,), context, host)

    def end_opened(self, member: Member, *, cancelled: bool) -> BaseException | None:
        """The end of one that no task runs, without waiting for anybody.

        :param cancelled: whether the scope is: then it raises nothing else
        :return: what is to leave the scope, if anything: what ends the program, or what nobody was told
        """
        self._end_without_task(member)
        found: BaseException | None = self._take_exit()
        if found is None and not cancelled:
            found = self._take_unreported()
        self._log_unreported(member)
        member.end()
        return found

    def _note_loop(self) -> None:
        self.loop, self.thread = current_loop(), get_ident()

    def _end_without_task(self, member: Member) -> None:
        member.release()
        member.dispatcher.end()
        self.over = True
        self.notify()

    def begin_accepted(
        self,
        member: Member,
        server: Lifetime,
        scopes: tuple[anyio.CancelScope, ...],
        context: Context,
        host: Callable[[], object],
    ) -> None:
        """For a server: one connection's trouble is logged, and is no trouble of the others. No task runs it, before
        there is something that only a task can do.

        :param server: of the server
        :param scopes: its cancel scopes
        :param context: what the handlers run in
        :param host: what starts a task with :meth:`run_accepted`
        """
        self._is_contained = True
        self.loop, self.thread = server.loop, server.thread
        member.dispatcher.begin(member, scopes, context, host)

    def end_accepted(self, member: Member) -> KeyboardInterrupt | SystemExit | None:
        """The end of one that no task runs, without waiting for anybody.

        :return: what is to end the program, if a handler has raised that
        """
        self._end_without_task(member)
        found = self._take_exit()
        self._log_unreported(member)
        member.end()
        return found

    async def run_accepted(self, member: Member) -> KeyboardInterrupt | SystemExit | None:
        """The task of such a connection, until its end.

        :return: what is to end the program, if a handler has raised that
        """
        if self.over:
            return None
        try:
            await self._run(member)
        except Exception as exc:
            self.crashed(member, exc, "the end")
        except anyio.get_cancelled_exc_class():
            if exit_in(self._crash) is None:
                raise
        finally:
            found = self._take_exit()
            self._log_unreported(member)
            member.end()
        return found

    async def _run_beside_body(self, member: Member, body: anyio.CancelScope) -> None:
        """For a block of its own."""
        await self._run(member, body)
        if self._crash is not None:
            body.cancel()

    async def _run(self, member: Member, *owners: anyio.CancelScope) -> None:
        dispatcher = member.dispatcher
        try:
            async with anyio.create_task_group() as tasks:
                if not dispatcher.runs:  # else it was accepted
                    self._note_loop()
                    dispatcher.begin(member, owners, copy_context())
                dispatcher.open_tasks(tasks)
                try:
                    await member.live()
                finally:
                    member.release()  # before the wait for the other tasks: nothing is held any longer than needed
                dispatcher.end_tasks()
        except anyio.get_cancelled_exc_class():
            if is_cancelled():
                raise  # else it is asyncio's own, of this task alone: no trouble of others
        finally:
            dispatcher.end()
            self.over = True
            self.notify()
        await self.let_waiters_finish()

    # Blocks. They are no context managers of contextlib's, which writes into the exceptions that pass.

    async def enter(self, member: Member) -> None:
        if self.over and self._blocks is not None:
            raise RuntimeError(f"{member!r} has ended: make a new one")
        if self._blocks is None:
            self._blocks = {}
        own: TaskGroup | None = None
        if self.started:
            self.refuse_in_handler(member, "leaving its block")
        else:
            self.begin()
            own = await anyio.create_task_group().__aenter__()
            member.wait_by(way_to_wait(own.start_soon, own.cancel_scope.cancel))
            own.start_soon(self._run_beside_body, member, own.cancel_scope, name=repr(member))
        self._blocks.setdefault(anyio.get_current_task().id, []).append(own)

    async def leave(self, member: Member, exc: BaseException | None) -> bool:
        """:return: whether the exception that leaves the body is taken in"""
        assert self._blocks is not None
        blocks = self._blocks.get(anyio.get_current_task().id)
        if not blocks:
            raise RuntimeError(f"the block of {member!r} is left in another task than it was entered in")
        own = blocks.pop()
        if own is None:
            await self._leave_inner_block(member, exc)
            return False
        try:
            return await self._leave_and_tell(member, own, exc)
        finally:
            member.end()

    async def _leave_and_tell(self, member: Member, own: TaskGroup, exc: BaseException | None) -> bool:
        try:
            left = await self._leave_own_block(member, own, exc)
        except BaseException:
            found = self._take_exit()
            self._log_unreported(member)
            if found is None:
                raise
        else:
            found = self._take_exit()
            if found is not None:
                log_displaced(left)
        left = left if found is None else found
        if left is not None:
            self._log_unreported(member)
            if left is not exc:
                raise left
            return False
        self._raise_unreported(member)
        return True

    async def _leave_own_block(
        self, member: Member, tasks: TaskGroup, exc: BaseException | None
    ) -> BaseException | None:
        """:return: what is to leave it instead of what nobody was told of: the body's exception, or one that ends the
        program
        """
        raised, passing = split_exception(exc)
        if exc is None:
            member.close()
        elif raised is not None:
            _break_off(member)
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

    async def _leave_inner_block(self, member: Member, exc: BaseException | None) -> None:
        """Of a block within the owner's: it adds only its ending."""
        try:
            if exc is None:
                member.close()
                await self.wait_until(lambda: self.over)
        except BaseException:
            member.close_immediately()
            raise
        if exc is not None:
            _break_off(member)
        if is_of_cancellation(exc):
            await anyio.lowlevel.checkpoint_if_cancelled()
        elif isinstance(exc, Exception):
            with suppress(anyio.get_cancelled_exc_class()):  # the body's own exception tells more
                await self.wait_until(lambda: self.over)

    def require_task(self, member: Member, what: str) -> None:
        """Where what is called may have to start or wake a task: before anything is changed.

        :raises RuntimeError: in a callback of the event loop, or another thread: AnyIO can do neither there
        """
        if member.dispatcher.runs:  # else it runs no more, or not yet
            require_task(what, member, self.loop)

    # Failing

    def crashed(self, member: Member, exc: BaseException, where: str, when: str = "") -> None:
        """Something of the program's has raised what nobody there caught: it ends what it happened in.

        Nothing is written into the exception, which may not bear it, or be raised in many places.
        """
        other: BaseException | None = exc
        if self._crash is None or (exit_in(exc) is not None and exit_in(self._crash) is None):
            other, self._crash = self._crash, exc
            (where, when), self._crashed_in = self._crashed_in, (where, when)
        if not self.crash_words:
            self.crash_words = f"{self._crashed_in[0]} raised {shown(exc)}{self._crashed_in[1]}"
        if other is not None:
            self._log_crash(
                member, "another of %r: %s raised %s%s", other, member.public_object, where, shown(other), when
            )
        if self._is_contained and exit_in(exc) is None:
            member.close_immediately()
        else:
            _break_off(member)

    def was_slow(self, member: Member, type: str, seconds: float) -> None:
        """A handler has held up the event loop."""
        if member.may_log(f"slow on{type}"):
            fields = {**member.log_fields, "event": "slow", "type": type, "seconds": seconds}
            message = "a handler of %r, on %r, has held up the event loop for %.1f seconds"
            _log.warning(message, member.public_object, type, seconds, fields=fields)

    @property
    def crash(self) -> BaseException | None:
        """What a handler has raised, until its owner is told of it."""
        return self._crash

    def _take_exit(self) -> KeyboardInterrupt | SystemExit | None:
        found = exit_in(self._crash)
        if found is self._crash:  # else the others of its group are to be logged
            self._crash = None
        return found

    def _raise_unreported(self, member: Member) -> None:
        """Tell what went wrong and nobody was told of. What a handler raised comes first, and a failure may be why."""
        unreported = self._take_unreported()
        self._log_unreported(member)
        try:
            if unreported is not None:
                raise unreported
        finally:
            del unreported  # its traceback refers to this frame

    def _take_unreported(self) -> BaseException | None:
        crash, self._crash = self._crash, None
        if crash is not None or self.failure is None or self._failure_reported:
            return crash
        self.mark_failure_reported()
        return self.failure.again()

    def _log_unreported(self, member: Member) -> None:
        if self.failure is not None and not self._failure_reported:
            self.mark_failure_reported()
            if member.may_log(self.failure.name):
                fields = {**member.log_fields, "event": "lost", "error": self.failure.name}
                _log.warning("%r was lost: %s", member.public_object, self.failure, fields=fields)
        if self._crash is not None:
            crash, self._crash = self._crash, None
            where, when = self._crashed_in
            self._log_crash(member, "%s of %r raised %s%s", crash, where, member.public_object, shown(crash), when)

    def _log_crash(self, member: Member, message: str, crash: BaseException, *args: object) -> None:
        error = type(crash).__name__
        if member.may_log(f"a handler raised {error}"):
            fields = {**member.log_fields, "event": "crashed", "error": error}
            _log.error(message, *args, exc_info=crash, fields=fields)

    @property
    def is_awaited(self) -> bool:
        """Whether a task waits that would be told of a failure."""
        return self._awaiting > 0

    @property
    def failure_reported(self) -> bool:
        """Whether the program knows of it."""
        return self._failure_reported

    # Waiting

    def notify(self) -> None:
        """Have those who wait look again."""
        if self.changed is not None:
            self.changed.set()
            self.changed = None

    async def reach(self, member: Member, what: str, reached: Callable[[], bool], missed: Callable[[], bool]) -> None:
        """Wait until something is so, for a program that is told of a failure by it.

        :raises TCPSocketError: if it will never be so, as the connection failed or was lost
        :raises InvalidStateError: if it will never be so for another reason: it was closed first
        """
        if member.dispatcher.runs and current_loop() is not self.loop:
            raise RuntimeError(f"{what} of {member!r}, which runs in another event loop")
        self.begin_awaiting()
        try:
            await anyio.lowlevel.checkpoint()
            if not (self.started or reached() or missed()):
                raise RuntimeError(f"{what} waits for {member!r}, which nothing runs: enter it with `async with` first")
            await self.wait_until(lambda: reached() or missed())
            await anyio.lowlevel.checkpoint_if_cancelled()  # which may have come in the turn that it was reached in
        finally:
            self.end_awaiting()
        if reached():
            return
        if self.failure is None:
            raise member.closed_error(f"{what}: {member!r} was closed first")
        self.mark_failure_reported()
        raise self.failure.again()

    async def let_waiters_finish(self) -> None:
        """Let those who wait, and have been notified, raise what they will: then it is known who was told."""
        while self._awaiting:
            await anyio.lowlevel.checkpoint()

    async def change(self) -> None:
        """Wait for the next :meth:`notify`."""
        if self.changed is None:
            self.changed = anyio.Event()
        await self.changed.wait()

    async def wait_until(self, reached: Callable[[], bool]) -> None:
        self.begin_awaiting()
        try:
            while not reached():
                await self.change()
        finally:
            self.end_awaiting()

    def begin_awaiting(self) -> None:
        """A task begins to wait that would be told of a failure."""
        self._awaiting += 1

    def end_awaiting(self) -> None:
        self._awaiting -= 1

    def refuse_in_handler(self, member: Member, what: str) -> None:
        """:raises RuntimeError: in a handler of its own, for which the end of all handlers would wait"""
        if member.is_in_handler():
            raise RuntimeError(
                f"{what} waits for the handlers of {member!r}, of which this is one: it could never finish"
            )


def _break_off(member: Member) -> None:
    """Close immediately, and wait for no handler."""
    member.close_immediately()
    member.cancel_handlers()
