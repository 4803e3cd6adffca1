"""The options of the command line: addresses, line ends, output. See test_cli.py for how it is run."""

from __future__ import annotations

import os
import re
import shlex
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from mozsocket import cli
from mozsocket.cli._console import LineEnds
from mozsocket.cli._trace import DUMPED, hex_dump
from mozsocket.cli._where import host_and_port, port_number

from ..command_line import (
    LIMIT,
    MIB,
    connected,
    dialled,
    dialled_securely,
    events_of,
    fails,
    in_thread,
    invoke,
    on_each_backend,
    on_posix,
    program,
)
from ..peers import PEER_TIMEOUT, listening, port_of, read_all, read_exactly, reset, unused_port
from ..processes import unavailable
from ..services import redis

WAYS = "Write HOST PORT or HOST:PORT, with an IPv6 address as in [::1]:25."


@pytest.fixture(scope="module")
def ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError as exc:
        unavailable(f"no IPv6 here: {exc}")


# Addresses


@pytest.mark.parametrize(
    ("where", "port", "expected"),
    [
        ("localhost", "80", ("localhost", 80)),
        ("localhost:80", None, ("localhost", 80)),
        ("127.0.0.1:080", None, ("127.0.0.1", 80)),
        ("::1", "25", ("::1", 25)),
        ("[::1]:25", None, ("::1", 25)),
        ("[::1]", "25", ("::1", 25)),
        ("[fe80::1%eth0]:65535", None, ("fe80::1%eth0", 65535)),
        ("", "80", ("", 80)),  # the empty host is refused later
        (":80", None, ("", 80)),
    ],
)
def test_host_and_port(where: str, port: str | None, expected: tuple[str, int]) -> None:
    assert host_and_port(where, port) == expected


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("localhost",), f"'localhost' has no port. {WAYS}"),
        (("::1",), f"'::1' has no port. {WAYS}"),
        (("[::1]",), f"'[::1]' has no port. {WAYS}"),
        (("[::1",), f"'[::1' has no port. {WAYS}"),
        (("[::1]25",), f"'[::1]25' has no port. {WAYS}"),
        (("http://localhost:80",), f"'http://localhost:80' has no port. {WAYS}"),
        (("localhost:80", "81"), f"'localhost:80' has a port already, and '81' is another. {WAYS}"),
        (("[::1]:80", "81"), f"'[::1]:80' has a port already, and '81' is another. {WAYS}"),
        (("localhost:",), "Invalid value: '' is neither a number nor the name of a TCP service."),
        (("localhost:nosuch",), "Invalid value: 'nosuch' is neither a number nor the name of a TCP service."),
        (("localhost:0",), "Invalid value: '0' is not a port from 1 to 65535."),
        (("localhost:65536",), "Invalid value: '65536' is not a port from 1 to 65535."),
        (("localhost", "+80"), "Invalid value: '+80' is neither a number nor the name of a TCP service."),
        ((":80",), "host must be a host name or an IP address, not ''"),
        (("localhost:80", "-4", "-6"), "-4 and -6 exclude each other."),
    ],
)
def test_what_is_no_host_and_port(args: tuple[str, ...], message: str) -> None:
    status, output = invoke("connect", *args)
    assert status == 2
    assert output.splitlines()[-1] == f"Error: {message}"


@pytest.mark.parametrize("port", ["-1", "65536", "nosuch", "0x50", "٨٠", "smtp\0"])
def test_what_is_no_port_to_listen_on(port: str) -> None:
    status, output = invoke("listen", "--", port)
    assert status == 2
    assert "Error: Invalid value for 'PORT': " in output.splitlines()[-1]


def test_host_and_port_in_one() -> None:
    with listening() as listener, program("connect", f"127.0.0.1:{port_of(listener)}") as client:
        listener.accept()[0].close()
        assert client.ends() == (0, "")


