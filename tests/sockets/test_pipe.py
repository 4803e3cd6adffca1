"""pipe(): one socket sends what another receives, tested between peers that share no code with it."""

from __future__ import annotations

import gc
import os
import socket
import ssl
import sys
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mozsocket import InvalidStateError, MozTCPSocket, TCPSocket, TCPSocketError, pipe
from mozsocket.testing import EventRecorder, Peer, connected_pair, connected_peer

from ..certificates import client_context, server_context
from ..peers import (
    PEER_TIMEOUT,
    accept,
    all_blocked,
    blocking,
    dial,
    exchange,
    listening,
    port_of,
    read_all,
    read_exactly,
    reset,
    secure,
    unused_port,
)

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup

pytestmark = pytest.mark.anyio

WAYS = [("client", "upstream"), ("upstream", "client")]
each_way = pytest.mark.parametrize(("source", "target"), WAYS)
each_layer = pytest.mark.parametrize("layers", [(False, False), (True, False), (False, True), (True, True)])


@dataclass
class Ends:
    """Two of our sockets that are piped to each other, and the blocking sockets at their other ends.

    :ivar ours: the accepted socket as "client", the opened one as "upstream"
    :ivar theirs: the blocking peers of these
    :ivar reports: the recorders of these
    """

    ours: dict[str, TCPSocket]
    theirs: dict[str, Any]
    reports: dict[str, EventRecorder]


@asynccontextmanager
async def piped(
    layers: tuple[bool, bool] = (False, False),
    *,
    half_open: bool = True,
    back_first: bool = False,
    **upstream_options: Any,
) -> AsyncIterator[Ends]:
    """A proxy between a client and an upstream server.

    :param layers: whether TLS is used between client and proxy, and between proxy and upstream
    """
    ends = Ends({}, {}, {})
    accept_options: dict[str, Any] = {"allow_half_open": half_open}
    open_options: dict[str, Any] = {"allow_half_open": half_open, **upstream_options}
    if layers[0]:
        accept_options |= {"useSecureTransport": True, "ssl_context": server_context()}
    if layers[1]:
        context = client_context()
        open_options |= {"useSecureTransport": True, "ssl_context": context, "server_hostname": "localhost"}

    def on_connect(event: Any) -> None:
        upstream = tcp.open("127.0.0.1", port_of(listener), **open_options)
        ends.ours |= {"client": event.socket, "upstream": upstream}
        ends.reports |= {name: EventRecorder(each) for name, each in ends.ours.items()}
        both = [(event.socket, upstream), (upstream, event.socket)]
        for source, target in reversed(both) if back_first else both:
            pipe(source, target)

    with anyio.fail_after(50), listening() as listener:
        async with MozTCPSocket() as tcp:
            server = tcp.listen(0, host="127.0.0.1", **accept_options)
            server.onconnect = on_connect
            client: Any = await dial(server.localPort)
            if layers[0]:
                client = await secure(client, client_context())
            upstream: Any = await accept(listener)
            if layers[1]:
                upstream = await secure(upstream, server_context(), server_side=True)
            ends.theirs |= {"client": client, "upstream": upstream}
            server.close()
            with client, upstream:
                yield ends


async def gone(sock: Any) -> None:
    """Wait until a peer was reset, whatever `ssl` reports then."""
    with pytest.raises(ConnectionResetError):
        await blocking(lambda: [socket.socket.recv(sock, 65536) for _ in range(100)])


def end(sock: Any) -> None:
    """End one side only. `ssl` cannot do that, so its wait for the other side is skipped."""
    sock.shutdown(socket.SHUT_WR)


# Data


@each_layer
async def test_all_of_it_in_order_both_ways_at_once(layers: tuple[bool, bool]) -> None:
    async with piped(layers) as ends:
        client, upstream = ends.theirs.values()
        forth, back = os.urandom(3_000_000), os.urandom(3_000_000)
        got: dict[str, bytes] = {}

        async def run(name: str, sock: Any, data: bytes) -> None:
            got[name] = await blocking(exchange, sock, data, 3_000_000)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, "client", client, forth)
            tasks.start_soon(run, "upstream", upstream, back)
        assert got == {"client": back, "upstream": forth}


@each_way
async def test_one_byte_at_a_time(source: str, target: str) -> None:
    async with piped() as ends:
        for number in range(100):
            ends.theirs[source].sendall(bytes([number]))
            await anyio.lowlevel.checkpoint()
        assert await blocking(read_exactly, ends.theirs[target], 100) == bytes(range(100))


