"""The command line as users run it: the program in separate processes, against blocking sockets and against itself."""

from __future__ import annotations

import errno
import importlib.metadata
import importlib.util
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mozsocket import TCPSocket, TCPSocketEvent
from mozsocket.cli import _demo
from mozsocket.cli._console import TerminalText
from mozsocket.cli._loop import run

from ..command_line import (
    BACKENDS,
    LIMIT,
    MIB,
    Program,
    connected,
    dialled,
    events_of,
    fails,
    fill,
    in_thread,
    invoke,
    is_filling,
    on_each_backend,
    on_posix,
    pipes_both_ways,
    program,
    without,
    write_all,
)
from ..peers import PEER_TIMEOUT, listening, port_of, read_all, read_exactly, reset, unused_port
from ..processes import program as real_program

if sys.version_info < (3, 11):  # a dependency of AnyIO
    from exceptiongroup import BaseExceptionGroup

# The demonstration


def test_demo_proves_it_on_each_backend() -> None:
    with program("demo") as demo:
        lines = demo.stdout.read().decode().splitlines()
        assert demo.ends() == (0, "")
    assert lines[-1] == (
        "Proved on asyncio, uvloop, trio: the connection changed from plaintext to TLSv1.3 on both sides, the"
        " certificate checked; 1048576 bytes came back equal to those sent;"
        " send() returned False, and drain fired once all was handed over;"
        " no data arrived between suspend() and resume(); close fired once, as the last event of each socket."
    )
    for name, what, more in [
        ("client", "open", ""),
        ("accepted", "data", " +9 B"),
        ("accepted", r"upgradeToSecure\(\)", ""),
        ("client", "data", " +6 B"),
        ("client", r"upgradeToSecure\(\)", ""),
        ("client", r"send\(\)", " +1048576 B: False"),
        ("client", "secure", r" +TLSv1\.3, \S+"),
        ("accepted", "secure", r" +TLSv1\.3, \S+"),
        ("client", "drain", ""),
        ("server", "connect", r" +from \S+ port \d+"),
        ("client", r"resume\(\)", ""),
        ("accepted", "close", ""),
        ("client", "close", ""),
    ]:
        found = [line for line in lines if re.fullmatch(rf" *\d+\.\d+ s  {name} +{what}{more}", line.rstrip())]
        assert len(found) == len(BACKENDS), (name, what)
    assert sum(int(match[1]) for line in lines if (match := re.search(r" client +data +(\d+) B", line))) == 3 * (
        MIB + 6
    )
    assert sum(int(match[1]) for line in lines if (match := re.search(r" accepted +data +(\d+) B", line))) == 3 * (
        MIB + 9
    )


def test_demo_leaves_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    without(monkeypatch, "uvloop")
    status, output = invoke("demo")
    assert status == 0
    assert output.splitlines()[-1].startswith(
        "Proved on asyncio, trio: the connection changed from plaintext to TLSv1.3"
    )


def break_off(socket: TCPSocket) -> None:
    socket.closeImmediately()


def send_back_zeros(socket: TCPSocket) -> None:
    def on_data(event: TCPSocketEvent) -> None:
        socket.send(bytes(len(event.data)))

    socket.ondata = on_data


@pytest.mark.parametrize(
    ("echo_back", "wrong"),
    [
        (break_off, ["0 bytes came back equal to those sent", "no data arrived between suspend() and resume()"]),
        (send_back_zeros, [f"{MIB} bytes came back equal to those sent"]),
    ],
)
def test_demo_says_what_did_not_hold(
    monkeypatch: pytest.MonkeyPatch, echo_back: Callable[[TCPSocket], None], wrong: list[str]
) -> None:
    monkeypatch.setattr(_demo, "echo_back", echo_back)
    status, output = invoke("demo")
    assert status == 1
    last = output.splitlines()[-1]
    assert last.startswith("mozsocket: error: this did not hold: ")
    assert "Proved" not in output
    for backend in BACKENDS:
        for claim in wrong:
            assert f"{backend}: {claim}" in last
    assert last.count("close fired once") == 0


def test_demo_misses_a_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mozsocket._buffers.BUFFER_THRESHOLD", 2 * MIB)
    without(monkeypatch, "uvloop", "trio")
    status, output = invoke("demo")
    assert status == 1
    assert output.splitlines()[-1] == (
        "mozsocket: error: this did not hold: asyncio: send() returned False, and drain fired once all was handed over"
    )


def test_demo_ends_when_nothing_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_demo, "echo_back", lambda socket: None)
    monkeypatch.setattr(_demo, "DEMO_LIMIT", 0.1)
    status, output = invoke("demo")
    assert status == 1
    assert "trio: close fired once, as the last event of each socket" in output.splitlines()[-1]


