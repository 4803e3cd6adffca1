"""What is needed of tasks, beside what AnyIO has: a signal that is kept, the event loop, leaving a group."""

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
    """Wakes one waiting task. A wake-up that nobody waits for yet is kept."""

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
        """Whether it is running one of its tasks, here: not a callback, and not in another thread."""


class _AnyLoop:
    """One of which nothing is known but what AnyIO tells."""

    def runs_task(self) -> bool:
        try:
            anyio.get_current_task()
            return current_loop() is self
        except Exception:  # no event loop runs here, or none of its tasks
            return False


_current: RunVar[Loop] = RunVar("mozsocket's event loop")


def current_loop() -> Loop:
    """The event loop that runs here."""
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
    """
    :param what: what is called, and may have to start or wake a task
    :param owner: of what
    :param loop: the event loop that it belongs to
    :raises RuntimeError: in a callback of the event loop, or another thread: AnyIO can do neither there
    """
    if loop is None or not loop.runs_task():
        raise RuntimeError(
            f"{what} of {owner!r} has to be called from a task of its event loop or a handler: in a callback of"
            " asyncio's, start a task for it; in another thread, call it by anyio.from_thread.run_sync(); once its"
            " event loop has ended, it is too late"
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