@each_way
@each_layer
async def test_a_slow_target_holds_the_source_back(layers: tuple[bool, bool], source: str, target: str) -> None:
    async with piped(layers) as ends:
        data = os.urandom(1 << 20) * 32
        held = received = since = 0.0
        ended = anyio.Event()

        async def send() -> None:
            await blocking(ends.theirs[source].sendall, data)
            ended.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            while not received or anyio.current_time() < since + 0.1:  # until nothing more is received
                await anyio.sleep(0.001)
                held = max(held, ends.ours[target].bufferedAmount)
                if ends.ours[source].bytes_received > received:
                    received, since = ends.ours[source].bytes_received, anyio.current_time()
            assert not ended.is_set()
            assert await blocking(read_exactly, ends.theirs[target], len(data)) == data
        assert held < 2_000_000


async def clogged_and_closing(target: TCPSocket) -> None:
    """Have a socket wait for its peer to take what is buffered, and close then."""
    target.send(bytes(20 << 20))
    target.close()
    await all_blocked()


async def test_what_is_received_while_the_target_is_closing_is_dropped() -> None:
    """It sends no more, so that data could only pile up until the target has closed."""
    async with connected_peer() as (target, _), connected_peer() as (source, near):
        pipe(source, target)
        await clogged_and_closing(target)
        tracemalloc.start()
        try:
            await near.send(bytes(8 << 20))
            while source.bytes_received < 8 << 20:
                await all_blocked()
            assert tracemalloc.get_traced_memory()[0] < 2 << 20
        finally:
            tracemalloc.stop()
        target.closeImmediately()
        source.closeImmediately()


@pytest.mark.parametrize("how", ["end", "reset"])
@each_way
async def test_the_source_is_lost_while_the_target_is_closing(source: str, target: str, how: str) -> None:
    async with piped(half_open=False) as ends:
        await clogged_and_closing(ends.ours[target])
        await blocking(ends.theirs[source].sendall, b"more")
        if how == "end":
            ends.theirs[source].close()
        else:
            reset(ends.theirs[source])
        await ends.reports[source].first("close")
        assert ends.reports[source].types[-2:] == (["error", "close"] if how == "reset" else ["data", "close"])
        ends.ours[target].closeImmediately()


@pytest.mark.parametrize("limit", [1, 1000, 70_000])
async def test_a_target_that_takes_only_so_much(limit: int) -> None:
    async with piped(max_buffered_amount=limit) as ends:
        data = os.urandom(1000 if limit == 1 else 1_000_000)
        ends.theirs["client"].settimeout(PEER_TIMEOUT)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(blocking, ends.theirs["client"].sendall, data)
            assert await blocking(read_exactly, ends.theirs["upstream"], len(data)) == data
        end(ends.theirs["client"])
        assert await blocking(read_all, ends.theirs["upstream"]) == b""
        end(ends.theirs["upstream"])
        assert await blocking(read_all, ends.theirs["client"]) == b""


@pytest.mark.parametrize("back_first", [False, True])
async def test_what_was_delivered_is_sent_though_the_program_closes_the_source(back_first: bool) -> None:
    """The target is slow, and cannot accept all of the data yet."""
    async with piped(max_buffered_amount=1000, back_first=back_first) as ends:
        client = ends.theirs["client"]
        client.setblocking(False)
        for _ in range(3):
            with suppress(BlockingIOError):
                while True:
                    client.send(os.urandom(65536))
            await all_blocked()
        ends.ours["client"].closeImmediately()  # without waiting
        await ends.reports["client"].first("close")
        await all_blocked()
        assert await blocking(read_all, ends.theirs["upstream"]) == ends.reports["client"].data


@pytest.mark.parametrize("from_text", [False, True])
@pytest.mark.parametrize("to_text", [False, True])
async def test_text(from_text: bool, to_text: bool) -> None:
    kinds = {False: "arraybuffer", True: "string"}
    near_options: dict[str, Any] = {"binaryType": kinds[from_text]}
    far_options: dict[str, Any] = {"binaryType": kinds[to_text]}
    async with connected_peer(**near_options) as (source, near), connected_peer(**far_options) as (target, far):
        pipe(source, target)
        await near.send(bytes(range(256)))
        assert await far.receive_exactly(256) == bytes(range(256))


async def test_an_echo() -> None:
    async with connected_peer(allow_half_open=True) as (sock, peer):
        pipe(sock, sock)
        await peer.send(b"echo")
        assert await peer.receive_exactly(4) == b"echo"
        peer.send_eof()
        assert await peer.receive_all() == b""
        await sock.closed()


