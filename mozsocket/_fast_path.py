"""The fast path of a connection: from the kernel to the handler of ``data``, and from its ``send()`` to the kernel.

Usually a connection is just open, and a plain function alone listens to ``data``. Then this is all that runs for a
message, and nothing else has to be looked after. It has an object of its own, with no more than it needs: with hundreds
of connections, a message takes longer for each object that is not in the processor's cache.

The connection opens the fast path when it reads, and leaves it by :attr:`FastPath.is_open` as soon as anything else may
be due.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ._buffers import Endpoint, SendBuffer
from ._dispatch import Dispatcher
from ._events import Event, Listeners
from ._raised import without_task
from ._readiness import ReadResult
from ._transport import Transport

__all__ = ("READ_PER_TURN", "DataEvent", "Fallback", "FastPath")

READ_SIZE = Transport.read_size
"""Bytes to read in one call; after a read of that size it is :data:`READ_PER_TURN`, as long as much arrives."""

MUCH = 16_384
"""Bytes: after a read of fewer it is :data:`READ_SIZE` again."""

READ_PER_TURN = 245_760
"""Bytes to read before other tasks run. That is more than an ``ondrain`` handler sends in its turn, so that a transfer
within one process is read while it is in the processor's cache, and does not pile up (measured: 2.4 times as fast).
"""

DataEvent = Callable[[str, Any, bytes], Event[Any]]
"""Makes the event of some data, from its type, its target and the data."""

_SOME = ReadResult.SOME


class Fallback(Protocol):
    """The connection, which does everything else."""

    def on_readable(self) -> ReadResult:
        """Read, whatever state the connection is in; it may open the fast path again."""

    def on_cancelled(self) -> None: ...
    def crashed(self, exc: BaseException, where: str, when: str = "") -> None: ...
    def on_read_error(self, exc: OSError) -> ReadResult: ...
    def on_eof(self) -> ReadResult: ...

    def after_tls_read(self) -> ReadResult:
        """Look after everything but data that TLS may have received."""

    def flush_otherwise(self) -> None:
        """Send what is buffered, whatever state the connection is in."""


class FastPath:
    """The fast path of one connection.

    :param connection: the connection
    :param endpoint: what it reads from and sends to
    :param is_tls: whether that is TLS
    :param listeners: the listeners of the connection's events
    :param dispatcher: delivers the connection's other events
    :param outgoing: the send buffer
    :param thread: the identifier of the thread that the handlers run in
    :param target: the target of the events
    :param data_event: makes the events
    :ivar is_open: whether the fast path may be taken
    :ivar received: the number of bytes that it has given to handlers
    """

    __slots__ = (
        "_connection",
        "_context",
        "_data_event",
        "_dispatcher",
        "_endpoint",
        "_is_tls",
        "_listeners",
        "_outgoing",
        "_owner",
        "_size",
        "_small",
        "_target",
        "_thread",
        "is_open",
        "received",
    )

    def __init__(
        self,
        connection: Fallback,
        endpoint: Endpoint,
        is_tls: bool,
        listeners: Listeners,
        dispatcher: Dispatcher,
        outgoing: SendBuffer,
        thread: int,
        target: Any,
        data_event: DataEvent,
    ) -> None:
        owner = dispatcher.owner
        assert owner is not None
        self._connection = connection
        self._endpoint = endpoint
        self._is_tls = is_tls
        self._listeners = listeners
        self._dispatcher = dispatcher
        self._owner = owner
        self._context = dispatcher.context
        self._outgoing = outgoing
        self._thread = thread
        self._target = target
        self._data_event = data_event
        self._size = READ_SIZE
        self._small = 0 if is_tls else READ_SIZE  # bytes: after a smaller read there is nothing to look after
        self.is_open = True
        self.received = 0

    def on_readable(self) -> ReadResult:
        """Read once, call the handler, and send what it has written.

        It is one function, as it runs for each message: each call costs as much as several of these lines.
        """
        function = self._listeners.data_function
        if function is None or not self.is_open:
            return self._connection.on_readable()
        try:
            data = self._endpoint.recv(self._size)
        except OSError as exc:
            return self._connection.on_read_error(exc)
        if not data:
            return self._connection.on_eof()
        count = len(data)
        self.received += count
        outgoing = self._outgoing
        if not self._owner.cancel_called:
            event = self._data_event("data", self._target, data)
            outgoing.filling_thread = self._thread
            try:
                result = self._context.run(function, event)
            except BaseException as exc:
                self._dispatcher.handler_raised(without_task(exc), event)
                result = None
            outgoing.filling_thread = 0
            if not (result is None or result is True or result is False):
                self._dispatcher.finish(result, event)
        is_due = outgoing.amount and not outgoing.flush_is_due
        if is_due and not (self.is_open and outgoing.send_only_chunk(self._endpoint)):
            self._connection.flush_otherwise()
        if not self.is_open or outgoing.drain_owed:  # else no event is pending
            self._dispatcher.pump(behind_handler=True)
        return _SOME if count < self._small else self._after_much(count)

    def _after_much(self, count: int) -> ReadResult:
        """Look after what may have to follow a read: in TLS after each, otherwise after a large one."""
        if self._is_tls:
            return self._connection.after_tls_read()
        if count < MUCH:
            self._size = self._small = READ_SIZE
        else:
            self._size, self._small = READ_PER_TURN, 0
        # After so much others have their turn, though nothing more may be there.
        return ReadResult.MORE if count >= READ_SIZE else _SOME

    def on_cancelled(self) -> None:
        self._connection.on_cancelled()

    def crashed(self, exc: BaseException, where: str, when: str = "") -> None:
        self._connection.crashed(exc, where, when)

    def flush(self) -> None:
        """Send what a handler, perhaps another connection's, has written."""
        self._outgoing.filling_thread = 0
        if not (self.is_open and self._outgoing.send_only_chunk(self._endpoint)):
            self._connection.flush_otherwise()
