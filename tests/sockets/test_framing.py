"""lines() and frames(): what their handlers receive however the stream is cut, and who gets the remainder."""

from __future__ import annotations

import errno
import gc
import itertools
import logging
import socket
import time
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import hypothesis
import pytest
from hypothesis import strategies

from mozsocket import MozTCPSocket, TCPSocket, TCPSocketError, TCPSocketEvent, frames, lines, pipe
from mozsocket._framing import PIECES_AT_ONCE
from mozsocket.testing import EventRecorder, connected_pair, connected_peer

from ..certificates import server_context
from ..parameters import on_one_loop
from ..peers import (
    EarlyHello,
    all_blocked,
    blocking,
    connected,
    dial,
    read_all,
    securely_connected,
)

pytestmark = pytest.mark.anyio

Handler = Callable[[Any], object]

KINDS = ["plain", "async", "promising"]
"""The kinds of handlers; "promising" is a plain function that returns an awaitable."""

each_kind = pytest.mark.parametrize("kind", KINDS)


def made(kind: str, function: Handler) -> Handler:
    """A handler of a kind that calls a function."""

    async def later(event: Any) -> None:
        await anyio.lowlevel.checkpoint()
        result = function(event)
        if isinstance(result, Awaitable):
            await result

    def promising(event: Any) -> Awaitable[None]:
        return later(event)

    return {"plain": function, "async": later, "promising": promising}[kind]


class Told:
    """Records what a handler receives.

    :ivar does: called in addition with each event
    """

    def __init__(self, kind: str = "plain") -> None:
        self.data: list[Any] = []
        self.does: dict[Any, Callable[[TCPSocket], object]] = {}
        self.handler = made(kind, self._tell)

    def _tell(self, event: Any) -> object:
        assert type(event) is TCPSocketEvent and event.type == "data"
        self.data.append(event.data)
        does = self.does.get(event.data)
        return None if does is None else does(event.target)


def framed(*parts: bytes, size: int = 2) -> bytes:
    return b"".join(len(part).to_bytes(size, "big") + part for part in parts)


async def sent(peer: Any, data: bytes) -> None:
    """Send data, and wait until it was processed."""
    await peer.send(data)
    await all_blocked()


# Received lines and frames


@each_kind
@pytest.mark.parametrize("one_by_one", [False, True])
async def test_lines(kind: str, one_by_one: bool) -> None:
    reports = Told(kind)
    async with connected_peer() as (sock, peer):
        sock.ondata = lines(reports.handler)
        data = b"one\r\ntwo\n\n\r\nthree\rmore\r\r\n \n"
        await (peer.trickle(data) if one_by_one else peer.send(data))
        await all_blocked()
        sock.close()
    assert reports.data == [b"one", b"two", b"", b"", b"three\rmore\r", b" "]


@each_kind
@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize(("size", "byteorder"), [(1, "big"), (2, "little"), (3, "big"), (4, "big"), (8, "little")])
async def test_frames(kind: str, one_by_one: bool, size: int, byteorder: Any) -> None:
    reports = Told(kind)
    parts = [b"one", b"", b"\n", b"x" * 255, b""]
    async with connected_peer() as (sock, peer):
        sock.ondata = frames(reports.handler, size=size, byteorder=byteorder)
        data = b"".join(len(part).to_bytes(size, byteorder) + part for part in parts)
        await (peer.trickle(data) if one_by_one else peer.send(data))
        await all_blocked()
        sock.close()
    assert reports.data == parts


@each_kind
async def test_text(kind: str) -> None:
    reports = Told(kind)
    async with connected_peer(binaryType="string") as (sock, peer):
        reports.does["\xff"] = lambda sock: setattr(sock, "ondata", frames(reports.handler, size=1))
        reports.does["\xe9"] = lambda sock: setattr(sock, "ondata", lines(reports.handler, unended=True))
        sock.ondata = lines(reports.handler)
        await peer.send(b"caf\xe9\r\n\xff\n\1\xe9\xe0")
        peer.send_eof()
        await all_blocked()
    assert reports.data == ["caf\xe9", "\xff", "\xe9", "\xe0"]