async def test_to_two_targets() -> None:
    """The slower target limits the source."""
    data, got = os.urandom(10_000_000), 0

    async def receive_all_slowly(far: Peer) -> None:
        nonlocal got
        for at in range(0, len(data), 100_000):
            assert await far.receive_exactly(100_000) == data[at : at + 100_000]
            got += 1

    sockets = connected_peer(), connected_peer(), connected_peer()
    async with sockets[0] as (source, near), sockets[1] as (one, far_one), sockets[2] as (two, far_two):
        pipe(source, one)
        pipe(source, two)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(near.send, data)
            tasks.start_soon(receive_all_slowly, far_one)
            await receive_all_slowly(far_two)
    assert got == 200


async def test_the_handlers_of_both_stay_free() -> None:
    """A program's own suspension of the source also remains in effect."""
    seen: list[str] = []
    async with piped() as ends:
        client = ends.ours["client"]
        client.ondata = lambda event: seen.append(event.type)
        client.onend = lambda event: seen.append(event.type)
        client.suspend()
        ends.theirs["client"].sendall(b"hello")
        await all_blocked()
        assert seen == []
        client.resume()
        assert await blocking(read_exactly, ends.theirs["upstream"], 5) == b"hello"
        end(ends.theirs["client"])
        assert await blocking(read_all, ends.theirs["upstream"]) == b""
        assert seen == ["data", "end"]


# Ends


@each_way
@pytest.mark.parametrize("layers", [(False, False)])
async def test_an_end_is_an_end_and_the_other_way_goes_on(source: str, target: str, layers: tuple[bool, bool]) -> None:
    async with piped(layers) as ends:
        near, far = ends.theirs[source], ends.theirs[target]
        near.sendall(b"question")
        end(near)
        assert await blocking(read_all, far) == b"question"
        for _ in range(3):
            far.sendall(b"answer")
            assert await blocking(read_exactly, near, 6) == b"answer"
        end(far)
        assert await blocking(read_all, near) == b""
        await ends.reports[source].first("close")
        await ends.reports[target].first("close")
    assert not ends.reports[source].of("error") and not ends.reports[target].of("error")


@pytest.mark.parametrize("layers", [(True, False), (False, True), (True, True)])
@each_way
async def test_an_end_with_tls(layers: tuple[bool, bool], source: str, target: str) -> None:
    """The peers use `ssl`, which cannot end one side only: unwrap() waits for the other side's end."""
    async with piped(layers) as ends:
        near, far = ends.theirs[source], ends.theirs[target]

        def say_and_end(sock: Any, data: bytes) -> None:
            sock.sendall(data)
            if isinstance(sock, ssl.SSLSocket):
                with suppress(OSError):
                    sock.unwrap()
            else:
                end(sock)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(blocking, say_and_end, near, b"question")
            assert await blocking(read_all, far) == b"question"
            await blocking(say_and_end, far, b"")
        await ends.reports[source].first("close")
        await ends.reports[target].first("close")
    assert not ends.reports[source].of("error") and not ends.reports[target].of("error")


@each_way
async def test_without_half_open_the_end_closes_both(source: str, target: str) -> None:
    async with piped(half_open=False) as ends:
        near, far = ends.theirs[source], ends.theirs[target]
        near.sendall(b"last words")
        end(near)
        assert await blocking(read_all, far) == b"last words"
        assert await blocking(read_all, near) == b""
        far.close()
        await ends.reports[source].first("close")
        await ends.reports[target].first("close")
    assert not ends.reports[source].of("error") and not ends.reports[target].of("error")


@each_way
async def test_the_end_comes_behind_all_that_the_target_is_slow_to_take(source: str, target: str) -> None:
    async with piped() as ends:
        near, far = ends.theirs[source], ends.theirs[target]
        data = os.urandom(20_000_000)

        def send() -> None:
            near.sendall(data)
            end(near)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(blocking, send)
            await all_blocked()
            assert await blocking(read_all, far) == data
        end(far)
        assert await blocking(read_all, near) == b""


@each_way
@pytest.mark.parametrize("close", [TCPSocket.close, TCPSocket.closeImmediately])
async def test_the_program_closes_one_of_them(source: str, target: str, close: Callable[[TCPSocket], None]) -> None:
    async with piped() as ends:
        ends.theirs[source].sendall(b"last words")
        assert await blocking(read_exactly, ends.theirs[target], 10) == b"last words"
        close(ends.ours[source])
        assert await blocking(read_all, ends.theirs[source]) == b""
        ends.theirs[source].close()
        assert await blocking(read_all, ends.theirs[target]) == b""


# Losses


