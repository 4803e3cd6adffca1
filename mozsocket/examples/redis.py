"""A Redis client: ``python -m mozsocket.examples.redis localhost 6379``.

Commands are pipelined: each is sent without waiting for the replies to earlier ones. The ``data`` handler parses them.
"""

from __future__ import annotations

import sys
from collections import deque

import anyio

from mozsocket import Event, TCPSocket, TCPSocketEvent


class RedisError(Exception):
    """The server answered a command with an error."""


class Reply:
    """The answer to a command, which may not have arrived yet."""

    def __init__(self) -> None:
        self._came = anyio.Event()
        self._value: object = None

    def set(self, value: object) -> None:
        self._value = value
        self._came.set()

    async def get(self) -> object:
        await self._came.wait()
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


class Redis:
    """A client on a socket."""

    def __init__(self, socket: TCPSocket) -> None:
        self._socket = socket
        self._unanswered: deque[Reply] = deque()
        self._received = bytearray()
        socket.ondata = self._on_data
        socket.onclose = self._on_close

    def command(self, *words: str | bytes) -> Reply:
        """Send a command. When sending many megabytes, call `await socket.drained()` now and then."""
        reply = Reply()
        self._unanswered.append(reply)
        self._socket.send(b"*%d\r\n" % len(words))
        for word in words:
            word = word.encode() if isinstance(word, str) else word
            self._socket.send(b"$%d\r\n" % len(word))
            self._socket.send(word)
            self._socket.send(b"\r\n")
        return reply

    def _on_data(self, event: TCPSocketEvent) -> None:
        self._received += event.data
        while self._unanswered and (found := self._parse()) is not None:
            self._unanswered.popleft().set(found[0])

    def _on_close(self, event: Event[TCPSocket]) -> None:
        for reply in self._unanswered:
            reply.set(ConnectionError("the connection was closed before the answer came"))

    def _parse(self) -> tuple[object] | None:
        """Parse the next reply: its value in a tuple, or None if it is incomplete. Lists are not supported."""
        end = self._received.find(b"\r\n")
        if end < 0:
            return None
        kind, line, size = bytes(self._received[:1]), bytes(self._received[1:end]), end + 2
        value: object = line
        if kind == b"$" and line != b"-1":
            size += int(line) + 2
            if len(self._received) < size:
                return None
            value = bytes(memoryview(self._received)[end + 2 : size - 2])
        elif kind == b"$":
            value = None
        elif kind == b":":
            value = int(line)
        elif kind == b"-":
            value = RedisError(line.decode())
        del self._received[:size]
        return (value,)


async def main(host: str, port: int) -> None:
    async with TCPSocket(host, port) as socket:
        redis = Redis(socket)
        await socket.opened()
        replies = [redis.command("INCR", "visits") for _ in range(1000)]
        print("visits:", await replies[-1].get())


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], int(sys.argv[2]))  # localhost 6379
