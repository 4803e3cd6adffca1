"""The logger ``mozsocket``, where is told what nobody else was: never at the rate of who wants to fill a disk, and what
the program's own handlers and filters of logging raise is not the end of a connection, or of a server.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from contextlib import suppress
from types import TracebackType

__all__ = ("WarningLimit", "error", "warning")

_logger = logging.getLogger("mozsocket")

AT_ONCE = 10
"""Warnings of a kind that are logged one by one in each period."""

PERIOD = 60
"""Seconds."""


def warning(message: str, *args: object) -> None:
    _log(logging.WARNING, message, args)


def error(message: str, *args: object, exc_info: BaseException | None = None) -> None:
    _log(logging.ERROR, message, args, exc_info)


def _log(level: int, message: str, args: tuple[object, ...], exc_info: BaseException | None = None) -> None:
    try:
        # Not the exception alone, as logging asks for its truth, and it may be any.
        raised = None if exc_info is None else (type(exc_info), exc_info, _latest(exc_info.__traceback__))
        _logger.log(level, message, *args, exc_info=raised)
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


class WarningLimit:
    """What a server logs of its connections: of each kind some a minute, and then how many more there were."""

    __slots__ = ("_kinds",)

    def __init__(self) -> None:
        self._kinds: dict[str, tuple[float, int]] = {}  # when the period began, and how many there were in it

    def warn(self, owner: object, kind: str, message: str, *args: object) -> None:
        """Log a warning, if there were not too many.

        :param owner: the server, for its ``repr()``
        :param kind: what is counted together; of few values
        :param message: what to log, as of :meth:`logging.Logger.warning`
        """
        if self._count(owner, kind):
            warning(message, *args)

    def error(self, owner: object, kind: str, message: str, *args: object) -> None:
        """The same, for an error."""
        if self._count(owner, kind):
            error(message, *args)

    def _count(self, owner: object, kind: str) -> bool:
        """:return: whether it is to be logged"""
        now = time.monotonic()
        began, count = self._kinds.get(kind, (now, 0))
        if now >= began + PERIOD:
            self._tell_rest(owner, kind)
            began, count = now, 0
        self._kinds[kind] = began, count + 1
        return count < AT_ONCE

    def close(self, owner: object) -> None:
        """Log how many were left out so far."""
        for kind in tuple(self._kinds):
            self._tell_rest(owner, kind)

    def _tell_rest(self, owner: object, kind: str) -> None:
        _, count = self._kinds.pop(kind)
        if count > AT_ONCE:
            warning("%r: %d more like this were not logged one by one: %s", owner, count - AT_ONCE, kind)