@on_posix
@pytest.mark.parametrize("command", [["demo"], ["listen", "0"]], ids=["demo", "listen"])
def test_interrupted(command: list[str]) -> None:
    with program(*command) as running:
        if command == ["demo"]:
            running.stdout.readline()
        else:
            running.port()
        running.interrupt()
        assert running.ends() == (130, "")


@on_posix
def test_demo_with_nobody_to_read_it() -> None:
    with program("demo") as demo:
        demo.stdout.readline()
        demo.stdout.close()
        assert demo.ends() == (1, "mozsocket: error: standard output: Broken pipe\n")


# Bytes in and out


@on_each_backend
@pytest.mark.parametrize("binary_type", ["arraybuffer", "string"])
def test_pipes_both_ways(backend: str, binary_type: str, tmp_path: Path) -> None:
    options = ("--backend", backend, "--binary-type", binary_type)
    pipes_both_ways(options, options, tmp_path)


@on_each_backend
def test_connect_sends_all_and_closes(backend: str) -> None:
    with connected("--backend", backend, stdin=subprocess.PIPE) as (client, peer):
        data = os.urandom(2 * MIB)
        with in_thread(write_all, client.stdin, data, and_close=True):
            assert read_all(peer) == data
        peer.close()
        assert client.ends() == (0, "")


@on_each_backend
def test_connect_gets_the_whole_answer(backend: str) -> None:
    """As with `nc -N`, the end of the input is passed on to the peer, which answers after that."""
    with connected("--backend", backend, stdin=subprocess.PIPE) as (client, peer):
        client.stdin.write(b"question")
        client.stdin.close()
        assert read_all(peer) == b"question"
        data = os.urandom(2 * MIB)
        with in_thread(peer.sendall, data):
            assert client.reads(len(data)) == data
        peer.close()
        assert client.ends() == (0, "")


@on_each_backend
def test_listen_sends_all_of_a_file(backend: str, tmp_path: Path) -> None:
    """The peer ends its side before it reads anything, and still gets all of the file."""
    data = os.urandom(20 * MIB)
    (tmp_path / "answer").write_bytes(data)
    with (tmp_path / "answer").open("rb") as source, program("listen", 0, "--backend", backend, stdin=source) as server:
        with dialled(server.port()) as peer:
            peer.sendall(b"question")
            peer.shutdown(socket.SHUT_WR)
            assert server.reads(8) == b"question"
            assert read_all(peer) == data
        assert server.ends() == (0, "")


def test_nc_gets_its_whole_answer(tmp_path: Path) -> None:
    nc = real_program("nc")
    data = os.urandom(5 * MIB)
    (tmp_path / "answer").write_bytes(data)
    with (tmp_path / "answer").open("rb") as source, program("listen", 0, stdin=source) as server:
        result = subprocess.run([nc, "-N", "127.0.0.1", str(server.port())], input=b"question", capture_output=True)
        assert result.stdout == data
        assert server.stdout.read() == b"question"
        assert server.ends() == (0, "")


@on_each_backend
def test_progress(backend: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(3 * MIB))
    with (tmp_path / "file").open("rb") as source:
        source.read(MIB)
        with connected("--progress", "--backend", backend, stdin=source) as (client, peer):
            assert read_all(peer) == bytes(2 * MIB)
            peer.sendall(bytes(1000))
            peer.close()
            assert client.stdout.read() == bytes(1000)
            status, bars = client.ends()
    assert status == 0
    assert re.search(r"sent *: 100%\|.*\| 2.00M/2.00M \[", bars)
    assert re.search(r"received: 0.98kB \[", bars)
    assert "Traceback" not in bars


def test_progress_of_a_listener_whose_input_has_no_known_size() -> None:
    with program("listen", 0, "--progress", stdin=subprocess.PIPE) as server:
        with dialled(server.port()) as peer:
            server.stdin.write(b"x" * 5000)
            assert read_exactly(peer, 5000) == b"x" * 5000
        status, bars = server.ends()
    assert status == 0
    assert re.search(r"sent *: 4.88kB \[", bars)
    assert "received" not in bars


def test_progress_on_a_terminal_that_does_not_know_its_size(terminal: tuple[int, int], tmp_path: Path) -> None:
    ours, its = terminal
    (tmp_path / "file").write_bytes(bytes(MIB))
    with (
        (tmp_path / "file").open("rb") as source,
        connected("--progress", stdin=source, stderr=its) as (client, peer),
    ):
        assert read_all(peer) == bytes(MIB)
        peer.close()
        assert client.process.wait(LIMIT) == 0
    os.set_blocking(ours, False)
    assert b"100%" in os.read(ours, 65536)


COMPLETIONS = [
    ("mozsocket con", 1, ["connect"]),
    ("mozsocket connect --pro", 2, ["--progress"]),
    ("mozsocket connect --starttls p", 3, ["pop3"]),
    ("mozsocket listen --backend ", 3, ["asyncio", "uvloop", "trio"]),
]


