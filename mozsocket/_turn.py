"""The sends of running handlers: they are collected, and made when the handlers have returned.

So several calls of ``send()`` in a handler are sent in one piece.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

__all__ = ("flush", "in_turn", "turn")

T = TypeVar("T")


class _Turn(threading.local):
    """The handlers that run in this thread between two waits: they may be of many sockets, one after the other.

    :ivar written: the functions that flush the sockets to which handlers have written; None while no handler can run
    """

    written: list[Callable[[], None]] | None = None


turn = _Turn()


def in_turn(function: Callable[[], T]) -> T:
    """Call a function that may call handlers, then make their sends."""
    written: list[Callable[[], None]] = []
    turn.written = written
    try:
        return function()
    finally:
        turn.written = None
        flush(written)


def flush(written: list[Callable[[], None]]) -> None:
    """Call the functions that were collected, and forget them."""
    for send in written:
        send()
    written.clear()
