"""mozsocket with other software: libraries that use AnyIO's streams, libraries without I/O, servers and clients."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import textwrap
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import anyio
import h11
import httpcore
import pytest
import wsproto
import wsproto.events
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSAttribute

from mozsocket import MozTCPSocket, TCPSocket

from ..certificates import AUTHORITY, client_context, server_context
from ..peers import read_all
from ..processes import program
from ..services import WebServer, haproxy, nginx

PAGE = bytes(range(256)) * 20_000  # 5 MB


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    with nginx() as server:
        (server.root / "page").write_bytes(PAGE)
        yield server


def tls_of(scheme: str) -> dict[str, Any]:
    """The TLS options of a server, for a URL scheme."""
    return {"useSecureTransport": True, "ssl_context": server_context()} if scheme == "https" else {}


# httpcore over our streams


class Stream(httpcore.AsyncNetworkStream):
    """An adapter from our stream to httpcore's interface."""

    def __init__(self, sock: TCPSocket) -> None:
        self.sock = sock
        self.stream: ByteStream = sock.stream()

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with anyio.fail_after(timeout):
            try:
                return await self.stream.receive(max_bytes)
            except anyio.EndOfStream:
                return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with anyio.fail_after(timeout):
            await self.stream.send(buffer)

    async def aclose(self) -> None:
        await self.stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        with anyio.fail_after(timeout):
            self.sock.upgradeToSecure(ssl_context=ssl_context, server_hostname=server_hostname)
            await self.sock.secured()
        return self

    def get_extra_info(self, info: str) -> Any:
        attributes = {"ssl_object": TLSAttribute.ssl_object, "socket": SocketAttribute.raw_socket}
        return self.stream.extra(attributes[info], None) if info in attributes else None


class Backend(httpcore.AsyncNetworkBackend):
    """A backend with which httpcore connects by mozsocket."""

    def __init__(self, tcp: MozTCPSocket) -> None:
        self.tcp = tcp
        self.connections = 0

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.connections += 1
        sock = self.tcp.open(host, port, connect_timeout=timeout, local_host=local_address)
        await sock.opened()
        return Stream(sock)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_requests_of_httpcore(scheme: str, web: WebServer) -> None:
    """All requests use one connection, which is kept alive."""
    async with MozTCPSocket() as tcp:
        backend = Backend(tcp)
        async with httpcore.AsyncConnectionPool(ssl_context=client_context(), network_backend=backend) as pool:
            port = web.port if scheme == "http" else web.tls_port
            for _ in range(3):
                response = await pool.request("GET", f"{scheme}://localhost:{port}/page")
                assert (response.status, response.content) == (200, PAGE)
            assert (await pool.request("GET", f"{scheme}://localhost:{port}/none")).status == 404
        assert backend.connections == 1


class Endless:
    """The endless content of a request. It is not a generator, as httpcore would leave closing that to the garbage
    collector.
    """

    def __aiter__(self) -> Endless:
        return self

    async def __anext__(self) -> bytes:
        return PAGE


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_a_request_of_httpcore_to_a_server_that_does_not_read(scheme: str) -> None:
    """The request is cancelled, and httpcore closes the connection in a shielded scope."""
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1", **tls_of(scheme))
        server.onconnect = lambda event: event.socket.suspend()
        async with httpcore.AsyncConnectionPool(ssl_context=client_context(), network_backend=Backend(tcp)) as pool:
            with anyio.fail_after(20), pytest.raises(TimeoutError):
                await pool.request(
                    "POST",
                    f"{scheme}://localhost:{server.localPort}/",
                    headers={"Transfer-Encoding": "chunked"},
                    content=Endless(),
                    extensions={"timeout": {"write": 0.1}},
                )
        tcp.cancel_scope.cancel()


# h11 and wsproto, which do no I/O themselves, used with handlers and with the stream