@hypothesis.given(
    parts=strategies.lists(strategies.binary(max_size=6).map(lambda data: data.replace(b"\n", b"\r"))),
    cuts=strategies.sets(strategies.integers(0, 60)),
    suspend_at=strategies.sets(strategies.integers(0, 10)),
)
async def test_however_it_is_cut(parts: list[bytes], cuts: set[int], suspend_at: set[int]) -> None:
    """Over a socketpair, each chunk is read as it was written."""
    for make, data, expected in (
        (lines, b"".join(part + b"\n" for part in parts), [part.removesuffix(b"\r") for part in parts]),
        (partial(frames, size=2), framed(*parts), parts),
    ):
        got: list[bytes] = []

        def on_piece(event: Any, got: list[bytes] = got) -> None:
            got.append(event.data)
            if len(got) in suspend_at:
                event.target.suspend()

        async with connected_pair() as (ours, theirs):
            ours.ondata = make(on_piece)
            for begin, end in zip([0, *sorted(cuts)], [*sorted(cuts), None], strict=True):
                theirs.send(data[begin:end])
                await theirs.drained()
                await anyio.lowlevel.checkpoint()
            theirs.close()
            with anyio.fail_after(20):
                while ours.readyState == "open":
                    await anyio.lowlevel.checkpoint()
                    while True:
                        try:
                            ours.resume()
                        except RuntimeError:
                            break
            await ours.closed()
        assert got == expected


async def test_one_handler_of_many_sockets(listener: socket.socket) -> None:
    reports: dict[Any, list[Any]] = {}
    on_data: Handler = lines(lambda event: reports.setdefault(event.target, []).append(event.data))
    async with connected_peer() as (one, peer_of_one), connected_peer() as (two, peer_of_two):
        one.ondata = two.ondata = on_data
        await sent(peer_of_one, b"on")
        await sent(peer_of_two, b"tw")
        await sent(peer_of_one, b"e\nof one\n")
        await sent(peer_of_two, b"o\n")
        assert reports == {one: [b"one", b"of one"], two: [b"two"]}


async def test_other_listeners_receive_all_of_it_once() -> None:
    reports = Told()
    reports.does[b"two"] = TCPSocket.suspend
    async with connected_peer() as (sock, peer):
        sock.ondata = lines(reports.handler)
        recorder = EventRecorder(sock)
        await sent(peer, b"one\ntwo\nthree\nfo")
        assert reports.data == [b"one", b"two"]
        sock.resume()
        await sent(peer, b"ur\n")
        assert reports.data == [b"one", b"two", b"three", b"four"]
        assert recorder.data == b"one\ntwo\nthree\nfour\n"
        assert sock.ondata is not None and "lines(" in repr(sock.ondata)


# Lines and frames that are too long


@each_kind
@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
async def test_a_line_of_just_the_limit(kind: str, one_by_one: bool, end: bytes) -> None:
    reports = Told(kind)
    async with connected_peer() as (sock, peer):
        sock.ondata = lines(reports.handler, limit=5)
        data = b"12345" + end + b"1234" + end + b"12345" + end
        await (peer.trickle(data) if one_by_one else peer.send(data))
        await all_blocked()
        sock.close()
    assert reports.data == [b"12345", b"1234", b"12345"]


TOO_LONG: list[tuple[Callable[[Handler], Handler], list[bytes], str]] = [
    (partial(lines, limit=5), [b"1\n123456\n3\n"], "a line of more than 5 bytes"),
    (partial(lines, limit=5), [b"1\n123456\r\n3\n"], "a line of more than 5 bytes"),
    (partial(lines, limit=5), [b"1\n123456"], "a line of more than 5 bytes"),
    (partial(lines, limit=5), [b"1\n12345", b"6"], "a line of more than 5 bytes"),
    (partial(lines, limit=5), [b"1\n12345", b"\r", b"\r"], "a line of more than 5 bytes"),
    (partial(lines, limit=5), [b"1\n123", b"456\n3\n"], "a line of more than 5 bytes"),
    (partial(frames, size=2, limit=5), [framed(b"1", b"123456", b"3")], "a frame of more than 5 bytes"),
    (partial(frames, size=2, limit=5), [framed(b"1") + b"\0\6"], "a frame of more than 5 bytes"),
    (partial(frames, size=2, limit=5), [framed(b"1") + b"\0", b"\6"], "a frame of more than 5 bytes"),
    (partial(frames, size=2, limit=5), [framed(b"1") + b"\xff", b"\xff"], "a frame of more than 5 bytes"),
]


