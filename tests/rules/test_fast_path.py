"""The fast path, without a socket: what it does itself, and what it leaves to the connection."""

from __future__ import annotations

import errno
from collections.abc import Callable
from contextvars import copy_context
from types import SimpleNamespace
from typing import Any

import pytest

from mozsocket._buffers import BUFFER_THRESHOLD, SendBuffer
from mozsocket._dispatch import Dispatcher
from mozsocket._events import Listeners
from mozsocket._fast_path import MUCH, READ_PER_TURN, READ_SIZE, FastPath
from mozsocket._readiness import ReadResult

THREAD = 7


class ScriptedEndpoint:
    """An endpoint that does with each call what a list says."""

    def __init__(self) -> None:
        self.reads: list[bytes | OSError] = []
        self.takes: list[int | OSError] = []  # how many bytes it takes of the next sends; all without an entry
        self.sizes: list[int] = []
        self.sent = b""

    def recv(self, size: int, /) -> bytes:
        self.sizes.append(size)
        found = self.reads.pop(0)
        if isinstance(found, OSError):
            raise found
        return found

    def send(self, chunk: bytes, /) -> int:
        taken = self.takes.pop(0) if self.takes else len(chunk)
        if isinstance(taken, OSError):
            raise taken
        self.sent += chunk[:taken]
        return taken


