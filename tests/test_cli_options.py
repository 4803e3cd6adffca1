"""What the options of the command line do. See test_cli.py."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from .peers import port_of, read_all, read_exactly, reset
from .test_cli import (
    MIB,
    connected,
    not_ignoring_interrupts,
    on_each_backend,
    on_posix,
    program,
)
from .test_cli_tls import dialled_securely, files

__all__ = ("files", "not_ignoring_interrupts")  # fixtures


# A file, and a peer that ends early


@on_each_backend
def test_what_is_left_of_a_file_is_sent(backend: str, tmp_path: Path) -> None:
    """To a peer that has ended its side before it read anything."""
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
    """It says so."""
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
