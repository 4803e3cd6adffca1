"""Sends each line back with its number, on a chosen event loop: ``python -m mozsocket.examples.line_server trio 8007``.

An ``async`` handler of ``connect`` runs in a separate task for each connection.
"""

from __future__ import annotations

import sys

import anyio
from anyio.streams.buffered import BufferedByteStream

from mozsocket import MozTCPSocket, TCPServerSocketEvent


async def serve(event: TCPServerSocketEvent) -> None:
    async with event.socket.stream() as stream:
        lines = BufferedByteStream(stream)
        number = 0
        try:
            while True:
                with anyio.fail_after(60):
                    line = await lines.receive_until(b"\n", 65536)
                number += 1
                await stream.send(b"%d %s\n" % (number, line))
        except (anyio.IncompleteRead, anyio.BrokenResourceError):
            pass  # the client has closed
        except (anyio.DelimiterNotFound, TimeoutError):
            await stream.send(b"a line of at most 65536 bytes is expected within a minute\n")


async def main(port: int) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(port)
        server.onconnect = serve
        print("listening on", server.localPort, flush=True)


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[2]), backend=sys.argv[1])
