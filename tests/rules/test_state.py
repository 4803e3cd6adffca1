"""The buffers and states of a socket without any I/O, mostly compared with trivial models."""

from __future__ import annotations

import ctypes
from array import array
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mozsocket import ReadyState
from mozsocket._buffers import BUFFER_THRESHOLD, SendBuffer, octets

from ..parameters import shown

NOISE = Random(0).randbytes(1 << 20)


def noise(size: int, start: int = 0) -> bytes:
    """Bytes without repetitions, so that a wrong order is noticed."""
    return NOISE[start : start + size]


def written(buffer: SendBuffer) -> bytes:
    """The bytes that the buffer would hand over next."""
    return b"".join(buffer.next_write())


def empty(buffer: SendBuffer, at_once: int = 1 << 30) -> bytes:
    """Hand over everything, at most this many bytes in each call."""
    parts = []
    while buffer.amount:
        parts.append(written(buffer)[:at_once])
        buffer.advance(len(parts[-1]))
    return b"".join(parts)


# The send buffer against a model


class SendBufferModel(RuleBasedStateMachine):
    """The same calls on a send buffer and on one ``bytearray`` have the same results."""

    def __init__(self) -> None:
        super().__init__()
        self.buffered = bytearray()
        self.owed = False
        self.ended = False
        self.dropped = False
        self.limit: int | None = None
        self.buffer = SendBuffer()

    @initialize(limit=st.none() | st.integers(1, 400_000))
    def make(self, limit: int | None) -> None:
        self.limit = limit
        self.buffer = SendBuffer(limit)

    def append(self, data: bytes) -> None:
        if self.limit is not None and len(self.buffered) + len(data) > self.limit and not self.ended:
            with pytest.raises(BufferError):
                self.buffer.append(data)
            self.owed = self.owed or bool(self.buffered)
            return
        if not self.ended:
            self.buffered += data
        below = len(self.buffered) <= 65536
        self.owed = self.owed or not below
        assert self.buffer.append(data) is below

    @rule(size=st.integers(0, 20) | st.integers(4090, 4100) | st.integers(0, 300_000), start=st.integers(0, 500_000))
    def append_one(self, size: int, start: int) -> None:
        self.append(noise(size, start))

    @rule(size=st.integers(1, 20) | st.integers(1, 5000), count=st.integers(1, 200), start=st.integers(0, 1000))
    def append_many(self, size: int, count: int, start: int) -> None:
        for i in range(count):
            self.append(noise(size, start + i * size))

    @precondition(lambda self: len(self.buffered) < 65536)
    @rule(beyond=st.integers(0, 1))
    def append_up_to_the_threshold(self, beyond: int) -> None:
        self.append(noise(65536 - len(self.buffered) + beyond))

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
        chunks = self.buffer.next_write()
        handed = b"".join(chunks)
        assert all(chunks), "an empty chunk is a wasted one"
        assert bool(handed) == bool(self.buffered)
        assert self.buffered.startswith(handed)
        taken = data.draw(st.just(len(handed)) | st.integers(0, len(handed)), label="taken")
        self.buffer.advance(taken)
        del self.buffered[:taken]

    @rule()
    def write_all(self) -> None:
        assert empty(self.buffer) == self.buffered
        self.buffered.clear()

    @rule()
    def take_drain(self) -> None:
        due = self.owed and not self.buffered
        assert self.buffer.take_drain() is due
        self.owed = self.owed and not due

    @precondition(lambda self: len(self.buffered) > 200_000)  # rarely, as nothing can happen afterwards
    @rule()
    def drop(self) -> None:
        self.buffer.drop()
        self.dropped = self.dropped or bool(self.buffered)
        self.ended = True
        self.buffered.clear()
        self.owed = False

    @invariant()
    def agrees(self) -> None:
        assert self.buffer.amount == len(self.buffered)
        assert self.buffer.drain_is_pending is (self.owed and not self.buffered)
        assert self.buffer.dropped is self.dropped


SendBufferModel.TestCase.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)
TestSendBufferModel = SendBufferModel.TestCase


# The send buffer, rule by rule


