from __future__ import annotations

import socket as stdlib_socket
from collections.abc import Iterator

import pytest

from mozsocket import MozTCPSocket

from .peers import blocking, connected, listening, read_all, read_exactly

pytestmark = pytest.mark.anyio


@pytest.fixture
def listener() -> Iterator[stdlib_socket.socket]:
    with listening() as sock:
        yield sock


@pytest.fixture(params=["client", "server"])
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_sends_and_receives(role: str, listener: stdlib_socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        socket, events, peer = await connected(tcp, role, listener)
        with peer:
            assert socket.send(b"hello")
            assert await blocking(read_exactly, peer, 5) == b"hello"
            peer.sendall(b"answer")
            await events.until("data")
            socket.close()
            assert await blocking(read_all, peer) == b""
        await events.until("close")
    assert events.data == b"answer"
    assert events.types == (["open"] if role == "client" else []) + ["data", "close"]
