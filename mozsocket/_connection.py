"""One connection: the one place that joins its components. It holds each of them, and none of them knows the others.

Three tasks, in the connection's own task group::

    reader ──data──▶ memory-object channel ──▶ dispatcher ──▶ handlers
    writer ──drain─▶        (bounded)                         │ send()
      ▲──────────────── send buffer ◀─────────────────────────┘

Neither the tasks nor the task group exist at first: each is started when something needs it. Where a :mod:`._poller`
waits, it reads and writes for all its sockets; then only asynchronous handlers need a task, the dispatcher's.

**Received data**: :mod:`._poller` or :mod:`._readiness` waits for it and calls :meth:`Connection.on_readable`;
:mod:`._transport` reads the bytes (of TLS :mod:`._tls` with :mod:`._tls_engine`); :mod:`._dispatch` calls the handlers
that :mod:`._events` holds. While a handler runs, the data waits in the channel of :mod:`._buffers`.

**Sent data**: :mod:`._socket` checks it, :meth:`Connection.send` puts it into the send buffer of :mod:`._buffers`, and
when the handler has returned :meth:`Connection.flush` sends it. What the kernel does not take then is sent when the
socket is writable.

**Fast path**: usually the connection is just open, and a plain function alone listens to ``data``. Then all of that is
done by :mod:`._fast_path`, which leaves out the checks for everything else.

**Connecting**: :mod:`._poller` connects to an address that answers at once, as this machine does. Anything else takes a
task, which ends when it is connected.

:mod:`._machine` holds the state. After every change :meth:`Connection.advance` performs the actions that the machine
asks for, as far as that is possible without waiting. :mod:`._lifetime` runs the connection, and reports the exceptions
that no handler was given.
"""

from __future__ import annotations

import errno
import math
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import anyio
import anyio.lowlevel

from . import _log
from ._addresses import display, host_and_port, printable
from ._buffers import MAX_RETAKEN, QUEUED_READ_SIZE, Inbox, SendBuffer
from ._connect import Attempt
from ._dispatch import Dispatcher
from ._errors import ConnectionLostError, InvalidStateError, explain, tells_more
from ._events import Event, EventTarget, Listeners, TCPSocketErrorEvent
from ._fast_path import READ_PER_TURN, DataEvent, FastPath
from ._journal import Journal
from ._lifetime import Lifetime
from ._limits import Idleness, Limits, timeout
from ._machine import (
    Action,
    ClosedBy,
    Failed,
    Limit,
    Machine,
    Opening,
    OwnSide,
    PeerSide,
    PendingEvent,
    ReadyState,
    Security,
)
from ._options import AdoptOptions, ClientOptions, SocketOptions, shared
from ._proxy_protocol import missing, parse
from ._raised import is_cancelled, own_cancellation, pass_over, split_exception, without_task
from ._readiness import ReadResult, Registration, Waiting, by_tasks
from ._tls import TLSTransport, tls_over
from ._transport import Transport, configure
from ._turn import turn
from ._unique import next_number

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

if sys.version_info < (3, 11):  # AnyIO depends on the backport
    from exceptiongroup import ExceptionGroup

__all__ = ("Companion", "Connection", "Host")

SEND_PER_TURN = 1_048_576
"""The bytes to send before others have their turn. A peer that reads as fast as we send would hold up all others."""

_CONNECTING = ReadyState.CONNECTING
_OPEN = ReadyState.OPEN
_CLOSED = ReadyState.CLOSED
_OWN_SIDE_OPEN = OwnSide.OPEN
_NOT_FAILED = Failed.NO
_DATA = PendingEvent.DATA
_BOTH_ENDED = PendingEvent.BOTH_ENDED
_CLOSE = PendingEvent.CLOSE
_SOME = ReadResult.SOME
_NOTHING = ReadResult.NOTHING

OpeningEvent: TypeAlias = Callable[[Any], tuple[Listeners, Event[Any]]]
"""Makes the event that announces a connection, from the target of its events; with the listeners for that event."""

_PEERS_END = (PendingEvent.END, PendingEvent.BOTH_ENDED)

_WHY_CLOSED: dict[ClosedBy | None, str] = {
    None: "",
    ClosedBy.PROGRAM: "it was closed here",
    ClosedBy.PEER: "the peer has ended it",
    ClosedBy.OWNER: "its block was cancelled, or has ended",
}

_ADVICE = "set its ondata, or use stream(), before something arrives"

_TYPES = {
    PendingEvent.SECURE: "secure",
    PendingEvent.DRAIN: "drain",
    PendingEvent.END: "end",
}


class Host(Protocol):
    """What a connection knows of the server that has accepted it."""

    def admit(self, connection: Connection) -> None:
        """Call :meth:`Connection.admitted` as soon as one more connection may be open."""

    def may_log(self, kind: str) -> bool:
        """Whether one more record of this kind may be logged."""

    def end_without_task(self, connection: Connection) -> None:
        """End a connection that runs without a task, when it is over or the poller has stopped.
        Doing it twice does no harm.
        """


class Companion(Protocol):
    """Something that ends with a connection."""

    def end(self) -> None:
        """Called when the connection is over, even if its owner is cancelled and no event is delivered."""