@pytest.mark.parametrize(
    ("sizes", "below"),
    [
        ([0], True),
        ([65535], True),
        ([65536], True),
        ([65537], False),
        ([65536, 1], False),
        ([1, 65535], True),
        ([1, 65536], False),
        ([100_000, 0], False),  # nothing was added, but more than the threshold is buffered
    ],
    ids=str,
)
def test_append_returns_whether_more_than_the_threshold_is_buffered(sizes: list[int], below: bool) -> None:
    buffer = SendBuffer()
    answers = [buffer.append(noise(size)) for size in sizes]
    assert BUFFER_THRESHOLD == 65536
    assert answers[-1] is below
    assert buffer.amount == sum(sizes)
    empty(buffer)
    assert buffer.drain_is_pending is not below


def test_a_drain_is_delivered_once_and_only_when_nothing_is_buffered() -> None:
    buffer = SendBuffer()
    buffer.append(noise(70_000))
    buffer.advance(69_999)
    assert not buffer.drain_is_pending
    assert not buffer.take_drain()
    buffer.append(b"more")  # the drain is postponed until this is sent too
    buffer.advance(1)
    assert not buffer.take_drain()
    buffer.advance(4)
    assert buffer.take_drain()
    assert not buffer.drain_is_pending
    assert not buffer.take_drain()


def test_a_drain_is_owed_again_after_it_was_delivered() -> None:
    buffer = SendBuffer()
    for _ in range(2):
        buffer.append(noise(65_537))
        empty(buffer)
        assert buffer.take_drain()


def test_many_crossings_owe_one_drain() -> None:
    buffer = SendBuffer()
    for _ in range(3):
        buffer.append(noise(65_537))
        buffer.advance(65_000)
    empty(buffer)
    assert [buffer.take_drain(), buffer.take_drain()] == [True, False]


def test_the_limit_itself_is_taken_and_what_is_beyond_takes_nothing() -> None:
    buffer = SendBuffer(10)
    assert buffer.append(b"1234567")
    with pytest.raises(BufferError) as raised:
        buffer.append(b"89ab")
    assert str(raised.value) == "max_buffered_amount is 10 bytes: 7 are buffered, 4 more do not fit"
    assert buffer.amount == 7
    assert buffer.append(b"89a")
    assert empty(buffer) == b"123456789a"


def test_a_refused_append_owes_a_drain_if_one_can_come() -> None:
    """Otherwise a program that waits for space below the threshold would wait forever."""
    buffer = SendBuffer(1000)
    with pytest.raises(BufferError):
        buffer.append(noise(1001))
    assert not buffer.drain_is_pending
    assert buffer.append(b"1")
    with pytest.raises(BufferError):
        buffer.append(noise(1000))
    assert empty(buffer) == b"1"
    assert buffer.take_drain()


@pytest.mark.parametrize("at_once", [1 << 30, 65_536, 777])
@pytest.mark.parametrize(
    "sizes",
    [
        pytest.param([10] * 1000, id="joined in one"),
        pytest.param([100] * 6000, id="more than is joined at once"),
        pytest.param([10_000] * 100, id="more chunks than one call is given"),
        pytest.param([50, 20_000] * 20, id="small and large"),
        pytest.param([20_000, 50] * 20, id="large and small"),
        pytest.param([4095, 4096] * 70, id="around the size that is joined"),
        pytest.param([1, 300_000, 1], id="large between small"),
        pytest.param([300_000] + [3] * 70, id="small behind large"),
    ],
)
def test_bytes_stay_in_order_whatever_their_chunks(sizes: list[int], at_once: int) -> None:
    buffer = SendBuffer()
    expected = bytearray()
    for size in sizes:
        chunk = noise(size, len(expected) % 700_000)
        buffer.append(chunk)
        expected += chunk
    assert empty(buffer, at_once) == expected
    assert buffer.next_write() == []


def test_large_chunks_are_handed_over_as_they_are() -> None:
    chunks = [noise(10_000, i) for i in range(100)]
    buffer = SendBuffer()
    for chunk in chunks:
        buffer.append(chunk)
    handed = buffer.next_write()
    assert len(handed) == 64
    assert all(ours is given for ours, given in zip(handed, chunks, strict=False)), "a large chunk was copied"


def test_what_is_left_of_a_large_chunk_is_not_copied() -> None:
    chunk = noise(1 << 20)
    buffer = SendBuffer()
    buffer.append(chunk)
    for _ in range(3):
        buffer.advance(100_000)
    (rest,) = buffer.next_write()
    assert isinstance(rest, memoryview)
    assert rest.obj is chunk
    assert rest == chunk[300_000:]


def test_many_small_chunks_take_few_calls() -> None:
    buffer = SendBuffer()
    for i in range(100_000):
        buffer.append(noise(10, i))
    calls = 0
    while buffer.amount:
        first = buffer.next_write()[0]
        assert len(first) <= 262_144 + 4096
        buffer.advance(len(first))
        calls += 1
    assert calls <= 4


