"""Random sequences of what a program and a peer can do, checked against a model of what is guaranteed.

The program is one TCPSocket, in a thread with its own event loop. The peer is a socket of the standard library. Each
event and each call is checked against what must never happen. For what must happen in the end, the test waits.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import anyio
import anyio.abc
import anyio.from_thread
import anyio.lowlevel
import pytest
from anyio.abc import SocketAttribute
from hypothesis import HealthCheck, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mozsocket import InvalidStateError, MozTCPSocket, TCPSocketError

from ..certificates import client_context, server_context
from ..peers import PEER_TIMEOUT, listening, port_of, reset

if sys.version_info < (3, 11):  # a dependency of AnyIO
    from exceptiongroup import ExceptionGroup

CONTEXTS = client_context(), server_context()
PATTERN = os.urandom(1_000_003) * 3
THRESHOLD = 65536
NARROW, WIDE = 1 << 16, 1 << 20  # sizes of the system's buffers

TYPES = ("open", "secure", "data", "drain", "end", "error", "close")
SIZES = st.sampled_from([0, 1, 2, 100, 4095, 4096, 65535, 65536, 65537, 200_000, 1 << 20])
FORMS = st.sampled_from(["bytes", "bytearray", "memoryview", "str", "slice"])
CALLS = st.one_of(
    st.tuples(st.just("send"), SIZES, FORMS),
    st.sampled_from(
        [("suspend",), ("resume",), ("send_eof",), ("close",), ("closeImmediately",), ("upgrade",), ("raise",)]
    ),
)


def pattern(position: int, size: int) -> bytes:
    """The bytes that either side sends from a position of its stream on."""
    return PATTERN[position % 1_000_003 :][:size]


class HandlerError(Exception):
    """Raised by a handler on purpose."""


class Peer:
    """The other end. It only acts when called, so it stalls unless it is made to read.

    :ivar received: the number of bytes received and decrypted, all of which were correct
    :ivar sent: the number of bytes sent
    :ivar sent_in_plaintext: the number of bytes sent before TLS
    :ivar ended: whether the program's EOF has arrived
    :ivar lost: whether the connection is lost, or was closed by the peer itself
    :ivar confused: whether it was lost because its OpenSSL accepts no data after sending close_notify itself
    """

    def __init__(self, sock: socket.socket, plaintext: Callable[[], int | None], *, server_side: bool) -> None:
        """Set up the peer.

        :param plaintext: returns the number of bytes that it receives before TLS; None while that is unknown
        """
        sock.setblocking(False)
        self._sock = sock
        self._plaintext = plaintext
        self._server_side = server_side
        self._tls: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._unsent = b""  # TLS's output
        self.received = 0
        self.sent = self.sent_in_plaintext = 0
        self.ended = self.lost = self.half_closed = self.secure = self.confused = False

    @property
    def upgraded(self) -> bool:
        return self._tls is not None

    def upgrade(self) -> None:
        name = None if self._server_side else "localhost"
        context = CONTEXTS[self._server_side]
        self._tls = context.wrap_bio(self._incoming, self._outgoing, self._server_side, name)
        self.work()

    def work(self) -> None:
        """Continue the handshake, and send TLS's output."""
        if self._tls is not None and not self.secure and not self.lost:
            try:
                self._tls.do_handshake()
                self.secure = True
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:
                self._flush()
                self.lose()
        self._flush()

    def _flush(self) -> None:
        self._unsent += self._outgoing.read()
        if self._unsent and not self.lost:
            self._unsent = self._unsent[self._give(self._unsent) :]

    def _give(self, data: bytes) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.lose()
            return 0

    def send(self, size: int) -> None:
        data = pattern(self.sent, size)
        if self.half_closed or self.lost:
            return
        if self._tls is None:
            count = self._give(data)
            self.sent += count
            self.sent_in_plaintext += count
        elif self.secure and data:
            self.sent += self._tls.write(data)
            self._flush()

    def talk_nonsense(self) -> None:
        """Send plaintext, whatever the other side expects."""
        if not (self.half_closed or self.lost):
            count = self._give(b"nonsense " * 10)
            self.sent_in_plaintext += 0 if self.upgraded else count

    def read(self, size: int = 1 << 20) -> None:
        """Read what has arrived."""
        self.work()
        if self.lost or self.ended:
            return
        try:
            data = self._sock.recv(size)
        except BlockingIOError:
            return
        except OSError:
            self.lose()
            return
        self.ended = not data
        plaintext = self._plaintext()  # nothing is sent encrypted before this is known
        room = len(data) if plaintext is None else max(0, plaintext - self.received)
        self._receive(data[:room])
        self._incoming.write(data[room:])
        if self._tls is not None:
            self.work()
            self._decrypt()

    def _receive(self, data: bytes) -> None:
        assert data == pattern(self.received, len(data)), f"wrong data at {self.received}"
        self.received += len(data)

    def _decrypt(self) -> None:
        while self.secure and not self.lost:
            assert self._tls is not None
            try:
                data = self._tls.read(1 << 20)
            except ssl.SSLWantReadError:
                return
            except ssl.SSLError:
                self.confused = self.half_closed
                self.lose()
                return
            if not data:
                self.ended = True
                return
            self._receive(data)

    def end(self, *, orderly: bool = True) -> None:
        """Half-close.

        :param orderly: whether to send close_notify, if TLS is up
        """
        if self.half_closed or self.lost:
            return
        if orderly and self.secure:
            assert self._tls is not None
            with suppress(ssl.SSLError):
                self._tls.unwrap()
            self._flush()
            if self._unsent:
                return  # it ends later, or never
        self.half_closed = True
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def lose(self) -> None:
        self.lost = True
        self._sock.close()

    def reset(self) -> None:
        if not self.lost:
            self.lost = True
            reset(self._sock)


