"""Reads the lines of a connection with an async generator: ``python -m mozsocket.examples.generator``.

The socket's block is outside the generator: one inside would be left late, and in another task, if the caller breaks
off the iteration.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

import anyio
from anyio.abc import ByteStream
from anyio.streams.buffered import BufferedByteReceiveStream

from mozsocket import TCPSocket


async def lines(stream: ByteStream) -> AsyncGenerator[bytes, None]:
    buffered = BufferedByteReceiveStream(stream)
    try:
        while True:
            yield await buffered.receive_until(b"\n", max_bytes=65536)
    except anyio.IncompleteRead:
        pass  # the other side has closed


async def main(port: int) -> None:
    async with TCPSocket("localhost", port) as socket, aclosing(lines(socket.stream())) as received:
        async for line in received:
            print(line)
            if not line:
                break


if __name__ == "__main__":
    anyio.run(main, 8007)
