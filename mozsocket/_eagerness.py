"""Whether polling for more to read is worth it, before waiting for it."""

from __future__ import annotations

__all__ = ("Eagerness",)

EAGER_POLLS = 3
"""Turns of the event loop for which to poll. If both ends are in one process, an answer has arrived by then."""

MAX_SKIP = 63
"""The most reads after which polling is skipped, where it has found nothing, before it is tried again."""


class Eagerness:
    """Decides, after a read, whether to poll for more in the next turns of the event loop or to wait immediately.

    The answer to what a handler has sent often arrives within a few turns of the event loop, and a turn costs far less
    than a wait for the operating system. Where it does not, as with a distant peer, polling is tried ever less often.
    """

    __slots__ = ("_limit", "_polls", "_skip", "_skipped")

    def __init__(self) -> None:
        self._limit = 0  # the most polls until something is read
        self._polls = 0  # the number of polls since something was read
        self._skip = self._skipped = 1  # for how many reads to skip polling, and for how many that was done

    def found(self) -> None:
        """Note that something was read."""
        if self._polls:
            self._skip = self._polls = 0
        if self._skipped < self._skip:
            self._skipped += 1
            self._limit = 0
        else:
            self._skipped = 0
            self._limit = EAGER_POLLS

    def should_poll(self) -> bool:
        """Whether to poll once more, at the next turn of the event loop, instead of waiting."""
        if self._polls < self._limit:
            self._polls += 1
            return True
        if self._polls:
            self._skip = min(2 * self._skip + 1, MAX_SKIP)
            self._polls = self._limit = 0
        return False
