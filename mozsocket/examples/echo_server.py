"""Sends back what it receives, on port 8007: ``python -m mozsocket.examples.echo_server``.

While a client does not read, nothing is read from it either, so memory use stays bounded.
"""

from __future__ import annotations

import anyio

from mozsocket import MozTCPSocket, TCPServerSocketEvent, TCPSocketEvent


async def main(port: int) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(port)  # bound when it returns; port 0 takes a free one
        server.onconnect = greet
        print("listening on", server.localPort, flush=True)


def greet(event: TCPServerSocketEvent) -> None:
    event.socket.ondata = echo


def echo(event: TCPSocketEvent) -> None:
    socket = event.target
    if not socket.send(event.data):  # more than 64 KiB wait to be sent: let the peer wait too
        socket.suspend()
        socket.addEventListener("drain", lambda event: socket.resume(), once=True)


if __name__ == "__main__":
    anyio.run(main, 8007)
