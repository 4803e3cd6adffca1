"""Runs every test of the package on each event loop, with a time limit, and fails tests that leak.

Rules for tests: use port 0 and loopback only. Never sleep to make something happen; wait for the event or call
``all_blocked()``. The peer is a blocking socket of the standard library (``peers.py``).
"""

from __future__ import annotations

import gc
import os
import signal
import socket
import ssl
import sys
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import hypothesis
import pytest

from .certificates import VERSIONS
from .peers import LOOPS, listening, port_of

hypothesis.settings.register_profile("default", deadline=None)  # a shared machine may pause at any point
hypothesis.settings.register_profile("long", deadline=None, max_examples=10_000)
hypothesis.settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full-load", action="store_true", help="let test_load.py bear the whole load")


@pytest.fixture(params=[pytest.param(value, id=name) for name, value in LOOPS.items()])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    value: tuple[str, dict[str, Any]] = request.param
    return value


@pytest.fixture
def backend(anyio_backend: tuple[str, dict[str, Any]]) -> str:
    """The event loop, by its name on the command line."""
    return next(name for name, value in LOOPS.items() if value == anyio_backend)


@pytest.fixture(params=["client", "server"])
def role(request: pytest.FixtureRequest) -> str:
    """The role of the socket, for behaviour that is the same whether the program opened the socket or accepted it."""
    return str(request.param)


@pytest.fixture(params=[pytest.param(value, id=name) for name, value in VERSIONS.items()])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    """The TLS version, for behaviour that is the same in each."""
    value: ssl.TLSVersion = request.param
    return value


@pytest.fixture(params=["plain", *VERSIONS])
def layer(request: pytest.FixtureRequest) -> str:
    """Plaintext or a TLS version, for behaviour that is the same in all; see ``joined()`` of peers.py."""
    return str(request.param)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A blocking socket that listens on loopback."""
    with listening() as sock:
        yield sock


@pytest.fixture
def clogged() -> Iterator[int]:
    """A port of loopback on which connecting neither succeeds nor fails."""
    with listening(backlog=0) as listener:
        waiting = [socket.socket() for _ in range(8)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield port_of(listener)
        for sock in waiting:
            sock.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """For peers that do nothing more: what is waited for them, in vain, is short."""
    monkeypatch.setattr("mozsocket._stream.PEER_PATIENCE", 0.02)
    monkeypatch.setattr("mozsocket._limits.ALERT_PATIENCE", 0.02)
    monkeypatch.setattr("mozsocket._limits.FAILURE_PATIENCE", 0.02)
    monkeypatch.setattr("mozsocket._limits.PLAINTEXT_PATIENCE", 0.1)


@pytest.fixture(scope="session", autouse=True)
def prepared() -> None:
    """Import and use uvloop once: it then opens a pipe and keeps it, which must not count as a test's leak."""
    anyio.run(anyio.lowlevel.checkpoint, backend_options={"use_uvloop": True})


@pytest.fixture(autouse=True)
def not_ignoring_interrupts() -> Iterator[None]:
    """Handle SIGINT even if it is ignored, as in a shell's background job: started processes would inherit that."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """Fail the test if it leaves a descriptor or a thread, or an object that warns when it is collected."""
    gc.collect()
    gc.freeze()  # objects from before the test need not be scanned after it
    descriptors, threads = open_descriptors(), threading.active_count()
    yield
    for _ in range(3):  # one collection may create further garbage
        gc.collect()
    left = {fd: name for fd, name in open_descriptors().items() if descriptors.get(fd) != name}
    assert not left, f"left open: {left}"
    # AnyIO's and Trio's worker threads stay idle for a while after the event loop has ended.
    assert threading.active_count() <= threads + 10


def open_descriptors() -> dict[int, str]:
    """The open descriptors of this process, with what each refers to; empty where the system does not list them."""
    if sys.platform != "linux":
        return {}
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of the listing itself
            pass
    return found
