"""One connection: what its parts have to do with each other. Each of them is held, and knows nothing of the others.

Three tasks, in the connection's own task group::

    reader ──data──▶ memory-object channel ──▶ dispatcher ──▶ handlers
    writer ──drain─▶        (bounded)                         │ send()
      ▲──────────────── send buffer ◀─────────────────────────┘

Each of them, and the group itself, is started with the first thing that only a task can do. Where a :mod:`._poller`
waits for the sockets it is the reader and the writer of all of them, and a dispatcher's task is needed for asynchronous
handlers only.

What may be read goes through the wait in :mod:`._poller` or :mod:`._readiness`, here (:meth:`Connection.on_readable`),
:mod:`._transport` (the bytes, of TLS by :mod:`._tls` and :mod:`._tls_engine`), and :mod:`._dispatch`, which calls the
handlers in :mod:`._events`; where a handler runs, by way of the channel in :mod:`._buffers`. What a handler sends goes
through :mod:`._socket` (the check), here (:meth:`Connection.send`), :mod:`._buffers` (the send buffer) and, when the
handler has returned, by :meth:`Connection.flush` through :mod:`._transport` to the kernel; what that does not take goes
when the same wait tells of room.

As a rule nothing is out of the ordinary: the connection is open, without TLS, and its handler of data is a function.
Then both go a short way (:meth:`Connection.on_readable`, :meth:`Connection.flush`), which does the same and looks at
less.

What is due to the program, and what is to be done with the socket, :mod:`._machine` says: after whatever has happened,
:meth:`Connection.advance` does what is to be done, as far as goes at once. :mod:`._lifetime` is who runs all this, and
what nobody was told of.
"""

from __future__ import annotations

import errno
import math
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine
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
from ._raised import split_exception, without_task
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

__all__ = ("Connection", "Host")

_CONNECTING = ReadyState.CONNECTING
_OPEN = ReadyState.OPEN
_CLOSED = ReadyState.CLOSED
_OWN_SIDE_OPEN = OwnSide.OPEN
_NOT_FAILED = Failed.NO
_DATA = PendingEvent.DATA
_SOME = ReadResult.SOME
_NOTHING = ReadResult.NOTHING

FAST_READ_SIZE = Transport.read_size
"""Bytes to read at once on the short way, as long as there is less: after that it is :data:`READ_PER_TURN`."""

READ_PER_TURN = 245_760
"""Bytes to read before other tasks run. More than an ``ondrain`` sends in its turn, so that a transfer within a process
is read while it is in the processor's cache, and does not pile up (measured: 2.4 times as fast).
"""

DataEvent: TypeAlias = Callable[[str, Any, bytes], Event[Any]]
"""Of the type, the target and the data."""

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
    PendingEvent.CLOSE: "close",
}


class Host(Protocol):
    """A server, to the connections that it has accepted."""

    def admit(self, connection: Connection) -> None:
        """Have :meth:`Connection.admitted` called when it may be open."""

    def may_log(self, kind: str) -> bool:
        """Whether one more record of a kind is to be logged."""

    def finish(self, connection: Connection) -> None:
        """End one that is over, or that nobody waits for any more, and that no task runs. Doing it twice does no
        harm.
        """


