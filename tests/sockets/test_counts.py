"""``bytes_received`` and ``bytes_sent`` count the program's bytes, whether by handlers or by the stream."""

from __future__ import annotations

import anyio
import pytest

from ..peers import all_blocked, blocking, joined, read_exactly, send_all

pytestmark = pytest.mark.anyio

MUCH = bytes(range(256)) * 16384  # 4 MiB


async def test_nothing_at_first(layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, _, _peer):
        assert (sock.bytes_received, sock.bytes_sent) == (0, 0)


async def test_by_handlers(layer: str, role: str) -> None:
    """The overhead of TLS is not counted."""
    async with joined(layer, role) as (sock, recorder, peer):
        sock.send(b"question")
        assert await blocking(read_exactly, peer, 8) == b"question"
        await send_all(peer, b"answer")
        await recorder.until(lambda: recorder.data == b"answer")
        assert (sock.bytes_received, sock.bytes_sent) == (6, 8)


async def test_much(layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, recorder, peer):
        sock.send(MUCH)
        assert sock.bytes_sent + sock.bufferedAmount == len(MUCH)
        await all_blocked()
        assert sock.bytes_sent + sock.bufferedAmount == len(MUCH)
        assert await blocking(read_exactly, peer, len(MUCH)) == MUCH
        await sock.drained()
        assert sock.bytes_sent == len(MUCH)
        await send_all(peer, MUCH)
        await recorder.until(lambda: len(recorder.data) == len(MUCH))
        assert sock.bytes_received == len(MUCH)


async def test_what_is_held_back_counts_when_it_is_delivered(role: str) -> None:
    async with joined("plain", role) as (sock, recorder, peer):
        sock.suspend()
        await send_all(peer, b"held")
        await all_blocked()
        assert sock.bytes_received == 0
        sock.resume()
        await recorder.until(lambda: recorder.data == b"held")
        assert sock.bytes_received == 4


async def test_what_is_dropped_does_not_count(role: str) -> None:
    async with joined("plain", role) as (sock, recorder, _peer):
        sock.send(bytes(64 << 20))
        await all_blocked()
        sent = sock.bytes_sent
        assert 0 < sent < 64 << 20
        sock.closeImmediately()
        await recorder.first("close")
        assert sock.bytes_sent == sent


async def test_by_a_stream(layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, _, peer):
        stream = sock.stream()
        await stream.send(b"question")
        assert await blocking(read_exactly, peer, 8) == b"question"
        await send_all(peer, b"answer")
        got = b""
        while len(got) < 6:
            got += await stream.receive(2)
            assert sock.bytes_received == len(got)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(stream.send, MUCH)
            assert await blocking(read_exactly, peer, len(MUCH)) == MUCH
        assert sock.bytes_sent == 8 + len(MUCH)
        sock.closeImmediately()


async def test_a_receive_that_is_cancelled_has_taken_nothing(role: str) -> None:
    async with joined("plain", role) as (sock, _, peer):
        stream = sock.stream()
        await send_all(peer, b"answer")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await stream.receive()
        assert sock.bytes_received == 0
        assert await stream.receive() == b"answer"
        assert sock.bytes_received == 6
        sock.closeImmediately()
