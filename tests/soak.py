"""A long-running mix of everything: ``python -m tests.soak --minutes N --backend B``.

Clients and servers of the package and of the standard library come and go: in plaintext, in TLS, upgrading to it, and
some of them faulty. Every byte is checked. Once a minute they pause and a line of statistics is printed; at that point
nothing of theirs may be left. The exit status is 1 if anything was lost, hung, was left behind or has grown.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import logging
import os
import random
import socket
import ssl
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar

import anyio

from mozsocket import InvalidStateError, MozTCPSocket, TCPSocket, TCPSocketError

from .certificates import client_context, server_context
from .footprint import Footprint
from .peers import LOOPS, all_blocked, blocking, listening, port_of, read_all, read_exactly, reset

WORKERS = 24
TIME_LIMIT = 60  # seconds in which each connection must have ended
ROUND = 60.0  # seconds between two pauses
WARM_UP = 5.0
MARGIN = 1.25, 16_000_000  # memory may grow by this factor, and by this number of bytes, after the warm-up
OBJECTS = 3_000  # growth of the number of objects that caches may cause

PATTERN = os.urandom(1 << 20)
SIZES = (1, 100, 5_000, 70_000, 400_000, 1_000_000)
CHUNKS = (100, 4_000, 20_000, 65_536, 200_000)
KINDS = ("plain", "tls", "starttls")
REQUEST, READY = b"STARTTLS\n", b"READY\n"


class Ledger:
    """Counts what happened.

    :ivar problems: what should not have happened
    """

    def __init__(self) -> None:
        self.connections = self.bytes = self.accepted = 0
        self.errors: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []

    def require(self, condition: object, what: str) -> None:
        if not condition:
            self.problems.append(what)


class HandlerError(Exception):
    """Raised by a handler on purpose."""


class Expected(logging.Handler):
    """A log handler that accepts only the messages that the faults must cause."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self._ledger = ledger

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        logger = logging.getLogger("mozsocket")
        logger.addHandler(self)
        logger.propagate = False
        try:
            yield
        finally:
            logger.propagate = True
            logger.removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        match record.args, record.exc_info:
            case (_, TCPSocketError() as error), _:
                self._ledger.errors[f"logged {error.name}"] += 1
            case _, (_, HandlerError(), _):
                self._ledger.errors["logged HandlerError"] += 1
            case (_, int() as more, str() as kind), _:  # the summary of repeated messages that were suppressed
                self._ledger.errors[f"logged {kind.split()[-1]}"] += more
            case _:
                self._ledger.problems.append(f"logged: {record.getMessage()}")


class EchoServer:
    """Sends back what it receives. The first line may request TLS, or an exception in a handler."""

    def __init__(self, ledger: Ledger, context: ssl.SSLContext) -> None:
        self._ledger = ledger
        self._context = context

    def on_connect(self, event: Any) -> None:
        accepted = event.socket
        self._ledger.accepted += 1
        accepted.ondata = self._first
        accepted.ondrain = lambda event: accepted.resume()
        accepted.onerror = self._on_error
        accepted.onclose = self._on_close

    def _first(self, event: Any) -> None:
        accepted = event.target
        if event.data == b"raise":
            raise HandlerError
        accepted.ondata = self._echo
        if event.data == REQUEST:
            accepted.send(READY)
            accepted.upgradeToSecure(ssl_context=self._context)
        else:
            self._echo(event)

    def _echo(self, event: Any) -> None:
        if not event.target.send(event.data):
            event.target.suspend()

    def _on_error(self, event: Any) -> None:
        self._ledger.errors[event.name] += 1

    def _on_close(self, event: Any) -> None:
        self._ledger.accepted -= 1


