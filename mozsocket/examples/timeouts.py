"""Receives from a peer until it is silent for 30 seconds: ``python -m mozsocket.examples.timeouts``."""

from __future__ import annotations

import anyio

from mozsocket import TCPSocket, TCPSocketError


async def listen_to(host: str, port: int, patience: float) -> bytes:
    """Receive until the other side closes, or is silent for some time.

    :param patience: that time, in seconds
    :return: all that was received
    :raises TCPSocketError: if the connection fails otherwise
    """
    received = bytearray()
    async with TCPSocket(host, port, connect_timeout=patience, idle_timeout=patience) as socket:
        socket.ondata = lambda event: received.extend(event.data)
        await socket.opened()
        try:
            await socket.closed()
        except TCPSocketError as error:
            if error.name != "NetworkTimeoutError":
                raise
    return bytes(received)


if __name__ == "__main__":
    print(anyio.run(listen_to, "localhost", 8007, 30))
