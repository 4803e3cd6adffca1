"""The logger ``mozsocket``: the messages for operators, and the fields for filtering them."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
from contextvars import ContextVar
from typing import Any

import pytest

from mozsocket import MozTCPSocket, TCPServerSocket, TCPSocketError

from ..peers import (
    Accepting,
    all_blocked,
    blocking,
    dial,
    echo_to,
    joined,
    port_of,
    read_all,
    read_exactly,
    reset,
    send_all,
    unused_port,
)

pytestmark = pytest.mark.anyio


request = ContextVar("request", default=0)


@pytest.fixture
def debugging(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG, "mozsocket")
    return caplog


def of(caplog: pytest.LogCaptureFixture, event: str) -> list[Any]:
    return [record for record in caplog.records if getattr(record, "event", None) == event]


async def test_the_life_of_a_connection(role: str, debugging: pytest.LogCaptureFixture) -> None:
    async with joined("plain", role) as (sock, recorder, peer):
        sock.send(b"question")
        assert await blocking(read_exactly, peer, 8) == b"question"
        await send_all(peer, b"answer")
        await recorder.until(lambda: recorder.data == b"answer")
        peer_name = "{}:{}".format(*peer.getsockname())
        local = "{}:{}".format(*peer.getpeername())
        peer.close()
        await recorder.first("close")
    events = [record.event for record in debugging.records]  # type: ignore[attr-defined]
    assert events == (["opened", "closed"] if role == "client" else ["accepted", "opened", "closed"])
    assert len({record.socket_id for record in debugging.records}) == 1  # type: ignore[attr-defined]
    for record in debugging.records:
        assert record.levelno == logging.DEBUG
        assert (record.peer, record.local) == (peer_name, local)  # type: ignore[attr-defined]
        assert f"<TCPSocket #{record.socket_id} {local}->{peer_name} " in record.getMessage()  # type: ignore[attr-defined]
    (closed,) = of(debugging, "closed")
    assert (closed.bytes_received, closed.bytes_sent, closed.why) == (6, 8, "the peer has ended it")
    assert 0 < closed.seconds < 60
    assert re.search(r"after \d+\.\d{3} s, 6 bytes received and 8 sent: the peer has ended it$", closed.getMessage())
    assert f"#{closed.socket_id} " in repr(sock)


async def test_who_has_accepted_it(debugging: pytest.LogCaptureFixture) -> None:
    async with joined("plain", "server"):
        (accepted,) = of(debugging, "accepted")
        assert re.search(r"was accepted by <TCPServerSocket #\d+ 127\.0\.0\.1:\d+ ", accepted.getMessage())


async def test_tls(role: str, debugging: pytest.LogCaptureFixture) -> None:
    async with joined("TLS 1.3", role) as (_, recorder, peer):
        (secured,) = of(debugging, "secured")
        assert secured.tls_version == "TLSv1.3"
        assert secured.cipher == peer.cipher()[0]  # type: ignore[attr-defined]
        assert secured.getMessage().endswith(f"is encrypted: TLSv1.3, {secured.cipher}")
        assert len(of(debugging, "opened")) == 1
        peer.close()
        await recorder.first("close")


async def test_it_is_logged_in_the_context_of_the_call(
    listener: socket.socket, debugging: pytest.LogCaptureFixture
) -> None:
    """For example with the number of the request for which :meth:`MozTCPSocket.open` was called."""
    seen: list[object] = []

    def note(record: logging.LogRecord) -> bool:
        seen.append((record.event, request.get()))  # type: ignore[attr-defined]
        return True

    debugging.handler.addFilter(note)
    try:
        async with MozTCPSocket() as tcp:
            request.set(7)
            sock = tcp.open("127.0.0.1", port_of(listener))
            request.set(8)
            await sock.opened()
            sock.closeImmediately()
    finally:
        debugging.handler.removeFilter(note)
    assert ("opened", 7) in seen


async def test_a_connection_that_cannot_be_made(debugging: pytest.LogCaptureFixture) -> None:
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", unused_port())
        with pytest.raises(TCPSocketError):
            await sock.opened()
    (closed,) = debugging.records
    assert closed.why.startswith("it was lost: ConnectionRefusedError")  # type: ignore[attr-defined]


async def test_nothing_of_it_at_other_levels(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mozsocket")
    async with joined("plain", "server") as (_, recorder, peer):
        peer.close()
        await recorder.first("close")
    assert not caplog.records


async def test_a_loss_has_fields(role: str, caplog: pytest.LogCaptureFixture) -> None:
    async with joined("plain", "server") as (sock, recorder, peer):
        sock.removeEventListener("error", recorder.events.append)
        reset(peer)
        await recorder.first("close")
    assert all(record.event != "lost" for record in caplog.records)  # type: ignore[attr-defined]
    async with TCPServerSocket(0, host="127.0.0.1") as server:
        server.onconnect = echo_to
        peer = await dial(server.localPort)
        await send_all(peer, b"x")
        await all_blocked()
        reset(peer)
        await all_blocked()
        server.close()
    (lost,) = of(caplog, "lost")
    assert (lost.levelno, lost.error) == (logging.WARNING, "NetworkInterruptError")
    assert lost.local == f"127.0.0.1:{server.localPort}"


async def test_max_connections(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mozsocket")
    async with TCPServerSocket(0, host="127.0.0.1", max_connections=1) as server:
        accepting = Accepting(server)
        with await dial(server.localPort), await dial(server.localPort):
            first, _ = await accepting.first()
            await all_blocked()
            (reached,) = of(caplog, "max_connections reached")
            assert reached.levelno == logging.INFO
            assert reached.getMessage().endswith("has reached its max_connections, 1: others wait")
            assert not of(caplog, "max_connections left")
            first.closeImmediately()
            await accepting.until(2)
            await all_blocked()
            assert len(of(caplog, "max_connections left")) == 1
            assert len(of(caplog, "max_connections reached")) == 2
        server.close()
        for sock, _ in accepting.sockets:
            sock.closeImmediately()


async def test_the_same_of_many_connections_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    def fail(event: Any) -> None:
        raise ValueError("no such luck")

    async with TCPServerSocket(0, host="127.0.0.1") as server:
        server.onconnect = fail
        for _ in range(25):
            with await dial(server.localPort) as peer:
                assert await blocking(read_all, peer) == b""
        server.close()
    assert len(of(caplog, "crashed")) == 10
    assert all(record.error == "ValueError" for record in of(caplog, "crashed"))
    assert (
        caplog.records[-1]
        .getMessage()
        .endswith("15 more like this were not logged one by one: a handler raised ValueError")
    )


SLOW = """
import logging, sys, time
import anyio
from mozsocket.testing import connected_pair