@each_kind
@pytest.mark.parametrize(("make", "parts", "words"), TOO_LONG)
async def test_what_is_too_long_loses_the_connection(
    make: Callable[[Handler], Handler], parts: list[bytes], words: str, kind: str, role: str, listener: socket.socket
) -> None:
    reports = Told(kind)
    async with MozTCPSocket() as tcp:
        sock, recorder, peer = await connected(tcp, role, listener)
        with peer:
            sock.ondata = make(reports.handler)
            for part in parts:
                peer.sendall(part)
                await all_blocked()
            await recorder.first("close")
            with suppress(ConnectionResetError):  # or EOF, if everything sent was read
                assert await blocking(read_all, peer) == b""
    assert reports.data == [b"1"]
    assert recorder.types[-2:] == ["error", "close"]
    (error,) = recorder.of("error")
    assert (error.name, error.message, error.errorCode) == ("NetworkError", "Network", errno.EMSGSIZE)
    assert words in str(error.error)


async def test_a_failure_that_nobody_has_handled_leaves_the_block() -> None:
    with pytest.raises(TCPSocketError, match="a line of more than 3 bytes"):  # noqa: PT012
        async with connected_peer() as (sock, peer):
            sock.ondata = lines(lambda event: None, limit=3)
            await sent(peer, b"1234")


async def test_many_that_are_too_long_do_not_flood_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        on_data = lines(lambda event: None, limit=3)
        server.onconnect = lambda event: setattr(event.socket, "ondata", on_data)
        for _ in range(30):
            with await dial(server.localPort) as peer:
                peer.sendall(b"1234")
                await all_blocked()
        server.close()
    logged = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert 0 < len(logged) < 15
    assert "a line of more than 3 bytes" in logged[0].getMessage()


async def test_a_handler_that_is_replaced_before_is_not_asked() -> None:
    """A line that is too long for it goes to the next handler, which may have another limit."""
    reports, other = Told(), Told()
    reports.does[b"DATA"] = lambda sock: setattr(sock, "ondata", other.handler)
    async with connected_peer() as (sock, peer):
        sock.ondata = lines(reports.handler, limit=5)
        await sent(peer, b"DATA\nlonger than that\n")
        assert (reports.data, b"".join(other.data)) == ([b"DATA"], b"longer than that\n")


# Unfinished lines and frames


@each_kind
@pytest.mark.parametrize("half_open", [False, True])
@pytest.mark.parametrize(
    ("make", "data", "words"),
    [
        (lines, b"1\nnot en", "within a line, after 6 bytes of it"),
        (partial(frames, size=2), framed(b"1") + b"\0", "within a frame, after 1 bytes of it"),
        (partial(frames, size=2), framed(b"1") + b"\0\5not", "within a frame, after 5 bytes of it"),
    ],
)
async def test_the_peer_ends_within(
    make: Callable[[Handler], Handler], data: bytes, words: str, half_open: bool, kind: str
) -> None:
    reports = Told(kind)
    async with connected_peer(allow_half_open=half_open) as (sock, peer):
        sock.ondata = make(reports.handler)
        recorder = EventRecorder(sock)
        await peer.send(data)
        peer.send_eof()
        await recorder.first("close")
    assert reports.data == [b"1"]
    (error,) = recorder.of("error")
    assert (error.name, error.errorCode) == ("NetworkInterruptError", errno.ECONNRESET)
    assert words in str(error.error)
    assert recorder.types[-2:] == ["error", "close"]
    assert "end" not in recorder.types  # it would report an orderly EOF


@each_kind
@pytest.mark.parametrize("half_open", [False, True])
async def test_the_last_line_needs_no_end_if_that_is_wanted(kind: str, half_open: bool) -> None:
    reports = Told(kind)
    reports.does[b"two\r"] = lambda sock: sock.send(b"answer")
    async with connected_peer(allow_half_open=half_open) as (sock, peer):
        sock.ondata = lines(reports.handler, unended=True)
        sock.onend = lambda event: sock.close()
        recorder = EventRecorder(sock)
        await peer.send(b"one\ntwo\r")
        peer.send_eof()
        assert await peer.receive_all() == b"answer"
        await recorder.first("close")
    assert reports.data == [b"one", b"two\r"]
    assert recorder.types == (["data", "end", "close"] if half_open else ["data", "close"])
    assert recorder.data == b"one\ntwo\r"