@pytest.mark.parametrize(("words", "index", "expected"), COMPLETIONS)
def test_shell_completion(words: str, index: int, expected: list[str]) -> None:
    asked = {"_MOZSOCKET_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(index)}
    result = subprocess.run(
        [sys.executable, "-m", "mozsocket"], env={**os.environ, **asked}, capture_output=True, text=True
    )
    assert [line.partition(",")[2] for line in result.stdout.splitlines()] == expected
    assert result.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_s_script_of_completion(shell: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "mozsocket"],
        env={**os.environ, "_MOZSOCKET_COMPLETE": f"{shell}_source"},
        capture_output=True,
        text=True,
    )
    assert f"_MOZSOCKET_COMPLETE={shell}_complete" in result.stdout


@on_each_backend
def test_connect_ends_with_its_peer(backend: str) -> None:
    with connected("--backend", backend, stdin=subprocess.PIPE) as (client, peer):
        data = os.urandom(2 * MIB)
        peer.settimeout(None)
        stream = peer.makefile("wb", 0)
        peer.close()  # and with it the write end of the stream
        with in_thread(write_all, stream, data, and_close=True):
            assert client.stdout.read() == data
        assert client.ends() == (0, "")


@on_each_backend
@pytest.mark.parametrize("stdin", [subprocess.DEVNULL, subprocess.PIPE], ids=["null", "empty"])
def test_listen_is_not_ended_by_its_input(backend: str, stdin: int) -> None:
    with program("listen", 0, "--backend", backend, stdin=stdin) as server:
        if server.stdin is not None:
            server.stdin.close()
        with dialled(server.port()) as peer:
            for letter in (b"a", b"b", b"c"):
                peer.sendall(letter)
                assert server.reads(1) == letter
        assert server.ends() == (0, "")


def test_listen_takes_one_connection() -> None:
    with program("listen", 0) as server:
        port = server.port()
        with dialled(port) as peer:
            peer.sendall(b"a")
            assert server.reads(1) == b"a"
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", port), PEER_TIMEOUT)
        assert server.ends() == (0, "")


@on_each_backend
def test_output_that_is_not_read_holds_the_peer_back(backend: str) -> None:
    with program("listen", 0, "--backend", backend) as server:
        with dialled(server.port()) as peer:
            sent = fill(peer.fileno(), 64 * MIB)
            assert sent < 48 * MIB
        data = server.stdout.read()  # the peer has ended meanwhile, and nothing is lost
        assert len(data) == sent and is_filling(data)
        assert server.ends() == (0, "")


@on_each_backend
@on_posix
def test_endless_input_ends_with_the_connection(backend: str) -> None:
    with open("/dev/zero", "rb") as zeros, connected("--backend", backend, stdin=zeros) as (client, peer):
        read_exactly(peer, MIB)
        peer.shutdown(socket.SHUT_WR)
        assert not any(read_all(peer))
        assert client.ends() == (0, "")


@on_each_backend
@on_posix
def test_a_peer_that_does_not_read_holds_the_input_back(backend: str) -> None:
    with connected("--backend", backend, stdin=subprocess.PIPE) as (client, peer):
        written = fill(client.stdin.fileno(), 64 * MIB)
        assert written < 48 * MIB
        client.stdin.close()
        data = read_all(peer)
        assert len(data) == written and is_filling(data)
        peer.close()
        assert client.ends() == (0, "")


@on_posix
def test_files_that_others_made_non_blocking() -> None:
    read_end, write_end = os.pipe()
    out_read, out_write = os.pipe()
    for fd in (read_end, out_write):
        os.set_blocking(fd, False)
    with (
        open(write_end, "wb", 0) as source,
        open(out_read, "rb", 0) as target,
        connected(stdin=read_end, stdout=out_write) as (client, peer),
    ):
        os.close(read_end)
        os.close(out_write)
        source.write(b"first")
        assert read_exactly(peer, 5) == b"first"
        sent = fill(peer.fileno(), 16 * MIB)  # more than the pipe can hold
        received = bytearray()
        while len(received) < sent:
            received += target.read(MIB)
        assert is_filling(bytes(received))
        data = os.urandom(MIB)
        with in_thread(write_all, source, data, and_close=True):
            assert read_all(peer) == data
        peer.close()
        assert client.ends() == (0, "")


# Several connections


