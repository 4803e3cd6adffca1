"""The rules of one connection, without any I/O: its ready state, either side's end, what is due to the program, and
what is to be done with the socket.

The program and the socket put in what happens, by the methods; :meth:`Machine.due` tells which event is due, and
:meth:`Machine.step` what is wanted of the socket. Both only look; what was due is taken by :meth:`Machine.take`.

- A socket goes from connecting to open, closing and closed; it may leave out any, and never goes back.
- Events come in this order: open (or the server's connect), then secure, drain, data and the end as they happen, and in
  the end error, if the connection failed, and close, once each.
- What has been received waits while the program has suspended, and all that came behind it waits with it.
- Suspensions count: as often resumed as suspended.

How a connection ends: each of these is a way to :attr:`Step.SHUT`, after which ``error`` and ``close`` are due.

==================================== ==========================================================================
what happened                        what is done until then
==================================== ==========================================================================
``closeImmediately()``, a handler    nothing
has raised, the owner is cancelled
``close()``                          send what is buffered, tell the peer, wait for its end within ``linger``
the peer's end was delivered         send what is buffered, tell the peer
both sides have ended, with          the same
``allow_half_open``
reading failed, no time was left     nothing
TLS failed                           tell the peer why, and give it time to read that
sending failed                       tell the peer, read for a while what it sent before
no connection came about             nothing; of TLS the same as above
==================================== ==========================================================================
"""

from __future__ import annotations

from enum import Enum, IntEnum
from typing import Protocol

__all__ = (
    "ClosedBy",
    "Due",
    "Failed",
    "Limit",
    "Machine",
    "Opening",
    "OwnSide",
    "PeerSide",
    "ReadyState",
    "Security",
    "Step",
)


class ReadyState(str, Enum):
    """The states of a TCPSocket (MDN's ``readyState``). Each equals its name as a ``str``."""

    CONNECTING = "connecting"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"

    __str__ = str.__str__

    def precedes(self, other: ReadyState) -> bool:
        """Whether a socket in this state can go on to the other."""
        return _ORDER.index(self) < _ORDER.index(other)


_ORDER = tuple(ReadyState)


class Opening(IntEnum):
    """What comes before a connection is open, in this order, as far as it is wanted."""

    CONNECT = 1
    HEADER = 2
    """Of the PROXY protocol."""
    HANDSHAKE = 3
    ADMISSION = 4
    """A server may have to wait until others have gone."""
    ADMITTED = 5
    DONE = 6


class PeerSide(Enum):
    """What the peer sends."""

    OPEN = 1
    ENDED = 2
    """Nothing more can be read."""
    TOLD = 3
    """And the program knows."""
    CUT_OFF = 4
    """Nothing more can be read, though TLS has not ended: that is a failure, or after our own end no matter."""


class OwnSide(Enum):
    """What the program sends."""

    OPEN = 1
    FINISHED = 2
    """It has said that this is all."""
    TOLD = 3
    """And the peer knows."""
    CUT_OFF = 4
    """The peer knows that no more will come, as the connection has failed; the program has not said so."""


class Security(Enum):
    """How far TLS is."""

    NONE = 1
    HANDSHAKE = 2
    UP = 3


class ClosedBy(Enum):
    """Who has ended a connection that has not failed."""

    PROGRAM = 1
    PEER = 2
    OWNER = 3
    """The block that it ran in was cancelled."""


class Failed(Enum):
    """What a connection has failed by."""

    NO = 1
    NETWORK = 2
    TLS = 3


class Due(Enum):
    """What is due to the program: an event or, of those that tell nothing new, a change of state."""

    OPEN = 1
    SECURE = 2
    DRAIN = 3
    DATA = 4
    END = 5
    BOTH_ENDED = 6
    """The peer's end, where that is the end of both, or that of the second to end: the socket closes."""
    ERROR = 7
    CLOSE = 8


class Step(Enum):
    """What is wanted of the socket, beside reading."""

    NOTHING = 1
    SEND = 2
    """What is buffered."""
    END_OUTPUT = 3
    """Tell the peer that no more will come."""
    LINGER = 4
    """Wait for the peer's end."""
    SHUT = 5


class Limit(Enum):
    """What may last only so long."""

    CONNECT = 1
    HEADER = 2
    PLAINTEXT = 3
    """Of each part of what goes before TLS."""
    HANDSHAKE = 4
    LINGER = 5
    FAILURE = 6
    """To read what the peer sent before nothing more could be sent."""
    ALERT = 7
    """That the peer reads why TLS has failed."""


class Outgoing(Protocol):
    """What is to be sent: see :class:`SendBuffer`."""

    @property
    def amount(self) -> int: ...
    @property
    def drain_owed(self) -> bool: ...
    def take_drain(self) -> bool: ...
    def drop(self) -> None: ...


class Incoming(Protocol):
    """What was received and is not delivered: see :class:`Inbox`."""

    @property
    def count(self) -> int: ...
    def discard(self) -> None: ...
    def make_room(self) -> None: ...


