"""The lifetime of a socket or a server: from entering a block to leaving it, and what is raised there.

A member is run by its owner: a scope, a server, or an ``async with`` block of its own. An error that was reported to no
handler and no waiting task is raised in the owner's block, or logged.
"""

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
    """What has a lifetime: a connection, or an acceptor with its connections."""

    @property
    def dispatcher(self) -> Dispatcher: ...

    @property
    def lifetime(self) -> Lifetime: ...

    @property
    def public_object(self) -> object:
        """The TCPSocket or TCPServerSocket that holds it, for the log."""

    def wait_by(self, waiting: Waiting) -> None:
        """Set the way to wait for its sockets; called before it runs."""

    def close(self) -> None: ...

    def close_immediately(self) -> None:
        """Close immediately; an acceptor closes its connections too."""

    def close_all(self) -> None:
        """Close in order; an acceptor closes its connections too."""

    def cancel_handlers(self) -> None:
        """Cancel the running handlers; an acceptor cancels those of its connections too."""

    async def live(self) -> None:
        """Run from the start to the last event, in the task group that the dispatcher uses."""

    def release(self) -> None:
        """Close the socket and drop what is buffered, without an event: called at the end of :meth:`live`, however
        that ends.
        """

    def end(self) -> None:
        """Drop the references to all objects that refer to it. This is called last."""

    def is_in_handler(self) -> bool:
        """Whether the current task runs a handler that has to return before the member can end."""

    def closed_error(self, words: str) -> InvalidStateError:
        """The exception for a call that comes too late.

        :param words: the beginning of its message
        """

    @property
    def log_fields(self) -> dict[str, object]:
        """The fields of all log records about it, for structured logs."""
        ...

    def may_log(self, kind: str) -> bool:
        """Whether to log one more record of a kind; see :class:`LogLimit`."""


