"""How long what may not last for ever may last, and what is said when its time is over."""

from __future__ import annotations

import errno
import math

from ._machine import Limit
from ._options import SocketOptions

__all__ = ("Idleness", "Limits", "timeout")

FAILURE_PATIENCE = 1
"""Seconds to read, when nothing more can be sent, what the peer sent before; as a rule it is there."""

ALERT_PATIENCE = 1
"""Seconds that a peer is given to read why TLS failed: to close with unread input would destroy the alert (RST)."""

PLAINTEXT_STEP = 65_536
"""Bytes of the plaintext before an upgrade that the peer has to take in each ``handshake_timeout``: so the time for all
of it is bounded too."""

IDLE_CHECKS = 8
"""How often, in an ``idle_timeout``, one looks whether anything has happened: that late is it found."""

PLAINTEXT_PATIENCE = 0.5
"""Seconds for that at least: it may be said that a handshake must be here at once, but not that a network be fast."""


def timeout(words: str) -> TimeoutError:
    return TimeoutError(errno.ETIMEDOUT, words)


class Limits:
    """Those of one connection: of connecting, TLS included, and of what it is doing now.

    :param options: of the connection
    :ivar current: what is limited now, beside connecting
    """

    __slots__ = ("_connect_at", "_current_at", "_options", "_plaintext", "current")

    def __init__(self, options: SocketOptions) -> None:
        self._options = options
        self.current: Limit | None = None
        self._current_at = self._connect_at = math.inf
        self._plaintext = 0

    def begin_to_connect(self, deadline: float) -> None:
        """:param deadline: when there has to be a connection, by the event loop's clock"""
        self._connect_at = deadline

    def begin(self, limit: Limit | None, now: float, plaintext: int) -> None:
        """
        :param limit: what is limited from now on
        :param plaintext: how many bytes are yet to be taken that go before TLS
        """
        self.current = limit
        self._current_at = math.inf if limit is None else now + self._seconds(limit)
        self._plaintext = plaintext

    @property
    def deadline(self) -> float:
        """When the first of them is over."""
        return min(self._connect_at, self._current_at)

    def expired(self, now: float) -> Limit | None:
        """Which of them is."""
        if now >= self._connect_at:
            return Limit.CONNECT
        return self.current if now >= self._current_at else None

    def has_progressed(self, limit: Limit, plaintext: int) -> bool:
        """Whether what was limited has got as far as it had to."""
        return limit is Limit.PLAINTEXT and plaintext <= max(self._plaintext - PLAINTEXT_STEP, 0)

    def error(self, limit: Limit) -> TimeoutError:
        """What the connection fails with."""
        if limit is Limit.CONNECT:
            return timeout(f"not connected within {self._options.connect_timeout} seconds")
        seconds = self._seconds(limit)
        if limit is Limit.PLAINTEXT:
            return timeout(
                f"the peer did not take {PLAINTEXT_STEP} bytes of what comes before TLS in {seconds} seconds"
            )
        what = "header of the PROXY protocol" if limit is Limit.HEADER else "TLS handshake"
        return timeout(f"no {what} within {seconds} seconds")

    def _seconds(self, limit: Limit) -> float:
        if limit is Limit.LINGER:
            return self._options.linger
        if limit is Limit.PLAINTEXT:
            return max(self._options.handshake_timeout, PLAINTEXT_PATIENCE)
        if limit is Limit.FAILURE:
            return FAILURE_PATIENCE
        return ALERT_PATIENCE if limit is Limit.ALERT else self._options.handshake_timeout


class Idleness:
    """How long nothing has been received by a connection, nor taken from it.

    Nothing is noted when that happens: it is looked for now and then, as :data:`IDLE_CHECKS` has it.

    :param seconds: how long that may be so
    :param now: by the event loop's clock
    :ivar deadline: when to look next
    """

    __slots__ = ("_active_at", "_bytes_moved", "_seconds", "deadline")

    def __init__(self, seconds: float, now: float) -> None:
        self._seconds = seconds
        self._bytes_moved = 0
        self._active_at = now
        self.deadline = now + seconds / IDLE_CHECKS

    def check(self, moved: int, now: float) -> bool:
        """
        :param moved: how many bytes have gone either way so far
        :return: whether the time is over
        """
        if moved != self._bytes_moved:
            self._bytes_moved, self._active_at = moved, now
        over = self._active_at + self._seconds
        self.deadline = min(over, now + self._seconds / IDLE_CHECKS)
        return now >= over

    @property
    def error(self) -> TimeoutError:
        """What the connection fails with."""
        return timeout(f"nothing was received, and nothing taken by the peer, for {self._seconds} seconds")