@on_each_backend
def test_keep_open_takes_one_after_another(backend: str) -> None:
    with program("listen", 0, "--keep-open", "--backend", backend, stdin=subprocess.PIPE) as server:
        port = server.port()
        with dialled(port) as first, dialled(port) as second:
            first.sendall(b"one")
            assert server.reads(3) == b"one"
            second.sendall(b"two")
            server.stdin.write(b"to the first")
            assert read_exactly(first, 12) == b"to the first"
            first.sendall(b"more")
            assert server.reads(4) == b"more"  # the second connection is not served before the first has ended
            first.close()
            assert server.reads(3) == b"two"
            server.stdin.write(b"to the second")
            assert read_exactly(second, 13) == b"to the second"
        with dialled(port) as third:
            reset(third)
        assert server.stderr.readline().startswith(b"mozsocket: error: connection with 127.0.0.1 port ")
        with dialled(port) as fourth:
            fourth.sendall(b"four")
            assert server.reads(4) == b"four"
        if sys.platform != "win32":
            server.interrupt()
            assert server.ends() == (130, "")


@on_posix
def test_keep_open_leaves_others_waiting() -> None:
    with program("listen", 0, "--keep-open", "-v") as server:
        port = server.port()
        with dialled(port) as first, dialled(port) as second:
            second.sendall(b"second")
            first.sendall(b"one")
            assert server.reads(3) == b"one"
            first.close()
            assert server.reads(6) == b"second"
            server.interrupt()
            status, errors = server.ends()
    assert status == 130
    assert events_of((0, errors)) == [
        "server connect from 127.0.0.1 port N",
        "accepted 1 data 3 B",
        "accepted 1 close",
        "server connect from 127.0.0.1 port N",
        "accepted 2 data 6 B",
    ]


@on_each_backend
def test_keep_open_loses_no_input_between_connections(backend: str, tmp_path: Path) -> None:
    data = os.urandom(16 * MIB)
    (tmp_path / "input").write_bytes(data)
    with (
        (tmp_path / "input").open("rb") as source,
        program("listen", 0, "--keep-open", "--backend", backend, stdin=source) as server,
    ):
        port = server.port()
        received = b""
        for _ in range(2):
            with dialled(port) as peer:
                received += read_exactly(peer, MIB)
                peer.shutdown(socket.SHUT_WR)
                received += read_all(peer)
        with dialled(port) as peer:
            assert received + read_exactly(peer, len(data) - len(received)) == data


@on_each_backend
@pytest.mark.parametrize("binary_type", ["arraybuffer", "string"])
def test_echo_serves_several(backend: str, binary_type: str) -> None:
    with program("listen", 0, "--echo", "--grace", 0, "--backend", backend, "--binary-type", binary_type) as server:
        port = server.port()
        with dialled(port) as first, dialled(port) as second, dialled(port) as third:
            for peer in (third, second, first):
                data = os.urandom(3 * MIB)
                with in_thread(peer.sendall, data):
                    assert read_exactly(peer, len(data)) == data
            second.sendall(b"the end")
            second.shutdown(socket.SHUT_WR)
            assert read_all(second) == b"the end"
            reset(third)
            assert re.fullmatch(
                rb"mozsocket: error: connection with 127\.0\.0\.1 port \d+: Connection reset by peer\n",
                server.stderr.readline(),
            )
            first.sendall(b"still here")
            assert read_exactly(first, 10) == b"still here"
            if sys.platform != "win32":
                server.interrupt()
                assert server.ends() == (0, "")
                assert server.stdout.read() == b""


@on_each_backend
def test_echo_holds_back_a_peer_that_does_not_read(backend: str) -> None:
    with program("listen", 0, "--echo", "--backend", backend) as server, dialled(server.port()) as peer:
        sent = fill(peer.fileno(), 64 * MIB)
        assert sent < 48 * MIB
        peer.shutdown(socket.SHUT_WR)
        data = read_all(peer)
        assert len(data) == sent and is_filling(data)


# Errors


@on_each_backend
def test_refused(backend: str) -> None:
    port = unused_port()
    message = f"cannot connect to 127.0.0.1 port {port}: Connection refused"
    fails(message, "connect", "127.0.0.1", port, "--backend", backend)


def test_unknown_host() -> None:
    with program("connect", "nosuch.invalid", 80) as client:
        status, errors = client.ends()
    assert status == 1
    assert re.fullmatch(r"mozsocket: error: cannot connect to nosuch.invalid port 80: [^\n]+\n", errors)


def test_unknown_host_to_listen_on() -> None:
    with program("listen", 0, "--host", "nosuch.invalid") as server:
        status, errors = server.ends()
    assert status == 1
    assert re.fullmatch(r"mozsocket: error: cannot listen on nosuch.invalid port 0: [^\n]+\n", errors)


def test_no_host_to_listen_on() -> None:
    with program("listen", 0, "--host", "a..b") as server:
        status, errors = server.ends()
    assert status == 2
    assert "host must be a host name or an IP address, not 'a..b'" in errors


@on_each_backend
def test_port_in_use(backend: str) -> None:
    with listening() as listener:
        port = port_of(listener)
        message = f"cannot listen on 127.0.0.1 port {port}: Address already in use"
        fails(message, "listen", port, "--host", "127.0.0.1", "--backend", backend)