class EchoClient:
    """Sends a number of bytes and checks that they come back."""

    def __init__(self, socket_: TCPSocket, kind: str, size: int, ledger: Ledger, context: ssl.SSLContext) -> None:
        begin = random.randrange(len(PATTERN))
        self._data = (PATTERN[begin:] + PATTERN)[:size]
        self._chunk = random.choice(CHUNKS)
        self._socket = socket_
        self._kind = kind
        self._ledger = ledger
        self._context = context
        self._sent = self._received = 0
        socket_.onopen = self._on_open
        socket_.onsecure = lambda event: self._send()
        socket_.ondrain = lambda event: self._send()
        socket_.ondata = self._on_data

    def _on_open(self, event: Any) -> None:
        if self._kind == "starttls":
            self._socket.send(REQUEST)
        else:
            self._send()

    def _send(self) -> None:
        while self._sent < len(self._data):
            chunk = self._data[self._sent :][: self._chunk]
            self._sent += len(chunk)
            if not self._socket.send(chunk):
                return

    def _on_data(self, event: Any) -> None:
        if self._kind == "starttls" and not self._socket.ssl:
            self._ledger.require(event.data == READY, f"{event.data[:20]!r} instead of {READY!r}")
            self._socket.upgradeToSecure(ssl_context=self._context)
            return
        expected = self._data[self._received :][: len(event.data)]
        self._ledger.require(event.data == expected, f"wrong data at {self._received} of {len(self._data)}")
        self._received += len(event.data)
        self._ledger.bytes += len(event.data)
        if self._received == len(self._data):
            self._socket.close()

    async def run(self) -> None:
        """Run until all is back, suspending now and then."""
        async with self._socket:
            while self._socket.readyState in ("connecting", "open"):
                self._socket.suspend()
                await anyio.sleep(random.random() / 100)
                self._socket.resume()
                await anyio.sleep(random.random() / 10)
            await self._socket.closed()
        self._ledger.require(
            self._received == len(self._data), f"{self._received} of {len(self._data)} bytes came back"
        )


