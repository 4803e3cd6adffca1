"""Half-close: ``send_eof()`` ends our side; with ``allow_half_open=True`` and ``onend`` the peer may end its side
first.
"""

from __future__ import annotations

import socket
import ssl
import time
from contextlib import suppress
from typing import Any

import anyio
import pytest

from mozsocket import InvalidStateError, MozTCPSocket, TCPSocket
from mozsocket._readiness import WATCH_AFTER
from mozsocket._socket import connection_of
from mozsocket.testing import EventRecorder

from ..peers import (
    PEER_TIMEOUT,
    accept,
    all_blocked,
    blocking,
    connected,
    dial,
    joined,
    port_of,
    read_all,
    read_exactly,
    reset,
    send_all,
)

pytestmark = pytest.mark.anyio

MUCH = bytes(range(256)) * 65536  # 16 MiB: more than the kernel buffers between two sockets of this machine


def end(peer: socket.socket) -> None:
    """End the peer's side, in TLS with close_notify. Not in a thread, as `ssl` fails if data arrives meanwhile."""
    if isinstance(peer, ssl.SSLSocket):
        peer.setblocking(False)
        with suppress(ssl.SSLWantReadError):
            peer.unwrap()
        peer.settimeout(PEER_TIMEOUT)
    socket.socket.shutdown(peer, socket.SHUT_WR)  # shutdown() of an SSLSocket would end its TLS too


# Our side


async def test_the_answer_comes_after_our_end(layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, recorder, peer):
        sock.send(b"question")
        sock.send_eof()
        assert sock.readyState == "open"
        with pytest.raises(InvalidStateError, match=r"send\(\) after send_eof\(\)"):
            sock.send(b"x")
        sock.send_eof()  # harmless
        assert await blocking(read_all, peer) == b"question"
        await send_all(peer, b"answer")
        await recorder.until(lambda: recorder.data == b"answer")
        assert sock.readyState == "open"
        end(peer)
        await recorder.first("close")
        assert recorder.types[-2:] == ["data", "close"]


async def test_all_that_was_sent_comes_before_our_end(layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, recorder, peer):
        sock.send(MUCH)
        sock.send_eof()
        assert await blocking(read_all, peer) == MUCH
        await recorder.first("drain")
        assert sock.bufferedAmount == 0
        end(peer)
        await recorder.first("close")


async def test_what_had_come_and_was_not_read_yet_survives_our_end(layer: str, role: str) -> None:
    """In TLS it may be partly decrypted at that time."""
    async with joined(layer, role) as (sock, recorder, peer):
        sock.suspend()
        await send_all(peer, b"x" * 40_000 + b"y" * 40_000)
        while not connection_of(sock).inbox.count:
            await all_blocked()
        sock.send_eof()
        assert await blocking(read_all, peer) == b""
        await send_all(peer, b"z")
        sock.resume()
        await recorder.until(lambda: recorder.data.endswith(b"z"))
        assert recorder.data == b"x" * 40_000 + b"y" * 40_000 + b"z"
        end(peer)
        await recorder.first("close")


async def test_our_end_from_a_handler(layer: str, role: str) -> None:
    async with joined(layer, role) as (sock, recorder, peer):

        def answer(event: Any) -> None:
            sock.send(b"one")
            sock.send_eof()

        sock.ondata = answer
        await send_all(peer, b"go")
        assert await blocking(read_all, peer) == b"one"
        end(peer)
        await recorder.first("close")


async def test_closing_after_our_end_is_a_close(layer: str, role: str) -> None:
    async with joined(layer, role, linger=0.1) as (sock, recorder, peer):
        sock.send_eof()
        assert await blocking(read_all, peer) == b""
        sock.close()
        await recorder.first("close")
        assert "error" not in recorder.types


async def test_a_reset_after_our_end_is_reported(role: str) -> None:
    async with joined("plain", role) as (sock, recorder, peer):
        sock.send_eof()
        assert await blocking(read_all, peer) == b""
        reset(peer)
        await recorder.first("close")
        assert recorder.types[-2:] == ["error", "close"]


