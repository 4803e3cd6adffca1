"""TCPSocket: states, sending, receiving, closing, failing; in both roles where they may differ."""

from __future__ import annotations

import copy
import itertools
import os
import pickle
import re
import socket as stdlib_socket
import types
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute

from mozsocket import Event, InvalidStateError, MozTCPSocket, TCPSocket, TCPSocketError
from mozsocket._connection import SEND_PER_TURN
from mozsocket._tls import TLSTransport
from mozsocket._transport import Transport
from mozsocket.testing import EventRecorder, connected_peer

from ..peers import (
    Accepting,
    accept,
    all_blocked,
    blocking,
    connected,
    dial,
    joined,
    port_of,
    read_all,
    read_exactly,
    reset,
    send_all,
    unused_port,
)

pytestmark = pytest.mark.anyio

MANY = 8 << 20  # bytes that no kernel buffers between two sockets of this machine
SOME = os.urandom(1 << 20)


# Opening


async def test_opens_sends_receives_and_closes(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        with peer:
            assert socket.readyState == "open"
            assert socket.send(b"hello")
            assert await blocking(read_exactly, peer, 5) == b"hello"
            peer.sendall(b"answer")
            await events.first("data")
            socket.close()
            assert socket.readyState == "closing"
            assert await blocking(read_all, peer) == b""
        await events.first("close")
        assert socket.readyState == "closed"
    assert events.data == b"answer"
    assert events.types == (["open"] if role == "client" else []) + ["data", "close"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_attributes(host: str) -> None:
    async with MozTCPSocket() as tcp:
        accepting = Accepting(tcp.listen(0))
        port = accepting.server.localPort
        socket = tcp.open(host, port)
        assert (socket.host, socket.port, socket.ssl, socket.binaryType) == (host, port, False, "arraybuffer")
        assert (socket.readyState, socket.bufferedAmount) == ("connecting", 0)
        shown = f"[{host}]" if ":" in host else host
        assert re.fullmatch(rf"<TCPSocket #\d+ {re.escape(shown)}:{port} connecting>", repr(socket))
        for name in ("host", "port", "ssl", "binaryType", "readyState", "bufferedAmount"):
            with pytest.raises(AttributeError):
                setattr(socket, name, None)
        assert socket.extra_attributes == {}
        await socket.opened()
        accepted, _ = await accepting.first()
        assert socket.extra(SocketAttribute.remote_port) == port
        assert socket.extra(SocketAttribute.local_port) == accepted.port
        assert socket.extra(SocketAttribute.local_address) == (accepted.host, accepted.port)
        assert socket.extra(SocketAttribute.remote_address) == (accepted.host, port)
        assert isinstance(socket.extra(SocketAttribute.raw_socket), stdlib_socket.socket)
        assert accepted.extra(SocketAttribute.family) == socket.extra(SocketAttribute.family)
        tcp.close()
    assert socket.extra_attributes == {}


async def test_nagle_is_off(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, _, peer = await connected(tcp, role, listener)
        raw = socket.extra(SocketAttribute.raw_socket)
        assert raw.getsockopt(stdlib_socket.IPPROTO_TCP, stdlib_socket.TCP_NODELAY)
        peer.close()


async def test_opening_from_a_local_address(listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        tcp.open("127.0.0.1", port_of(listener), local_host="127.0.0.2")
        with await accept(listener) as peer:
            assert peer.getpeername()[0] == "127.0.0.2"


@pytest.mark.parametrize("address", [None, "127.0.0.1"])
@pytest.mark.parametrize("name", ["127.0.0.1", "localhost"])
async def test_opening_from_a_local_port(name: str, address: str | None, listener: stdlib_socket.socket) -> None:
    """The port can be reused immediately, although TCP remembers the previous connection."""
    local_port = unused_port()
    async with MozTCPSocket() as tcp:
        for _ in range(2):
            sock = tcp.open(name, port_of(listener), local_host=address, local_port=local_port)
            with await accept(listener) as peer:
                assert peer.getpeername() == ("127.0.0.1", local_port)
                sock.close()
                assert await blocking(read_all, peer) == b""
            await sock.closed()


async def test_a_local_port_that_another_has(listener: stdlib_socket.socket) -> None:
    taken = port_of(listener)
    with pytest.raises(TCPSocketError, match="in use"):
        async with TCPSocket("127.0.0.1", taken, local_port=taken) as sock:
            await sock.opened()


async def test_no_event_before_the_caller_awaits_nor_inside_its_calls(listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket = tcp.open("127.0.0.1", port_of(listener))
        assert socket.readyState == "connecting"
        events = EventRecorder(socket)
        peer = await accept(listener)
        await events.first("open")

        def sees_nothing(call: Any) -> None:
            before = len(events.events)
            call()
            assert len(events.events) == before

        sees_nothing(lambda: socket.send(bytes(MANY)))
        sees_nothing(socket.suspend)
        sees_nothing(socket.resume)
        sees_nothing(socket.close)
        sees_nothing(socket.closeImmediately)
        await events.first("close")
        peer.close()


# Wrong arguments and wrong states


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"host": ""}, ValueError, "host must be a host name or an IP address, not ''"),
        ({"host": "a\0b"}, ValueError, "host must be"),
        ({"host": b"localhost"}, TypeError, "host must be a str"),
        ({"port": 0}, ValueError, "port must be from 1 to 65535, not 0"),
        ({"port": 65536}, ValueError, "port must be from 1 to 65535"),
        ({"port": "80"}, TypeError, "port must be an int, not str"),
        ({"port": True}, TypeError, "port must be an int, not bool"),
        ({"binaryType": "blob"}, ValueError, 'binaryType must be "arraybuffer" or "string"'),
        ({"connect_timeout": -1}, ValueError, "connect_timeout must be a number of seconds"),
        ({"local_host": ""}, ValueError, "local_host must be"),
        ({"max_buffered_amount": 0}, ValueError, "max_buffered_amount must be at least 1"),
        ({"linger": "5"}, TypeError, "linger must be a number of seconds"),
    ],
)
async def test_wrong_arguments(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given: dict[str, Any] = {"host": "localhost", "port": 80, **arguments}
    with pytest.raises(error, match=message):
        TCPSocket(**given)
    async with MozTCPSocket() as tcp:
        with pytest.raises(error, match=message):
            tcp.open(**given)


async def test_wrong_data_takes_nothing(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, _, peer = await connected(tcp, role, listener)
        for data in (5, None, [1, 2]):
            with pytest.raises(TypeError, match="takes a bytes-like object or a str, not"):
                socket.send(data)  # type: ignore[arg-type]
        for text, place in (("1€", "character 1 is U+20AC"), ("grüß", "character 2 is U+00FC")):
            with pytest.raises(ValueError, match="encode the text first") as raised:
                socket.send(text)
            assert str(raised.value) == (
                'send() takes a str of ASCII, or with binaryType="string" of characters up to U+00FF, one per byte;'
                f" {place}: encode the text first, as by text.encode()"
            )
        with pytest.raises(ValueError, match="byteOffset must not be negative"):
            socket.send(b"abc", -1)
        with pytest.raises(TypeError, match="byteLength must be an int"):
            socket.send(b"abc", 0, 1.5)  # type: ignore[arg-type]
        assert socket.bufferedAmount == 0
        socket.close()
        with peer:
            assert await blocking(read_all, peer) == b""


async def test_send_needs_an_open_socket(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        connecting = tcp.open("127.0.0.1", port_of(listener))
        with pytest.raises(InvalidStateError, match=r"send\(\) on a socket that is connecting: it must be open"):
            connecting.send(b"x")
        connecting.close()
        socket, events, peer = await connected(tcp, role, listener)
        with peer:
            socket.close()
            with pytest.raises(InvalidStateError, match="is closing"):
                socket.send(b"x")
        await events.first("close")
        with pytest.raises(InvalidStateError, match="is closed") as caught:
            socket.send(b"x")
        assert caught.value.__cause__ is None
        assert isinstance(caught.value, RuntimeError)


async def test_send_after_a_loss_says_so(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        reset(peer)
        await events.first("close")
        with pytest.raises(InvalidStateError) as caught:
            socket.send(b"x")
        assert isinstance(caught.value.__cause__, TCPSocketError)
        assert caught.value.__cause__.name == "NetworkInterruptError"


async def test_resume_needs_a_suspend(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, _, peer = await connected(tcp, role, listener)
        socket.suspend()
        socket.resume()
        with pytest.raises(InvalidStateError, match="the socket is not suspended"):
            socket.resume()
        peer.close()


# Sending


async def test_data_of_every_type_arrives(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, _, peer = await connected(tcp, role, listener, binaryType="string")
        mutable = bytearray(b"bytearray ")
        for data in (b"bytes ", "str \xff ", mutable, memoryview(b"memoryview "), array("B", b"array "), b""):
            assert socket.send(data)
        mutable[:] = b"overwritten"
        socket.send(b"..offset", 2)
        socket.send("..both..", 2, 4)
        socket.send(bytearray(b"clamped.."), 0, 7)
        socket.send(b"short", 3, 100)
        socket.send(b"none", 9)
        socket.close()
        with peer:
            expected = b"bytes str \xff bytearray memoryview array offsetbothclampedrt"
            assert await blocking(read_all, peer) == expected


async def test_sends_within_and_outside_handlers_keep_their_order(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        expected = bytearray()

        def send(size: int) -> None:
            data = os.urandom(size)
            expected.extend(data)
            socket.send(data)

        async def within(event: Any) -> None:
            send(10)
            await anyio.lowlevel.checkpoint()
            send(200_000)

        socket.addEventListener("data", lambda event: send(3))
        socket.addEventListener("data", within)
        with peer:
            for count, size in enumerate((1, 70_000, 5, 4096, 300_000, 4095), start=1):
                send(size)
                peer.sendall(b"?")
                await events.until(lambda count=count: len(events.data) == count)  # type: ignore[misc]
            for _ in range(2000):
                send(100)
            await all_blocked()
            socket.close()
            assert await blocking(read_all, peer) == expected


async def test_threshold(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        with peer:
            assert socket.send(bytes(65535))
            assert socket.send(b"x")
            assert socket.bufferedAmount == 65536
            assert not socket.send(b"x")
            assert socket.bufferedAmount == 65537
            received = await blocking(read_exactly, peer, 65537)
            assert len(received) == 65537
            await events.first("drain")
            assert socket.bufferedAmount == 0
            assert socket.send(bytes(65536))
            await blocking(read_exactly, peer, 65536)
            await socket.drained()
            socket.close()
        await events.first("close")
    assert events.types.count("drain") == 1  # exactly 65536 bytes cause none


async def test_buffered_amount_counts_what_the_system_has_not_taken(role: str, listener: stdlib_socket.socket) -> None:
    """Gecko leaves out the bytes in flight to its network thread."""
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        socket.send(bytes(MANY))
        assert socket.bufferedAmount == MANY
        await all_blocked()
        stuck = socket.bufferedAmount
        assert 0 < stuck < MANY
        taken = MANY - stuck
        socket.send(b"x" * 1000)
        assert socket.bufferedAmount == stuck + 1000
        with peer:
            assert len(await blocking(read_exactly, peer, taken + 1)) == taken + 1
            assert await blocking(read_exactly, peer, stuck - 1 + 1000) == bytes(stuck - 1) + b"x" * 1000
            await events.first("drain")
            assert socket.bufferedAmount == 0


async def test_drain_comes_with_nothing_buffered(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        amounts = []
        results = []

        def ondrain(event: Any) -> None:
            amounts.append(socket.bufferedAmount)
            if len(amounts) < 20:
                results.append(socket.send(bytes(100_000)))
            else:
                socket.close()

        socket.ondrain = ondrain
        socket.send(bytes(100_000))
        with peer:
            assert len(await blocking(read_all, peer)) == 20 * 100_000
        await events.first("close")
    assert amounts == [0] * 20
    assert results == [False] * 19


async def test_drain_is_postponed_while_more_is_buffered(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        amounts: list[int] = []
        socket.ondrain = lambda event: amounts.append(socket.bufferedAmount)
        in_handler, leave = anyio.Event(), anyio.Event()

        async def slow(event: Any) -> None:
            in_handler.set()
            await leave.wait()

        socket.ondata = slow
        with peer:
            peer.sendall(b"?")
            await in_handler.wait()
            assert not socket.send(bytes(100_000))
            await blocking(read_exactly, peer, 100_000)
            await socket.drained()  # the drain is pending now, but a handler runs
            assert not socket.send(bytes(MANY))
            await all_blocked()
            leave.set()
            await all_blocked()
            assert socket.bufferedAmount > 0
            assert amounts == []  # postponed
            await blocking(read_exactly, peer, MANY)
            await events.first("drain")
            await all_blocked()
            assert amounts == [0]  # not lost, and delivered once


async def test_max_buffered_amount(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, _, peer = await connected(tcp, role, listener, max_buffered_amount=1000)
        with peer:
            assert socket.send(b"x" * 900)
            with pytest.raises(
                BufferError, match="max_buffered_amount is 1000 bytes: 900 are buffered, 101 more do not fit"
            ):
                socket.send(b"y" * 101)
            assert socket.send(b"z" * 100)
            assert socket.bufferedAmount == 1000
            await socket.drained()
            assert socket.send(b"w")
            socket.close()
            assert await blocking(read_all, peer) == b"x" * 900 + b"z" * 100 + b"w"


async def test_sends_to_another_socket_from_a_handler_go_out(listener: stdlib_socket.socket) -> None:
    """As in a proxy: what a handler sends to any socket is sent when it returns."""
    async with MozTCPSocket() as tcp:
        first, _, first_peer = await connected(tcp, "client", listener)
        second, second_events, second_peer = await connected(tcp, "client", listener)
        first.ondata = lambda event: second.send(event.data)
        with first_peer, second_peer:
            first_peer.sendall(b"to the other")
            assert await blocking(read_exactly, second_peer, 12) == b"to the other"
            await blocking(first_peer.sendall, SOME)
            assert await blocking(read_exactly, second_peer, len(SOME)) == SOME
            first.ondata = lambda event: second.send(bytes(MANY))
            first_peer.sendall(b"!")
            await blocking(read_exactly, second_peer, MANY)
            await second_events.first("drain")
            first.ondata = lambda event: second.close()
            first_peer.sendall(b"!")
            assert await blocking(read_all, second_peer) == b""


async def test_sends_survive_a_handler_that_raises_on_another_socket(
    listener: stdlib_socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    async with MozTCPSocket() as tcp:
        accepting = Accepting(tcp.listen(0, host="127.0.0.1"))
        socket, _, peer = await connected(tcp, "client", listener)

        def relay(event: Any) -> None:
            socket.send(event.data)
            raise ValueError("after the send")

        with peer, await dial(accepting.server.localPort) as other:
            accepted, _ = await accepting.first()
            accepted.ondata = relay
            other.sendall(b"sent")
            assert await blocking(read_exactly, peer, 4) == b"sent"
            assert await blocking(read_all, other) == b""
        tcp.close()
    assert "after the send" in caplog.text


async def test_a_kernel_that_takes_all_leaves_others_their_turn(
    layer: str, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a peer does that reads as fast as it is sent."""
    taken, at_each_turn, size = 0, [0], 32 << 20

    def take_all(self: object, chunks: list[Any]) -> int:
        nonlocal taken
        count = sum(map(len, chunks))
        taken += count
        return count

    async with joined(layer, role) as (sock, _, _):
        for transport in Transport, TLSTransport:
            monkeypatch.setattr(transport, "sendmsg", take_all)
        sock.send(bytes(size))
        while taken < size:
            await anyio.lowlevel.checkpoint()
            at_each_turn.append(taken)
        assert sock.bytes_sent == size
        sock.closeImmediately()
    assert max(after - before for before, after in itertools.pairwise(at_each_turn)) <= 8 * SEND_PER_TURN


# Receiving


async def test_one_byte_at_a_time(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        _, events, peer = await connected(tcp, role, listener)

        def drip() -> None:
            with peer:
                for i in range(256):
                    peer.send(bytes([i]))

        await blocking(drip)
        await events.first("close")
        assert events.data == bytes(range(256))


async def test_binary_type_string(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener, binaryType="string")
        assert socket.binaryType == "string"
        every = "".join(map(chr, range(256)))
        with peer:
            peer.sendall(bytes(range(256)))
            await events.first("data")
            socket.send(every)
            assert await blocking(read_exactly, peer, 256) == bytes(range(256))
            with pytest.raises(
                ValueError, match=r"str of characters up to U\+00FF, one per byte; character 0 is U\+20AC"
            ):
                socket.send("€")
        await events.first("close")
        assert events.data == every


async def test_text_where_bytes_are_received(role: str, listener: stdlib_socket.socket) -> None:
    """Only text that is the same in every encoding is accepted."""
    async with MozTCPSocket() as tcp:
        socket, _, peer = await connected(tcp, role, listener)
        text = "".join(map(chr, range(128)))
        socket.send(text)
        socket.send("grün".encode())
        with pytest.raises(ValueError, match=r"character 3 is U\+0080"):
            socket.send("abc\x80", 0, 3)
        socket.close()
        with peer:
            assert await blocking(read_all, peer) == text.encode() + b"gr\xc3\xbcn"


async def test_much_data_in_both_directions_at_once(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        socket.ondata = lambda event: socket.send(event.data)
        with peer:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send_all, peer, SOME * 4)
                assert await blocking(read_exactly, peer, len(SOME) * 4) == SOME * 4
        await events.first("close")
        assert events.data == SOME * 4


async def test_events_come_one_at_a_time_and_in_order(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        received = bytearray()
        running = 0

        async def slow(event: Any) -> None:
            nonlocal running
            running += 1
            assert running == 1
            for _ in range(3):
                await anyio.lowlevel.checkpoint()
            received.extend(event.data)
            running -= 1

        async def at_the_end(event: Any) -> None:
            assert running == 0
            assert bytes(received) == SOME

        socket.ondata = slow
        socket.onclose = at_the_end
        await blocking(peer.sendall, SOME)
        peer.close()
        await events.first("close")


async def test_a_slow_handler_holds_its_peer_back_and_no_other(listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        slow, slow_events, slow_peer = await connected(tcp, "client", listener)
        _, quick_events, quick_peer = await connected(tcp, "client", listener)
        leave = anyio.Event()

        async def wait(event: Any) -> None:
            await leave.wait()

        slow.ondata = wait
        with slow_peer, quick_peer:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send_all, slow_peer, bytes(MANY))
                await all_blocked()
                quick_peer.sendall(b"still here")
                await quick_events.first("data")
                assert slow.readyState == "open"
                leave.set()
            await slow_events.until(lambda: len(slow_events.data) == MANY)


async def test_a_transfer_that_had_to_wait_goes_on_as_any_other() -> None:
    """Data from meanwhile was queued. Later data is not queued, and is read in larger pieces."""
    chunk, much = bytes(65_536), 100_000_000
    sizes: list[int] = []

    async def onconnect(event: Any) -> None:
        event.socket.ondata = lambda event: sizes.append(len(event.data))
        for _ in range(20):
            await anyio.lowlevel.checkpoint()

    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        server.onconnect = onconnect
        socket = tcp.open("127.0.0.1", server.localPort)
        left = much

        def pump(event: Any) -> None:
            nonlocal left
            while left > 0:
                left -= len(chunk)
                if not socket.send(chunk):
                    return
            socket.close()
            server.close()

        socket.onopen = socket.ondrain = pump
    assert sum(sizes) >= much
    assert max(sizes[:3]) <= 65_536
    assert max(sizes[len(sizes) // 2 :]) > 65_536


async def test_suspended_receiver_bounds_memory(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        peer.settimeout(0.3)
        socket.suspend()
        sent = 0

        def send_until_stuck() -> None:
            nonlocal sent
            try:
                while sent < 64 << 20:
                    sent += peer.send(SOME)
            except TimeoutError:
                pass

        await blocking(send_until_stuck)
        assert sent < 32 << 20  # what the kernel buffers, and a queue of well under 1 MiB
        with peer:
            raw = socket.extra(SocketAttribute.raw_socket)
            unread = len(raw.recv(sent, stdlib_socket.MSG_PEEK))
            assert unread > 0
            assert events.types.count("data") == 0
            socket.resume()
            await events.until(lambda: len(events.data) == sent)
        await events.first("close")


async def test_suspend_counts_and_holds_data_and_the_end_behind_it(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        before = list(events.types)
        socket.suspend()
        socket.suspend()
        with peer:
            peer.sendall(b"held")
        await all_blocked()
        socket.resume()
        await all_blocked()
        assert events.types == before
        assert socket.readyState == "open"
        socket.send(b"still open to us")
        socket.resume()
        await events.first("close")
        assert events.types[len(before) :] in (["data", "close"], ["data", "error", "close"])
        assert events.data == b"held"


async def test_suspend_while_connecting(listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket = tcp.open("127.0.0.1", port_of(listener))
        socket.suspend()
        events = EventRecorder(socket)
        with await accept(listener) as peer:
            peer.sendall(b"early")
            await events.first("open")
            await all_blocked()
            assert events.types == ["open"]
            socket.resume()
            await events.first("data")


async def test_suspensions_at_any_moment_keep_the_order(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        data = SOME * 8
        with peer:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(send_all, peer, data)
                for turns in range(200):
                    socket.suspend()
                    for _ in range(turns % 7):
                        await anyio.lowlevel.checkpoint()
                    socket.resume()
                    for _ in range(turns % 5):
                        await anyio.lowlevel.checkpoint()
        await events.first("close")
        assert len(events.data) == len(data)
        assert events.data == data


async def test_suspend_within_a_handler_stops_at_once(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        socket.ondata = lambda event: socket.suspend()

        def count() -> int:
            return [event.type for event in events.events].count("data")

        expected = 0
        with peer:
            await blocking(peer.sendall, SOME)
            while len(events.data) < len(SOME):
                expected += 1
                await events.until(lambda expected=expected: count() == expected)  # type: ignore[misc]
                await all_blocked()
                assert count() == expected
                socket.resume()
        assert events.data == SOME


async def test_drain_does_not_wait_while_suspended(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        socket.suspend()
        with peer:
            await blocking(peer.sendall, b"held")
            socket.send(bytes(MANY))
            await blocking(read_exactly, peer, MANY)
            await events.first("drain")
            assert events.data == b""
            socket.resume()
            await events.first("data")


async def test_an_error_waits_behind_what_is_held_while_suspended(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        socket.suspend()
        peer.sendall(b"held")
        await all_blocked()
        reset(peer)
        await all_blocked()
        assert "error" not in events.types
        socket.resume()
        error = await events.first("error")
        assert error.name == "NetworkInterruptError"
        await events.first("close")
        assert events.data == b"held"


async def test_a_write_error_waits_behind_a_full_queue_while_suspended(
    role: str, listener: stdlib_socket.socket
) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        socket.suspend()
        await blocking(peer.sendall, SOME)
        await all_blocked()
        reset(peer)
        socket.send(b"into the void")
        with pytest.raises(TCPSocketError):
            await socket.drained()
        assert "error" not in events.types
        socket.resume()
        assert (await events.first("error")).name == "NetworkInterruptError"
        await events.first("close")
        assert events.types[-3:] == ["data", "error", "close"]


async def test_what_came_before_a_write_error_is_delivered_first(role: str, listener: stdlib_socket.socket) -> None:
    """For example, an SMTP server sends "421 too busy" and closes while a client is still sending."""
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        leave = anyio.Event()

        async def slow(event: Any) -> None:
            await leave.wait()

        socket.ondata = slow
        peer.sendall(b"first ")
        await events.until(lambda: True)
        await all_blocked()
        peer.sendall(b"421 too busy")
        socket.send(bytes(MANY))
        await all_blocked()
        peer.close()  # with unread input: the system sends RST
        with pytest.raises(TCPSocketError):
            await socket.drained()
        leave.set()
        await events.first("close")
        assert events.data == b"first 421 too busy"
        assert events.types[-3:] == ["data", "error", "close"]


async def test_data_after_an_async_open_handler(listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket = tcp.open("127.0.0.1", port_of(listener))
        order: list[Any] = []
        leave = anyio.Event()

        async def onopen(event: Any) -> None:
            order.append("open begins")
            await leave.wait()
            order.append("open ends")

        socket.onopen = onopen
        socket.ondata = lambda event: order.append(event.data)
        socket.onclose = lambda event: order.append("close")
        with await accept(listener) as peer:
            peer.sendall(b"data")
        await all_blocked()
        leave.set()
        await socket.closed()
        assert order == ["open begins", "open ends", b"data", "close"]


# Closing


async def test_close_sends_what_is_buffered_then_drain_then_end(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        socket.send(SOME * 8)
        socket.close()
        socket.close()
        assert socket.readyState == "closing"
        with peer:
            assert await blocking(read_all, peer) == SOME * 8
        await events.first("close")
        assert events.types[-2:] == ["drain", "close"]
        assert events.types.count("close") == 1


async def test_no_data_after_close(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        with peer:
            peer.sendall(b"too late")
            socket.close()
            assert await blocking(read_all, peer) == b""
            peer.sendall(b"much too late")
        await events.first("close")
        assert "data" not in events.types
        assert "error" not in events.types


async def test_no_queued_data_after_close(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        socket.suspend()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send_all, peer, bytes(MANY))  # fills the queue and more
            await all_blocked()
            socket.close()
            socket.resume()
        peer.close()
        await events.first("close")
        assert "data" not in events.types


@pytest.mark.parametrize("linger", [0, 0.05])
async def test_close_waits_for_the_peer_no_longer_than_linger(
    role: str, listener: stdlib_socket.socket, linger: float
) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener, linger=linger)
        with peer:
            began = anyio.current_time()
            socket.close()
            await events.first("close")
            assert linger - 0.002 <= anyio.current_time() - began < linger + 3
            assert "error" not in events.types


async def test_close_with_unread_input_loses_nothing(role: str, listener: stdlib_socket.socket) -> None:
    """A plain close would make the system send RST, which discards data that the peer has not read yet."""
    async with MozTCPSocket() as tcp:
        for _ in range(10):
            socket, _, peer = await connected(tcp, role, listener)
            with peer:
                peer.sendall(bytes(100_000))
                socket.send(SOME)
                socket.close()
                await all_blocked()
                assert await blocking(read_all, peer) == SOME


async def test_peer_that_goes_on_sending_while_we_close_gets_everything(
    role: str, listener: stdlib_socket.socket
) -> None:
    """The peer reads only after it has sent everything, so neither side may wait for the other."""
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        socket.send(SOME * 8)
        socket.close()
        with peer:
            await blocking(peer.sendall, SOME * 8)
            assert await blocking(read_all, peer) == SOME * 8
        await events.first("close")
        assert "error" not in events.types


async def test_close_immediately_drops_what_is_buffered(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        socket.send(bytes(MANY))
        await all_blocked()
        socket.closeImmediately()
        socket.closeImmediately()
        assert (socket.readyState, socket.bufferedAmount) == ("closing", 0)
        await events.first("close")
        with pytest.raises(InvalidStateError, match="was closed first"):
            await socket.drained()
        with peer:
            assert len(await blocking(read_all, peer)) < MANY
        assert events.types[-1] == "close"
        assert "drain" not in events.types
        assert "error" not in events.types


async def test_close_immediately_ends_a_close_that_lingers(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener, linger=1000)
        with peer:
            socket.close()
            await all_blocked()
            assert "close" not in events.types
            socket.closeImmediately()
            await events.first("close")


@pytest.mark.parametrize("method", ["close", "closeImmediately"])
async def test_close_while_connecting(clogged: int, method: str) -> None:
    async with MozTCPSocket() as tcp:
        socket = tcp.open("127.0.0.1", clogged)
        events = EventRecorder(socket)
        await all_blocked()
        getattr(socket, method)()
        assert socket.readyState == "closing"
        with pytest.raises(InvalidStateError, match=r"opened\(\): .* was closed first"):
            await socket.opened()
        await socket.closed()
        assert events.types == ["close"]


@pytest.mark.parametrize("method", ["close", "closeImmediately"])
async def test_close_at_once(listener: stdlib_socket.socket, method: str) -> None:
    """Gecko ignores a close() before its socket exists."""
    async with MozTCPSocket() as tcp:
        socket = tcp.open("127.0.0.1", port_of(listener))
        events = EventRecorder(socket)
        getattr(socket, method)()
        assert socket.readyState == "closing"
    assert events.types == ["close"]
    assert socket.readyState == "closed"
    getattr(socket, method)()


@pytest.mark.parametrize("method", ["close", "closeImmediately"])
@pytest.mark.parametrize("type_", ["open", "data", "drain", "close"])
async def test_close_in_a_handler(listener: stdlib_socket.socket, type_: str, method: str) -> None:
    async with MozTCPSocket() as tcp:
        socket = tcp.open("127.0.0.1", port_of(listener))
        events = EventRecorder(socket)
        setattr(socket, f"on{type_}", lambda event: getattr(socket, method)())
        with await accept(listener) as peer:
            if type_ == "drain":
                await socket.opened()
                socket.send(bytes(100_000))
            if type_ in ("data", "close"):
                peer.sendall(b"x")
            if type_ != "close":
                await blocking(read_all, peer)
        await events.first("close")
    assert events.types.count("close") == 1
    assert events.types[-1] == "close"
    assert "error" not in events.types


async def test_peers_end_closes_when_what_is_buffered_is_sent(role: str, listener: stdlib_socket.socket) -> None:
    """Gecko can miss onclose here."""
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        with peer:
            socket.send(SOME * 8)
            peer.shutdown(stdlib_socket.SHUT_WR)
            await all_blocked()
            assert socket.readyState == "closing"
            assert await blocking(read_all, peer) == SOME * 8
        await events.first("close")
        assert events.types[-2:] == ["drain", "close"]


async def test_the_answer_to_the_last_data_is_sent(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, _, peer = await connected(tcp, role, listener)
        socket.ondata = lambda event: socket.send(event.data.upper())
        with peer:
            peer.sendall(b"request")
            peer.shutdown(stdlib_socket.SHUT_WR)
            assert await blocking(read_all, peer) == b"REQUEST"


# Failing


async def test_refused() -> None:
    """The events are error and close, without open; in error the state is already closed."""
    async with MozTCPSocket() as tcp:
        socket = tcp.open("127.0.0.1", unused_port())
        events = EventRecorder(socket)
        states = []
        socket.onerror = lambda event: states.append(socket.readyState)
    assert events.types == ["error", "close"]
    assert states == ["closed"]
    error = events.of("error")[-1]
    assert (error.name, error.message) == ("ConnectionRefusedError", "Network")
    assert error.errorCode == error.error.__cause__.errno
    assert isinstance(error.error.__cause__, ConnectionRefusedError)


async def test_refused_by_every_address() -> None:
    async with MozTCPSocket() as tcp:
        socket = tcp.open("localhost", unused_port())
        events = EventRecorder(socket)
    error = events.of("error")[-1]
    assert error.name == "ConnectionRefusedError"  # Gecko calls every early failure that; this one is
    assert len(getattr(error.error.__cause__, "exceptions", [1])) >= 1


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 64 + ".example", "..", "xn--0"])
async def test_unknown_host(host: str) -> None:
    async with MozTCPSocket() as tcp:
        socket = tcp.open(host, 80)
        events = EventRecorder(socket)
    assert events.types == ["error", "close"]
    assert events.of("error")[-1].name == "DomainNotFoundError"
    assert events.of("error")[-1].message == "Network"


@pytest.mark.parametrize("first", ["::1", "127.0.0.1"], ids=["refusal first", "silence first"])
async def test_a_time_limit_hides_no_refusal(first: str, clogged: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two addresses, one refuses the connection and one does not answer."""

    async def getaddrinfo(host: Any, port: Any, **options: Any) -> list[Any]:
        found = [(stdlib_socket.AF_INET6, ("::1", port, 0, 0)), (stdlib_socket.AF_INET, ("127.0.0.1", port))]
        found.sort(key=lambda entry: entry[1][0] != first)
        return [(family, stdlib_socket.SOCK_STREAM, 6, "", address) for family, address in found]

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
    async with MozTCPSocket() as tcp:
        events = EventRecorder(tcp.open("peer.example", clogged, connect_timeout=0.4))
        await events.first("close")
    error = events.of("error")[0]
    assert error.name == "ConnectionRefusedError"
    kinds = [type(exc) for exc in error.error.__cause__.exceptions]
    assert kinds == [ConnectionRefusedError, TimeoutError]


async def test_connect_timeout(clogged: int) -> None:
    async with MozTCPSocket() as tcp:
        socket = tcp.open("127.0.0.1", clogged, connect_timeout=0.05)
        events = EventRecorder(socket)
        with pytest.raises(TCPSocketError, match=r"NetworkTimeoutError: not connected within 0\.05 seconds"):
            await socket.opened()
    assert events.types == ["error", "close"]
    assert events.of("error")[-1].name == "NetworkTimeoutError"


async def test_reset_by_the_peer(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        before = list(events.types)
        reset(peer)
        await events.first("close")
        assert events.types == [*before, "error", "close"]
        error = events.of("error")[-1]
        assert (error.name, error.message) == ("NetworkInterruptError", "Network")
        assert isinstance(error.error.__cause__, ConnectionResetError)
        for method in (socket.closed, socket.drained):
            with pytest.raises(TCPSocketError) as caught:
                await method()
            assert caught.value.name == "NetworkInterruptError"
            assert caught.value is not error.error  # each task gets its own, as a traceback belongs to one task
        if role == "client":
            await socket.opened()  # returns, as it had opened


async def test_reset_after_data_delivers_the_data(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        leave = anyio.Event()

        async def slow(event: Any) -> None:
            await leave.wait()

        socket.ondata = slow
        peer.sendall(b"one ")
        await all_blocked()
        peer.sendall(b"two")
        await all_blocked()
        reset(peer)
        await all_blocked()
        leave.set()
        await events.first("close")
        assert events.data == b"one two"
        assert events.types[-3:] == ["data", "error", "close"]


async def test_reset_while_sending_fails_a_close(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        socket.send(bytes(MANY))
        socket.close()
        await all_blocked()
        reset(peer)
        await events.first("close")
        assert events.types[-2:] == ["error", "close"]
        assert "drain" not in events.types


async def test_a_failure_is_raised_in_awaiters_of_other_tasks(listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, _, peer = await connected(tcp, "client", listener)
        reports = []

        async def wait(what: Any) -> None:
            try:
                await what()
            except TCPSocketError as exc:
                reports.append(exc.name)

        socket.send(bytes(MANY))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(wait, socket.drained)
            tasks.start_soon(wait, socket.closed)
            await all_blocked()
            reset(peer)
        assert reports == ["NetworkInterruptError"] * 2


# Adopting


async def test_from_socket_of_a_pair() -> None:
    ours, peer = stdlib_socket.socketpair()
    with peer:
        async with TCPSocket.from_socket(ours, binaryType="string") as socket:
            events = EventRecorder(socket)
            assert (socket.readyState, socket.host, socket.port) == ("connecting", "", 0)
            await socket.opened()
            socket.send(SOME)
            assert await blocking(read_exactly, peer, len(SOME)) == SOME
            peer.sendall(b"answer")
            await events.first("data")
            assert SocketAttribute.remote_port not in socket.extra_attributes
            peer.shutdown(stdlib_socket.SHUT_WR)
            await socket.closed()
    assert events.types == ["open", "drain", "data", "close"]
    assert events.data == "answer"


async def test_from_socket_of_the_internet(listener: stdlib_socket.socket) -> None:
    ours = await dial(port_of(listener))
    with await accept(listener) as peer:
        async with TCPSocket.from_socket(ours) as socket:
            assert (socket.host, socket.port) == ("127.0.0.1", port_of(listener))
            await socket.opened()
            socket.send(b"adopted")
            socket.close()
            assert await blocking(read_all, peer) == b"adopted"
            peer.close()


async def test_from_socket_closed_before_it_is_entered() -> None:
    ours, peer = stdlib_socket.socketpair()
    with peer:
        socket = TCPSocket.from_socket(ours)
        socket.close()
        assert ours.fileno() == -1
        assert socket.readyState == "closed"
        await socket.closed()


async def test_from_socket_refuses_what_it_cannot_use() -> None:
    with pytest.raises(TypeError, match=r"takes a socket.socket, not int"):
        TCPSocket.from_socket(3)  # type: ignore[call-overload]
    with stdlib_socket.socket() as unconnected, pytest.raises(ValueError, match="takes a connected socket"):
        TCPSocket.from_socket(unconnected)
    with (
        stdlib_socket.socket(stdlib_socket.AF_INET, stdlib_socket.SOCK_DGRAM) as datagrams,
        pytest.raises(ValueError, match="takes a stream socket"),
    ):
        TCPSocket.from_socket(datagrams)


# The context of handlers


async def test_each_connection_s_handlers_have_its_own_context() -> None:
    """As in a proxy, a connection sends to another, whose handlers do not see its context variables."""
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[tuple[str, str]] = []

    def note(event: Any) -> None:
        seen.append((event.type, request.get()))

    async def note_slowly(event: Any) -> None:
        note(event)

    async with connected_peer() as (first, first_peer), connected_peer() as (second, second_peer):
        second.ondrain = note
        second.addEventListener("data", note_slowly)

        def send_onwards(event: Any) -> None:
            request.set("first")
            second.send(bytes(16 << 20))

        first.ondata = send_onwards
        await first_peer.send(b"x")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(second_peer.receive_exactly, 16 << 20)
            while not seen:
                await all_blocked()
        await second_peer.send(b"y")
        while len(seen) < 2:
            await all_blocked()
    assert seen == [("drain", "none"), ("data", "none")]


async def test_what_a_handler_of_connect_sets_holds_for_the_connection(listener: stdlib_socket.socket) -> None:
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[str] = []

    async def see(event: Any) -> None:
        seen.append(request.get())

    async with TCPSocket("127.0.0.1", port_of(listener)) as sock:
        sock.onopen = lambda event: request.set("its own")
        with await accept(listener) as peer:
            await sock.opened()
            sock.ondata = see
            await send_all(peer, b"x")
            while not seen:
                await all_blocked()
    assert seen == ["its own"]


async def test_a_listener_behind_a_handler_that_is_not_awaited_has_the_connection_s_context() -> None:
    """When a block is left by an exception, asynchronous handlers are not awaited any more."""
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[str] = []

    async def never_awaited(event: Any) -> None:
        seen.append("awaited")

    with suppress(ZeroDivisionError):
        async with connected_peer() as (sock, peer):
            sock.ondata = lambda event: request.set("its own")
            await peer.send(b"x")
            while not sock.bytes_received:
                await all_blocked()
            sock.onclose = never_awaited
            sock.addEventListener("close", lambda event: seen.append(request.get()))
            raise ZeroDivisionError
    assert seen == ["its own"]


async def test_a_coroutine_that_refuses_to_be_closed_is_trouble_of_its_handler(
    caplog: pytest.LogCaptureFixture,
) -> None:
    @types.coroutine
    def pause() -> Iterator[None]:
        yield

    async def stubborn() -> None:
        try:
            await pause()
        except GeneratorExit:
            await pause()

    def give(event: Any) -> Any:
        coroutine = stubborn()
        coroutine.send(None)
        return coroutine

    seen: list[str] = []
    with anyio.fail_after(10), suppress(ZeroDivisionError):
        async with connected_peer() as (sock, _):
            sock.onclose = give
            sock.addEventListener("close", lambda event: seen.append("never called"))
            raise ZeroDivisionError
    assert seen == []
    assert any("'close'" in record.getMessage() for record in caplog.records)


# Copies


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, pickle.dumps], ids=["copy", "deepcopy", "pickle"])
async def test_what_owns_a_connection_cannot_be_copied(make: Callable[[Any], Any]) -> None:
    async with MozTCPSocket() as tcp, connected_peer() as (socket, peer):
        server = tcp.listen(0, host="127.0.0.1")
        event = Event("open", socket)
        for owner in (tcp, server, socket, socket.stream(), peer, EventRecorder(socket)):
            with pytest.raises(TypeError, match=f"^{type(owner).__name__} cannot be copied or pickled"):
                make(owner)
        if make is not copy.copy:
            with pytest.raises(TypeError, match="TCPSocket cannot be copied or pickled"):
                make(event)
        server.close()
