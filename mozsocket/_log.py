"""The logger ``mozsocket``, for all that is not raised in the program, such as the errors of accepted connections.

The number of a server's records is limited, so that no peer can fill a disk. An exception that the program's own
logging handlers or filters raise ends neither a connection nor a server.
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
"""The environment variable for :data:`SLOW`, in seconds."""


def _slow() -> float | None:
    """Read :data:`SLOW` from the environment.

    :raises ValueError: if the variable is not a number of seconds
    """
    chosen = os.environ.get(VARIABLE)
    if not chosen:
        return 1 if sys.flags.dev_mode else None
    try:
        return float(chosen)
    except ValueError:
        raise ValueError(f"{VARIABLE} is {chosen!r}: it must be a number of seconds") from None


SLOW = _slow()
"""Seconds for which a handler may hold up the event loop before it is logged. None, the default, for no limit, as
reading the clock costs a little with each event; in Python's development mode the default is 1.
"""

MAX_BURST = 10
"""The most records of one kind that a server logs one by one in each period."""

PERIOD = 60
"""The length of that period in seconds."""


Fields = Mapping[str, object]
"""Attributes of a log record, for structured logs."""

NO_FIELDS: Fields = {"socket_id": "", "local": "", "peer": "", "event": ""}
"""The attributes that each record has: a formatter may name them, and could format no record that lacks one."""


def is_debugging() -> bool:
    """Whether the records of :func:`debug` are logged."""
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
        # A tuple: logging would test a mere exception for its truth, where the program's own class may raise.
        raised = None if exc_info is None else (type(exc_info), exc_info, _latest(exc_info.__traceback__))
        _logger.log(level, message, *args, exc_info=raised, extra={**NO_FIELDS, **(fields or {})})
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:
        if logging.raiseExceptions and sys.stderr is not None:  # as logging does when one of its handlers raises
            with suppress(Exception):  # writing to stderr may fail too
                traceback.print_exc()


def _latest(whole: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that belongs to the latest time the exception was raised. If a program raises one
    exception again and again, Python adds to its traceback each time, and each record would be longer than the last.
    """
    entries: list[TracebackType] = []
    ours = set()
    entry = whole
    while entry is not None:
        frame = entry.tb_frame
        if str(frame.f_globals.get("__name__")).startswith(f"{__package__}."):
            if frame.f_code in ours:
                break
            ours.add(frame.f_code)
        entries.append(entry)
        entry = entry.tb_next
    else:
        return whole
    latest = None
    for each in reversed(entries):
        latest = TracebackType(latest, each.tb_frame, each.tb_lasti, each.tb_lineno)
    return latest


class LogLimit:
    """Limits what a server logs about its connections: ten records a minute of each kind, then the number of others."""

    __slots__ = ("_kinds",)

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[float, int]] = {}  # of each kind, when its period began, and the number in it

    def allows(self, owner: object, kind: str) -> bool:
        """Count one more record.

        :param owner: the server, for its ``repr()``
        :param kind: the kind of record; there have to be few kinds
        :return: whether to log it
        """
        now = time.monotonic()
        began, count = self._kinds.get(kind, (now, 0))
        if now >= began + PERIOD:
            self._log_suppressed(owner, kind)
            began, count = now, 0
        self._kinds[kind] = began, count + 1
        return count < MAX_BURST

    def close(self, owner: object) -> None:
        """Log how many records were left out in the current periods."""
        for kind in tuple(self._kinds):
            self._log_suppressed(owner, kind)

    def _log_suppressed(self, owner: object, kind: str) -> None:
        _, count = self._kinds.pop(kind)
        if count > MAX_BURST:
            warning("%r: %d more like this were not logged one by one: %s", owner, count - MAX_BURST, kind)
