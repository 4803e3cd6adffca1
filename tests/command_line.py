"""Runs the command line in separate processes, and helpers that talk to it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mozsocket import cli

from .certificates import client_context
from .peers import PEER_TIMEOUT, listening, port_of

BACKENDS = ("asyncio", "uvloop", "trio")


MIB = 1 << 20


LIMIT = 40  # seconds that a process may take


on_each_backend = pytest.mark.parametrize("backend", BACKENDS)


on_posix = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals, terminals and descriptors")


class Program:
    """A process of the command line, with unbuffered pipes."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.stdin: Any = process.stdin
        self.stdout: Any = process.stdout
        self.stderr: Any = process.stderr

    def ends(self) -> tuple[int, str]:
        """Wait until the process ends.

        :return: the exit status, and what it wrote to standard error
        """
        errors = self.stderr.read().decode()
        return self.process.wait(LIMIT), errors.replace("\r\n", "\n")

    def port(self) -> int:
        """Wait until it listens, and return the port."""
        line = self.stderr.readline().decode()
        match = re.fullmatch(r"listening on \S+ port (\d+)\n", line)
        assert match, line + self.stderr.read().decode()
        return int(match[1])

    def reads(self, size: int) -> bytes:
        """Read this number of bytes from its standard output."""
        data = bytearray()
        while len(data) < size:
            part = self.stdout.read(size - len(data))
            assert part, f"standard output ended after {len(data)} of {size} bytes"
            data += part
        return bytes(data)

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)


@contextmanager
def program(*args: object, prefix: tuple[str, ...] = (), **options: Any) -> Iterator[Program]:
    command = [*prefix, sys.executable, "-m", "mozsocket", *map(str, args)]
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    with subprocess.Popen(command, bufsize=0, **options) as process:
        try:
            yield Program(process)
        finally:
            process.kill()  # if it is still running, the test has failed


@contextmanager
def dialled(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), PEER_TIMEOUT) as peer:
        yield peer


@contextmanager
def connected(*options: object, **streams: Any) -> Iterator[tuple[Program, socket.socket]]:
    """A process of ``connect``, and the blocking socket that it is connected to."""
    with listening() as listener, program("connect", "127.0.0.1", port_of(listener), *options, **streams) as client:
        peer, _ = listener.accept()
        with peer:
            peer.settimeout(PEER_TIMEOUT)
            yield client, peer


@contextmanager
def in_thread(function: Callable[..., object], *args: object, **options: object) -> Iterator[None]:
    thread = threading.Thread(target=function, args=args, kwargs=options)
    thread.start()
    try:
        yield
    finally:
        thread.join(LIMIT)


def write_all(stream: Any, data: bytes, *, and_close: bool = False) -> None:
    view = memoryview(data)
    while view:
        view = view[stream.write(view) :]
    if and_close:
        stream.close()


def fill(fd: int, size: int) -> int:
    """Write until all is written, or until nothing more could be written for half a second.

    :return: how many bytes were written
    """
    os.set_blocking(fd, False)
    data = bytes(range(256)) * 256
    written = 0
    while written < size and select.select([], [fd], [], 0.5)[1]:
        start = written % 256
        written += os.write(fd, data[start : start + min(len(data) - start, size - written)])
    os.set_blocking(fd, True)
    return written


def is_filling(data: bytes) -> bool:
    pattern = bytes(range(256))
    return data == (pattern * (len(data) // 256 + 1))[: len(data)]


def invoke(*args: object) -> tuple[int, str]:
    """Run a command within this process, so that a test can patch what it uses.

    :return: the exit status and all output
    """
    result = CliRunner().invoke(cli.cli, list(map(str, args)), prog_name="mozsocket")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def pipes_both_ways(server_options: tuple[str, ...], client_options: tuple[str, ...], folder: Path) -> None:
    """Check that the input of ``listen`` and of ``connect`` comes out of the other completely, in both directions at
    once.
    """
    there, back = os.urandom(3 * MIB + 1), os.urandom(4 * MIB + 3)
    (folder / "back").write_bytes(back)
    with (
        (folder / "back").open("rb") as source,
        (folder / "there").open("wb") as target,
        program("listen", 0, "--host", "127.0.0.1", *server_options, stdin=source, stdout=target) as server,
        program("connect", "127.0.0.1", server.port(), *client_options, stdin=subprocess.PIPE) as client,
    ):
        with in_thread(write_all, client.stdin, there):
            assert client.reads(len(back)) == back
        client.stdin.close()
        assert client.ends() == (0, "")
        assert server.ends() == (0, "")
        assert client.stdout.read() == b""
    assert (folder / "there").read_bytes() == there


def fails(message: str, *args: object, **options: Any) -> None:
    with program(*args, **options) as failing:
        assert failing.ends() == (1, f"mozsocket: error: {message}\n")


def without(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Make these modules impossible to import or find."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, package=None: None if name in modules else find_spec(name, package)
    )


def events_of(ended: tuple[int, str]) -> list[str]:
    """The lines of a trace, without the times."""
    status, errors = ended
    assert status == 0
    matches = [re.fullmatch(r" *\d+\.\d{4} s  (.*)", line) for line in errors.splitlines()]
    assert all(matches), errors
    return [re.sub("(port |:)[0-9]+", r"\1N", " ".join(match[1].split())) for match in matches if match]


@contextmanager
def dialled_securely(port: int, context: ssl.SSLContext | None = None) -> Iterator[ssl.SSLSocket]:
    """The client side of a TLS connection, with the certificate checked."""
    context = context or client_context()
    with (
        dialled(port) as peer,
        context.wrap_socket(peer, server_hostname="localhost", suppress_ragged_eofs=False) as secure_peer,
    ):
        yield secure_peer