@pytest.mark.usefixtures("ipv6")
@pytest.mark.parametrize("options", [(), ("-6",)])
def test_an_ipv6_address_and_port_in_one(options: tuple[str, ...]) -> None:
    with (
        socket.create_server(("::1", 0), family=socket.AF_INET6) as listener,
        program("connect", f"[::1]:{port_of(listener)}", *options) as client,
    ):
        listener.accept()[0].close()
        assert client.ends() == (0, "")


def test_services_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    port = unused_port()
    monkeypatch.setattr(socket, "getservbyname", lambda *service: {("echo-of-ours", "tcp"): port}[service])
    refused = f"mozsocket: error: cannot connect to 127.0.0.1 port {port}: Connection refused\n"
    assert invoke("connect", "127.0.0.1", "echo-of-ours") == (1, refused)
    assert invoke("connect", "127.0.0.1:echo-of-ours") == (1, refused)
    with socket.create_server(("127.0.0.1", port)):
        assert invoke("listen", "--host", "127.0.0.1", "echo-of-ours") == (
            1,
            f"mozsocket: error: cannot listen on 127.0.0.1 port {port}: Address already in use\n",
        )


@pytest.mark.parametrize(("name", "port"), [("smtp", 25), ("imaps", 993)])
def test_services_of_this_machine(name: str, port: int) -> None:
    try:
        socket.getservbyname("smtp", "tcp")
    except OSError:
        unavailable("this machine has no /etc/services")
    assert port_number(name, lowest=1) == port


# IPv4 and IPv6


def test_ipv4_only() -> None:
    with listening() as listener, program("connect", "-4", f"localhost:{port_of(listener)}") as client:
        listener.accept()[0].close()
        assert client.ends() == (0, "")
    fails(
        "cannot connect to ::1 port 80: ::1 has no IPv4 address to connect to from 0.0.0.0", "connect", "-4", "::1", 80
    )


def test_ipv6_only() -> None:
    message = "cannot connect to 127.0.0.1 port 80: 127.0.0.1 has no IPv6 address to connect to from ::"
    fails(message, "connect", "-6", "127.0.0.1:80")


def reports(line: bytes) -> tuple[str, int]:
    """The host and port in the line that says where it listens."""
    match = re.fullmatch(r"listening on (\S+) port (\d+)\n", line.decode())
    assert match, line
    return match[1], int(match[2])


def refuses(host: str, port: int) -> None:
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, port), PEER_TIMEOUT)


@on_posix
@pytest.mark.parametrize(
    ("options", "expected"),
    [((), "localhost"), (("-4",), "127.0.0.1"), (("-4", "--host", "localhost"), "127.0.0.1")],
)
def test_listens_where_this_machine_alone_can_reach_it(options: tuple[str, ...], expected: str) -> None:
    with program("listen", 0, *options) as server:
        host, port = reports(server.stderr.readline())
        assert host == expected
        refuses("127.0.0.2", port)
        with dialled(port) as peer:
            peer.sendall(b"data")
        assert server.stdout.read() == b"data"
        assert server.ends() == (0, "")


@pytest.mark.usefixtures("ipv6")
@pytest.mark.parametrize("options", [(), ("--host", "::"), ("--host", "::1")])
def test_listens_on_ipv6_only(options: tuple[str, ...]) -> None:
    with program("listen", "-6", 0, *options) as server:
        host, port = reports(server.stderr.readline())
        assert host == (options[1] if options else "::1")
        refuses("127.0.0.1", port)
        with socket.create_connection(("::1", port), PEER_TIMEOUT) as peer:
            peer.sendall(b"data")
        assert server.stdout.read() == b"data"
        assert server.ends() == (0, "")


@pytest.mark.usefixtures("ipv6")
@pytest.mark.parametrize("address", ["::1", "127.0.0.1"])
def test_listens_everywhere_on_demand(address: str) -> None:
    with program("listen", 0, "--host", "::") as server:
        host, port = reports(server.stderr.readline())
        assert host == "::"
        with socket.create_connection((address, port), PEER_TIMEOUT) as peer:
            peer.sendall(b"data")
        assert server.ends() == (0, "")