class RecordingConnection:
    """Everything else, which only records that it was asked."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_readable(self) -> ReadResult:
        self.calls.append("on_readable")
        return ReadResult.NOTHING

    def on_read_error(self, exc: OSError) -> ReadResult:
        self.calls.append(exc)
        return ReadResult.NOTHING

    def on_eof(self) -> ReadResult:
        self.calls.append("on_eof")
        return ReadResult.NOTHING

    def after_tls_read(self) -> ReadResult:
        self.calls.append("after_tls_read")
        return ReadResult.PENDING

    def flush_otherwise(self) -> None:
        self.calls.append("flush_otherwise")

    def on_cancelled(self) -> None:
        self.calls.append("on_cancelled")

    def crashed(self, exc: BaseException, where: str, when: str = "") -> None:
        self.calls.append((exc, where))


class Source:
    """A source of events that has none pending, and records what handlers have raised."""

    pumps_on_notify = False

    def __init__(self) -> None:
        self.raised: list[BaseException] = []
        self.pumped = 0

    def has_pending_event(self) -> bool:
        self.pumped += 1
        return False

    def crashed(self, exc: BaseException, where: str, when: str = "") -> None:
        self.raised.append(exc)

    def next_event(self) -> Any:
        raise AssertionError("no event is pending")

    def leave_fast_path(self) -> None: ...
    def on_cancelled(self) -> None: ...
    def notify(self) -> None: ...
    def was_slow(self, type: str, seconds: float) -> None: ...


class Bench:
    """A fast path between a scripted endpoint and a recording connection."""

    def __init__(self, *, is_tls: bool = False) -> None:
        self.endpoint, self.connection, self.source = ScriptedEndpoint(), RecordingConnection(), Source()
        self.outgoing, self.listeners = SendBuffer(), Listeners()
        self.owner = _owner()
        self.got: list[bytes] = []
        self.does: Callable[[], object] = lambda: None
        dispatcher = Dispatcher(self.listeners)
        dispatcher.begin(self.source, self.owner, copy_context())
        self.listeners.handle("data", self._handle)
        self.path = FastPath(
            self.connection, self.endpoint, is_tls, self.listeners, dispatcher, self.outgoing, THREAD, self, _event
        )

    def _handle(self, event: Any) -> object:
        assert event.target is self
        assert self.outgoing.filling_thread == THREAD
        self.got.append(event.data)
        return self.does()

    def read(self, *reads: bytes | OSError) -> list[ReadResult]:
        self.endpoint.reads += reads
        return [self.path.on_readable() for _ in reads]


def _owner() -> Any:
    return SimpleNamespace(cancel_called=False)


def _event(type: str, target: Any, data: bytes) -> Any:
    return SimpleNamespace(type=type, target=target, data=data)


def test_data_reaches_the_handler_and_its_answer_the_endpoint() -> None:
    bench = Bench()
    bench.does = lambda: bench.outgoing.append(b"answer")
    assert bench.read(b"first", b"second") == [ReadResult.SOME] * 2
    assert bench.got == [b"first", b"second"]
    assert bench.endpoint.sent == b"answer" * 2
    assert (bench.path.received, bench.outgoing.sent, bench.outgoing.amount) == (11, 12, 0)
    assert bench.outgoing.filling_thread == 0
    assert not (bench.connection.calls or bench.source.pumped)


def test_what_is_left_to_the_connection() -> None:
    bench = Bench()
    blocked, lost = BlockingIOError(), ConnectionResetError(errno.ECONNRESET, "reset")
    bench.read(b"", blocked, lost)
    assert bench.connection.calls == ["on_eof", blocked, lost]
    assert not (bench.got or bench.path.received)


@pytest.mark.parametrize("how", ["left", "without a handler", "with an async handler"])
def test_a_path_that_is_not_open_reads_nothing(how: str) -> None:
    async def later(event: Any) -> None: ...

    bench = Bench()
    if how == "left":
        bench.path.is_open = False
    else:
        bench.listeners.handle("data", later if "async" in how else None)
    assert bench.path.on_readable() is ReadResult.NOTHING
    assert bench.connection.calls == ["on_readable"]
    assert not bench.endpoint.sizes


def test_no_handler_runs_once_the_owner_is_cancelled() -> None:
    bench = Bench()
    bench.owner.cancel_called = True
    bench.read(b"data")
    assert not bench.got


@pytest.mark.anyio
async def test_a_handler_that_raises_has_its_answer_sent_all_the_same() -> None:
    def answer_and_fail() -> object:
        bench.outgoing.append(b"answer")
        raise error

    bench, error = Bench(), ValueError("wrong")
    bench.does = answer_and_fail
    bench.read(b"data")
    assert bench.source.raised == [error]
    assert bench.endpoint.sent == b"answer"
    assert bench.outgoing.filling_thread == 0


def test_a_handler_that_leaves_the_path_is_followed_by_the_pending_events() -> None:
    def answer_and_leave() -> None:
        bench.outgoing.append(b"answer")
        bench.path.is_open = False

    bench = Bench()
    bench.does = answer_and_leave
    bench.read(b"data")
    assert bench.connection.calls == ["flush_otherwise"]
    assert bench.source.pumped == 1


LOST = ConnectionResetError(errno.ECONNRESET, "reset")


@pytest.mark.parametrize("way", ["own", "other"])
@pytest.mark.parametrize(
    ("taken", "left", "error"),
    [
        (6, 0, None),
        (2, 4, None),
        (0, 6, None),
        (BlockingIOError(), 6, None),
        (InterruptedError(), 6, None),
        (LOST, 6, LOST),
    ],
    ids=repr,
)
def test_what_the_endpoint_does_not_take_is_sent_otherwise(
    taken: int | OSError, left: int, error: OSError | None, way: str
) -> None:
    bench = Bench()
    bench.endpoint.takes.append(taken)
    if way == "own":
        bench.does = lambda: bench.outgoing.append(b"answer")
        bench.read(b"data")
    else:
        bench.outgoing.append(b"answer")
        bench.path.flush()
    assert bench.connection.calls == (["flush_otherwise"] if left else [])
    assert (bench.outgoing.amount, bench.outgoing.error) == (left, error)
    assert b"".join(bytes(chunk) for chunk in bench.outgoing.next_write()) == b"answer"[6 - left :]


def fill(bench: Bench) -> None:
    bench.outgoing.append(bytes(BUFFER_THRESHOLD + 1))


def append_twice(bench: Bench) -> None:
    bench.outgoing.append(b"one")
    bench.outgoing.append(b"two")


def append_while_somebody_waits(bench: Bench) -> None:
    bench.outgoing.waiters = 1
    bench.outgoing.append(b"one")


@pytest.mark.parametrize("append", [fill, append_twice, append_while_somebody_waits])
def test_more_than_one_chunk_that_nobody_waits_for_is_sent_otherwise(append: Callable[[Bench], None]) -> None:
    bench = Bench()
    bench.does = lambda: append(bench)
    bench.read(b"data")
    assert bench.connection.calls == ["flush_otherwise"]
    assert not bench.endpoint.sent


def test_nothing_is_sent_that_somebody_else_is_going_to_send() -> None:
    bench = Bench()
    bench.does = lambda: bench.outgoing.append(b"answer")
    bench.outgoing.flush_is_due = True
    bench.read(b"data")
    assert not (bench.endpoint.sent or bench.connection.calls)


def test_after_a_large_read_others_have_their_turn_and_the_next_is_larger() -> None:
    bench = Bench()
    large, largest = bytes(READ_SIZE), bytes(READ_PER_TURN)
    found = bench.read(large, largest, b"small", b"small", large)
    assert found == [ReadResult.MORE, ReadResult.MORE, ReadResult.SOME, ReadResult.SOME, ReadResult.MORE]
    assert bench.endpoint.sizes == [READ_SIZE, READ_PER_TURN, READ_PER_TURN, READ_SIZE, READ_SIZE]


def test_reads_stay_large_while_much_arrives() -> None:
    bench = Bench()
    much, little = bytes(MUCH), bytes(MUCH - 1)
    found = bench.read(bytes(READ_SIZE), much, much, little, much)
    assert found == [ReadResult.MORE, *[ReadResult.SOME] * 4]
    assert bench.endpoint.sizes == [READ_SIZE, READ_PER_TURN, READ_PER_TURN, READ_PER_TURN, READ_SIZE]


def test_in_tls_each_read_is_looked_after() -> None:
    bench = Bench(is_tls=True)
    assert bench.read(b"data", b"more") == [ReadResult.PENDING] * 2
    assert bench.connection.calls == ["after_tls_read"] * 2


def test_what_concerns_the_whole_connection_is_passed_on() -> None:
    bench, error = Bench(), RuntimeError()
    bench.path.on_cancelled()
    bench.path.crashed(error, "the poller")
    assert bench.connection.calls == ["on_cancelled", (error, "the poller")]