async def test_the_end_waits_while_the_last_line_is_handled() -> None:
    reports: list[str] = []

    async def on_line(event: Any) -> None:
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        reports.append(event.data.decode())

    async with connected_peer(allow_half_open=True) as (sock, peer):
        sock.ondata = lines(on_line, unended=True)
        sock.onend = lambda event: reports.append("end")
        await peer.send(b"one\ntwo")
        peer.send_eof()
        while "end" not in reports:
            await anyio.lowlevel.checkpoint()
        sock.close()
    assert reports == ["one", "two", "end"]


async def test_a_reset_within_a_line_is_a_reset(listener: socket.socket) -> None:
    reports = Told()
    async with connected_peer() as (sock, peer):
        sock.ondata = lines(reports.handler, unended=True)
        recorder = EventRecorder(sock)
        await sent(peer, b"one\ntw")
        peer.reset()
        await recorder.first("close")
    assert reports.data == [b"one"]
    assert recorder.of("error")[0].name == "NetworkInterruptError"


async def test_each_byte_counts_once() -> None:
    reports = Told()
    reports.does[b"2"] = TCPSocket.suspend
    async with connected_peer() as (sock, peer):
        sock.ondata = lines(reports.handler)
        await sent(peer, b"1\n2\n3\n4")
        assert sock.bytes_received == 4
        sock.resume()
        await all_blocked()
        assert sock.bytes_received == 7
        sock.ondata = reports.handler
        await all_blocked()
        assert sock.bytes_received == 7


# Actions of the handler


@each_kind
async def test_suspend(kind: str) -> None:
    reports = Told(kind)
    reports.does[b"2"] = reports.does[b"3"] = TCPSocket.suspend
    async with connected_peer() as (sock, peer):
        sock.ondata = lines(reports.handler)
        await sent(peer, b"1\n2\n3\n4\n5")
        assert reports.data == [b"1", b"2"]
        await sent(peer, b"\n6\n")
        assert reports.data == [b"1", b"2"]
        sock.resume()
        await all_blocked()
        assert reports.data == [b"1", b"2", b"3"]
        sock.resume()
        await all_blocked()
        assert reports.data == [b"1", b"2", b"3", b"4", b"5", b"6"]


@each_kind
async def test_suspend_and_resume_at_once(kind: str) -> None:
    def both(sock: TCPSocket) -> None:
        sock.suspend()
        sock.resume()

    reports = Told(kind)
    reports.does[b"2"] = reports.does[b"4"] = both
    async with connected_peer() as (sock, peer):
        sock.ondata = lines(reports.handler)
        await sent(peer, b"1\n2\n3\n4\n5")
        await sent(peer, b"\n")
        assert reports.data == [b"1", b"2", b"3", b"4", b"5"]


async def test_the_loss_waits_for_what_waits() -> None:
    reports = Told()
    reports.does[b"1"] = TCPSocket.suspend
    async with connected_peer() as (sock, peer):
        sock.ondata = lines(reports.handler)
        recorder = EventRecorder(sock)
        await sent(peer, b"1\n2\n")
        peer.reset()
        await all_blocked()
        assert reports.data == [b"1"] and not recorder.of("error")
        sock.resume()
        await recorder.first("close")
        assert reports.data == [b"1", b"2"] and recorder.of("error")


@each_kind
@pytest.mark.parametrize("close", [TCPSocket.close, TCPSocket.closeImmediately, TCPSocket.reset])
async def test_close(kind: str, close: Callable[[TCPSocket], None]) -> None:
    reports = Told(kind)
    reports.does[b"2"] = close
    async with connected_peer() as (sock, peer):
        sock.ondata = lines(reports.handler)
        recorder = EventRecorder(sock)
        await sent(peer, b"1\n2\n3\nno end")
        peer.close()
        await recorder.first("close")
    assert reports.data == [b"1", b"2"]
    assert not recorder.of("error")


@each_kind
async def test_a_handler_that_raises(kind: str) -> None:
    reports = Told(kind)
    reports.does[b"2"] = lambda sock: 1 / 0
    with pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with connected_peer() as (sock, peer):
            sock.ondata = lines(reports.handler)
            await sent(peer, b"1\n2\n3\n")
    assert reports.data == [b"1", b"2"]


