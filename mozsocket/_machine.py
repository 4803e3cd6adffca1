"""The rules of one connection, without any I/O: its ready state, both directions, the pending events, the next action.

The program and the socket report what has happened by calling methods. :meth:`Machine.pending_event` then says which
event the program gets next, and :meth:`Machine.next_action` what to do with the socket. Neither changes anything:
:meth:`Machine.mark_delivered` says that an event was delivered.

- A socket goes from connecting to open, closing and closed. It may skip a state, and never goes back.
- Events come in this order: ``open`` (or the server's ``connect``); then ``secure``, ``drain``, ``data`` and ``end`` as
  they happen; finally ``error``, if the connection failed, and ``close``, once each.
- While the program has suspended the socket, received data waits, and so does everything that came after that data.
- Suspensions count: the socket must be resumed as often as it was suspended.

Each of these ways of ending leads to :attr:`Action.SHUT`, after which ``error`` and ``close`` are pending:

==================================== ==========================================================================
what happened                        what is done first
==================================== ==========================================================================
``closeImmediately()``, a handler    nothing
has raised, the owner is cancelled
``close()``                          send the buffer and our end, wait up to ``linger`` seconds for the peer's end
the peer's end was delivered         send the buffer and our end
both sides have ended, with          the same
``allow_half_open``
reading failed, or a time limit      nothing
was exceeded
TLS failed                           send the alert that says why, and give the peer time to read it
sending failed                       send our end, read for a while what the peer had sent before
the connection attempt failed        nothing; if TLS failed, as above
==================================== ==========================================================================
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Protocol

__all__ = (
    "Action",
    "ClosedBy",
    "Failed",
    "Limit",
    "Machine",
    "Opening",
    "OwnSide",
    "PeerSide",
    "PendingEvent",
    "ReadyState",
    "Security",
)


class ReadyState(str, Enum):
    """The states of a TCPSocket (MDN's ``readyState``). Each equals its name as a ``str``."""

    CONNECTING = "connecting"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"

    __str__ = str.__str__


class Opening(IntEnum):
    """The stages before a connection is open, in this order; those that the options do not ask for are skipped."""

    CONNECT = 1
    HEADER = 2
    """Of the PROXY protocol: it is being read."""
    HANDSHAKE = 3
    ADMISSION = 4
    """The connection waits until its server has fewer than ``max_connections`` open."""
    ADMITTED = 5
    DONE = 6


class PeerSide(Enum):
    """The direction from the peer to the program."""

    OPEN = 1
    END_RECEIVED = 2
    """The peer's end (FIN, or close_notify) was read: nothing more can be."""
    END_DELIVERED = 3
    """The program knows of that end."""
    TRUNCATED = 4
    """Nothing more can be read, though TLS has not ended: that is a failure, unless our own side had ended first."""


class OwnSide(Enum):
    """The direction from the program to the peer."""

    OPEN = 1
    END_QUEUED = 2
    """The program has called ``send_eof()``; the peer is yet to learn of it."""
    END_SENT = 3
    """The peer was sent our end (FIN, or close_notify)."""
    CUT_SHORT = 4
    """The peer was sent our end because the connection has failed; the program has not asked for it."""


class Security(Enum):
    """Whether the connection is encrypted."""

    NONE = 1
    HANDSHAKE = 2
    UP = 3


class ClosedBy(Enum):
    """Who closed a connection that has not failed."""

    PROGRAM = 1
    PEER = 2
    OWNER = 3
    """The block that it ran in was cancelled."""


class Failed(Enum):
    """Why a connection has failed: the network, or TLS."""

    NO = 1
    NETWORK = 2
    TLS = 3


class PendingEvent(Enum):
    """What the program gets next: an event or, where no event is defined, a change of state."""

    OPEN = 1
    SECURE = 2
    DRAIN = 3
    DATA = 4
    END = 5
    BOTH_ENDED = 6
    """Both directions have ended, or the peer's end ends both: the socket closes."""
    ERROR = 7
    CLOSE = 8


class Action(Enum):
    """What to do with the socket next, besides reading."""

    NOTHING = 1
    SEND = 2
    """Send what is buffered."""
    SEND_END = 3
    """Send our end: FIN, or close_notify."""
    LINGER = 4
    """Wait for the peer's end, for ``linger`` seconds at most."""
    SHUT = 5


class Limit(Enum):
    """What is limited in time."""

    CONNECT = 1
    HEADER = 2
    PLAINTEXT = 3
    """Sending the next 64 KiB of the plaintext that precedes TLS."""
    HANDSHAKE = 4
    LINGER = 5
    FAILURE = 6
    """Reading what the peer had sent before sending failed."""
    ALERT = 7
    """Waiting until the peer has read the alert that says why TLS failed."""


class Outgoing(Protocol):
    """What the machine needs to know of the send buffer, :class:`SendBuffer`."""

    @property
    def amount(self) -> int: ...
    @property
    def drain_owed(self) -> bool: ...
    def take_drain(self) -> bool: ...
    def drop(self) -> None: ...


class Incoming(Protocol):
    """What the machine needs to know of received data that is not delivered yet, :class:`Inbox`."""

    @property
    def count(self) -> int: ...
    def discard(self) -> None: ...
    def make_room(self) -> None: ...


_CONNECTING = ReadyState.CONNECTING
_OPEN = ReadyState.OPEN
_PEER_SIDE_OPEN = PeerSide.OPEN
_ENDS = (Action.SEND_END, Action.LINGER)
_ENDS_SENT = (OwnSide.END_SENT, OwnSide.CUT_SHORT)


class Machine:
    """The state of one connection.

    :ivar ready: MDN's ``readyState``
    :ivar opening: the stage before it is open
    :ivar opened: whether it is, or was, open
    :ivar security: whether it is encrypted
    :ivar peer_side: the state of the direction from the peer
    :ivar own_side: the state of the direction to the peer
    :ivar failed: why it has failed
    :ivar closed_by: who closed it, if it had not failed before; None while nobody has
    :ivar abandoned: whether nothing more is sent or read, as the connection was lost or the program gave it up
    :ivar shut: whether the socket is closed
    :ivar streams: whether a stream takes the received data, instead of the handlers
    :ivar suspensions: how often the program has suspended it and not resumed it
    """

    __slots__ = (
        "_allow_half_open",
        "_announced",
        "_drain_lost",
        "_last_delivered",
        "abandoned",
        "closed_by",
        "failed",
        "incoming",
        "opened",
        "opening",
        "outgoing",
        "own_side",
        "peer_side",
        "ready",
        "security",
        "shut",
        "streams",
        "suspensions",
    )

    def __init__(self, outgoing: Outgoing, incoming: Incoming, *, allow_half_open: bool = False) -> None:
        self.outgoing = outgoing
        self.incoming = incoming
        self._allow_half_open = allow_half_open
        self.ready = ReadyState.CONNECTING
        self.opening = Opening.CONNECT
        self.opened = False
        self.security = Security.NONE
        self.peer_side = PeerSide.OPEN
        self.own_side = OwnSide.OPEN
        self.failed = Failed.NO
        self.closed_by: ClosedBy | None = None
        self.abandoned = False
        self.shut = False
        self.streams = False
        self.suspensions = 0
        self._announced: tuple[PendingEvent, ...] = ()  # changes that the program is yet to be notified of
        self._drain_lost = False  # whether a drain was owed, and cannot come any more
        self._last_delivered: PendingEvent | None = None  # of error and close; None before both

    def _begin_closing(self, by: ClosedBy) -> None:
        if self.ready is _OPEN or self.ready is _CONNECTING:
            self.ready = ReadyState.CLOSING
            self.closed_by = by

    # What happens

    def open(self) -> None:
        """The connection is established. A connection made by others is open before anything runs."""
        self.opened = True
        if self.ready is _CONNECTING:
            self.ready = _OPEN

    def announce(self) -> None:
        """Have ``open`` delivered."""
        self.opening = Opening.DONE
        self._announced = (PendingEvent.OPEN,)

    def enter_stage(self, opening: Opening) -> None:
        """The opening has got to a stage."""
        self.opening = opening

    def begin_stream(self) -> None:
        """A stream takes what arrives from now on, in place of the handlers."""
        self.streams = True

    def begin_tls(self) -> None:
        self.security = Security.HANDSHAKE

    def take_back_end(self) -> bool:
        """The peer's end was read before TLS began, and has not been delivered: it is TLS that it cuts off.

        :return: whether that is so
        """
        if self.peer_side is not PeerSide.END_RECEIVED:
            return False
        self.peer_side = PeerSide.OPEN
        return True

    def end_handshake(self) -> None:
        self.security = Security.UP
        if self.ready is _OPEN:  # not before the first event, nor when it is closing
            self._announced += (PendingEvent.SECURE,)

    def end_peer_side(self) -> None:
        """The peer's end was read."""
        if self.peer_side is PeerSide.OPEN:
            self.peer_side = PeerSide.END_RECEIVED

    def mark_truncated(self) -> None:
        """The connection has ended without the end of TLS (close_notify)."""
        if self.peer_side is PeerSide.OPEN:
            self.peer_side = PeerSide.TRUNCATED

    def reject(self) -> None:
        """The peer has sent something unacceptable: its end counts for nothing."""
        self.peer_side = PeerSide.TRUNCATED

    def finish(self) -> None:
        """The program sends no more."""
        if self.own_side is OwnSide.OPEN:
            self.own_side = OwnSide.END_QUEUED
        elif self.own_side is OwnSide.CUT_SHORT:
            self.own_side = OwnSide.END_SENT

    def mark_end_sent(self) -> None:
        """Our end was sent to the peer."""
        failed = self.failed is not Failed.NO and self.own_side is OwnSide.OPEN
        self.own_side = OwnSide.CUT_SHORT if failed else OwnSide.END_SENT

    def close(self) -> None:
        """Close in order: what is buffered is still sent."""
        self._begin_closing(ClosedBy.PROGRAM)
        self.incoming.discard()

    def give_up(self) -> None:
        """Close immediately: what is buffered is dropped."""
        self.close()
        self.outgoing.drop()
        self.abandoned = True

    def fail(self, failed: Failed) -> None:
        """Nothing more can be sent."""
        self.failed = failed
        self._drain_lost = self._drain_lost or self.outgoing.drain_owed
        self.outgoing.drop()
        self.incoming.make_room()

    def lose(self) -> None:
        """Nothing more can be read either."""
        self.abandoned = True

    def loss_is_failure(self) -> bool:
        """Whether losing the connection now would be a failure, and not just its end."""
        return self.ready is not ReadyState.CLOSING or self.outgoing.amount > 0 or self.failed is not Failed.NO

    def end(self) -> None:
        """The socket is closed."""
        self.shut = True

    def release(self) -> None:
        """No event is delivered any more, such as when the owner is cancelled."""
        self.outgoing.drop()
        self._begin_closing(ClosedBy.OWNER)
        self.ready = ReadyState.CLOSED

    def suspend(self) -> None:
        self.suspensions += 1

    def resume(self) -> bool:
        """:return: False if it is not suspended"""
        if not self.suspensions:
            return False
        self.suspensions -= 1
        return True

    # Events

    def pending_event(self) -> PendingEvent | None:
        """The event that the program gets next; None if nothing has happened."""
        if self._announced:
            return self._announced[0]
        outgoing = self.outgoing
        if outgoing.drain_owed and not outgoing.amount:
            return PendingEvent.DRAIN
        if self.ready is _OPEN and not self.suspensions and not self.streams:  # takes_data(), asked after each event
            if self.incoming.count:
                return PendingEvent.DATA
            if self.peer_side is not _PEER_SIDE_OPEN and (end := self._pending_end()) is not None:
                return end
        return self._last_event() if self.shut else None

    def _pending_end(self) -> PendingEvent | None:
        if self.peer_side is PeerSide.END_RECEIVED:
            return PendingEvent.END if self._allow_half_open else PendingEvent.BOTH_ENDED
        return PendingEvent.BOTH_ENDED if self.have_both_ended() else None

    def _last_event(self) -> PendingEvent | None:
        if not self._has_delivered_all_else() or self._last_delivered is PendingEvent.CLOSE:
            return None
        return (
            PendingEvent.ERROR if self.failed is not Failed.NO and self._last_delivered is None else PendingEvent.CLOSE
        )

    def mark_delivered(self, pending: PendingEvent) -> None:
        """A pending event was delivered. For data it is the inbox that counts."""
        if self._announced and pending is self._announced[0]:
            self._announced = self._announced[1:]
        elif pending is PendingEvent.DRAIN:
            self.outgoing.take_drain()
        elif pending is PendingEvent.END:
            self.peer_side = PeerSide.END_DELIVERED
        elif pending is PendingEvent.BOTH_ENDED:
            self.peer_side = PeerSide.END_DELIVERED
            self._begin_closing(ClosedBy.PEER)
        elif pending is not PendingEvent.DATA:
            self.ready = ReadyState.CLOSED
            self._last_delivered = pending

    def takes_data(self) -> bool:
        """Whether the handlers may get received data now."""
        return self.ready is _OPEN and not self.suspensions and not self.streams

    def have_both_ended(self) -> bool:
        """Whether both directions have ended, and the program knows."""
        return self.peer_side is PeerSide.END_DELIVERED and self.has_finished() and not self.streams

    def has_finished(self) -> bool:
        """Whether the program has ended its own direction."""
        return self.own_side in (OwnSide.END_QUEUED, OwnSide.END_SENT)

    def _has_delivered_all_else(self) -> bool:
        """Whether all data and the peer's end have been delivered, so that ``error`` and ``close`` may follow.

        A suspended socket has to be resumed for that, unless the program is owed a ``drain`` that cannot come any more:
        it may have suspended until that drain, and would wait forever.
        """
        if self.ready is not _OPEN or self.streams:
            return True
        held = self.incoming.count > 0 or self.peer_side is PeerSide.END_RECEIVED
        return not held or (self._drain_lost and self.suspensions > 0)

    def is_over(self) -> bool:
        """Whether the last event, ``close``, was delivered."""
        return self._last_delivered is PendingEvent.CLOSE

    # Actions

    def next_action(self) -> Action:
        """What to do with the socket next."""
        if self.shut:
            return Action.NOTHING
        if self.ready is _OPEN and self.failed is Failed.NO:
            if self.outgoing.amount:
                return Action.SEND
            ends = self.own_side is OwnSide.END_QUEUED and self.security is not Security.HANDSHAKE
            return Action.SEND_END if ends else Action.NOTHING
        if self.abandoned:
            return Action.SHUT
        if self.ready is ReadyState.CONNECTING and self.failed is Failed.NO:
            return Action.NOTHING
        if self.outgoing.amount:
            return Action.SEND
        if self.own_side not in _ENDS_SENT:
            return Action.SEND_END
        return Action.LINGER if self.peer_side is PeerSide.OPEN else Action.SHUT

    def limit(self) -> Limit | None:
        """What is limited in time now, besides connecting."""
        if self.abandoned or self.shut:
            return None
        if self.ready is ReadyState.CONNECTING and self.failed is Failed.NO:
            return self._limit_before_it_is_open()
        if (self.ready is not _OPEN or self.failed is not Failed.NO) and self.next_action() in _ENDS:
            if self.failed is Failed.NO:
                return Limit.LINGER
            return Limit.ALERT if self.failed is Failed.TLS else Limit.FAILURE
        return Limit.HANDSHAKE if self.security is Security.HANDSHAKE else None

    def _limit_before_it_is_open(self) -> Limit | None:
        if self.opening is Opening.HEADER:
            return Limit.HEADER
        return Limit.HANDSHAKE if self.opening is Opening.HANDSHAKE else None

    def is_streaming(self) -> bool:
        """Whether the stream, instead of the handlers, reads from the socket."""
        return (
            self.streams
            and self.ready is _OPEN
            and self.failed is Failed.NO
            and self.security is not Security.HANDSHAKE
            and not self.shut
        )

    def reads(self) -> bool:
        """Whether the connection itself reads from the socket, as long as the inbox has room."""
        if self.shut or self.abandoned or self.peer_side is not _PEER_SIDE_OPEN:
            return False
        if self.ready is _OPEN and not self.streams:  # usually
            return True
        return not (self.is_streaming() or self._waits_to_be_admitted())

    def is_half_open(self) -> bool:
        """Whether nothing more can be read, and the program may go on sending."""
        return (
            self._allow_half_open
            and self.peer_side in (PeerSide.END_RECEIVED, PeerSide.END_DELIVERED)
            and self.own_side is OwnSide.OPEN
            and self.ready is _OPEN
            and self.failed is Failed.NO
            and not (self.streams or self.shut)
        )

    def _waits_to_be_admitted(self) -> bool:
        return self.opening is Opening.ADMISSION and self.failed is Failed.NO
