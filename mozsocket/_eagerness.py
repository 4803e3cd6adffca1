"""When to look again for what has not arrived yet, before the operating system is asked to tell."""

from __future__ import annotations

__all__ = ("Eagerness",)

EAGER_POLLS = 3
"""Turns of the event loop for which to look for an answer: when both ends are in one process it is here by then."""

MAX_SKIP = 63
"""How often, where that was in vain, it is left out before it is tried again."""


class Eagerness:
    """Whether to look again for more to read, before the operating system is asked to tell.

    The answer to what a handler has sent is often here within a few turns of the event loop, and a turn costs far less
    than to have the operating system tell. Where it is not, as with a distant peer, that is tried ever less often.
    """

    __slots__ = ("_limit", "_polls", "_skip", "_skipped")

    def __init__(self) -> None:
        self._limit = 0  # how many looks there may be now
        self._polls = 0  # how many there have been since something was read
        self._skip = self._skipped = 1  # how many times not to look, and did not

    def found(self) -> None:
        """Something was read."""
        if self._polls:
            self._skip = self._polls = 0
        if self._skipped < self._skip:
            self._skipped += 1
            self._limit = 0
        else:
            self._skipped = 0
            self._limit = EAGER_POLLS

    def should_poll(self) -> bool:
        """Whether to look again at the next turn of the event loop."""
        if self._polls < self._limit:
            self._polls += 1
            return True
        if self._polls:
            self._skip = min(2 * self._skip + 1, MAX_SKIP)
            self._polls = self._limit = 0
        return False
