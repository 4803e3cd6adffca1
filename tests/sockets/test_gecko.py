"""The checks of Gecko's own tests of TCPSocket, and bugs of Gecko that mozsocket does not have.

As in Gecko's tests, both ends are ours. ``test_socket.py`` tests the same against sockets of the standard library.
"""

from __future__ import annotations

from typing import Any

import pytest

from mozsocket import MozTCPSocket, TCPSocket
from mozsocket.testing import EventRecorder

from ..peers import Accepting, all_blocked, unused_port

pytestmark = pytest.mark.anyio

SMALL = bytes(range(256)) + b"0123456789"
BIG = bytes(i * 31 & 255 for i in range(65536)) * 8


class Connection:
    """A client and the socket that the server has accepted for it, with their events."""

    def __init__(
        self, client: TCPSocket, accepted: TCPSocket, events: EventRecorder, accepted_events: EventRecorder
    ) -> None:
        self.client = client
        self.accepted = accepted
        self.events = events
        self.accepted_events = accepted_events

    def ends(self, reverse: bool) -> tuple[TCPSocket, EventRecorder]:
        """The sending socket, and the events of the receiving one."""
        return (self.accepted, self.events) if reverse else (self.client, self.accepted_events)


async def connect(tcp: MozTCPSocket, **options: Any) -> Connection:
    accepting = Accepting(tcp.listen(0, **options))
    client = tcp.open("localhost", accepting.server.localPort, **options)
    events = EventRecorder(client)
    await events.first("open")
    accepted, accepted_events = await accepting.first()
    accepting.server.close()
    assert (client.readyState, accepted.readyState) == ("open", "open")
    return Connection(client, accepted, events, accepted_events)


@pytest.mark.parametrize("reverse", [False, True])
async def test_small_send(reverse: bool) -> None:
    async with MozTCPSocket() as tcp:
        connection = await connect(tcp)
        sender, received = connection.ends(reverse)
        assert sender.send(SMALL)
        await received.until(lambda: received.data == SMALL)
        tcp.close()


@pytest.mark.parametrize("reverse", [False, True])
async def test_big_send(reverse: bool) -> None:
    async with MozTCPSocket() as tcp:
        connection = await connect(tcp)
        sender, received = connection.ends(reverse)
        drains = EventRecorder(sender)
        assert not sender.send(BIG)
        await drains.first("drain")
        await received.until(lambda: len(received.data) >= len(BIG))
        assert received.data == BIG
        tcp.close()


async def test_drain_twice() -> None:
    async with MozTCPSocket() as tcp:
        connection = await connect(tcp)
        for count in (1, 2):
            assert not connection.client.send(BIG)
            await connection.events.until(lambda count=count: connection.events.types.count("drain") == count)  # type: ignore[misc]
            assert connection.client.bufferedAmount == 0
        received = connection.accepted_events
        await received.until(lambda: len(received.data) >= 2 * len(BIG))
        assert received.data == BIG * 2
        tcp.close()


async def test_buffer_twice() -> None:
    """Two sends above the threshold before any data is sent cause one drain."""
    async with MozTCPSocket() as tcp:
        connection = await connect(tcp)
        assert not connection.client.send(BIG)
        assert not connection.client.send(BIG)
        assert connection.client.bufferedAmount == 2 * len(BIG)
        await connection.events.first("drain")
        received = connection.accepted_events
        await received.until(lambda: len(received.data) >= 2 * len(BIG))
        assert received.data == BIG * 2
        tcp.close()
    assert connection.events.types.count("drain") == 1


@pytest.mark.parametrize("reverse", [False, True])
async def test_close_after_a_big_send(reverse: bool) -> None:
    async with MozTCPSocket() as tcp:
        connection = await connect(tcp)
        sender, received = connection.ends(reverse)
        sender.send(BIG)
        sender.close()
        assert sender.readyState == "closing"
        await received.first("close")
        assert received.data == BIG
    assert sender.readyState == "closed"


@pytest.mark.parametrize("reverse", [False, True])
async def test_close_from_either_side(reverse: bool) -> None:
    async with MozTCPSocket() as tcp:
        connection = await connect(tcp)
        connection.ends(reverse)[0].close()
    assert connection.events.types == ["open", "close"]
    assert connection.accepted_events.types == ["close"]
    assert (connection.client.readyState, connection.accepted.readyState) == ("closed", "closed")


async def test_close_immediately_of_a_big_send() -> None:
    async with MozTCPSocket() as tcp:
        connection = await connect(tcp)
        connection.accepted.suspend()
        connection.client.send(BIG * 64)
        await all_blocked()
        connection.client.closeImmediately()
        assert connection.client.bufferedAmount == 0
        await connection.events.first("close")
        connection.accepted.resume()
        await connection.accepted_events.first("close")
        assert len(connection.accepted_events.data) < len(BIG) * 64


async def test_refused_connect() -> None:
    async with MozTCPSocket() as tcp:
        socket = tcp.open("localhost", unused_port())
        events = EventRecorder(socket)
        assert socket.readyState == "connecting"
    assert events.types == ["error", "close"]
    assert events.of("error")[-1].name == "ConnectionRefusedError"


@pytest.mark.parametrize(
    ("byteOffset", "byteLength", "expected"),
    [(0, None, SMALL), (4, None, SMALL[4:]), (0, 9, SMALL[:9]), (3, 5, SMALL[3:8]), (260, 100, SMALL[260:])],
)
async def test_sliced_sends(byteOffset: int, byteLength: int | None, expected: bytes) -> None:  # noqa: N803
    async with MozTCPSocket() as tcp:
        connection = await connect(tcp)
        connection.client.send(SMALL, byteOffset, byteLength)
        connection.client.close()
        await connection.accepted_events.first("close")
        assert connection.accepted_events.data == expected


async def test_binary_type_string() -> None:
    async with MozTCPSocket() as tcp:
        connection = await connect(tcp, binaryType="string")
        connection.client.send("é\xff\0 is one byte a character")
        connection.client.close()
        await connection.accepted_events.first("close")
        assert connection.accepted_events.data == "é\xff\0 is one byte a character"


async def test_half_close_with_data_in_flight_fires_close_at_both_ends() -> None:
    """Gecko can miss onclose after the peer's half-close."""
    async with MozTCPSocket() as tcp:
        connection = await connect(tcp)
        connection.accepted.send(BIG * 4)
        connection.client.send(BIG)
        connection.client.close()
    assert connection.events.types[-1] == "close"
    assert connection.accepted_events.types[-1] == "close"
    assert connection.accepted_events.data == BIG