class Program:
    """The socket under test and its expected behaviour. Everything here runs in the event loop's thread.

    :ivar violations: what differed from the expected behaviour
    """

    def __init__(self, role: str, limit: int | None, *, secure: bool, half_open: bool, of_text: bool) -> None:
        self.role = role
        self._of_text = of_text
        self._half_open = half_open
        self._limit = limit
        self.socket: Any = None
        self.violations: list[str] = []
        self.types: list[str] = []  # the types of the events so far; successive data counts once
        self.delivered = 0  # bytes received
        self.taken = 0  # bytes that send() has accepted
        self.suspensions = 0
        self.upgraded = self._started_secure = secure
        self.plaintext_taken: int | None = 0 if secure else None
        self.delivered_in_plaintext = 0
        self.peer_sent_in_plaintext: Callable[[], int]
        self.drain_owed = False
        self.output_ended = False  # by the program
        self.closed = False  # by the program's close()
        self.aborted = False  # by the program's closeImmediately()
        self.raised: list[HandlerError] = []
        self.cancelled = False
        self.may_fail = False
        self.peer_ends = False
        self.peer_sent = 0
        self.plans: dict[str, list[tuple[Any, ...]]] = {type_: [] for type_ in TYPES}
        self.outcomes: list[tuple[str, BaseException | None]] = []
        self.waiting = 0
        self._current: Any = None
        self._attached: dict[str, list[Callable[[Any], object]]] = {type_: [] for type_ in TYPES}
        self._expected: list[Callable[[Any], object]] = []  # listeners yet to be called for the current event

    def require(self, condition: object, what: str) -> None:
        if not condition:
            self.violations.append(f"{what}; {self.socket!r} after {self.types}")

    def watch(self, socket_: Any) -> None:
        self.socket = socket_
        for type_ in TYPES:
            socket_.addEventListener(type_, self._begin)
            self.set_handler(type_, "sync")

    # Handlers

    def set_handler(self, type_: str, kind: str) -> None:
        async def asynchronous(event: Any) -> None:
            self._begin(event)
            await anyio.lowlevel.checkpoint()
            self._carry_out(type_)
            await anyio.lowlevel.checkpoint()

        def synchronous(event: Any) -> None:
            self._begin(event)
            self._carry_out(type_)

        handlers = {"sync": synchronous, "async": asynchronous, "none": None}
        setattr(self.socket, f"on{type_}", handlers[kind])

    def _carry_out(self, type_: str) -> None:
        plans = self.plans[type_]
        if plans:
            self.do(*plans.pop(0))

    def add_listener(self, type_: str, *, once: bool) -> None:
        def listener(event: Any) -> None:
            self.require(event is self._current, "a listener is called with another event")
            self.require(listener in self._expected, "a listener is called too often, or out of order")
            if listener in self._expected:
                self._expected.remove(listener)
            if once:
                self._attached[type_].remove(listener)

        self._attached[type_].append(listener)
        self.socket.addEventListener(type_, listener, once=once)

    def remove_listener(self, type_: str) -> None:
        if self._attached[type_]:
            listener = self._attached[type_].pop(0)
            self.socket.removeEventListener(type_, listener)
            if listener in self._expected:
                self._expected.remove(listener)

    def _begin(self, event: Any) -> None:
        """Check each event, called first by the handler, or by the first listener if there is no handler."""
        if event is self._current:
            return
        if not self.raised:
            self.require(not self._expected, "a listener was not called")
        self._current = event
        self._expected = list(self._attached[event.type])
        self.require("close" not in self.types, f"{event.type} after close")
        self.require(not self.cancelled, f"{event.type} after the cancellation")
        self.require("error" not in self.types or event.type == "close", f"{event.type} after error")
        if not (event.type == "data" and self.types[-1:] == ["data"]):
            self.types.append(event.type)
        getattr(self, f"_on_{event.type}")(event)

    def _on_open(self, event: Any) -> None:
        self.require(self.types == ["open"], "open is not the first event")
        self.require(self.role == "client", "open of an accepted socket")
        self.require(self.socket.readyState == "open", "open, but it is not")

    def _on_secure(self, event: Any) -> None:
        self.require(self.types.count("secure") == 1, "a second secure")
        self.require(self.upgraded, "secure without an upgrade")
        sent = self.peer_sent_in_plaintext()
        self.require(self.delivered_in_plaintext == sent, f"secure after {sent} bytes of plaintext")

    def _on_data(self, event: Any) -> None:
        self.require(event.data, "an empty data event")
        sent = pattern(self.delivered, len(event.data))
        expected = sent.decode("latin-1") if self._of_text else sent
        self.require(event.data == expected, f"wrong data at {self.delivered}")
        self.delivered += len(event.data)
        self.require(not self.suspensions, "data while suspended")
        self.require(self.socket.readyState == "open" and "end" not in self.types, "data after the end")
        self.require(not self.upgraded or self.secure, "data between upgradeToSecure() and secure")

    def _on_drain(self, event: Any) -> None:
        self.require(self.drain_owed, "a drain that is not owed")
        self.require(self.socket.bufferedAmount == 0, "a drain while something is buffered")
        self.drain_owed = False

    def _on_end(self, event: Any) -> None:
        self.require(self._half_open, "end of a socket that is not to be half open")
        self.require(self.peer_ends or self.may_fail, "end, but the peer has not ended")  # a lost one ends too
        self.require(self.types.count("end") == 1, "a second end")
        self.require(not self.suspensions, "end while suspended")
        self.require(self.socket.readyState == "open", "end, but it is not open")

    def _on_error(self, event: Any) -> None:
        self.require(self.may_fail, f"it failed: {event.error!r}")
        self.require(self.socket.readyState == "closed", "error before it is closed")

    def _on_close(self, event: Any) -> None:
        self.require(self.socket.readyState == "closed", "close before it is closed")
        self.require(self.socket.bufferedAmount == 0, "close while something is buffered")

    @property
    def secure(self) -> bool:
        return self._started_secure or "secure" in self.types

    # Calls

    def do(self, call: str, *arguments: Any) -> None:
        if self.violations:
            return
        try:
            getattr(self, f"_do_{call}")(*arguments)
        except HandlerError:
            raise
        except Exception as exc:
            self.violations.append(f"{call} raised {exc!r}")
        if self.socket.bufferedAmount < 0:
            self.violations.append("less than nothing is buffered")

    def _do_send(self, size: int, form: str) -> None:
        state, before, data = self.socket.readyState, self.socket.bufferedAmount, pattern(self.taken, size)
        no_text = form == "str" and not (self._of_text or data.isascii())
        try:
            has_room = self._send(data, form)
        except InvalidStateError:
            self.require(state != "open" or self.output_ended, "send() is refused")
            return
        except BufferError:
            self.require(
                self._limit is not None and before + size > self._limit, "send() raised BufferError below the limit"
            )
            self.require(self.socket.bufferedAmount == before, "send() buffered data that it refused")
            self.drain_owed = self.drain_owed or before > 0
            return
        except ValueError:
            self.require(no_text, "send() is refused for its data")
            self.require(self.socket.bufferedAmount == before, "send() buffered data that it refused")
            return
        self.require(not no_text, "send() is not refused for its data")
        self.require(state == "open" and not self.output_ended, "send() is not refused")
        self.taken += size
        after = self.socket.bufferedAmount
        self.require(after == before + size or (self.may_fail and after == 0), f"{before} + {size} = {after}")
        self.require(has_room == (after <= THRESHOLD), f"send() says {has_room} with {after} bytes buffered")
        self.drain_owed = self.drain_owed or not has_room

    def _send(self, data: bytes, form: str) -> Any:
        if form == "slice":
            return self.socket.send(b"<<<" + data + b">>>", 3, len(data))
        if form == "str":
            return self.socket.send(data.decode("latin-1"))
        if form == "memoryview":
            return self.socket.send(memoryview(data))
        if form == "bytearray":
            changed = bytearray(data)
            has_room = self.socket.send(changed)
            changed[:] = bytes(len(changed))
            return has_room
        return self.socket.send(data)

    def _do_send_eof(self) -> None:
        state = self.socket.readyState
        try:
            self.socket.send_eof()
        except InvalidStateError:
            self.require(state != "open", "send_eof() is refused")
            return
        self.require(state == "open", "send_eof() is not refused")
        self.output_ended = True
        ends_both = "end" in self.types
        self.require(self.socket.readyState == ("closing" if ends_both else "open"), "send_eof() closes, or does not")

    def _do_suspend(self) -> None:
        self.socket.suspend()
        self.suspensions += 1

    def _do_resume(self) -> None:
        if self.suspensions:
            self.suspensions -= 1
            self.socket.resume()
        else:
            with pytest.raises(InvalidStateError):
                self.socket.resume()

    def _do_close(self) -> None:
        self.closed = self.closed or self.socket.readyState == "open"
        self.socket.close()
        self.require(self.socket.readyState in ("closing", "closed"), "close() does not close")

    def _do_closeImmediately(self) -> None:  # noqa: N802
        self.aborted = True
        self.socket.closeImmediately()
        self.require(self.socket.readyState in ("closing", "closed"), "closeImmediately() does not close")
        self.require(self.socket.bufferedAmount == 0, "closeImmediately() keeps what is buffered")

    def _do_upgrade(self) -> None:
        state = self.socket.readyState
        try:
            self.socket.upgradeToSecure(ssl_context=CONTEXTS[self.role == "server"], server_hostname="localhost")
        except InvalidStateError:
            self.require(state != "open" or self._has_an_end, "upgradeToSecure() is refused")
            return
        self.require(state == "open" and (self.upgraded or not self._has_an_end), "upgradeToSecure() is not refused")
        self.require(self.socket.ssl, "upgradeToSecure() does nothing")
        if not self.upgraded:
            self.upgraded = True
            self.plaintext_taken = self.taken
            self.delivered_in_plaintext = self.delivered
            # Data in transit is then part of TLS, where it is invalid.
            self.may_fail = self.may_fail or self.delivered < self.peer_sent or self.peer_ends

    def _do_raise(self) -> None:
        if self._current is not None and not self.cancelled:
            self.aborted = True
            self.raised.append(HandlerError(len(self.raised)))
            raise self.raised[-1]

    async def wait_for(self, what: str) -> None:
        self.waiting += 1
        outcome: BaseException | None = None
        try:
            await getattr(self.socket, what)()
        except (TCPSocketError, InvalidStateError) as exc:
            outcome = exc
        finally:
            self.waiting -= 1
        self.outcomes.append((what, outcome))

    @property
    def _has_an_end(self) -> bool:
        return self.output_ended or "end" in self.types

    @property
    def is_over(self) -> bool:
        return "close" in self.types or self.cancelled