@each_kind
async def test_the_owner_is_cancelled(kind: str, listener: socket.socket) -> None:
    reports = Told(kind)
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, "client", listener)
        reports.does[b"2"] = lambda sock: tcp.cancel_scope.cancel()
        with peer:
            sock.ondata = lines(reports.handler)
            peer.sendall(b"1\n2\n3\n")
            await anyio.sleep_forever()
    assert reports.data == [b"1", b"2"]


@each_kind
async def test_lines_then_bytes_then_lines(kind: str) -> None:
    """As in SMTP, followed by a message of fixed size."""
    reports, message = Told(kind), bytearray()

    def on_message(event: Any) -> None:
        message.extend(event.data)
        if len(message) >= 10:
            event.target.ondata = on_line
            if len(message) > 10:
                on_line(TCPSocketEvent("data", event.target, bytes(message[10:])))

    on_line = lines(reports.handler)
    reports.does[b"DATA"] = lambda sock: setattr(sock, "ondata", on_message)
    async with connected_peer() as (sock, peer):
        sock.ondata = on_line
        await sent(peer, b"HELO\r\nDATA\r\n12345")
        assert message == b"12345"
        await sent(peer, b"6789")
        await sent(peer, b"0")
        await sent(peer, b"QUIT\r\n")
        assert message == b"1234567890"
        assert reports.data == [b"HELO", b"DATA", b"QUIT"]


@each_kind
@pytest.mark.parametrize("one_by_one", [False, True])
async def test_lines_then_frames(kind: str, one_by_one: bool) -> None:
    reports, others = Told(kind), Told("plain" if kind == "async" else "async")
    reports.does[b"BINARY"] = lambda sock: setattr(sock, "ondata", frames(others.handler, size=2))
    others.does[b"TEXT"] = lambda sock: setattr(sock, "ondata", lines(reports.handler))
    data = b"hello\nBINARY\n" + framed(b"\n1", b"TEXT") + b"BINARY\n" + framed(b"3", b"4")
    async with connected_peer() as (sock, peer):
        sock.ondata = lines(reports.handler)
        recorder = EventRecorder(sock)
        await (peer.trickle(data) if one_by_one else peer.send(data))
        await all_blocked()
        assert reports.data == [b"hello", b"BINARY", b"BINARY"]
        assert others.data == [b"\n1", b"TEXT", b"3", b"4"]
        assert recorder.data == data


@each_kind
async def test_what_there_is_of_a_line_is_for_the_next_handler_at_once(kind: str) -> None:
    reports, other = Told(kind), Told(kind)
    async with connected_peer() as (sock, peer):
        sock.ondata = lines(reports.handler)
        await sent(peer, b"1\npart")
        sock.ondata = other.handler
        await all_blocked()
        assert (reports.data, other.data) == ([b"1"], [b"part"])


async def test_while_suspended_it_waits_for_the_next_handler() -> None:
    reports, other = Told(), Told()
    async with connected_peer() as (sock, peer):
        sock.ondata = lines(reports.handler)
        await sent(peer, b"1\npart")
        sock.suspend()
        sock.ondata = other.handler
        await sent(peer, b"more")
        assert other.data == []
        sock.resume()
        await all_blocked()
        assert b"".join(other.data) == b"partmore"


async def test_one_of_two_kinds_by_a_function_of_ones_own() -> None:
    reports, others = Told(), Told()
    modes = [lines(reports.handler), frames(others.handler, size=1)]
    reports.does[b"BINARY"] = lambda sock: modes.reverse()
    async with connected_peer() as (sock, peer):
        sock.ondata = lambda event: modes[0](event)
        await sent(peer, b"BINARY\n\3")
        await sent(peer, b"123")
        assert (reports.data, others.data) == ([b"BINARY"], [b"123"])


@each_kind
async def test_the_rest_is_for_a_stream(kind: str) -> None:
    reports = Told(kind)
    reports.does[b"STREAM"] = TCPSocket.stream
    async with connected_peer() as (sock, peer):
        sock.ondata = lines(reports.handler)
        await sent(peer, b"1\nSTREAM\n2\n3")
        await peer.send(b"4")
        stream = sock.stream()
        got = b""
        while len(got) < 4:
            got += await stream.receive()
        assert (reports.data, got) == ([b"1", b"STREAM"], b"2\n34")
        await stream.aclose()


