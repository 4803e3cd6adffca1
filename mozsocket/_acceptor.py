"""Accepts the connections of a server, and owns them until they have ended.

With TLS or the PROXY protocol a connection is handshaking at first. Then it queues, while ``max_connections`` are open.
Then it is open. An error of one connection does not affect the others.
"""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from . import _log
from ._addresses import display, host_and_port, printable
from ._connection import Connection
from ._dispatch import Dispatcher
from ._errors import InvalidStateError, explain
from ._events import Event, EventTarget, Listeners, TCPSocketErrorEvent
from ._lifetime import Lifetime
from ._listen import listen, stop_listening
from ._log import LogLimit
from ._machine import ReadyState
from ._options import MAX_BACKLOG, ListenOptions
from ._readiness import ReadResult, Registration, Waiting, Watched, by_tasks
from ._socket import TCPSocket, accepted
from ._transport import Transport
from ._unique import next_number

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    Ts = TypeVarTuple("Ts")

__all__ = ("Acceptor",)

ACCEPT_PAUSE = 0.1
"""Seconds to wait before accepting again, when the system has no descriptors or memory for another connection."""

ACCEPTED_AT_ONCE = 16
"""The most connections to accept before other sockets have their turn."""

_NO_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})

# Errors of accept() that concern only the connection, which was lost before it was accepted; the listener still works.
# All but ECONNABORTED are errors that Linux passes on from the new connection (accept(2), "Error handling").
_LOST_NAMES = (
    "ECONNABORTED ECONNRESET EPERM EPROTO ENOPROTOOPT ENETDOWN EHOSTDOWN ENONET EHOSTUNREACH ENETUNREACH EOPNOTSUPP"
    " ETIMEDOUT"
)
_LOST = frozenset(getattr(errno, name) for name in _LOST_NAMES.split() if hasattr(errno, name))


