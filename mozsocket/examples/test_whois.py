"""Tests of the whois example, on every event loop: ``pytest --pyargs mozsocket.examples.test_whois``."""

from __future__ import annotations

import pytest

from mozsocket import TCPServerSocket, TCPServerSocketEvent, TCPSocketError, TCPSocketEvent
from mozsocket.testing import EventRecorder, connected_pair

from .whois import whois

pytestmark: pytest.MarkDecorator = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "uvloop", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> object:
    return ("asyncio", {"use_uvloop": True}) if request.param == "uvloop" else request.param


async def test_the_answer_is_all_up_to_the_end() -> None:
    def answer(event: TCPSocketEvent) -> None:
        event.target.send(b"you asked for " + event.data)
        event.target.close()

    def onconnect(event: TCPServerSocketEvent) -> None:
        event.socket.ondata = answer

    async with TCPServerSocket(0, host="127.0.0.1") as server:
        server.onconnect = onconnect
        assert await whois("127.0.0.1", "example.com", port=server.localPort) == "you asked for example.com\r\n"


async def test_a_silent_server() -> None:
    async with TCPServerSocket(0, host="127.0.0.1") as server:
        server.onconnect = lambda event: None
        with pytest.raises(TimeoutError):
            await whois("127.0.0.1", "example.com", port=server.localPort, timeout=0.1)


async def test_no_server() -> None:
    async with TCPServerSocket(0, host="127.0.0.1") as server:
        port = server.localPort
    with pytest.raises(TCPSocketError, match="refused"):
        await whois("127.0.0.1", "example.com", port=port)


async def test_events_can_be_awaited() -> None:
    async with connected_pair() as (ours, theirs):
        events = EventRecorder(ours)
        theirs.send(b"hello")
        assert (await events.next("data")).data == b"hello"
        theirs.close()
        assert await events.data_until_close() == b"hello"
