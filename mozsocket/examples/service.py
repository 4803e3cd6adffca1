"""A service that shuts down gracefully on Ctrl-C and SIGTERM: ``python -m mozsocket.examples.service``.

It stops accepting connections, lets the open ones finish, and closes those still open after a time limit.
"""

from __future__ import annotations

import signal

import anyio

from mozsocket import MozTCPSocket, TCPServerSocketEvent
from mozsocket.examples.echo_server import echo

GRACE = 10  # seconds


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
