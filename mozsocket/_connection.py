"""How a connection begins, reads, writes and ends.

Three tasks, in the socket's own task group, and while an upgrade's handshake lasts one that limits its time::

    reader ──data──▶ memory-object channel ──▶ dispatcher ──▶ handlers
    writer ──drain─▶        (bounded)                         │ send()
      ▲──────────────── send buffer ◀─────────────────────────┘

The reader is there from the connect to the end. While no handler runs and nothing is queued it calls the handler
itself. Where a stream takes the data, it is the caller of ``receive()`` that reads, and the reader stands by: to bring
about TLS, and to read on when the socket is closed. The writer and the dispatcher are started when there is first
something for them: what the operating system would not take at once or was sent outside a handler, and an asynchronous
handler.

Every end of a connection goes through the closing of its transport, after which ``error``, if there was a failure, and
``close`` are due, behind the data that had come before. It is closed

- by ``closeImmediately()``, and so when a handler has raised: at once;
- when the peer's end has been delivered: at once if nothing is buffered, else by the writer when all is sent;
- when the peer has ended and so has the program, by ``send_eof()``, where ``allow_half_open`` keeps the one from being
  the other's end: in the same ways;
- after ``close()``: when all is sent and the peer has ended too, or ``linger`` is over; by the reader, if it was a
  handler that the reader called that closed, and nothing has to wait to be sent; else by the writer;
- when reading fails: at once; when TLS does, when the peer has had time to read why;
- when writing fails: by the writer, when what the peer had sent has been read;
- when the owner is cancelled: at once, and nothing is delivered any more.
"""

from __future__ import annotations

import errno
import ssl
import sys
import weakref
from abc import abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel

from . import _tls
from ._addresses import display, printable
from ._authorities import default_context
from ._connect import connect
from ._dispatch import Signal, sort_out, turn, without_task
from ._eagerness import Eagerness
from ._errors import InvalidStateError, explain, tells_more
from ._events import Event
from ._inbox import QUEUED_READ_SIZE, Inbox
from ._lifetime import Lifetime
from ._options import SocketOptions, check_role, identity
from ._proxy_protocol import missing, parse
from ._state import ReadyState, SendBuffer, SuspendCount
from ._tls import TLSTransport
from ._transport import Transport, configure

if sys.version_info < (3, 11):  # AnyIO depends on the backport
    from exceptiongroup import ExceptionGroup

if TYPE_CHECKING:
    from ._stream import SocketStream

__all__ = ("Connection",)

_CONNECTING = ReadyState.CONNECTING
_OPEN = ReadyState.OPEN
_CLOSING = ReadyState.CLOSING
_CLOSED = ReadyState.CLOSED

READ_AT_ONCE = 245_760
"""Bytes to read before other tasks run. More than an ``ondrain`` sends in its turn, so that a transfer within a process
is read while it is in the processor's cache, and does not pile up (measured: 2.4 times as fast).
"""

FAILURE_PATIENCE = 1
"""Seconds to read, when nothing more can be sent, what the peer sent before; as a rule it is there."""

PLAINTEXT_STEP = 65_536
"""Bytes of the plaintext before an upgrade that the peer has to take in each ``handshake_timeout``: so the time for all
of it is bounded too."""

PLAINTEXT_PATIENCE = 0.5
"""Seconds for that at least: it may be said that a handshake must be here at once, but not that a network be fast."""

WATCH_AFTER = 0.1
"""Seconds that the reader waits for room in the queue before the connection is watched: it may be lost meanwhile."""


