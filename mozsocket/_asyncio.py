"""What AnyIO does not tell of asyncio; imported when that runs."""

from __future__ import annotations

import asyncio
import sys

import anyio.lowlevel

__all__ = ("is_being_cancelled",)


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
