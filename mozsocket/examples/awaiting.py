"""Sends a megabyte to port 8007, awaiting instead of using handlers: ``python -m mozsocket.examples.awaiting``."""

from __future__ import annotations

import anyio

from mozsocket import TCPSocket, TCPSocketError


async def main(port: int) -> None:
    try:
        async with TCPSocket("localhost", port, connect_timeout=10) as socket:
            await socket.opened()
            socket.send(bytes(1_000_000))
            await socket.drained()
    except TCPSocketError as error:
        print(error.name, error.errorCode)


if __name__ == "__main__":
    anyio.run(main, 8007)
