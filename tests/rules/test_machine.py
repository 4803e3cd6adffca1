"""The rules of one connection, without any I/O: tables of required results, and a model of what is guaranteed.

No event loop runs and no socket is opened: the tests call the methods that report what socket and program do.
"""

from __future__ import annotations

import ast
import random
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from hypothesis import settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mozsocket import _machine
from mozsocket._buffers import BUFFER_THRESHOLD, SendBuffer
from mozsocket._machine import (
    Action,
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

LITTLE, MUCH = b"x", bytes(BUFFER_THRESHOLD + 1)
STATES = tuple(ReadyState)
CONNECTING, OPEN, CLOSING, CLOSED = STATES
WALKS = 75_000 if sys.gettrace() is None else 5_000
"""The number of random sequences, which take a few seconds: fewer where coverage is measured, as each takes longer."""


class Queue:
    """Received data that is not delivered yet, as a number of reads."""

    def __init__(self) -> None:
        self.count = 0
        self.roomy = False

    def discard(self) -> None:
        self.count = 0

    def make_room(self) -> None:
        self.roomy = True


class Subject:
    """A machine with its two buffers, and one method for each thing that can happen to it."""

    def __init__(self, *, half_open: bool = False) -> None:
        self.outgoing = SendBuffer()
        self.incoming = Queue()
        self.machine = Machine(self.outgoing, self.incoming, allow_half_open=half_open)

    def do(self, words: str) -> Subject:
        """Call the methods of these names, in this order."""
        for word in words.split():
            getattr(self, word)()
        return self

    def open(self) -> None:
        self.machine.open()
        self.machine.announce()

    def connect(self) -> None:
        """Connect, and deliver ``open`` to the program."""
        self.open()
        assert self.take() is PendingEvent.OPEN

    def in_handshake(self) -> None:
        """Begin a handshake, for TLS from the start."""
        self.machine.enter_stage(Opening.HANDSHAKE)
        self.machine.begin_tls()

    def send(self) -> None:
        assert self.outgoing.append(LITTLE)

    def send_much(self) -> None:
        """Send so much that a drain event is owed."""
        assert not self.outgoing.append(MUCH)

    def hand_over(self) -> None:
        """Hand all that is buffered to the operating system."""
        self.outgoing.advance(self.outgoing.amount)

    def receive(self) -> None:
        self.incoming.count += 1

    def stream(self) -> None:
        self.machine.begin_stream()

    def suspend(self) -> None:
        self.machine.suspend()

    def resume(self) -> None:
        assert self.machine.resume()

    def begin_tls(self) -> None:
        self.machine.begin_tls()

    def end_handshake(self) -> None:
        self.machine.end_handshake()

    def peer_ends(self) -> None:
        self.machine.end_peer_side()

    def finish(self) -> None:
        self.machine.finish()

    def mark_end_sent(self) -> None:
        self.machine.mark_end_sent()

    def close(self) -> None:
        self.machine.close()

    def give_up(self) -> None:
        self.machine.give_up()

    def fail(self) -> None:
        """Report that sending has failed."""
        self.machine.fail(Failed.NETWORK)

    def fail_tls(self) -> None:
        self.machine.fail(Failed.TLS)

    def lose(self) -> None:
        self.machine.lose()

    def reset(self) -> None:
        """Report that reading has failed."""
        self.do("fail lose")

    def mark_truncated(self) -> None:
        """Report EOF from the peer where TLS has not ended."""
        self.do("fail")
        self.machine.mark_truncated()

    def end(self) -> None:
        self.machine.end()

    def deliver(self) -> None:
        """Deliver the pending event to the program."""
        assert self.take() is not None

    def take(self) -> PendingEvent | None:
        """Take the next pending event."""
        due = self.machine.pending_event()
        if due is not None:
            self.machine.mark_delivered(due)
        if due is PendingEvent.DATA:
            self.incoming.count -= 1
        return due

    def events(self) -> str:
        """Take all pending events, one after another."""
        return " ".join(due.name.lower() for due, _ in self.events_and_states())

    def events_and_states(self) -> list[tuple[PendingEvent, ReadyState]]:
        """Take all pending events, each with the ready state that its handler sees."""
        taken: list[tuple[PendingEvent, ReadyState]] = []
        while (due := self.take()) is not None:
            taken.append((due, self.machine.ready))
            assert len(taken) < 20, "it goes on for ever"
        return taken

    def carry_out(self) -> list[tuple[Action, Limit | None]]:
        """Do each step that the machine requires of the socket, until it is closed or waits for the peer.

        :return: each step, with the time limit that applied before it
        """
        taken: list[tuple[Action, Limit | None]] = []
        while (step := self.machine.next_action()) is not Action.NOTHING:
            taken.append((step, None if step is Action.SHUT else self.machine.limit()))  # SHUT is done immediately
            if step is Action.LINGER:
                break
            self.carry_out_one(step)
        return taken

    def carry_out_one(self, step: Action) -> None:
        {Action.SEND: self.hand_over, Action.SEND_END: self.mark_end_sent, Action.SHUT: self.end}[step]()


def of(words: str, *, half_open: bool = False) -> Subject:
    """A machine after these methods were called."""
    return Subject(half_open=half_open).do(words)


# All the ways to end. The columns of `Row`: what has happened; the state then; the steps and their time limits until
# the peer's EOF or the time limit; which of these two happens; the steps after it; and the events with the states that
# their handlers see.

SEND: tuple[Action, Limit | None] = (Action.SEND, None)
SHUT: tuple[Action, Limit | None] = (Action.SHUT, None)
CLOSE = [(PendingEvent.CLOSE, CLOSED)]
ERROR_AND_CLOSE = [(PendingEvent.ERROR, CLOSED), (PendingEvent.CLOSE, CLOSED)]
BOTH = (PendingEvent.BOTH_ENDED, CLOSING)


def ends(limit: Limit, *, waits: bool = True) -> list[tuple[Action, Limit | None]]:
    """The steps that half-close our side and, if the peer has not ended, wait for its EOF."""
    reports: list[tuple[Action, Limit | None]] = [(Action.SEND_END, limit)]
    return [*reports, (Action.LINGER, limit)] if waits else reports


ENDINGS = [
    pytest.param("connect send give_up", CLOSING, [SHUT], CLOSE, id="closeImmediately"),
    pytest.param("connect send close", CLOSING, [SEND, *ends(Limit.LINGER)], CLOSE, id="close"),
    pytest.param(
        "connect send peer_ends deliver", CLOSING, [SEND, *ends(Limit.LINGER, waits=False), SHUT], CLOSE, id="peer"
    ),
    pytest.param(
        "connect finish send peer_ends deliver",
        CLOSING,
        [SEND, *ends(Limit.LINGER, waits=False), SHUT],
        CLOSE,
        id="peer, after our end",
    ),
    pytest.param("connect send reset", OPEN, [SHUT], ERROR_AND_CLOSE, id="reading failed"),
    pytest.param("connect send close lose", CLOSING, [SHUT], CLOSE, id="no time left"),
    pytest.param("connect begin_tls send fail_tls", OPEN, ends(Limit.ALERT), ERROR_AND_CLOSE, id="TLS failed"),
    pytest.param(
        "connect send mark_truncated",
        OPEN,
        [*ends(Limit.FAILURE, waits=False), SHUT],
        ERROR_AND_CLOSE,
        id="TLS cut off",
    ),
    pytest.param("connect send fail", OPEN, ends(Limit.FAILURE), ERROR_AND_CLOSE, id="sending failed"),
    pytest.param("reset", CONNECTING, [SHUT], ERROR_AND_CLOSE, id="no connection"),
    pytest.param("in_handshake fail_tls", CONNECTING, ends(Limit.ALERT), ERROR_AND_CLOSE, id="no TLS connection"),
    pytest.param(
        "in_handshake fail_tls peer_ends",
        CONNECTING,
        [*ends(Limit.ALERT, waits=False), SHUT],
        ERROR_AND_CLOSE,
        id="no TLS connection, and the peer has gone",
    ),
    pytest.param("give_up", CLOSING, [SHUT], CLOSE, id="given up while connecting"),
    pytest.param("in_handshake give_up", CLOSING, [SHUT], CLOSE, id="given up in the handshake"),
    pytest.param("in_handshake fail_tls give_up", CLOSING, [SHUT], ERROR_AND_CLOSE, id="failed, then given up"),
    pytest.param(
        "connect close fail mark_end_sent",
        CLOSING,
        [(Action.LINGER, Limit.FAILURE)],
        ERROR_AND_CLOSE,
        id="failed in closing",
    ),
]


@pytest.mark.parametrize("ending", ["peer_ends", "lose"])
@pytest.mark.parametrize(("happened", "ready", "steps", "events"), ENDINGS)
def test_ways_to_end(
    happened: str,
    ready: ReadyState,
    steps: list[tuple[Action, Limit | None]],
    events: list[tuple[PendingEvent, ReadyState]],
    ending: str,
) -> None:
    """Each way to end takes its own steps with the right time limits. No last event is pending before the socket is
    closed.
    Where it waits for the peer, both EOF and the time limit end the wait.
    """
    subject = of(happened)
    assert subject.machine.ready is ready
    assert subject.machine.pending_event() is None
    assert subject.carry_out() == steps
    if not subject.machine.shut:
        assert subject.machine.pending_event() is None
        subject.do(ending)
        assert subject.carry_out() == [SHUT]
        if ready is OPEN and ending == "peer_ends":
            assert subject.take() is PendingEvent.BOTH_ENDED
    assert (subject.machine.next_action(), subject.machine.limit()) == (Action.NOTHING, None)
    assert subject.events_and_states() == events
    assert subject.machine.is_over()
    assert subject.machine.opened is happened.startswith("connect")


HALF_OPEN = [
    pytest.param("connect peer_ends deliver send finish", [BOTH], [SEND, *ends(Limit.LINGER, waits=False), SHUT]),
    pytest.param(
        "connect finish peer_ends", [(PendingEvent.END, OPEN), BOTH], [*ends(Limit.LINGER, waits=False), SHUT]
    ),
    pytest.param("connect finish mark_end_sent peer_ends", [(PendingEvent.END, OPEN), BOTH], [SHUT]),
]


@pytest.mark.parametrize(("happened", "before", "steps"), HALF_OPEN)
def test_end_of_both_sides_that_may_be_half_open(
    happened: str, before: list[tuple[PendingEvent, ReadyState]], steps: list[tuple[Action, Limit | None]]
) -> None:
    """Whichever side ends first, the socket closes when both have. Everything sent goes out before our EOF."""
    subject = of(happened, half_open=True)
    assert subject.events_and_states() == before
    assert subject.carry_out() == steps
    assert subject.events_and_states() == CLOSE


def test_half_open() -> None:
    """The peer's EOF is delivered once and closes nothing: what is sent still goes out, until the program ends its side
    too.
    """
    subject = of("connect receive peer_ends", half_open=True)
    assert subject.events_and_states() == [(PendingEvent.DATA, OPEN), (PendingEvent.END, OPEN)]
    assert subject.machine.peer_side is PeerSide.END_DELIVERED
    subject.do("peer_ends")  # repeating it changes nothing
    assert subject.events() == ""
    assert subject.do("send").carry_out() == [SEND]
    assert not subject.machine.reads()


def test_own_end_alone() -> None:
    """Our EOF goes out when everything is sent, without a time limit, and the peer may continue to send."""
    subject = of("connect send finish finish", half_open=True)
    assert subject.carry_out() == [SEND, (Action.SEND_END, None)]
    assert subject.do("finish").machine.own_side is OwnSide.END_SENT
    assert subject.carry_out() == []
    assert subject.machine.reads()
    assert subject.do("receive").events() == "data"


def test_the_end_that_a_failure_sends_is_not_one_of_the_program() -> None:
    subject = of("connect fail mark_end_sent")
    assert subject.machine.own_side is OwnSide.CUT_SHORT
    assert not subject.machine.has_finished()
    assert subject.do("finish").machine.own_side is OwnSide.END_SENT
    assert of("connect finish fail mark_end_sent").machine.has_finished()


def test_failure_where_one_side_has_ended() -> None:
    """A failure ends a half-open connection too, and the peer's EOF is delivered before it."""
    subject = of("connect fail peer_ends", half_open=True)
    assert subject.carry_out() == [*ends(Limit.FAILURE, waits=False), SHUT]
    assert subject.events() == "end error close"


ORDER = [
    pytest.param("open receive peer_ends", "open data both_ended", id="open first"),
    pytest.param("open send_much hand_over receive", "open drain data", id="drain behind open"),
    pytest.param("connect begin_tls send_much end_handshake hand_over receive", "secure drain data", id="secure first"),
    pytest.param("connect receive receive peer_ends", "data data both_ended", id="end behind data"),
    pytest.param("connect receive fail lose end", "data error close", id="error behind data"),
    pytest.param("connect receive peer_ends fail lose end", "data both_ended error close", id="error behind the end"),
    pytest.param("open begin_tls end_handshake", "open secure", id="secure behind open"),
    pytest.param("connect receive mark_truncated end", "data error close", id="data before it was cut off"),
    pytest.param("connect receive close", "", id="no data after close"),
    pytest.param("open close lose end", "open close", id="open, though closed"),
    pytest.param("open reset end", "open error close", id="open, though lost"),
    pytest.param("open give_up end", "open close", id="open, though given up"),
    pytest.param("connect begin_tls end_handshake close lose end", "secure close", id="secure, though closed"),
    pytest.param("connect begin_tls close end_handshake", "", id="not secure once closed"),
    pytest.param("in_handshake end_handshake open", "open", id="not secure if so from the start"),
    pytest.param("reset end", "error close", id="not open"),
    pytest.param("connect receive fail close lose end", "error close", id="closed after it failed"),
]


@pytest.mark.parametrize(("happened", "events"), ORDER)
def test_order_of_events(happened: str, events: str) -> None:
    """``open`` is first, then secure, drain, data and end as they happen; error and close are last, once each."""
    subject = of(happened)
    assert subject.events() == events
    assert subject.events() == ""


SUSPENDED = [
    pytest.param("receive", "", "data", id="data"),
    pytest.param("receive peer_ends", "", "data both_ended", id="the end"),
    pytest.param("peer_ends", "", "both_ended", id="the end alone"),
    pytest.param("receive reset end", "", "data error close", id="a loss behind data"),
    pytest.param("receive peer_ends reset end", "", "data both_ended error close", id="a loss behind data and the end"),
    pytest.param("peer_ends reset end", "", "both_ended error close", id="a loss behind the end"),
    pytest.param("reset end", "error close", "", id="a loss alone"),
    pytest.param("receive send_much reset end", "error close", "", id="a loss with a drain owed"),
    pytest.param("peer_ends send_much reset end", "error close", "", id="a loss with a drain owed, after the end"),
    pytest.param("receive send_much fail fail lose end", "error close", "", id="two failures with a drain owed"),
    pytest.param("receive send_much fail", "", "data", id="a drain lost, and reading goes on"),
    pytest.param("receive send_much hand_over reset end", "error close", "", id="a loss with a drain due"),
    pytest.param("receive send_much hand_over", "drain", "data", id="a drain"),
    pytest.param("receive send_much hand_over deliver reset end", "", "data error close", id="a loss after the drain"),
    pytest.param("receive close lose end", "close", "", id="closed"),
    pytest.param("receive give_up end", "close", "", id="given up"),
    pytest.param("begin_tls end_handshake receive", "secure", "data", id="secure"),
]


@pytest.mark.parametrize(("happened", "suspended", "resumed"), SUSPENDED)
def test_suspension(happened: str, suspended: str, resumed: str) -> None:
    """While suspended, data and all that arrived after it wait, until resumed as often as suspended.
    A drain does not wait, nor does an event with nothing before it. Nor does a failure that makes an owed drain
    impossible, as the program may have suspended until the drain.
    """
    subject = of("connect suspend suspend").do(happened)
    assert subject.events() == suspended
    assert subject.do("resume").events() == ""
    assert subject.do("resume").events() == resumed
    assert not subject.machine.resume()


def test_suspended_before_it_is_open() -> None:
    """``open`` is delivered; everything after it waits."""
    subject = of("suspend open receive")
    assert subject.events() == "open"
    assert subject.do("resume").events() == "data"


def test_lost_drain_without_suspension() -> None:
    """Unless the socket is suspended, received data is delivered before the error, whether or not a drain is owed."""
    subject = of("connect receive receive send_much reset end")
    assert subject.take() is PendingEvent.DATA
    subject.do("suspend")  # the program waits for a drain that is now impossible
    assert subject.events() == "error close"


def test_drain() -> None:
    """A drain is pending when nothing is buffered, postponed if more is sent, and delivered once; also in closing."""
    subject = of("connect send_much")
    assert subject.events() == ""
    subject.do("hand_over send")
    assert subject.events() == ""
    assert subject.do("close hand_over").events() == "drain"
    assert subject.events() == ""


@pytest.mark.parametrize("ending", ["give_up", "fail"])
def test_no_drain_of_what_is_dropped(ending: str) -> None:
    subject = of("connect send_much").do(ending)
    assert subject.outgoing.amount == 0
    assert subject.events() == ""


def test_failing_keeps_what_was_received() -> None:
    """A failure also allows the remaining data to be read, up to EOF."""
    subject = of("connect receive fail")
    assert subject.incoming.roomy
    assert subject.machine.reads()
    assert subject.events() == "data"


@pytest.mark.parametrize("ending", ["close", "give_up"])
def test_closing_discards_what_was_received(ending: str) -> None:
    assert of("connect receive").do(ending).incoming.count == 0


def test_release() -> None:
    """After a release nothing more is sent."""
    subject = of("connect send_much")
    subject.machine.release()
    assert subject.machine.ready is CLOSED
    assert subject.outgoing.amount == 0


STIRS = ["close", "give_up", "open", "peer_ends", "peer_ends deliver", "reset", "finish"]


@pytest.mark.parametrize(("first", "second"), list(product(STIRS, repeat=2)))
def test_ready_state_never_goes_back(first: str, second: str) -> None:
    """This holds whatever happens, also after ``close`` was delivered."""
    subject = of("connect")
    ready = [OPEN]
    for word in f"{first} {second} lose end".split():
        subject.take() if word == "deliver" else subject.do(word)
        ready.append(subject.machine.ready)
    ready += [state for _, state in subject.events_and_states()]
    for word in ("close", "give_up"):
        ready.append(subject.do(word).machine.ready)
    subject.machine.open()
    ready.append(subject.machine.ready)
    assert ready == sorted(ready, key=STATES.index)


def test_order_of_ready_states() -> None:
    """The ready states are in this order, and each equals its name."""
    assert list(STATES) == ["connecting", "open", "closing", "closed"]
    assert f"{OPEN}" == str(OPEN) == "open"


@pytest.mark.parametrize("word", ["open", "close", "give_up"])
def test_closed_for_good(word: str) -> None:
    subject = of("connect give_up end")
    assert subject.events() == "close"
    subject.machine.open() if word == "open" else subject.do(word)
    assert subject.machine.ready is CLOSED
    assert subject.events() == ""


MATTERS = [
    ("", True),
    ("connect", True),
    ("connect peer_ends", True),
    ("connect close", False),
    ("connect send close", True),
    ("connect fail close", True),
    ("connect peer_ends deliver", False),
]


@pytest.mark.parametrize(("happened", "loss_is_failure"), MATTERS)
def test_whether_a_loss_matters(happened: str, loss_is_failure: bool) -> None:
    """It does not matter once the program has closed, everything it sent is out, and nothing has failed."""
    assert of(happened).machine.loss_is_failure() is loss_is_failure


# TLS

IN_HANDSHAKE: list[tuple[str, Action, Limit | None]] = [
    ("", Action.NOTHING, Limit.HANDSHAKE),
    ("send", Action.SEND, Limit.HANDSHAKE),
    ("finish", Action.NOTHING, Limit.HANDSHAKE),
    ("finish end_handshake", Action.SEND_END, None),
    ("end_handshake", Action.NOTHING, None),
    ("send close", Action.SEND, Limit.HANDSHAKE),
    ("send close end_handshake", Action.SEND, None),
    ("close", Action.SEND_END, Limit.LINGER),
    ("close mark_end_sent", Action.LINGER, Limit.LINGER),
    ("finish close", Action.SEND_END, Limit.LINGER),
    ("give_up", Action.SHUT, None),
    ("reset", Action.SHUT, None),
    ("reset end", Action.NOTHING, None),
    ("fail_tls", Action.SEND_END, Limit.ALERT),
    ("fail", Action.SEND_END, Limit.FAILURE),
]


@pytest.mark.parametrize(("happened", "action", "limit"), IN_HANDSHAKE)
def test_in_a_handshake(happened: str, action: Action, limit: Limit | None) -> None:
    """Ending our side waits for the handshake, except in closing; so does data. The handshake has a time limit while it
    matters.
    """
    machine = of("connect begin_tls").do(happened).machine
    assert (machine.next_action(), machine.limit()) == (action, limit)


def test_security() -> None:
    subject = of("connect")
    assert subject.machine.security is Security.NONE
    assert subject.do("begin_tls").machine.security is Security.HANDSHAKE
    assert subject.do("end_handshake").machine.security is Security.UP
    assert subject.events() == "secure"


# Opening: resolving, connecting, being admitted, the handshake

OPENINGS: list[tuple[Opening, Limit | None, bool]] = [
    (Opening.CONNECT, None, True),
    (Opening.HEADER, Limit.HEADER, True),
    (Opening.HANDSHAKE, Limit.HANDSHAKE, True),
    (Opening.ADMISSION, None, False),
    (Opening.ADMITTED, None, True),
]


@pytest.mark.parametrize(("opening", "limit", "reads"), OPENINGS)
def test_opening(opening: Opening, limit: Limit | None, reads: bool) -> None:
    """Before it is open: what is limited and what is read. A connection that waits for admission is not read from, and
    requires nothing of the socket, however much is buffered.
    """
    subject = of("send")
    machine = subject.machine
    machine.enter_stage(opening)
    assert machine.opening is opening
    assert (machine.ready, machine.opened) == (CONNECTING, False)
    assert (machine.next_action(), machine.limit(), machine.reads()) == (Action.NOTHING, limit, reads)
    assert machine.pending_event() is None
    subject.do("open")
    assert (machine.opening, machine.ready, machine.opened) == (Opening.DONE, OPEN, True)
    assert (machine.limit(), machine.reads()) == (None, True)


def test_failing_before_it_is_admitted() -> None:
    """After that the peer's EOF is read, as without admission."""
    subject = of("begin_tls end_handshake")
    subject.machine.enter_stage(Opening.ADMISSION)
    assert subject.do("fail_tls").machine.reads()
    assert subject.carry_out() == ends(Limit.ALERT)
    assert subject.do("lose").carry_out() == [SHUT]
    assert subject.events() == "error close"


# Reading, and streams

READS: list[tuple[str, bool, bool]] = [
    ("", True, False),
    ("connect", True, False),
    ("connect suspend", True, False),
    ("connect receive", True, False),
    ("connect peer_ends", False, False),
    ("connect peer_ends deliver", False, False),
    ("connect close", True, False),
    ("connect close peer_ends", False, False),
    ("connect give_up", False, False),
    ("connect fail", True, False),
    ("connect reset", False, False),
    ("connect reset end", False, False),
    ("connect end", False, False),
    ("stream", True, False),
    ("stream connect", False, True),
    ("stream connect suspend", False, True),
    ("stream connect begin_tls", True, False),
    ("stream connect begin_tls end_handshake", False, True),
    ("stream connect close", True, False),
    ("stream connect fail", True, False),
    ("stream connect end", False, False),
    ("stream connect peer_ends", False, True),
    ("stream connect give_up", False, False),
]


@pytest.mark.parametrize(("happened", "reads", "is_streaming"), READS)
def test_who_reads(happened: str, reads: bool, is_streaming: bool) -> None:
    """Handlers and a stream never read at the same time, and neither reads when nothing more can arrive."""
    machine = of(happened).machine
    assert (machine.reads(), machine.is_streaming()) == (reads, is_streaming)


STREAMS = [
    pytest.param("open stream", "open", id="open"),
    pytest.param("connect stream begin_tls end_handshake", "secure", id="secure"),
    pytest.param("connect receive stream", "", id="data"),
    pytest.param("connect receive stream peer_ends", "", id="the end"),
    pytest.param("connect stream send_much hand_over", "drain", id="drain"),
    pytest.param("connect receive stream peer_ends reset end", "error close", id="a loss, told at once"),
    pytest.param("connect receive suspend stream reset end", "error close", id="and though suspended"),
    pytest.param("connect stream peer_ends finish mark_end_sent", "", id="both ends"),
]


@pytest.mark.parametrize("half_open", [False, True])
@pytest.mark.parametrize(("happened", "events"), STREAMS)
def test_streams(happened: str, events: str, half_open: bool) -> None:
    """A stream takes the data and the peer's EOF, and closes the socket; all other events are delivered."""
    subject = of(happened, half_open=half_open)
    assert subject.events() == events
    assert subject.machine.next_action() is Action.NOTHING


def test_stream_after_the_peers_end() -> None:
    """A stream that is made after the peer's EOF closes the socket itself; the ends of both sides do not."""
    subject = of("connect peer_ends deliver stream finish", half_open=True)
    assert not subject.machine.have_both_ended()
    assert subject.events() == ""
    assert subject.do("close").carry_out() == [*ends(Limit.LINGER, waits=False), SHUT]


# The model


class Expected:
    """The model: what has happened to a connection, and what must follow from it."""

    def __init__(self, *, half_open: bool) -> None:
        self.half_open = half_open
        self.ready = CONNECTING
        self.opening = Opening.CONNECT
        self.news: list[PendingEvent] = []
        self.unheard: list[PendingEvent] = []  # what arrived from the peer, in order: data, and finally EOF
        self.unsent = 0
        self.suspended = 0
        self.drain_owed = self.drain_lost = False
        self.streams = self.handshaking = self.shut = self.hopeless = False
        self.peer_ended = self.heard_end = self.said_all = self.told_peer = False
        self.failure = Failed.NO
        self.reports: list[PendingEvent] = []

    def pending_event(self) -> PendingEvent | None:
        if self.news:
            return self.news[0]
        if self.drain_owed and not self.unsent:
            return PendingEvent.DRAIN
        if self.handlers_take() and not self.suspended:
            if self.unheard:
                return self.unheard[0]
            if self.heard_end and self.said_all:
                return PendingEvent.BOTH_ENDED
        return self.last_pending()

    def handlers_take(self) -> bool:
        return self.ready is OPEN and not self.streams

    def last_pending(self) -> PendingEvent | None:
        held = self.handlers_take() and self.unheard and not (self.suspended and self.drain_lost)
        if not self.shut or held:
            return None
        last = [PendingEvent.CLOSE] if self.failure is Failed.NO else [PendingEvent.ERROR, PendingEvent.CLOSE]
        return next((due for due in last if due not in self.reports), None)

    def is_ending(self) -> bool:
        return self.ready in (CLOSING, CLOSED) or self.failure is not Failed.NO

    def next_action(self) -> Action:
        """The next step that remains to be done."""
        if self.shut or not (self.is_ending() or self.ready is OPEN):
            return Action.NOTHING
        if not self.is_ending():
            tells = self.said_all and not self.told_peer and not self.handshaking
            return Action.SEND if self.unsent else Action.SEND_END if tells else Action.NOTHING
        left = [(Action.SEND, self.unsent), (Action.SEND_END, not self.told_peer), (Action.LINGER, not self.peer_ended)]
        return Action.SHUT if self.hopeless else next((step for step, wanted in left if wanted), Action.SHUT)

    def limit(self) -> Limit | None:
        if self.hopeless:
            return None
        if self.ready is CONNECTING and not self.is_ending():
            return {Opening.HEADER: Limit.HEADER, Opening.HANDSHAKE: Limit.HANDSHAKE}.get(self.opening)
        if self.is_ending() and self.next_action() in (Action.SEND_END, Action.LINGER):
            return {Failed.NO: Limit.LINGER, Failed.NETWORK: Limit.FAILURE, Failed.TLS: Limit.ALERT}[self.failure]
        return Limit.HANDSHAKE if self.handshaking and not self.shut else None

    def is_streaming(self) -> bool:
        return self.handlers_gave_way() and not self.handshaking and not self.shut

    def handlers_gave_way(self) -> bool:
        return self.streams and self.ready is OPEN and self.failure is Failed.NO

    def reads(self) -> bool:
        admits = self.opening is not Opening.ADMISSION or self.failure is not Failed.NO
        return self.can_come() and admits and not self.is_streaming()

    def can_come(self) -> bool:
        """Whether anything can still arrive from the peer."""
        return not (self.shut or self.hopeless or self.peer_ended)


class Run:
    """A connection and its model, with a method for each input. An input that is impossible at that time is ignored.

    :param stages: the stages before the connection is open
    :param adopted: whether a server has accepted the connection, which is open before anything runs
    """

    def __init__(self, *, half_open: bool, stages: tuple[Opening, ...], adopted: bool) -> None:
        self.subject = Subject(half_open=half_open)
        self.machine = self.subject.machine
        self.expected = Expected(half_open=half_open)
        self.stages = list(stages)
        self.adopted = adopted
        self.runs = False  # whether events are delivered
        self.closed = self.gave_up = self.owed = self.secured = False
        self.seen = CONNECTING
        if adopted:
            self.machine.open()
            self.expected.ready = OPEN

    # The opening

    def progress(self) -> None:
        """Advance to the next of its stages."""
        expected = self.expected
        if self.runs or expected.shut:
            return
        if self.adopted:
            self.start()
        elif not expected.is_ending():
            self.go_on()

    def start(self) -> None:
        """Start running an accepted connection, which may have been closed already."""
        self.runs = True
        if self.expected.ready is OPEN and not self.expected.hopeless:
            self.open()

    def go_on(self) -> None:
        expected = self.expected
        if expected.opening is Opening.HANDSHAKE:
            self.machine.end_handshake()
            expected.handshaking = False
        if expected.opening is Opening.ADMISSION:
            self.reach(Opening.ADMITTED)
        elif self.stages:
            self.reach(self.stages.pop(0))
        else:
            self.open()

    def open(self) -> None:
        self.subject.open()
        expected = self.expected
        expected.ready, expected.opening, expected.news = OPEN, Opening.DONE, [PendingEvent.OPEN]
        self.runs = True

    def reach(self, opening: Opening) -> None:
        self.machine.enter_stage(opening)
        self.expected.opening = opening
        if opening is Opening.HANDSHAKE:
            self.machine.begin_tls()
            self.expected.handshaking = self.secured = True

    # The program's inputs

    def send(self, data: bytes = LITTLE) -> None:
        expected = self.expected
        if expected.ready is not OPEN or (expected.said_all and expected.failure is Failed.NO):
            return
        owed = not self.subject.outgoing.append(data)
        if expected.failure is Failed.NO:
            expected.unsent += len(data)
            assert owed == (expected.unsent > BUFFER_THRESHOLD)
            expected.drain_owed = expected.drain_owed or owed
        self.owed = self.owed or owed

    def send_much(self) -> None:
        self.send(MUCH)

    def suspend(self) -> None:
        self.machine.suspend()
        self.expected.suspended += 1

    def resume(self) -> None:
        assert self.machine.resume() is (self.expected.suspended > 0)
        self.expected.suspended = max(self.expected.suspended - 1, 0)

    def close(self) -> None:
        if self.expected.ready is CONNECTING:
            self.give_up()
        elif self.expected.ready is OPEN:
            self.machine.close()
            self.expect_closing()

    def give_up(self) -> None:
        if self.expected.ready is CLOSED:
            return
        self.machine.give_up()
        self.expect_closing()
        self.gave_up = self.expected.hopeless = True
        self.expect_dropped()

    def expect_closing(self) -> None:
        self.closed = True
        self.expected.ready = CLOSING
        self.expected.unheard = []

    def expect_dropped(self) -> None:
        self.expected.unsent, self.expected.drain_owed = 0, False

    def finish(self) -> None:
        """End our side, which also closes if the other side had ended before."""
        if self.expected.ready is OPEN:
            self.machine.finish()
            self.expected.said_all = True
            both = self.expected.heard_end and not self.expected.streams
            assert self.machine.have_both_ended() is both
            if both:
                self.close()

    def begin_tls(self) -> None:
        """Start TLS; data received and not delivered belongs to it."""
        expected = self.expected
        ended = expected.said_all or expected.heard_end
        if self.runs and expected.ready is OPEN and not self.secured and not ended and not expected.shut:
            self.secured = expected.handshaking = True
            self.machine.begin_tls()
            self.subject.incoming.count = 0
            expected.unheard = [due for due in expected.unheard if due is not PendingEvent.DATA]

    def begin_stream(self) -> None:
        if self.expected.ready in (CONNECTING, OPEN):
            self.machine.streams = self.expected.streams = True

    # The socket's inputs

    def receive(self) -> None:
        """Receive data, for the handlers if they can still get it; while closing it is discarded."""
        expected = self.expected
        if self.runs and expected.can_come() and not expected.handshaking and expected.ready is OPEN:
            self.subject.receive()
            expected.unheard.append(PendingEvent.DATA)

    def peer_ends(self) -> None:
        """EOF from the peer. During a handshake, or before the connection is open, this is a failure."""
        expected = self.expected
        if not expected.can_come() or (self.adopted and not self.runs):
            return
        if expected.opening is Opening.ADMISSION and expected.failure is Failed.NO:
            return  # nobody reads
        if expected.ready is CONNECTING or expected.handshaking:
            self.fail_if_it_matters(Failed.NETWORK)
        self.machine.end_peer_side()
        expected.peer_ended = True
        if expected.ready is OPEN:
            expected.unheard.append(PendingEvent.BOTH_ENDED if not expected.half_open else PendingEvent.END)

    def mark_truncated(self) -> None:
        """EOF from the peer without TLS's close_notify."""
        if self.secured and self.runs and self.expected.ready is OPEN and self.expected.can_come():
            self.fail(Failed.NETWORK)
            self.peer_ends()

    def end_handshake(self) -> None:
        expected = self.expected
        possible = expected.handshaking and expected.can_come() and expected.failure is Failed.NO
        if self.runs and possible:
            self.machine.end_handshake()
            expected.handshaking = False
            if expected.ready is OPEN:
                expected.news.append(PendingEvent.SECURE)

    def hand_over(self, *, part: bool = False) -> None:
        """Hand over some or all of the data to send; during a handshake it waits."""
        expected = self.expected
        if expected.next_action() is Action.SEND and not expected.handshaking:
            count = expected.unsent // 2 + 1 if part else expected.unsent
            self.subject.outgoing.advance(count)
            expected.unsent -= count

    def hand_over_part(self) -> None:
        self.hand_over(part=True)

    def mark_end_sent(self) -> None:
        if self.expected.next_action() is Action.SEND_END:
            self.machine.mark_end_sent()
            self.expected.told_peer = True
            self.expected.said_all |= self.expected.failure is Failed.NO

    def fail(self, failed: Failed) -> None:
        expected = self.expected
        self.machine.fail(failed)
        expected.failure = failed
        expected.drain_lost = expected.drain_lost or expected.drain_owed
        self.expect_dropped()

    def fail_if_it_matters(self, failed: Failed) -> None:
        expected = self.expected
        loss_is_failure = expected.ready is not CLOSING or expected.unsent > 0 or expected.failure is not Failed.NO
        assert self.machine.loss_is_failure() is loss_is_failure
        if loss_is_failure:
            self.fail(failed)

    def fail_sending(self) -> None:
        if self.expected.next_action() is Action.SEND:
            self.fail(Failed.NETWORK)

    def fail_tls(self) -> None:
        if self.secured and not self.expected.shut and not self.expected.hopeless:
            self.fail_if_it_matters(Failed.TLS)

    def lose(self) -> None:
        if not self.expected.shut and not self.expected.hopeless:
            self.fail_if_it_matters(Failed.NETWORK)
            self.machine.lose()
            self.expected.hopeless = True

    def time_is_over(self) -> None:
        """The current time limit has passed."""
        limit = self.expected.limit()
        if limit in (Limit.HEADER, Limit.HANDSHAKE):
            self.lose()
        elif limit is not None:
            self.machine.lose()
            self.expected.hopeless = True

    def shut(self) -> None:
        if self.expected.next_action() is Action.SHUT:
            self.machine.end()
            self.expected.shut = self.runs = True

    # The driver

    def deliver(self) -> None:
        """Take the pending event."""
        if not self.runs:
            return
        due = self.machine.pending_event()
        assert due is self.expected.pending_event()
        if due is not None:
            self.check_order(due)
            self.subject.take()
            self.expect_reports(due)

    def expect_reports(self, due: PendingEvent) -> None:
        expected = self.expected
        expected.reports.append(due)
        if due in (PendingEvent.OPEN, PendingEvent.SECURE):
            expected.news.pop(0)
        elif due is PendingEvent.DRAIN:
            expected.drain_owed = False
        elif due in (PendingEvent.ERROR, PendingEvent.CLOSE):
            expected.ready = CLOSED
        else:
            expected.unheard = expected.unheard[1:]
            expected.heard_end = expected.heard_end or due is not PendingEvent.DATA
            if due is PendingEvent.BOTH_ENDED:
                expected.ready = CLOSING

    def check_order(self, due: PendingEvent) -> None:
        """Check the order of events, which holds whatever has happened."""
        reports = self.expected.reports
        assert PendingEvent.CLOSE not in reports
        assert PendingEvent.ERROR not in reports or due is PendingEvent.CLOSE
        assert due in (PendingEvent.DRAIN, PendingEvent.DATA) or due not in reports
        assert (due is PendingEvent.OPEN) <= (not reports)
        # A program may use and close an accepted connection before it runs: then a drain comes without an open.
        assert PendingEvent.OPEN in reports or due in (
            PendingEvent.OPEN,
            PendingEvent.DRAIN,
            PendingEvent.ERROR,
            PendingEvent.CLOSE,
        )
        if due is PendingEvent.DATA:
            assert not (self.closed or self.expected.suspended or self.expected.streams)
            assert not {PendingEvent.END, PendingEvent.BOTH_ENDED} & set(reports)

    # The checks after each input

    def check(self) -> None:
        """Check that all properties have the expected values."""
        machine, expected = self.machine, self.expected
        assert machine.pending_event() is expected.pending_event()
        assert machine.next_action() is expected.next_action()
        assert machine.limit() is expected.limit()
        assert machine.reads() is expected.reads()
        assert machine.is_streaming() is expected.is_streaming()
        assert machine.ready is expected.ready
        assert self.seen is machine.ready or STATES.index(self.seen) < STATES.index(machine.ready)
        self.seen = machine.ready

    def check_asking(self) -> None:
        """Check that reading the properties changes nothing: a second reading gives the same values."""
        before = self.snapshot()
        assert self.ask() == self.ask()
        assert self.snapshot() == before

    def ask(self) -> tuple[object, ...]:
        machine = self.machine
        questions: tuple[Callable[[], object], ...] = (
            machine.pending_event,
            machine.next_action,
            machine.limit,
            machine.reads,
            machine.is_streaming,
            machine.loss_is_failure,
            machine.takes_data,
            machine.have_both_ended,
            machine.is_over,
        )
        return tuple(question() for question in questions)

    def snapshot(self) -> tuple[object, ...]:
        subject = self.subject
        outgoing, incoming = subject.outgoing, subject.incoming
        slots = [getattr(self.machine, name) for name in Machine.__slots__]
        return (*slots, outgoing.amount, outgoing.drain_owed, outgoing.dropped, incoming.count, incoming.roomy)

    # Running to completion

    def drive(self, *, peer_ends: bool) -> None:
        """Do the required steps and take the pending events until none are left. A connection that waits for the peer
        gets
        its EOF, or runs into the time limit.
        """
        if self.adopted:
            self.progress()
        for _ in range(40):
            before = self.snapshot()
            self.deliver()
            step = self.machine.next_action()
            if step is Action.LINGER:
                assert self.machine.limit() is not None
                self.peer_ends() if peer_ends else self.time_is_over()
            elif step is Action.SEND and self.expected.handshaking:
                assert self.machine.limit() is Limit.HANDSHAKE
                self.time_is_over()
            else:
                self.hand_over()
                self.mark_end_sent()
                self.shut()
            self.check()
            if self.snapshot() == before:
                return
        raise AssertionError("it goes on for ever")

    def complete(self, *, peer_ends: bool) -> None:
        """Check that a closing or failed connection ends; first without resuming a suspension, then with it."""
        self.drive(peer_ends=peer_ends)
        self.check_rest()
        while self.expected.suspended:
            self.resume()
        self.drive(peer_ends=peer_ends)
        self.check_rest()
        assert (self.machine.shut and self.machine.is_over()) or not self.expected.is_ending()
        assert self.machine.is_over() is (PendingEvent.CLOSE in self.expected.reports)

    def check_rest(self) -> None:
        """Check that only a suspension can delay the end, that owed drains and all errors were delivered."""
        expected, reports = self.expected, self.expected.reports
        if expected.is_ending():
            assert self.machine.shut
            assert self.machine.is_over() or (expected.suspended and expected.unheard)
        if self.owed and self.runs:
            assert PendingEvent.DRAIN in reports or self.gave_up or expected.failure is not Failed.NO
            assert not self.subject.outgoing.drain_owed
        if self.machine.is_over():
            assert reports[-1] is PendingEvent.CLOSE
            assert (PendingEvent.ERROR in reports) is (expected.failure is not Failed.NO)


INPUTS: tuple[Callable[[Run], None], ...] = (
    Run.progress,
    Run.send,
    Run.send_much,
    Run.suspend,
    Run.resume,
    Run.close,
    Run.give_up,
    Run.finish,
    Run.begin_tls,
    Run.begin_stream,
    Run.receive,
    Run.peer_ends,
    Run.mark_truncated,
    Run.end_handshake,
    Run.hand_over,
    Run.hand_over_part,
    Run.mark_end_sent,
    Run.fail_sending,
    Run.fail_tls,
    Run.lose,
    Run.time_is_over,
    Run.shut,
    Run.deliver,
)
NAMES = [function.__name__ for function in INPUTS]
STAGES: list[tuple[Opening, ...]] = [
    (),
    (Opening.HEADER,),
    (Opening.HANDSHAKE,),
    (Opening.ADMISSION,),
    (Opening.HEADER, Opening.HANDSHAKE, Opening.ADMISSION),
]


class AnySequence(RuleBasedStateMachine):
    """Any sequence of inputs, compared with the model."""

    run: Run | None = None

    @initialize(half_open=st.booleans(), stages=st.sampled_from(STAGES), adopted=st.booleans(), opens=st.booleans())
    def begin(self, half_open: bool, stages: tuple[Opening, ...], adopted: bool, opens: bool) -> None:
        self.run = Run(half_open=half_open, stages=stages, adopted=adopted)
        while opens and not self.run.runs:
            self.run.progress()

    @rule(name=st.sampled_from(NAMES))
    def happens(self, name: str) -> None:
        assert self.run is not None
        getattr(self.run, name)()

    @rule(peer_ends=st.booleans())
    def goes_on(self, peer_ends: bool) -> None:
        """Run as far as possible without further inputs."""
        assert self.run is not None
        self.run.drive(peer_ends=peer_ends)

    @invariant()
    def holds(self) -> None:
        if self.run is not None:
            self.run.check_asking()
            self.run.check()

    def teardown(self) -> None:
        if self.run is not None:
            self.run.complete(peer_ends=True)


def test_model() -> None:
    """For any inputs in any order the machine matches the model, and a closing or failed connection ends."""
    stateful.run_state_machine_as_test(AnySequence, settings=settings(max_examples=500, stateful_step_count=30))


def walk(seed: int) -> Run:
    """One random sequence of inputs to its end, compared with the model after each."""
    chance = random.Random(seed)
    run = Run(half_open=chance.random() < 0.5, stages=chance.choice(STAGES), adopted=chance.random() < 0.2)
    for _ in range(chance.randrange(4)):
        run.progress()
    inputs = chance.choices(INPUTS, k=chance.randrange(25))
    for function in inputs:
        function(run)
        run.check()
    run.complete(peer_ends=chance.random() < 0.5)
    return run


@pytest.mark.timeout(60)
def test_random_walk() -> None:
    """Many more sequences match the model. Together they reach each event, and both ways of failing."""
    reached: set[object] = set()
    for seed in range(WALKS):
        try:
            run = walk(seed)
        except AssertionError as exc:
            raise AssertionError(f"walk({seed})") from exc
        reached.update(run.expected.reports, [run.expected.failure])
    assert reached == {*PendingEvent, *Failed}


# The module's place in the package

WITH_IO = {"anyio", "socket", "ssl", "asyncio", "trio", "select", "selectors"}


def imported(path: Path) -> set[str]:
    """The top-level names that a module imports; those of the package's own modules begin with a dot."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            first = (node.module or "").split(".")[0]
            names = [first] if first else [alias.name for alias in node.names]
            found.update(f".{name}" if node.level else name for name in names)
    return found


def imported_in_the_end(path: Path) -> set[str]:
    """The same, including indirect imports by way of the package's modules."""
    found: set[str] = set()
    left = [path]
    while left:
        new = imported(left.pop()) - found
        found |= new
        left += [file for name in new if name[0] == "." and (file := path.parent / f"{name[1:]}.py").exists()]
    return found


def test_no_io() -> None:
    """The machine imports nothing that does I/O or waits, not even indirectly."""
    path = Path(_machine.__file__)
    assert not imported_in_the_end(path) & (WITH_IO | {"mozsocket"})
    assert imported_in_the_end(path.with_name("_socket.py")) >= {
        "anyio",
        "ssl",
        "socket",
    }  # so the search can find them