class Soak:
    def __init__(self, seed: int) -> None:
        random.seed(seed)
        self._ledger = Ledger()
        self._contexts = client_context(), server_context()
        self._ports: dict[str, int] = {}
        self._footprints: list[Footprint] = []

    async def run(self, seconds: float) -> list[str]:
        """Run the soak.

        :return: the problems
        """
        with Expected(self._ledger).installed():
            await self._soak(seconds)
        return self._ledger.problems

    async def _soak(self, seconds: float) -> None:
        tls: dict[str, Any] = {"useSecureTransport": True, "ssl_context": self._contexts[1]}
        async with MozTCPSocket() as tcp:
            for kind, options in (("plain", {}), ("tls", tls)):
                server = tcp.listen(0, host="127.0.0.1", handshake_timeout=2, **options)
                server.onconnect = EchoServer(self._ledger, self._contexts[1]).on_connect
                self._ports[kind] = server.localPort
            self._ports["starttls"] = self._ports["plain"]
            await self._churn(min(WARM_UP, seconds / 3))
            await self._measure()
            print(f"{'warm-up':>8}  {self._describe()}", flush=True)
            end = time.monotonic() + seconds
            while time.monotonic() < end and not self._ledger.problems:
                await self._churn(min(ROUND, seconds / 3, max(1, end - time.monotonic())))
                await self._measure()
                self._compare()
                passed = (seconds + time.monotonic() - end) / 60
                print(f"{passed:5.1f} min  {self._describe()}", flush=True)
            tcp.close()

    async def _churn(self, seconds: float) -> None:
        """Run everything at once for a while, then wait until all connections have ended."""
        end = time.monotonic() + seconds
        async with anyio.create_task_group() as tasks:
            for _ in range(WORKERS):
                tasks.start_soon(self._work, end)
        with anyio.move_on_after(TIME_LIMIT):
            while self._ledger.accepted:  # noqa: ASYNC110
                await anyio.sleep(0.05)
        self._ledger.require(not self._ledger.accepted, f"{self._ledger.accepted} accepted sockets have not closed")

    async def _work(self, end: float) -> None:
        scenarios = list(self.SCENARIOS)
        weights = [self.SCENARIOS[scenario] for scenario in scenarios]
        while time.monotonic() < end and not self._ledger.problems:
            (scenario,) = random.choices(scenarios, weights)
            kind = random.choice(KINDS)
            self._ledger.connections += 1
            try:
                with anyio.fail_after(TIME_LIMIT):
                    await scenario(self, kind)
            except Exception as exc:
                self._ledger.problems.append(f"{scenario.__name__}({kind!r}): {exc!r}")

    async def _measure(self) -> None:
        await all_blocked()  # tasks end slightly later than their sockets close
        self._footprints.append(Footprint())

    def _compare(self) -> None:
        first, last = self._footprints[0], self._footprints[-1]
        require = self._ledger.require
        require(last.descriptors <= first.descriptors, f"descriptors: {first.descriptors}, now {last.descriptors}")
        require(last.tasks <= first.tasks, f"tasks: {first.tasks}, now {last.tasks}")
        require(last.objects <= first.objects + OBJECTS, f"objects: {first.objects}, now {last.objects}")
        # Before the first round little was in use, so memory is compared with the state after it.
        least = self._footprints[1].memory
        require(last.memory <= MARGIN[0] * least + MARGIN[1], f"memory: {least} bytes, now {last.memory}")

    def _describe(self) -> str:
        ledger, last = self._ledger, self._footprints[-1]
        errors = ", ".join(f"{count} {name}" for name, count in sorted(ledger.errors.items())) or "none"
        return (
            f"{ledger.connections} connections, {ledger.bytes / 1e6:.0f} MB checked; left: {last.descriptors}"
            f" descriptors, {last.tasks} tasks, {last.objects} objects, {last.memory / 1e6:.0f} MB;"
            f" errors, all of them meant: {errors}"
        )

    # Connections without faults

    def _client(self, port: int, kind: str) -> TCPSocket:
        secure = kind == "tls"
        return TCPSocket(
            "localhost", port, useSecureTransport=secure, ssl_context=self._contexts[0] if secure else None
        )

    def _echo_client(self, port: int, kind: str, ledger: Ledger) -> EchoClient:
        return EchoClient(self._client(port, kind), kind, random.choice(SIZES), ledger, self._contexts[0])

    async def between_ours(self, kind: str) -> None:
        await self._echo_client(self._ports[kind], kind, self._ledger).run()

    async def ours_to_theirs(self, kind: str) -> None:
        with listening() as listener:
            client = self._echo_client(port_of(listener), kind, self._ledger)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(blocking, self._serve, listener, kind)
                await client.run()

    def _serve(self, listener: socket.socket, kind: str) -> None:
        sock, _ = listener.accept()
        sock.settimeout(TIME_LIMIT)
        if kind == "starttls":
            read_exactly(sock, len(REQUEST))
            sock.sendall(READY)
        if kind != "plain":
            sock = self._contexts[1].wrap_socket(sock, server_side=True, suppress_ragged_eofs=False)
        with sock:
            while data := sock.recv(random.choice(CHUNKS)):
                sock.sendall(data)
            if isinstance(sock, ssl.SSLSocket):
                with contextlib.suppress(OSError):  # the peer may be gone already
                    sock.unwrap()

    async def theirs_to_ours(self, kind: str) -> None:
        data = PATTERN[: random.choice(SIZES)]
        received = await blocking(self._exchange, kind, data)
        self._ledger.require(received == data, f"wrong data of {len(data)} bytes")
        self._ledger.bytes += len(received)

    def _exchange(self, kind: str, data: bytes) -> bytes:
        received = []
        with self._connected(kind) as sock:
            for begin in range(0, len(data), 50_000):
                chunk = data[begin:][:50_000]
                sock.sendall(chunk)
                received.append(read_exactly(sock, len(chunk)))
            if isinstance(sock, ssl.SSLSocket):
                sock.unwrap().close()
            else:
                sock.shutdown(socket.SHUT_WR)
                assert sock.recv(1) == b"", "no end"
        return b"".join(received)

    @contextlib.contextmanager
    def _connected(self, kind: str) -> Iterator[socket.socket]:
        sock = socket.create_connection(("127.0.0.1", self._ports[kind]), TIME_LIMIT)
        if kind == "starttls":
            sock.sendall(REQUEST)
            read_exactly(sock, len(READY))
        if kind != "plain":
            sock = self._contexts[0].wrap_socket(sock, server_hostname="localhost", suppress_ragged_eofs=False)
        with sock:
            yield sock

    # Faults

    async def _fault(self, function: Callable[[socket.socket], object], kind: str) -> None:
        def run() -> None:
            with self._connected(kind) as sock:
                function(sock)

        await blocking(run)

    async def reset_by_client(self, kind: str) -> None:
        def fault(sock: socket.socket) -> None:
            sock.sendall(PATTERN[: random.choice(CHUNKS)])
            reset(sock)

        await self._fault(fault, kind)

    async def cut_off_by_client(self, kind: str) -> None:
        await self._fault(lambda sock: sock.sendall(PATTERN[: random.choice(CHUNKS)]), kind)

    async def raising_handler(self, kind: str) -> None:
        def fault(sock: socket.socket) -> None:
            sock.sendall(b"raise")
            with contextlib.suppress(OSError):
                assert sock.recv(1) == b""

        await self._fault(fault, random.choice(("plain", "tls")))

    async def nonsense(self, kind: str) -> None:
        await blocking(self._in_place_of_a_handshake, os.urandom(random.choice(CHUNKS)))

    async def silence(self, kind: str) -> None:
        """Stay silent until the handshake times out."""
        await blocking(self._in_place_of_a_handshake, b"")

    def _in_place_of_a_handshake(self, data: bytes) -> None:
        address = "127.0.0.1", self._ports["tls"]
        with socket.create_connection(address, TIME_LIMIT) as sock, contextlib.suppress(OSError):
            sock.sendall(data)
            read_all(sock)

    async def reset_by_server(self, kind: str) -> None:
        with listening() as listener:
            client = self._client(port_of(listener), "plain")
            client.onopen = lambda event: client.send(PATTERN[: random.choice(CHUNKS)])
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(blocking, lambda: reset(listener.accept()[0]))
                await self._fails(client)

    async def refused(self, kind: str) -> None:
        with socket.socket() as taken:  # keeps the port, so that no other program listens there
            taken.bind(("127.0.0.1", 0))
            await self._fails(self._client(port_of(taken), kind))

    async def _fails(self, client: TCPSocket) -> None:
        errors: list[str] = []
        client.onerror = lambda event: errors.append(event.name)
        async with client:
            with contextlib.suppress(TCPSocketError, InvalidStateError):
                await client.closed()
        self._ledger.require(errors, f"{client!r} has not failed")
        self._ledger.errors.update(errors)

    async def cancelled(self, kind: str) -> None:
        client = self._echo_client(self._ports[kind], kind, Ledger())
        with anyio.move_on_after(random.random() / 20):
            await client.run()

    async def closed_at_once(self, kind: str) -> None:
        client = self._client(self._ports[kind], kind)
        async with client:
            await anyio.sleep(random.random() / 100)
            client.closeImmediately()

    SCENARIOS: ClassVar[dict[Callable[[Soak, str], Awaitable[None]], int]] = {
        between_ours: 8,
        ours_to_theirs: 4,
        theirs_to_ours: 4,
        reset_by_client: 2,
        cut_off_by_client: 2,
        raising_handler: 1,
        nonsense: 1,
        silence: 1,
        reset_by_server: 2,
        refused: 1,
        cancelled: 2,
        closed_at_once: 2,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--backend", choices=list(LOOPS), default="asyncio")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    backend, options = LOOPS[arguments.backend]
    problems = anyio.run(Soak(arguments.seed).run, 60 * arguments.minutes, backend=backend, backend_options=options)
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{len(problems)} problems on {arguments.backend}, with seed {arguments.seed}")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
