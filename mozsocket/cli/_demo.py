"""The demonstration: an echo server and a client, and what they prove."""

from __future__ import annotations

import os

import anyio

from .. import Event, MozTCPSocket, TCPServerSocketEvent, TCPSocket, TCPSocketEvent
from ._loop import Failure
from ._relay import echo_back
from ._trace import EVENT_TYPES, Trace

__all__ = ("Demo", "conclusion")

DEMO_SIZE = 1 << 20
DEMO_LIMIT = 30
"""Seconds after which it has failed."""


def conclusion(claims: dict[str, dict[str, bool]]) -> str:
    """
    :param claims: of each backend, what should hold and whether it does
    :return: what holds on all of them
    :raises Failure: if something does not
    """
    wrong = [f"{backend}: {claim}" for backend, found in claims.items() for claim in found if not found[claim]]
    if wrong:
        raise Failure("this did not hold: " + "; ".join(wrong))
    proved = dict.fromkeys(claim for found in claims.values() for claim in found)
    return f"Proved on {', '.join(claims)}: {'; '.join(proved)}."


class Demo:
    """One run: a client sends more than it can buffer without being told to wait, and gets it all back.

    The client suspends when the first of it comes, until nothing moves any more.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._sent = os.urandom(DEMO_SIZE)
        self._received = bytearray()
        self._send_results: list[bool] = []
        self._buffered_at_drain: list[int] = []
        self._begun: anyio.Event  # when the client has suspended, or will never
        self._received_when_suspended = 0
        self._received_when_resumed: int | None = None
        self._events: dict[str, list[str]] = {"client": [], "accepted": []}

    async def run(self) -> None:
        self._begun = anyio.Event()
        with anyio.move_on_after(DEMO_LIMIT):
            async with MozTCPSocket() as tcp:
                server = tcp.listen(0, host="localhost")
                server.onconnect = self._on_connect
                self._trace.watch(server, "server")
                client = tcp.open("localhost", server.localPort)
                self._set_up(client)
                await self._begun.wait()
                if self._received:
                    await anyio.wait_all_tasks_blocked()
                    self._received_when_resumed = len(self._received)
                    self._trace.tell("client", "resume()")
                    client.resume()

    def _watch(self, socket: TCPSocket, name: str) -> None:
        self._trace.watch(socket, name)
        for type_ in EVENT_TYPES[TCPSocket]:
            socket.addEventListener(type_, lambda event: self._events[name].append(event.type))

    def _on_connect(self, event: TCPServerSocketEvent) -> None:
        echo_back(event.socket)
        self._watch(event.socket, "accepted")
        event.target.close()

    def _set_up(self, client: TCPSocket) -> None:
        self._watch(client, "client")
        client.addEventListener("open", self._on_open)
        client.addEventListener("drain", lambda event: self._buffered_at_drain.append(client.bufferedAmount))
        client.addEventListener("data", self._on_data)
        client.addEventListener("close", lambda event: self._begun.set())

    def _on_open(self, event: Event[TCPSocket]) -> None:
        result = event.target.send(self._sent)
        self._send_results.append(result)
        self._trace.tell("client", "send()", f"{len(self._sent)} B: {result}")

    def _on_data(self, event: TCPSocketEvent) -> None:
        self._received += event.data
        if not self._begun.is_set():
            self._trace.tell("client", "suspend()")
            event.target.suspend()
            self._received_when_suspended = len(self._received)
            self._begun.set()
        if len(self._received) == len(self._sent):
            self._trace.tell("client", "close()")
            event.target.close()

    def claims(self) -> dict[str, bool]:
        """What should hold, and whether it did."""
        return {
            f"{len(self._received)} bytes came back equal to those sent": self._received == self._sent,
            "send() gave False and drain fired once all was handed over": (
                self._send_results == [False] and self._buffered_at_drain == [0]
            ),
            "no data came between suspend() and resume()": (
                self._received_when_resumed == self._received_when_suspended
            ),
            "close came once, as the last event of each socket": all(
                types[-1:] == ["close"] and types.count("close") == 1 for types in self._events.values()
            ),
        }
