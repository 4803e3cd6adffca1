"""Facts about asyncio's tasks that AnyIO does not give. Imported only if asyncio, or a loop like it, runs."""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections.abc import Callable
from functools import partial

import anyio.lowlevel

__all__ = ("AsyncioLoop", "OwnCancellation", "is_being_cancelled")


class AsyncioLoop:
    """The running event loop. To ask AnyIO would take ten times as long, at each ``send()``."""

    def __init__(self) -> None:
        self._loop = weakref.ref(asyncio.get_running_loop())  # weak, as a RunVar of that event loop keeps this object

    def runs_task(self) -> bool:
        """Whether the caller runs in one of its tasks: not in a callback, and not in another thread."""
        try:
            return asyncio.get_running_loop() is self._loop() and asyncio.current_task() is not None
        except RuntimeError:  # no event loop runs in this thread
            return False


async def is_being_cancelled() -> bool:
    """Whether the current task is being cancelled by :meth:`asyncio.Task.cancel`, as all tasks are on shutting down.

    AnyIO knows only about its cancel scopes. Nor does the exception say it: a future that the task awaits raises the
    same if somebody has cancelled the future. On Python 3.10 a task does not say it either. But when all tasks are
    cancelled, the tasks that AnyIO's scopes belong to have been cancelled one turn of the event loop later, which the
    scopes then show.
    """
    if sys.version_info >= (3, 11):
        task = asyncio.current_task()
        return task is not None and task.cancelling() > 0
    await anyio.lowlevel.checkpoint()
    return False


class OwnCancellation:
    """Shows whether a function called by the current task has cancelled that very task, by
    :meth:`asyncio.Task.cancel`, and can undo it.

    :ivar count: gives the number of requests to cancel the task so far
    """

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        if sys.version_info >= (3, 11):
            self.count: Callable[[], int] = task.cancelling
        else:
            self.count = partial(getattr, task, "_must_cancel")  # a bool; Python 3.10 has nothing public for it

    def take_back(self, before: int) -> None:
        """Undo the requests to cancel the task. Before Python 3.13 one is still raised at the next checkpoint.

        :param before: what :attr:`count` gave before those requests
        """
        if sys.version_info >= (3, 11):
            while self._task.cancelling() > before:
                self._task.uncancel()