@each_way
@each_layer
async def test_a_reset_is_a_reset(layers: tuple[bool, bool], source: str, target: str) -> None:
    async with piped(layers) as ends:
        near, far = ends.theirs[source], ends.theirs[target]
        await blocking(near.sendall, b"last words")
        assert await blocking(read_exactly, far, 10) == b"last words"
        reset(near)
        await gone(far)
        await ends.reports[target].first("close")
    assert [len(ends.reports[name].of("error")) for name in (source, target)] == [1, 0]


@each_way
async def test_a_reset_while_the_other_is_slow(source: str, target: str) -> None:
    """This applies to the loss of either socket while the source is suspended."""
    for lost, left in ((source, target), (target, source)):
        async with piped() as ends:
            near = ends.theirs[source]
            near.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    near.send(bytes(65536))
            await all_blocked()
            with suppress(BlockingIOError):
                while True:
                    near.send(bytes(65536))
            await all_blocked()
            near.settimeout(PEER_TIMEOUT)
            reset(ends.theirs[lost])
            with pytest.raises(ConnectionResetError):
                await blocking(read_all, ends.theirs[left])
            await ends.reports[lost].first("close")
            await ends.reports[left].first("close")


@each_way
async def test_what_was_ended_in_order_arrives_though_a_reset_follows(source: str, target: str) -> None:
    much = bytes(range(256)) * 4096
    async with piped() as ends:
        near, far = ends.theirs[source], ends.theirs[target]
        await blocking(near.sendall, much)
        end(near)
        await ends.reports[source].first("end")
        reset(near)
        await ends.reports[source].first("close")
        assert await blocking(read_all, far) == much
        far.close()
        await ends.reports[target].first("close")
    assert ends.reports[source].types[-3:] == ["end", "error", "close"]
    assert ends.reports[target].types[-1] == "close"


async def test_a_target_that_refuses(listener: socket.socket) -> None:
    """The source gets a reset, whatever it has sent, and whether or not it has ended."""
    names: list[str] = []
    async with MozTCPSocket() as tcp:

        def on_connect(event: Any) -> None:
            upstream = tcp.open("127.0.0.1", unused_port(), allow_half_open=True)
            upstream.onerror = lambda event: names.append(event.name)
            pipe(event.socket, upstream)
            pipe(upstream, event.socket)

        server = tcp.listen(0, host="127.0.0.1", allow_half_open=True)
        server.onconnect = on_connect
        for _ in range(2):
            with suppress(ConnectionResetError), await dial(server.localPort) as client:
                client.sendall(b"early")
                end(client)
                await blocking(read_all, client)
                pytest.fail("that was an orderly end")
        server.close()
    assert names == ["ConnectionRefusedError"] * 2


async def test_an_error_that_is_passed_on_is_not_reported_by_that() -> None:
    with pytest.raises(TCPSocketError, match="reset"):  # noqa: PT012
        async with connected_peer() as (source, near), connected_peer() as (target, far):
            pipe(source, target)
            near.reset()
            with pytest.raises(ConnectionResetError):
                await far.receive_all()


@each_way
async def test_a_handler_that_raises_has_cut_off_what_was_passed_on(
    source: str, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(event: Any) -> None:
        raise ZeroDivisionError

    raised: list[BaseException] = []
    try:
        async with piped() as ends:
            ends.ours[source].ondata = fail
            ends.theirs[source].sendall(b"hello")
            await gone(ends.theirs[target])
    except BaseExceptionGroup as group:
        raised.append(group)
    assert bool(raised) == (source == "upstream")  # the exception of an accepted socket is logged
    assert raised or "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("cancelled", ["source", "target"])
@pytest.mark.parametrize("suspended", [False, True])
async def test_the_block_of_one_is_cancelled(cancelled: str, suspended: bool) -> None:
    """No handler is called about that."""
    async with connected_peer() as (kept, peer):
        with anyio.CancelScope() as scope:
            async with connected_peer() as (lost, _):
                pipe(*((lost, kept) if cancelled == "source" else (kept, lost)))
                if suspended and cancelled == "target":
                    await peer.clog()
                scope.cancel()
                await anyio.sleep_forever()
        with anyio.fail_after(PEER_TIMEOUT):
            await kept.closed()


# Before the target is connected


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("size", [5, 10_000_000])
async def test_nothing_is_lost_while_the_target_connects(ended: bool, size: int) -> None:
    data = os.urandom(size)
    with listening() as listener:
        async with connected_peer(allow_half_open=True) as (source, near):
            target = TCPSocket("127.0.0.1", port_of(listener), allow_half_open=True)
            pipe(source, target)
            pipe(target, source)

            async def send() -> None:
                await near.send(data)
                if ended:
                    near.send_eof()

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send)
                await all_blocked()
                async with target:
                    with await accept(listener) as far:
                        if ended:
                            assert await blocking(read_all, far) == data
                        else:
                            assert await blocking(read_exactly, far, size) == data
                        far.sendall(b"answer")
                        assert await near.receive_exactly(6) == b"answer"
                        end(far)
                        assert await near.receive_all() == b""
                        near.send_eof()
                        await target.closed()


