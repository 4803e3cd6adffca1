"""Time limits: how long connecting, a handshake, closing and silence may last, and the errors when they last longer.

The connection asks for the next deadline and the error; this module has no clock of its own.
"""

from __future__ import annotations

import errno
import math

from ._machine import Limit
from ._options import SocketOptions

__all__ = ("Idleness", "Limits", "timeout")

FAILURE_PATIENCE = 1
"""Seconds for reading what the peer had sent before sending failed. Usually it has arrived already."""

ALERT_PATIENCE = 1
"""Seconds for the peer to read the alert that says why TLS failed. Closing before that would destroy the alert, as
closing with unread input sends a reset (RST)."""

PLAINTEXT_STEP = 65_536
"""Bytes of the plaintext before an upgrade that the peer has to take in each ``handshake_timeout``. So the time for the
whole plaintext is limited too."""

IDLE_CHECKS = 8
"""The number of checks for activity in each ``idle_timeout``: it may be exceeded by the time between two checks."""

PLAINTEXT_PATIENCE = 0.5
"""The least number of seconds for a step of the plaintext. A program may want a handshake immediately, with a very
short ``handshake_timeout``, but cannot make the network fast."""


def timeout(words: str) -> TimeoutError:
    """The error of a time limit."""
    return TimeoutError(errno.ETIMEDOUT, words)


class Limits:
    """The time limits of one connection: that of connecting, TLS included, and that of its current stage.

    :param options: the options of the connection
    :ivar current: the limit of the current stage; None if it has none
    """

    __slots__ = ("_connect_at", "_current_at", "_options", "_plaintext", "current")

    def __init__(self, options: SocketOptions) -> None:
        self._options = options
        self.current: Limit | None = None
        self._current_at = self._connect_at = math.inf
        self._plaintext = 0

    def begin_to_connect(self, deadline: float) -> None:
        """Limit the time for connecting.

        :param deadline: when the connection has to be established, by the event loop's clock
        """
        self._connect_at = deadline

    def end(self) -> None:
        """Begin a stage that has no limit."""
        self.current = None
        self._current_at = math.inf

    def begin(self, limit: Limit, now: float, plaintext: int) -> None:
        """Begin another stage.

        :param limit: the limit of that stage
        :param now: the time by the event loop's clock
        :param plaintext: how many bytes before TLS the peer has not taken yet
        """
        self.current = limit
        self._current_at = now + self._seconds(limit)
        self._plaintext = plaintext

    @property
    def deadline(self) -> float:
        """The earlier of the two deadlines, by the event loop's clock; infinite if there is none."""
        return min(self._connect_at, self._current_at)

    def expired(self, now: float) -> Limit | None:
        """The limit that is exceeded; None if none is.

        :param now: the time by the event loop's clock
        """
        if now >= self._connect_at:
            return Limit.CONNECT
        return self.current if now >= self._current_at else None

    def has_progressed(self, limit: Limit, plaintext: int) -> bool:
        """Whether the stage has got as far as it had to, so that the limit may begin again.

        :param limit: the limit whose time is over
        :param plaintext: how many bytes before TLS the peer has not taken yet
        """
        return limit is Limit.PLAINTEXT and plaintext <= max(self._plaintext - PLAINTEXT_STEP, 0)

    def error(self, limit: Limit) -> TimeoutError:
        """The error of a connection that has exceeded a limit."""
        if limit is Limit.CONNECT:
            return timeout(f"not connected within {self._options.connect_timeout} seconds")
        seconds = self._seconds(limit)
        if limit is Limit.PLAINTEXT:
            return timeout(
                f"the peer did not take {PLAINTEXT_STEP} bytes of the plaintext before TLS within {seconds} seconds"
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
    """How long a connection has been idle: nothing was received from the peer, and nothing was taken by it.

    Activity is not recorded when it happens. Instead the number of bytes moved is compared from time to time, see
    :data:`IDLE_CHECKS`.

    :param seconds: how long the connection may be idle
    :param now: the time by the event loop's clock
    :ivar deadline: when to check next
    """

    __slots__ = ("_active_at", "_bytes_moved", "_seconds", "deadline")

    def __init__(self, seconds: float, now: float) -> None:
        self._seconds = seconds
        self._bytes_moved = 0
        self._active_at = now
        self.deadline = now + seconds / IDLE_CHECKS

    def check(self, moved: int, now: float) -> bool:
        """Note activity since the last check, and set the time of the next.

        :param moved: how many bytes have been received and sent so far
        :param now: the time by the event loop's clock
        :return: whether the connection has been idle for too long
        """
        if moved != self._bytes_moved:
            self._bytes_moved, self._active_at = moved, now
        over = self._active_at + self._seconds
        self.deadline = min(over, now + self._seconds / IDLE_CHECKS)
        return now >= over

    @property
    def error(self) -> TimeoutError:
        """The error of a connection that was idle for too long."""
        return timeout(f"nothing was received, and nothing taken by the peer, for {self._seconds} seconds")
