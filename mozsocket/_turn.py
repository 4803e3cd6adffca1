"""What is written while handlers run: it is sent when they return, in one piece, and not at each ``send()``."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ("flush", "turn")


class _Turn(threading.local):
    """What runs in this thread, between two waits: handlers of many sockets, one after the other.

    :ivar written: what flushes the sockets that a handler has written to; None while none can run
    """

    written: list[Callable[[], None]] | None = None


turn = _Turn()


def flush(written: list[Callable[[], None]]) -> None:
    """Send it."""
    for send in written:
        send()
    written.clear()
