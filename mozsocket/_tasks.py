"""What is needed of tasks, beside what AnyIO has: a signal that is kept, a mark of the event loop, leaving a group."""

from __future__ import annotations

import sys

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from anyio.lowlevel import RunVar

from ._raised import exit_in, log_displaced

if sys.version_info < (3, 11):  # AnyIO depends on the backport
    from exceptiongroup import BaseExceptionGroup

__all__ = ("Signal", "current_loop", "ended", "require_task")


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
