"""Many connections at once, many in sequence, and more data than memory may hold.

The peers are separate processes that use only the standard library, so that the memory measured is the package's.
With ``--full-load`` there are 10,000 connections at once, 100,000 in sequence, and 4 GiB, which takes some minutes on
each event loop.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest

from mozsocket import MozTCPSocket, TCPSocket

from ..footprint import Footprint
from ..peers import PEER_TIMEOUT, all_blocked, blocking, echo_to

resource = pytest.importorskip("resource", reason="limits of descriptors are POSIX's")

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(900)]

SPARE = 200  # other descriptors that a process needs
GROWTH = 12_000_000  # bytes of memory that caches and the allocator may add
CHUNK = 1 << 16

PEERS = """
import hashlib, resource, selectors, socket, sys

resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
count = int(sys.argv[2])

def told():
    return sys.stdin.readline()

def tell(what):
    print(what, flush=True)

def message(number):
    return b"%08d" % number * 8

def receive(sock, size):
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        assert part, "the end"
        data += part
    return data

def listening():
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    tell(listener.getsockname()[1])
    return listener

def crowd_of_clients():  # count of them are open at once, then all send, then all check what comes back
    port = int(told())
    crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    for number, sock in enumerate(crowd):
        sock.sendall(message(number))
    for number, sock in enumerate(crowd):
        assert receive(sock, 64) == message(number), number
    for sock in crowd:
        sock.close()
    tell("done")

def crowd_of_servers():  # echo to count connections that are open at once
    listener = listening()
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    ended = 0
    while ended < count:
        for key, _ in selector.select():
            if key.fileobj is listener:
                selector.register(listener.accept()[0], selectors.EVENT_READ)
            elif data := key.fileobj.recv(65536):
                key.fileobj.sendall(data)
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()
                ended += 1
    tell("done")

def short_clients():  # one after another
    port = int(told())
    while batch := int(told() or 0):
        for number in range(batch):
            with socket.create_connection(("127.0.0.1", port)) as sock:
                sock.sendall(message(number))
                assert receive(sock, 64) == message(number), number
        tell("done")

def short_servers():
    listener = listening()
    for _ in range(count):
        with listener.accept()[0] as sock:
            while data := sock.recv(65536):
                sock.sendall(data)
    tell("done")

pattern = bytes(range(256)) * 4097
block = pattern[:-256]