@pytest.mark.parametrize("option", ["--keep-open", "--echo"])
def test_a_server_that_cannot_go_on(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    def accept(self: socket.socket) -> Any:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(socket.socket, "accept", accept)
    status, output = invoke("listen", 0, option)
    assert status == 1
    assert output.splitlines()[1:] == ["mozsocket: error: cannot listen on localhost port 0: Invalid argument"]


@pytest.mark.skipif(sys.platform != "linux", reason="where a full backlog lets no one in")
@on_each_backend
def test_connect_timeout(backend: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        port = port_of(listener)
        crowd = [socket.socket() for _ in range(4)]
        try:
            for waiting in crowd:
                waiting.setblocking(False)
                waiting.connect_ex(("127.0.0.1", port))
            message = f"cannot connect to 127.0.0.1 port {port}: not connected within 0.2 seconds"
            fails(message, "connect", "127.0.0.1", port, "--connect-timeout", 0.2, "--backend", backend)
        finally:
            for waiting in crowd:
                waiting.close()


@on_each_backend
def test_reset(backend: str) -> None:
    with connected("--backend", backend, stdin=subprocess.PIPE) as (client, peer):
        peer.sendall(b"before")
        assert client.reads(6) == b"before"
        port = port_of(peer)
        reset(peer)
        assert client.ends() == (
            1,
            f"mozsocket: error: connection with 127.0.0.1 port {port}: Connection reset by peer\n",
        )


@on_each_backend
def test_reset_while_output_is_not_read(backend: str) -> None:
    with program("listen", 0, "--backend", backend) as server:
        with dialled(server.port()) as peer:
            sent = fill(peer.fileno(), 64 * MIB)
            port = port_of(peer)
            reset(peer)
        data = server.stdout.read()
        assert 0 < len(data) < sent and is_filling(data)
        assert server.ends() == (
            1,
            f"mozsocket: error: connection with 127.0.0.1 port {port}: Connection reset by peer\n",
        )


@on_each_backend
@on_posix
def test_reset_while_the_first_output_is_not_read(backend: str) -> None:
    read_end, write_end = os.pipe()
    filling = fill(write_end, MIB)
    with (
        open(read_end, "rb", 0) as output,
        program("listen", 0, "-v", "--backend", backend, stdout=write_end) as server,
        dialled(server.port()) as peer,
    ):
        os.close(write_end)
        peer.sendall(b"first")
        lines = [server.stderr.readline()]
        while not lines[-1].endswith(b" data      5 B\n"):
            lines.append(server.stderr.readline())
        peer.sendall(b"second")
        reset(peer)
        assert len(output.read(filling)) == filling
        assert output.read() == b"firstsecond"  # the data that arrived before the loss
        while b" close" not in lines[-1]:
            lines.append(server.stderr.readline())
        status, errors = server.ends()
    assert status == 1
    assert re.fullmatch(r"mozsocket: error: connection with [^\n]+: Connection reset by peer\n", errors)


@on_each_backend
@on_posix
def test_nobody_reads_the_output(backend: str) -> None:
    with connected("--backend", backend, stdin=subprocess.PIPE) as (client, peer):
        client.stdout.close()
        peer.sendall(b"for nobody")
        assert client.ends() == (1, "mozsocket: error: standard output: Broken pipe\n")


@on_posix
def test_nobody_reads_the_output_of_keep_open() -> None:
    with program("listen", 0, "--keep-open") as server:
        server.stdout.close()
        with dialled(server.port()) as peer:
            peer.sendall(b"for nobody")
            assert server.ends() == (1, "mozsocket: error: standard output: Broken pipe\n")


@on_posix
def test_nobody_reads_the_trace() -> None:
    """A trace that cannot be written does not affect the connection."""
    read_end, write_end = os.pipe()
    with connected("-v", stdin=subprocess.PIPE, stderr=write_end) as (client, peer):
        os.close(write_end)
        os.close(read_end)
        peer.sendall(b"data")
        assert client.reads(4) == b"data"
        peer.close()
        assert client.process.wait(LIMIT) == 0


@on_posix
def test_input_that_cannot_be_read(tmp_path: Path) -> None:
    with (tmp_path / "write only").open("wb") as file, connected(stdin=file) as (client, _):
        assert client.ends() == (1, "mozsocket: error: standard input: Bad file descriptor\n")


def without_descriptors(redirections: str) -> tuple[str, ...]:
    """The beginning of a command line whose program begins with some descriptors closed."""
    return ("sh", "-c", f'exec "$@" {redirections}', "sh")


@on_posix
@on_each_backend
def test_closed_input(backend: str) -> None:
    """No socket gets the number of the closed descriptor: libuv would abort the process."""
    with connected("--backend", backend, prefix=without_descriptors("<&-")) as (client, peer):
        assert read_all(peer) == b""
        peer.close()
        assert client.ends() == (0, "")


@on_posix
@on_each_backend
def test_closed_output(backend: str) -> None:
    closed = without_descriptors(">&-")
    with program("listen", "--backend", backend, 0, prefix=closed) as server, dialled(server.port()) as peer:
        peer.sendall(b"for nobody")
        assert server.ends() == (1, "mozsocket: error: standard output: it is closed\n")


@on_posix
@on_each_backend
def test_all_of_them_closed(backend: str) -> None:
    """What the program prints does not reach the peer either."""
    closed = without_descriptors("<&- >&- 2>&-")
    with connected("-vv", "--backend", backend, prefix=closed) as (client, peer):
        peer.sendall(b"for nobody")
        assert read_all(peer) == b""
        peer.close()
        assert client.process.wait(LIMIT) == 1


@pytest.mark.parametrize("command", [("connect", "localhost", 1), ("listen", 0)])
@pytest.mark.parametrize("backend", ["uvloop", "trio"])
def test_backend_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, command: tuple[object, ...], backend: str
) -> None:
    without(monkeypatch, backend)
    assert invoke(*command, "--backend", backend) == (
        1,
        f"mozsocket: error: {backend} is not installed: pip install 'mozsocket[{backend}]'\n",
    )


def run_python(code: str) -> tuple[int, str]:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, check=False)
    return result.returncode, result.stderr


