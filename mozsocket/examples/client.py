"""Sends hello to port 8007 and prints the answer: ``python -m mozsocket.examples.client``."""

from __future__ import annotations

import anyio

from mozsocket import MozTCPSocket, TCPSocketEvent


async def main(port: int) -> None:
    async with MozTCPSocket() as tcp:
        socket = tcp.open("localhost", port)
        socket.onopen = lambda event: socket.send(b"hello")
        socket.ondata = show
        socket.onerror = lambda event: print(event.error)


def show(event: TCPSocketEvent) -> None:
    print(event.data)
    event.target.close()


if __name__ == "__main__":
    anyio.run(main, 8007)  # or trio.run(main, 8007), or asyncio.run(main(8007)): nothing else changes