@each_kind
async def test_the_rest_is_for_a_pipe(kind: str) -> None:
    reports = Told(kind)
    async with connected_peer() as (sock, peer), connected_peer() as (target, far):

        def connect(sock: TCPSocket) -> None:
            sock.ondata = None
            pipe(sock, target)

        reports.does[b"CONNECT"] = connect
        sock.ondata = lines(reports.handler)
        await sent(peer, b"CONNECT\nhel")
        await peer.send(b"lo")
        assert await far.receive_exactly(5) == b"hello"
    assert reports.data == [b"CONNECT"]


async def test_another_handler_while_the_asynchronous_one_waits() -> None:
    """Another task replaces it: the line being handled is the last that the first handler receives."""
    reports, other = Told(), Told()
    going_on, waiting = anyio.Event(), anyio.Event()

    async def on_line(event: Any) -> None:
        reports.handler(event)
        waiting.set()
        await going_on.wait()

    async with connected_peer() as (sock, peer):
        sock.ondata = lines(on_line)
        await sent(peer, b"1\n2\n")
        await waiting.wait()
        sock.ondata = other.handler
        await sent(peer, b"3\n")
        assert other.data == []
        going_on.set()
        await all_blocked()
        assert (reports.data, b"".join(other.data)) == ([b"1"], b"2\n3\n")


async def test_the_asynchronous_handler_is_awaited_for_each_line() -> None:
    running, reports = 0, []

    async def on_line(event: Any) -> None:
        nonlocal running
        running += 1
        assert running == 1
        for _ in range(5):
            await anyio.lowlevel.checkpoint()
        reports.append(event.data)
        running -= 1

    async with connected_peer() as (sock, peer):
        sock.ondata = lines(on_line)
        await peer.trickle(b"1\n2\n3\n4\n")
        while len(reports) < 4:
            await anyio.lowlevel.checkpoint()
        assert reports == [b"1", b"2", b"3", b"4"]


# STARTTLS


def upgrade(sock: TCPSocket) -> None:
    sock.upgradeToSecure(ssl_context=server_context())


@asynccontextmanager
async def starttls(kind: str, late: bool) -> AsyncIterator[tuple[socket.socket, Told, EventRecorder, TCPSocket]]:
    """A server that starts TLS after a line.

    :param late: whether it does so only after its handler has returned
    """
    reports = Told(kind)
    with anyio.fail_after(30):
        async with MozTCPSocket() as tcp:
            server = tcp.listen(0, host="127.0.0.1")
            found: list[TCPSocket] = []

            def on_connect(event: Any) -> None:
                found.append(event.socket)
                event.socket.ondata = lines(reports.handler)

            server.onconnect = on_connect
            with await dial(server.localPort) as peer:
                while not found:
                    await anyio.lowlevel.checkpoint()
                if not late:
                    reports.does[b"STARTTLS"] = upgrade
                yield peer, reports, EventRecorder(found[0]), found[0]
            tcp.close()


@pytest.mark.usefixtures("impatient")
@each_kind
@pytest.mark.parametrize("injected", [b"INJECTED\r\n", b"INJ"])
async def test_what_was_injected_into_the_plaintext_makes_the_handshake_fail(kind: str, injected: bytes) -> None:
    """This is CVE-2011-0411."""
    async with starttls(kind, late=False) as (peer, reports, recorder, _):
        peer.sendall(b"STARTTLS\r\n" + injected)
        peer.sendall(EarlyHello().hello)
        await recorder.first("close")
    assert reports.data == [b"STARTTLS"]
    assert recorder.of("error")[0].message == "SecurityProtocol"


@pytest.mark.usefixtures("impatient")
@each_kind
async def test_half_a_line_that_was_injected_is_no_beginning_of_what_comes_encrypted(kind: str) -> None:
    """The upgrade comes later, when the handler of lines holds half a line."""
    async with starttls(kind, late=True) as (peer, reports, recorder, sock):
        peer.sendall(b"STARTTLS\r\nINJ")
        while not reports.data:
            await anyio.lowlevel.checkpoint()
        await all_blocked()
        upgrade(sock)
        peer.sendall(EarlyHello().hello)
        await recorder.first("close")
    assert reports.data == [b"STARTTLS"]
    assert recorder.of("error")[0].message == "SecurityProtocol"


