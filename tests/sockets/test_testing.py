"""``mozsocket.testing``, the helpers for tests of other programs."""

from __future__ import annotations

import time
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mozsocket import MozTCPSocket, TCPServerSocket, TCPSocketError
from mozsocket.testing import EventRecorder, connected_pair, connected_peer

from ..peers import PEER_TIMEOUT, all_blocked, dial

pytestmark = pytest.mark.anyio

MUCH = bytes(range(256)) * 65536  # 16 MiB: more than the kernel buffers between two sockets of this machine


# A connected pair


async def test_a_pair_is_open_and_connected() -> None:
    async with connected_pair() as (ours, theirs):
        assert ours.readyState == theirs.readyState == "open"
        events = EventRecorder(theirs)
        ours.send(b"hello")
        assert (await events.next()).data == b"hello"
        replies = EventRecorder(ours)
        theirs.send(MUCH)
        theirs.close()
        assert await replies.data_until_close() == MUCH
    assert ours.readyState == theirs.readyState == "closed"


async def test_a_pair_with_options() -> None:
    async with connected_pair(binaryType="string", allow_half_open=True) as (ours, theirs):
        events = EventRecorder(theirs)
        ours.send(b"\xff")
        ours.send_eof()
        assert (await events.next("data")).data == "ÿ"
        await events.next("end")
        assert events.data == "ÿ"


async def test_leaving_a_pair_closes_it_at_once() -> None:
    before = time.monotonic()
    async with connected_pair(linger=30):
        pass
    with pytest.raises(ZeroDivisionError):
        await fail_in_a_pair()
    assert time.monotonic() - before < 10


async def fail_in_a_pair() -> None:
    async with connected_pair(linger=30) as (ours, _):
        ours.send(MUCH)
        raise ZeroDivisionError


# The recorder


async def test_events_are_waited_for_in_turn() -> None:
    async with connected_peer() as (sock, peer):
        events = EventRecorder(sock)
        await peer.send(b"a")
        first = await events.next()
        assert (first.type, first.data, first.target) == ("data", b"a", sock)
        await peer.send(b"b")
        assert (await events.next("data")).data == b"b"
        peer.close()
        assert (await events.next("close")).type == "close"
        assert await events.first("data") is first
        assert [event.data for event in events.of("data")] == [b"a", b"b"]
        assert events.types == ["data", "close"]
        assert events.data == b"ab"


async def test_events_that_do_not_come() -> None:
    async with connected_peer() as (sock, peer):
        events = EventRecorder(sock, timeout=0.1)
        with pytest.raises(TimeoutError, match=r"not within 0.1 seconds; events so far: none"):
            await events.next()
        await peer.send(b"a")
        with pytest.raises(TimeoutError, match=r"events so far: \['data'\]"):
            await events.first("close")


async def test_an_event_of_a_type_passes_over_others() -> None:
    async with connected_peer() as (sock, peer):
        events = EventRecorder(sock)
        await peer.send(b"x")
        await events.first("data")
        peer.close()
        assert (await events.next("close")).type == "close"


async def test_what_has_no_events() -> None:
    tcp: Any = MozTCPSocket()
    with pytest.raises(TypeError, match="takes a TCPSocket or a TCPServerSocket, not MozTCPSocket"):
        EventRecorder(tcp)


async def test_events_that_there_cannot_be() -> None:
    async with connected_pair() as (client, _):
        events = EventRecorder(client)
        with pytest.raises(ValueError, match="there are no 'drian' events here, only close, data"):
            await events.next("drian")
        with pytest.raises(ValueError, match="'drian'"):
            await events.first("drian")
        with pytest.raises(ValueError, match="'drian'"):
            events.of("drian")


async def test_several_may_wait() -> None:
    async with connected_peer() as (sock, peer):
        events = EventRecorder(sock)
        got: list[Any] = []

        async def wait(type_: str) -> None:
            got.append((await events.first(type_)).type)

        async with anyio.create_task_group() as tasks:
            for type_ in ("data", "data", "close"):
                tasks.start_soon(wait, type_)
            await all_blocked()
            await peer.send(b"x")
            await all_blocked()
            peer.close()
        assert got == ["data", "data", "close"]


