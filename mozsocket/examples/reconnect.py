"""Prints the lines that a server sends, and reconnects when the connection is lost.

Run it with ``python -m mozsocket.examples.reconnect HOST PORT``.

While connecting fails, it waits longer after each attempt. The waits are random, so that the clients of a server that
was restarted do not all connect at the same moment.
"""

from __future__ import annotations

import random
import sys

import anyio

from mozsocket import CONNECTION_LOST, TCPSocket, TCPSocketEvent, lines

SHORTEST, LONGEST = 0.5, 60.0  # seconds


def show(event: TCPSocketEvent) -> None:
    print(event.data.decode("utf-8", "replace"), flush=True)


async def follow(host: str, port: int) -> None:
    """Connect, and print lines until the connection ends.

    :raises CONNECTION_LOST: if it cannot be opened or is lost
    """
    async with TCPSocket(host, port, connect_timeout=10, idle_timeout=120, keep_alive=30) as socket:
        socket.ondata = lines(show)
        await socket.opened()
        await socket.closed()


async def main(host: str, port: int) -> None:
    wait = SHORTEST
    while True:
        begun = anyio.current_time()
        try:
            await follow(host, port)
        except CONNECTION_LOST as exc:
            print(exc, file=sys.stderr)
        if anyio.current_time() - begun > LONGEST:
            wait = SHORTEST  # the connection had lasted a while
        await anyio.sleep(random.uniform(wait / 2, wait))  # noqa: S311  (not a secret)
        wait = min(2 * wait, LONGEST)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], int(sys.argv[2]))  # localhost 8007
