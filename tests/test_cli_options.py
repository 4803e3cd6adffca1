"""What the options of the command line do. See test_cli.py."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

from .peers import port_of, read_all
from .test_cli import (
    MIB,
    connected,
    not_ignoring_interrupts,
    on_each_backend,
)
from .test_cli_tls import files

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