def test_a_family_that_cannot_be_listened_on() -> None:
    with listening() as listener:
        port = port_of(listener)
        fails(f"cannot listen on 127.0.0.1 port {port}: Address already in use", "listen", "-4", port)
    status, output = invoke("listen", 0, "-4", "--host", "::1")
    assert status == 1 and output.startswith("mozsocket: error: cannot listen on ::1 port 0: ")
    status, output = invoke("listen", 0, "-4", "-6")
    assert status == 2 and output.endswith("Error: -4 and -6 exclude each other.\n")


# Line ends

LINES = b"a\nb\r\nc\r\rd\n\n\r\n\re\n\r"


def with_line_ends(*chunks: bytes) -> bytes:
    line_ends = LineEnds()
    return b"".join(map(line_ends.feed, chunks))


def test_line_ends_wherever_the_input_is_split() -> None:
    expected = b"a\r\nb\r\nc\r\rd\r\n\r\n\r\n\re\r\n\r"
    for i in range(len(LINES) + 1):
        for j in range(i, len(LINES) + 1):
            assert with_line_ends(LINES[:i], LINES[i:j], LINES[j:]) == expected
    assert with_line_ends(*(bytes([byte]) for byte in LINES)) == expected
    assert with_line_ends(expected) == expected
    everything = bytes(range(256))
    assert with_line_ends(everything) == everything.replace(b"\n", b"\r\n")


@on_each_backend
def test_crlf(backend: str) -> None:
    """Sent lines get CRLF; what is received is unchanged."""
    with connected("--crlf", "--backend", backend, stdin=subprocess.PIPE) as (client, peer):
        client.stdin.write(b"one\ntwo\r")
        assert read_exactly(peer, 9) == b"one\r\ntwo\r"
        client.stdin.write(b"\nthree\n")
        assert read_exactly(peer, 8) == b"\nthree\r\n"
        peer.sendall(b"four\n")
        assert client.reads(5) == b"four\n"
        client.stdin.close()
        assert read_all(peer) == b""
        peer.close()
        assert client.ends() == (0, "")


def test_crlf_of_one_connection_after_another() -> None:
    with program("listen", 0, "--crlf", "--keep-open", stdin=subprocess.PIPE) as server:
        port = server.port()
        for _ in range(2):
            with dialled(port) as peer:
                server.stdin.write(b"line\n")
                assert read_exactly(peer, 6) == b"line\r\n"
                peer.shutdown(socket.SHUT_WR)
                assert read_all(peer) == b""


def test_crlf_makes_a_file_longer(tmp_path: Path) -> None:
    """The final size is unknown in advance, so the progress bar has no total and cannot be full too early."""
    (tmp_path / "file").write_bytes(b"\n" * 100_000)
    with (
        (tmp_path / "file").open("rb") as source,
        connected("--crlf", "--progress", stdin=source) as (client, peer),
    ):
        assert read_all(peer) == b"\r\n" * 100_000
        peer.close()
        status, bars = client.ends()
    assert status == 0
    assert re.search(r"sent *: 195kB \[", bars)


def test_crlf_for_redis() -> None:
    """The README's command for Redis: it prints the answer, and ends when the input has ended."""
    with redis() as port, program("connect", "--crlf", f"localhost:{port}", stdin=subprocess.PIPE) as client:
        client.stdin.write(b"PING\nECHO hello\n")
        client.stdin.close()
        assert client.ends() == (0, "")
        assert client.stdout.read() == b"+PONG\r\n$5\r\nhello\r\n"


def test_crlf_is_for_what_is_typed() -> None:
    status, output = invoke("listen", 0, "--echo", "--crlf")
    assert status == 2 and output.endswith("Error: --crlf and --echo exclude each other.\n")


# A time limit

