"""Data that can be sent: buffers of any shape, empty ones included; and the memory that buffered data takes."""

from __future__ import annotations

import ctypes
import mmap
import socket
import ssl
import tracemalloc
from array import array
from collections.abc import Callable
from typing import Any

import pytest

from mozsocket import MozTCPSocket, TCPSocket

from ..certificates import client_context, server_context
from ..parameters import on_one_loop
from ..peers import all_blocked, blocking, connected, joined, read_all, read_exactly, secure

pytestmark = pytest.mark.anyio


def of_shape(*shape: int) -> Any:
    """An array of C with some dimensions."""
    kind: Any = ctypes.c_uint16
    for size in reversed(shape):
        kind *= size
    return kind.from_buffer_copy(bytes(range(ctypes.sizeof(kind))))


class Pair(ctypes.BigEndianStructure):
    _fields_ = (("first", ctypes.c_uint32), ("second", ctypes.c_uint8))


def buffers() -> list[Any]:
    matrix = memoryview(bytes(range(24))).cast("B", (2, 3, 4))
    return [
        *(
            of_shape(*shape)
            for shape in [(0,), (0, 3), (3, 0), (2, 0, 3), (0, 0), (0, 0, 0), (1, 1), (2, 3), (2, 3, 4)]
        ),
        memoryview(of_shape(0, 3)).toreadonly(),
        matrix,
        matrix[1:],
        matrix[::-1],
        matrix[2:],
        memoryview(b""),
        memoryview(b"abc")[::-1],
        memoryview(b"abc")[3::-5],
        memoryview(b"abc")[3:3:-1],
        memoryview(array("d", [1.5, 2.5, 3.5]))[::2],
        memoryview(array("H", []))[::-1],
        array("H", [1, 2, 3]),
        array("d"),
        bytearray(),
        bytearray(b"abc"),
        mmap.mmap(-1, 10),
        ctypes.c_int64(7),
        Pair(1, 2),
        (Pair * 0)(),
        (Pair * 2 * 0)(),
    ]


@pytest.mark.parametrize("way", ["handlers", "stream"])
async def test_a_buffer_of_any_shape(way: str, role: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, role, listener)
        with peer:
            expected = b""
            for data in buffers():
                if way == "stream":
                    await sock.stream().send(data)
                else:
                    assert sock.send(data)
                expected += memoryview(data).tobytes()
            if way == "stream":
                await sock.stream().send_eof()
            sock.close()
            assert await blocking(read_all, peer) == expected


async def test_a_part_of_what_is_empty(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, "client", listener)
        with peer:
            empty = of_shape(0, 3)
            for slice_ in [(0, 0), (0, 5), (5,), (5, 5)]:
                assert sock.send(empty, *slice_)
            assert sock.bufferedAmount == 0
            sock.close()
            assert await blocking(read_all, peer) == b""


# Buffered data takes hardly more memory than its bytes.


def pieces(size: int, count: int) -> list[bytes]:
    return [number.to_bytes(4, "big")[-size:].rjust(size, b"\xff") for number in range(count)]


def send_copies(sock: TCPSocket, data: bytes) -> None:
    sock.send(bytearray(data))


def send_text(sock: TCPSocket, data: bytes) -> None:
    sock.send(data.decode("latin-1"))


def send_slices(sock: TCPSocket, data: bytes) -> None:
    sock.send(b"<" + data + b">", 1, len(data))


@on_one_loop
@pytest.mark.parametrize("way", [send_copies, send_text, send_slices])
@pytest.mark.parametrize("size", [2, 10, 100, 1000])
async def test_small_sends_are_held_in_little_memory(size: int, way: Callable[[TCPSocket, bytes], None]) -> None:
    async with joined("plain", "client", binaryType="string") as (sock, recorder, peer):
        filling = bytes(10_000_000)  # more than the operating system buffers
        sock.send(filling)
        await all_blocked()
        before = sock.bufferedAmount
        sent = pieces(size, min(20_000, 2_000_000 // size))
        tracemalloc.start()
        for data in sent:
            way(sock, data)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert sock.bufferedAmount - before == size * len(sent)
        assert held < 1.3 * size * len(sent) + 100_000
        assert await blocking(read_exactly, peer, len(filling) + size * len(sent)) == filling + b"".join(sent)
        await recorder.first("drain")
        sock.close()


async def test_small_and_large_ones_arrive_in_order(layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, _, peer):
        sent = pieces(10, 3000)
        sent[::100] = [bytes([number]) * 100_000 for number in range(30)]
        for data in sent:
            sock.send(data)
        assert await blocking(read_exactly, peer, sum(map(len, sent))) == b"".join(sent)
        sock.close()


async def test_small_ones_that_wait_for_a_handshake(
    role: str, version: ssl.TLSVersion, listener: socket.socket
) -> None:
    """Some are sent before the handshake in plaintext, some after the upgrade."""
    async with MozTCPSocket() as tcp:
        ours, theirs = client_context(version=version), server_context(version=version)
        if role == "server":
            ours, theirs = server_context(version=version), client_context(version=version)
        sock, _, peer = await connected(tcp, role, listener)
        sent = pieces(10, 3000)
        for data in sent:
            sock.send(data)
        sock.upgradeToSecure(ssl_context=ours, server_hostname="localhost" if role == "client" else None)
        for data in sent:
            sock.send(data)
        assert await blocking(read_exactly, peer, 30_000) == b"".join(sent)
        with await secure(peer, theirs, server_side=role == "client") as tls:
            assert await blocking(read_exactly, tls, 30_000) == b"".join(sent)
            sock.close()
            assert await blocking(tls.recv, 1) == b""
