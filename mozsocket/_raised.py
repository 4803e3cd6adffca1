"""Tells exceptions apart: cancellations, exceptions that end the program, and those that the program's code has raised.

Handlers may raise any of them, and on Trio several may come in one group.
"""

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
    """Whether any cancel scope around the current task is cancelled. It takes microseconds: not for the fast path."""
    return anyio.current_effective_deadline() == -math.inf


async def is_cancelled_by_loop(exc: BaseException) -> bool:
    """Whether asyncio is cancelling the current task itself, whatever cancel scopes it is in.

    :param exc: the cancellation that was raised
    """
    if not type(exc).__module__.startswith("asyncio"):
        return False
    from ._asyncio import is_being_cancelled

    return await is_being_cancelled() or is_cancelled()


def runs_asyncio() -> bool:
    """Whether the event loop is asyncio's, or one that implements asyncio's interface, such as uvloop."""
    return anyio.get_cancelled_exc_class().__module__.startswith("asyncio")


def own_cancellation() -> OwnCancellation | None:
    """Watches whether the current task cancels itself; None if tasks cannot do that, as on Trio."""
    if not runs_asyncio():
        return None
    from ._asyncio import OwnCancellation

    return OwnCancellation()


async def pass_over(own: OwnCancellation, before: int) -> None:
    """Undo the cancellation of the current task by itself, unless its owner has cancelled it too.

    :param own: the count of the task's cancellations
    :param before: what that count was before
    """
    own.take_back(before)
    try:
        await anyio.lowlevel.checkpoint()
    except anyio.get_cancelled_exc_class():
        if is_cancelled():  # the owner has cancelled it too
            raise


def is_of_cancellation(exc: BaseException | None) -> bool:
    """Whether an exception only follows from a cancellation: a method has refused a socket that the cancellation had
    closed. The cancellation is about to be raised in the program too, which need not get both.
    """
    return isinstance(exc, InvalidStateError) and is_cancelled()


def split_exception(exc: BaseException | None) -> tuple[BaseException | None, BaseException | None]:
    """Separate what the program has raised from a cancellation. On Trio the two may come in one group.

    :return: what the program has raised, and the cancellation, which has to be raised further
    """
    cancelled = anyio.get_cancelled_exc_class()
    if isinstance(exc, BaseExceptionGroup):
        passing, raised = BaseExceptionGroup.split(exc, cancelled)
        return (exc if passing is None else raised), passing
    if isinstance(exc, (cancelled, GeneratorExit)):  # a coroutine is being closed
        return None, exc
    return exc, None


def without_task(exc: BaseException) -> BaseException:
    """What a plain function has raised: as it cannot be cancelled, a cancellation becomes an ordinary exception."""
    return stray(exc) if isinstance(exc, anyio.get_cancelled_exc_class()) else exc


def stray(exc: BaseException) -> Exception:
    """An ordinary exception for a cancellation that a handler has raised, but nobody has requested. An example is that
    of a cancelled future whose result the handler has asked for.
    """
    error = RuntimeError(f"a handler raised {type(exc).__name__}, though nothing had cancelled it")
    error.__cause__ = exc
    return error


def exit_in(exc: BaseException | None) -> KeyboardInterrupt | SystemExit | None:
    """The exception that ends the program, KeyboardInterrupt or SystemExit, in an exception that may be a group."""
    if isinstance(exc, BaseExceptionGroup):
        return next((found for inner in exc.exceptions if (found := exit_in(inner)) is not None), None)
    return exc if isinstance(exc, (KeyboardInterrupt, SystemExit)) else None


def log_displaced(exc: BaseException | None) -> None:
    """Log an exception that is not raised, as one that ends the program is raised in its place."""
    raised, _ = split_exception(exc)
    if raised is not None:
        _log.error("the program is being ended, and also raised %s", shown(raised), exc_info=raised)


def shown(exc: BaseException) -> str:
    """An exception as text for the log."""
    try:
        return ascii(exc)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # the exception may be of the program's own class, whose repr() raises
        return type(exc).__name__
