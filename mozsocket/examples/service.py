"""A service that ends in order on Ctrl-C and SIGTERM: ``python -m mozsocket.examples.service``.

It stops accepting, lets its connections finish, and closes what is left when the time is over.
"""

from __future__ import annotations

import signal

import anyio

from mozsocket import MozTCPSocket, TCPServerSocketEvent, TCPSocketEvent

GRACE = 10  # seconds


def echo(event: TCPSocketEvent) -> None:
    event.target.send(event.data)


def on_connect(event: TCPServerSocketEvent) -> None:
    event.socket.ondata = echo


async def main(port: int) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(port)
        server.onconnect = on_connect
        print("listening on", server.localPort, flush=True)
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for _ in signals:
                break
        server.close()
        tcp.cancel_scope.deadline = anyio.current_time() + GRACE


if __name__ == "__main__":
    anyio.run(main, 8007)
