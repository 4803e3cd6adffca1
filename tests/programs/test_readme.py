"""The README is correct: its examples run as printed, and its tables match the code."""

from __future__ import annotations

import inspect
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

import mozsocket
from mozsocket import (
    EventHandler,
    InvalidStateError,
    MozTCPSocket,
    ReadyState,
    TCPServerSocket,
    TCPSocket,
    TCPSocketError,
    testing,
)
from mozsocket.testing import EventRecorder

from ..certificates import AUTHORITY, certificate, client_context, server_context
from ..examples import EXAMPLES, README, code, example, file_of, output_of, port_from, rows, said, section
from ..peers import (
    PEER_TIMEOUT,
    accept,
    blocking,
    connected,
    dial,
    listening,
    port_of,
    read_all,
    read_exactly,
    reset,
    secure,
    unused_port,
    wait_until_it_listens,
)

WAYS = [("client", "upstream"), ("upstream", "client")]
"""The two directions through a proxy."""


@pytest.mark.anyio
async def test_client(capsys: pytest.CaptureFixture[str]) -> None:
    main = example("client")["main"]
    with listening() as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(main, port_of(listener))
            with await accept(listener) as peer:
                assert await blocking(read_exactly, peer, 5) == b"hello"
                peer.sendall(b"and to you")
                assert await blocking(read_all, peer) == b""
    assert capsys.readouterr().out == "b'and to you'\n"
    await main(unused_port())
    assert capsys.readouterr().out.startswith("ConnectionRefusedError: ")