SILENCE = "nothing was received, and nothing taken by the peer, for 0.5 seconds"


@on_each_backend
def test_a_silent_peer_is_given_up(backend: str) -> None:
    with connected("--timeout", 0.5, "--backend", backend, stdin=subprocess.PIPE) as (client, peer):
        port = port_of(peer)
        peer.sendall(b"data")
        assert client.ends() == (1, f"mozsocket: error: connection with 127.0.0.1 port {port}: {SILENCE}\n")
        assert client.stdout.read() == b"data"
        assert read_all(peer) == b""


@on_each_backend
def test_a_peer_that_does_not_read_is_given_up(backend: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(64 * MIB))
    with (
        (tmp_path / "file").open("rb") as source,
        program("listen", 0, "--timeout", 0.5, "--backend", backend, stdin=source) as server,
        dialled(server.port()) as peer,
    ):
        port = port_of(peer)
        assert server.ends() == (1, f"mozsocket: error: connection with 127.0.0.1 port {port}: {SILENCE}\n")


@on_posix
@pytest.mark.parametrize(("option", "status"), [("--echo", 0), ("--keep-open", 130)])
def test_who_is_silent_is_given_up_and_others_are_served(option: str, status: int) -> None:
    with program("listen", 0, "--timeout", 0.5, option) as server:
        port = server.port()
        for _ in range(2):
            with dialled(port) as peer:
                from_port = port_of(peer)
                assert server.stderr.readline().decode() == (
                    f"mozsocket: error: connection with 127.0.0.1 port {from_port}: {SILENCE}\n"
                )
                assert read_all(peer) == b""
        server.interrupt()
        assert server.ends() == (status, "")


def test_silence_before_tls_is_limited_too() -> None:
    with connected("--timeout", 0.5, "--starttls", "smtp") as (client, peer):
        port = port_of(peer)
        assert client.ends() == (1, f"mozsocket: error: no TLS with 127.0.0.1 port {port}: {SILENCE}\n")


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "soon"])
@pytest.mark.parametrize("command", [("connect", "localhost:80"), ("listen", "0")])
def test_what_is_no_time_limit(command: tuple[str, ...], seconds: str) -> None:
    status, output = invoke(*command, "--timeout", seconds)
    assert status == 2
    assert "timeout" in output.splitlines()[-1]


# A file as input, and a peer that ends early


@on_each_backend
def test_what_is_left_of_a_file_is_sent(backend: str, tmp_path: Path) -> None:
    """The peer ends its side before it reads anything, and still gets all of the file."""
    data = os.urandom(20 * MIB)
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as source, connected("--backend", backend, stdin=source) as (client, peer):
        peer.sendall(b"answer")
        peer.shutdown(socket.SHUT_WR)
        assert client.reads(6) == b"answer"
        assert read_all(peer) == data
        assert client.ends() == (0, "")


@on_each_backend
def test_a_file_that_is_not_taken(backend: str, tmp_path: Path) -> None:
    """The failure is reported."""
    (tmp_path / "file").write_bytes(bytes(20 * MIB))
    with (tmp_path / "file").open("rb") as source, connected("--backend", backend, stdin=source) as (client, peer):
        peer.sendall(b"no")
        assert client.reads(2) == b"no"
        peer.close()
        status, errors = client.ends()
    assert status == 1
    assert re.fullmatch(
        r"mozsocket: error: connection with [^\n]+: (Connection reset by peer|Broken pipe)\n", errors
    ), errors


@on_each_backend
def test_a_peer_that_ends_while_a_file_waits_for_tls(backend: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"secret")
    options = ("--starttls", "smtp", "--backend", backend)
    with (tmp_path / "file").open("rb") as source, connected(*options, stdin=source) as (client, peer):
        port = port_of(peer)
        peer.sendall(b"220-hello, and good")
        peer.shutdown(socket.SHUT_WR)
        assert client.ends() == (
            1,
            f"mozsocket: error: no TLS with 127.0.0.1 port {port}: it ended the connection\n",
        )
        assert read_all(peer) == b""


