"""Forwards each connection to another server: ``python -m mozsocket.examples.proxy 8008 localhost 8007``.

``pipe()`` passes on data with back-pressure, EOF as EOF, and a reset as a reset.
"""

from __future__ import annotations

import sys

import anyio

from mozsocket import MozTCPSocket, TCPServerSocketEvent, pipe


async def main(port: int, host: str, upstream_port: int) -> None:
    async with MozTCPSocket() as tcp:

        def onconnect(event: TCPServerSocketEvent) -> None:
            upstream = tcp.open(host, upstream_port, allow_half_open=True)
            upstream.onerror = lambda event: print("upstream:", event.error)
            pipe(event.socket, upstream)
            pipe(upstream, event.socket)

        server = tcp.listen(port, allow_half_open=True)
        server.onconnect = onconnect
        print("listening on", server.localPort, flush=True)


if __name__ == "__main__":
    anyio.run(main, int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))  # 8008 localhost 8007
