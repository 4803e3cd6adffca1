"""What AnyIO does not tell of asyncio; imported when that runs."""

from __future__ import annotations

import asyncio
import sys

__all__ = ("is_being_cancelled",)


def is_being_cancelled() -> bool:
    """Whether the current task has been cancelled by :meth:`asyncio.Task.cancel`, as on shutting down all of them are.

    AnyIO tells of its cancel scopes only. And the exception alone tells nothing: it is the same when a future, of which
    the task awaits the result, was cancelled by whom it belongs to. Before Python 3.11 a task does not tell either.
    """
    task = asyncio.current_task()
    return sys.version_info >= (3, 11) and task is not None and task.cancelling() > 0