class Acceptor:
    """The part of a server that does the work: it listens, accepts connections and owns them.

    :param name: the name of the server's class, for its ``repr()``
    :param options: the options of the server and its connections
    :param listeners: the listeners for the server's events
    :ivar options: as given
    :ivar port: the port it listens on, or listened on until it was closed
    :ivar listening: the listening sockets
    :ivar is_closed: whether it has stopped listening
    """

    __slots__ = (
        "_address",
        "_adopted",
        "_connect_event",
        "_connections",
        "_error_delivered",
        "_handshaking",
        "_has_reached_limit",
        "_is_paused",
        "_listeners",
        "_logged",
        "_name",
        "_number",
        "_open",
        "_queuing",
        "_target",
        "_waiting",
        "dispatcher",
        "is_closed",
        "lifetime",
        "listening",
        "options",
        "port",
    )

    def __init__(self, name: str, options: ListenOptions, listeners: Listeners) -> None:
        self._name = name
        self.port = options.port
        self.options = options
        self._listeners = listeners
        self.lifetime = Lifetime()
        self.dispatcher = Dispatcher(listeners)
        self._waiting: Waiting = by_tasks
        self.listening: list[_Listener] = []
        self.is_closed = False
        self._adopted = False  # whether others may listen on the same socket: a service manager, sibling processes
        self._target: EventTarget | None = None  # the TCPServerSocket; None before it runs, and after
        self._connect_event: Callable[[TCPSocket[Any]], Event[Any]] | None = None
        self._connections: set[Connection] = set()  # all accepted connections that have not ended
        self._handshaking: dict[Connection, None] = {}  # those that are handshaking, the oldest first
        self._queuing: dict[Connection, None] = {}  # those after that, which wait until they may be open
        self._open: dict[Connection, None] = {}  # those that count towards max_connections
        self._logged = LogLimit()
        self._number = next_number()
        self._address = printable(display(options.host or "*", options.port))  # for repr() and the log
        self._error_delivered = False
        self._is_paused = False  # whether it accepts nothing for now, for want of capacity
        self._has_reached_limit = False  # whether that is for max_connections

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else "listening" if self.listening else "not entered"
        return f"<{self._name} #{self._number} {self._address} {state}>"

    @property
    def has_connections(self) -> bool:
        """Whether there are connections that have not ended."""
        return bool(self._connections)

    @property
    def open_sockets(self) -> tuple[TCPSocket[Any], ...]:
        """The accepted sockets that are open, in the order in which they became so."""
        return tuple(
            connection.public_object
            for connection in self._open
            if connection.machine.ready is ReadyState.OPEN and isinstance(connection.public_object, TCPSocket)
        )

    # Before it runs

    def bind(self) -> None:
        """Bind the port and listen, unless the sockets listen already.

        :raises OSError: if the port cannot be listened on
        """
        if self.listening or self.is_closed:
            return
        options = self.options
        try:
            self.listen_on(listen(options.host, options.port, options.backlog or MAX_BACKLOG, options.reuse_port))
        except BaseException:
            self.end()
            raise

    def listen_on(self, sockets: list[socket.socket], *, adopted: bool = False) -> None:
        """Use sockets that listen already.

        :param sockets: the listening sockets, on one port
        :param adopted: whether others may listen on them too
        """
        address = sockets[0].getsockname()
        host, self.port = host_and_port(address)
        if not adopted:
            host = self.options.host or "*"
        self._address = printable(display(host, self.port))
        self.listening = [_Listener(self, sock) for sock in sockets]
        self._adopted = adopted
        if self.is_closed:  # the constructor of a subclass has closed it
            for listener in self.listening:
                listener.close(stop=False)

    def attach(self, target: EventTarget, connect_event: Callable[[TCPSocket[Any]], Event[Any]]) -> None:
        """Set the target of the events, before it runs.

        :param target: the TCPServerSocket
        :param connect_event: makes the event ``connect`` for an accepted socket
        """
        self._target, self._connect_event = target, connect_event

    def wait_by(self, waiting: Waiting) -> None:
        self._waiting = waiting

    # Running

    async def live(self) -> None:
        try:
            for listener in self.listening:
                if not self.is_closed:
                    listener.begin(self._waiting)
        except OSError as exc:  # the system cannot register one more socket
            self._fail(exc)
        while self.dispatcher.busy or self.has_connections or not self.is_closed:
            await self.lifetime.change()
            if self.dispatcher.cancelled:
                self.dispatcher.pump()

    def close(self) -> None:
        if not self.is_closed:
            self.lifetime.require_task(self, "close()")
            self.is_closed = True
            for listener in self.listening:
                listener.close(stop=not self._adopted)
            self.notify()
            if not self.lifetime.started:
                self.end()

    def close_all(self) -> None:
        self.close()
        for connection in tuple(self._connections):
            connection.close()

    def close_immediately(self) -> None:
        self.close()
        for connection in tuple(self._connections):
            connection.close_immediately()

    def cancel_handlers(self) -> None:
        self.dispatcher.cancel_handlers()
        for connection in tuple(self._connections):
            connection.cancel_handlers()

    def is_in_handler(self) -> bool:
        # The server ends after its connections, and those end after their handlers have returned.
        return self.dispatcher.is_in_handler() or any(each.is_in_handler() for each in self._connections)

    def release(self) -> None:
        self.close()
        for connection in tuple(self._connections):
            if not connection.dispatcher.has_task:
                self.end_without_task(connection)
        self._logged.close(self.public_object)

    @property
    def public_object(self) -> object:
        return self._target or self

    def end(self) -> None:
        self._target = self._connect_event = None
        self._waiting = by_tasks
        for listener in self.listening:
            listener.end()

    def notify(self) -> None:
        self.lifetime.notify()

    pumps_on_notify = False
    """Its task does not pump the dispatcher at each :meth:`notify`."""

    def crashed(self, exc: BaseException, where: str, when: str = "") -> None:
        self.lifetime.crashed(self, exc, where, when)

    def leave_fast_path(self) -> None:
        """It has none."""

    def on_cancelled(self) -> None:
        self.close_immediately()

    def was_slow(self, type: str, seconds: float) -> None:
        self.lifetime.was_slow(self, type, seconds)

    def closed_error(self, words: str) -> InvalidStateError:
        return InvalidStateError(words)

    @property
    def log_fields(self) -> dict[str, object]:
        return {"socket_id": self._number, "local": self._address}

    def may_log(self, kind: str) -> bool:
        return self._logged.allows(self.public_object, kind)

    async def closed(self) -> None:
        lifetime = self.lifetime
        await lifetime.reach(
            self, "closed()", lambda: self.is_closed and lifetime.failure is None, lambda: self.is_closed
        )

    # The events

    def has_pending_event(self) -> bool:
        return self.lifetime.failure is not None and not self._error_delivered

    def next_event(self) -> tuple[Listeners, Event[Any]] | None:
        failure = self.lifetime.failure
        if failure is None or self._error_delivered:
            self.notify()
            return None
        assert self._target is not None
        self._error_delivered = True
        return self._listeners, TCPSocketErrorEvent("error", self._target, failure)

    # Accepting

    def accept_from(self, listener: _Listener) -> ReadResult:
        """Accept connections from a listening socket that has some."""
        for _ in range(ACCEPTED_AT_ONCE):
            if self.is_closed:  # a handler has closed it
                return ReadResult.NOTHING
            if self._is_full():
                self._pause()
                return ReadResult.SOME
            if not self._accept_one(listener):
                return ReadResult.NOTHING
        return ReadResult.MORE

    def _accept_one(self, listener: _Listener) -> bool:
        """Accept one connection.

        :return: whether another may wait to be accepted
        """
        try:
            sock, peer = listener.socket.accept()
        except BlockingIOError:
            return False
        except OSError as exc:
            if exc.errno in _NO_ROOM:
                self._wait_for_room(exc, listener)
                return False
            if exc.errno not in _LOST:
                self._fail(exc)
                return False
        else:
            try:
                self._take_connection(sock, peer)
            except Exception as exc:  # raised by the program's code: it must not affect other connections
                fields = {**self.log_fields, "event": "crashed", "error": type(exc).__name__}
                _log.error("%r could not take a connection", self.public_object, exc_info=exc, fields=fields)
                sock.close()
        return True

    def _wait_for_room(self, exc: OSError, listener: _Listener) -> None:
        """Accept no more for :data:`ACCEPT_PAUSE`: the system has no descriptors or memory for another connection.

        If it has no descriptors, handshakes may hold them all before ``max_handshakes`` is reached. So the oldest
        handshake is given up if another connection waits.
        """
        if self.may_log("no room"):
            message = "%r cannot accept, and tries again in %s s: %s"
            _log.error(message, self.public_object, ACCEPT_PAUSE, exc, fields={**self.log_fields, "event": "no room"})
        if exc.errno in _NO_DESCRIPTORS and self._handshaking:
            if not listener.is_readable():
                return
            self._give_up_oldest("the system has no descriptors left")
        self._is_paused = True
        listener.pause(ACCEPT_PAUSE)

    def _pause(self) -> None:
        """Accept nothing until :meth:`_resume`, as ``max_connections`` is reached."""
        self._is_paused = self._has_reached_limit = True
        self._log_limit("reached", "%r has reached its max_connections, %d: others wait")
        for listener in self.listening:
            listener.accept(False)

    def _resume(self) -> None:
        """Accept again, if there is capacity again."""
        if self._is_paused and not self._is_full():
            self._is_paused = False
            if self._has_reached_limit and not self.is_closed:
                self._log_limit("left", "%r accepts again, below its max_connections, %d")
            self._has_reached_limit = False
            for listener in self.listening:
                listener.accept(True)

    def _log_limit(self, event: str, message: str) -> None:
        if self.may_log(f"max_connections {event}"):
            fields = {**self.log_fields, "event": f"max_connections {event}"}
            _log.info(message, self.public_object, self.options.max_connections, fields=fields)

    def _fail(self, exc: OSError) -> None:
        """Stop listening because of a failure, and report it."""
        self.lifetime.fail(explain(exc))
        self.close()
        if self._listeners.has("error"):
            self.lifetime.mark_failure_reported()
            self.dispatcher.wake()
        self.dispatcher.spawn("failure", self._report_failure)

    async def _report_failure(self) -> None:
        """End the server if its failure was reported to nobody, so that the owner's block raises it now, and not when
        the last connection ends.
        """
        await self.lifetime.let_waiters_finish()
        if not self.lifetime.failure_reported:
            self.dispatcher.cancel()

    # Connections

    def _take_connection(self, sock: socket.socket, peer: Any) -> None:
        """Begin to run a connection; close it if the program has set no ``onconnect``."""
        if not self._listeners.has("connect"):
            if self.may_log("no onconnect"):
                shown = printable(display(*host_and_port(peer)))
                fields = {**self.log_fields, "peer": shown, "event": "no onconnect"}
                _log.warning(
                    "%r has no onconnect: the connection from %s is closed", self.public_object, shown, fields=fields
                )
            Transport(sock).close()
            return
        connection = accepted(sock, peer, self.options, self, self._opening_event)
        dispatcher = self.dispatcher
        assert dispatcher.owner is not None  # a server that has ended accepts nothing
        connection.lifetime.begin_accepted(
            connection,
            self.lifetime,
            dispatcher.owner,
            dispatcher.context.copy(),
            partial(dispatcher.spawn, "connection", self._serve, connection),
        )
        self._connections.add(connection)
        if self.options.useSecureTransport or self.options.proxy_protocol:
            self._begin_handshake(connection)
        else:
            self._open[connection] = None
        try:
            connection.begin(self._waiting)
        except BaseException:
            self._forget(connection)
            raise

    def _opening_event(self, socket: TCPSocket[Any]) -> tuple[Listeners, Event[Any]]:
        assert self._connect_event is not None
        return self._listeners, self._connect_event(socket)

    async def _serve(self, connection: Connection) -> None:
        """Run a connection that needs a task."""
        leaving = None
        try:
            leaving = await connection.lifetime.run_accepted(connection)
        finally:
            self._ended(connection, leaving)

    def end_without_task(self, connection: Connection) -> None:
        """End a connection that no task runs."""
        if not connection.lifetime.over:
            self._ended(connection, connection.lifetime.end_accepted(connection))

    def _ended(self, connection: Connection, leaving: BaseException | None) -> None:
        if leaving is not None:
            self.crashed(leaving, "a connection")
        self._forget(connection)

    def _begin_handshake(self, connection: Connection) -> None:
        if len(self._handshaking) >= self.options.max_handshakes:
            self._give_up_oldest("see max_handshakes of the server")
        self._handshaking[connection] = None

    def _give_up_oldest(self, why: str) -> None:
        oldest = next(iter(self._handshaking))
        del self._handshaking[oldest]
        oldest.give_up_handshake(why)

    def admit(self, connection: Connection) -> None:
        """Open a connection whose handshake is done, when ``max_connections`` allows: first come, first served."""
        self._handshaking.pop(connection, None)
        self._queuing[connection] = None
        self._admit_next()

    def _admit_next(self) -> None:
        limit = self.options.max_connections
        while self._queuing and (limit is None or len(self._open) < limit):
            connection = next(iter(self._queuing))
            del self._queuing[connection]
            self._open[connection] = None
            connection.admitted()

    def _is_full(self) -> bool:
        limit = self.options.max_connections
        return limit is not None and len(self._open) + len(self._queuing) >= limit

    def _forget(self, connection: Connection) -> None:
        """Remove a connection that has ended, and let others have its place."""
        self._connections.discard(connection)
        self._handshaking.pop(connection, None)
        self._queuing.pop(connection, None)
        self._open.pop(connection, None)
        self._admit_next()
        self._resume()
        if self.is_closed:
            self.notify()