@each_kind
@pytest.mark.parametrize("pieces", [1, 2, 300])
async def test_an_early_client_hello(kind: str, pieces: int) -> None:
    async with starttls(kind, late=False) as (peer, reports, recorder, _):
        client = EarlyHello()
        data = b"STARTTLS\r\n" + client.hello
        step = len(data) // pieces + 1
        for at in range(0, len(data), step):
            peer.sendall(data[at : at + step])
            await anyio.lowlevel.checkpoint()
        await blocking(client.go_on, peer)
        await recorder.until(lambda: len(reports.data) > 1)
    assert reports.data == [b"STARTTLS", b"encrypted"]


@each_kind
async def test_the_beginning_of_a_client_hello_that_was_held_as_half_a_line(kind: str) -> None:
    async with starttls(kind, late=True) as (peer, reports, recorder, sock):
        client = EarlyHello()
        peer.sendall(b"STARTTLS\r\n" + client.hello[:3])  # the type and version of a record
        while not reports.data:
            await anyio.lowlevel.checkpoint()
        await all_blocked()
        upgrade(sock)
        peer.sendall(client.hello[3:])
        await blocking(client.go_on, peer)
        await recorder.until(lambda: len(reports.data) > 1)
    assert reports.data == [b"STARTTLS", b"encrypted"]


async def test_lines_of_tls(role: str, version: Any, listener: socket.socket) -> None:
    reports = Told()
    async with MozTCPSocket() as tcp:
        sock, recorder, peer = await securely_connected(tcp, role, listener, version)
        with peer:
            sock.ondata = lines(reports.handler)
            for part in (b"on", b"e\ntwo\nth", b"ree\n"):
                await blocking(peer.sendall, part)
            await recorder.until(lambda: len(recorder.data) == 14)
            sock.close()
    assert reports.data == [b"one", b"two", b"three"]


# Performance


