"""The logger ``mozsocket``, where is told what nobody else was: never at the rate of who wants to fill a disk."""

from __future__ import annotations

import logging
import time

__all__ = ("WarningLimit", "logger")

logger = logging.getLogger("mozsocket")

AT_ONCE = 10
"""Warnings of a kind that are logged one by one in each period."""

PERIOD = 60
"""Seconds."""


class WarningLimit:
    """The warnings of a server about its connections: of each kind some a minute, and then how many more there were.

    :param owner: what the warnings are of, for its ``repr()``
    """

    __slots__ = ("_kinds", "_owner")

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self._kinds: dict[str, tuple[float, int]] = {}  # when the period began, and how many there were in it

    def warn(self, kind: str, message: str, *args: object) -> None:
        """
        :param kind: what is counted together; of few values
        :param message: what to log, as of :meth:`logging.Logger.warning`
        """
        now = time.monotonic()
        began, count = self._kinds.get(kind, (now, 0))
        if now >= began + PERIOD:
            self._tell_rest(kind)
            began, count = now, 0
        self._kinds[kind] = began, count + 1
        if count < AT_ONCE:
            logger.warning(message, *args)

    def close(self) -> None:
        """Log how many were left out so far."""
        for kind in tuple(self._kinds):
            self._tell_rest(kind)

    def _tell_rest(self, kind: str) -> None:
        _, count = self._kinds.pop(kind)
        if count > AT_ONCE:
            logger.warning("%r: %d more like this were not logged one by one: %s", self._owner, count - AT_ONCE, kind)
