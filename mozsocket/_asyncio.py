"""What AnyIO does not tell of asyncio; imported when that runs."""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections.abc import Callable
from functools import partial

import anyio.lowlevel

__all__ = ("AsyncioLoop", "OwnCancellation", "is_being_cancelled")


class AsyncioLoop:
    """The running event loop. AnyIO tells as well, but it takes ten times as long, at each ``send()``."""

    def __init__(self) -> None:
        self._loop = weakref.ref(asyncio.get_running_loop())  # which AnyIO keeps this for

    def runs_task(self) -> bool:
        """Whether it is running one of its tasks, here: not a callback, and not in another thread."""
        try:
            return asyncio.get_running_loop() is self._loop() and asyncio.current_task() is not None
        except RuntimeError:  # none runs here
            return False


async def is_being_cancelled() -> bool:
    """Whether the current task has been cancelled by :meth:`asyncio.Task.cancel`, as on shutting down all of them are.

    AnyIO tells of its cancel scopes only. And the exception alone tells nothing: it is the same when a future, of which
    the task awaits the result, was cancelled by whom it belongs to. Before Python 3.11 a task does not tell either; but
    where all tasks are cancelled, those that AnyIO's scopes belong to have been so a turn later, and the scopes tell.
    """
    if sys.version_info >= (3, 11):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    await anyio.lowlevel.checkpoint()
    return False


class OwnCancellation:
    """Tells whether a function that the current task has called has cancelled that very task, by
    :meth:`asyncio.Task.cancel`, and takes it back.
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        if sys.version_info >= (3, 11):
            self.count: Callable[[], int] = task.cancelling
        else:
            self.count = partial(getattr, task, "_must_cancel")  # it does not tell otherwise

    def take_back(self, before: int) -> None:
        """Before Python 3.13 it is raised at the next checkpoint nevertheless.

        :param before: what :attr:`count` has said before
        """
        if sys.version_info >= (3, 11):
            while self._task.cancelling() > before:
                self._task.uncancel()