def test_click_is_not_installed() -> None:
    code = "import sys; sys.modules['click'] = None; import mozsocket.__main__ as m; m.main()"
    message = "mozsocket: error: the command line needs `pip install 'mozsocket[cli]'`\n"
    assert run_python(code) == (1, message)


def test_another_module_that_is_missing_is_no_matter_of_click() -> None:
    code = "import sys; sys.modules['select'] = None; import mozsocket.__main__ as m; m.main()"
    status, errors = run_python(code)
    assert status == 1
    assert "ModuleNotFoundError" in errors and "pip install" not in errors


@pytest.mark.parametrize(
    "args",
    [
        ("connect", "localhost"),
        ("connect", "localhost", 0),
        ("connect", "localhost", 65536),
        ("connect", "localhost", "nosuchservice"),
        ("connect", "", 80),
        ("connect", "localhost", 80, "--connect-timeout", "nan"),
        ("connect", "localhost", 80, "--connect-timeout", -1),
        ("connect", "localhost", 80, "--backend", "curio"),
        ("connect", "localhost", 80, "--binary-type", "blob"),
        ("listen", -1),
        ("listen", 65536),
        ("listen", 0, "--host", ""),
        ("listen", 0, "--grace", 3),
        ("listen", 0, "--echo", "--grace", -1),
        ("listen", 0, "--echo", "--keep-open"),
        ("listen", 0, "--echo", "--progress"),
        ("serve",),
    ],
)
def test_usage_errors(args: tuple[object, ...]) -> None:
    status, output = invoke(*args)
    assert status == 2
    assert output.startswith("Usage: mozsocket") and "Error: " in output.splitlines()[-1]


@pytest.mark.parametrize("option", ["-h", "--help"])
@pytest.mark.parametrize("command", [(), ("demo",), ("connect",), ("listen",)])
def test_help(command: tuple[str, ...], option: str) -> None:
    status, output = invoke(*command, option)
    assert status == 0
    assert output.startswith(" ".join(["Usage: mozsocket", *command]))


def test_version() -> None:
    assert invoke("--version") == (0, f"mozsocket {importlib.metadata.version('mozsocket')}\n")


def test_imports_no_event_loop() -> None:
    """The event loops are not installed everywhere, and AnyIO imports the one that is used."""
    code = "import sys, mozsocket.cli; print([n for n in ('asyncio', 'trio', 'uvloop') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT, check=True)
    assert "trio" not in result.stdout and "uvloop" not in result.stdout


# Ctrl-C


@on_each_backend
@on_posix
def test_interrupted_connection(backend: str) -> None:
    with connected("--backend", backend, stdin=subprocess.PIPE) as (client, peer):
        peer.sendall(b"data")
        assert client.reads(4) == b"data"
        client.interrupt()
        assert client.ends() == (130, "")
        assert read_all(peer) == b""


@on_each_backend
@on_posix
def test_interrupted_while_output_is_not_read(backend: str) -> None:
    with program("listen", 0, "--backend", backend) as server, dialled(server.port()) as peer:
        fill(peer.fileno(), 64 * MIB)
        server.interrupt()
        assert server.ends() == (130, "")


STOP_SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@contextmanager
def told_to_stop(number: int, backend: str, grace: float) -> Iterator[tuple[Program, int, socket.socket]]:
    """An echo server that has received a signal, its port, and its only client."""
    with program("listen", 0, "--echo", "--grace", grace, "--backend", backend) as server:
        port = server.port()
        with dialled(port) as peer:
            peer.sendall(b"data")
            assert read_exactly(peer, 4) == b"data"
            server.process.send_signal(number)
            note = server.stderr.readline().decode()
            left = f"they are closed in {grace} s, or now by another Ctrl-C"
            assert note == f"mozsocket: connections still open: 1; {left}\n"
            yield server, port, peer


