"""Every test of the package runs on each event loop, within a time limit, and fails if it leaks.

Rules: port 0; loopback only; no sleep to make something happen, but wait for the event or
``all_blocked()``; the peer is a blocking socket of the standard library (``peers.py``).
"""

from __future__ import annotations

import gc
import os
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

hypothesis.settings.register_profile("default", deadline=None)  # a shared machine may pause anywhere
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
    """The event loop, as the command line names it."""
    return next(name for name, value in LOOPS.items() if value == anyio_backend)


@pytest.fixture(params=["client", "server"])
def role(request: pytest.FixtureRequest) -> str:
    """For what is the same whether the program opened the socket or accepted it."""
    return str(request.param)


@pytest.fixture(params=[pytest.param(value, id=name) for name, value in VERSIONS.items()])
def version(request: pytest.FixtureRequest) -> ssl.TLSVersion:
    """For what is the same in each version of TLS."""
    value: ssl.TLSVersion = request.param
    return value


@pytest.fixture(params=["plain", *VERSIONS])
def layer(request: pytest.FixtureRequest) -> str:
    """For what is the same without TLS and in each version of it, see ``joined()`` of peers.py."""
    return str(request.param)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A blocking socket that listens on loopback."""
    with listening() as sock:
        yield sock


@pytest.fixture
def clogged() -> Iterator[int]:
    """A port of loopback that lets no further connection be made, and refuses none."""
    with listening(backlog=0) as listener:
        waiting = [socket.socket() for _ in range(8)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield port_of(listener)
        for sock in waiting:
            sock.close()


@pytest.fixture(scope="session", autouse=True)
def prepared() -> None:
    """uvloop opens a pipe of its own when it is first used, for good, which is no leak of a test."""
    anyio.run(anyio.lowlevel.checkpoint, backend_options={"use_uvloop": True})


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """No descriptor and no thread is left behind, nor an object that warns when it is collected."""
    gc.collect()
    gc.freeze()  # what is there before the test need not be looked at after it
    descriptors, threads = open_descriptors(), threading.active_count()
    yield
    for _ in range(3):  # a collection may make further garbage
        gc.collect()
    left = {fd: name for fd, name in open_descriptors().items() if descriptors.get(fd) != name}
    assert not left, f"left open: {left}"
    # AnyIO's and Trio's worker threads outlive the event loop for a while, idle.
    assert threading.active_count() <= threads + 10


def open_descriptors() -> dict[int, str]:
    """The descriptors of this process, with what they are open on; none where the system does not tell."""
    if sys.platform != "linux":
        return {}
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # that of the listing itself
            pass
    return found
