"""The poller, one task that waits for many sockets: its cost, what it reports, and how it ends."""

from __future__ import annotations

import errno
import gc
import logging
import os
import select
import socket
import sys
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from types import FrameType, SimpleNamespace
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute
from typing_extensions import TypeVarTuple, Unpack

import mozsocket
from mozsocket import MozTCPSocket, TCPServerSocket, TCPSocket, TCPSocketError, _poller
from mozsocket._poller import VARIABLE, Poller, way_to_wait
from mozsocket._readiness import ReadResult, Watched, by_tasks
from mozsocket.testing import EventRecorder

from ..certificates import server_context
from ..conftest import open_descriptors
from ..peers import (
    PEER_TIMEOUT,
    accept,
    all_blocked,
    blocking,
    dial,
    echo_to,
    port_of,
    read_all,
    read_exactly,
    reset,
    unused_port,
)

Ts = TypeVarTuple("Ts")

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not hasattr(select, "epoll"), reason="there is no poller"),
]

MOST_FRAMES = 11
"""The most stack frames of ours between epoll's report and the sending of the answer."""


class CountingEpoll:
    """An epoll that counts the calls of each method."""

    def __init__(self, counts: Counter[str]) -> None:
        self._epoll = select.epoll()
        self._counts = counts

    def fileno(self) -> int:
        return self._epoll.fileno()

    def __getattr__(self, name: str) -> Any:
        self._counts[name] += 1
        return getattr(self._epoll, name)


@pytest.fixture(autouse=True)
def by_epoll(monkeypatch: pytest.MonkeyPatch) -> None:
    """Use epoll, even if the other tests wait with tasks."""
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls of the epolls that are created in the test."""
    counts: Counter[str] = Counter()
    replace_epoll(monkeypatch, lambda: CountingEpoll(counts))
    return counts


def replace_epoll(monkeypatch: pytest.MonkeyPatch, make: Callable[[], Any]) -> None:
    """Replace epoll in the poller only, as the event loop uses it too."""
    monkeypatch.setattr(_poller, "select", SimpleNamespace(epoll=make))


class Recorder:
    """A watcher that records the reports it receives, and can react to them."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.reports: list[str] = []
        self.data = b""
        self.then: Callable[[], object] | None = None
        self.room = True

    def on_readable(self) -> ReadResult:
        self._note("readable")
        try:
            self.data += self.sock.recv(1000)
        except BlockingIOError:
            return ReadResult.NOTHING
        except OSError:
            return ReadResult.SOME
        return ReadResult.SOME

    def on_writable(self) -> bool:
        self._note("writable")
        return not self.room

    def on_hung_up(self) -> None:
        self._note("hung up")

    def on_woken(self) -> bool:
        self._note("woken")
        return False

    def on_time(self) -> None:
        self._note("time")

    def on_stopped(self) -> None:
        pass

    def on_cancelled(self) -> None:
        self._note("cancelled")

    def crashed(self, exc: BaseException, where: str, when: str = "") -> None:
        self.reports.append(f"crashed: {exc!r}")

    def spawn(self, what: str, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, None]], *args: Unpack[Ts]) -> None:
        raise AssertionError("it takes no task")

    def _note(self, what: str) -> None:
        self.reports.append(what)
        if self.then is not None:
            then, self.then = self.then, None
            then()


class Group:
    """A poller with some sockets and their peers."""

    def __init__(self, poller: Poller) -> None:
        self.poller = poller
        self.ended: list[Any] = []

    def add(self, *, reading: bool = True) -> tuple[Recorder, Any, socket.socket]:
        ours, peer = socket.socketpair()
        watcher = Recorder(ours)
        registration = self.poller.register(Watched(ours))
        if not reading:
            registration.read(False)
        registration.begin(watcher)
        self.ended.append((registration, ours, peer))
        return watcher, registration, peer