def test_drop_throws_away_what_is_buffered_and_whatever_comes() -> None:
    buffer = SendBuffer()
    buffer.append(noise(70_000))
    buffer.advance(10)
    buffer.drop()
    assert (buffer.amount, buffer.dropped, buffer.drain_is_pending) == (0, True, False)
    assert buffer.append(noise(70_000))
    assert (buffer.amount, buffer.next_write(), buffer.drain_is_pending) == (0, [], False)
    buffer.drop()
    assert buffer.dropped, "a second drop forgot the first"


def test_drop_of_nothing_loses_nothing() -> None:
    buffer = SendBuffer()
    buffer.append(b"all")
    buffer.advance(3)
    buffer.drop()
    assert not buffer.dropped


# The ready state

STATES = ["connecting", "open", "closing", "closed"]


def test_the_states_are_named_as_mdn_names_them_in_order() -> None:
    assert list(ReadyState) == STATES


@pytest.mark.parametrize("name", STATES)
def test_a_state_is_its_name(name: str) -> None:
    state = ReadyState(name)
    assert state == name
    assert hash(state) == hash(name)
    assert isinstance(state, str)
    assert str(state) == name
    assert type(str(state)) is str
    assert f"{state}" == name
    assert f"{state:>12}" == f"{name:>12}"
    assert f"a {state} socket" == f"a {name} socket"


# octets()


def test_immutable_bytes_are_not_copied() -> None:
    data = noise(100)
    assert octets(data, 0, None) is data


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\x00\xff", b"\x00\xff"),
        (bytearray(b"abc"), b"abc"),
        (memoryview(b"abc"), b"abc"),
        (memoryview(b"abcdef")[1:3], b"bc"),
        (memoryview(b"abcdef")[::2], b"ace"),
        (memoryview(b"abcdef")[::-1], b"fedcba"),
        (memoryview(b"abcdef").cast("B", [2, 3]), b"abcdef"),
        (array("B", b"abc"), b"abc"),
        (array("H", [1, 2]), array("H", [1, 2]).tobytes()),
        (array("d", [1.5]), array("d", [1.5]).tobytes()),
        (memoryview(array("H", [1, 2, 3]))[::2], array("H", [1, 3]).tobytes()),
        ((ctypes.c_uint8 * 3)(1, 2, 3), b"\x01\x02\x03"),
        ((ctypes.c_uint32 * 2)(1, 2), bytes((ctypes.c_uint32 * 2)(1, 2))),
        (ctypes.c_uint16(7), bytes(ctypes.c_uint16(7))),
        ("abc", b"abc"),
        ("\x00\x7f\x80\xff", b"\x00\x7f\x80\xff"),
        (ReadyState.OPEN, b"open"),
        (b"", b""),
        (bytearray(), b""),
        (array("i"), b""),
        ("", b""),
    ],
    ids=shown,
)
def test_every_kind_of_data(data: Any, expected: bytes) -> None:
    result = octets(data, 0, None)
    assert result == expected
    assert type(result) is bytes


class NamedBytes(bytes):
    """A program's subclass of bytes."""


@pytest.mark.parametrize("slice_", [(0, None), (1, None), (0, 2), (0, 100)])
def test_a_subclass_of_bytes_gives_its_bytes(slice_: tuple[int, int | None]) -> None:
    start, length = slice_
    assert octets(NamedBytes(b"abcd"), start, length) == b"abcd"[start:][:length]


def test_slices_count_bytes_not_items() -> None:
    data = array("H", [0x0102, 0x0304])
    assert octets(data, 1, 2) == data.tobytes()[1:3]
    assert octets(memoryview(data)[::-1], 1, 2) == memoryview(data)[::-1].tobytes()[1:3]


def test_mutable_data_is_copied_and_let_go() -> None:
    data = bytearray(b"before")
    result = octets(data, 0, None)
    data[:] = b"after, and longer"  # a buffer that is still exported could not be resized
    assert result == b"before"


def test_a_memoryview_of_the_program_stays_usable() -> None:
    view = memoryview(bytearray(b"abc"))
    result = octets(view, 0, 2)
    view[0] = 0
    assert result == b"ab"
    assert view.tobytes() == b"\x00bc"