class Lifetime:
    """Runs a member once, until it is closed.

    It keeps the errors that the owner has to raise or log at the end: what a handler has raised, and a failure that was
    reported to no handler and no waiting task. The member is an argument of each call, and not kept here, so that the
    two do not refer to each other: the garbage collector would have to find such a circle.

    :ivar failure: why the member has failed; None if it has not
    :ivar crash_words: what a handler has raised, and where, in words; empty if none has raised
    :ivar started: whether it runs or has run
    :ivar loop: the event loop that it runs in; None before that
    :ivar thread: the identifier of that event loop's thread; 0 before it is known
    :ivar over: whether it has ended
    :ivar changed: the AnyIO event that is set at the next change; None while no task waits for it
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
        self._crash: BaseException | None = None  # what a handler has raised
        self.crash_words = ""
        self._crashed_in = ("", "")  # in words: where it was raised, and on which event
        self.loop: Loop | None = None
        self.thread = 0
        self._is_contained = False  # whether errors are only logged, as those of accepted connections are
        self._awaiting = 0  # the number of waiting tasks that a failure would be raised in
        self.changed: anyio.Event | None = None
        # For each task the blocks that it has entered, outermost first: the block that runs the member as its task
        # group, a block inside of it as None. The dictionary is made with the first block.
        self._blocks: dict[int, list[TaskGroup | None]] | None = None

    def begin(self) -> None:
        """Note that the member runs from now on, in a task or without one."""
        self.started = True

    def end_before_it_began(self) -> None:
        """Note that the member was closed before it ran."""
        self.over = True

    def fail(self, failure: TCPSocketError) -> None:
        """Note why the member has failed."""
        self.failure = failure

    def mark_failure_reported(self) -> None:
        """Count the failure as reported to the program."""
        self._failure_reported = True

    # Running. There are three kinds of owner: a scope, a server, and a block of the member's own. They differ in where
    # errors are raised or logged.

    async def run_in_scope(self, member: Member, scope: anyio.CancelScope) -> None:
        """Run a member as a task of a scope's task group. An error that was reported to nobody is raised here, and so
        ends the scope.
        """
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
        """Begin to run a connection of a scope without a task. A task is started only when something needs it.

        :param context: the context that the handlers run in
        :param host: starts a task with :meth:`run_in_scope`
        """
        self._note_loop()
        member.dispatcher.begin(member, scope, context, host)

    def end_opened(self, member: Member, *, cancelled: bool) -> BaseException | None:
        """End a member of a scope that no task runs. This does not wait.

        :param cancelled: whether the scope is cancelled: then only an exception that ends the program is returned
        :return: the exception that has to leave the scope: one that ends the program, or an error that was reported to
            nobody; None if there is none
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
        """End a member that no task runs, up to the errors that are left to report."""
        member.release()
        member.dispatcher.end()
        self.over = True
        self.notify()

    def begin_accepted(
        self,
        member: Member,
        server: Lifetime,
        scope: anyio.CancelScope,
        context: Context,
        host: Callable[[], object],
    ) -> None:
        """Begin to run a connection of a server without a task. A task is started only when something needs it. Errors
        of the connection are logged, and do not affect the server or its other connections.

        :param server: the lifetime of the server
        :param scope: the cancel scope of the server's owner
        :param context: the context that the handlers run in
        :param host: starts a task with :meth:`run_accepted`
        """
        self._is_contained = True
        self.loop, self.thread = server.loop, server.thread
        member.dispatcher.begin(member, scope, context, host)

    def end_accepted(self, member: Member) -> KeyboardInterrupt | SystemExit | None:
        """End a connection of a server that no task runs. This does not wait.

        :return: the exception that ends the program, if a handler has raised one
        """
        self._end_without_task(member)
        found = self._take_exit()
        self._log_unreported(member)
        member.end()
        return found

    async def run_accepted(self, member: Member) -> KeyboardInterrupt | SystemExit | None:
        """Run a connection of a server as a task, until its end.

        :return: the exception that ends the program, if a handler has raised one
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
        """Run a member as a task of a block of its own. If a handler raises, the body of the block is cancelled."""
        await self._run(member, body)
        if self._crash is not None:
            body.cancel()

    async def _run(self, member: Member, owner: anyio.CancelScope | None = None) -> None:
        dispatcher = member.dispatcher
        try:
            async with anyio.create_task_group() as tasks:
                if not dispatcher.runs:  # else it began without a task, as begin_opened() and begin_accepted() do
                    assert owner is not None
                    self._note_loop()
                    dispatcher.begin(member, owner, copy_context())
                dispatcher.open_tasks(tasks)
                try:
                    await member.live()
                finally:
                    member.release()  # before the wait for the other tasks: nothing is held any longer than needed
                dispatcher.end_tasks()
        except anyio.get_cancelled_exc_class():
            if is_cancelled():
                raise  # else asyncio has cancelled just this task: that ends no other member
        finally:
            dispatcher.end()
            self.over = True
            self.notify()
        await self.let_waiters_finish()

    # Blocks. They do not use contextlib's context managers, which write into the exceptions that pass.

    async def enter(self, member: Member) -> None:
        """Enter a block of the member. The outermost block runs the member, unless a scope does."""
        if self.over and self._blocks is not None:
            raise RuntimeError(f"{member!r} has ended: make a new one")
        if self._blocks is None:
            self._blocks = {}
        own: TaskGroup | None = None
        if self.started:
            self.refuse_in_handler(member, "leaving its block")
        else:
            tasks = anyio.create_task_group()
            waiting = way_to_wait(tasks.start_soon, lambda: tasks.cancel_scope.cancel())
            self.begin()
            member.wait_by(waiting)
            own = await tasks.__aenter__()  # last: once it is entered, nothing may fail before it is left
            own.start_soon(self._run_beside_body, member, own.cancel_scope, name=repr(member))
        self._blocks.setdefault(anyio.get_current_task().id, []).append(own)

    async def leave(self, member: Member, exc: BaseException | None) -> bool:
        """Leave a block of the member, and wait until the member has ended.

        :param exc: the exception that leaves the body; None if none does
        :return: whether that exception goes no further
        """
        assert self._blocks is not None
        blocks = self._blocks.get(anyio.get_current_task().id)
        if not blocks:
            raise RuntimeError(f"the block of {member!r} is left in another task than it was entered in")
        own = blocks.pop()
        if own is None:
            await self._leave_inner_block(member, exc)
            return False
        try:
            return await self._leave_and_report(member, own, exc)
        finally:
            member.end()

    async def _leave_and_report(self, member: Member, own: TaskGroup, exc: BaseException | None) -> bool:
        """Leave the block that runs the member. One error is raised, the others are logged. First comes an exception
        that ends the program, then the body's, then what a handler has raised or an unreported failure.
        """
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
        """Leave the block that runs the member, until its task has ended.

        :return: the exception that leaves the block, and goes before an unreported error: the body's, or one that ends
            the program; None if there is none
        """
        try:
            raised, passing = split_exception(exc)
            if exc is None:
                member.close()
            elif raised is not None:
                _break_off(member)
                if is_of_cancellation(raised):
                    exc = raised = None
        except BaseException as interrupted:  # by Ctrl-C on Trio: the task group has to be left all the same
            exc = raised = passing = interrupted
        try:
            left = await ended(tasks, passing)
        except anyio.get_cancelled_exc_class():
            if raised is None:  # else the body's exception says more than the cancellation
                raise
            return exc
        if left is not None and left is not passing:  # it ends the program
            return left
        return raised if left is None else exc

    async def _leave_inner_block(self, member: Member, exc: BaseException | None) -> None:
        """Leave a block within the owner's. All that such a block does is to close the member, and to wait for that."""
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
            with suppress(anyio.get_cancelled_exc_class()):  # the body's own exception says more
                await self.wait_until(lambda: self.over)

    def require_task(self, member: Member, what: str) -> None:
        """Check that AnyIO can start and wake tasks here; called by methods that may need it, before any change.

        :param what: the method
        :raises RuntimeError: in a callback of the event loop, and in another thread
        """
        if member.dispatcher.runs:  # else it does not run yet, or no longer
            require_task(what, member, self.loop)

    # Failing

    def crashed(self, member: Member, exc: BaseException, where: str, when: str = "") -> None:
        """Note an exception that a handler or a task of the member has raised, and close the member immediately.

        The first exception is kept for the owner, but one that ends the program replaces any other; the rest are
        logged. Nothing is written into the exception: it may not allow that, or be raised elsewhere too.

        :param where: what has raised it, in words
        :param when: on which event, in words
        """
        other: BaseException | None = exc
        if self._crash is None or (exit_in(exc) is not None and exit_in(self._crash) is None):
            other, self._crash = self._crash, exc
            (where, when), self._crashed_in = self._crashed_in, (where, when)
        if not self.crash_words:
            self.crash_words = f"{self._crashed_in[0]} raised {shown(exc)}{self._crashed_in[1]}"
        if other is not None:
            self._log_crash(
                member,
                "another exception in %r: %s raised %s%s",
                other,
                member.public_object,
                where,
                shown(other),
                when,
            )
        if self._is_contained and exit_in(exc) is None:
            member.close_immediately()
        else:
            _break_off(member)

    def was_slow(self, member: Member, type: str, seconds: float) -> None:
        """Log that a handler has held up the event loop."""
        if member.may_log(f"slow on{type}"):
            fields = {**member.log_fields, "event": "slow", "type": type, "seconds": seconds}
            message = "a handler of %r, on %r, has held up the event loop for %.1f seconds"
            _log.warning(message, member.public_object, type, seconds, fields=fields)

    @property
    def crash(self) -> BaseException | None:
        """What a handler has raised, until it is raised in the owner's block or logged."""
        return self._crash

    def _take_exit(self) -> KeyboardInterrupt | SystemExit | None:
        """The exception that ends the program, if a handler has raised one."""
        if self._crash is None:  # usually
            return None
        found = exit_in(self._crash)
        if found is self._crash:  # else it came in a group, the others of which are still to be logged
            self._crash = None
        return found

    def _raise_unreported(self, member: Member) -> None:
        """Raise the error that was reported to nobody, if there is one. What a handler has raised goes before a
        failure, which may be the reason for it; the other is logged.
        """
        unreported = self._take_unreported()
        self._log_unreported(member)
        try:
            if unreported is not None:
                raise unreported
        finally:
            del unreported  # its traceback refers to this frame

    def _take_unreported(self) -> BaseException | None:
        """The error to raise that was reported to nobody, which counts as reported then; None if there is none."""
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
        """Whether a task waits in which a failure would be raised."""
        return self._awaiting > 0

    @property
    def failure_reported(self) -> bool:
        """Whether the failure was reported to the program."""
        return self._failure_reported

    # Waiting

    def notify(self) -> None:
        """Wake all waiting tasks, to check again what they wait for."""
        if self.changed is not None:
            self.changed.set()
            self.changed = None

    async def reach(self, member: Member, what: str, reached: Callable[[], bool], missed: Callable[[], bool]) -> None:
        """Wait until a condition is met, for a method that the program awaits.

        :param what: the method
        :param reached: the condition
        :param missed: whether the condition can no longer be met
        :raises TCPSocketError: if it can no longer be met, because the connection failed or was lost
        :raises InvalidStateError: if it can no longer be met, because the member was closed
        :raises RuntimeError: in another event loop, or if nothing runs the member
        """
        if member.dispatcher.runs and current_loop() is not self.loop:
            raise RuntimeError(f"{what} of {member!r} cannot be awaited here: it runs in another event loop")
        self.begin_awaiting()
        try:
            await anyio.lowlevel.checkpoint()
            if not (self.started or reached() or missed()):
                raise RuntimeError(f"{what} waits for {member!r}, which nothing runs: enter it with `async with` first")
            await self.wait_until(lambda: reached() or missed())
            await anyio.lowlevel.checkpoint_if_cancelled()  # the task may have been cancelled just when the wait ended
        finally:
            self.end_awaiting()
        if reached():
            return
        if self.failure is None:
            raise member.closed_error(f"{what}: {member!r} was closed first")
        self.mark_failure_reported()
        raise self.failure.again()

    async def let_waiters_finish(self) -> None:
        """Let the notified tasks run, so that each raises the failure if it will. After that it is known whether the
        failure was reported.
        """
        while self._awaiting:
            await anyio.lowlevel.checkpoint()

    async def change(self) -> None:
        """Wait for the next :meth:`notify`."""
        if self.changed is None:
            self.changed = anyio.Event()
        await self.changed.wait()

    async def wait_until(self, reached: Callable[[], bool]) -> None:
        """Wait until a condition is met, which is checked at each :meth:`notify`."""
        self.begin_awaiting()
        try:
            while not reached():
                await self.change()
        finally:
            self.end_awaiting()

    def begin_awaiting(self) -> None:
        """Count a task that begins to wait, and in which a failure would be raised."""
        self._awaiting += 1

    def end_awaiting(self) -> None:
        self._awaiting -= 1

    def refuse_in_handler(self, member: Member, what: str) -> None:
        """Refuse to wait for the end of the member in one of its own handlers, which has to return first.

        :raises RuntimeError: in such a handler
        """
        if member.is_in_handler():
            raise RuntimeError(
                f"{what} waits for the handlers of {member!r} to return, this one included: it could never finish"
            )


def _break_off(member: Member) -> None:
    """Close a member immediately, and cancel its handlers."""
    member.close_immediately()
    member.cancel_handlers()