class Connection:
    """The inside of a :class:`TCPSocket`.

    :param name: the name of the public class, for ``repr()``
    :param host: the host to connect to, or the address of the peer
    :param port: its port
    :param options: what the program has chosen
    :param listeners: the listeners of its events
    :ivar machine: its state
    :ivar outgoing: the send buffer
    :ivar inbox: received data that is not delivered yet
    :ivar transport: sends and receives bytes; None until it is connected
    :ivar attempt: the attempt to connect, while that lasts
    :ivar server_side: the role in TLS; None if the context decides
    :ivar companions: what ends with it, such as pipes; None for none
    :ivar pumps_on_notify: whether :meth:`notify` has the poller deliver the pending events: from the time it waits for
        the socket
    """

    __slots__ = (
        "_data_event",
        "_end_without_task",
        "_fast_path",
        "_header",
        "_idleness",
        "_is_over",
        "_journal",
        "_limits",
        "_listeners",
        "_local",
        "_name",
        "_number",
        "_open_in_turn",
        "_opening_event",
        "_opening_has_begun",
        "_other_bytes_read",
        "_other_bytes_received",
        "_registration",
        "_sends_on",
        "_server",
        "_target",
        "_tls",
        "_waiting",
        "_waits_for_peer",
        "_warned_unheard",
        "attempt",
        "companions",
        "dispatcher",
        "host",
        "inbox",
        "lifetime",
        "machine",
        "options",
        "outgoing",
        "port",
        "pumps_on_notify",
        "server_side",
        "transport",
    )

    def __init__(self, name: str, host: str, port: int, options: SocketOptions, listeners: Listeners) -> None:
        self._name = name
        self._number = next_number()
        self._local: Any = None  # the local address, once somebody has asked for it
        self._journal: Journal | None = None  # if such records are logged
        self.host = host
        self.port = port
        self.options = options
        self.outgoing = SendBuffer(options.max_buffered_amount)
        self.inbox = Inbox()
        self.machine = Machine(self.outgoing, self.inbox, allow_half_open=options.allow_half_open)
        self.lifetime = Lifetime()
        self.dispatcher = Dispatcher(listeners)
        self.transport: Transport | TLSTransport | None = None
        self.attempt: Attempt | None = None
        self.server_side: bool | None = False
        self.companions: list[Companion] | None = None
        self.pumps_on_notify = False
        self._listeners = listeners
        self._tls: TLSTransport | None = None  # the transport, from the beginning of TLS on
        self._waiting: Waiting = by_tasks
        self._registration: Registration | None = None  # once the socket is waited for
        self._server: Host | None = None  # the server that has accepted it
        self._end_without_task: Callable[[Connection], None] | None = None  # ends it, where no task runs it
        self._target: EventTarget | None = None  # the target of its events, while it runs
        self._data_event: DataEvent = _no_event
        self._opening_event: OpeningEvent | None = None  # makes the first event; None if that is ``open``
        self._open_in_turn: Callable[[], None] | None = None  # given to open_soon(), until it is called
        self._opening_has_begun = False  # whether open() connects, so that live() need not
        self._is_over: anyio.Event | None = None  # set when it is over, where live() only waits for that
        self._other_bytes_read = 0  # bytes that were queued before delivery, or discarded
        self._fast_path: FastPath | None = None  # once it was first taken
        self._other_bytes_received = 0  # bytes given to the program other than by the present fast path
        self._warned_unheard = False  # whether that warning was logged
        self._waits_for_peer = False  # whether sending waits for bytes from the peer, as in a TLS handshake
        self._sends_on = False  # whether sending goes on when others have had their turn
        self._header = b""  # what has arrived of the PROXY protocol's header
        self._limits: Limits | None = None  # while anything is limited in time
        self._idleness: Idleness | None = None  # if there is an idle timeout

    def __repr__(self) -> str:
        ends = f"{self.local}->{self.peer}" if self.local else self.peer
        return f"<{self._name} #{self._number} {ends} {self.machine.ready}>"

    @property
    def local(self) -> str:
        """The local address in readable form; empty if there is none, or not yet."""
        if not self._local and self.transport is not None:
            self._local = self.transport.local
        return printable(display(*host_and_port(self._local))) if self._local else ""

    @property
    def bytes_received(self) -> int:
        """Bytes that were given to the program so far."""
        return self._other_bytes_received + (0 if self._fast_path is None else self._fast_path.received)

    def take_back_received(self, count: int) -> None:
        """Count bytes as not given to the program: it has not used them."""
        self._other_bytes_received -= count

    @property
    def bytes_sent(self) -> int:
        """Bytes of the program that the operating system has taken so far."""
        return self.outgoing.sent

    @property
    def peer(self) -> str:
        """The peer's address in readable form."""
        return printable(display(self.host, self.port))

    @property
    def is_tls(self) -> bool:
        """Whether it is encrypted, or will be."""
        return self._tls is not None or self.options.useSecureTransport

    @property
    def attributes(self) -> dict[Any, Callable[[], Any]]:
        """AnyIO's typed attributes; empty while it is not connected."""
        return {} if self.transport is None or self.transport.closed else self.transport.attributes

    # Before it runs

    def adopt(self, host: str, port: int, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        """Adopt a socket that others have connected, in the role that the context is for.

        :param context: for TLS from the start, unless the options have one
        :raises ValueError: if no name is given that the certificate has to be for
        """
        self.host, self.port = host, port
        self.server_side = None
        options = shared(self.options, ClientOptions)
        options["ssl_context"] = options["ssl_context"] or context
        self.options = AdoptOptions(sock, **options)
        self.transport = Transport(sock)
        if self.lifetime.over:  # closed already, by the constructor of a subclass
            self.transport.close()
        elif self.options.useSecureTransport:
            self._make_tls_of_options()  # so that its errors are raised here

    def accept(self, transport: Transport, server: Host, opening: OpeningEvent) -> None:
        """Begin as a connection that a server has accepted.

        :param opening: makes the ``connect`` event
        """
        self.transport = transport
        self.server_side = True
        self._journal = Journal.if_wanted()
        if self._journal is not None:
            self._journal.accepted(self, server)
        self._server, self._end_without_task = server, server.end_without_task
        self._opening_event = opening
        self.lifetime.begin()
        if not self.options.useSecureTransport and not self.options.proxy_protocol:
            self.machine.open()

    def attach(self, target: EventTarget, data_event: DataEvent) -> None:
        """Set the target of the events, before it runs.

        :param data_event: makes the event of some data
        """
        self._target, self._data_event = target, data_event

    def wait_by(self, waiting: Waiting) -> None:
        self._waiting = waiting

    # Life

    async def live(self) -> None:
        own = own_cancellation()
        before = 0 if own is None else own.count()
        live = self._live
        while True:
            try:
                return await live()
            except anyio.get_cancelled_exc_class():
                if own is None or is_cancelled():
                    raise
            await pass_over(own, before)  # unless asyncio is cancelling all tasks, and not just this one
            self.on_cancelled()
            live = self._live_on

    async def _live(self) -> None:
        if not self._opening_has_begun:
            await self._open()
        await self._live_on()

    async def _live_on(self) -> None:
        """Deliver the events until the last."""
        if self.pumps_on_notify:
            self._is_over = is_over = anyio.Event()
            self.notify()
            await is_over.wait()
            return
        self.dispatcher.pump()
        while self.dispatcher.busy or not self.machine.is_over():
            await self.lifetime.change()
            self.dispatcher.pump()  # a program that was suspended may have closed it

    async def _open(self) -> None:
        try:
            await self._connect_and_read()
        except BaseException as exc:  # raised by the program, such as by its SSLContext
            raised, passing = split_exception(exc)
            if raised is not None:
                self.crashed(raised, "the connection")
            if passing is not None:
                raise
            self._close_transport()

    async def _connect_and_read(self) -> None:
        if self._server is None:
            self._journal = Journal.if_wanted()
        if self.attempt is not None or (self.transport is None and self.machine.ready is _CONNECTING):
            await self._connect()
        if self._registration is None:  # else it began without a task
            await anyio.lowlevel.checkpoint_if_cancelled()  # no handler runs once a scope around the owner is cancelled
            self.start()
        if self._registration is not None:
            await self._registration.run()

    def open_soon(self, open_in_turn: Callable[[], None], end_without_task: Callable[[Connection], None]) -> None:
        """Have the poller open it in its next turn: from then on it runs without a task until something needs one.

        :param open_in_turn: calls :meth:`open_at_once` or, in a task that ends then, :meth:`open`
        :param end_without_task: :meth:`Host.end_without_task`
        """
        self._open_in_turn, self._end_without_task = open_in_turn, end_without_task
        self._opening_has_begun = True
        self._waiting.wake(self)

    def open_at_once(self) -> bool:
        """Connect, if that takes no waiting.

        :return: False if it does: :meth:`open` has to be called
        """
        try:
            if self.machine.ready is _CONNECTING and not self._connect_at_once():
                return False
            self._journal = Journal.if_wanted()
        except BaseException as exc:  # Ctrl-C on Trio, or raised by the program's logging
            self._drop_attempt()
            self.crashed(without_task(exc), "the connection")
            self._close_transport()
        self._start_without_task()
        return True

    def _connect_at_once(self) -> bool:
        options, attempt = self.options, self._begin_attempt()
        if options.local_host is not None or options.local_port:
            return False
        try:
            sock = attempt.begin(self.host, self.port)
        except OSError as exc:
            self.lose(exc)
        else:
            if sock is None:
                return False
            self.transport = Transport(sock)
        self.attempt = None
        return True

    async def open(self) -> None:
        """Connect, in a task that ends then."""
        await self._open()
        self._continue_without_task()

    def begin(self, waiting: Waiting) -> None:
        """Begin to run after a server has accepted it: without a task, if the way of waiting needs none."""
        self._waiting = waiting
        if waiting.takes_tasks:
            self.dispatcher.request_task()
        else:
            self._start_without_task()

    def _start_without_task(self) -> None:
        try:
            self.start()
        except BaseException as exc:  # raised by the program, such as by its SSLContext
            self.crashed(without_task(exc), "the connection")
            self._close_transport()
        self._continue_without_task()

    def _continue_without_task(self) -> None:
        if not self.pumps_on_notify:
            self.dispatcher.pump()
        self._end_if_over()

    def start(self) -> None:
        """Begin to wait for the connected socket."""
        if self.transport is None or self.machine.abandoned:  # connecting failed, or it was closed meanwhile
            self._close_transport()
            return
        if not self.transport.closed:
            configure(self.transport.watched.socket, self.options.keep_alive)
        registration = self._waiting.register(self.transport.watched)
        try:
            registration.begin(self)
        except OSError as exc:  # the system is out of some resource
            self.lose(exc)
        else:
            self._registration = registration
            self.pumps_on_notify = not self._waiting.takes_tasks
            if self.options.idle_timeout is not None:
                self._idleness = Idleness(self.options.idle_timeout, anyio.current_time())
                self._await_time()
            self._open_further(Opening.CONNECT)

    def release(self) -> None:
        self._drop_attempt()
        self.machine.release()
        self._close_transport()
        if self._journal is not None:
            self._journal.closed(self)
        self._forget_queued()
        self.inbox.close()
        companions, self.companions = self.companions, None
        for companion in companions or ():
            companion.end()

    def add_companion(self, companion: Companion) -> None:
        self.companions = [*(self.companions or ()), companion]

    def remove_companion(self, companion: Companion) -> None:
        self.companions = [each for each in self.companions or () if each is not companion] or None

    def _forget_queued(self) -> None:
        """Discard the queue at the end, but not what a stream may still receive after the connection was lost."""
        if not self.machine.streams or self.machine.failed is Failed.NO:
            self.inbox.discard()

    @property
    def public_object(self) -> object:
        return self._target or self

    def end(self) -> None:
        self._drop_fast_path()
        if self._registration is not None:
            self._registration.detach()
        self._target = self._opening_event = self._open_in_turn = self._end_without_task = None
        self._data_event = _no_event

    def crashed(self, exc: BaseException, where: str, when: str = "") -> None:
        self.lifetime.crashed(self, exc, where, when)

    def was_slow(self, type: str, seconds: float) -> None:
        self.lifetime.was_slow(self, type, seconds)

    def notify(self) -> None:
        self.lifetime.notify()
        if self.pumps_on_notify:
            assert self._registration is not None
            self._registration.wake()

    def spawn(self, what: str, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, None]], *args: Unpack[Ts]) -> None:
        self.dispatcher.spawn(what, function, *args)

    def cancel_handlers(self) -> None:
        self.leave_fast_path()
        self.dispatcher.cancel_handlers()

    def is_in_handler(self) -> bool:
        return self.dispatcher.is_in_handler()

    # The log

    @property
    def log_fields(self) -> dict[str, object]:
        return {"socket_id": self._number, "peer": self.peer, "local": self.local}

    def may_log(self, kind: str) -> bool:
        return self._server is None or self._server.may_log(kind)

    def _state_changed(self) -> None:
        """Notify everybody who waits for a change of state."""
        self.outgoing.filling_thread = 0
        self.leave_fast_path()
        if self.machine.shut:
            if self._registration is not None:
                self._registration.wake()  # the last events may be pending
            self.lifetime.notify()
            return
        if self._registration is not None:
            self._watch_reading()
            if self.machine.streams and self.transport is not None:
                self.transport.watched.interrupt()  # the stream's caller
        self.lifetime.notify()

    # Opening

    def _begin_attempt(self) -> Attempt:
        """Begin to connect, and the time limit of that."""
        self.attempt, seconds = Attempt(), self.options.connect_timeout
        if seconds is not None:
            self._limits = Limits(self.options)
            self._limits.begin_to_connect(anyio.current_time() + seconds)
        return self.attempt

    def _drop_attempt(self) -> None:
        if self.attempt is not None:
            self.attempt.drop()
            self.attempt = None

    async def _connect(self) -> None:
        options, attempt = self.options, self.attempt or self._begin_attempt()
        limits = self._limits or Limits(options)
        try:
            sock = await attempt.run(
                self.host,
                self.port,
                options.local_host,
                options.local_port,
                limits.deadline,
                partial(limits.error, Limit.CONNECT),
            )
        except (OSError, UnicodeError, ExceptionGroup) as exc:
            self.lose(exc)
        else:
            if sock is not None:
                self.transport = Transport(sock)
        finally:
            self.attempt = None

    def _open_further(self, done: Opening) -> None:
        """Enter the next stage of opening that the options ask for.

        :param done: the last stage that is completed
        """
        machine, options = self.machine, self.options
        if done < Opening.HEADER and options.proxy_protocol:
            machine.enter_stage(Opening.HEADER)
        elif done < Opening.HANDSHAKE and options.useSecureTransport:
            machine.enter_stage(Opening.HANDSHAKE)
            self._begin_tls(self._make_tls_of_options())
        elif done < Opening.ADMISSION and self._server is not None and machine.ready is _CONNECTING:
            machine.enter_stage(Opening.ADMISSION)
            self._server.admit(self)
            self._watch_reading()
            self._open_if_admitted()
        else:
            self._opened()
        self._limit_time()

    def _opened(self) -> None:
        if self.machine.ready is _CONNECTING:
            self.machine.open()
        if self.machine.ready is not _OPEN:  # closed meanwhile
            self._close_transport()
            return
        self._limits = None  # the handler of ``open`` may begin something that has a limit of its own
        if self._journal is not None:
            self._journal.opened(self)
        self.machine.announce()
        if self.machine.streams:
            self._watch_reading()  # as the stream itself reads from now on
        else:
            self.resume_reading()
        self.lifetime.notify()
        self.dispatcher.pump()

    def admitted(self) -> None:
        """The server has capacity: the connection may be open."""
        self.machine.enter_stage(Opening.ADMITTED)
        if self._registration is not None:
            self._registration.wake()

    def _open_if_admitted(self) -> None:
        if self.machine.opening is Opening.ADMITTED:
            self._opened()

    def give_up_handshake(self, why: str) -> None:
        """Close during the handshake, as the server needs its place for a newer connection.

        :param why: why there is no place for both, in words
        """
        self._fail(timeout(f"its handshake was given up for another connection's: {why}"))
        self._abandon()

    def _read_header(self, transport: Transport) -> ReadResult:
        """Read the header of the PROXY protocol."""
        part = transport.receive(QUEUED_READ_SIZE)
        if part is None:
            transport.expect(missing(self._header))
            return ReadResult.NOTHING
        if not part:
            raise ConnectionResetError(errno.ECONNRESET, "it ended before a header of the PROXY protocol")
        self._header += part
        self._other_bytes_read += len(part)
        header = parse(self._header)
        if header is not None:
            transport.expect(1)
            if header.source is not None:
                self.host, self.port = header.source
            if len(self._header) > header.size:
                self.inbox.put(self._header[header.size :])
            self._header = b""
            self._open_further(Opening.HEADER)
        return ReadResult.PENDING

    # TLS

    def _make_tls_of_options(self) -> TLSTransport:
        return self._make_tls(self.options.ssl_context, self.options.server_hostname)

    def _make_tls(self, context: ssl.SSLContext | None, server_hostname: str | None) -> TLSTransport:
        """Make a TLS transport over the present one, which sends what is buffered as plaintext first.

        :raises ValueError: if the context is missing or for the other role, or no name is given to check
        """
        assert isinstance(self.transport, Transport)
        host = self.host if self.port else ""  # a UNIX-domain socket has a path in place of a host
        return tls_over(
            self.transport,
            context,
            server_hostname or host,
            server_side=self.server_side,
            standard_compatible=self.options.tls_standard_compatible,
            plaintext=self.outgoing.amount,
        )

    def _begin_tls(self, tls: TLSTransport, leftover: bytes = b"") -> None:
        """Continue in TLS. Received bytes that are not delivered yet are part of it."""
        self.take_back()
        if leftover:
            tls.feed(leftover)
        while (data := self.inbox.take()) is not None:
            tls.feed(data)
        if self.machine.take_back_end():
            tls.feed(b"")
        self._drop_fast_path()
        self.transport = self._tls = tls
        self.machine.begin_tls()
        self._state_changed()
        if self.machine.ready is _CONNECTING:
            self.advance()

    def _after_tls_received(self, tls: TLSTransport) -> None:
        """Do what TLS needs after it has read records."""
        if self.machine.security is not Security.UP and tls.established:
            self._secured()
        elif self._waits_for_peer:
            self._advance_and_wake()
        elif tls.owes_answers:
            if not self.outgoing.flush_is_due:
                self._await_room()
            if tls.choked:
                self._watch_reading()

    def _secured(self) -> None:
        if self._journal is not None:
            self._journal.secured(self)
        self.machine.end_handshake()
        self._state_changed()
        if self.machine.opening is Opening.HANDSHAKE:
            self._open_further(Opening.HANDSHAKE)
        else:
            self.dispatcher.pump()
        self._advance_and_wake()  # so that the last handshake message and what handlers have written are sent together

    # Failing, and the end

    def _fail(self, exc: BaseException) -> None:
        """Record that the connection failed or was lost: nothing more can be sent. Of several failures the most
        specific one counts, otherwise the first.
        """
        lifetime = self.lifetime
        if lifetime.failure is None or tells_more(exc, lifetime.failure):
            shown = (
                self._tls.shown_certificates() if isinstance(exc, ssl.SSLCertVerificationError) and self._tls else ()
            )
            lifetime.fail(explain(exc, self.peer, shown))
        assert lifetime.failure is not None
        self.machine.fail(Failed.NETWORK if lifetime.failure.message == "Network" else Failed.TLS)
        if self._tls is not None and self._tls.plaintext:
            self.machine.lose()  # the plaintext before TLS is cut short: no alert can follow it
        self._state_changed()

    def lose(self, exc: BaseException) -> None:
        """The connection is lost: nothing more can be read or sent."""
        machine = self.machine
        # After our own close_notify the peer need not send its own.
        is_end = isinstance(exc, ssl.SSLEOFError) and machine.ready is not _OPEN and machine.security is Security.UP
        if machine.loss_is_failure() and not is_end:
            self._fail(exc)
        if isinstance(exc, ssl.SSLEOFError):
            machine.mark_truncated()
        elif not isinstance(exc, ssl.SSLError):  # a TLS failure is reported to the peer first
            machine.lose()
        self._state_changed()
        self.advance()

    def _close_transport(self) -> None:
        """Close the transport. Events may still be pending."""
        if self.machine.shut:
            return
        if self._registration is not None:
            self._registration.end()
        if self.transport is not None:
            self._local = self._local or self.transport.local
            self.transport.close()
        self.machine.end()
        self._state_changed()

    def _abandon(self) -> None:
        """Close while connecting."""
        self.machine.give_up()
        if not self.lifetime.started:
            self.lifetime.end_before_it_began()
            self.release()
            self.end()
        elif self.attempt is not None:
            self.attempt.give_up()
        else:
            self._close_transport()

    # What the program calls

    def not_open(self, what: str) -> InvalidStateError:
        return self.closed_error(f"{what} on a socket that is {self.machine.ready}: it must be open")

    def closed_error(self, words: str) -> InvalidStateError:
        lifetime, why = self.lifetime, self.why_closed
        closed_by = self.machine.closed_by
        lost = closed_by is ClosedBy.PEER or (lifetime.failure is not None and closed_by is not ClosedBy.PROGRAM)
        error = (ConnectionLostError if lost else InvalidStateError)(f"{words}; {why}" if why else words)
        error.__cause__ = lifetime.failure or lifetime.crash
        return error

    @property
    def why_closed(self) -> str:
        """The reason why it is not open any more, as words; empty if there is none."""
        lifetime = self.lifetime
        if lifetime.failure is not None:
            return f"it was lost: {lifetime.failure}"
        return lifetime.crash_words or _WHY_CLOSED[self.machine.closed_by]

    def require_task(self, what: str) -> None:
        self.lifetime.require_task(self, what)

    def send(self, data: bytes) -> bool:
        if self._fast_path is None or not self._fast_path.is_open:
            self._check_may_send()
        written, thread = turn.written, get_ident()
        if written is None or thread != self.lifetime.thread:
            self.require_task("send()")
        outgoing = self.outgoing
        if not outgoing.flush_is_due:
            self._schedule_flush(written)
        outgoing.filling_thread = thread if written is not None else 0  # outside of handlers each send() is checked
        return outgoing.append(data)

    def _check_may_send(self) -> None:
        machine = self.machine
        if machine.ready is not _OPEN:
            raise self.not_open("send()")
        if machine.own_side is not _OWN_SIDE_OPEN and machine.has_finished():
            raise InvalidStateError("send() after send_eof(): the peer has been told that no more will come")

    def send_eof(self) -> None:
        if self.machine.ready is not _OPEN:
            raise self.not_open("send_eof()")
        self.require_task("send_eof()")
        self.machine.finish()
        self.outgoing.filling_thread = 0
        self.leave_fast_path()
        if self.machine.have_both_ended():
            self.close()
        elif not self.outgoing.flush_is_due:
            self._schedule_flush(turn.written)

    def suspend(self) -> None:
        self.require_task("suspend()")
        self.machine.suspend()
        self.leave_fast_path()
        held = self.inbox.held
        if held is not None and held.is_pending:
            self.take_back()

    def resume(self) -> None:
        self.require_task("resume()")
        if not self.machine.resume():
            raise InvalidStateError("resume() without suspend(): the socket is not suspended")
        if self.dispatcher.runs and not self.machine.suspensions and self.machine.pending_event() is not None:
            self.dispatcher.wake()

    def close(self) -> None:
        self.require_task("close()")
        if self.machine.ready is _CONNECTING:
            self._abandon()
        elif self.machine.ready is _OPEN:
            if not self.outgoing.flush_is_due:
                self._schedule_flush(turn.written)
            elif self._registration is not None:
                self._registration.write()  # so that the time limit of closing begins
            self.machine.close()
            self._state_changed()

    def close_immediately(self) -> None:
        self.require_task("closeImmediately()")
        if self.machine.ready is _CONNECTING:
            self._abandon()
        elif self.machine.ready is not _CLOSED:
            self.machine.give_up()
            self._state_changed()
            self.advance()

    def reset(self) -> None:
        """Close immediately, with a reset (RST)."""
        self.require_task("reset()")
        if self.transport is not None:
            if self._registration is not None:
                self._registration.end()  # before the descriptor is closed
            self.transport.reset()
        self.close_immediately()

    def close_all(self) -> None:
        self.close()

    def upgrade(self, context: ssl.SSLContext | None, server_hostname: str | None, leftover: bytes) -> None:
        """Begin TLS on an open connection."""
        machine = self.machine
        if machine.ready is not _OPEN:
            raise self.not_open("upgradeToSecure()")
        if self._tls is None and (machine.own_side is not OwnSide.OPEN or machine.peer_side is PeerSide.END_DELIVERED):
            raise InvalidStateError("upgradeToSecure() on a connection of which one side has ended: TLS needs both")
        self.require_task("upgradeToSecure()")
        if self._tls is None:
            self._begin_tls(self._make_tls(context, server_hostname), leftover)
            if not self.outgoing.flush_is_due:
                self._schedule_flush(turn.written)
            self._limit_time()
            if self._registration is not None:
                self._registration.wake()  # bytes that are here already may have to be read

    async def opened(self) -> None:
        machine = self.machine
        await self.lifetime.reach(self, "opened()", lambda: machine.opened, lambda: machine.ready is not _CONNECTING)

    async def secured(self) -> None:
        machine = self.machine
        await self.lifetime.reach(
            self,
            "secured()",
            lambda: machine.security is Security.UP,
            lambda: machine.shut and (machine.failed is not Failed.NO or machine.ready is not _CONNECTING),
        )

    async def drained(self) -> None:
        outgoing, machine = self.outgoing, self.machine
        outgoing.waiters += 1
        try:
            await self.lifetime.reach(
                self,
                "drained()",
                lambda: not (outgoing.amount or outgoing.dropped) and machine.failed is Failed.NO,
                lambda: machine.shut if machine.failed is not Failed.NO else outgoing.dropped,
            )
        finally:
            outgoing.waiters -= 1

    async def closed(self) -> None:
        lifetime = self.lifetime
        lifetime.refuse_in_handler(self, "closed()")
        await lifetime.reach(
            self, "closed()", lambda: lifetime.over and lifetime.failure is None, lambda: lifetime.over
        )

    # The events

    def next_event(self) -> tuple[Listeners, Event[Any]] | None:
        machine = self.machine
        while (pending := machine.pending_event()) is not None:
            if self.inbox.held is not None and pending in _PEERS_END and self.inbox.held.is_unfinished:
                held, self.inbox.held = self.inbox.held, None
                return Listeners.of("data", held.finish), self._data_event("data", self._target, b"")
            machine.mark_delivered(pending)
            if pending is _DATA:
                listeners, data = self._queued_data()
                self.resume_reading()
                if data:
                    self._other_bytes_received += len(data)
                    self._warn_if_unheard("data", _ADVICE)
                    return listeners, self._data_event("data", self._target, data)
            elif pending is _BOTH_ENDED:
                self.advance()
            else:
                return self._make_event(pending)
        if machine.shut and machine.is_over():
            self.notify()
        return None

    def _queued_data(self) -> tuple[Listeners, bytes | None]:
        """The next queued data, and who gets it. Data that the handler has given back goes to the handler alone, as
        the listeners have seen it; without a handler it goes to them, such as to a pipe that has replaced it.
        """
        listeners, retaken = self._listeners, self.inbox.retaken
        if not retaken:
            return listeners, self.inbox.take()
        handler = listeners.handlers.get("data")
        if handler is not None:
            listeners = Listeners.of("data", handler)
        return listeners, self.inbox.take(min(retaken, MAX_RETAKEN))

    def _make_event(self, pending: PendingEvent) -> tuple[Listeners, Event[Any]]:
        assert self._target is not None
        if pending is PendingEvent.OPEN:
            opening, self._opening_event = self._opening_event, None
            return opening(self._target) if opening else (self._listeners, Event("open", self._target))
        if pending is _CLOSE:
            self._forget_queued()
            return self._listeners, Event("close", self._target)
        if pending is PendingEvent.ERROR:
            self._forget_queued()
            assert self.lifetime.failure is not None
            if self._listeners.has("error"):
                self.lifetime.mark_failure_reported()
            return self._listeners, TCPSocketErrorEvent("error", self._target, self.lifetime.failure)
        if pending is PendingEvent.END:
            self._warn_if_unheard("end", "it stays open until close() is called")
        return self._listeners, Event(_TYPES[pending], self._target)

    def _warn_if_unheard(self, type: str, advice: str) -> None:
        """Log a warning, once, about an event that should have a listener and has none."""
        if not (self._warned_unheard or self._listeners.has(type) or self.dispatcher.is_owner_cancelled):
            self._warned_unheard = True
            if self.may_log(f"no on{type}"):
                message = "%r has %r, and nothing that listens to it: %s"
                _log.warning(
                    message, self.public_object, type, advice, fields={**self.log_fields, "event": f"no on{type}"}
                )

    def has_pending_event(self) -> bool:
        return self.machine.pending_event() is not None

    # Reading

    def on_readable(self) -> ReadResult:
        """Read from the socket, and deliver the data."""
        fast_path = self._open_fast_path()
        return self._read_otherwise() if fast_path is None else fast_path.on_readable()

    def _open_fast_path(self) -> FastPath | None:
        """Open the fast path, if it may be taken."""
        machine, tls = self.machine, self._tls
        may_be_taken = (
            self._listeners.data_function is not None
            and machine.ready is _OPEN
            and machine.failed is _NOT_FAILED
            and machine.opening is Opening.DONE
            and machine.own_side is _OWN_SIDE_OPEN
            and machine.peer_side is PeerSide.OPEN
            and not (machine.suspensions or machine.streams or self.inbox.count)
            and not (self.dispatcher.busy or self.dispatcher.cancelled)
            and self._limits is None
            and not self._waits_for_peer
            and (tls is None or tls.has_only_data)
            and machine.pending_event() is None
            and _log.SLOW is None
        )
        if not may_be_taken:
            return None
        if self._fast_path is None:
            self._fast_path = self._make_fast_path()
        self._fast_path.is_open = True
        return self._fast_path

    def _make_fast_path(self) -> FastPath:
        assert self.transport is not None and self._registration is not None
        fast_path = FastPath(
            self,
            self._tls or self.transport.watched.socket,
            self._tls is not None,
            self._listeners,
            self.dispatcher,
            self.outgoing,
            self.lifetime.thread,
            self._target,
            self._data_event,
        )
        self._registration.read_by(fast_path)
        return fast_path

    def leave_fast_path(self) -> None:
        """Have everything looked after again: called whenever something else than data may be due."""
        if self._fast_path is not None:
            self._fast_path.is_open = False

    def _drop_fast_path(self) -> None:
        """Leave the fast path for good, as the connection ends or begins TLS."""
        if self._fast_path is not None and self._registration is not None:
            self.leave_fast_path()
            self._other_bytes_received += self._fast_path.received
            self._fast_path = None
            self._registration.read_by(self)

    def on_read_error(self, exc: OSError) -> ReadResult:
        return _NOTHING if isinstance(exc, (BlockingIOError, InterruptedError)) else self._lose_by_reading(exc)

    def _lose_by_reading(self, exc: OSError) -> ReadResult:
        self.lose(exc)
        self.dispatcher.pump()
        return _NOTHING

    def on_eof(self) -> ReadResult:
        if not isinstance(self.transport, Transport):
            return self._read_otherwise()  # it reads EOF once more, and what else there is in TLS
        self.transport.mark_eof_received()
        self._peer_ended()
        return _NOTHING

    def after_tls_read(self) -> ReadResult:
        tls = self._tls
        assert tls is not None
        if tls.has_only_data:
            return _SOME
        self.leave_fast_path()
        self._after_tls_received(tls)
        return ReadResult.PENDING if tls.pending else _SOME

    def _read_otherwise(self) -> ReadResult:
        """Read from the socket, whatever state the connection is in."""
        self.leave_fast_path()  # TLS may have more than data after this
        transport = self.transport
        assert transport is not None
        try:
            if self.machine.opening is Opening.HEADER:
                assert isinstance(transport, Transport)
                return self._read_header(transport)
            return self._read(transport)
        except OSError as exc:
            return self._lose_by_reading(exc)

    def _read(self, transport: Transport | TLSTransport) -> ReadResult:
        left = READ_PER_TURN
        machine, dispatcher, async_types = self.machine, self.dispatcher, self._listeners.async_types
        found = ReadResult.NOTHING
        while True:
            direct = not (
                dispatcher.busy
                or machine.suspensions
                or machine.streams
                or self.inbox.count
                or dispatcher.cancelled
                or "data" in async_types
            )
            size = transport.read_size if direct else QUEUED_READ_SIZE
            data = transport.receive(size)
            if self._tls is not None:
                self._after_tls_received(self._tls)
            if not data:
                break
            found = ReadResult.SOME
            if machine.ready is not _OPEN:
                # Discard it: closing with unread input would send RST, which destroys what the peer has yet to read.
                self._other_bytes_read += len(data)
            elif direct and not dispatcher.busy:
                self._other_bytes_received += len(data)
                self._warn_if_unheard("data", _ADVICE)
                dispatcher.deliver(self._data_event("data", self._target, data))
                dispatcher.pump(behind_handler=True)
            else:
                self._queue(data)
            left -= size
            full = len(data) == size  # more may be there
            if self.transport is not transport:  # upgradeToSecure() has replaced it
                return ReadResult.PENDING
            if not full or left < size or not machine.reads():
                return ReadResult.PENDING if transport.pending else ReadResult.MORE if full else found
            async_types = self._listeners.async_types
        if data is not None:
            self._peer_ended()
        return ReadResult.PENDING if transport.pending else found

    def _queue(self, data: bytes) -> None:
        """Queue received data behind the running handler, what is queued before it, or until :meth:`resume`."""
        self.leave_fast_path()
        self._other_bytes_read += len(data)
        self.inbox.put(data)
        if self.machine.takes_data():
            self.dispatcher.wake()
        self.lifetime.notify()
        if not self.inbox.has_room:
            self._watch_reading()

    def _peer_ended(self) -> None:
        """EOF was read, where the program's handlers may be called."""
        self.machine.end_peer_side()
        self.leave_fast_path()
        self.dispatcher.pump()
        if not self.machine.shut:
            self._follow_peers_end()
            self.dispatcher.pump()
        if self.pumps_on_notify:
            self._end_if_over()

    def _follow_peers_end(self) -> None:
        """Stop reading, and close if the peer's end was waited for."""
        self._state_changed()
        self.advance()

    def resume_reading(self) -> None:
        """Read again, after the queue was full."""
        if self._registration is not None and not self._registration.reading:
            self._watch_reading()

    def _watch_reading(self) -> None:
        assert self._registration is not None and self.transport is not None
        room = self.inbox.has_room or self.machine.ready is not _OPEN
        wanted = room and self.machine.reads() and not self.transport.choked
        if wanted and not self._registration.reading and self.transport.pending:
            self._registration.wake()  # the system does not know of data that TLS holds
        self._registration.read(wanted)

    def on_woken(self) -> bool:
        open_in_turn, self._open_in_turn = self._open_in_turn, None
        if open_in_turn is not None:
            open_in_turn()
        self._open_if_admitted()
        if self.pumps_on_notify:
            self.dispatcher.pump()
            self._end_if_over()
        return self.machine.is_half_open() or (self.machine.reads() and not self.inbox.has_room)

    def _end_if_over(self) -> None:
        dispatcher = self.dispatcher
        if dispatcher.busy:
            return
        if not self.machine.is_over():
            if self.machine.shut and not dispatcher.has_task:
                dispatcher.request_task()  # as the poller does not keep its owner waiting any more
            return
        if self._is_over is not None:
            self._is_over.set()
        elif dispatcher.has_task:
            pass  # that task ends it when it begins
        elif self.lifetime.is_awaited:
            dispatcher.request_task()  # so that those who wait raise the failure first
        else:
            assert self._end_without_task is not None
            self._end_without_task(self)

    def on_hung_up(self) -> None:
        if self.machine.reads():
            self.inbox.make_room()
            self._watch_reading()
        elif self.machine.is_half_open() and self.transport is not None:
            lost = self.transport.watched.take_error()
            if lost is not None:
                self.lose(lost)

    def on_stopped(self) -> None:
        if self._end_without_task is not None and not self.dispatcher.has_task:
            self._end_without_task(self)

    def on_cancelled(self) -> None:
        self.close_immediately()

    # Sending

    def _schedule_flush(self, written: list[Callable[[], None]] | None) -> None:
        """Have the send buffer flushed: when the running handler returns, otherwise soon.

        :param written: :data:`turn`'s list of buffers to flush
        """
        if written is not None:
            written.append(self.flush)
        else:
            self._write_soon()
        self.outgoing.flush_is_due = True

    def _await_room(self) -> None:
        """Have the rest of the buffer sent when the socket is writable."""
        if self.dispatcher.runs and self._registration is not None:  # else it was closed before it began
            self._registration.await_room()

    def _write_soon(self) -> None:
        if self.dispatcher.runs and self._registration is not None:
            self._registration.write()

    def flush(self) -> None:
        """Send what a handler has written, be it this connection's or another's. Called when it has returned."""
        if self._fast_path is None:
            self.flush_otherwise()
        else:
            self._fast_path.flush()

    def flush_otherwise(self) -> None:
        self.outgoing.filling_thread = 0
        error, self.outgoing.error = self.outgoing.error, None
        if error is not None:
            if isinstance(self.transport, Transport):
                self.transport.note_loss(error)
            self._fail(error)
        try:
            self._advance_and_wake()
        except BaseException as exc:  # raised by the program, such as by its SSLContext: it must not end the caller
            self.crashed(without_task(exc), "sending")

    def _advance_and_wake(self) -> None:
        """Advance where nobody delivers pending events next: a ``drain`` that has become pending is delivered soon."""
        self.advance()
        if self.outgoing.drain_is_pending and self.dispatcher.runs:
            self.dispatcher.wake()

    def on_writable(self) -> bool:
        self.advance()
        if self.pumps_on_notify:
            self.notify()  # ``drain`` comes a turn later, so that a peer in this process reads first
        else:
            self.dispatcher.pump()
        return self.outgoing.flush_is_due and not self._waits_for_peer and not self.machine.shut

    def advance(self) -> None:
        """Perform the machine's next actions, as far as possible without waiting."""
        machine, transport = self.machine, self.transport
        if transport is None:
            return
        self._waits_for_peer = self._sends_on = False
        if machine.ready is _OPEN and machine.own_side is _OWN_SIDE_OPEN and self._limits is None:  # usually
            done = self._send_buffered(transport) if self.outgoing.amount else self._flush_answers(transport)
            if machine.failed is _NOT_FAILED:
                self._has_advanced(done, transport)
                return
        self._perform_actions(transport)
        self._limit_time()

    def _perform_actions(self, transport: Transport | TLSTransport) -> None:
        machine = self.machine
        self.outgoing.flush_is_due = True
        done = True
        while done and (action := machine.next_action()) is not Action.LINGER:
            if action is Action.NOTHING:
                done = machine.shut or self._flush_answers(transport)
                break
            done = self._perform(action, transport)
        self._has_advanced(done, transport)

    def _has_advanced(self, done: bool, transport: Transport | TLSTransport) -> None:
        """Note what sending waits for.

        :param done: whether nothing is left to send
        """
        self.outgoing.flush_is_due = not done
        self.outgoing.filling_thread = 0
        if done:
            if self._tls is not None:
                self.resume_reading()  # as its answers are sent
        elif transport.blocked or self._sends_on:
            self._await_room()
        else:
            self._waits_for_peer = True
            self.leave_fast_path()

    def _perform(self, action: Action, transport: Transport | TLSTransport) -> bool:
        """Perform one action.

        :return: whether it is complete
        """
        if action is Action.SEND:
            return self._send_buffered(transport)
        if action is Action.SHUT:
            self._close_transport()
            return True
        if not transport.closed and not transport.send_eof():
            return False
        self.machine.mark_end_sent()
        self.lifetime.notify()
        return True

    def _send_buffered(self, transport: Transport | TLSTransport) -> bool:
        """Send as much of the buffer as the operating system takes now.

        :return: whether nothing is left to wait for
        """
        outgoing, left = self.outgoing, SEND_PER_TURN
        try:
            while outgoing.amount:
                if left <= 0:
                    self._sends_on = True
                    return False
                chunks = outgoing.next_write(min(transport.send_limit, SEND_PER_TURN))
                count = transport.sendmsg(chunks)
                left -= count
                awaited = outgoing.awaited
                outgoing.advance(count)
                if awaited and not outgoing.awaited:
                    self.lifetime.notify()  # the stream's send(), which need not wait for later data
                # TLS may have sent records of earlier data only: that does not mean that the kernel is full.
                if not count:
                    return False
                if self._tls is None and count < (len(chunks[0]) if len(chunks) == 1 else sum(map(len, chunks))):
                    return False
        except OSError as exc:
            self._fail(exc)
        self.lifetime.notify()
        return True

    def _flush_answers(self, transport: Transport | TLSTransport) -> bool:
        """Send the messages that TLS itself has to send."""
        try:
            done = transport.flush()
            self.lifetime.notify()
            return done
        except OSError as exc:
            if isinstance(
                exc, ssl.SSLError
            ):  # any other error is the loss of the connection, which the next read reports
                self.lose(exc)
            return True

    # Data that the handler of ``data`` holds, such as the beginning of a line

    def take_back(self) -> None:
        """Put the data that the handler holds back at the head of the queue."""
        self._note_taken_back(self.inbox.take_back())

    def leave_for_later(self, data: bytes) -> None:
        """Put data that the handler of ``data`` was given at the head of the queue: it is the next ``data``."""
        self.inbox.take_back_some(data)
        self._note_taken_back(len(data))

    def _note_taken_back(self, count: int) -> None:
        if count:
            self.take_back_received(count)
            self.leave_fast_path()

    def offer_held_again(self) -> None:
        """The handler of ``data`` was replaced: the new one gets the data that the old one holds."""
        self.take_back()
        if self.inbox.retaken and self.machine.takes_data() and self.dispatcher.runs:
            self.dispatcher.wake()

    def reject(self, exc: OSError) -> None:
        """Drop the connection, and its queue, because the peer has sent something unacceptable."""
        self.inbox.discard()
        self.machine.reject()
        self.lose(exc)

    # Time

    def _limit_time(self) -> None:
        """Begin the time limit that applies now; one that runs already goes on."""
        machine, limits = self.machine, self._limits
        if limits is None and (
            machine.shut or (machine.ready is _OPEN and machine.failed is _NOT_FAILED and self._tls is None)
        ):
            return  # usually
        limit = machine.limit()
        if limit is Limit.HANDSHAKE and self._plaintext:
            limit = Limit.PLAINTEXT
        if machine.ready is not _CONNECTING and limit is None:
            self._limits = None
        elif limits is None:
            limits = self._limits = Limits(self.options)
        if limits is not None and limit is not limits.current:
            self._set_limit(limits, limit)

    def _set_limit(self, limits: Limits, limit: Limit | None) -> None:
        if limit is None:
            limits.end()
        else:
            limits.begin(limit, anyio.current_time(), self._plaintext)
        self._await_time()

    def _await_time(self) -> None:
        """Have :meth:`on_time` called at the earliest deadline."""
        if self._registration is not None and not self.machine.shut:
            limits = math.inf if self._limits is None else self._limits.deadline
            self._registration.limit(limits if self._idleness is None else min(limits, self._idleness.deadline))

    @property
    def _plaintext(self) -> int:
        """Bytes yet to be sent of the plaintext that precedes TLS."""
        return 0 if self._tls is None else self._tls.plaintext

    def on_time(self) -> None:
        now = anyio.current_time()
        self._enforce_limits(now)
        if self._idleness is not None and not self.machine.shut:
            self._enforce_idle_timeout(self._idleness, now)
        self.dispatcher.pump()

    def _enforce_idle_timeout(self, idleness: Idleness, now: float) -> None:
        if now >= idleness.deadline and idleness.check(self._bytes_moved, now):
            self._read_what_is_here()
            if not self.machine.shut and idleness.check(self._bytes_moved, now):
                self.lose(idleness.error)
        self._await_time()

    def _read_what_is_here(self) -> None:
        """Read what has arrived while the event loop was held up, before the connection counts as idle."""
        registration = self._registration
        if registration is not None and registration.reading and self.on_readable() is ReadResult.PENDING:
            registration.wake()

    @property
    def _bytes_moved(self) -> int:
        """Bytes that were read and sent so far, delivered or not."""
        records = 0 if self._tls is None else self._tls.moved
        return self.bytes_received + self.outgoing.sent + self._other_bytes_read + records

    def _enforce_limits(self, now: float) -> None:
        limits = self._limits
        limit = None if limits is None else limits.expired(now)
        if limits is not None and limit is not None:
            if limit in (Limit.LINGER, Limit.FAILURE, Limit.ALERT):
                self.machine.lose()
                self.advance()
            elif limits.has_progressed(limit, self._plaintext):
                self._set_limit(limits, limit)
            else:
                self.lose(limits.error(limit))

    # A stream instead of handlers

    def begin_stream(self) -> None:
        """From now on a stream receives the data."""
        self.take_back()
        self.machine.begin_stream()
        self._state_changed()

    def receive(self, size: int) -> bytes | None:
        """Received data for the stream; ``b""`` at the peer's end, None if nothing has arrived.

        :raises OSError: if the connection was lost
        """
        data = self.inbox.take(size)
        if data is not None:
            self._other_bytes_received += len(data)
            self.resume_reading()
            return data
        if self.machine.peer_side is not PeerSide.OPEN:
            return b""
        assert self.transport is not None
        data = self.transport.receive(size)
        if self._tls is not None:
            self._after_tls_received(self._tls)
        if data:
            self._other_bytes_received += len(data)
        elif data is not None:
            self.machine.end_peer_side()
            self._follow_peers_end()
        return data

    def send_directly(self, data: bytes) -> bool:
        """Send data whose sender waits: immediately, and by way of the buffer only what the kernel does not take.

        :return: whether the operating system has taken all of it
        """
        outgoing, transport = self.outgoing, self.transport
        assert transport is not None
        if outgoing.flush_is_due or outgoing.amount or transport.closed or not 0 < len(data) <= transport.send_limit:
            outgoing.append_awaited(data)
            if not outgoing.flush_is_due:
                self.flush()
            return not outgoing.awaited and self.machine.failed is Failed.NO
        count = 0
        try:
            count = transport.sendmsg([data])
        except OSError as exc:
            self._fail(exc)
            self.advance()
        if count == len(data):
            outgoing.sent += count
            return True
        outgoing.append_awaited(data)
        outgoing.advance(count)
        self.advance()
        return False

    async def close_now(self) -> None:
        """Close immediately, and wait for the few turns of the event loop until the descriptor is closed too."""
        self.close_immediately()
        await self.lifetime.wait_until(lambda: self.attempt is None)
        self._close_transport()
        if self.transport is not None:
            await self.transport.watched.wait_closed()


def _no_event(type: str, target: EventTarget | None, data: bytes) -> Event[Any]:
    raise AssertionError("it does not run")
