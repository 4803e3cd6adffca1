"""The strategy for reading: when to try again immediately, when to let others run, and when to wait for readiness."""

from __future__ import annotations

import socket
from collections import Counter
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mozsocket import TCPSocket
from mozsocket._eagerness import EAGER_POLLS, MAX_SKIP, Eagerness
from mozsocket._fast_path import READ_PER_TURN


def looks(eagerness: Eagerness) -> int:
    """The number of unsuccessful attempts before it waits for readiness."""
    count = 0
    while eagerness.should_poll():
        count += 1
    return count


def test_not_before_there_was_anything() -> None:
    assert looks(Eagerness()) == 0


def test_for_a_few_turns_after_something_was_read() -> None:
    eagerness = Eagerness()
    eagerness.found()
    assert looks(eagerness) == EAGER_POLLS
    eagerness.found()
    assert looks(eagerness) == 0, "it was in vain just now"


def test_each_time_while_it_pays() -> None:
    eagerness = Eagerness()
    while not eagerness.should_poll():
        eagerness.found()
    for _ in range(100):
        eagerness.found()
        assert eagerness.should_poll()


def test_ever_less_often_while_it_does_not() -> None:
    eagerness = Eagerness()
    tries = []
    for number in range(1000):
        eagerness.found()
        if looks(eagerness):
            tries.append(number)
    gaps = [later - earlier - 1 for earlier, later in pairwise(tries)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == MAX_SKIP


def test_that_it_paid_once_begins_again() -> None:
    eagerness = Eagerness()
    for _ in range(1000):
        eagerness.found()
        looks(eagerness)
    while not eagerness.should_poll():
        eagerness.found()
    eagerness.found()  # by an attempt without waiting
    assert looks(eagerness) == EAGER_POLLS


class FullSocket(socket.socket):
    """A socket that has as much as is asked for, at each read."""

    is_empty = False

    def recv(self, size: int, flags: int = 0) -> bytes:
        if self.is_empty:
            raise BlockingIOError
        return bytes(size)


@pytest.mark.anyio
async def test_a_peer_that_fills_every_read_leaves_turns_to_others() -> None:
    turn, done = 0, anyio.Event()
    reads: Counter[int] = Counter()

    def count(event: Any) -> None:
        reads[turn] += len(event.data)
        if sum(reads.values()) >= 1 << 22:
            ours.is_empty = True
            done.set()

    other, peer = socket.socketpair()
    ours = FullSocket(fileno=other.detach())
    with peer:
        peer.sendall(b"x")  # never read, so the socket stays readable
        async with TCPSocket.from_socket(ours, linger=0) as tcp:
            tcp.ondata = count
            while not done.is_set():
                await anyio.lowlevel.checkpoint()
                turn += 1
            tcp.closeImmediately()
    # In one of its turns, a poller reads twice from a socket that is this active. Trio runs the tasks of a turn in
    # random order: the reading task may be the last in one turn and the first in the next.
    assert READ_PER_TURN <= max(reads.values()) <= 4 * READ_PER_TURN