# TLS that ends without close_notify


@on_each_backend
def test_listen_takes_an_end_without_close_notify(files: SimpleNamespace, backend: str) -> None:
    with program("listen", 0, "--tls", "--certfile", files.both, "--backend", backend) as server:
        with dialled_securely(server.port()) as peer:
            peer.sendall(b"data")
            peer.close()
        assert server.stdout.read() == b"data"
        assert server.ends() == (0, "")


@on_posix
@pytest.mark.parametrize("option", ["--echo", "--keep-open"])
def test_several_ends_without_close_notify(files: SimpleNamespace, option: str) -> None:
    with program("listen", 0, "--tls", "--certfile", files.both, option, stdin=subprocess.PIPE) as server:
        port = server.port()
        for _ in range(2):
            with dialled_securely(port) as peer:
                peer.sendall(b"data")
                assert read_exactly(peer, 4) == b"data" if option == "--echo" else server.reads(4) == b"data"
                peer.close()
        server.interrupt()
        assert server.ends() == (0 if option == "--echo" else 130, "")


def test_listen_does_not_take_a_reset_for_an_end(files: SimpleNamespace) -> None:
    with program("listen", 0, "--tls", "--certfile", files.both) as server:
        with dialled_securely(server.port()) as peer:
            port = port_of(peer)
            peer.sendall(b"data")
            assert server.reads(4) == b"data"
            reset(peer)
        assert server.ends() == (
            1,
            f"mozsocket: error: connection with 127.0.0.1 port {port}: Connection reset by peer\n",
        )


# Bytes in the trace


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 15, 16, 17, 256, DUMPED])
def test_hex_dump(size: int) -> None:
    """The dump equals that of `od`, except for its columns."""
    data = (bytes(range(256)) * 2)[-size:] if size else b""
    command = ["od", "-Ax", "-tx1z", "-v"]
    *rows, _ = subprocess.run(command, input=data, capture_output=True, check=True).stdout.decode().splitlines()
    ours = hex_dump(data).splitlines()
    assert len(ours) == len(rows)
    for row, line in zip(rows, ours, strict=True):
        offset, _, rest = row.partition(" ")
        octets, _, text = rest.partition("  >")
        match = re.fullmatch(r"  ([0-9a-f]{8})  (.{23})  (.{23})  \|(.{1,16})\|", line)
        assert match, line
        assert int(match[1], 16) == int(offset, 16)
        assert " ".join([match[2], match[3]]).split() == octets.split()
        assert match[4] == text.removesuffix("<")


def test_hex_dump_is_bounded() -> None:
    lines = hex_dump(bytes(DUMPED + 1000)).splitlines()
    assert len(lines) == DUMPED // 16 + 1
    assert lines[-1] == "  and 1000 B more"


@on_each_backend
@pytest.mark.parametrize("binary_type", ["arraybuffer", "string"])
def test_bytes_in_the_trace(backend: str, binary_type: str) -> None:
    options = ("-vv", "--backend", backend, "--binary-type", binary_type)
    with connected(*options, stdin=subprocess.PIPE) as (client, peer):
        client.stdin.write(b"hello\n")
        assert read_exactly(peer, 6) == b"hello\n"
        peer.sendall(b"\x1b[2J\xff")
        assert client.reads(5) == b"\x1b[2J\xff"
        peer.close()
        status, errors = client.ends()
    assert status == 0
    sent = f"  00000000  {'68 65 6c 6c 6f 0a':48}  |hello.|"
    received = f"  00000000  {'1b 5b 32 4a ff':48}  |.[2J.|"
    lines = errors.splitlines()
    dumps = [line for line in lines if line.startswith("  0000")]
    assert dumps == [sent, received]
    reports = events_of((0, "\n".join(line for line in lines if line not in dumps)))
    assert reports == ["client open", "client sent 6 B", "client data 5 B", "client close"]
    assert lines.index(sent) == 2 and lines.index(received) == 4