@asynccontextmanager
async def polling() -> AsyncIterator[Group]:
    async with anyio.create_task_group() as tasks:
        group = Group(Poller(tasks.start_soon, tasks.cancel_scope.cancel))
        yield group
        for registration, *socks in group.ended:
            registration.end()
            registration.detach()
            for sock in socks:
                sock.close()
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def echoing(connections: int = 1) -> AsyncIterator[list[socket.socket]]:
    """Clients of an echo server."""
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        server.onconnect = echo_to
        peers = [await dial(server.localPort) for _ in range(connections)]
        for peer in peers:
            await answered(peer)
        yield peers
        for peer in peers:
            peer.close()
        tcp.close()


async def answered(peer: socket.socket) -> None:
    peer.sendall(b"x" * 64)
    assert await blocking(read_exactly, peer, 64) == b"x" * 64


def fill(sock: socket.socket) -> None:
    """Send until the system accepts no more."""
    sock.setblocking(False)
    with suppress(BlockingIOError):
        while sock.send(bytes(65536)):
            pass


# Its cost


async def test_the_frames_of_an_echoed_message() -> None:
    calls: list[str] = []

    def count(frame: FrameType, event: str, arg: object) -> None:
        if event == "call" and os.path.dirname(mozsocket.__file__) in frame.f_code.co_filename:
            calls.append(frame.f_code.co_name)

    async with echoing() as (peer,):
        sys.setprofile(count)
        try:
            await answered(peer)
        finally:
            sys.setprofile(None)
    begin = calls.index("on_readable")
    frames = calls[begin : calls.index("_apply_changes", begin)]
    assert "send" in frames
    assert len(frames) <= MOST_FRAMES, frames


async def test_a_message_registers_nothing(counts: Counter[str]) -> None:
    async with echoing(3) as peers:
        counts.clear()
        for _ in range(10):
            for peer in peers:
                await answered(peer)
        assert set(counts) == {"poll"}


async def test_functions_take_no_task() -> None:
    async with echoing() as (peer,):
        before = len(anyio.get_running_tasks())
        async with echoing(20):
            assert len(anyio.get_running_tasks()) == before + 2  # the poller's task, and the server's
        await answered(peer)


# Sockets that a scope has opened: no task runs for them either, once they are connected.


async def test_a_client_takes_no_task_to_connect_to_this_machine(listener: socket.socket) -> None:
    """The poller connects it, and calls its handlers."""
    async with MozTCPSocket() as tcp:
        opened: list[anyio.TaskInfo] = []
        for _ in range(10):
            tcp.open("127.0.0.1", port_of(listener)).onopen = lambda event: opened.append(anyio.get_current_task())
        before = len(anyio.get_running_tasks())
        while len(opened) < 10:
            await anyio.lowlevel.checkpoint()
            assert len(anyio.get_running_tasks()) == before
        assert {task.id for task in opened} == {opened[0].id}
        tcp.cancel_scope.cancel()


async def test_a_refused_client_takes_no_task() -> None:
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", unused_port())
        recorder = EventRecorder(sock)
        before = len(anyio.get_running_tasks())
        await recorder.next("close")
        assert recorder.types == ["error", "close"]
        assert len(anyio.get_running_tasks()) <= before


async def test_many_clients_at_once_leave_turns_to_others() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener:
        async with MozTCPSocket() as tcp:
            turn, opened = 0, Counter[int]()
            for _ in range(600):
                tcp.open("127.0.0.1", port_of(listener)).onopen = lambda event: opened.update([turn])
            while opened.total() < 600:
                await anyio.lowlevel.checkpoint()
                turn += 1
            assert max(opened.values()) <= 2 * _poller.WORK_PER_TURN  # Trio has its tasks run in random order
            tcp.cancel_scope.cancel()


async def test_cancelled_when_it_was_to_wait_for_the_peer(clogged: int) -> None:
    """The poller has begun to connect, and has left the rest to a task."""
    before = open_descriptors()
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", clogged)
        while open_descriptors().keys() <= before.keys():
            await anyio.lowlevel.checkpoint()
        tcp.cancel_scope.cancel()
    assert sock.readyState == "closed"
    assert open_descriptors().keys() <= before.keys()