async def test_our_end_is_possible_only_while_open(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", port_of(listener))
        with pytest.raises(InvalidStateError, match=r"send_eof\(\) on a socket that is connecting"):
            sock.send_eof()
        with await accept(listener):
            await sock.opened()
        await sock.closed()
        with pytest.raises(InvalidStateError, match=r"send_eof\(\) on a socket that is closed"):
            sock.send_eof()


async def test_our_end_waits_for_a_pending_handshake(listener: socket.socket) -> None:
    from ..certificates import client_context, server_context
    from ..peers import secure

    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, "client", listener)
        sock.upgradeToSecure(ssl_context=client_context(), server_hostname="localhost")
        sock.send_eof()
        tls = await secure(peer, server_context(), server_side=True)
        with tls:
            assert await blocking(read_all, tls) == b""
            await send_all(tls, b"answer")
            end(tls)
        await sock.closed()


async def test_tls_cannot_begin_where_one_side_has_ended(role: str) -> None:
    from ..certificates import client_context, server_context

    context = client_context() if role == "client" else server_context()
    async with joined("plain", role, allow_half_open=True) as (sock, recorder, peer):
        sock.send_eof()
        with pytest.raises(InvalidStateError, match="one side has ended"):
            sock.upgradeToSecure(ssl_context=context)
        sock.closeImmediately()
    async with joined("plain", role, allow_half_open=True) as (sock, recorder, peer):
        end(peer)
        await recorder.first("end")
        with pytest.raises(InvalidStateError, match="one side has ended"):
            sock.upgradeToSecure(ssl_context=context)
        sock.closeImmediately()


# The peer's side


async def test_without_allow_half_open_the_peer_s_end_closes(layer: str, role: str) -> None:
    async with joined(layer, role) as (_, recorder, peer):
        end(peer)
        await recorder.first("close")
        assert "end" not in recorder.types


async def test_the_answer_goes_out_after_the_peer_s_end(layer: str, role: str) -> None:
    async with joined(layer, role, allow_half_open=True) as (sock, recorder, peer):
        await send_all(peer, b"question")
        end(peer)
        await recorder.first("end")
        assert recorder.data == b"question"
        assert sock.readyState == "open"
        sock.send(MUCH)
        sock.send_eof()
        assert sock.readyState == "closing"  # both sides have ended
        assert await blocking(read_all, peer) == MUCH
        await recorder.first("close")
        assert [name for name in recorder.types if name not in ("open", "drain")] == ["data", "end", "close"]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["function", "async function"])
async def test_the_answer_of_an_end_handler(asynchronous: bool, layer: str, role: str) -> None:
    async with joined(layer, role, allow_half_open=True) as (sock, recorder, peer):

        def answer(event: Any) -> None:
            assert event.type == "end"
            assert event.target is sock
            sock.send(b"answer")
            sock.send_eof()

        async def slowly(event: Any) -> None:
            await all_blocked()
            answer(event)

        sock.onend = slowly if asynchronous else answer
        end(peer)
        assert await blocking(read_all, peer) == b"answer"
        await recorder.first("close")
        assert "error" not in recorder.types


async def test_both_ends_close_whichever_is_first(layer: str, role: str) -> None:
    async with joined(layer, role, allow_half_open=True) as (sock, recorder, peer):
        sock.send_eof()
        assert await blocking(read_all, peer) == b""
        assert sock.readyState == "open"
        end(peer)
        await recorder.first("close")
        assert recorder.types[-2:] == ["end", "close"]


async def test_the_end_waits_behind_the_data_while_suspended(role: str) -> None:
    async with joined("plain", role, allow_half_open=True) as (sock, recorder, peer):
        sock.suspend()
        await send_all(peer, b"data")
        end(peer)
        await all_blocked()
        assert "end" not in recorder.types
        sock.resume()
        await recorder.first("end")
        assert recorder.types[-2:] == ["data", "end"]
        sock.close()


