"""Bad networks between two network namespaces: packets are lost, delayed, reordered and duplicated, or all dropped.

Packets pass through the test, by two TUN devices, so the kernel does not need netem. This requires root; otherwise the
tests are skipped.
"""

from __future__ import annotations

import fcntl
import hashlib
import heapq
import os
import random
import re
import select
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..certificates import AUTHORITY, certificate

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="namespaces are Linux's"),
    pytest.mark.timeout(120),
]

TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
ADDRESSES = "10.213.77.1", "10.213.77.2"
LIMIT = 60  # seconds
SIZE = 300_000


class BadNetwork:
    """Two namespaces and the network between them.

    :ivar namespaces: their names
    :ivar is_cut: whether all packets are dropped
    """

    LOSS, DOUBLING = 0.02, 0.01
    DELAY = 0.002, 0.012  # seconds; the delay varies, so packets overtake each other

    def __init__(self) -> None:
        self.namespaces = tuple(f"mozsocket-{os.getpid()}-{side}" for side in "ab")
        self.is_cut = False
        self._random = random.Random(77)
        self._ended = False
        self._devices: list[int] = []
        self._resources = ExitStack()

    def __enter__(self) -> BadNetwork:
        with self._resources:  # so that everything is removed if the setup fails
            for number in range(2):
                self._build(number)
            carrier = threading.Thread(target=self._carry)
            carrier.start()
            self._resources.callback(carrier.join)
            self._resources.callback(setattr, self, "_ended", True)
            self._resources = self._resources.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._resources.close()

    def _build(self, number: int) -> None:
        namespace, name = self.namespaces[number], f"moz{os.getpid() % 100_000}{'ab'[number]}"
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        self._resources.callback(os.close, device)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TUN | IFF_NO_PI))
        ip("netns", "add", namespace)
        self._resources.callback(ip, "netns", "del", namespace)
        ip("link", "set", name, "netns", namespace)
        ip("-n", namespace, "addr", "add", f"{ADDRESSES[number]}/24", "dev", name)
        ip("-n", namespace, "link", "set", name, "up")
        self._devices.append(device)

    def _carry(self) -> None:
        waiting: list[tuple[float, int, int, bytes]] = []  # when, order, destination, packet
        count = 0
        while not self._ended:
            readable, _, _ = select.select(self._devices, [], [], 0.001 if waiting else 0.05)
            for device in readable:
                packet = os.read(device, 65_536)
                other = self._devices[1 - self._devices.index(device)]
                for _ in range(self._copies()):
                    count += 1
                    heapq.heappush(
                        waiting, (time.monotonic() + self._random.uniform(*self.DELAY), count, other, packet)
                    )
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, other, packet = heapq.heappop(waiting)
                os.write(other, packet)

    def _copies(self) -> int:
        if self.is_cut or self._random.random() < self.LOSS:
            return 0
        return 2 if self._random.random() < self.DOUBLING else 1

    @contextmanager
    def runs(self, side: int, *command: object, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """A Python process in one of the namespaces."""
        arguments = ["ip", "netns", "exec", self.namespaces[side], sys.executable, *map(str, command)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(arguments, **{**pipes, **options}) as process:
            try:
                yield process
            finally:
                process.kill()


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def network() -> Iterator[BadNetwork]:
    if shutil.which("ip") is None:
        pytest.skip("no `ip` (iproute2)")
    with ExitStack() as resources:
        try:
            built = resources.enter_context(BadNetwork())
        except (OSError, subprocess.CalledProcessError) as exc:
            pytest.skip(f"no namespaces, or no TUN devices, may be made: {exc}")
        yield built


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("network")
    AUTHORITY.cert_pem.write_to_path(folder / "ca.pem")
    certificate(*ADDRESSES).private_key_and_cert_chain_pem.write_to_path(folder / "server.pem")
    (folder / "data").write_bytes(random.Random(7).randbytes(SIZE))
    return folder


PEERS = """
import hashlib, socket, ssl, sys, threading
role, host, port, path, tls = sys.argv[1:6]

def secured(sock):
    if tls != "True":
        return sock
    if role == "client":
        return ssl.create_default_context(cafile=path + "/ca.pem").wrap_socket(sock, server_hostname=host)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(path + "/server.pem")
    return context.wrap_socket(sock, server_side=True)

def received(sock):
    digest, size = hashlib.sha256(), 0
    while data := sock.recv(65536):
        digest.update(data)
        size += len(data)
        if role == "client" and size == length:
            break
    return digest.hexdigest()

data = open(path + "/data", "rb").read()
length = len(data)
if role == "client":
    with secured(socket.create_connection((host, int(port)), 60)) as sock:
        if tls != "True":
            threading.Thread(target=sock.sendall, args=(data,)).start()
            print(received(sock))
        else:  # an SSLSocket bears one thread
            digest = hashlib.sha256()
            for begin in range(0, length, 50000):
                chunk = data[begin:begin + 50000]
                sock.sendall(chunk)
                while chunk:
                    part = sock.recv(len(chunk))
                    digest.update(part)
                    chunk = chunk[len(part):]
            print(digest.hexdigest())
else:
    with socket.create_server((host, 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        with secured(listener.accept()[0]) as sock:
            print(received(sock))
            if tls == "True":
                sock.unwrap()  # else its end would be no proof that this is all
"""


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_server_behind_a_bad_network(network: BadNetwork, files: Path, backend: str, tls: bool) -> None:
    options = ["--tls", "--certfile", files / "server.pem"] if tls else []
    listen = ["listen", 0, "--host", ADDRESSES[0], "--echo", "--backend", backend, *options]
    with network.runs(0, "-m", "mozsocket", *listen) as server:
        assert server.stderr is not None
        found = re.fullmatch(r"listening on \S+ port (\d+)\n", server.stderr.readline())
        assert found
        with network.runs(1, "-c", PEERS, "client", ADDRESSES[0], found[1], files, tls) as client:
            output, errors = client.communicate(timeout=LIMIT)
    assert (output.strip(), errors) == (digest_of(files), "")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_client_behind_a_bad_network(network: BadNetwork, files: Path, backend: str, tls: bool) -> None:
    options = ["--tls", "--cafile", files / "ca.pem"] if tls else []
    with network.runs(1, "-c", PEERS, "server", ADDRESSES[1], 0, files, tls) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        connect = ["connect", ADDRESSES[1], port, "--backend", backend, *options]
        with (
            (files / "data").open("rb") as data,
            network.runs(0, "-m", "mozsocket", *connect, stdin=data) as client,
        ):
            assert client.communicate(timeout=LIMIT) == ("", "")
            assert client.returncode == 0
        output, errors = server.communicate(timeout=LIMIT)
    assert (output.strip(), errors) == (digest_of(files), "")


def digest_of(files: Path) -> str:
    return hashlib.sha256((files / "data").read_bytes()).hexdigest()


HALF_OPEN = """
import socket, sys
import anyio
from anyio.abc import SocketAttribute
from mozsocket import TCPSocket, TCPSocketError

async def main():
    async with TCPSocket(sys.argv[1], int(sys.argv[2])) as tcp:
        await tcp.opened()
        raw = tcp.extra(SocketAttribute.raw_socket)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
        print("open", flush=True)
        await anyio.to_thread.run_sync(sys.stdin.readline)
        tcp.send(b"is anybody there?")
        try:
            await tcp.closed()
        except TCPSocketError as error:
            print(error.name, flush=True)

backend, uvloop = sys.argv[3], sys.argv[3] == "uvloop"
anyio.run(main, backend="asyncio" if uvloop else backend, backend_options={"use_uvloop": True} if uvloop else {})
"""


def test_a_connection_that_is_half_open(network: BadNetwork, files: Path, backend: str) -> None:
    """The peer has vanished: data is never acknowledged, and the system's own limit ends the connection."""
    with network.runs(1, "-c", PEERS, "server", ADDRESSES[1], 0, files, False) as server:
        assert server.stdout is not None
        port = server.stdout.readline().strip()
        with network.runs(0, "-c", HALF_OPEN, ADDRESSES[1], port, backend) as client:
            assert client.stdout is not None
            assert client.stdin is not None
            assert client.stdout.readline() == "open\n"
            network.is_cut = True
            try:
                client.stdin.write("\n")
                client.stdin.flush()
                assert client.stdout.readline() == "NetworkTimeoutError\n"
                assert client.wait(LIMIT) == 0
            finally:
                network.is_cut = False


def test_a_host_that_does_not_answer(network: BadNetwork, backend: str) -> None:
    network.is_cut = True
    try:
        connect = ["connect", ADDRESSES[1], 7, "--connect-timeout", 0.5, "--backend", backend]
        with network.runs(0, "-m", "mozsocket", *connect) as client:
            _, errors = client.communicate(timeout=LIMIT)
    finally:
        network.is_cut = False
    assert client.returncode == 1
    assert "not connected within 0.5 seconds" in errors


# Link-local addresses, which need a zone to be connected to


LINK_LOCAL = """
import os, sys
import anyio
from anyio.abc import SocketAttribute
from mozsocket import MozTCPSocket

backend, interface = sys.argv[1:]
address = "fe80::77%" + interface

async def main():
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host=address)

        def onconnect(event):
            peer = event.socket
            assert peer.host == address, peer.host
            assert f"->[{address}]:{peer.port} open>" in repr(peer), repr(peer)
            assert peer.extra(SocketAttribute.remote_address) == (address, peer.port)
            assert peer.extra(SocketAttribute.local_address) == (address, server.localPort)
            back = tcp.open(peer.host, server.localPort)  # what is shown can be connected to
            back.onopen = lambda event: print("reached")
            server.onconnect = lambda event: tcp.close()

        server.onconnect = onconnect
        tcp.open(address, server.localPort)

options = {"use_uvloop": True} if backend == "uvloop" else {}
anyio.run(main, backend="trio" if backend == "trio" else "asyncio", backend_options=options)
"""


@pytest.fixture
def interface() -> Iterator[tuple[str, str]]:
    """A namespace, and an interface in it with a link-local address. Its name contains a dot, as a VLAN's does."""
    if shutil.which("ip") is None:
        pytest.skip("no `ip` (iproute2)")
    namespace, name = f"mozsocket-{os.getpid()}-local", "moz.7"
    try:
        ip("netns", "add", namespace)
    except subprocess.CalledProcessError as exc:
        pytest.skip(f"no namespace may be made: {exc}")
    try:
        try:
            ip("-n", namespace, "link", "add", name, "type", "veth", "peer", "name", "other")
        except subprocess.CalledProcessError as exc:
            pytest.skip(f"no interface may be made: {exc}")
        ip("-n", namespace, "link", "set", name, "up")
        ip("-n", namespace, "link", "set", "lo", "up")
        ip("-n", namespace, "addr", "add", "fe80::77/64", "dev", name, "nodad")
        yield namespace, name
    finally:
        ip("netns", "del", namespace)


def test_a_link_local_address_is_shown_with_its_zone(interface: tuple[str, str], backend: str) -> None:
    namespace, name = interface
    command = ["ip", "netns", "exec", namespace, sys.executable, "-c", LINK_LOCAL, backend, name]
    result = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT)
    assert (result.stdout, result.stderr) == ("reached\n", "")