class Logged(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


class Machine(RuleBasedStateMachine):
    """One connection, from opening to end.

    The choice of rules depends on the number of steps alone, as Hypothesis must be able to repeat an example.
    """

    def __init__(self, backend: str, options: dict[str, Any]) -> None:
        super().__init__()
        self._resources = ExitStack()
        self._logged = Logged()
        logger = logging.getLogger("mozsocket")
        logger.addHandler(self._logged)
        logger.propagate = False
        self._resources.callback(setattr, logger, "propagate", True)
        self._resources.callback(logger.removeHandler, self._logged)
        self._portal = self._resources.enter_context(anyio.from_thread.start_blocking_portal(backend, options))
        self._listener = self._resources.enter_context(listening())
        self._steps = 0

    @initialize(
        role=st.sampled_from(["client", "server"]),
        secure=st.booleans(),
        limit=st.sampled_from([None, None, 100_000]),
        half_open=st.booleans(),
        of_text=st.booleans(),
        is_narrow=st.booleans(),
    )
    def connect(
        self, role: str, secure: bool, limit: int | None, half_open: bool, of_text: bool, is_narrow: bool
    ) -> None:
        """Connect the program and the peer.

        :param of_text: whether ``binaryType`` is ``"string"``
        :param is_narrow: whether the system's buffers are so small that much data waits in the program
        """
        self.program = Program(role, limit, secure=secure, half_open=half_open, of_text=of_text)
        options: dict[str, Any] = {"max_buffered_amount": limit, "linger": PEER_TIMEOUT, "useSecureTransport": secure}
        options |= {"allow_half_open": half_open, "binaryType": "string" if of_text else "arraybuffer"}
        # Accepted sockets inherit it.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW if is_narrow else WIDE)
        self._main, self._stop = self._portal.start_task(self._run, options)
        if role == "client":
            sock, _ = self._listener.accept()
        else:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, NARROW if is_narrow else WIDE)
            sock.connect(("127.0.0.1", self._port))
        self.peer = Peer(sock, lambda: self.program.plaintext_taken, server_side=role == "client")
        if secure:
            self.peer.upgrade()
        self.program.peer_sent_in_plaintext = lambda: self.peer.sent_in_plaintext
        self.eventually(lambda: self.program.socket is not None and self.program.socket.readyState == "open")
        if secure:
            self.eventually(lambda: self.peer.secure)
        if is_narrow:
            raw = self.program.socket.extra(SocketAttribute.raw_socket)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, NARROW)

    async def _run(self, options: dict[str, Any], *, task_status: anyio.abc.TaskStatus[anyio.Event]) -> None:
        stop = anyio.Event()
        program = self.program
        async with MozTCPSocket() as tcp:
            self._scope = tcp.cancel_scope
            if options["useSecureTransport"]:
                options |= {"ssl_context": CONTEXTS[program.role == "server"]}
            if program.role == "client":
                if options["useSecureTransport"]:
                    options |= {"server_hostname": "localhost"}
                program.watch(tcp.open("127.0.0.1", port_of(self._listener), **options))
            else:
                server = tcp.listen(0, host="127.0.0.1", **options)
                self._port = server.localPort

                def on_connect(event: Any) -> None:
                    server.close()
                    program.watch(event.socket)

                server.onconnect = on_connect
            task_status.started(stop)
            await stop.wait()

    def eventually(self, reached: Callable[[], bool]) -> None:
        """Have the peer read until a condition is true."""
        deadline = time.monotonic() + PEER_TIMEOUT
        while not reached():
            self.peer.read()
            self._portal.call(anyio.lowlevel.checkpoint)
            self.check()
            assert time.monotonic() < deadline, f"hangs: {self.program.socket!r} after {self.program.types}"

    @invariant()
    def check(self) -> None:
        if hasattr(self, "program"):
            assert not self.program.violations, self.program.violations

    # The program's actions

    def _do(self, *call: Any) -> None:
        self._portal.call(self.program.do, *call)
        self._steps += 1

    @rule(size=SIZES, form=FORMS)
    def send(self, size: int, form: str) -> None:
        self._do("send", size, form)

    @rule()
    def suspend(self) -> None:
        self._do("suspend")

    @rule()
    def resume(self) -> None:
        self._do("resume")

    @precondition(lambda self: self._steps > 5)
    @rule(how=st.sampled_from(["close", "closeImmediately"]))
    def close(self, how: str) -> None:
        self._do(how)

    @precondition(lambda self: self._steps > 5)
    @rule()
    def send_eof(self) -> None:
        self._do("send_eof")

    @precondition(lambda self: self._steps > 3)
    @rule()
    def upgrade(self) -> None:
        self._do("upgrade")

    @rule(type_=st.sampled_from(TYPES), kind=st.sampled_from(["sync", "async", "none"]))
    def replace_handler(self, type_: str, kind: str) -> None:
        self._portal.call(self.program.set_handler, type_, kind)

    @rule(type_=st.sampled_from(TYPES), once=st.booleans())
    def add_listener(self, type_: str, once: bool) -> None:
        self._portal.call(lambda: self.program.add_listener(type_, once=once))

    @rule(type_=st.sampled_from(TYPES))
    def remove_listener(self, type_: str) -> None:
        self._portal.call(self.program.remove_listener, type_)

    @rule(type_=st.sampled_from(TYPES), call=CALLS)
    def plan(self, type_: str, call: tuple[Any, ...]) -> None:
        """Have a handler make a call the next time it runs."""
        self._portal.call(self.program.plans[type_].append, call)

    @rule(what=st.sampled_from(["opened", "secured", "drained", "closed"]))
    def wait(self, what: str) -> None:
        self._portal.start_task_soon(self.program.wait_for, what)

    @precondition(lambda self: self._steps > 8)
    @rule()
    def cancel(self) -> None:
        def cancel() -> None:
            self.program.cancelled = True
            self._scope.cancel()

        self._portal.call(cancel)

    # The peer's actions. What the program may then expect is recorded before each.

    def _expect(self, change: Callable[[Program], object]) -> None:
        self._portal.call(change, self.program)

    @rule(size=SIZES, dribbling=st.booleans())
    def peer_sends(self, size: int, dribbling: bool) -> None:
        in_plaintext = not self.peer.upgraded

        def expect(program: Program) -> None:
            program.peer_sent = self.peer.sent + size
            if program.upgraded and in_plaintext and size:
                program.may_fail = True

        self._expect(expect)
        if dribbling:
            for _ in range(min(size, 20)):
                self.peer.send(1)
        else:
            self.peer.send(size)
        self._expect(lambda program: setattr(program, "peer_sent", self.peer.sent))

    @rule(size=st.sampled_from([1, 100, 1 << 16, 1 << 20]))
    def peer_reads(self, size: int) -> None:
        self.peer.read(size)

    @rule()
    def peer_upgrades(self) -> None:
        if self.program.upgraded and not self.peer.upgraded and not self.peer.lost:
            self.peer.upgrade()

    @precondition(lambda self: self._steps > 5)
    @rule(orderly=st.booleans())
    def peer_half_closes(self, orderly: bool) -> None:
        is_orderly = orderly and self.peer.secure

        def expect(program: Program) -> None:
            program.peer_ends = True
            program.may_fail = program.may_fail or (program.upgraded and not is_orderly)

        self._expect(expect)
        self.peer.end(orderly=orderly)

    @precondition(lambda self: self._steps > 5)
    @rule()
    def peer_resets(self) -> None:
        self._expect(lambda program: setattr(program, "may_fail", True))
        self.peer.reset()

    @precondition(lambda self: self._steps > 5)
    @rule()
    def peer_talks_nonsense(self) -> None:
        if not self.program.upgraded:
            return

        self._expect(lambda program: setattr(program, "may_fail", True))
        self.peer.talk_nonsense()

    # What must be true in the end

    def _goes_on(self) -> bool:
        program = self.program
        is_ending = program.closed or program.output_ended or program.aborted or program.is_over or program.may_fail
        is_upgrading = program.upgraded and not self.peer.secure
        is_planned = any(program.plans[type_] for type_ in TYPES if type_ not in ("error", "close"))
        return not (is_ending or is_upgrading or is_planned or program.peer_ends or program.suspensions)

    @rule()
    def all_arrives(self) -> None:
        program = self.program
        if not self._goes_on():
            return
        self.eventually(lambda: program.delivered == self.peer.sent)
        self.eventually(lambda: self.peer.received == program.taken)
        self.eventually(lambda: not program.drain_owed)
        self.eventually(lambda: program.socket.bufferedAmount == 0)
        assert program.socket.readyState == "open"

    def teardown(self) -> None:
        with self._resources:
            if hasattr(self, "peer"):
                try:
                    self._end()
                finally:
                    self._portal.call(self._scope.cancel)
                    self.peer.lose()

    def _end(self) -> None:
        program = self.program
        self._portal.call(self._finish)
        self.eventually(self._has_ended)
        self._portal.call(self._stop.set)
        self._check_exception()
        self.eventually(lambda: not program.waiting)
        self.check()
        assert program.socket.readyState == "closed"
        assert program.socket.bufferedAmount == 0
        if not program.cancelled:
            assert program.types[-1] == "close"
        if not (program.may_fail or program.aborted or program.cancelled):
            self.eventually(lambda: self.peer.ended or self.peer.lost)
            assert self.peer.confused or (self.peer.ended and self.peer.received == program.taken)
            assert not program.drain_owed
        self._check_outcomes()

    def _finish(self) -> None:
        program = self.program
        for plans in program.plans.values():
            plans.clear()
        if program.cancelled:
            return
        while program.suspensions and not program.violations:
            program.do("resume")
        program.do("close")

    def _has_ended(self) -> bool:
        program = self.program
        if program.upgraded and not self.peer.upgraded and not self.peer.lost:
            self.peer.upgrade()
        if self.peer.ended or program.may_fail or program.aborted:
            self.peer.end()
        return program.is_over

    def _check_exception(self) -> None:
        program = self.program
        try:
            self._main.result(PEER_TIMEOUT)
            raised: list[BaseException] = []
        except ExceptionGroup as group:
            raised = list(group.exceptions)
        logged = [record.exc_info[1] for record in self._logged.records if record.exc_info]
        # The first exception leaves the scope, or is logged at the end if the socket was accepted. Others are logged
        # immediately.
        assert raised == (program.raised[:1] if program.role == "client" else [])
        assert sorted(map(id, raised + logged)) == sorted(map(id, program.raised))

    def _check_outcomes(self) -> None:
        program = self.program
        for what, outcome in program.outcomes:
            if isinstance(outcome, TCPSocketError):
                assert program.may_fail, (what, outcome)
            if what == "opened":
                assert outcome is None, (what, outcome)
            if what == "secured" and outcome is None:
                assert program.upgraded


@pytest.mark.timeout(0)
def test_anything_in_any_order(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    stateful.run_state_machine_as_test(
        lambda: Machine(*anyio_backend),  # type: ignore[arg-type]  # any factory will do
        settings=settings(stateful_step_count=30, suppress_health_check=list(HealthCheck)),
    )