@pytest.mark.parametrize("closes", [False, True], ids=["opened", "closed"])
async def test_no_handler_of_a_client_runs_in_a_cancelled_scope_around(closes: bool, listener: socket.socket) -> None:
    types: list[str] = []
    with anyio.CancelScope() as around:
        async with MozTCPSocket() as tcp:
            sock = tcp.open("127.0.0.1", port_of(listener))
            sock.onopen = sock.onclose = lambda event: types.append(event.type)
            if closes:
                sock.close()
            around.cancel()
    assert types == []
    assert sock.readyState == "closed"


async def test_no_further_client_is_opened_once_a_scope_around_is_cancelled() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1000) as listener, anyio.CancelScope() as around:
        opened: list[object] = []

        def on_open(event: Any) -> None:
            opened.append(event.target)
            if len(opened) == 11:
                around.cancel()

        async with MozTCPSocket() as tcp:
            for _ in range(100):
                tcp.open("127.0.0.1", port_of(listener)).onopen = on_open
    assert len(opened) == 11


async def test_what_is_raised_while_a_client_connects_at_once_ends_it(
    listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example by the program's logging. Something else keeps the scope open meanwhile."""

    def fail(level: int) -> bool:
        raise LookupError("no such level")

    types: list[str] = []
    with pytest.raises(BaseException) as raised:  # noqa: PT011, PT012
        async with MozTCPSocket() as tcp:
            tcp.listen(0, host="127.0.0.1")
            await all_blocked()
            monkeypatch.setattr(logging.getLogger("mozsocket"), "isEnabledFor", fail)
            sock = tcp.open("127.0.0.1", port_of(listener))
            sock.onopen = sock.onclose = lambda event: types.append(event.type)
            while not types:
                await anyio.lowlevel.checkpoint()
            monkeypatch.undo()
            await anyio.sleep_forever()
    (error,) = raised.value.exceptions  # type: ignore[attr-defined]
    assert isinstance(error, LookupError)
    assert types == ["close"]


async def test_a_client_takes_a_task_to_resolve_a_name_only(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        await all_blocked()
        before = len(anyio.get_running_tasks())
        peers = []
        for _ in range(10):
            sock = tcp.open("localhost", port_of(listener))
            sock.ondata = lambda event: event.target.send(event.data)
            peers.append(await accept(listener))
            await sock.opened()
        await all_blocked()
        assert len(anyio.get_running_tasks()) == before + 1  # the poller's task
        for peer in peers:
            await answered(peer)
            peer.close()
        await all_blocked()
        assert len(anyio.get_running_tasks()) == before


async def test_the_loss_of_a_client_leaves_the_scope(listener: socket.socket) -> None:
    with pytest.raises(BaseException) as raised:  # noqa: PT011, PT012
        async with MozTCPSocket() as tcp:
            sock = tcp.open("127.0.0.1", port_of(listener))
            await sock.opened()
            reset(await accept(listener))
            await anyio.sleep_forever()
    (error,) = raised.value.exceptions  # type: ignore[attr-defined]
    assert isinstance(error, TCPSocketError)


async def test_a_lost_client_that_is_suspended_keeps_its_scope(listener: socket.socket) -> None:
    """The scope waits for it until the loss was delivered to the program."""
    types = []
    with anyio.move_on_after(PEER_TIMEOUT) as limit:
        async with MozTCPSocket() as tcp:
            sock = tcp.open("127.0.0.1", port_of(listener))
            for type_ in ("data", "error", "close"):
                sock.addEventListener(type_, lambda event: types.append(event.type))
            await sock.opened()
            peer = await accept(listener)
            sock.suspend()
            await blocking(peer.sendall, b"x")
            await all_blocked()
            reset(peer)
            await all_blocked()

            async def resume() -> None:
                await all_blocked()
                assert types == []
                sock.resume()

            tcp.start_soon(resume)
    assert not limit.cancelled_caught
    assert types == ["data", "error", "close"]


async def test_a_client_of_a_cancelled_scope_is_closed_while_the_body_still_cleans_up(listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", port_of(listener))
        await sock.opened()
        with await accept(listener) as peer:
            tcp.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                assert await blocking(peer.recv, 1) == b""
            assert sock.readyState == "closed"


@pytest.mark.parametrize("how", ["handler", "close", "lost"])
async def test_who_awaits_the_end_of_a_client_is_notified(how: str, listener: socket.socket) -> None:
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", port_of(listener))
        await sock.opened()
        peer = await accept(listener)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(reports, sock, how)
            await all_blocked()
            if how == "close":
                sock.close()
                peer.close()
            elif how == "lost":
                reset(peer)
            else:
                sock.ondata = lambda event: event.target.closeImmediately()
                await blocking(peer.sendall, b"x")
                await sock.closed()
                peer.close()


async def reports(sock: TCPSocket, how: str) -> None:
    if how == "lost":
        with pytest.raises(TCPSocketError):
            await sock.closed()
    else:
        await sock.closed()


async def test_an_asynchronous_handler_takes_its_tasks_when_it_is_called() -> None:
    async def echo(event: Any) -> None:
        event.target.send(event.data)

    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        server.onconnect = lambda event: setattr(event.socket, "ondata", echo)
        with await dial(server.localPort) as peer:
            await all_blocked()
            before = len(anyio.get_running_tasks())
            await answered(peer)
            assert len(anyio.get_running_tasks()) == before + 2
            await answered(peer)
            assert len(anyio.get_running_tasks()) == before + 2
        tcp.close()


async def test_nothing_is_done_while_nothing_happens(counts: Counter[str]) -> None:
    async with echoing(20):
        await all_blocked()
        counts.clear()
        await anyio.sleep(0.3)
        assert not counts


async def test_a_suspended_socket_costs_nothing(counts: Counter[str]) -> None:
    """This holds however much data arrives, and when its peer has gone."""
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        accepted: list[TCPSocket] = []

        def suspend(event: Any) -> None:
            accepted.append(event.socket)
            event.socket.suspend()

        server.onconnect = suspend
        with await dial(server.localPort) as peer:
            for _ in range(5):  # more than is queued, and than the system buffers
                fill(peer)
                await anyio.sleep(0.05)
            counts.clear()
            await anyio.sleep(0.2)
            assert not counts
        await anyio.sleep(0.1)
        counts.clear()
        await anyio.sleep(0.2)
        assert not counts
        tcp.cancel_scope.cancel()


async def test_a_stream_that_does_not_receive_costs_nothing(counts: Counter[str]) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        server.onconnect = lambda event: event.socket.stream() and None
        for leave in (socket.socket.close, reset):
            peer = await dial(server.localPort)
            peer.sendall(b"unread")
            await all_blocked()
            leave(peer)
            await anyio.sleep(0.1)
            counts.clear()
            await anyio.sleep(0.2)
            assert not counts
        tcp.cancel_scope.cancel()


async def test_others_run_while_many_are_busy() -> None:
    """Two sockets in this process that answer each other endlessly must let other tasks run."""
    seen = turns = 0

    def answer(event: Any) -> None:
        nonlocal seen
        seen += 1
        event.target.send(event.data)

    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        server.onconnect = lambda event: setattr(event.socket, "ondata", answer)
        for _ in range(3):
            client = tcp.open("127.0.0.1", server.localPort)
            client.ondata = answer
            client.onopen = lambda event: event.target.send(b"x")
        while seen < 10_000:
            await anyio.lowlevel.checkpoint()
            turns += 1
        tcp.cancel_scope.cancel()
    assert turns >= 10_000 / (2 * _poller.WORK_PER_TURN)


# Its reports


async def test_readable_data_is_reported_until_it_is_read() -> None:
    async with polling() as group:
        watcher, _, peer = group.add()
        peer.sendall(bytes(2500))
        await all_blocked()
        assert watcher.data == bytes(2500)
        assert set(watcher.reports) == {"readable"}


async def test_capacity_is_reported_until_there_is_enough() -> None:
    async with polling() as group:
        watcher, registration, peer = group.add()
        fill(watcher.sock)
        registration.await_room()
        await all_blocked()
        assert watcher.reports == []
        peer.setblocking(False)
        with suppress(BlockingIOError):
            while peer.recv(1 << 20):
                pass
        await all_blocked()
        assert watcher.reports == ["writable"]


async def test_writing_soon_needs_no_word_of_the_epoll() -> None:
    async with polling() as group:
        watcher, registration, _ = group.add()
        registration.write()
        registration.write()
        await all_blocked()
        assert watcher.reports == ["writable"]


async def test_a_hang_up_is_reported_where_nothing_is_read() -> None:
    async with polling() as group:
        watcher, _, peer = group.add(reading=False)
        peer.sendall(b"unread")
        await all_blocked()
        assert watcher.reports == []
        peer.close()
        await all_blocked()
        assert watcher.reports == ["hung up"]


async def test_what_came_before_nothing_is_read_any_more_is_no_hang_up() -> None:
    """Reading stops before epoll is asked, and epoll reports the hang-up afterwards."""
    async with polling() as group:
        watcher, registration, peer = group.add()

        def end_reading() -> None:
            registration.read(False)
            peer.sendall(b"x")

        watcher.then = end_reading
        registration.wake()
        await all_blocked()
        assert watcher.reports == ["woken"]
        registration.read(True)
        await all_blocked()
        assert watcher.reports == ["woken", "readable"]


async def test_a_descriptor_that_the_program_has_closed() -> None:
    """It is reported as a loss, and does not affect other sockets."""

    def close(event: Any) -> None:
        event.target.extra(SocketAttribute.raw_socket).close()
        raise ZeroDivisionError

    accepted: list[TCPSocket] = []

    def on_connect(event: Any) -> None:
        accepted.append(event.socket)
        event.socket.ondata = echo_to_sender if len(accepted) == 1 else close

    with anyio.fail_after(PEER_TIMEOUT):
        async with MozTCPSocket() as tcp:
            server = tcp.listen(0, host="127.0.0.1")
            server.onconnect = on_connect
            with await dial(server.localPort) as peer:
                await answered(peer)
                with await dial(server.localPort) as other:
                    other.sendall(b"x")
                    assert await blocking(read_all, other) == b""
                await answered(peer)
                accepted[0].extra(SocketAttribute.raw_socket).close()
                accepted[0].closeImmediately()
                with await dial(server.localPort) as other:
                    other.sendall(b"x")
                    assert await blocking(read_all, other) == b""
            tcp.close()


def echo_to_sender(event: Any) -> None:
    event.target.send(event.data)


async def test_a_descriptor_that_is_used_again_within_a_batch() -> None:
    async with polling() as group:
        first, _, first_peer = group.add()
        second, second_registration, second_peer = group.add()
        third: list[Recorder] = []

        def replace() -> None:
            """Close the other ready socket, and open a new one with the same descriptor."""
            number = second.sock.fileno()
            second_registration.end()
            second.sock.close()
            watcher, registration, _ = group.add()
            third.append(watcher)
            assert watcher.sock.fileno() == number
            registration.write()

        first.then = second.then = replace
        other = [first, second]
        if first.sock.fileno() > second.sock.fileno():
            other.reverse()
        first_peer.sendall(b"x")
        second_peer.sendall(b"x")
        await all_blocked()
        assert len(third) == 1
        assert third[0].reports == ["writable"], "what was told of the first that had the descriptor"


async def test_a_socket_that_ends_in_its_own_call() -> None:
    async with polling() as group:
        watcher, registration, peer = group.add()
        watcher.then = registration.end
        peer.sendall(bytes(5000))
        await all_blocked()
        assert watcher.reports == ["readable"]
        registration.wake()
        await all_blocked()
        assert watcher.reports == ["readable", "woken"]


async def test_a_descriptor_that_a_child_has_too() -> None:
    """A child process shares the descriptor, so epoll would keep reporting it if it were only closed."""
    async with polling() as group:
        watcher, registration, peer = group.add()
        copy = os.dup(watcher.sock.fileno())
        try:
            registration.end()
            watcher.sock.close()
            peer.sendall(b"x")
            other, _, other_peer = group.add()
            other_peer.sendall(b"y")
            await all_blocked()
            assert (watcher.reports, other.reports) == ([], ["readable"])
        finally:
            os.close(copy)


@pytest.mark.parametrize("number", ["free", "used again"])
async def test_a_descriptor_that_the_program_has_closed_and_a_child_has_too(number: str) -> None:
    """Nothing is left that it could be unregistered by; it is reported no more all the same."""
    async with polling() as group:
        watcher, registration, peer = group.add()
        other, _, other_peer = group.add()
        descriptor = watcher.sock.fileno()
        copy = os.dup(descriptor)
        try:
            watcher.sock.close()
            others = [(other, other_peer)]
            if number == "used again":
                again, _, again_peer = group.add()
                assert again.sock.fileno() == descriptor
                others.append((again, again_peer))
            registration.end()
            peer.sendall(b"x")
            for _ in range(2):  # so that the epoll is awaited in between
                for each, its_peer in others:
                    each.reports.clear()
                    its_peer.sendall(b"y")
                await all_blocked()
                assert [each.reports for each, _ in others] == [["readable"]] * len(others)
            assert "readable" not in watcher.reports
        finally:
            os.close(copy)


async def test_a_replaced_epoll_takes_no_other_descriptor(counts: Counter[str]) -> None:
    """There may be none left."""
    async with polling() as group:
        watcher, registration, _ = group.add()
        other, _, other_peer = group.add()
        await all_blocked()
        before = len(open_descriptors())
        watcher.sock.close()
        registration.end()
        other_peer.sendall(b"y")
        await all_blocked()
        assert other.reports == ["readable"]
        assert len(open_descriptors()) == before - 1
        assert counts["close"] == 1


@pytest.mark.parametrize("is_duplicated", [False, True])
async def test_another_socket_gets_the_number_of_one_that_the_program_has_closed(
    is_duplicated: bool, listener: socket.socket
) -> None:
    """The first is lost, as soon as the number is another's, and costs nothing from then on."""
    taken = []
    try:
        with anyio.fail_after(PEER_TIMEOUT):
            async with MozTCPSocket() as tcp:
                first = tcp.open("127.0.0.1", port_of(listener))
                reports = EventRecorder(first)
                with await accept(listener) as peer:
                    await first.opened()
                    raw = first.extra(SocketAttribute.raw_socket)
                    number = raw.fileno()
                    if is_duplicated:
                        taken.append(os.dup(number))
                    raw.close()
                    taken += lower_than(number)
                    second = tcp.open("127.0.0.1", port_of(listener))
                    with await accept(listener) as second_peer:
                        await reports.first("close")
                        assert second.extra(SocketAttribute.raw_socket).fileno() == number
                        assert reports.types == ["open", "error", "close"]
                        peer.sendall(b"x")
                        second_peer.sendall(b"y")
                        assert (await EventRecorder(second).first("data")).data == b"y"
                        second.closeImmediately()
    finally:
        for copy in taken:
            os.close(copy)


def lower_than(number: int) -> list[int]:
    """Take all free descriptors below one that is free, so that it is the next."""
    taken = []
    while (copy := os.dup(0)) < number:
        taken.append(copy)
    os.close(copy)
    return taken


async def test_a_duplicate_of_a_closed_descriptor_is_no_trouble_of_the_server() -> None:
    accepted: list[TCPSocket] = []

    def on_connect(event: Any) -> None:
        accepted.append(event.socket)
        event.socket.ondata = echo_to_sender

    with anyio.fail_after(PEER_TIMEOUT):
        async with TCPServerSocket(0, host="127.0.0.1") as server:
            server.onconnect = on_connect
            with await dial(server.localPort) as peer, await dial(server.localPort) as other:
                await answered(peer)
                await answered(other)
                raw = next(sock for sock in accepted if sock.port == peer.getsockname()[1])
                copy = os.dup(raw.extra(SocketAttribute.raw_socket).fileno())
                try:
                    raw.extra(SocketAttribute.raw_socket).close()
                    raw.closeImmediately()
                    peer.sendall(b"x")
                    await answered(other)
                    await answered(other)
                finally:
                    os.close(copy)
            server.close()


async def test_times() -> None:
    async with polling() as group:
        order: list[int] = []
        now = anyio.current_time()
        registrations = []
        for number, delay in enumerate((0.09, 0.03, 0.06, 0.05, 0.02)):
            watcher, registration, _ = group.add()
            watcher.then = lambda number=number: order.append(number)
            registration.limit(now + delay)
            registrations.append(registration)
        registrations[3].limit(float("inf"))
        registrations[4].limit(now + 0.12)
        await anyio.sleep(0.2)
        assert order == [1, 2, 0, 4]


async def test_an_earlier_time_wakes_who_waits_for_a_later_one() -> None:
    async with polling() as group:
        later, later_registration, _ = group.add()
        earlier, earlier_registration, _ = group.add()
        later_registration.limit(anyio.current_time() + 1000)
        await all_blocked()
        earlier_registration.limit(anyio.current_time() + 0.02)
        reports = anyio.Event()
        earlier.then = reports.set
        with anyio.fail_after(PEER_TIMEOUT):
            await reports.wait()
        assert (earlier.reports, later.reports) == (["time"], [])


async def test_times_that_matter_no_more_are_forgotten() -> None:
    async with polling() as group:
        for _ in range(1000):
            ours, peer = socket.socketpair()
            registration = group.poller.register(Watched(ours))
            registration.begin(Recorder(ours))
            registration.limit(anyio.current_time() + 1000)
            registration.end()
            registration.detach()
            ours.close()
            peer.close()
        assert len(group.poller._timers) < 200


async def test_what_a_watcher_raises_is_its_own_trouble() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    async with polling() as group:
        failing, registration, failing_peer = group.add()
        other, _, other_peer = group.add()
        for then in (lambda: failing_peer.sendall(b"x"), registration.wake, lambda: registration.limit(0)):
            failing.then = fail
            failing.reports.clear()
            then()
            await all_blocked()
            assert failing.reports[1] == "crashed: ZeroDivisionError()"
        other_peer.sendall(b"x")
        await all_blocked()
        assert other.reports == ["readable"]


async def test_an_upgrade_that_fails_behind_what_was_not_sent(counts: Counter[str]) -> None:
    """The socket does not ask for writability over and over."""
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        made: list[TCPSocket] = []
        server.onconnect = lambda event: made.append(event.socket)
        with await dial(server.localPort) as peer:
            await all_blocked()
            made[0].send(bytes(10_000_000))
            await all_blocked()
            recorder = EventRecorder(made[0])
            made[0].upgradeToSecure(ssl_context=server_context(), leftover=b"no TLS at all")
            await all_blocked()
            await blocking(peer.recv, 5_000_000)
            counts.clear()
            await recorder.first("close")
            assert recorder.types == ["error", "close"]
            assert counts["poll"] < 50
        tcp.close()


async def test_the_system_has_no_room_for_an_epoll(monkeypatch: pytest.MonkeyPatch, listener: socket.socket) -> None:
    def fail() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    replace_epoll(monkeypatch, fail)
    async with MozTCPSocket() as tcp:
        recorder = EventRecorder(tcp.open("127.0.0.1", port_of(listener)))
        await recorder.first("close")
        assert recorder.types == ["error", "close"]
        assert recorder.events[0].errorCode == errno.EMFILE
        server = tcp.listen(0)
        with pytest.raises(TCPSocketError, match="Too many open files"):
            await server.closed()


async def test_an_owner_that_has_ended_is_gone_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        scope = await referred_after_use()
        for _ in range(3):  # until its last tasks have ended
            await anyio.lowlevel.checkpoint()
        assert scope() is None
    finally:
        gc.enable()


async def referred_after_use() -> weakref.ref[MozTCPSocket]:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        server.onconnect = lambda event: setattr(event.socket, "ondata", lambda event: event.target.close())
        with await dial(server.localPort) as peer:
            peer.sendall(b"x")
            assert await blocking(read_all, peer) == b""
        server.close()
        return weakref.ref(tcp)


# The end of the poller


async def test_it_ends_with_its_last_socket_and_begins_again() -> None:
    async with anyio.create_task_group() as tasks:
        poller = Poller(tasks.start_soon, tasks.cancel_scope.cancel)
        before = len(anyio.get_running_tasks())
        for _ in range(3):
            group = Group(poller)
            watcher, registration, peer = group.add()
            peer.sendall(b"x")
            await all_blocked()
            assert watcher.reports == ["readable"]
            assert len(anyio.get_running_tasks()) == before + 1
            registration.end()
            registration.wake()
            await all_blocked()
            assert watcher.reports == ["readable", "woken"]
            assert len(anyio.get_running_tasks()) == before
            watcher.sock.close()
            peer.close()


@pytest.mark.parametrize("owner", [MozTCPSocket, lambda: TCPServerSocket(0, host="127.0.0.1")], ids=["scope", "server"])
async def test_one_that_fails_takes_its_owner_down(owner: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(CountingEpoll):
        def poll(self, timeout: float, most: int) -> list[tuple[int, int]]:
            if fails:
                raise OSError("the epoll fails")
            return self._epoll.poll(timeout, most)

    fails: list[bool] = []
    recorders: list[EventRecorder] = []

    def note(event: Any) -> None:
        recorders.append(EventRecorder(event.socket))
        echo_to(event)

    replace_epoll(monkeypatch, lambda: Failing(Counter()))
    with pytest.raises(BaseException) as caught:  # noqa: PT011, PT012
        async with owner() as entered:
            server = entered.listen(0, host="127.0.0.1") if isinstance(entered, MozTCPSocket) else entered
            server.onconnect = note
            with await dial(server.localPort) as peer:
                await answered(peer)
                fails.append(True)
                peer.sendall(b"x")
                assert await blocking(read_all, peer) == b""
                await anyio.sleep_forever()
    assert "the epoll fails" in repr(caught.value)
    (recorder,) = recorders
    assert recorder.types == ["data"]


async def test_one_whose_task_alone_is_cancelled_takes_its_scope_down(anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("Trio cannot cancel a single task")
    import asyncio

    with anyio.fail_after(PEER_TIMEOUT):
        async with MozTCPSocket() as tcp:
            server = tcp.listen(0, host="127.0.0.1")
            server.onconnect = echo_to
            peer = await dial(server.localPort)
            await answered(peer)
            (task,) = (task for task in asyncio.all_tasks() if task.get_name().startswith("poller"))
            task.cancel()
            await anyio.sleep_forever()
    with peer:
        assert await blocking(read_all, peer) == b""


# The choice between epoll and tasks


async def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    def way() -> object:
        return way_to_wait(print, print)

    assert isinstance(way(), Poller)
    monkeypatch.setenv(VARIABLE, "epoll")
    assert isinstance(way(), Poller)
    monkeypatch.setenv(VARIABLE, "tasks")
    assert way() is by_tasks
    async with echoing(2) as peers:
        for peer in peers:
            await answered(peer)
    monkeypatch.setenv(VARIABLE, "kqueue")
    with pytest.raises(ValueError, match=r"MOZSOCKET_WAITING is 'kqueue': it must be epoll, .* or tasks"):
        way()
    for block in (MozTCPSocket(), TCPServerSocket(0, host="127.0.0.1"), TCPSocket("127.0.0.1", 80)):
        with anyio.fail_after(5), pytest.raises(ValueError, match="kqueue"):
            async with block:
                pass


async def test_where_there_is_no_epoll(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_poller, "select", SimpleNamespace())
    async with echoing(2) as peers:
        for peer in peers:
            await answered(peer)