class Connection:
    """What is inside of a :class:`TCPSocket`.

    :param name: of the class, for its ``repr()``
    :param host: what to connect to, or what it is connected to
    :param port: likewise
    :param options: what the program has chosen
    :param listeners: what listens to its events
    :ivar machine: its state
    :ivar outgoing: what is to be sent
    :ivar inbox: what was received and is not delivered
    :ivar transport: its bytes; None until it is connected
    :ivar attempt: to connect, while that lasts
    :ivar server_side: its role in TLS; None if the context decides
    :ivar bytes_received: how many bytes the program was given so far
    :ivar followers: what is called when it is over, events or not; None for none
    :ivar buffers: whether what is sent is put into the buffer and nothing else, as somebody is about to look at that:
        while a handler runs
    """

    __slots__ = (
        "_data_event",
        "_fast_path",
        "_finish",
        "_finished",
        "_flush_scheduled",
        "_header",
        "_idleness",
        "_journal",
        "_limits",
        "_listeners",
        "_local",
        "_name",
        "_number",
        "_opening_event",
        "_opening_has_begun",
        "_other_bytes_read",
        "_read_size",
        "_registration",
        "_server",
        "_target",
        "_tls",
        "_waiting",
        "_waits_for_peer",
        "_warned_unheard",
        "attempt",
        "buffers",
        "bytes_received",
        "close_callbacks",
        "dispatcher",
        "host",
        "inbox",
        "lifetime",
        "machine",
        "options",
        "outgoing",
        "port",
        "server_side",
        "transport",
    )

    def __init__(self, name: str, host: str, port: int, options: SocketOptions, listeners: Listeners) -> None:
        self._name = name
        self._number = next_number()
        self._local: Any = None  # its address, as far as that was asked for
        self._journal: Journal | None = None  # if it is wanted
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
        self.close_callbacks: list[Callable[[], None]] | None = None
        self.buffers = False
        self.bytes_received = 0
        self._listeners = listeners
        self._tls: TLSTransport | None = None  # the transport, once TLS is wanted
        self._waiting: Waiting = by_tasks
        self._registration: Registration | None = None  # from when it waits for its socket
        self._server: Host | None = None  # which has accepted it
        self._finish: Callable[[Connection], None] | None = None  # if no task need run it
        self._target: EventTarget | None = None  # whose events they are, while it runs
        self._data_event: DataEvent = _no_event
        self._opening_event: Callable[[], tuple[Listeners, Event[Any]]] | None = None  # None for ``open``
        self._flush_scheduled = False  # whether someone will look at the send buffer
        self._opening_has_begun = False  # whether a task for just that has begun to connect
        self._finished: anyio.Event | None = None  # what a task waits for that runs it, where that is all it does
        self._other_bytes_read = 0  # how many bytes that were not given to the program at once, or never
        self._read_size = FAST_READ_SIZE  # the next time, on the short way
        self._fast_path = False  # whether nothing is known to be out of the ordinary: see _is_lean()
        self._warned_unheard = False  # that nothing listens to an event
        self._waits_for_peer = False  # whether it is the peer's bytes that sending waits for, as in a handshake
        self._header = b""  # what there is of the PROXY protocol's
        self._limits: Limits | None = None  # while there are any
        self._idleness: Idleness | None = None  # if that is limited

    def __repr__(self) -> str:
        ends = f"{self.local}->{self.peer}" if self.local else self.peer
        return f"<{self._name} #{self._number} {ends} {self.machine.ready}>"

    @property
    def local(self) -> str:
        """The address that it is connected from, for people; empty if it has none, or is not connected yet."""
        if not self._local and self.transport is not None:
            self._local = self.transport.local
        return printable(display(*host_and_port(self._local))) if self._local else ""

    @property
    def bytes_sent(self) -> int:
        """How many bytes of the program's were handed over so far."""
        return self.outgoing.sent

    @property
    def peer(self) -> str:
        """What it is connected to, for people."""
        return printable(display(self.host, self.port))

    @property
    def is_tls(self) -> bool:
        """Whether it is, or is to be, encrypted."""
        return self._tls is not None or self.options.useSecureTransport

    @property
    def attributes(self) -> dict[Any, Callable[[], Any]]:
        """AnyIO's typed attributes; none while there is no connection."""
        return {} if self.transport is None or self.transport.closed else self.transport.attributes

    # Before it runs

    def become(self, host: str, port: int, sock: socket.socket, context: ssl.SSLContext | None) -> None:
        """Take a socket that others have connected, in whatever role the context is for.

        :param context: for TLS from the start, unless there is one already
        :raises ValueError: if there is no name to check the certificate for
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
            self._make_tls_of_options()  # to raise here what it may raise

    def accept(self, transport: Transport, server: Host, opening: Callable[[], tuple[Listeners, Event[Any]]]) -> None:
        """Take one that a server has accepted.

        :param opening: what makes the event that tells of it, and who listens to that
        """
        self.transport = transport
        self.server_side = True
        self._journal = Journal.if_wanted()
        if self._journal is not None:
            self._journal.accepted(self, server)
        self._server, self._finish = server, server.finish
        self._opening_event = opening
        self.lifetime.begin()
        if not self.options.useSecureTransport and not self.options.proxy_protocol:
            self.machine.open()

    def attach(self, target: EventTarget, data_event: DataEvent) -> None:
        """Say whose the events are, before it runs.

        :param data_event: what makes the event of some data
        """
        self._target, self._data_event = target, data_event

    def wait_by(self, waiting: Waiting) -> None:
        self._waiting = waiting

    # Life

    async def live(self) -> None:
        if not self._opening_has_begun:
            await self._open()
        if self.pumps_on_notify:
            self._finished = finished = anyio.Event()
            self.notify()
            await finished.wait()
            return
        self.dispatcher.pump()
        while self.dispatcher.busy or not self.machine.is_over():
            await self.lifetime.change()
            self.dispatcher.pump()  # what a suspended program had yet to be told, and now closes

    async def _open(self) -> None:
        try:
            await self._connect_and_read()
        except BaseException as exc:  # of the program's, such as its SSLContext's
            raised, passing = split_exception(exc)
            if raised is not None:
                self.crashed(raised, "the connection")
            if passing is not None:
                raise
            self._shut()

    async def _connect_and_read(self) -> None:
        if self._server is None:
            self._journal = Journal.if_wanted()
        if self.transport is None and self.machine.ready is _CONNECTING:
            await self._connect()
        if self._registration is None:  # else it was begun before there was a task for it
            await anyio.lowlevel.checkpoint_if_cancelled()  # as no handler runs if a scope around the owner's is
            self.start()
        if self._registration is not None:
            await self._registration.run()

    async def open(self, finish: Callable[[Connection], None]) -> None:
        """Connect, in a task that goes no further: after that there is none, before something needs one.

        :param finish: as of :class:`Host`
        """
        self._finish = finish
        self._opening_has_begun = True
        await self._open()
        self._continue_without_task()

    def begin(self, waiting: Waiting) -> None:
        """Begin, when a server has accepted it: with no task of its own, if there is another way to wait."""
        self._waiting = waiting
        if waiting.takes_tasks:
            self.dispatcher.request_task()
            return
        try:
            self.start()
        except BaseException as exc:  # of the program's, such as its SSLContext's
            self.crashed(without_task(exc), "the connection")
            self._shut()
        self._continue_without_task()

    def _continue_without_task(self) -> None:
        if not self.pumps_on_notify:
            self.dispatcher.pump()
        self._finish_if_over()

    def start(self) -> None:
        """Go on with a connection that there is."""
        if self.transport is None or self.machine.abandoned:  # it failed, or was closed meanwhile
            self._shut()
            return
        if not self.transport.closed:
            configure(self.transport.watched.socket, self.options.keep_alive)
        registration = self._waiting.register(self.transport.watched)
        try:
            registration.begin(self)
        except OSError as exc:  # the system has no room for it
            self.lose(exc)
        else:
            self._registration = registration
            if self.options.idle_timeout is not None:
                self._idleness = Idleness(self.options.idle_timeout, anyio.current_time())
                self._await_time()
            self._open_further(Opening.CONNECT)

    def release(self) -> None:
        self.machine.release()
        self._shut()
        if self._journal is not None:
            self._journal.closed(self)
        self._forget_queued()
        self.inbox.close()
        close_callbacks, self.close_callbacks = self.close_callbacks, None
        for callback in close_callbacks or ():
            callback()

    def add_close_callback(self, function: Callable[[], None]) -> None:
        """Have a function called when it is over, be it that its owner is cancelled, and no handler is told of that."""
        self.close_callbacks = [*(self.close_callbacks or ()), function]

    def remove_close_callback(self, function: Callable[[], None]) -> None:
        self.close_callbacks = [each for each in self.close_callbacks or () if each != function] or None

    def _forget_queued(self) -> None:
        """At the end, but for what a stream can still be asked for: what came before the connection was lost."""
        if not self.machine.streams or self.machine.failed is Failed.NO:
            self.inbox.discard()

    @property
    def public_object(self) -> object:
        return self._target or self

    def end(self) -> None:
        if self._registration is not None:
            self._registration.detach()
        self._target = self._opening_event = self._finish = None
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

    @property
    def pumps_on_notify(self) -> bool:
        return not self._waiting.takes_tasks and self._registration is not None

    def spawn(self, what: str, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, None]], *args: Unpack[Ts]) -> None:
        self.dispatcher.spawn(what, function, *args)

    def listeners_changed(self) -> None:
        """Others listen to data, or nobody."""
        self._fast_path = False

    def cancel_handlers(self) -> None:
        self._fast_path = False
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
        """Have those look who wait for what may have changed."""
        self.buffers = False
        self._fast_path = False
        if self._registration is not None:
            self._watch_reading()
            if self.machine.streams and self.transport is not None:
                self.transport.watched.interrupt()  # the stream's caller
        if self.machine.shut:
            self.notify()  # as the last events may be due
        else:
            self.lifetime.notify()

    # Opening

    async def _connect(self) -> None:
        options, limits = self.options, Limits(self.options)
        if options.connect_timeout is not None:
            limits.begin_to_connect(anyio.current_time() + options.connect_timeout)
            self._limits = limits
        self.attempt = Attempt()
        try:
            sock = await self.attempt.run(
                self.host,
                self.port,
                options.local_host,
                options.local_port,
                limits.deadline,
                limits.error(Limit.CONNECT),
            )
        except (OSError, UnicodeError, ExceptionGroup) as exc:
            self.lose(exc)
        else:
            if sock is not None:
                self.transport = Transport(sock)
        finally:
            self.attempt = None

    def _open_further(self, done: Opening) -> None:
        """Go on to what is next before the connection is open."""
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
            self._shut()
            return
        if self._journal is not None:
            self._journal.opened(self)
        self.machine.announce()
        self._state_changed()
        self.dispatcher.pump()

    def admitted(self) -> None:
        """It may be open: its server has room."""
        self.machine.enter_stage(Opening.ADMITTED)
        if self._registration is not None:
            self._registration.wake()

    def _open_if_admitted(self) -> None:
        if self.machine.opening is Opening.ADMITTED:
            self._opened()

    def give_up_handshake(self) -> None:
        """Close, while there is no connection yet, as others want to have one too."""
        self._fail(timeout("its handshake was given up for another's: see max_handshakes of the server"))
        self._abandon()

    def _read_header(self, transport: Transport) -> ReadResult:
        """Of the PROXY protocol."""
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
        """TLS over the transport there is, behind what is buffered.

        :raises ValueError: if there is no context, it is for the other side, or there is no name to check
        """
        assert isinstance(self.transport, Transport)
        host = self.host if self.port else ""  # and not the path of a UNIX-domain socket
        return tls_over(
            self.transport,
            context,
            server_hostname or host,
            server_side=self.server_side,
            standard_compatible=self.options.tls_standard_compatible,
            plaintext=self.outgoing.amount,
        )

    def _begin_tls(self, tls: TLSTransport, leftover: bytes = b"") -> None:
        """Go on in TLS, to which all belongs that is not delivered yet."""
        self.take_back()
        if leftover:
            tls.feed(leftover)
        while (data := self.inbox.take()) is not None:
            tls.feed(data)
        self.transport = self._tls = tls
        self.machine.begin_tls()
        self._state_changed()
        if self.machine.ready is _CONNECTING:
            self.advance()

    def _after_tls_received(self, tls: TLSTransport) -> None:
        """After something was received."""
        if self.machine.security is not Security.UP and tls.established:
            self._secured()
        elif self._waits_for_peer:
            self.advance()
        elif tls.owes_answers:
            if not self._flush_scheduled:
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
        self.advance()  # with what the handlers have written, the end of the handshake goes in one piece

    # Failing, and the end

    def _fail(self, exc: BaseException) -> None:
        """The connection failed or was lost: nothing more can be sent. Of several failures the one that tells most
        counts, and else the first.
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
            self.machine.lose()  # what goes before TLS is cut off: nothing that TLS says can follow
        self._state_changed()

    def lose(self, exc: BaseException) -> None:
        """Nothing more can be had of the connection."""
        machine = self.machine
        # After the program's end the peer's is as good as any, even cut off.
        is_end = isinstance(exc, ssl.SSLEOFError) and machine.ready is not _OPEN and machine.security is Security.UP
        if machine.loss_is_failure() and not is_end:
            self._fail(exc)
        if isinstance(exc, ssl.SSLEOFError):
            machine.mark_truncated()
        elif not isinstance(exc, ssl.SSLError):  # of which the peer is told
            machine.lose()
        self._state_changed()
        self.advance()

    def _shut(self) -> None:
        """Close the transport, whatever is still to be told."""
        if self.machine.shut:
            return
        if self._registration is not None:
            self._registration.end()
        if self.transport is not None:
            self._local = self._local or self.transport.local
            self.transport.close()
        self.machine.end()
        if self._registration is not None:
            self._registration.wake()
        self._state_changed()

    def _abandon(self) -> None:
        """Close before there is a connection."""
        self.machine.give_up()
        if not self.lifetime.started:
            self.lifetime.end_before_it_began()
            self.release()
            self.end()
        elif self.attempt is not None:
            self.attempt.give_up()
        else:
            self._shut()

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
        """Why it is not open any more, in words; empty if there is nothing to say."""
        lifetime = self.lifetime
        if lifetime.failure is not None:
            return f"it was lost: {lifetime.failure}"
        return lifetime.crash_words or _WHY_CLOSED[self.machine.closed_by]

    def require_task(self, what: str) -> None:
        self.lifetime.require_task(self, what)

    def send(self, data: bytes) -> bool:
        if not self._fast_path:
            self._check_may_send()
        written = turn.written
        if written is None or get_ident() != self.lifetime.thread:
            self.require_task("send()")
        if not self._flush_scheduled:
            self._schedule_flush(written)
        self.buffers = written is not None  # else it is asked again whether it is a task that sends
        return self.outgoing.append(data)

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
        self.buffers = False
        self._fast_path = False
        if self.machine.have_both_ended():
            self.close()
        elif not self._flush_scheduled:
            self._schedule_flush(turn.written)

    def suspend(self) -> None:
        self.require_task("suspend()")
        self.machine.suspend()
        self._fast_path = False
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
            if not self._flush_scheduled:
                self._schedule_flush(turn.written)
            elif self._registration is not None:
                self._registration.write()  # to limit the time for what TLS answers by itself to be taken
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
        """Close immediately, by cutting the connection off."""
        self.require_task("reset()")
        if self.transport is not None:
            if self._registration is not None:
                self._registration.end()  # before the descriptor is closed
            self.transport.reset()
        self.close_immediately()

    def close_all(self) -> None:
        self.close()

    def upgrade(self, context: ssl.SSLContext | None, server_hostname: str | None, leftover: bytes) -> None:
        """To TLS."""
        machine = self.machine
        if machine.ready is not _OPEN:
            raise self.not_open("upgradeToSecure()")
        if self._tls is None and (machine.own_side is not OwnSide.OPEN or machine.peer_side is PeerSide.END_DELIVERED):
            raise InvalidStateError("upgradeToSecure() on a connection of which one side has ended: TLS needs both")
        self.require_task("upgradeToSecure()")
        if self._tls is None:
            self._begin_tls(self._make_tls(context, server_hostname), leftover)
            if not self._flush_scheduled:
                self._schedule_flush(turn.written)
            self._limit_time()
            if self._registration is not None:
                self._registration.wake()  # there may be something to read of what is here already

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
        await self.lifetime.reach(
            self,
            "drained()",
            lambda: not (outgoing.amount or outgoing.dropped) and machine.failed is Failed.NO,
            lambda: machine.shut if machine.failed is not Failed.NO else outgoing.dropped,
        )

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
            if pending in _PEERS_END and (held := self.inbox.held) is not None and held.is_unfinished:
                self.inbox.held = None
                return Listeners.of("data", held.finish), self._data_event("data", self._target, b"")
            machine.mark_delivered(pending)
            if pending is _DATA:
                listeners, data = self._queued_data()
                self.resume_reading()
                if data:
                    self.bytes_received += len(data)
                    self._warn_if_unheard("data", _ADVICE)
                    return listeners, self._data_event("data", self._target, data)
            elif pending is PendingEvent.BOTH_ENDED:
                self.buffers = False
                self.advance()
            else:
                return self._make_event(pending)
        if machine.shut and machine.is_over():
            self.notify()
        return None

    def _queued_data(self) -> tuple[Listeners, bytes | None]:
        """The next of it, and whom it is for: what was taken back is for the handler, as the others have seen it; but
        if there is none any more, for them: such as a pipe, which has taken its place.
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
            return opening() if opening else (self._listeners, Event("open", self._target))
        if pending in (PendingEvent.ERROR, PendingEvent.CLOSE):
            self._forget_queued()
        if pending is PendingEvent.ERROR:
            assert self.lifetime.failure is not None
            if self._listeners.has("error"):
                self.lifetime.mark_failure_reported()
            return self._listeners, TCPSocketErrorEvent("error", self._target, self.lifetime.failure)
        if pending is PendingEvent.END:
            self._warn_if_unheard("end", "it stays open until close() is called")
        return self._listeners, Event(_TYPES[pending], self._target)

    def _warn_if_unheard(self, type: str, advice: str) -> None:
        """Warn, once, of an event that nothing listens to though it should."""
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
        """Read what there is, and deliver it."""
        if (
            not (self._fast_path or self._check_fast_path())
            or self.dispatcher.busy
            or "data" in self._listeners.async_types
        ):
            return self._read_slow_path(READ_PER_TURN)
        size = self._read_size
        try:
            data = self.transport.receive(size)  # type: ignore[union-attr]
        except OSError as exc:
            self.lose(exc)
            self.dispatcher.pump()
            return _NOTHING
        if data:
            count = len(data)
            self.bytes_received += count
            self.dispatcher.deliver(self._data_event("data", self._target, data))
            if not self._fast_path or self.outgoing.drain_owed:  # else nothing is due
                self.dispatcher.pump(behind_handler=True)
            if count < FAST_READ_SIZE:
                self._read_size = FAST_READ_SIZE
                return _SOME
            self._read_size = READ_PER_TURN
            return ReadResult.MORE  # even if that was all: it was much, and others have their turn
        if data is not None:
            self._peer_ended()
            self.dispatcher.pump()
        return _NOTHING

    def _check_fast_path(self) -> bool:
        """Whether there is the short way: to a handler that is a function, from what was received without TLS, and from
        what that sends to the operating system.
        """
        machine = self.machine
        self._fast_path = (
            machine.ready is _OPEN
            and machine.failed is _NOT_FAILED
            and machine.opening is Opening.DONE
            and machine.own_side is _OWN_SIDE_OPEN
            and machine.peer_side is PeerSide.OPEN
            and not (machine.suspensions or machine.streams or self.inbox.count or self.dispatcher.cancelled)
            and self._tls is None
            and self._limits is None
            and self.transport is not None
            and machine.pending_event() is None
            and self._listeners.has("data")
        )
        return self._fast_path

    def _read_slow_path(self, left: int) -> ReadResult:
        """:param left: how many bytes may be read"""
        transport = self.transport
        assert transport is not None
        try:
            if self.machine.opening is Opening.HEADER:
                assert isinstance(transport, Transport)
                return self._read_header(transport)
            return self._read(transport, left)
        except OSError as exc:
            self.lose(exc)
        self.dispatcher.pump()
        return ReadResult.NOTHING

    def _read(self, transport: Transport | TLSTransport, left: int) -> ReadResult:
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
                # Read all the same: to close with unread input destroys what the peer has yet to read (RST).
                self._other_bytes_read += len(data)
            elif direct and not dispatcher.busy:
                self.bytes_received += len(data)
                self._warn_if_unheard("data", _ADVICE)
                dispatcher.deliver(self._data_event("data", self._target, data))
                dispatcher.pump(behind_handler=True)
            else:
                self._queue(data)
            left -= size
            full = len(data) == size  # so there may be more
            if self.transport is not transport:  # upgradeToSecure() has replaced it
                return ReadResult.PENDING
            if not full or left < size or not machine.reads():
                return ReadResult.PENDING if transport.pending else ReadResult.MORE if full else found
            async_types = self._listeners.async_types
        if data is not None:
            self._peer_ended()
            dispatcher.pump()
        return ReadResult.PENDING if transport.pending else found

    def _queue(self, data: bytes) -> None:
        """Have what was read delivered after what is queued, or running, or when the socket is resumed."""
        self._fast_path = False
        self._other_bytes_read += len(data)
        self.inbox.put(data)
        if self.machine.takes_data():
            self.dispatcher.wake()
        self.lifetime.notify()
        if not self.inbox.has_room:
            self._watch_reading()

    def _peer_ended(self) -> None:
        self.machine.end_peer_side()
        self._state_changed()
        self.advance()

    def resume_reading(self) -> None:
        """After something was taken from the queue."""
        if self._registration is not None and not self._registration.reading:
            self._watch_reading()

    def _watch_reading(self) -> None:
        assert self._registration is not None and self.transport is not None
        room = self.inbox.has_room or self.machine.ready is not _OPEN
        self._registration.read(room and self.machine.reads() and not self.transport.choked)

    def on_woken(self) -> bool:
        self._open_if_admitted()
        if self.pumps_on_notify:
            self.dispatcher.pump()
            self._finish_if_over()
        return self.machine.reads() and not self.inbox.has_room

    def _finish_if_over(self) -> None:
        dispatcher = self.dispatcher
        if dispatcher.busy:
            return
        if not self.machine.is_over():
            if self.machine.shut and not dispatcher.has_task:
                dispatcher.request_task()  # for its owner to wait for it, whose poller does no longer
            return
        if self._finished is not None:
            self._finished.set()
        elif dispatcher.has_task:
            pass  # by a task that has yet to begin, and then looks
        elif self.lifetime.is_awaited:
            dispatcher.request_task()  # to let them know
        else:
            assert self._finish is not None
            self._finish(self)

    def on_hung_up(self) -> None:
        if self.machine.reads():
            self.inbox.make_room()
            self._watch_reading()

    def on_stopped(self) -> None:
        if self._finish is not None and not self.dispatcher.has_task:
            self._finish(self)

    def on_cancelled(self) -> None:
        self.close_immediately()

    # Sending

    def _schedule_flush(self, written: list[Callable[[], None]] | None) -> None:
        """Have what is buffered sent: when the running handler returns, or else soon.

        :param written: of :data:`turn`
        """
        if written is not None:
            written.append(self.flush)
        else:
            self._write_soon()
        self._flush_scheduled = True

    def _await_room(self) -> None:
        """Have the rest sent when there is room."""
        if self.dispatcher.runs and self._registration is not None:  # and not closed before it began
            self._registration.await_room()

    def _write_soon(self) -> None:
        if self.dispatcher.runs and self._registration is not None:
            self._registration.write()

    def flush(self) -> None:
        """Send what a handler has written, when it has returned, be it one of another connection."""
        self.buffers = False
        outgoing = self.outgoing
        only_chunk = outgoing.only_chunk
        if only_chunk is not None and self._fast_path and not outgoing.drain_owed:
            try:
                count = self.transport.send_one(only_chunk)  # type: ignore[union-attr]
            except OSError as exc:
                self._fail(exc)
            else:
                if count == len(only_chunk):
                    self._flush_scheduled = False
                    outgoing.only_chunk_is_sent()
                    if self.lifetime.changed is not None:
                        self.lifetime.notify()
                    return
                outgoing.advance(count)
        self._flush_slow_path()

    def _flush_slow_path(self) -> None:
        try:
            self.advance()
        except BaseException as exc:  # of the program's, such as its SSLContext's: no trouble of who runs this
            self.crashed(without_task(exc), "sending")
        if self.outgoing.drain_is_pending and self.dispatcher.runs:
            self.dispatcher.wake()

    def on_writable(self) -> bool:
        self.advance()
        if self.pumps_on_notify:
            self.notify()  # the peer, which may be in this process, has its turn before a drain fills what it has read
        else:
            self.dispatcher.pump()
        return self._flush_scheduled and not self._waits_for_peer and not self.machine.shut

    def advance(self) -> None:
        """Do what is to be done, as far as goes at once."""
        machine, transport = self.machine, self.transport
        if transport is None:
            return
        self._waits_for_peer = False
        if machine.ready is _OPEN and machine.own_side is _OWN_SIDE_OPEN and self._limits is None:  # as a rule
            done = self._send_buffered(transport) if self.outgoing.amount else self._flush_answers(transport)
            if machine.failed is _NOT_FAILED:
                self._has_advanced(done, transport)
                return
        self._perform_actions(transport)
        self._limit_time()

    def _perform_actions(self, transport: Transport | TLSTransport) -> None:
        machine = self.machine
        self._flush_scheduled = True
        done = True
        while done and (action := machine.next_action()) is not Action.LINGER:
            if action is Action.NOTHING:
                done = machine.shut or self._flush_answers(transport)
                break
            done = self._perform(action, transport)
        self._has_advanced(done, transport)

    def _has_advanced(self, done: bool, transport: Transport | TLSTransport) -> None:
        """:param done: whether there is nothing to wait for"""
        self._flush_scheduled = not done
        self.buffers = False
        if done:
            if self._tls is not None:
                self.resume_reading()  # as what it has answered is taken
        elif transport.blocked:
            self._await_room()
        else:
            self._waits_for_peer = True

    def _perform(self, action: Action, transport: Transport | TLSTransport) -> bool:
        """:return: whether it is done, and need not wait"""
        if action is Action.SEND:
            return self._send_buffered(transport)
        if action is Action.SHUT:
            self._shut()
            return True
        if not transport.closed and not transport.send_eof():
            return False
        self.machine.mark_end_sent()
        self.lifetime.notify()
        return True

    def _send_buffered(self, transport: Transport | TLSTransport) -> bool:
        """Hand over what the operating system takes now.

        :return: whether nothing is left to wait for
        """
        outgoing = self.outgoing
        try:
            while outgoing.amount:
                chunks = outgoing.next_write(transport.send_limit)
                count = transport.send(chunks)
                awaited = outgoing.awaited
                outgoing.advance(count)
                if awaited and not outgoing.awaited:
                    self.lifetime.notify()  # a stream's caller, who does not wait for what was sent behind it
                # TLS may have handed over what it had encrypted before there was more: that is no lack of room.
                if not count:
                    return False
                if self._tls is None and count < (len(chunks[0]) if len(chunks) == 1 else sum(map(len, chunks))):
                    return False
        except OSError as exc:
            self._fail(exc)
        self.lifetime.notify()
        return True

    def _flush_answers(self, transport: Transport | TLSTransport) -> bool:
        """Hand over what TLS has to say for itself."""
        try:
            done = transport.flush()
            self.lifetime.notify()
            return done
        except OSError as exc:
            if isinstance(exc, ssl.SSLError):  # else the connection is lost, which the next read tells
                self.lose(exc)
            return True

    # What a handler of data holds

    def take_back(self) -> None:
        """Have what the handler of data holds queued again, before all else."""
        count = self.inbox.take_back()
        if count:
            self.bytes_received -= count
            self._fast_path = False

    def offer_held_again(self) -> None:
        """There is another handler of data, for which is what the last one holds."""
        self.take_back()
        if self.inbox.retaken and self.machine.takes_data() and self.dispatcher.runs:
            self.dispatcher.wake()

    def reject(self, exc: OSError) -> None:
        """What the peer has sent is not to be borne: the connection is lost, and what was to be delivered too."""
        self.inbox.discard()
        self.machine.reject()
        self.lose(exc)

    # Time

    def _limit_time(self) -> None:
        """Limit what is to be limited now; what was so already goes on."""
        machine, limits = self.machine, self._limits
        if limits is None and machine.ready is _OPEN and machine.failed is _NOT_FAILED and self._tls is None:
            return  # as a rule
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
        limits.begin(limit, anyio.current_time(), self._plaintext)
        self._await_time()

    def _await_time(self) -> None:
        """Have :meth:`on_time` called when the first of all limits is over."""
        if self._registration is not None and not self.machine.shut:
            limits = math.inf if self._limits is None else self._limits.deadline
            self._registration.limit(limits if self._idleness is None else min(limits, self._idleness.deadline))

    @property
    def _plaintext(self) -> int:
        """How many bytes are yet to be sent that go before TLS."""
        return 0 if self._tls is None else self._tls.plaintext

    def on_time(self) -> None:
        now = anyio.current_time()
        self._enforce_limits(now)
        if self._idleness is not None and not self.machine.shut:
            self._enforce_idle_timeout(self._idleness, now)
        self.dispatcher.pump()

    def _enforce_idle_timeout(self, idleness: Idleness, now: float) -> None:
        if now >= idleness.deadline and idleness.check(self._bytes_moved, now):
            self.lose(idleness.error)
        self._await_time()

    @property
    def _bytes_moved(self) -> int:
        """How many bytes have gone either way so far, wherever they are."""
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

    # A stream in place of the handlers

    def begin_stream(self) -> None:
        """What arrives is for a stream from now on."""
        self.take_back()
        self.machine.begin_stream()
        self._state_changed()

    def receive(self, size: int) -> bytes | None:
        """What has arrived, for the stream; ``b""`` at the peer's end, None if nothing is there.

        :raises OSError: if the connection was lost
        """
        data = self.inbox.take(size)
        if data is not None:
            self.bytes_received += len(data)
            self.resume_reading()
            return data
        if self.machine.peer_side is not PeerSide.OPEN:
            return b""
        assert self.transport is not None
        data = self.transport.receive(size)
        if self._tls is not None:
            self._after_tls_received(self._tls)
        if data:
            self.bytes_received += len(data)
        elif data is not None:
            self._peer_ended()
        return data

    def give_back(self, data: bytes) -> None:
        """Give back some of what was received last: it comes first again."""
        self.bytes_received -= len(data)
        self.inbox.put_back(data)

    async def wait_readable(self) -> None:
        """Wait until there may be something for the stream."""
        transport = self.transport
        assert transport is not None
        if transport.choked:
            await self.lifetime.wait_until(lambda: not transport.choked or transport.closed)
        elif transport.pending:
            await anyio.lowlevel.checkpoint()  # it may have all, and the peer wait for us
        else:
            self.lifetime.begin_awaiting()
            try:
                await transport.watched.wait_readable()
            except anyio.ClosedResourceError:
                pass  # which the next look tells
            finally:
                self.lifetime.end_awaiting()

    def send_directly(self, data: bytes) -> bool:
        """Send what a stream's caller waits for: here and now, and by way of the buffer only what is not taken.

        :return: whether the operating system has taken all of it
        """
        outgoing, transport = self.outgoing, self.transport
        assert transport is not None
        if self._flush_scheduled or outgoing.amount or transport.closed or not 0 < len(data) <= transport.send_limit:
            outgoing.append_awaited(data)
            if not self._flush_scheduled:
                self.flush()
            return not outgoing.awaited and self.machine.failed is Failed.NO
        count = 0
        try:
            count = transport.send([data])
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

    def send_last(self) -> None:
        """For once send what goes now, before there is any time limit."""
        if self.dispatcher.runs:
            self.flush()

    async def close_now(self) -> None:
        """Close immediately what is not closed yet, and wait for the few turns until the descriptor is closed too."""
        self.close_immediately()
        await self.lifetime.wait_until(lambda: self.attempt is None)
        self._shut()
        if self.transport is not None:
            await self.transport.watched.wait_closed()


def _no_event(type: str, target: EventTarget | None, data: bytes) -> Event[Any]:
    raise AssertionError("it does not run")