@st.composite
def contents(draw: st.DrawFn) -> tuple[Any, bytes]:
    """Data as a program may pass it, and the bytes that it stands for."""
    raw = draw(st.binary(max_size=40))
    step = draw(st.sampled_from([1, 2, -1, -3]))
    words = array("H", raw[: len(raw) // 2 * 2])
    kinds = {
        "bytes": (raw, raw),
        "bytearray": (bytearray(raw), raw),
        "strided": (memoryview(raw)[::step], raw[::step]),
        "words": (words, words.tobytes()),
        "strided words": (memoryview(words)[::step], words[::step].tobytes()),
        "str": (raw.decode("latin-1"), raw),
    }
    return kinds[draw(st.sampled_from(sorted(kinds)))]


OFFSETS = st.integers(0, 50) | st.integers(0, 1 << 70)


@given(content=contents(), offset=OFFSETS, length=st.none() | OFFSETS)
def test_slices_are_clamped_to_the_data(content: tuple[Any, bytes], offset: int, length: int | None) -> None:
    data, raw = content
    rest = raw[min(offset, len(raw)) :]
    expected = rest if length is None else rest[: min(length, len(rest))]
    assert octets(data, offset, length) == expected


@given(text=st.text(max_size=30))
def test_text_is_one_byte_a_character_or_refused(text: str) -> None:
    beyond = [index for index, character in enumerate(text) if ord(character) > 0xFF]
    if not beyond:
        assert list(octets(text, 0, None)) == [ord(character) for character in text]
        return
    index = beyond[0]
    place = rf"; character {index} is U\+{ord(text[index]):04X}"
    with pytest.raises(ValueError, match=rf"{place}: encode the text first, as by text\.encode\(\)$"):
        octets(text, 0, None)


@given(text=st.text(max_size=30))
def test_text_is_ascii_or_refused(text: str) -> None:
    """This applies where received data is bytes."""
    if text.isascii():
        assert octets(text, ascii_only=True) == text.encode()
        return
    index = next(index for index, character in enumerate(text) if ord(character) > 0x7F)
    with pytest.raises(ValueError, match=rf"; character {index} is U\+{ord(text[index]):04X}: "):
        octets(text, ascii_only=True)


@pytest.mark.parametrize("data", [b"\xff", bytearray(b"\xff"), memoryview(b"\xff"), array("B", b"\xff")], ids=shown)
def test_bytes_need_not_be_ascii(data: Any) -> None:
    assert octets(data, ascii_only=True) == b"\xff"


@pytest.mark.parametrize(
    ("ascii_only", "accepted"),
    [
        (False, "characters up to U+00FF, one per byte"),
        (True, 'ASCII, or with binaryType="string" of characters up to U+00FF, one per byte'),
    ],
)
@pytest.mark.parametrize(
    ("text", "where"),
    [("aĀ", "character 1 is U+0100"), ("€", "character 0 is U+20AC"), ("ab😀", "character 2 is U+1F600")],
)
def test_text_that_is_no_bytes_is_refused_with_its_place(
    text: str, where: str, ascii_only: bool, accepted: str
) -> None:
    with pytest.raises(ValueError, match="U") as raised:
        octets(text, ascii_only=ascii_only)
    assert str(raised.value) == f"send() takes a str of {accepted}; {where}: encode the text first, as by text.encode()"
    assert raised.value.__suppress_context__


@pytest.mark.parametrize("data", [None, 0, 5, 1.5, True, [1, 2], (1,), {1: 2}, object(), iter(b"abc")], ids=shown)
def test_other_types_are_refused_by_name(data: Any) -> None:
    with pytest.raises(TypeError) as raised:
        octets(data, 0, None)
    assert str(raised.value) == f"send() takes a bytes-like object or a str, not {type(data).__name__}"


@pytest.mark.parametrize("data", [b"abc", "abc", bytearray(b"abc")], ids=shown)
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (-1, ValueError, "must not be negative: -1"),
        (True, TypeError, "must be an int, not bool"),
        (1.0, TypeError, "must be an int, not float"),
        ("1", TypeError, "must be an int, not str"),
    ],
)
def test_offsets_are_ints_that_are_not_negative(data: Any, value: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=f"^byteOffset {message}$"):
        octets(data, value, None)
    with pytest.raises(error, match=f"^byteLength {message}$"):
        octets(data, 0, value)


def test_the_offset_cannot_be_none() -> None:
    with pytest.raises(TypeError, match=r"^byteOffset must be an int, not NoneType$"):
        octets(b"abc", None, None)  # type: ignore[arg-type]