_OPEN = ReadyState.OPEN
_PEER_SIDE_OPEN = PeerSide.OPEN
_ENDS = (Step.END_OUTPUT, Step.LINGER)
_TOLD = (OwnSide.TOLD, OwnSide.CUT_OFF)


class Machine:
    """The state of one connection.

    :ivar ready: MDN's ``readyState``
    :ivar opening: what comes before it is open
    :ivar opened: whether it has been open
    :ivar security: how far TLS is
    :ivar peer_side: how far the peer's side is
    :ivar own_side: how far the program's is
    :ivar failed: what it has failed by
    :ivar closed_by: who has ended it, if it has not failed before; None while nobody has
    :ivar gone: whether there is no use in it any more: it was lost, or given up
    :ivar shut: whether the socket is closed
    :ivar streams: whether a stream takes what arrives, and not the handlers
    :ivar suspensions: how often the program has suspended it
    """

    __slots__ = (
        "_allow_half_open",
        "_announced",
        "_drain_lost",
        "_told",
        "closed_by",
        "failed",
        "gone",
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
        self.gone = False
        self.shut = False
        self.streams = False
        self.suspensions = 0
        self._announced: tuple[Due, ...] = ()  # what has changed, and is yet to be told
        self._drain_lost = False  # whether one was owed, and can come no more
        self._told: Due | None = None  # of error and close, how far it is

    def _go_on(self, ready: ReadyState) -> None:
        if self.ready.precedes(ready):
            self.ready = ready

    def _go_on_to_close(self, by: ClosedBy) -> None:
        if self.ready.precedes(ReadyState.CLOSING):
            self.ready = ReadyState.CLOSING
            self.closed_by = by

    # What happens

    def open(self) -> None:
        """There is a connection. Of one that others have made it may be said before anything runs."""
        self.opened = True
        self._go_on(_OPEN)

    def announce(self) -> None:
        """It is to be told that there is a connection."""
        self.opening = Opening.DONE
        self._announced = (Due.OPEN,)

    def go_on_to(self, opening: Opening) -> None:
        """What comes before the connection is open has got so far."""
        self.opening = opening

    def begin_stream(self) -> None:
        """A stream takes what arrives from now on, in place of the handlers."""
        self.streams = True

    def begin_tls(self) -> None:
        self.security = Security.HANDSHAKE

    def end_handshake(self) -> None:
        self.security = Security.UP
        if self.ready is _OPEN:  # not before the first event, nor when it is closing
            self._announced += (Due.SECURE,)

    def end_peer_side(self) -> None:
        """The peer's end was read."""
        if self.peer_side is PeerSide.OPEN:
            self.peer_side = PeerSide.ENDED

    def cut_off(self) -> None:
        """The peer's end was read, where TLS has not ended."""
        if self.peer_side is PeerSide.OPEN:
            self.peer_side = PeerSide.CUT_OFF

    def reject(self) -> None:
        """What the peer has sent is not to be borne: its end counts for nothing."""
        self.peer_side = PeerSide.CUT_OFF

    def finish(self) -> None:
        """The program has said that there is no more to be sent."""
        if self.own_side is OwnSide.OPEN:
            self.own_side = OwnSide.FINISHED
        elif self.own_side is OwnSide.CUT_OFF:
            self.own_side = OwnSide.TOLD

    def tell_peer(self) -> None:
        """The peer was told that no more will come."""
        failed = self.failed is not Failed.NO and self.own_side is OwnSide.OPEN
        self.own_side = OwnSide.CUT_OFF if failed else OwnSide.TOLD

    def close(self) -> None:
        """The program wants no more, but that what it sent arrives."""
        self._go_on_to_close(ClosedBy.PROGRAM)
        self.incoming.discard()

    def give_up(self) -> None:
        """The program wants nothing any more."""
        self.close()
        self.outgoing.drop()
        self.gone = True

    def fail(self, failed: Failed) -> None:
        """Nothing more can be sent."""
        self.failed = failed
        self._drain_lost = self._drain_lost or self.outgoing.drain_owed
        self.outgoing.drop()
        self.incoming.make_room()

    def lose(self) -> None:
        """Nothing more can be read either."""
        self.gone = True

    def matters(self) -> bool:
        """Whether it would be a failure if the connection was lost now, and not just its end."""
        return self.ready is not ReadyState.CLOSING or self.outgoing.amount > 0 or self.failed is not Failed.NO

    def end(self) -> None:
        """The socket is closed."""
        self.shut = True

    def release(self) -> None:
        """Nothing is told any more, as when the owner is cancelled."""
        self.outgoing.drop()
        self._go_on_to_close(ClosedBy.OWNER)
        self._go_on(ReadyState.CLOSED)

    def suspend(self) -> None:
        self.suspensions += 1

    def resume(self) -> bool:
        """:return: False if it is not suspended"""
        if not self.suspensions:
            return False
        self.suspensions -= 1
        return True

    # What is due

    def due(self) -> Due | None:
        """What the program is to be told next."""
        if self._announced:
            return self._announced[0]
        outgoing = self.outgoing
        if outgoing.drain_owed and not outgoing.amount:
            return Due.DRAIN
        if self.ready is _OPEN and not self.suspensions and not self.streams:  # takes_data(), asked after each event
            if self.incoming.count:
                return Due.DATA
            if self.peer_side is not _PEER_SIDE_OPEN and (due := self._due_of_ends()) is not None:
                return due
        return self._last_due() if self.shut else None

    def _due_of_ends(self) -> Due | None:
        if self.peer_side is PeerSide.ENDED:
            return Due.END if self._allow_half_open else Due.BOTH_ENDED
        return Due.BOTH_ENDED if self.have_both_ended() else None

    def _last_due(self) -> Due | None:
        if not self._has_told_the_rest() or self._told is Due.CLOSE:
            return None
        return Due.ERROR if self.failed is not Failed.NO and self._told is None else Due.CLOSE

    def take(self, due: Due) -> None:
        """Count what was due as told; data is for who takes it from the queue."""
        if self._announced and due is self._announced[0]:
            self._announced = self._announced[1:]
        elif due is Due.DRAIN:
            self.outgoing.take_drain()
        elif due is Due.END:
            self.peer_side = PeerSide.TOLD
        elif due is Due.BOTH_ENDED:
            self.peer_side = PeerSide.TOLD
            self._go_on_to_close(ClosedBy.PEER)
        elif due is not Due.DATA:
            self._go_on(ReadyState.CLOSED)
            self._told = due

    def takes_data(self) -> bool:
        """Whether what was received is due to the handlers."""
        return self.ready is _OPEN and not self.suspensions and not self.streams

    def have_both_ended(self) -> bool:
        """Whether both sides have, as the program knows of the peer's."""
        return self.peer_side is PeerSide.TOLD and self.has_finished() and not self.streams

    def has_finished(self) -> bool:
        """Whether the program has said that there is no more to be sent."""
        return self.own_side in (OwnSide.FINISHED, OwnSide.TOLD)

    def _has_told_the_rest(self) -> bool:
        """Whether the last events are due: it is shut, and what came before has been delivered to the handlers, for
        which it may have to be resumed. They wait for that no longer if the program is owed a drain, which can come no
        more: it may have suspended until then, and would wait for good.
        """
        if self.ready is not _OPEN or self.streams:
            return True
        held = self.incoming.count > 0 or self.peer_side is PeerSide.ENDED
        return not held or (self._drain_lost and self.suspensions > 0)

    def is_over(self) -> bool:
        """Whether the program has been told all."""
        return self._told is Due.CLOSE

    # What is to be done

    def step(self) -> Step:
        """What is wanted of the socket next."""
        if self.shut:
            return Step.NOTHING
        if self.ready is _OPEN and self.failed is Failed.NO:
            if self.outgoing.amount:
                return Step.SEND
            ends = self.own_side is OwnSide.FINISHED and self.security is not Security.HANDSHAKE
            return Step.END_OUTPUT if ends else Step.NOTHING
        if self.gone:
            return Step.SHUT
        if self.ready is ReadyState.CONNECTING and self.failed is Failed.NO:
            return Step.NOTHING
        if self.outgoing.amount:
            return Step.SEND
        if self.own_side not in _TOLD:
            return Step.END_OUTPUT
        return Step.LINGER if self.peer_side is PeerSide.OPEN else Step.SHUT

    def limit(self) -> Limit | None:
        """What is to be limited in time, beside connecting."""
        if self.gone or self.shut:
            return None
        if self.ready is ReadyState.CONNECTING and self.failed is Failed.NO:
            return self._limit_before_it_is_open()
        if (self.ready is not _OPEN or self.failed is not Failed.NO) and self.step() in _ENDS:
            if self.failed is Failed.NO:
                return Limit.LINGER
            return Limit.ALERT if self.failed is Failed.TLS else Limit.FAILURE
        return Limit.HANDSHAKE if self.security is Security.HANDSHAKE else None

    def _limit_before_it_is_open(self) -> Limit | None:
        if self.opening is Opening.HEADER:
            return Limit.HEADER
        return Limit.HANDSHAKE if self.opening is Opening.HANDSHAKE else None

    def is_streaming(self) -> bool:
        """Whether it is for the stream to read."""
        return (
            self.streams
            and self.ready is _OPEN
            and self.failed is Failed.NO
            and self.security is not Security.HANDSHAKE
            and not self.shut
        )

    def reads(self) -> bool:
        """Whether something is to be read, if there is room for it, and other than by the stream."""
        if self.shut or self.gone or self.peer_side is not PeerSide.OPEN:
            return False
        return not (self.is_streaming() or self._waits_to_be_admitted())

    def _waits_to_be_admitted(self) -> bool:
        return self.opening is Opening.ADMISSION and self.failed is Failed.NO