@on_each_backend
@on_posix
@STOP_SIGNALS
def test_stopping_lets_connections_finish(number: int, backend: str) -> None:
    with told_to_stop(number, backend, 30) as (server, port, peer):
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), PEER_TIMEOUT)
        peer.sendall(b"after")
        peer.shutdown(socket.SHUT_WR)
        assert read_all(peer) == b"after"
        assert server.ends() == (0, "")  # long before the grace time is over


@on_each_backend
@on_posix
@STOP_SIGNALS
def test_stopping_closes_what_has_not_finished_in_time(number: int, backend: str) -> None:
    with told_to_stop(number, backend, 0.5) as (server, _, peer):
        assert read_all(peer) == b""
        assert server.ends() == (0, "")


@on_each_backend
@on_posix
@STOP_SIGNALS
def test_a_second_signal_closes_at_once(number: int, backend: str) -> None:
    with told_to_stop(number, backend, 30) as (server, _, peer):
        server.process.send_signal(number)
        assert read_all(peer) == b""
        assert server.ends() == (128 + number, "")


@on_each_backend
@on_posix
def test_a_relay_is_ended_at_once(backend: str) -> None:
    with connected("--backend", backend, stdin=subprocess.PIPE) as (client, peer):
        client.stdin.write(b"data")
        assert read_exactly(peer, 4) == b"data"
        client.process.terminate()
        assert client.ends() == (128 + signal.SIGTERM, "")
        assert read_all(peer) == b""


@on_posix
def test_ignored_interrupts_stay_ignored() -> None:
    with program("listen", 0, prefix=("sh", "-c", "trap '' INT; exec \"$@\"", "sh")) as server:
        with dialled(server.port()) as peer:
            server.interrupt()
            peer.sendall(b"data")
            assert server.reads(4) == b"data"
        assert server.ends() == (0, "")


@pytest.mark.parametrize("grouped", [False, True])
def test_interrupt_where_signals_cannot_be_watched(monkeypatch: pytest.MonkeyPatch, grouped: bool) -> None:
    """On Windows asyncio has no signal handlers: KeyboardInterrupt leaves the event loop, within a group or alone."""

    async def interrupted() -> None: ...

    def anyio_run(*args: Any, **options: Any) -> bool:
        raise BaseExceptionGroup("", [KeyboardInterrupt()]) if grouped else KeyboardInterrupt

    monkeypatch.setattr("anyio.run", anyio_run)
    assert run("asyncio", interrupted) == 130


# The trace


@on_each_backend
def test_verbose(backend: str) -> None:
    with program("listen", 0, "-v", "--backend", backend) as server:
        port = server.port()
        with program("connect", "127.0.0.1", port, "-v", "--backend", backend, stdin=subprocess.PIPE) as client:
            client.stdin.write(b"hello")
            assert server.reads(5) == b"hello"
            client.stdin.close()
            assert events_of(client.ends()) == ["client open", "client close"]
        assert events_of(server.ends()) == [
            "server connect from 127.0.0.1 port N",
            "accepted 1 data 5 B",
            "accepted 1 close",
        ]


def test_verbose_shows_errors() -> None:
    with program("connect", "127.0.0.1", unused_port(), "--verbose") as client:
        status, errors = client.ends()
    trace, message = errors.splitlines()[:-1], errors.splitlines()[-1]
    assert status == 1 and message.startswith("mozsocket: error: ")
    assert events_of((0, "\n".join(trace))) == [
        "client error ConnectionRefusedError: Connection refused (127.0.0.1:N)",
        "client close",
    ]


def test_verbose_echo() -> None:
    with program("listen", 0, "--echo", "-v") as server, dialled(server.port()) as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        sent = fill(peer.fileno(), 64 * MIB)  # the server buffers the echo, and reads no more until that is drained
        assert is_filling(read_exactly(peer, sent))
        lines: list[str] = []
        while not (lines and lines[-1].endswith("drain")):
            lines.append(server.stderr.readline().decode().rstrip())
    found = events_of((0, "\n".join(lines)))
    assert re.fullmatch(r"accepted 1 data \d+ B", found[1])
    assert found[-1] == "accepted 1 drain"


# Output to a terminal


def shown(*chunks: bytes) -> str:
    text = TerminalText()
    return "".join([text.feed(chunk) for chunk in chunks]) + text.feed(b"", final=True)


@pytest.mark.parametrize("code", [*range(32), *range(0x7F, 0xA0)])
def test_control_characters_are_escaped(code: int) -> None:
    expected = chr(code) if chr(code) in "\n\t" else f"\\x{code:02x}"
    assert shown(b"a" + chr(code).encode() + b"b") == f"a{expected}b"