@pytest.mark.anyio
async def test_server(capsys: pytest.CaptureFixture[str]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(example("echo_server")["main"], 0)
        port = await port_from(capsys)
        with await dial(port) as peer:
            await echoes(peer)
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_the_server_holds_back_a_client_that_does_not_read(capsys: pytest.CaptureFixture[str]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(example("echo_server")["main"], 0)
        with await dial(await port_from(capsys)) as peer:
            await held_back(peer.fileno(), peer)
        tasks.cancel_scope.cancel()


async def held_back(descriptor: int, reader: socket.socket) -> None:
    """Check back-pressure: while the reader does not read, only a limited amount can be written; then all of it
    arrives.

    The limit depends on the system, whose buffers hold some MiB for each socket on the way.

    :param descriptor: the writer's, which is non-blocking, as a socket with a timeout is
    """
    data = os.urandom(1 << 20) * 64
    written, stuck = 0, False
    while written < len(data) and not stuck:
        try:
            written += os.write(descriptor, memoryview(data)[written : written + 65536])
        except BlockingIOError:
            stuck = not (await blocking(select.select, (), (descriptor,), (), 0.3))[1]
    assert stuck, f"{written} bytes were taken"
    assert await blocking(read_exactly, reader, written) == data[:written]


@pytest.mark.anyio
async def test_proxy(capsys: pytest.CaptureFixture[str]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(example("echo_server")["main"], 0)
        upstream_port = await port_from(capsys)
        tasks.start_soon(example("proxy")["main"], 0, "127.0.0.1", upstream_port)
        port = await port_from(capsys)
        with await dial(port) as peer:
            await echoes(peer)
        tasks.cancel_scope.cancel()


@asynccontextmanager
async def proxied(capsys: pytest.CaptureFixture[str]) -> AsyncIterator[dict[str, socket.socket]]:
    """Both ends of a connection through the proxy."""
    with listening() as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(example("proxy")["main"], 0, "127.0.0.1", port_of(listener))
            port = await port_from(capsys)
            with await dial(port) as client, await accept(listener) as upstream:
                yield {"client": client, "upstream": upstream}
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize(("source", "target"), WAYS)
async def test_the_proxy_holds_back_one_side_while_the_other_does_not_read(
    source: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with proxied(capsys) as ends:
        await held_back(ends[source].fileno(), ends[target])


@pytest.mark.anyio
@pytest.mark.parametrize(("source", "target"), WAYS)
async def test_the_proxy_goes_on_the_other_way_when_one_side_has_ended(
    source: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with proxied(capsys) as ends:
        ends[source].sendall(b"question")
        ends[source].shutdown(socket.SHUT_WR)
        assert await blocking(read_all, ends[target]) == b"question"
        ends[target].sendall(b"answer")
        ends[target].shutdown(socket.SHUT_WR)
        assert await blocking(read_all, ends[source]) == b"answer"


@pytest.mark.anyio
@pytest.mark.parametrize(("source", "target"), WAYS)
async def test_the_proxy_resets_one_side_when_the_other_is_reset(
    source: str, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with proxied(capsys) as ends:
        ends[source].sendall(b"last words")
        await said(ends[target], b"last words")
        reset(ends[source])
        with pytest.raises(ConnectionResetError):
            await blocking(read_all, ends[target])


@pytest.mark.anyio
async def test_the_proxy_keeps_what_comes_before_upstream_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    with listening() as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(example("proxy")["main"], 0, "127.0.0.1", port_of(listener))
            address = "127.0.0.1", await port_from(capsys)
            with socket.create_connection(address) as client:  # no thread: all is sent when the proxy accepts
                client.sendall(b"early")
                with await accept(listener) as upstream:
                    await said(upstream, b"early")
            tasks.cancel_scope.cancel()


@pytest.mark.anyio
async def test_the_proxy_outlives_an_upstream_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(example("proxy")["main"], 0, "127.0.0.1", unused_port())
        port = await port_from(capsys)
        for _ in range(2):
            # The reset may arrive before the proxy has accepted the connection.
            with suppress(ConnectionResetError), await dial(port) as client:
                await blocking(read_all, client)
                pytest.fail("that was an orderly end")
            assert re.fullmatch(r"upstream: ConnectionRefusedError: .*\n", capsys.readouterr().out)
        tasks.cancel_scope.cancel()


async def echoes(peer: Any) -> None:
    """Check that a peer gets back all it sends, though it reads only after sending more than all buffers hold."""
    data = bytes(range(256)) * 40_000
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(blocking, peer.sendall, data)
        assert await blocking(read_exactly, peer, len(data)) == data


def test_tls(tmp_path: Path) -> None:
    program = file_of(tmp_path, "tls")
    certificate().private_key_and_cert_chain_pem.write_to_path(tmp_path / "server.pem")
    AUTHORITY.cert_pem.write_to_path(tmp_path / "ca.pem")
    assert output_of(tmp_path, program, "server.pem", "ca.pem") == "b'hello, in secret'\n"
    assert "SecurityUntrustedCertificateIssuerError" in output_of(tmp_path, program, "server.pem", status=1)


def test_errors(tmp_path: Path) -> None:
    assert "(localhost:1)" in output_of(tmp_path, file_of(tmp_path, "errors"))


@pytest.mark.anyio
async def test_starttls(capsys: pytest.CaptureFixture[str]) -> None:
    main = example("starttls")["main"]
    with listening() as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(main, "localhost", port_of(listener), client_context())
            with await accept(listener) as peer:
                peer.sendall(b"220 localhost ESMTP\r\n")
                assert await blocking(read_exactly, peer, 16) == b"EHLO localhost\r\n"
                peer.sendall(b"250-localhost\r\n250 STARTTLS\r\n")
                assert await blocking(read_exactly, peer, 10) == b"STARTTLS\r\n"
                peer.sendall(b"220 ready\r\n")
                with await secure(peer, server_context(), server_side=True) as secured:
                    assert await blocking(read_exactly, secured, 16) == b"EHLO localhost\r\n"
                    secured.sendall(b"250-localhost\r\n250 SIZE\r\n")
                    assert await blocking(read_all, secured) == b""
    assert capsys.readouterr().out == "secure\n250-localhost\n250 SIZE\n"


@pytest.mark.anyio
@pytest.mark.parametrize(("sent", "shown"), [(b"one\ntwo\nth", "b'one'\nb'two'\n"), (b"one\n\ntwo\n", "b'one'\nb''\n")])
async def test_in_an_async_generator(sent: bytes, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Iterating to the end, and breaking off."""
    main = example("generator")["main"]
    with listening() as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(main, port_of(listener))
            with await accept(listener) as peer:
                peer.sendall(sent)
                peer.shutdown(socket.SHUT_WR)
                assert await blocking(read_all, peer) == b""
    assert capsys.readouterr().out == shown


@pytest.mark.anyio
async def test_without_handlers(capsys: pytest.CaptureFixture[str]) -> None:
    main = example("awaiting")["main"]
    with listening() as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(main, port_of(listener))
            with await accept(listener) as peer:
                assert await blocking(read_all, peer) == bytes(1_000_000)
    await main(unused_port())
    assert re.fullmatch(r"ConnectionRefusedError \d+\n", capsys.readouterr().out)


@pytest.mark.anyio
async def test_back_pressure(tmp_path: Path) -> None:
    upload = example("upload")["upload"]
    data = bytes(range(256)) * 40_000
    (tmp_path / "file").write_bytes(data)
    with listening() as listener:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(upload, "127.0.0.1", port_of(listener), str(tmp_path / "file"))
            with await accept(listener) as peer:
                assert await blocking(read_all, peer) == data


@pytest.mark.anyio
@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
async def test_back_pressure_reaches_the_file(tmp_path: Path) -> None:
    """A pipe replaces the file, to see how much of it was read."""
    upload = example("upload")["upload"]
    os.mkfifo(tmp_path / "pipe")
    descriptor = os.open(tmp_path / "pipe", os.O_RDWR | os.O_NONBLOCK)  # both ways, so that open() does not block
    with listening() as listener:
        async with anyio.create_task_group() as tasks:
            with os.fdopen(descriptor, "wb", buffering=0) as pipe:  # closing it ends the reading thread
                tasks.start_soon(upload, "127.0.0.1", port_of(listener), str(tmp_path / "pipe"))
                with await accept(listener) as peer:
                    await held_back(descriptor, peer)
                    pipe.close()
                    assert await blocking(read_all, peer) == b""


@pytest.mark.anyio
@pytest.mark.parametrize(("octets", "ends"), [(4, True), (4, False), (0, False)])
async def test_timeouts(octets: int, ends: bool) -> None:
    listen_to = example("timeouts")["listen_to"]
    got: list[bytes] = []
    with listening() as listener:
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                got.append(await listen_to("127.0.0.1", port_of(listener), 0.8))

            tasks.start_soon(listen)
            with await accept(listener) as peer:
                for number in range(octets):
                    await anyio.sleep(0.28 if number else 0)  # in sum more than the timeout
                    peer.sendall(b"x")
                if not ends:
                    assert await blocking(read_all, peer) == b""
    assert got == [b"x" * octets]


def test_beyond_one_process(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(code("processes"))
    port = unused_port()
    with subprocess.Popen([sys.executable, "service.py", str(port)], cwd=tmp_path, start_new_session=True) as process:
        try:
            wait_until_it_listens(port)
            answers: set[bytes] = set()
            deadline = time.monotonic() + PEER_TIMEOUT
            while len(answers) < 2 and time.monotonic() < deadline:
                with socket.create_connection(("127.0.0.1", port), PEER_TIMEOUT) as peer:
                    answers.add(read_all(peer))
        finally:
            os.killpg(process.pid, signal.SIGTERM)
    assert all(re.fullmatch(rb"hello 127\.0\.0\.1, from process \d+\n", answer) for answer in answers)
    assert len(answers) >= min(2, os.cpu_count() or 1)


SERVICE = """
import sys, anyio
main.__globals__["GRACE"] = float(sys.argv[3])
anyio.run(main, 0, backend=sys.argv[1], backend_options={"use_uvloop": True} if sys.argv[2] == "True" else {})
"""


@contextmanager
def service(backend: tuple[str, dict[str, Any]], grace: float) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The service example in a separate process, and its port."""
    program = code("service").replace('__name__ == "__main__"', "False") + SERVICE
    command = [sys.executable, "-c", program, backend[0], str(bool(backend[1])), str(grace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.fullmatch(r"listening on (\d+)\n", process.stdout.readline())
            assert found
            yield process, int(found[1])
        finally:
            process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_shutting_down(number: int, anyio_backend: tuple[str, dict[str, Any]]) -> None:
    with service(anyio_backend, 60) as (process, port):
        with socket.create_connection(("127.0.0.1", port), PEER_TIMEOUT) as peer:
            peer.sendall(b"before")
            assert read_exactly(peer, 6) == b"before"
            process.send_signal(number)
            refused_by(port)
            peer.sendall(b"after")
            assert read_exactly(peer, 5) == b"after"
        assert process.communicate(timeout=PEER_TIMEOUT) == ("", "")
        assert process.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
def test_shutting_down_closes_what_has_not_finished(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    with service(anyio_backend, 0.3) as (process, port):
        with socket.create_connection(("127.0.0.1", port), PEER_TIMEOUT) as peer:
            peer.sendall(b"before")
            assert read_exactly(peer, 6) == b"before"
            process.send_signal(signal.SIGTERM)
            assert read_all(peer) == b""
            assert process.communicate(timeout=PEER_TIMEOUT) == ("", "")
        assert process.returncode == 0


def refused_by(port: int) -> None:
    """Wait until nothing listens on a port."""
    deadline = time.monotonic() + PEER_TIMEOUT
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), PEER_TIMEOUT).close()
        except ConnectionResetError:
            pass  # the listener was closed at that moment
        except ConnectionRefusedError:
            return
    pytest.fail("it listens on")


@pytest.mark.parametrize("loop", ["anyio", "trio", "asyncio"])
def test_the_example_runs_under_each_run_function(loop: str, capsys: pytest.CaptureFixture[str]) -> None:
    import asyncio

    import trio

    main = example("client")["main"]
    port = unused_port()
    runs: dict[str, Callable[[], object]] = {
        "anyio": lambda: anyio.run(main, port),
        "trio": lambda: trio.run(main, port),
        "asyncio": lambda: asyncio.run(main(port)),
    }
    runs[loop]()
    assert "ConnectionRefusedError" in capsys.readouterr().out


# The interface


def test_interface_table_names_every_public_member_and_nothing_else() -> None:
    named: dict[str, set[str]] = {}
    for cell, *_ in rows("The interface"):
        if re.search("=|^option$|^---", cell) and not re.search(r"[(*]", cell):
            continue  # a row of options
        owner = re.match(r"\*\*`(\w+)\(", cell)
        if cell == "function":
            members = set()  # functions and the like, which are in no class
        elif owner:
            members = named[owner[1]] = set()
        else:
            members.update(re.findall(r"\b([a-zA-Z_]+)\b(?=\(|`)", cell))
    named["TCPServerSocket"] |= {"addEventListener", "removeEventListener"}  # "as above"
    for owner_name, members in named.items():
        owner_class = getattr(mozsocket, owner_name)
        assert members == {name for name in dir(owner_class) if not name.startswith("_")}, owner_name


def test_what_testing_has_is_named() -> None:
    named = set(re.findall(r"`(\w+)(?:\(\))?`", section("Testing")))
    assert set(testing.__all__) <= named
    assert named <= {*testing.__all__, *dir(testing.EventRecorder)}


@pytest.mark.parametrize("module", [mozsocket, testing])
def test_every_public_member_has_a_docstring_of_its_own(module: Any) -> None:
    inherited = {inspect.getdoc(each) for each in (object, str, OSError, RuntimeError, EventHandler)}
    for owner in (
        getattr(module, name)
        for name in module.__all__
        if name not in ("BinaryType", "CONNECTION_LOST", "EventHandler")
    ):
        assert inspect.getdoc(owner) not in {None, *inherited}
        texts = "".join(base.__doc__ or "" for base in getattr(owner, "__mro__", ()))
        for name, member in vars(owner).items() if inspect.isclass(owner) else ():
            if inspect.ismemberdescriptor(member):
                assert name.startswith("_") or f":ivar {name}:" in texts, (owner, name)
            elif not name.startswith("_"):
                assert inspect.getdoc(getattr(owner, name)) not in {None, *inherited}, (owner, name)


@pytest.mark.parametrize(
    ("owner", "functions"),
    [("open()", [MozTCPSocket.open, TCPSocket]), ("listen()", [MozTCPSocket.listen, TCPServerSocket])],
)
def test_options_named_are_those_there_are(owner: str, functions: list[Callable[..., Any]]) -> None:
    text = section("The interface")
    both, own = text.split("Options of both: ")[1], text.split(f"Of `{owner}`: ")[1]
    named = {name for part in (both, own) for name in re.findall(r"`(\w+)`", part.partition(".")[0])}
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        assert named == {each.name for each in parameters if each.kind is each.KEYWORD_ONLY}


def test_the_programs_are_those_of_the_examples() -> None:
    found = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert found
    texts = [path.read_text(encoding="utf-8") for path in EXAMPLES.glob("*.py")]
    for text in found:
        assert sum(each.endswith(f"\n\n{text}") for each in texts) == 1


def test_every_example_is_listed() -> None:
    import mozsocket.examples

    listed = set(re.findall(r"``(\w+)``", mozsocket.examples.__doc__ or ""))
    assert listed == {path.stem for path in EXAMPLES.glob("*.py")} - {"__init__", "test_whois"}


def test_it_is_short() -> None:
    assert len(README.encode()) <= 16_384


def test_its_links_work_from_a_package_index() -> None:
    links = re.findall(r"\]\((.*?)\)", README)
    assert links
    for link in links:
        assert link.startswith("https://") or f'<a id="{link[1:]}"></a>' in README, link


def test_every_public_name_is_in_the_interface() -> None:
    assert [name for name in mozsocket.__all__ if f"`{name}" not in section("The interface")] == []


def test_error_names_are_those_there_are() -> None:
    from mozsocket._errors import _CERTIFICATE_NAMES, _REASONS, _TELLING

    text = inspect.getdoc(TCPSocketError) or ""
    _, *parts = re.split(r'\n``"\w+"``', text.split("The names, by their class:")[1])
    network, certificate, protocol = (set(re.findall(r"\b\w+Error\b", part)) for part in parts)
    assert network == set(_TELLING)
    assert certificate == {*_CERTIFICATE_NAMES.values(), "SecurityError"}
    assert protocol <= {name for _, name in _REASONS.values()} <= network | certificate | protocol


# The differences from MDN: for each row of the table a check, and for each check a row.


async def scope_ends_its_sockets() -> None:
    with pytest.raises(RuntimeError):
        MozTCPSocket().open("localhost", 1)


async def bytes_by_default() -> None:
    assert TCPSocket("localhost", 1).binaryType == "arraybuffer"


async def keyword_arguments() -> None:
    with pytest.raises(TypeError):
        TCPSocket("localhost", 1, {"binaryType": "string"})  # type: ignore[call-overload]


async def with_open_pair(check: Callable[[TCPSocket], object]) -> None:
    import socket

    ours, peer = socket.socketpair()
    with peer:
        async with TCPSocket.from_socket(ours, linger=0) as tcp_socket:
            await tcp_socket.opened()
            check(tcp_socket)


async def bytes_like_is_sent() -> None:
    await with_open_pair(lambda socket: [socket.send(data) for data in (b"", bytearray(), memoryview(b""))])


async def high_characters_are_refused() -> None:
    def check(socket: TCPSocket) -> None:
        for character in "€ü":
            with pytest.raises(ValueError, match=rf"U\+{ord(character):04X}"):
                socket.send(character)

    await with_open_pair(check)


async def certified_ports() -> None:
    async with MozTCPSocket() as tcp:
        with pytest.raises(PermissionError):
            tcp.listen(1023)


async def async_handlers() -> None:
    ran = []

    async def onopen(event: Any) -> None:
        await anyio.lowlevel.checkpoint()
        ran.append(event.type)

    with listening() as listener:
        async with MozTCPSocket() as tcp:
            socket = tcp.open("127.0.0.1", port_of(listener))
            socket.onopen = onopen
            (await accept(listener)).close()
    assert ran == ["open"]


async def handler_exceptions_leave_the_block() -> None:
    with listening() as listener, pytest.raises(ZeroDivisionError):  # noqa: PT012
        async with TCPSocket("127.0.0.1", port_of(listener)) as socket:
            socket.onopen = lambda event: 1 / 0
            await anyio.sleep_forever()


async def errors_leave_the_block() -> None:
    with pytest.raises(BaseException) as caught:  # noqa: PT011
        async with MozTCPSocket() as tcp:
            tcp.open("127.0.0.1", unused_port())
    assert [type(inner) for inner in caught.value.exceptions] == [mozsocket.TCPSocketError]  # type: ignore[attr-defined]


async def ready_state_is_a_str() -> None:
    assert isinstance(ReadyState.OPEN, str)
    assert TCPSocket("localhost", 1).readyState == "connecting"


async def resume_unmatched() -> None:
    with pytest.raises(InvalidStateError):
        TCPSocket("localhost", 1).resume()


async def send_when_not_open() -> None:
    with pytest.raises(InvalidStateError):
        TCPSocket("localhost", 1).send(b"")


async def secure_is_reported() -> None:
    with listening() as listener:
        async with MozTCPSocket() as tcp:
            socket, recorder, peer = await connected(tcp, "client", listener)
            socket.upgradeToSecure(ssl_context=client_context(), server_hostname="localhost")
            with await secure(peer, server_context(), server_side=True):
                await recorder.first("secure")
                socket.close()


async def upgrade_takes_options() -> None:
    parameters = inspect.signature(TCPSocket.upgradeToSecure).parameters
    assert list(parameters) == ["self", "ssl_context", "server_hostname", "leftover"]


async def servers_upgrade() -> None:
    with listening() as listener:
        async with MozTCPSocket() as tcp:
            socket, recorder, peer = await connected(tcp, "server", listener)
            socket.upgradeToSecure(ssl_context=server_context())
            with await secure(peer, client_context()):
                await recorder.first("secure")
                socket.close()


async def closing_sends_what_waits_for_tls() -> None:
    with listening() as listener:
        async with MozTCPSocket() as tcp:
            socket, _, peer = await connected(tcp, "client", listener)
            socket.upgradeToSecure(ssl_context=client_context(), server_hostname="localhost")
            socket.send(b"secret")
            socket.close()
            with await secure(peer, server_context(), server_side=True) as secured:
                assert await blocking(read_all, secured) == b"secret"


async def buffered_amount_counts_all() -> None:
    def check(socket: TCPSocket) -> None:
        socket.send(bytes(100))
        assert socket.bufferedAmount == 100

    await with_open_pair(check)


async def early_close_counts() -> None:
    async with MozTCPSocket() as tcp:
        socket = tcp.open("127.0.0.1", unused_port())
        socket.close()
    assert socket.readyState == "closed"


async def close_after_half_close() -> None:
    with listening() as listener:
        async with MozTCPSocket() as tcp:
            closed: list[Any] = []
            socket = tcp.open("127.0.0.1", port_of(listener))
            socket.onclose = closed.append
            with await accept(listener) as peer:
                peer.shutdown(1)
                assert await blocking(read_all, peer) == b""
        assert len(closed) == 1


async def failures_are_named() -> None:
    names = []
    async with MozTCPSocket() as tcp:
        for host in ("127.0.0.1", "no-such-host.invalid"):
            socket = tcp.open(host, unused_port())
            socket.onerror = lambda event: names.append(event.name)
    assert sorted(names) == ["ConnectionRefusedError", "DomainNotFoundError"]


async def half_open_on_demand() -> None:
    for half_open in (False, True):
        ours, peer = socket.socketpair()
        async with TCPSocket.from_socket(ours, allow_half_open=half_open) as tcp_socket:
            events = EventRecorder(tcp_socket)
            peer.shutdown(socket.SHUT_WR)
            await events.first("end" if half_open else "close")
            assert tcp_socket.readyState == ("open" if half_open else "closed")
            peer.close()


DIFFERENCES = {
    "`navigator.mozTCPSocket`, for privileged apps": scope_ends_its_sockets,
    '`binaryType` is `"string"` by default': bytes_by_default,
    "an options dictionary": keyword_arguments,
    "`ArrayBuffer`": bytes_like_is_sent,
    "strings of characters above U+00FF lose their high bytes": high_characters_are_refused,
    "ports below 1024 are for certified apps": certified_ports,
    "handlers are functions": async_handlers,
    "an exception in a handler is reported to the console": handler_exceptions_leave_the_block,
    "an `error` without a handler is ignored": errors_leave_the_block,
    "`readyState` is a string": ready_state_is_a_str,
    "`resume()` without `suspend()` is ignored": resume_unmatched,
    "`send()` when not open is an error in some states only": send_when_not_open,
    "no event after the handshake of `upgradeToSecure()`": secure_is_reported,
    "`upgradeToSecure()` takes nothing": upgrade_takes_options,
    "`upgradeToSecure()` is the client's": servers_upgrade,
    "data sent after a pending upgrade is dropped by `close()`": closing_sends_what_waits_for_tls,
    "`bufferedAmount` leaves out bytes in flight": buffered_amount_counts_all,
    "an early `close()` is ignored": early_close_counts,
    "`onclose` can be missed after the peer's half-close": close_after_half_close,
    "every early failure is called refused": failures_are_named,
    "the peer's end closes the socket": half_open_on_demand,
}


def test_the_comparison_is_that_of_the_benchmarks() -> None:
    results = (Path(__file__).parents[2] / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    table = [line for line in section("What it costs").splitlines() if line.startswith("|")]
    assert len(table) > 5
    assert set(table) <= set(results.splitlines())


def test_every_difference_has_a_check() -> None:
    assert [row[0] for row in rows("Differences from MDN")] == list(DIFFERENCES)


@pytest.mark.anyio
@pytest.mark.parametrize("check", DIFFERENCES.values(), ids=lambda check: check.__name__)
async def test_difference(check: Callable[[], Any]) -> None:
    await check()
