"""What may be sent: buffers of any shape, those of no size among them."""

from __future__ import annotations

import ctypes
import mmap
import socket
from array import array
from typing import Any

import pytest

from mozsocket import MozTCPSocket

from .peers import blocking, connected, read_all

pytestmark = pytest.mark.anyio


def of_shape(*shape: int) -> Any:
    """An array of C of so many dimensions."""
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
