"""What was raised: a cancellation, what is to end the program, or something of the program's own."""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel

from . import _log
from ._errors import InvalidStateError

if TYPE_CHECKING:
    from ._asyncio import OwnCancellation

if sys.version_info < (3, 11):  # AnyIO depends on the backport
    from exceptiongroup import BaseExceptionGroup

__all__ = (
    "exit_in",
    "is_cancelled",
    "is_cancelled_by_loop",
    "is_of_cancellation",
    "log_displaced",
    "own_cancellation",
    "pass_over",
    "runs_asyncio",
    "shown",
    "split_exception",
    "stray",
    "without_task",
)


def is_cancelled() -> bool:
    """Whether any scope around the current task is cancelled. Not for the hot paths: it takes microseconds."""
    return anyio.current_effective_deadline() == -math.inf


async def is_cancelled_by_loop(exc: BaseException) -> bool:
    """Whether a cancellation is of the event loop's own kind: of the task, by asyncio, whatever scopes it is in."""
    if not type(exc).__module__.startswith("asyncio"):
        return False
    from ._asyncio import is_being_cancelled

    return await is_being_cancelled() or is_cancelled()


def runs_asyncio() -> bool:
    """Whether the event loop is asyncio's, or one in its manner."""
    return anyio.get_cancelled_exc_class().__module__.startswith("asyncio")


def own_cancellation() -> OwnCancellation | None:
    """What tells whether the current task cancels itself; None where tasks cannot, as on Trio."""
    if not runs_asyncio():
        return None
    from ._asyncio import OwnCancellation

    return OwnCancellation()


async def pass_over(own: OwnCancellation, before: int) -> None:
    """Go on, where the current task has cancelled itself, and nobody else has.

    :param before: what its count was before
    """
    own.take_back(before)
    try:
        await anyio.lowlevel.checkpoint()
    except anyio.get_cancelled_exc_class():
        if is_cancelled():  # by its owner, too
            raise


def is_of_cancellation(exc: BaseException | None) -> bool:
    """Whether it is what a method has said of a socket that was closed by a cancellation, which is about to be raised
    in the program too: it need not know of both.
    """
    return isinstance(exc, InvalidStateError) and is_cancelled()


def split_exception(exc: BaseException | None) -> tuple[BaseException | None, BaseException | None]:
    """Tell what a program has raised from a cancellation. On Trio the two may come in one group.

    :return: what was raised, and what has to be raised on
    """
    cancelled = anyio.get_cancelled_exc_class()
    if isinstance(exc, BaseExceptionGroup):
        passing, raised = BaseExceptionGroup.split(exc, cancelled)
        return (exc if passing is None else raised), passing
    if isinstance(exc, (cancelled, GeneratorExit)):  # by which a coroutine is closed
        return None, exc
    return exc, None


def without_task(exc: BaseException) -> BaseException:
    """What a function that is not asynchronous, and so cannot be cancelled, has raised."""
    return stray(exc) if isinstance(exc, anyio.get_cancelled_exc_class()) else exc


def stray(exc: BaseException) -> Exception:
    """For a cancellation that was not ours, such as that of a future whose result a handler took."""
    error = RuntimeError(f"a handler raised {type(exc).__name__}, though nothing had cancelled it")
    error.__cause__ = exc
    return error


def exit_in(exc: BaseException | None) -> KeyboardInterrupt | SystemExit | None:
    """What is to end the program, in an exception that may be a group."""
    if isinstance(exc, BaseExceptionGroup):
        return next((found for inner in exc.exceptions if (found := exit_in(inner)) is not None), None)
    return exc if isinstance(exc, (KeyboardInterrupt, SystemExit)) else None


def log_displaced(exc: BaseException | None) -> None:
    """Log what is not raised, as what ends the program is raised in its place."""
    raised, _ = split_exception(exc)
    if raised is not None:
        _log.error("the program is being ended, and also raised %s", shown(raised), exc_info=raised)


def shown(exc: BaseException) -> str:
    try:
        return ascii(exc)
    except Exception:  # it is the program's, and may be any
        return type(exc).__name__