def sender():  # of count bytes
    listener = listening()
    with listener.accept()[0] as sock:
        for _ in range(count // len(block)):
            sock.sendall(block)

def receiver():  # of count bytes; it begins when it is told to
    listener = listening()
    with listener.accept()[0] as sock:
        told()
        received = 0
        buffer = memoryview(bytearray(len(block)))
        while size := sock.recv_into(buffer):
            begin = received % 256
            assert buffer[:size] == pattern[begin:begin + size]
            received += size
    tell(received)

globals()[sys.argv[1]]()
"""


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether to run at full size."""
    return bool(request.config.getoption("full_load"))


@pytest.fixture(autouse=True)
def as_many_descriptors_as_allowed() -> Any:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Peer:
    """A peer process that uses only the standard library."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process: Any = process

    async def hears(self, what: object) -> None:
        await blocking(self._process.stdin.write, f"{what}\n")
        await blocking(self._process.stdin.flush)

    async def says(self) -> str:
        return str(await blocking(self._process.stdout.readline)).strip()


@asynccontextmanager
async def peer(role: str, count: int) -> AsyncIterator[Peer]:
    command = [sys.executable, "-c", PEERS, role, str(count)]
    with await blocking(
        lambda: subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    ) as process:
        try:
            yield Peer(process)
            assert process.stdin is not None
            process.stdin.close()
            await blocking(process.wait, PEER_TIMEOUT)
        finally:
            process.kill()  # if it is still running, the test has failed


async def test_many_at_once(full: bool, role: str, as_many_descriptors_as_allowed: int) -> None:
    count = 10_000 if full else 1_000
    if as_many_descriptors_as_allowed < count + SPARE:
        pytest.skip(f"the limit of descriptors is too low: {as_many_descriptors_as_allowed}")
    async with MozTCPSocket() as tcp:
        if role == "server":
            server = tcp.listen(0, host="127.0.0.1")
            server.onconnect = echo_to
            async with peer("crowd_of_clients", count) as crowd:
                await crowd.hears(server.localPort)
                assert await crowd.says() == "done"
            server.close()
        else:
            async with peer("crowd_of_servers", count) as crowd:
                port = int(await crowd.says())
                await open_crowd(tcp, port, count)
                assert await crowd.says() == "done"


async def open_crowd(tcp: MozTCPSocket, port: int, count: int) -> None:
    """Open ``count`` connections, send different data on each once all are open, and close each when it is echoed."""
    received = [b""] * count
    crowd: list[TCPSocket] = []

    def on_data(number: int) -> Callable[[Any], None]:
        def handler(event: Any) -> None:
            received[number] += event.data
            if len(received[number]) == 64:
                event.target.close()

        return handler

    for number in range(count):
        crowd.append(tcp.open("127.0.0.1", port))
        crowd[-1].ondata = on_data(number)
        if number % 100 == 99:  # otherwise the port's backlog overflows
            await crowd[-1].opened()
    for socket in crowd:
        await socket.opened()
    for number, socket in enumerate(crowd):
        socket.send(b"%08d" % number * 8)
    for socket in crowd:
        await socket.closed()
    assert received == [b"%08d" % number * 8 for number in range(count)]


async def test_many_after_another(full: bool, role: str) -> None:
    count = 100_000 if full else 500
    warm_up = count // 5
    async with MozTCPSocket() as tcp:
        if role == "server":
            server = tcp.listen(0, host="127.0.0.1")
            server.onconnect = echo_to
            async with peer("short_clients", 0) as clients:
                await clients.hears(server.localPort)
                footprints = []
                for batch in (warm_up, count - warm_up):
                    await clients.hears(batch)
                    assert await clients.says() == "done"
                    await all_blocked()
                    footprints.append(Footprint())
            server.close()
        else:
            async with peer("short_servers", count) as servers:
                port = int(await servers.says())
                footprints = []
                for batch in (warm_up, count - warm_up):
                    for number in range(batch):
                        await exchange(tcp, port, b"%08d" % number * 8)
                    footprints.append(Footprint())
                assert await servers.says() == "done"
        before, after = footprints
        assert after.descriptors <= before.descriptors
        assert after.tasks <= before.tasks
        assert after.memory <= before.memory + GROWTH


async def exchange(tcp: MozTCPSocket, port: int, message: bytes) -> None:
    received = b""

    def on_data(event: Any) -> None:
        nonlocal received
        received += event.data
        if len(received) == len(message):
            event.target.close()

    socket = tcp.open("127.0.0.1", port)
    socket.onopen = lambda event: socket.send(message)
    socket.ondata = on_data
    await socket.closed()
    assert received == message


async def test_a_suspended_receiver_of_much(full: bool) -> None:
    size = 4 << 30 if full else 64 << 20
    pattern = bytes(range(256)) * 4097
    received = 0

    def on_data(event: Any) -> None:
        nonlocal received
        begin = received % 256
        assert event.data == pattern[begin : begin + len(event.data)]
        received += len(event.data)

    async with peer("sender", size) as sender, TCPSocket("127.0.0.1", int(await sender.says())) as socket:
        socket.ondata = on_data
        await socket.opened()
        before = Footprint()
        for _ in range(10):
            socket.suspend()
            held = received
            await anyio.sleep(0.05)
            assert received == held
            assert Footprint().memory <= before.memory + GROWTH
            socket.resume()
            await anyio.sleep(0.05)
        await socket.closed()
        assert Footprint().memory <= before.memory + GROWTH
    assert received == size


async def test_a_sender_of_much_to_one_that_does_not_read(full: bool) -> None:
    size = 4 << 30 if full else 64 << 20
    block = bytes(range(256)) * (CHUNK // 256)
    sent = 0
    most = 0

    def fill() -> None:
        nonlocal sent, most
        while sent < size:
            sent += len(block)
            has_room = socket.send(block)
            most = max(most, socket.bufferedAmount)
            if not has_room:
                return
        socket.close()

    async with peer("receiver", size) as receiver, TCPSocket("127.0.0.1", int(await receiver.says())) as socket:
        await socket.opened()
        before = Footprint()
        socket.ondrain = lambda event: fill()
        fill()
        await all_blocked()
        await anyio.sleep(0.1)
        held = sent
        await anyio.sleep(0.1)
        assert 0 < sent == held < size  # sending waits
        assert Footprint().memory <= before.memory + GROWTH
        await receiver.hears("go")
        await socket.closed()
        assert Footprint().memory <= before.memory + GROWTH
        assert await receiver.says() == str(size)
    assert most <= 2 * CHUNK
