"""Follows a feed of lines, and connects again when the connection is gone: ``python -m mozsocket.examples.reconnect``.

It waits longer from time to time while that fails, at random, so that the clients of a server that has come back do not
all come at once.
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
    """Until the connection is gone.

    :raises CONNECTION_LOST: whichever way
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
            wait = SHORTEST  # it was good for a while
        await anyio.sleep(random.uniform(wait / 2, wait))  # noqa: S311  (no secret)
        wait = min(2 * wait, LONGEST)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], int(sys.argv[2]))  # localhost 8007
