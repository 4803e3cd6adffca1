"""Everything the package prints is ASCII, so that a handler that prints it cannot fail on an ASCII-only terminal."""

from __future__ import annotations

import ast
import io
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mozsocket
from mozsocket import Event, MozTCPSocket, TCPSocket, TCPSocketError, TCPSocketErrorEvent, TCPSocketEvent
from mozsocket.testing import EventRecorder

from ..peers import blocking, connected, read_exactly, send_all

SOURCES = sorted(Path(mozsocket.__file__).parent.rglob("*.py"))

NAMES = ["b\xfccher.example", "\u4f8b\u3048.example", "snow\u2603man", "\U0001f600.example", "\udcc3.example"]


def strings(tree: ast.AST) -> list[str]:
    """The strings of a program, without docstrings."""
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in alone
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_string_of_the_package_is_more(path: Path) -> None:
    assert [text for text in strings(ast.parse(path.read_text(encoding="utf-8"))) if not text.isascii()] == []


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_that_is_more_is_shown_escaped(name: str) -> None:
    sock = TCPSocket(name, 80)
    error = TCPSocketError("DomainNotFoundError", "Network", 0, f"{name} cannot be", f"{name}:80")
    shown = [sock, sock.stream(), Event("open", sock), error, TCPSocketErrorEvent("error", sock, error), str(error)]
    assert all(str(value).isascii() and repr(value).isascii() for value in shown)
    assert ascii(name)[1:-1] in str(error)
    assert ascii(name)[1:-1] in repr(sock)
    assert sock.host == name


@pytest.mark.parametrize("data", ["\xe4\xf6\xfc" * 5, "\xe4" * 1000, b"\xe4" * 1000], ids=["short", "long", "bytes"])
def test_data_that_is_more_is_shown_escaped(data: Any) -> None:
    assert repr(TCPSocketEvent("data", TCPSocket("localhost", 80), data)).isascii()


@pytest.mark.anyio
@pytest.mark.parametrize("binary_type", ["arraybuffer", "string"])
async def test_a_handler_that_prints_its_event(
    role: str, listener: socket.socket, binary_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = io.BytesIO()
    screen = io.TextIOWrapper(output, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    async with MozTCPSocket() as tcp:
        sock, _, peer = await connected(tcp, role, listener, binaryType=binary_type)
        with peer:

            def ondata(event: Any) -> None:
                print(event)
                sock.send(event.data)

            sock.ondata = ondata
            await send_all(peer, b"\xe4" * 1000)
            assert await blocking(read_exactly, peer, 1000) == b"\xe4" * 1000
            sock.close()
    screen.flush()
    assert b"1000 B" in output.getvalue()


@pytest.mark.anyio
@pytest.mark.parametrize("name", NAMES, ids=ascii)
async def test_a_failure_is_shown_escaped(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with MozTCPSocket() as tcp:
        recorder = EventRecorder(tcp.open(f"{name}..invalid", 80))
        await recorder.first("close")
    assert repr(recorder.of("error")[-1]).isascii()
    assert str(recorder.of("error")[-1].error).isascii()


@pytest.mark.anyio
@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="UNIX-domain sockets")
async def test_a_path_is_shown_on_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Anyone can send such a path in a PROXY header."""
    path = "/run/a\nmozsocket: error: forged\x1b[31m\xe9"
    header = b"\r\n\r\n\x00\r\nQUIT\n\x21\x31\x00\xd8" + path.encode("latin-1").ljust(108, b"\0") + bytes(108)
    shown: list[str] = []

    def onconnect(event: Any) -> None:
        shown.append(repr(event))
        raise ValueError("on purpose")

    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1", proxy_protocol=True)
        server.onconnect = onconnect
        with await blocking(socket.create_connection, ("127.0.0.1", server.localPort), 20) as peer:
            await send_all(peer, header)
            with caplog.at_level(logging.WARNING, "mozsocket"):
                assert await blocking(peer.recv, 1) == b""
        server.close()
    assert all(text.isascii() and text.isprintable() for text in [*shown, *caplog.messages])
    assert len(shown) == len(caplog.messages) == 1


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
@pytest.mark.parametrize("host", ["b\xfccher.invalid", "b\u2603..invalid"], ids=ascii)
def test_the_command_line_where_there_is_only_ascii(host: str, environment: dict[str, str]) -> None:
    command: list[str | bytes] = [sys.executable, "-m", "mozsocket", "connect", "-v", host.encode(), "80"]
    result = subprocess.run(
        command,
        env=os.environ | {"LC_ALL": "C"} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=40,
    )
    assert result.returncode == 1
    assert b"mozsocket: error: cannot connect to b" in result.stderr
    assert b"Traceback" not in result.stderr