logging.basicConfig(format="%(levelname)s %(message)s")

async def main():
    async with connected_pair() as (one, other):
        one.ondata = lambda event: time.sleep(0.2)
        other.send(b"x")
        other.close()
        await one.closed()

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize(("chosen", "reports"), [("0.1", True), ("10", False), ("", False)])
async def test_a_handler_that_holds_up_the_event_loop(chosen: str, reports: bool, anyio_backend_name: str) -> None:
    environment = {**os.environ, "MOZSOCKET_SLOW_HANDLERS": chosen}
    command = [sys.executable, "-c", SLOW, anyio_backend_name]
    done = await blocking(lambda: subprocess.run(command, env=environment, capture_output=True, text=True, check=True))
    found = re.findall(
        r"WARNING a handler of <TCPSocket .*>, on 'data', has held up the event loop for 0\.\d seconds", done.stderr
    )
    assert bool(found) is reports
    assert bool(done.stderr) is reports


async def test_a_limit_that_is_no_number(anyio_backend_name: str) -> None:
    environment = {**os.environ, "MOZSOCKET_SLOW_HANDLERS": "soon"}
    command = [sys.executable, "-c", "import mozsocket"]
    done = await blocking(lambda: subprocess.run(command, env=environment, capture_output=True, text=True))
    assert "ValueError: MOZSOCKET_SLOW_HANDLERS is 'soon': it must be a number of seconds" in done.stderr