class Connection(Lifetime):
    """What a :class:`TCPSocket` does. What it offers, and which event is due, is there."""

    __slots__ = (
        "_announcement",
        "_attempt",
        "_buffer",
        "_close_told",
        "_drain_lost",
        "_end_told",
        "_eof_sent",
        "_flush_scheduled",
        "_former_stream",
        "_host",
        "_inbox",
        "_is_parting",
        "_opened",
        "_options",
        "_parked",
        "_peer_ended",
        "_port",
        "_reader_ends",
        "_reading",
        "_server_side",
        "_state",
        "_stream",
        "_suspensions",
        "_tls",
        "_transport",
        "_write_due",
    )

    def __init__(self, host: str, port: int, options: SocketOptions) -> None:
        super().__init__()
        self._host = host
        self._port = port
        self._options = options
        self._state = _CONNECTING
        self._opened = False
        self._server_side: bool | None = False  # its role in TLS; None if the context decides
        self._buffer = SendBuffer(options.max_buffered_amount)
        self._suspensions = SuspendCount()
        self._drain_lost = False  # whether one was owed, and can come no more
        self._transport: Transport | TLSTransport | None = None
        self._tls: TLSTransport | None = None  # the same, once TLS is wanted
        self._attempt: anyio.CancelScope | None = None  # to connect
        self._announcement: Event[Any] | None = None  # of a change of state: open, the server's connect, or secure
        self._inbox = Inbox()
        self._write_due: Signal | None = None  # made with the writer
        self._flush_scheduled = False  # whether someone will look at the send buffer
        self._reading = False  # while the reader delivers what it has read
        self._reader_ends = False  # whether it is for the reader, not the writer, to end the connection
        self._peer_ended = False  # whether nothing more will be read
        self._end_told = False  # whether the program has been told so, on a socket that stays open
        self._eof_sent = False  # whether the peer has been told of our end
        self._stream: SocketStream | None = None  # what takes the data in place of the handlers
        self._former_stream: weakref.ref[SocketStream] | None = None  # once that is over
        self._is_parting = False  # while the peer is given time to read why TLS has failed
        self._parked: anyio.Event | None = None  # what the reader waits for meanwhile
        self._close_told = False  # whether the last event has been delivered

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._peer()} {self._state}>"

    def _peer(self) -> str:
        return printable(display(self._host, self._port))

    @abstractmethod
    def _opening_event(self) -> Event[Any]:
        """The event that tells of the connection."""

    @abstractmethod
    async def _be_admitted(self) -> None:
        """Wait until one that is about to be open may be."""

    @abstractmethod
    def _data_event(self, data: bytes) -> Event[Any]:
        """The event that delivers data."""

    # The ready state

    def _set_ready_state(self, state: ReadyState) -> None:
        if self._state.precedes(state):
            self._state = state
            self._opened = self._opened or state is _OPEN
            if state is _CLOSING and self._write_due is not None and self._transport is not None:
                self._transport.interrupt()  # the writer, which may wait for what TLS answers by itself to be taken
            self._change_reader()
            self._notify()

    def _not_open(self, what: str) -> InvalidStateError:
        error = InvalidStateError(f"{what} on a socket that is {self._state}: it must be open")
        error.__cause__ = self._failure
        return error

    def _fail(self, exc: BaseException) -> None:
        """The connection failed or was lost: nothing more can be sent. Of several failures the one that tells most
        counts, and else the first.
        """
        if self._failure is None or tells_more(exc, self._failure):
            shown = (
                self._tls.shown_certificates() if isinstance(exc, ssl.SSLCertVerificationError) and self._tls else ()
            )
            self._failure = explain(exc, self._peer(), shown)
        self._drain_lost = self._drain_lost or self._buffer.drain_owed
        self._buffer.drop()
        self._inbox.make_room()
        self._change_reader()
        self._notify()

    def _shut(self) -> None:
        """Close the transport, whatever is still to be told."""
        if self._transport is not None:
            self._transport.close()
        self._change_reader()
        self._notify()

    def _abandon(self) -> None:
        """Close before there is a connection."""
        self._set_ready_state(_CLOSING)
        if self._attempt is not None:
            self._attempt.cancel()
        elif not self._started:
            self._over = True
            self._release()

    # Life

    async def _live(self) -> None:
        try:
            await self._connect_and_read()
        except BaseException as exc:  # of the program's, such as its SSLContext's
            raised, passing = sort_out(exc)
            if raised is not None:
                self._crashed(raised, "the connection")
            if passing is not None:
                raise
            self._shut()
        self._pump()
        while self._busy or not self._close_told:
            await self._change()
            self._pump()  # what a suspended program had yet to be told, and now closes

    async def _connect_and_read(self) -> None:
        if await self._establish():
            self._pump()
            self._keep_context()  # with what a handler of open, or connect, has set
            await self._read()
            self._peer_ended = True
            self._notify()
            await self._wait_until(self._is_shut)

    async def _establish(self) -> bool:
        """Bring about the connection and announce it.

        :return: whether there is one that the program still wants
        """
        options = self._options
        if isinstance(self._transport, Transport) and not self._transport.closed:  # which others have made
            configure(self._transport.socket)
        if self._state is _CONNECTING and (
            self._transport is None or options.proxy_protocol or options.useSecureTransport
        ):
            try:
                await self._connect()
            finally:
                self._attempt = None
        if self._state is _CONNECTING and self._failure is None:
            self._set_ready_state(_OPEN)
        if self._state is _OPEN:
            self._announcement = self._opening_event()
        else:  # it failed, or was closed meanwhile
            self._shut()
        return self._state is _OPEN

    async def _connect(self) -> None:
        failures: list[OSError] = []  # of some of several addresses
        with anyio.CancelScope() as self._attempt:
            try:
                with _time_limit(self._options.connect_timeout, "not connected"):
                    if self._transport is None:
                        sock = await connect(self._host, self._port, self._options.local_host, failures)
                        self._transport = Transport(sock)
                        configure(sock)
                    if self._options.proxy_protocol:
                        assert isinstance(self._transport, Transport)
                        await self._receive_proxy_header(self._transport)
                    if self._options.useSecureTransport:
                        await self._shake_hands()
                    await self._be_admitted()
            except (OSError, UnicodeError, ExceptionGroup) as exc:
                if failures and self._transport is None and isinstance(exc, TimeoutError):
                    exc = ExceptionGroup("some addresses failed, and the rest gave no answer in time", [*failures, exc])
                self._fail(exc)
                if isinstance(exc, ssl.SSLError) and self._tls is not None:
                    await self._tls.part()

    async def _receive_proxy_header(self, transport: Transport) -> None:
        data = bytearray()
        with _time_limit(self._options.handshake_timeout, "no header of the PROXY protocol"):
            while (header := parse(data)) is None:
                part = transport.receive(QUEUED_READ_SIZE)
                if part is None:
                    transport.expect(missing(data))
                    await transport.wait_readable()
                elif part:
                    data += part
                else:
                    raise ConnectionResetError(errno.ECONNRESET, "it ended before a header of the PROXY protocol")
        transport.expect(1)
        if header.source is not None:
            self._host, self._port = header.source
        if len(data) > header.size:
            self._inbox.put(bytes(data[header.size :]))

    async def _shake_hands(self) -> None:
        self._transport = self._tls = self._make_tls()
        self._feed(self._tls)
        with _time_limit(self._options.handshake_timeout, "no TLS handshake"):
            await self._tls.handshake()

    # TLS

    def _make_tls(self, context: ssl.SSLContext | None = None, server_hostname: str | None = None) -> TLSTransport:
        """TLS over the transport there is, behind what is buffered.

        :raises ValueError: if there is no context, it is for the other side, or there is no name to check
        """
        assert isinstance(self._transport, Transport)
        context = context or self._options.ssl_context
        if context is None:
            if self._server_side:
                raise ValueError(
                    "upgradeToSecure() on an accepted socket needs an ssl_context, its own or the server's"
                )
            context = default_context()
        server_side = self._server_side
        if server_side is None:
            server_side = context.protocol is ssl.PROTOCOL_TLS_SERVER
        check_role(context, server_side=server_side)
        name = None if server_side else self._name_to_check(server_hostname)
        if name is None and context.check_hostname and not server_side:  # `ssl` would check none
            raise ValueError("server_hostname is needed: this connection has no host to check the certificate for")
        return TLSTransport(
            self._transport,
            context,
            server_side=server_side,
            server_hostname=name,
            standard_compatible=self._options.tls_standard_compatible,
            plaintext=self._buffer.amount,
            on_plaintext_sent=self._notify,
            wake_writer=self._wake_writer,
            on_established=self._on_established,
        )

    def _name_to_check(self, server_hostname: str | None) -> str | None:
        host = self._host if self._port else ""  # and not the path of a UNIX-domain socket
        return identity(server_hostname or self._options.server_hostname or host)

    def _upgrade(self, tls: TLSTransport, leftover: bytes) -> None:
        """Go on in TLS, to which all belongs that is not delivered yet."""
        self._spawn("handshake", self._limit_handshake, tls)
        self._change_reader()
        if not self._flush_scheduled:
            self._schedule_flush()
        if leftover:
            tls.feed(leftover)
        self._feed(tls)
        self._transport = self._tls = tls

    def _feed(self, tls: TLSTransport) -> None:
        """What is queued is part of TLS."""
        while (data := self._inbox.take()) is not None:
            tls.feed(data)

    def _on_established(self) -> None:
        if self._state is _OPEN:  # not before the first event
            self._announcement = Event("secure", self)
            self._wake_dispatch()
        self._change_reader()
        self._notify()

    async def _limit_handshake(self, tls: TLSTransport) -> None:
        """Limit the time of a handshake, and of the plaintext before it: that has to go out at some speed, as the peer
        that does not read it could keep the handshake from ever beginning.
        """
        seconds = self._options.handshake_timeout
        try:
            while tls.plaintext and not tls.closed:
                await self._limit_plaintext(tls, max(seconds, PLAINTEXT_PATIENCE))
            with _time_limit(seconds, "no TLS handshake"):
                await self._wait_until(lambda: tls.established or tls.closed)
        except TimeoutError as exc:
            await self._lose(exc)

    async def _limit_plaintext(self, tls: TLSTransport, seconds: float) -> None:
        before = tls.plaintext
        with anyio.move_on_after(seconds):
            await self._wait_until(lambda: not tls.plaintext or tls.closed)
        if tls.plaintext > max(before - PLAINTEXT_STEP, 0) and not tls.closed:
            raise TimeoutError(
                errno.ETIMEDOUT,
                f"the peer did not take {PLAINTEXT_STEP} bytes of what comes before TLS in {seconds} seconds",
            )

    def _is_secure(self) -> bool:
        return self._tls is not None and self._tls.established

    def _is_shut(self) -> bool:
        return self._transport is None or self._transport.closed

    def _is_lost(self) -> bool:
        """Whether it has failed, and all that tells why has been read."""
        return self._failure is not None and self._is_shut()

    def _release(self) -> None:
        self._buffer.drop()
        self._shut()
        self._set_ready_state(_CLOSED)
        self._forget_queued()
        self._inbox.close()
        if self._stream is not None:  # which refers to us
            self._former_stream = weakref.ref(self._stream)
            self._stream = None

    def _forget_queued(self) -> None:
        """At the end, but for what a stream can still be asked for: what came before the connection was lost."""
        if self._stream is None or self._failure is None:
            self._inbox.discard()

    # Reading

    async def _read(self) -> None:
        """Read until the peer's end, a failure, or the transport is closed."""
        try:
            await self._read_until_end()
            if self._reader_ends:
                with anyio.move_on_after(self._options.linger):
                    await self._read_until_end()
        except OSError as exc:
            # After the program's end the peer's is as good as any, even cut off.
            if not (isinstance(exc, ssl.SSLEOFError) and self._state is not _OPEN and self._is_secure()):
                await self._lose(exc)
        except anyio.ClosedResourceError:
            pass
        if self._reader_ends:
            self._shut()

    async def _lose(self, exc: OSError) -> None:
        """End the connection, of which nothing more can be had."""
        self._is_parting = isinstance(exc, ssl.SSLError)
        if self._state is _OPEN or self._buffer.amount or self._failure is not None:
            self._fail(exc)
        try:
            if self._is_parting and self._tls is not None:
                await self._tls.part()
        finally:
            self._is_parting = False
            self._shut()

    async def _read_until_end(self) -> None:
        """Read until the peer's end or the transport is closed, or until ours has been sent."""
        eagerness = Eagerness()
        lingering = self._reader_ends
        left = READ_AT_ONCE
        assert self._transport is not None
        while self._reader_ends is lingering and not (transport := self._transport).closed:
            if self._stream is not None and self._is_stream_reading():
                await self._park()
                continue
            direct = not (
                self._busy or self._suspensions.count or self._stream is not None or "data" in self._async_types
            )
            size = transport.read_size if direct else QUEUED_READ_SIZE
            data = transport.receive(size)
            if data is not None:
                if direct:
                    self._take(data)
                else:
                    await self._queue(data)
                if not data or self._reader_ends is not lingering:
                    return
                eagerness.found()
            left -= size
            full = data is not None and len(data) == size  # so there may be more
            if full and left >= size:
                continue
            left = READ_AT_ONCE  # whoever else wants something comes first
            if eagerness.look() or full:
                await anyio.lowlevel.checkpoint()
            elif self._stream is not None and self._is_stream_reading():
                pass  # since what was received has ended the handshake
            elif not (transport := self._transport).closed:  # upgradeToSecure() may have replaced it
                await transport.wait_readable()

    def _take(self, data: bytes) -> None:
        """Deliver what was read, now."""
        self._reading = True
        if self._state is not _OPEN:
            pass  # read all the same: to close with unread input destroys what the peer has yet to read (RST)
        elif data:
            self._pump(self._data_event(data))
        elif self._end_of_stream():
            self._announcement = Event("end", self)
            self._pump()
        self._reading = False

    async def _queue(self, data: bytes) -> None:
        """Have what was read delivered after what is queued, or running, or when the socket is resumed."""
        if self._state is not _OPEN:
            return
        self._inbox.put(data)
        if self._takes_data():
            self._wake_dispatch()
        self._notify()
        await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        """Wait for room in the queue. If that takes long, as when the program has suspended, the connection is watched:
        when it is lost meanwhile, room is made for all that had come.
        """
        with anyio.move_on_after(WATCH_AFTER):
            await self._inbox.wait_for_room()
            return
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch)
            await self._inbox.wait_for_room()
            tasks.cancel_scope.cancel()

    async def _watch(self) -> None:
        assert self._transport is not None
        await self._transport.wait_hung_up()
        self._inbox.make_room()

    def _takes_data(self) -> bool:
        """Whether what is queued is due to the handlers."""
        return self._state is _OPEN and not self._suspensions.count and self._stream is None

    def _is_over(self) -> bool:
        """Whether the last events are due: it is closed, and what came before that has been delivered to the handlers,
        for which it may have to be resumed. They wait for that no longer if the program is owed a drain, which can come
        no more: it may have suspended until then, and would wait for good.
        """
        held = self._state is _OPEN and self._inbox and self._stream is None
        return self._is_shut() and not (held and not (self._drain_lost and self._suspensions.count))

    def _end_of_stream(self) -> bool:
        """The peer's end has been reached by the program.

        :return: whether it is to be told, as the socket stays open; else that closes
        """
        if self._options.allow_half_open:
            self._end_told = True
        else:
            self._finish()
        return self._end_told

    def _finish(self) -> None:
        """Both sides have ended, or that of the peer is the end of both: what is buffered is sent, then it closes."""
        self._set_ready_state(_CLOSING)
        if self._flush_scheduled or self._failure is not None or not self._half_close():
            self._wake_writer()
        else:
            self._shut()

    # A stream in place of the handlers

    def _is_streaming(self) -> bool:
        """Whether it is for the stream to read."""
        return (
            self._stream is not None
            and self._state is _OPEN
            and self._failure is None
            and not self._is_shut()
            and (self._tls is None or self._tls.established)
        )

    def _is_stream_reading(self) -> bool:
        """Whether it is the stream's caller who reads: what is for it, or what still comes when TLS has failed."""
        return self._is_streaming() or self._is_parting

    async def _park(self) -> None:
        """Wait, in the reader, until it is not for the stream to read."""
        while self._is_stream_reading():
            self._parked = anyio.Event()
            await self._parked.wait()

    def _change_reader(self) -> None:
        """Have the reader and the stream look whose turn it is."""
        if self._stream is None:
            return
        if self._parked is not None:
            self._parked.set()
        if self._transport is not None:
            self._transport.interrupt()

    # Writing

    def _schedule_flush(self) -> None:
        """Have what is buffered sent: when the running handler returns, or else by the writer."""
        if turn.written is not None:
            turn.written.append(self._flush)
        else:
            self._require_task("sending")
            self._wake_writer()
        self._flush_scheduled = True

    def _hand_over(self, data: bytes) -> bool:
        """Send what a stream's caller waits for: here and now, and by way of the buffer only what is not taken.

        :return: whether the operating system has taken all of it
        """
        buffer, transport = self._buffer, self._transport
        assert transport is not None
        if self._flush_scheduled or buffer.amount or transport.closed or not 0 < len(data) <= transport.send_limit:
            buffer.append_awaited(data)
            self._flush_soon()
            return not buffer.awaited and self._failure is None
        count = 0
        try:
            count = transport.send([data])
        except OSError as exc:
            self._fail(exc)
        if count == len(data):
            return True
        buffer.append_awaited(data)
        buffer.advance(count)
        self._schedule_flush()
        return False

    def _flush_soon(self) -> None:
        """Send what is buffered, here and now unless someone is at it."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._flush()

    def _flush(self) -> None:
        try:
            sent = self._send_buffered() and self._failure is None
            if sent and self._state is _OPEN:
                self._flush_scheduled = False
                if self._buffer.drain_due:
                    self._wake_dispatch()
            elif sent and self._reading and self._half_close():
                self._reader_ends = True
            else:
                self._wake_writer()
        except BaseException as exc:  # of the program's, such as its SSLContext's: no trouble of who runs this
            self._crashed(without_task(exc), "sending")

    def _half_close(self) -> bool:
        """Tell the peer that no more will come.

        :return: whether that is done
        """
        assert self._transport is not None
        if not self._eof_sent and (self._transport.closed or self._transport.send_eof()):
            self._eof_sent = True
            self._notify()
        return self._eof_sent

    def _send_last(self) -> None:
        """Send what the operating system takes now of what is buffered and, if that is all, our end."""
        if self._send_buffered() and self._failure is None:
            self._half_close()

    def _end_output(self) -> bool:
        """After :meth:`send_eof`, when everything is handed over, half-close; not before TLS is there.

        :return: whether that is done
        """
        return not self._buffer.finished or ((self._tls is None or self._tls.established) and self._half_close())

    def _send_buffered(self) -> bool:
        """Hand over what the operating system takes now.

        :return: whether nothing is left to wait for
        """
        buffer, transport = self._buffer, self._transport
        assert transport is not None
        try:
            while buffer.amount and not transport.closed:
                chunks = buffer.next_write(transport.send_limit)
                count = transport.send(chunks)
                awaited = buffer.awaited
                buffer.advance(count)
                if awaited and not buffer.awaited:
                    self._notify()  # a stream's caller, who does not wait for what was sent behind it
                # TLS may have handed over what it had encrypted before there was more: that is no lack of room.
                if not count:
                    return False
                if self._tls is None and count < (len(chunks[0]) if len(chunks) == 1 else sum(map(len, chunks))):
                    return False
            # Once it is closing, that what TLS answers by itself is taken is waited for within `linger` only.
            if self._failure is None and not transport.closed and not transport.flush() and self._state is _OPEN:
                return False
            if self._failure is None and self._state is _OPEN and not self._end_output():
                return False
        except OSError as exc:
            self._fail(exc)
        self._notify()
        return True

    def _wake_writer(self) -> None:
        if self._tasks is None:
            return  # closed before it began
        if self._write_due is None:
            due = Signal()
            self._spawn("writer", self._write, due)
            self._write_due = due
        self._write_due.set()

    async def _write(self, due: Signal) -> None:
        """The writer: hands over what has to wait, and ends the connection once there is nothing more to send."""
        try:
            await self._write_until_end(due)
            await self._part()
            self._shut()
        except anyio.ClosedResourceError:
            pass

    async def _write_until_end(self, due: Signal) -> None:
        assert self._transport is not None
        while True:
            await due.wait()
            while not self._send_buffered():
                await anyio.lowlevel.checkpoint()  # as for reading: there may be room by then, see Eagerness
                if not self._send_buffered():
                    await self._transport.wait_writable()
            self._flush_scheduled = False
            self._pump()
            if self._failure is not None or (self._state is not _OPEN and not self._buffer.amount):
                return

    async def _part(self) -> None:
        """Tell the peer of the end and read on what it has sent meanwhile.

        That is discarded after a close, as closing with unread input would destroy what the peer has yet to read
        (RST). It is delivered after a failure, as it may tell the reason.
        """
        assert self._transport is not None
        if self._failure is None:
            with anyio.move_on_after(self._options.linger):
                while not self._half_close():
                    await self._transport.wait_writable()
                await self._wait_until(lambda: self._peer_ended)
        else:
            self._half_close()
            in_tls = self._failure.message != "Network"
            with anyio.move_on_after(_tls.ALERT_PATIENCE if in_tls else FAILURE_PATIENCE):
                await self._wait_until(lambda: self._peer_ended)


class _time_limit:  # noqa: N801  (it is used as a function)
    """A block that raises :exc:`TimeoutError` if it takes longer. It is none of contextlib's, which writes into the
    exceptions that pass, and they may be the program's.
    """

    def __init__(self, seconds: float | None, what: str) -> None:
        self._scope = anyio.move_on_after(seconds)
        self._message = f"{what} within {seconds} seconds"

    def __enter__(self) -> None:
        self._scope.__enter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._scope.__exit__(exc_type, exc, traceback)
        if self._scope.cancelled_caught:
            raise TimeoutError(errno.ETIMEDOUT, self._message)
