"""Connecting: resolving names, local addresses, and Happy Eyeballs.

Names are resolved by the test's table where a test says so; the connections are real.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mozsocket import _connect
from mozsocket._connect import connect

from ..peers import PEER_TIMEOUT, accept, all_blocked, blocking, listening, port_of, unused_port

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

pytestmark = pytest.mark.anyio

LOOPBACK = "127.0.0.1"
NEVER = 3600  # seconds: no test lasts as long

Addresses = list[tuple[str, int]]


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, Addresses]:
    """A table of names, with the addresses and ports that the resolver returns for them."""
    table: dict[str, Addresses] = {}

    async def getaddrinfo(host: str, port: int, *, type: socket.SocketKind) -> list[Any]:
        await anyio.lowlevel.checkpoint()
        assert type is socket.SOCK_STREAM
        return [(family_of(address), type, 6, "", (address, port)) for address, port in table[host]]

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
    return table


@contextmanager
def silent(host: str = LOOPBACK) -> Iterator[tuple[str, int]]:
    """An address that does not answer: the listener's queue is full, so the system ignores connection attempts."""
    with listening(host, backlog=0) as listener:
        waiting = [socket.socket(listener.family) for _ in range(8)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield host, port_of(listener)
        for sock in waiting:
            sock.close()


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[_connect.Address]:
    """The addresses that are tried, in order."""
    tried = []
    attempt = _connect._attempt

    async def recorded(address: _connect.Address) -> socket.socket:
        tried.append(address)
        return await attempt(address)

    monkeypatch.setattr(_connect, "_attempt", recorded)
    return tried


def dead() -> tuple[str, int]:
    """An address that refuses connections."""
    return LOOPBACK, unused_port()


def address_of(sock: socket.socket) -> tuple[str, int]:
    host, port = sock.getsockname()[:2]
    return host, port


async def connected_to(listener: socket.socket, sock: socket.socket) -> bool:
    """Check that the socket is connected to the listener, and close it."""
    with sock, await accept(listener) as peer:
        return bool(peer.getpeername() == sock.getsockname())


# One address


@pytest.mark.parametrize("host", [LOOPBACK, "::1"])
async def test_an_address_is_connected_to_without_asking_the_resolver(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(anyio, "getaddrinfo")
    with listening(host) as listener:
        sock = await connect(host, port_of(listener))
        assert sock.family == family_of(host)
        assert sock.type == socket.SOCK_STREAM
        assert not sock.getblocking()
        assert await connected_to(listener, sock)


async def test_localhost(listener: socket.socket) -> None:
    """This uses the system's own resolver."""
    assert await connected_to(listener, await connect("localhost", port_of(listener)))


async def test_a_name_of_one_address(names: dict[str, Addresses], listener: socket.socket) -> None:
    names["peer.example"] = [address_of(listener)]
    assert await connected_to(listener, await connect("peer.example", 80))


async def test_the_event_loop_does_not_wait_for_the_resolver(
    names: dict[str, Addresses], monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    """Calls to the resolver within the event loop's thread pass only numeric addresses."""
    asked = []
    real = socket.getaddrinfo

    def getaddrinfo(*args: Any, **options: Any) -> Any:
        asked.append(options["flags"])
        return real(*args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    names["localhost"] = [address_of(listener)]
    assert await connected_to(listener, await connect("localhost", 80))
    assert all(flags & socket.AI_NUMERICHOST for flags in asked)


async def test_the_port_is_passed_on(monkeypatch: pytest.MonkeyPatch, listener: socket.socket) -> None:
    async def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (LOOPBACK, port))]

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
    assert await connected_to(listener, await connect("peer.example", port_of(listener)))


@pytest.mark.parametrize("host", [LOOPBACK, "::1", "peer.example"])
async def test_a_single_failure_is_raised_as_itself(names: dict[str, Addresses], host: str) -> None:
    port = unused_port()
    names["peer.example"] = [(LOOPBACK, port)]
    with pytest.raises(ConnectionRefusedError) as raised:
        await connect(host, port)
    assert raised.value.errno == errno.ECONNREFUSED
    assert raised.value.strerror == os.strerror(errno.ECONNREFUSED)


async def test_a_failure_at_once() -> None:
    """TCP has no broadcast, so the system reports the error before it sends anything."""
    with pytest.raises(OSError, match="Errno") as raised:
        await connect("255.255.255.255", 9)
    assert raised.value.errno in (errno.ENETUNREACH, errno.EACCES)
    assert raised.value.strerror == os.strerror(raised.value.errno)


async def test_the_scope_of_an_address_is_kept(
    attempts: list[_connect.Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(anyio, "getaddrinfo")  # it does not accept scopes on every loop
    index, interface = socket.if_nameindex()[0]
    try:
        (await connect(f"fe80::1%{interface}", 9)).close()
    except OSError:
        pass  # as expected: nothing listens there
    assert attempts == [(socket.AF_INET6, ("fe80::1", 9, 0, index), None)]


async def test_a_name_without_an_address(names: dict[str, Addresses]) -> None:
    """AnyIO leaves out IPv6 addresses where Python has no IPv6, so that none may remain."""
    names["peer.example"] = []
    with pytest.raises(OSError, match=r"peer\.example"):
        await connect("peer.example", 80)


@pytest.mark.parametrize(
    "host",
    [
        "ü" * 70,  # a label that is too long
        "xn--ü",  # not a valid A-label
        "bü cher.example",  # a space
        "ü..example",  # an empty label
        "-ü",
        "\udc80",  # a lone surrogate
        "\u2028.example",  # a line separator
    ],
    ids=ascii,
)
async def test_what_cannot_be_a_name(host: str) -> None:
    with pytest.raises(UnicodeError):
        await connect(host, 80)


@pytest.mark.parametrize("host", ["a" * 64, "a" * 64 + ".example", "a..example", "a b"])
async def test_names_of_ascii_are_left_to_the_resolver_to_refuse(host: str) -> None:
    with pytest.raises((socket.gaierror, UnicodeError)):
        await connect(host, 80)


@pytest.mark.parametrize("name", ["straße.example", "ß" * 32])
async def test_a_name_is_handed_to_anyio_as_it_is(
    names: dict[str, Addresses], listener: socket.socket, name: str
) -> None:
    """AnyIO encodes it by IDNA 2008. Python's own codec, of 2003, makes ss of ß, and finds the second name too long."""
    names[name] = [address_of(listener)]
    assert await connected_to(listener, await connect(name, 80))


async def test_a_connection_of_tcp_to_itself_counts_as_refused(names: dict[str, Addresses]) -> None:
    """It connects from a port to the same port, where nothing listens: TCP's simultaneous open with itself."""
    address = dead()
    names["from.example"] = [address]
    with pytest.raises(ConnectionRefusedError) as raised:
        await connect(*address, "from.example")
    assert raised.value.errno == errno.ECONNREFUSED
    assert raised.value.strerror == os.strerror(errno.ECONNREFUSED)


# Several addresses


@pytest.mark.parametrize(
    ("found", "tried"),
    [
        ("4446", "4644"),
        ("6644", "6464"),
        ("44466", "46464"),
        ("64", "64"),
        ("46", "46"),
        ("444", "444"),
        ("666644", "646466"),
        ("464646", "464646"),
    ],
)
async def test_the_families_alternate(
    names: dict[str, Addresses],
    attempts: list[_connect.Address],
    monkeypatch: pytest.MonkeyPatch,
    found: str,
    tried: str,
) -> None:
    monkeypatch.setattr(_connect, "ATTEMPT_DELAY", NEVER)
    port = unused_port()
    names["peer.example"] = [
        (f"127.0.0.{i}" if family == "4" else f"::ffff:127.0.0.{i}", port) for i, family in enumerate(found, 1)
    ]
    with anyio.fail_after(PEER_TIMEOUT), pytest.raises(ExceptionGroup):
        await connect("peer.example", 80)
    assert "".join("6" if address.family == socket.AF_INET6 else "4" for address in attempts) == tried
    assert sorted(address.remote for address in attempts) == sorted(names["peer.example"])
    for family in socket.AF_INET, socket.AF_INET6:  # within a family, the order is the resolver's
        in_order = [address for address in names["peer.example"] if family_of(address[0]) == family]
        assert [address.remote for address in attempts if address.family == family] == in_order


async def test_the_first_that_answers_is_the_only_one_tried(
    names: dict[str, Addresses],
    attempts: list[_connect.Address],
    monkeypatch: pytest.MonkeyPatch,
    listener: socket.socket,
) -> None:
    monkeypatch.setattr(_connect, "ATTEMPT_DELAY", NEVER)
    names["peer.example"] = [address_of(listener), dead()]
    with anyio.fail_after(PEER_TIMEOUT):
        sock = await connect("peer.example", 80)
    assert await connected_to(listener, sock)
    assert [address.remote for address in attempts] == [address_of(listener)]


@pytest.mark.parametrize("refusing", [1, 2, 5])
async def test_after_a_refusal_the_next_is_tried_at_once(
    names: dict[str, Addresses], monkeypatch: pytest.MonkeyPatch, listener: socket.socket, refusing: int
) -> None:
    monkeypatch.setattr(_connect, "ATTEMPT_DELAY", NEVER)
    names["peer.example"] = [*[dead()] * refusing, address_of(listener)]
    with anyio.fail_after(PEER_TIMEOUT):
        sock = await connect("peer.example", 80)
    assert await connected_to(listener, sock)


async def test_after_a_silence_the_next_is_tried_beside_the_first(
    names: dict[str, Addresses], attempts: list[_connect.Address], listener: socket.socket
) -> None:
    with silent() as address:
        names["peer.example"] = [address, address_of(listener)]
        began = time.monotonic()
        with anyio.fail_after(PEER_TIMEOUT):
            sock = await connect("peer.example", 80)
        lasted = time.monotonic() - began
    assert await connected_to(listener, sock)
    assert len(attempts) == 2
    assert lasted >= 0.24  # RFC 8305 recommends 0.25; the clocks of event loops are coarse


async def test_each_silence_is_waited_for(
    names: dict[str, Addresses], monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    monkeypatch.setattr(_connect, "ATTEMPT_DELAY", 0.05)
    with silent() as first, silent("::1") as second:
        names["peer.example"] = [first, second, dead(), address_of(listener)]
        began = time.monotonic()
        with anyio.fail_after(PEER_TIMEOUT):
            sock = await connect("peer.example", 80)
        lasted = time.monotonic() - began
    assert await connected_to(listener, sock)
    assert lasted >= 0.09


Wait = Callable[[], Awaitable[object]]


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[Wait]:
    """The events that the first, second, ... attempt waits for in addition to its answer."""
    besides: list[Wait] = []
    real = anyio.wait_writable

    async def wait_writable(sock: socket.socket) -> None:
        more = besides.pop(0) if besides else anyio.lowlevel.checkpoint
        await real(sock)
        await more()

    monkeypatch.setattr(anyio, "wait_writable", wait_writable)
    monkeypatch.setattr(_connect, "_is_connected", lambda sock: False)  # not connected yet, as with a distant machine
    return besides


async def test_the_first_may_yet_answer_when_the_second_has_been_tried(
    names: dict[str, Addresses], waits: list[Wait], monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    monkeypatch.setattr(_connect, "ATTEMPT_DELAY", 0.001)
    second_tried = anyio.Event()

    async def never() -> None:
        second_tried.set()
        await anyio.sleep_forever()

    waits += [second_tried.wait, never]
    with listening("::1") as other:
        names["peer.example"] = [address_of(listener), address_of(other)]
        with anyio.fail_after(PEER_TIMEOUT):
            sock = await connect("peer.example", 80)
    assert await connected_to(listener, sock)


async def test_of_two_that_answer_at_once_one_is_kept(
    names: dict[str, Addresses], waits: list[Wait], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connect, "ATTEMPT_DELAY", 0.001)
    second_answered = anyio.Event()

    async def wake_the_first() -> None:
        second_answered.set()  # the first continues in the same turn, too late to be cancelled

    waits += [second_answered.wait, wake_the_first]
    with listening() as one, listening("::1") as other:
        names["peer.example"] = [address_of(one), address_of(other)]
        with anyio.fail_after(PEER_TIMEOUT):
            sock = await connect("peer.example", 80)
        assert sock.family == socket.AF_INET6
        with await accept(one) as peer:
            assert await blocking(peer.recv, 1) == b"", "the late connection was left open"
        assert await connected_to(other, sock)


async def test_if_all_fail_all_failures_are_raised(names: dict[str, Addresses]) -> None:
    names["peer.example"] = [dead(), ("::1", unused_port()), ("255.255.255.255", 9)]
    with pytest.raises(ExceptionGroup) as raised:
        await connect("peer.example", 80)
    assert raised.value.message == "none of 3 addresses could be connected to"
    codes = [exc.errno for exc in raised.value.exceptions if isinstance(exc, OSError)]
    assert len(codes) == 3
    assert codes.count(errno.ECONNREFUSED) == 2


async def test_a_silent_address_is_waited_for_when_the_others_have_failed(
    names: dict[str, Addresses],
    waits: list[Wait],
    attempts: list[_connect.Address],
    monkeypatch: pytest.MonkeyPatch,
    listener: socket.socket,
) -> None:
    monkeypatch.setattr(_connect, "ATTEMPT_DELAY", 0.001)

    async def others_failed() -> None:
        while len(attempts) < 3:
            await all_blocked()
        await all_blocked()

    waits += [others_failed]
    names["peer.example"] = [address_of(listener), dead(), dead()]
    with anyio.fail_after(PEER_TIMEOUT):
        sock = await connect("peer.example", 80)
    assert await connected_to(listener, sock)


async def test_an_address_of_a_family_that_the_system_lacks_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, listener: socket.socket
) -> None:
    monkeypatch.setattr(_connect, "ATTEMPT_DELAY", NEVER)

    async def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        unknown = (250, socket.SOCK_STREAM, 6, "", ("nowhere", port))
        return [unknown, (socket.AF_INET, socket.SOCK_STREAM, 6, "", address_of(listener))]

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
    with anyio.fail_after(PEER_TIMEOUT):
        sock = await connect("peer.example", 80)
    assert await connected_to(listener, sock)


# Local addresses


@pytest.mark.parametrize(("remote", "local"), [(LOOPBACK, LOOPBACK), (LOOPBACK, "127.0.0.2"), ("::1", "::1")])
async def test_connecting_from_an_address(remote: str, local: str) -> None:
    with listening(remote) as listener:
        sock = await connect(remote, port_of(listener), local)
        assert sock.getsockname()[0] == local
        assert await connected_to(listener, sock)


async def test_connecting_from_a_name_takes_its_first_address_of_each_family(
    names: dict[str, Addresses], attempts: list[_connect.Address]
) -> None:
    names["peer.example"] = [dead(), dead(), ("::1", unused_port())]
    names["from.example"] = [("::1", 0), ("127.0.0.2", 0), ("::2", 0), ("127.0.0.3", 0)]
    with pytest.raises(ExceptionGroup) as raised:
        await connect("peer.example", 80, "from.example")
    assert [address.local for address in attempts] == [("127.0.0.2", 0), ("::1", 0), ("127.0.0.2", 0)]
    assert [type(exc) for exc in raised.value.exceptions] == [ConnectionRefusedError] * 3


async def test_addresses_of_a_family_that_is_not_connected_from_are_passed_over(
    names: dict[str, Addresses], attempts: list[_connect.Address], listener: socket.socket
) -> None:
    names["peer.example"] = [("::1", port_of(listener)), address_of(listener)]
    assert await connected_to(listener, await connect("peer.example", 80, "127.0.0.2"))
    assert attempts == [(socket.AF_INET, address_of(listener), ("127.0.0.2", 0))]


@pytest.mark.parametrize(("remote", "local", "family"), [(LOOPBACK, "::1", "IPv6"), ("::1", LOOPBACK, "IPv4")])
async def test_connecting_from_an_address_of_another_family(remote: str, local: str, family: str) -> None:
    with pytest.raises(OSError, match="address") as raised:
        await connect(remote, 80, local)
    assert raised.value.errno == errno.EADDRNOTAVAIL
    assert raised.value.strerror == f"{remote} has no {family} address to connect to from {local}"


async def test_connecting_from_an_address_of_another_machine(listener: socket.socket) -> None:
    with pytest.raises(OSError, match="Errno") as raised:
        await connect(LOOPBACK, port_of(listener), "203.0.113.1")
    assert raised.value.errno == errno.EADDRNOTAVAIL


async def test_connecting_from_what_cannot_be_a_name(listener: socket.socket) -> None:
    with pytest.raises(UnicodeError):
        await connect(LOOPBACK, port_of(listener), "bü cher.example")


# Cancellation. The fixture that checks for leaks makes sure that no descriptor is left.


async def cancelled_when_blocked(host: str, *, local_host: str | None = None) -> None:
    """Cancel connect() once it waits."""

    async def run() -> None:
        await connect(host, 80, local_host)
        pytest.fail("connected")

    with anyio.fail_after(PEER_TIMEOUT):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await all_blocked()
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("asked", ["host", "local_host"])
async def test_cancelled_while_resolving(monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    questions = []

    async def getaddrinfo(host: str, port: int, **options: Any) -> list[Any]:
        questions.append(host)
        await anyio.sleep_forever()
        raise AssertionError

    monkeypatch.setattr(anyio, "getaddrinfo", getaddrinfo)
    if asked == "host":
        await cancelled_when_blocked("slow.example", local_host=LOOPBACK)
    else:
        await cancelled_when_blocked(LOOPBACK, local_host="slow.example")
    assert questions == ["slow.example"]


@pytest.mark.parametrize("others", [0, 1, 2])
async def test_cancelled_while_nobody_answers(
    names: dict[str, Addresses],
    attempts: list[_connect.Address],
    monkeypatch: pytest.MonkeyPatch,
    others: int,
) -> None:
    monkeypatch.setattr(_connect, "ATTEMPT_DELAY", 0.001)
    with silent() as address:
        names["peer.example"] = [address] * (1 + others)

        async def run() -> None:
            await connect("peer.example", 80)
            pytest.fail("connected")

        with anyio.fail_after(PEER_TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                while len(attempts) <= others:
                    await all_blocked()
                await all_blocked()
                tasks.cancel_scope.cancel()
    assert len(attempts) == 1 + others


async def test_cancelled_before_the_delay_is_over(
    names: dict[str, Addresses], attempts: list[_connect.Address], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_connect, "ATTEMPT_DELAY", NEVER)
    with silent() as first, silent() as second:
        names["peer.example"] = [first, second]
        await cancelled_when_blocked("peer.example")
    assert [address.remote for address in attempts] == [first]


@pytest.mark.parametrize("count", [1, 2])
async def test_cancelled_in_the_moment_of_the_answer(
    names: dict[str, Addresses], waits: list[Wait], monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Either it has connected, or it is cancelled and the connection is closed."""
    monkeypatch.setattr(_connect, "ATTEMPT_DELAY", NEVER)
    waiting, answer = anyio.Event(), anyio.Event()

    async def wait() -> None:
        waiting.set()
        await answer.wait()

    waits += [wait]
    connected: list[socket.socket] = []

    async def run() -> None:
        connected.append(await connect("peer.example", 80))

    with listening() as listener:
        names["peer.example"] = [address_of(listener)] * count
        with anyio.fail_after(PEER_TIMEOUT):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(run)
                await waiting.wait()
                answer.set()
                tasks.cancel_scope.cancel()
        for sock in connected:
            sock.close()
        with await accept(listener) as peer:
            assert await blocking(peer.recv, 1) == b""