def test_other_text_is_shown_as_it_is() -> None:
    text = "".join(map(chr, [*range(32, 127), *range(0xA0, 0x2FF)])) + "\u20ac\U0001f600"
    assert shown(text.encode()) == text


def test_text_may_be_split_anywhere() -> None:
    text = "é€\U0001f600\r\n\x1b\r\x85"
    data = text.encode()
    expected = "é€\U0001f600\r\n\\x1b\\x0d\\x85"
    for i in range(len(data) + 1):
        for j in range(i, len(data) + 1):
            assert shown(data[:i], data[i:j], data[j:]) == expected


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"\xff\xfe", r"\xff\xfe"),
        (b"\xc3", r"\xc3"),  # an incomplete character at the end
        (b"\xe2\x82", r"\xe2\x82"),
        (b"\xc3(", r"\xc3("),
        (b"\xed\xa0\x80", r"\xed\xa0\x80"),  # a surrogate
        (b"\x9b31m", r"\x9b31m"),  # a control character in Latin-1, which some terminals obey
        (b"\r", r"\x0d"),
        (b"\r\r\n", "\\x0d\r\n"),
        (b"\n\r", "\n\\x0d"),
        (b"hidden\rshown", r"hidden\x0dshown"),
    ],
)
def test_what_is_no_text_is_escaped(data: bytes, expected: str) -> None:
    assert shown(data) == expected
    assert shown(*(data[i : i + 1] for i in range(len(data)))) == expected


def test_what_can_be_judged_is_shown_at_once() -> None:
    text = TerminalText()
    assert text.feed("aé".encode()) == "aé"
    assert text.feed(b"b\xc3") == "b"
    assert text.feed(b"\xa9\r") == "é"
    assert text.feed(b"\n") == "\r\n"


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A raw terminal: the test's end of it, and the program's."""
    tty = pytest.importorskip("tty")
    ours, its = os.openpty()
    tty.setraw(its)
    yield ours, its
    os.close(ours)
    os.close(its)


IN_THE_BACKGROUND = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # our terminal, of which this process is the foreground
job = os.fork()
if not job:
    os.setpgid(0, 0)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
status = os.waitpid(job, os.WUNTRACED)[1]
sys.exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else "it was stopped")
"""


def test_a_job_in_the_background_leaves_the_terminal_to_others(terminal: tuple[int, int]) -> None:
    """A job in the background, such as `mozsocket listen 8007 > received &`."""
    _, its = terminal
    launcher = [sys.executable, "-c", IN_THE_BACKGROUND, "-m", "mozsocket", "listen", "0"]
    with subprocess.Popen(
        launcher,
        stdin=its,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        bufsize=0,
    ) as process:
        server = Program(process)
        with dialled(server.port()) as peer:
            peer.sendall(b"hello")
            assert server.reads(5) == b"hello"
        assert server.ends() == (0, "")


@on_each_backend
@pytest.mark.parametrize("binary_type", ["arraybuffer", "string"])
def test_escapes_on_a_terminal(terminal: tuple[int, int], backend: str, binary_type: str) -> None:
    ours, its = terminal
    options = ("--backend", backend, "--binary-type", binary_type)
    with program("listen", 0, *options, stdout=its) as server:
        with dialled(server.port()) as peer:
            peer.sendall(b"\x1b]0;title\x07caf\xc3\xa9\r\n")
            assert read_terminal(ours, "\\x1b]0;title\\x07café\r\n")
            peer.sendall(b"one \xe2\x82")
            assert read_terminal(ours, "one ")
            peer.sendall(b"\xac\xff\r")
            assert read_terminal(ours, "€\\xff")
        assert read_terminal(ours, "\\x0d")  # shown now, as it was the last byte
        assert server.ends() == (0, "")


def read_terminal(fd: int, expected: str) -> bool:
    data = b""
    while len(data) < len(expected.encode()):
        assert select.select([fd], [], [], PEER_TIMEOUT)[0], data
        data += os.read(fd, 1024)
    return data.decode() == expected


def test_does_not_escape_elsewhere() -> None:
    data = bytes(range(256)) + b"\r"
    with program("listen", 0) as server:
        with dialled(server.port()) as peer:
            peer.sendall(data)
        assert server.stdout.read() == data
        assert server.ends() == (0, "")


@on_posix
def test_input_from_a_terminal_ends_with_ctrl_d() -> None:
    ours, its = os.openpty()
    try:
        with connected(stdin=its) as (client, peer):
            os.write(ours, b"hello\n")
            assert read_exactly(peer, 6) == b"hello\n"
            os.write(ours, b"\x04")
            assert read_all(peer) == b""
            peer.close()
            assert client.ends() == (0, "")
    finally:
        os.close(ours)
        os.close(its)