class _Listener:
    """A listening socket of a server.

    :ivar socket: the socket itself
    """

    __slots__ = ("_acceptor", "_paused", "_registration", "_watched", "socket")

    def __init__(self, acceptor: Acceptor, sock: socket.socket) -> None:
        self._acceptor: Acceptor | None = acceptor
        self.socket = sock
        self._watched = Watched(sock)
        self._registration: Registration | None = None
        self._paused = False  # whether pause() was called, and its time is not over

    def begin(self, waiting: Waiting) -> None:
        """Begin to accept."""
        registration = waiting.register(self._watched)
        registration.begin(self)
        self._registration = registration
        if waiting.takes_tasks:
            self.spawn("accept loop", registration.run)
        else:
            registration.wake()  # accept once, to notice a socket that cannot accept at all, and may never be readable

    def accept(self, wanted: bool) -> None:
        """Accept from now on, or stop accepting. This ends a :meth:`pause`."""
        if self._registration is not None and not self._watched.closed:
            self._paused = False
            self._registration.read(wanted)

    def pause(self, seconds: float) -> None:
        """Accept nothing for some seconds."""
        assert self._registration is not None
        self._paused = True
        self._registration.read(False)
        self._registration.limit(anyio.current_time() + seconds)

    def is_readable(self) -> bool:
        """Whether a connection waits to be accepted; True if the system cannot say."""
        if not hasattr(select, "poll"):  # pragma: no cover  (Windows)
            return True
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(0))

    def close(self, *, stop: bool) -> None:
        """Close the socket.

        :param stop: whether to stop listening first: not if others listen on the same socket
        """
        if self._registration is not None:
            self._registration.end()
        if stop:
            stop_listening(self.socket)
        self._watched.close()
        if self._registration is not None:
            self._registration.wake()

    def end(self) -> None:
        """Drop the references to the acceptor and the registration's to this object."""
        if self._registration is not None:
            self._registration.detach()
        self._acceptor = None

    # Called by the registration

    def on_readable(self) -> ReadResult:
        assert self._acceptor is not None
        return self._acceptor.accept_from(self)

    def on_writable(self) -> bool:
        return False

    def on_hung_up(self) -> None:
        pass

    def on_woken(self) -> bool:
        return False

    def on_time(self) -> None:
        if self._paused and self._registration is not None:
            self._paused = False
            self._registration.read(True)

    def on_stopped(self) -> None:
        pass

    def on_cancelled(self) -> None:
        pass

    def crashed(self, exc: BaseException, where: str, when: str = "") -> None:
        assert self._acceptor is not None
        self._acceptor.crashed(exc, where, when)

    def spawn(self, what: str, function: Callable[[Unpack[Ts]], Coroutine[Any, Any, None]], *args: Unpack[Ts]) -> None:
        assert self._acceptor is not None
        self._acceptor.dispatcher.spawn(what, function, *args)