# The trace and the progress bars


class Screen:
    """A minimal terminal emulator: what a terminal shows after everything that was written to it."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._rows: list[list[str]] = [[]]
        self._row = self._column = 0

    def write(self, text: str) -> None:
        for piece in re.findall(r"\x1b\[A|[^\x1b]|\x1b", text):
            if piece == "\x1b[A":
                self._row = max(0, self._row - 1)
            elif piece == "\r":
                self._column = 0
            elif piece == "\n":
                self._row += 1
            else:
                assert piece.isprintable(), piece
                self._put(piece)
            while len(self._rows) <= self._row:
                self._rows.append([])

    def _put(self, character: str) -> None:
        assert self._column < self._columns, "a line is too long"
        row = self._rows[self._row]
        row.extend(" " * (self._column + 1 - len(row)))
        row[self._column] = character
        self._column += 1

    def lines(self) -> list[str]:
        return [line for row in self._rows if (line := "".join(row).rstrip())]


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """A terminal with 100 columns: the test's end of it, and the program's."""
    termios, fcntl = pytest.importorskip("termios"), pytest.importorskip("fcntl")
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    yield ours, its
    os.close(ours)
    os.close(its)


END = b"the end"


def read_to_end(terminal: int, into: bytearray) -> None:
    """Read until the test has written END, as a terminal buffers only some 4 KiB."""
    while not into.endswith(END):
        into += os.read(terminal, 65536)


def shown(written: bytearray) -> list[str]:
    screen = Screen(100)
    screen.write(written.removesuffix(END).decode())
    return screen.lines()


def test_the_trace_and_the_bars_leave_each_other_whole(terminal: tuple[int, int]) -> None:
    ours, its = terminal
    written = bytearray()
    with (
        in_thread(read_to_end, ours, written),
        connected("-vv", "--progress", stdin=subprocess.PIPE, stderr=its) as (client, peer),
    ):
        try:
            for _ in range(5):
                client.stdin.write(b"x" * 1000)
                assert read_exactly(peer, 1000) == b"x" * 1000
                peer.sendall(b"y" * 2000)
                assert client.reads(2000) == b"y" * 2000
            reset(peer)
            assert client.process.wait(LIMIT) == 1
        finally:
            os.write(its, END)
    lines = shown(written)
    trace = r" *\d+\.\d{4} s  client      (open|sent      1000 B|data      2000 B|close|error     .*)"
    dump = r"  [0-9a-f]{8}  ([789 ]{23}  ){2}\|(x{16}|y{16})\||  and \d+ B more"
    bar = r"(sent    |received): .*\[.*\]"
    complaint = r"mozsocket: error: connection with .*: Connection reset by peer"
    kinds = {
        pattern: [line for line in lines if re.fullmatch(pattern, line)] for pattern in (trace, dump, bar, complaint)
    }
    assert sum(map(len, kinds.values())) == len(lines), "\n".join(lines)
    assert [line.split(":")[1].split(" [")[0].strip() for line in kinds[bar]] == ["4.88kB", "9.77kB"]
    assert len(kinds[trace]) == 1 + 10 + 2
    assert len(kinds[complaint]) == 1


# The examples in the help


@pytest.mark.parametrize("command", ["connect", "listen"])
def test_examples_of_the_help_can_be_parsed(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "server.pem").touch()
    _, output = invoke(command, "--help")
    section = output[output.index("Examples:") : output.index("Options:")]
    examples = re.findall(rf"mozsocket {command} (.*?)(?: [<>] file)?$", section, re.MULTILINE)
    assert len(examples) >= 3
    for example in examples:
        parameters = cli.cli.commands[command].make_context(command, shlex.split(example)).params
        if command == "connect":
            host_and_port(parameters["where"], parameters["port"])
