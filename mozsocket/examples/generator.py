"""Lines of a connection as an async generator: ``python -m mozsocket.examples.generator``.

The block of the socket is the caller's: a generator that is broken off would leave its own late, and in another task.
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
        pass  # the other side has ended


async def main(port: int) -> None:
    async with TCPSocket("localhost", port) as socket, aclosing(lines(socket.stream())) as received:
        async for line in received:
            print(line)
            if not line:
                break


if __name__ == "__main__":
    anyio.run(main, 8007)