async def test_the_source_is_lost_while_the_target_connects(clogged: int) -> None:
    async with MozTCPSocket() as tcp:
        target = tcp.open("127.0.0.1", clogged)
        async with connected_peer() as (source, near):
            source.onerror = lambda event: None
            pipe(source, target)
            pipe(target, source)
            near.reset()
            with pytest.raises(InvalidStateError):
                await target.opened()


async def test_the_source_is_closed_while_the_target_connects(clogged: int) -> None:
    async with MozTCPSocket() as tcp:
        target = tcp.open("127.0.0.1", clogged)
        async with connected_peer(linger=0.1) as (source, _):
            pipe(source, target)
            source.close()
            with pytest.raises(InvalidStateError):
                await target.opened()


async def test_an_end_that_was_delivered_before() -> None:
    async with connected_peer(allow_half_open=True) as (source, near), connected_peer() as (target, far):
        near.send_eof()
        await EventRecorder(source).first("end")
        pipe(source, target)
        assert await far.receive_all() == b""
        far.close()


@pytest.mark.parametrize("which", ["source", "target"])
@pytest.mark.parametrize("how", ["closed", "lost", "closing", "never run"])
async def test_one_that_is_gone_already(which: str, how: str) -> None:
    async with connected_peer() as (left, peer_of_left):
        other: TCPSocket
        if how == "never run":
            other = TCPSocket("localhost", 1)
            other.close()
        else:
            async with connected_peer() as (other, peer):
                other.onerror = lambda event: None
                recorder = EventRecorder(other)
                if how == "closing":
                    other.send(bytes(20_000_000))
                    other.close()
                    await all_blocked()
                    pipe(*((other, left) if which == "source" else (left, other)))
                    await all_blocked()
                    assert left.readyState == "open"
                    await peer.receive_exactly(20_000_000)
                elif how == "lost":
                    peer.reset()
                else:
                    other.close()
                peer.close()
                await recorder.first("close")
        if how != "closing":
            pipe(*((other, left) if which == "source" else (left, other)))
        if how == "lost":
            with pytest.raises(ConnectionResetError):
                await peer_of_left.receive_all()
        else:
            assert await peer_of_left.receive_all() == b""
        peer_of_left.close()
        await left.closed()


async def test_in_the_handler_of_the_close_of_the_source() -> None:
    async with connected_peer() as (target, far):
        async with connected_peer() as (source, near):
            source.onclose = lambda event: pipe(source, target)
            near.close()
            assert await far.receive_all() == b""
        far.close()


# Bad arguments


async def test_what_cannot_be_piped() -> None:
    async with connected_pair(allow_half_open=True) as (one, two):
        with pytest.raises(TypeError, match=r"pipe\(\) takes TCPSockets, not type"):
            pipe(one, socket.socket)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"pipe\(\) takes TCPSockets, not NoneType"):
            pipe(None, one)  # type: ignore[arg-type]
        pipe(one, one)
        pipe(two, one)
        with pytest.raises(InvalidStateError, match=r"pipe\(\) from a socket to one that it is piped to already"):
            pipe(two, one)
        one.send_eof()
        with pytest.raises(InvalidStateError, match=r"pipe\(\) to a socket after send_eof\(\)"):
            pipe(two, one)
        stream = one.stream()
        with pytest.raises(InvalidStateError, match=r"pipe\(\) from a socket that has a stream\(\)"):
            pipe(one, two)
        await stream.aclose()


async def test_nothing_refers_to_what_is_over() -> None:
    """The objects are freed without the garbage collector."""
    gc.collect()
    gc.disable()
    try:
        references = []
        async with (
            connected_peer(allow_half_open=True) as (one, near),
            connected_peer(allow_half_open=True) as (two, far),
        ):
            pipe(one, two)
            pipe(two, one)
            references += [weakref.ref(one), weakref.ref(two)]
            near.send_eof()
            assert await far.receive_all() == b""
            far.send_eof()
            assert await near.receive_all() == b""
            await one.closed()
            await two.closed()
            del one, two
        await all_blocked()
        assert [reference() for reference in references] == [None, None]
    finally:
        gc.enable()