@each_kind
@pytest.mark.parametrize("count", [PIECES_AT_ONCE - 1, PIECES_AT_ONCE, PIECES_AT_ONCE + 1, 3 * PIECES_AT_ONCE + 7])
@pytest.mark.parametrize("cutter", ["lines", "frames"])
async def test_many_at_once(cutter: str, count: int, kind: str) -> None:
    """None is lost or out of order, and each byte counts once; what follows a line is another handler's."""
    parts = [b"%d" % number for number in range(count)]
    last = parts[-1 - count // 4]
    for replaced in False, True:
        told, rest = Told(kind), Told()
        if replaced:
            told.does[last] = lambda sock, rest=rest: setattr(sock, "ondata", rest.handler)  # type: ignore[misc]
        async with connected_peer() as (sock, peer):
            events = EventRecorder(sock)
            if cutter == "lines":
                sock.ondata, data = lines(told.handler), b"\r\n".join(parts) + b"\r\n"
            else:
                sock.ondata, data = frames(told.handler, size=2), framed(*parts)
            await peer.send(data)
            peer.send_eof()
            await events.first("close")
            assert sock.bytes_received == len(data)
        index = parts.index(last) + 1 if replaced else count
        behind = parts[index:]
        assert told.data == parts[:index]
        whole = b"".join(part + b"\r\n" for part in behind) if cutter == "lines" else framed(*behind)
        assert b"".join(rest.data) == whole


@each_kind
@pytest.mark.parametrize("cutter", ["lines", "frames"])
async def test_a_flood_of_the_shortest_leaves_others_their_turn(cutter: str, kind: str) -> None:
    handled, at_each_turn = 0, [0]

    def count(event: Any) -> None:
        nonlocal handled
        handled += 1

    if kind == "async":

        async def handler(event: Any) -> None:
            count(event)
    else:
        handler = made(kind, count)  # type: ignore[assignment]
    async with connected_peer() as (sock, peer), anyio.create_task_group() as tasks:
        sock.ondata = lines(handler) if cutter == "lines" else frames(handler, size=1)
        tasks.start_soon(peer.send, bytes(30_000) if cutter == "frames" else b"\n" * 30_000)
        while handled < 30_000:
            await anyio.lowlevel.checkpoint()
            at_each_turn.append(handled)
    assert max(after - before for before, after in itertools.pairwise(at_each_turn)) <= 20 * PIECES_AT_ONCE


@on_one_loop
async def test_one_byte_at_a_time_takes_no_longer_the_longer_the_line() -> None:
    """The time for each byte is constant; if it were not, this would take some forty times as long."""

    def seconds(handler: Handler, sock: TCPSocket, data: bytes) -> float:
        events = [TCPSocketEvent("data", sock, data[index : index + 1]) for index in range(len(data))]
        best = 1e9
        for _ in range(3):
            begin = time.perf_counter()
            for event in events:
                handler(event)
            best = min(best, time.perf_counter() - begin)
        return best

    for make, end in ((lines, b"\n"), (partial(frames, size=4), b"")):
        async with connected_peer() as (sock, _):
            handler = make(lambda event: None, limit=1 << 20)
            both = []
            for size in (5_000, 200_000):
                data = b"x" * size + end if end else size.to_bytes(4, "big") + b"x" * size
                both.append(seconds(handler, sock, data) / size)
            assert both[1] < 6 * both[0]
            sock.closeImmediately()


async def test_suspending_at_each_line_takes_no_longer_the_more_wait() -> None:
    took: list[float] = []
    for count in (1000, 20_000):
        reports: list[bytes] = []

        def on_line(event: Any, reports: list[bytes] = reports) -> None:
            reports.append(event.data)
            event.target.suspend()
            event.target.resume()

        async with connected_pair() as (ours, theirs):
            ours.ondata = lines(on_line)
            begin = time.perf_counter()
            theirs.send(b"0123456789\n" * count)
            while len(reports) < count:
                await anyio.lowlevel.checkpoint()
            took.append((time.perf_counter() - begin) / count)
    assert took[1] < 6 * took[0]


async def test_an_unfinished_line_is_held_in_little_memory() -> None:
    async with connected_peer() as (sock, _):
        handler = lines(lambda event: None)
        tracemalloc.start()
        for number in range(30_000):
            handler(TCPSocketEvent("data", sock, b"%02d" % (number % 100)))
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert held < 120_000
        sock.closeImmediately()


async def test_nothing_is_kept_of_a_socket_that_has_ended() -> None:
    handler = lines(lambda event: None)
    async with connected_peer() as (sock, peer):
        sock.ondata = handler
        await sent(peer, b"1\n2")
        sock.closeImmediately()
    reference = weakref.ref(sock)
    del sock, peer
    gc.collect()
    assert reference() is None
    assert weakref.ref(handler)() is handler


# Bad arguments

any_lines: Any = lines
any_frames: Any = frames


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: any_lines(None),
            TypeError,
            r"the handler of lines\(\) must be a function that takes one event, not None",
        ),
        (lambda: any_lines(print, limit=0), ValueError, "limit must be at least 1, not 0"),
        (lambda: any_lines(print, limit=1.5), TypeError, "limit must be an int"),
        (lambda: any_lines(print, unended=1), TypeError, "unended must be a bool"),
        (
            lambda: any_frames(5, size=2),
            TypeError,
            r"the handler of frames\(\) must be a function that takes one event",
        ),
        (lambda: any_frames(print), TypeError, "size"),
        (lambda: any_frames(print, size=0), ValueError, "size must be from 1 to 8, not 0"),
        (lambda: any_frames(print, size=9), ValueError, "size must be from 1 to 8, not 9"),
        (lambda: any_frames(print, size=2, limit=0), ValueError, "limit must be at least 1"),
        (lambda: any_frames(print, size=2, byteorder="middle"), ValueError, "byteorder must be 'big' or 'little'"),
    ],
)
def test_bad_arguments(call: Callable[[], Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


async def test_it_is_no_listener_beside_others() -> None:
    sock = TCPSocket("localhost", 1)
    with pytest.raises(TypeError, match=r"a handler made by lines\(\) is for ondata only"):
        sock.addEventListener("data", lines(print))
    sock.ondata = lines(print)
    with pytest.raises(TypeError, match="must be a function that takes one event"):
        sock.ondata = 5  # type: ignore[assignment]
    sock.ondata = None


async def test_it_is_for_data_only() -> None:
    with pytest.raises(TypeError, match=r"a handler made by frames\(\) is for ondata only, not for end"):  # noqa: PT012
        async with connected_peer(allow_half_open=True) as (sock, peer):
            sock.onend = frames(print, size=2)  # type: ignore[assignment]
            peer.send_eof()
            await anyio.sleep_forever()