async def test_a_lost_connection_is_raised_with_the_data() -> None:
    async with connected_peer() as (sock, peer):
        events = EventRecorder(sock)
        await peer.send(b"some")
        await events.next("data")
        peer.reset()
        with pytest.raises(TCPSocketError, match="NetworkInterruptError"):
            await events.data_until_close()
        assert events.data == b"some"


async def test_the_events_of_a_server() -> None:
    async with TCPServerSocket(0, host="127.0.0.1") as server:
        events = EventRecorder(server)
        with await dial(server.localPort):
            connect = await events.next("connect")
            connect.socket.close()


async def test_handlers_go_on_beside_a_recorder() -> None:
    async with MozTCPSocket() as tcp, connected_peer() as (sock, peer):
        got: list[bytes] = []
        sock.ondata = lambda event: got.append(event.data)
        events = EventRecorder(sock)
        await peer.send(b"x")
        await events.next("data")
        assert got == [b"x"]
        tcp.close()


# The peer


async def test_a_peer_sends_and_receives() -> None:
    async with connected_peer() as (sock, peer):
        events = EventRecorder(sock)
        sock.send(b"hello world")
        assert await peer.receive_exactly(6) == b"hello "
        assert await peer.receive() == b"world"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(peer.send, MUCH)
            await events.until(lambda: sum(len(event.data) for event in events.of("data")) == len(MUCH))
        assert events.data == MUCH
        sock.send(MUCH)
        sock.close()
        assert await peer.receive_all() == MUCH
        with pytest.raises(EOFError, match="after 0 of 1 bytes"):
            await peer.receive_exactly(1)


async def test_a_peer_sends_one_byte_at_a_time() -> None:
    async with connected_peer() as (sock, peer):
        events = EventRecorder(sock)
        await peer.trickle(b"abc", pause=0.01)
        await events.until(lambda: events.data == b"abc")
        assert [event.data for event in events.of("data")] == [b"a", b"b", b"c"]


async def test_a_peer_does_not_read() -> None:
    async with connected_peer(max_buffered_amount=len(MUCH)) as (sock, peer):
        sock.send(MUCH)
        await all_blocked()
        assert sock.bufferedAmount
        with pytest.raises(BufferError):
            sock.send(MUCH)
        peer.close()
        await EventRecorder(sock).first("close")


async def test_a_peer_finds_that_it_is_not_read() -> None:
    async with connected_peer() as (sock, peer):
        sock.suspend()
        await peer.clog()
        async with anyio.create_task_group() as tasks:
            sent = anyio.Event()

            async def send() -> None:
                await peer.send(MUCH)
                sent.set()

            tasks.start_soon(send)
            await all_blocked()
            assert not sent.is_set()
            tasks.cancel_scope.cancel()
        sock.closeImmediately()


async def test_leaving_does_not_wait_for_the_peer_and_loses_no_error() -> None:
    with anyio.fail_after(PEER_TIMEOUT):
        async with connected_peer(linger=600):
            pass
        async with connected_peer(linger=600) as (sock, peer):
            sock.send(MUCH)
        assert sock.readyState == "closed"
        with pytest.raises(ZeroDivisionError):
            async with connected_peer(linger=600) as (sock, peer):
                raise ZeroDivisionError
        assert sock.readyState == "closed"
        with pytest.raises(anyio.ClosedResourceError):
            await peer.send(b"x")


@pytest.mark.parametrize("make", [connected_pair, connected_peer])
@pytest.mark.parametrize("options", [{"linger": -1}, {"bogus": 1}])
async def test_bad_options_leave_nothing_open(make: Any, options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        async with make(**options):
            pass


async def test_a_peer_ends_its_side() -> None:
    async with connected_peer(allow_half_open=True) as (sock, peer):
        events = EventRecorder(sock)
        peer.send_eof()
        await events.next("end")
        sock.send(b"answer")
        sock.send_eof()
        assert await peer.receive_all() == b"answer"


async def test_a_peer_resets() -> None:
    async with connected_peer() as (sock, peer):
        events = EventRecorder(sock)
        peer.reset()
        assert (await events.next()).name == "NetworkInterruptError"
        peer.close()  # harmless
        peer.reset()
