"""The logger ``mozsocket``, where is told what nobody else was: never at the rate of who wants to fill a disk, and what
the program's own handlers and filters of logging raise is not the end of a connection, or of a server.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType

__all__ = ("SLOW", "LogLimit", "debug", "error", "info", "is_debugging", "warning")

_logger = logging.getLogger("mozsocket")

VARIABLE = "MOZSOCKET_SLOW_HANDLERS"
"""The environment variable that has handlers told of that take longer than so many seconds."""


def _slow() -> float | None:
    """:raises ValueError: if the environment asks for what is no number of seconds"""
    chosen = os.environ.get(VARIABLE)
    if not chosen:
        return 1 if sys.flags.dev_mode else None
    try:
        return float(chosen)
    except ValueError:
        raise ValueError(f"{VARIABLE} is {chosen!r}: it must be a number of seconds") from None


SLOW = _slow()
"""Seconds after which a handler is told of that holds up the event loop; None for never, as looking at the clock costs
a little with each event. In Python's development mode it is 1.
"""

MAX_BURST = 10
"""Records of a kind that are logged one by one in each period."""

PERIOD = 60
"""Seconds."""


Fields = Mapping[str, object]
"""For structured logs: attributes of the record."""


def is_debugging() -> bool:
    """Whether what is told by :func:`debug` is wanted."""
    return _logger.isEnabledFor(logging.DEBUG)


def debug(message: str, *args: object, fields: Fields | None = None) -> None:
    _log(logging.DEBUG, message, args, None, fields)


def info(message: str, *args: object, fields: Fields | None = None) -> None:
    _log(logging.INFO, message, args, None, fields)


def warning(message: str, *args: object, fields: Fields | None = None) -> None:
    _log(logging.WARNING, message, args, None, fields)


def error(message: str, *args: object, exc_info: BaseException | None = None, fields: Fields | None = None) -> None:
    _log(logging.ERROR, message, args, exc_info, fields)


def _log(
    level: int, message: str, args: tuple[object, ...], exc_info: BaseException | None, fields: Fields | None
) -> None:
    try:
        # Not the exception alone, as logging asks for its truth, and it may be any.
        raised = None if exc_info is None else (type(exc_info), exc_info, _latest(exc_info.__traceback__))
        _logger.log(level, message, *args, exc_info=raised, extra=fields)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        if logging.raiseExceptions and sys.stderr is not None:  # as logging does with its own handlers' trouble
            with suppress(Exception):  # there may be nobody to tell
                traceback.print_exc()


def _latest(whole: TracebackType | None) -> TracebackType | None:
    """Of an exception that is raised again and again, what tells of the last time: Python goes on with what it has, so
    that the records, too, would grow.
    """
    entries: list[TracebackType] = []
    ours = set()
    rest = whole
    while rest is not None:
        frame = rest.tb_frame
        if str(frame.f_globals.get("__name__")).startswith(f"{__package__}."):
            if frame.f_code in ours:
                break
            ours.add(frame.f_code)
        entries.append(rest)
        rest = rest.tb_next
    else:
        return whole
    latest = None
    for entry in reversed(entries):
        latest = TracebackType(latest, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return latest


class LogLimit:
    """What a server logs of its connections: of each kind some a minute, and then how many more there were."""

    __slots__ = ("_kinds",)

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[float, int]] = {}  # when the period began, and how many there were in it

    def allows(self, owner: object, kind: str) -> bool:
        """Count one more.

        :param owner: the server, for its ``repr()``
        :param kind: what is counted together; of few values
        :return: whether it is to be logged
        """
        now = time.monotonic()
        began, count = self._kinds.get(kind, (now, 0))
        if now >= began + PERIOD:
            self._log_suppressed(owner, kind)
            began, count = now, 0
        self._kinds[kind] = began, count + 1
        return count < MAX_BURST

    def close(self, owner: object) -> None:
        """Log how many were left out so far."""
        for kind in tuple(self._kinds):
            self._log_suppressed(owner, kind)

    def _log_suppressed(self, owner: object, kind: str) -> None:
        _, count = self._kinds.pop(kind)
        if count > MAX_BURST:
            warning("%r: %d more like this were not logged one by one: %s", owner, count - MAX_BURST, kind)
