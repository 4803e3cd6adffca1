"""Link-local addresses of peers are shown with their zone, without which nobody can connect to them."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.abc import SocketAttribute

from mozsocket import MozTCPSocket, TCPSocket

from ..certificates import certificate, client_context, server_context
from ..peers import Accepting, dial, echo_to, port_of, reset

pytestmark = pytest.mark.anyio


def link_local_address() -> str | None:
    """A link-local address of this machine, with its zone."""
    try:
        lines = Path("/proc/net/if_inet6").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        digits, _, _, scope, _, interface = line.split()
        if scope == "20":
            return f"{socket.inet_ntop(socket.AF_INET6, bytes.fromhex(digits))}%{interface}"
    return None


@pytest.fixture(scope="module")
def on_a_link() -> Iterator[str]:
    """A link-local address. If this machine has none, an interface is created for it, where that is permitted."""
    address = link_local_address()
    if address is not None:
        yield address
        return
    name = f"moz{os.getpid() % 100_000}"
    if shutil.which("ip") is None or subprocess.call(["ip", "link", "add", name, "type", "dummy"]):
        pytest.skip("there is no link-local address, and creating one is not permitted")
    try:
        subprocess.check_call(["ip", "link", "set", name, "up"])
        subprocess.check_call(["ip", "addr", "add", "fe80::77/64", "dev", name, "nodad"])
        yield f"fe80::77%{name}"
    finally:
        subprocess.call(["ip", "link", "del", name])


async def test_a_peer_on_a_link_can_be_connected_back_to(on_a_link: str) -> None:
    async with MozTCPSocket() as tcp:
        accepting = Accepting(tcp.listen(0))
        with await dial(accepting.server.localPort, on_a_link) as peer:
            sock, _ = await accepting.first()
            assert (sock.host, sock.port) == (on_a_link, port_of(peer))
            assert re.fullmatch(rf"<TCPSocket #\d+ .*->{re.escape(f'[{on_a_link}]:{port_of(peer)}')} open>", repr(sock))
            assert sock.extra(SocketAttribute.remote_address) == (on_a_link, port_of(peer))
            assert sock.extra(SocketAttribute.local_address) == (on_a_link, accepting.server.localPort)
            with socket.create_server(("::", 0), family=socket.AF_INET6) as behind:
                back = tcp.open(sock.host, port_of(behind))
                await back.opened()
                assert back.extra(SocketAttribute.remote_address) == (on_a_link, port_of(behind))
                back.closeImmediately()
        tcp.close()


async def test_an_adopted_socket_on_a_link(on_a_link: str) -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6) as listener:
        ours = socket.create_connection((on_a_link, port_of(listener)))
        async with TCPSocket.from_socket(ours) as sock:
            assert (sock.host, sock.port) == (on_a_link, port_of(listener))
            sock.closeImmediately()


async def test_a_failure_on_a_link_names_it(on_a_link: str) -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host=on_a_link)
        with pytest.raises(OSError, match="in use") as caught:
            tcp.listen(server.localPort, host=on_a_link)
        assert str(caught.value).endswith(f": '[{on_a_link}]:{server.localPort}'")
        accepting = Accepting(server)
        peer = await dial(server.localPort, on_a_link)
        _, recorder = await accepting.first()
        whom = f"[{on_a_link}]:{port_of(peer)}"
        reset(peer)
        assert (await recorder.first("error")).error.peer == whom
        server.close()


async def test_a_name_that_is_on_a_link(on_a_link: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """AnyIO's resolver gives the zone within the host."""

    async def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        address, _, interface = on_a_link.partition("%")
        scoped = f"{address}%{socket.if_nametoindex(interface)}"
        return [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", (scoped, port))]

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
    with socket.create_server(("::", 0), family=socket.AF_INET6) as listener:
        async with TCPSocket("printer.local", port_of(listener), local_host="printer.local") as sock:
            await sock.opened()
            assert sock.extra(SocketAttribute.local_address)[0] == on_a_link
            sock.closeImmediately()


async def test_the_zone_is_no_part_of_the_name_that_tls_checks(on_a_link: str) -> None:
    shown = certificate(on_a_link.partition("%")[0])
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host=on_a_link, useSecureTransport=True, ssl_context=server_context(shown))
        server.onconnect = echo_to
        sock = tcp.open(on_a_link, server.localPort, useSecureTransport=True, ssl_context=client_context())
        await sock.secured()
        tcp.close()