@pytest.mark.anyio
async def test_keep_alive_requests_of_h11_by_handlers(web: WebServer) -> None:
    responses: list[bytes] = []
    async with MozTCPSocket() as tcp:
        sock = tcp.open("127.0.0.1", web.port)
        http = h11.Connection(h11.CLIENT)

        def ask(event: Any = None) -> None:
            sock.send(http.send(h11.Request(method="GET", target="/page", headers=[("Host", "localhost")])) or b"")
            sock.send(http.send(h11.EndOfMessage()) or b"")
            responses.append(b"")

        def ondata(event: Any) -> None:
            http.receive_data(event.data)
            while (found := http.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(found, h11.Data):
                    responses[-1] += found.data
                elif isinstance(found, h11.EndOfMessage) and len(responses) < 3:
                    http.start_next_cycle()
                    ask()
                elif isinstance(found, h11.EndOfMessage):
                    sock.close()
                    return

        sock.onopen = ask
        sock.ondata = ondata
    assert responses == [PAGE] * 3


class WebSocketEcho:
    """A WebSocket server with handlers."""

    def __init__(self, sock: TCPSocket) -> None:
        self.sock = sock
        self.websocket = wsproto.WSConnection(wsproto.ConnectionType.SERVER)

    def __call__(self, event: Any) -> None:
        self.websocket.receive_data(event.data)
        for found in self.websocket.events():
            if isinstance(found, wsproto.events.Request):
                self.sock.send(self.websocket.send(wsproto.events.AcceptConnection()))
            elif isinstance(found, wsproto.events.BytesMessage):
                answer = wsproto.events.BytesMessage(found.data, message_finished=found.message_finished)
                self.sock.send(self.websocket.send(answer))
            elif isinstance(found, wsproto.events.CloseConnection):
                self.sock.send(self.websocket.send(found.response()))
                self.sock.close()


class WebSocketClient:
    """A WebSocket client with a stream."""

    def __init__(self, stream: ByteStream) -> None:
        self.stream = stream
        self.websocket = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)

    async def send(self, event: wsproto.events.Event) -> None:
        await self.stream.send(self.websocket.send(event))

    async def receive(self) -> list[wsproto.events.Event]:
        self.websocket.receive_data(await self.stream.receive())
        return list(self.websocket.events())

    async def receive_message(self) -> bytes:
        message = b""
        while True:
            for event in await self.receive():
                assert isinstance(event, wsproto.events.BytesMessage)
                message += event.data
                if event.message_finished:
                    return message


@pytest.mark.anyio
async def test_wsproto_on_both_ends() -> None:
    def onconnect(event: Any) -> None:
        event.socket.ondata = WebSocketEcho(event.socket)

    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        server.onconnect = onconnect
        async with tcp.open("127.0.0.1", server.localPort).stream() as stream:
            client = WebSocketClient(stream)
            await client.send(wsproto.events.Request(host="localhost", target="/"))
            assert [type(event) for event in await client.receive()] == [wsproto.events.AcceptConnection]
            for size in (1, 60_000, 1_000_000):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client.send, wsproto.events.BytesMessage(PAGE[:size]))
                    assert await client.receive_message() == PAGE[:size]
            await client.send(wsproto.events.CloseConnection(1000))
            assert [type(event) for event in await client.receive()] == [wsproto.events.CloseConnection]
        server.close()


# Our clients


@pytest.mark.anyio
@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_curl_is_served(scheme: str, tmp_path: Any) -> None:

    def onconnect(event: Any) -> None:
        http = h11.Connection(h11.SERVER)

        def ondata(event: Any) -> None:
            http.receive_data(event.data)
            while (found := http.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
                if isinstance(found, h11.EndOfMessage):
                    head = h11.Response(status_code=200, headers=[("Content-Length", str(len(PAGE)))])
                    for part in (head, h11.Data(data=PAGE), h11.EndOfMessage()):
                        event.target.send(http.send(part) or b"")
                    http.start_next_cycle()

        event.socket.ondata = ondata

    curl = program("curl")
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1", **tls_of(scheme))
        server.onconnect = onconnect
        url = f"{scheme}://localhost:{server.localPort}/"
        options = "-sS4", "--noproxy", "*", "--cacert", tmp_path / "ca.pem"
        result = await anyio.run_process([curl, *options, url, url, url])
        assert result.stdout == PAGE * 3
        server.close()


# Several processes that share a port, behind a load balancer

WORKER = """
    import os, sys, anyio
    from mozsocket import MozTCPSocket

    async def main():
        async with MozTCPSocket() as tcp:
            server = tcp.listen(int(sys.argv[2]), host="127.0.0.1", reuse_port=True, proxy_protocol=True)

            def onconnect(event):
                socket = event.socket
                socket.send(b"%d %s %d" % (os.getpid(), socket.host.encode(), socket.port))
                socket.close()

            server.onconnect = onconnect
            print(server.localPort, flush=True)
            await anyio.to_thread.run_sync(sys.stdin.read)  # until the test ends
            server.close()

    name, *rest = sys.argv[1].split("+")
    anyio.run(main, backend=name, backend_options={"use_uvloop": True} if rest else {})
"""


@contextmanager
def worker(loop: str, port: int) -> Iterator[int]:
    """A process that accepts connections on a port, which others may share. Gives the port."""
    command = [sys.executable, "-c", textwrap.dedent(WORKER), loop, str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shares the connections out")
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_processes_that_share_a_port_behind_haproxy(version: str) -> None:
    """There is a process for each event loop. Different ones answer, and each knows its client's address."""

    with ExitStack() as stack:
        port = 0
        for loop in ("asyncio", "asyncio+uvloop", "trio"):
            port = stack.enter_context(worker(loop, port))
        front = stack.enter_context(haproxy([port], version))
        processes = set()
        for _ in range(60):
            with socket.create_connection(("127.0.0.1", front), 20) as peer:
                process, host, client_port = read_all(peer).split()
                assert (host, int(client_port)) == (b"127.0.0.1", peer.getsockname()[1])
                processes.add(process)
        assert len(processes) == 3
