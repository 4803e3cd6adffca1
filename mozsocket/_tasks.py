"""Additions to AnyIO's tasks: a signal that is kept, the event loop as an object, and leaving a task group."""

from __future__ import annotations

import sys
from typing import Protocol

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from anyio.lowlevel import RunVar

from ._raised import exit_in, log_displaced, runs_asyncio

if sys.version_info < (3, 11):  # AnyIO depends on the backport
    from exceptiongroup import BaseExceptionGroup

__all__ = ("Loop", "Signal", "current_loop", "ended", "require_task")


class Signal:
    """Wakes one task that waits for it. If no task is waiting, the next :meth:`wait` returns immediately."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = anyio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self) -> None:
        await self._event.wait()
        self._event = anyio.Event()


class Loop(Protocol):
    """An event loop."""

    def runs_task(self) -> bool:
        """Whether the caller runs in one of its tasks: not in a callback, and not in another thread."""


class _AnyLoop:
    """An event loop that is known only through AnyIO."""

    def runs_task(self) -> bool:
        try:
            anyio.get_current_task()
            return current_loop() is self
        except Exception:  # no event loop runs in this thread, or no task of it
            return False


_current: RunVar[Loop] = RunVar("mozsocket's event loop")


def current_loop() -> Loop:
    """The event loop that runs in this thread."""
    try:
        return _current.get()
    except LookupError:
        _current.set(loop := _make_loop())
        return loop


def _make_loop() -> Loop:
    if not runs_asyncio():
        return _AnyLoop()
    from ._asyncio import AsyncioLoop

    return AsyncioLoop()


def require_task(what: str, owner: object, loop: Loop | None) -> None:
    """Check that the caller runs in a task of an event loop, as AnyIO can start and wake tasks only there.

    :param what: the method that may have to start or wake a task
    :param owner: the object that has the method
    :param loop: the event loop that the object belongs to
    :raises RuntimeError: in a callback of the event loop, and in another thread
    """
    if loop is None or not loop.runs_task():
        raise RuntimeError(
            f"{what} of {owner!r} has to be called from a task of its event loop or a handler: in a callback of"
            " asyncio's, start a task for it; in a worker thread of AnyIO's, have anyio.from_thread.run() call an"
            " `async def` function that does it, and in any other an anyio.from_thread.BlockingPortal; once its event"
            " loop has ended, it is too late"
        )


async def ended(tasks: TaskGroup, exc: BaseException | None = None) -> BaseException | None:
    """Leave the block of a task group.

    :param exc: the exception that leaves its body; None if none does
    :return: the exception to raise then; None if there is none. It is ``exc``, unless the task group suppresses that,
        or an exception that ends the program, taken out of the task group's ExceptionGroup, as it would not end the
        program from within. On Trio, Ctrl-C may be raised in any of the tasks
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