async def test_a_reset_after_the_peer_s_end_is_reported(layer: str, role: str) -> None:
    """The program may be busy with its answer for long, which nobody waits for any more."""
    async with joined(layer, role, allow_half_open=True) as (sock, recorder, peer):
        end(peer)
        await recorder.first("end")
        await anyio.sleep(1.5 * WATCH_AFTER)
        reset(peer)
        await recorder.first("close")
        assert recorder.types[-3:] == ["end", "error", "close"]
        assert recorder.events[-2].name == "NetworkInterruptError"
        assert sock.readyState == "closed"


async def test_a_reset_after_the_peer_s_end_comes_behind_that(role: str) -> None:
    async with joined("plain", role, allow_half_open=True) as (sock, recorder, peer):
        sock.suspend()
        await send_all(peer, b"data")
        end(peer)
        await all_blocked()
        reset(peer)
        await anyio.sleep(1.5 * WATCH_AFTER)
        sock.resume()
        await recorder.first("close")
        assert recorder.types[-4:] == ["data", "end", "error", "close"]


async def test_a_peer_that_went_away_after_its_end_is_noticed_by_sending(role: str) -> None:
    """One send() is enough: the peer's system answers it with a reset."""
    async with joined("plain", role, allow_half_open=True) as (sock, recorder, peer):
        end(peer)
        await recorder.first("end")
        peer.close()
        sock.send(b"x")
        await recorder.first("close")
        assert recorder.types[-2:] == ["error", "close"]


async def test_closing_in_the_moment_in_which_it_would_be_watched(listener: socket.socket) -> None:
    """Both times are over in the same turn of the event loop, as a task has blocked that for a while."""

    async def close_later(event: Any) -> None:
        await anyio.sleep(WATCH_AFTER)
        sock.closeImmediately()

    async with MozTCPSocket() as tcp:
        sock, recorder, peer = await connected(tcp, "client", listener, allow_half_open=True)
        sock.onend = lambda event: tcp.start_soon(close_later, event)
        with peer:
            end(peer)
            await recorder.first("end")
            await anyio.sleep(0.8 * WATCH_AFTER)
            time.sleep(0.4 * WATCH_AFTER)
            await recorder.first("close")


async def test_leaving_the_block_ends_a_half_open_socket(listener: socket.socket) -> None:
    with anyio.fail_after(10):
        async with TCPSocket("127.0.0.1", port_of(listener), allow_half_open=True) as sock:
            recorder = EventRecorder(sock)
            with await accept(listener) as peer:
                end(peer)
                await recorder.first("end")
    assert recorder.types[-1] == "close"


async def test_an_accepted_socket_may_be_half_open() -> None:
    """For example, a server whose client is ``nc -N``: the client gets the whole answer."""
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1", allow_half_open=True)
        question = bytearray()

        def onconnect(event: Any) -> None:
            event.socket.ondata = lambda event: question.extend(event.data)
            event.socket.onend = answer

        def answer(event: Any) -> None:
            event.target.send(bytes(question) * 1000)
            event.target.send_eof()

        server.onconnect = onconnect
        with await dial(server.localPort) as peer:
            await send_all(peer, b"q" * 5000)
            peer.shutdown(socket.SHUT_WR)
            assert await blocking(read_exactly, peer, 5_000_000) == b"q" * 5_000_000
            assert await blocking(peer.recv, 1) == b""
        server.close()


async def test_a_stream_of_a_socket_whose_peer_has_ended(listener: socket.socket) -> None:
    """``end`` has already been delivered. From then on the stream sends, and closes."""
    async with MozTCPSocket() as tcp:
        sock, recorder, peer = await connected(tcp, "client", listener, allow_half_open=True)
        with peer:
            peer.shutdown(socket.SHUT_WR)
            await recorder.first("end")
            stream = sock.stream()
            await stream.send(b"answer")
            await stream.send_eof()
            assert sock.readyState == "open"
            assert await blocking(read_all, peer) == b"answer"
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
            await stream.aclose()
