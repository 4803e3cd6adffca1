"""Events, and dispatching them to handlers and listeners, without a connected socket."""

from __future__ import annotations

import errno
import gc
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from mozsocket import (
    Event,
    EventHandler,
    EventTarget,
    TCPServerSocket,
    TCPServerSocketEvent,
    TCPSocket,
    TCPSocketError,
    TCPSocketErrorEvent,
    TCPSocketEvent,
)
from mozsocket._events import Listeners, UnfinishedEvent

from ..parameters import shown

pytestmark = pytest.mark.anyio


class Bell(EventTarget):
    """A target with the events ring and break."""

    __slots__ = ("online",)  # looks like a handler's name, but is not

    onring = EventHandler[Event["Bell"]]()
    onbreak = EventHandler[Event["Bell"]]()

    def __repr__(self) -> str:
        return "<Bell>"


def listeners_of(target: EventTarget) -> Listeners:
    return target._listeners


def ring(bell: Bell) -> UnfinishedEvent | None:
    return listeners_of(bell).call(Event("ring", bell))


async def ring_out(bell: Bell) -> None:
    """Ring, and wait for the asynchronous handlers."""
    rest = ring(bell)
    assert rest is not None
    await rest.finish()


class Log(list[str]):
    """The names of the handlers called, in order."""

    def entry(self, name: str, returns: object = None) -> Callable[[Event[Any]], object]:
        """A handler that logs a name."""

        def handler(event: Event[Any]) -> object:
            self.append(name)
            return returns

        return handler

    def slow_entry(self, name: str) -> Callable[[Event[Any]], Awaitable[None]]:
        """An asynchronous handler that logs a name when it begins and when it ends."""

        async def handler(event: Event[Any]) -> None:
            self.append(f"{name} begins")
            await anyio.lowlevel.checkpoint()
            self.append(f"{name} ends")

        return handler


@pytest.fixture
def bell() -> Bell:
    return Bell()


@pytest.fixture
def log() -> Log:
    return Log()


# The order of handlers and listeners


def test_without_anything_that_listens(bell: Bell) -> None:
    assert ring(bell) is None
    assert not listeners_of(bell).has("ring")
    assert bell.onring is None


def test_the_handler_then_the_listeners_in_order_of_adding(bell: Bell, log: Log) -> None:
    bell.addEventListener("ring", log.entry("first"))
    bell.addEventListener("ring", log.entry("second"))
    bell.addEventListener("break", log.entry("of another type"))
    bell.onring = log.entry("handler")
    bell.onbreak = log.entry("handler of another type")
    assert ring(bell) is None
    assert log == ["handler", "first", "second"]


def test_each_is_given_the_event(bell: Bell) -> None:
    given: list[Event[Bell]] = []
    bell.onring = given.append
    bell.addEventListener("ring", lambda event: given.append(event))
    event = Event("ring", bell)
    listeners_of(bell).call(event)
    assert len(given) == 2
    assert all(each is event for each in given)


def test_the_handler_is_replaced_and_taken_away(bell: Bell, log: Log) -> None:
    first, second = log.entry("first"), log.entry("second")
    bell.onring = first
    assert bell.onring is first
    bell.onring = second
    assert bell.onring is second
    assert bell.onbreak is None
    ring(bell)
    assert log == ["second"]
    bell.onring = None
    assert bell.onring is None
    bell.onring = None
    ring(bell)
    assert log == ["second"]


def test_handlers_belong_to_one_target(bell: Bell, log: Log) -> None:
    bell.onring = log.entry("handler")
    bell.addEventListener("ring", log.entry("listener"))
    other = Bell()
    ring(other)
    assert other.onring is None
    assert log == []


def test_a_handler_is_found_on_its_class() -> None:
    assert isinstance(Bell.onring, EventHandler)


def test_a_listener_added_twice_is_called_once(bell: Bell, log: Log) -> None:
    listener = log.entry("listener")
    bell.addEventListener("ring", listener)
    bell.addEventListener("ring", listener, once=True)  # the second registration is ignored, and so is its `once`
    ring(bell)
    ring(bell)
    assert log == ["listener"] * 2


def test_a_method_added_twice_is_called_once_and_can_be_removed(bell: Bell) -> None:
    given: list[Event[Bell]] = []
    bell.addEventListener("ring", given.append)
    bell.addEventListener("ring", given.append)
    ring(bell)
    assert len(given) == 1
    bell.removeEventListener("ring", given.append)
    ring(bell)
    assert len(given) == 1


def test_a_function_may_listen_to_several_types_and_be_the_handler_too(bell: Bell, log: Log) -> None:
    listener = log.entry("called")
    bell.onring = listener
    bell.addEventListener("ring", listener)
    bell.addEventListener("break", listener)
    ring(bell)
    assert log == ["called"] * 2
    bell.removeEventListener("ring", listener)
    ring(bell)
    listeners_of(bell).call(Event("break", bell))
    assert log == ["called"] * 4


def test_once(bell: Bell, log: Log) -> None:
    bell.addEventListener("ring", log.entry("once"), once=True)
    bell.addEventListener("ring", log.entry("always"))
    ring(bell)
    ring(bell)
    assert log == ["once", "always", "always"]


def test_a_listener_called_once_is_gone_while_it_runs(bell: Bell, log: Log) -> None:
    """So it can add itself again, and does not receive an event that it causes."""

    def listener(event: Event[Any]) -> None:
        log.append("called")
        assert not listeners_of(bell).has("ring")
        ring(bell)
        bell.addEventListener("ring", listener, once=True)

    bell.addEventListener("ring", listener, once=True)
    ring(bell)
    assert log == ["called"]
    ring(bell)
    assert log == ["called"] * 2


def test_removing(bell: Bell, log: Log) -> None:
    first, second, other = log.entry("first"), log.entry("second"), log.entry("never added")
    bell.removeEventListener("ring", first)
    bell.addEventListener("ring", first)
    bell.addEventListener("ring", second)
    bell.removeEventListener("ring", other)
    bell.removeEventListener("break", first)
    bell.removeEventListener("ring", first)
    bell.removeEventListener("ring", first)
    ring(bell)
    assert log == ["second"]


def test_the_function_that_gets_data_alone(log: Log) -> None:
    listeners = Listeners()
    first, second, slow = log.entry("first"), log.entry("second"), log.slow_entry("slow")
    found: list[object] = [listeners.data_function]
    changes: list[Callable[[], None]] = [
        lambda: listeners.handle("data", first),
        lambda: listeners.handle("end", second),
        lambda: listeners.handle("data", slow),
        lambda: listeners.handle("data", first),
        lambda: listeners.add("data", second, once=False),
        lambda: listeners.handle("data", None),
        lambda: listeners.remove("data", second),
        lambda: listeners.add("data", first, once=True),
        lambda: listeners.remove("data", first),
        lambda: listeners.handle("data", second),
    ]
    for change in changes:
        change()
        found.append(listeners.data_function)
    assert found == [None, first, first, None, first, None, second, None, None, None, second]


def test_has_listener(bell: Bell, log: Log) -> None:
    listener = log.entry("listener")
    bell.onring = listener
    assert listeners_of(bell).has("ring")
    assert not listeners_of(bell).has("break")
    bell.onring = None
    assert not listeners_of(bell).has("ring")
    bell.addEventListener("ring", listener)
    assert listeners_of(bell).has("ring")
    assert not listeners_of(bell).has("break")
    bell.removeEventListener("ring", listener)
    assert not listeners_of(bell).has("ring")


# Changes during the dispatch of an event


@pytest.mark.parametrize("by", ["handler", "listener"])
def test_a_listener_removed_by_an_earlier_one_is_not_called(bell: Bell, log: Log, by: str) -> None:
    removed = log.entry("removed")

    def remover(event: Event[Any]) -> None:
        bell.removeEventListener("ring", removed)

    if by == "handler":
        bell.onring = remover
    else:
        bell.addEventListener("ring", remover)
    bell.addEventListener("ring", removed)
    bell.addEventListener("ring", log.entry("last"))
    ring(bell)
    assert log == ["last"]


@pytest.mark.parametrize("by", ["handler", "listener"])
def test_a_listener_added_by_an_earlier_one_waits_for_the_next_event(bell: Bell, log: Log, by: str) -> None:
    added = log.entry("added")

    def adder(event: Event[Any]) -> None:
        bell.addEventListener("ring", added)

    if by == "handler":
        bell.onring = adder
    else:
        bell.addEventListener("ring", adder)
    ring(bell)
    assert log == []
    ring(bell)
    assert log == ["added"]


async def test_a_listener_added_by_an_asynchronous_handler_waits_for_the_next_event(bell: Bell, log: Log) -> None:
    added = log.entry("added")

    async def adder(event: Event[Any]) -> None:
        bell.addEventListener("ring", added)

    bell.onring = adder
    await ring_out(bell)
    assert log == []
    await ring_out(bell)
    assert log == ["added"]


def test_a_listener_removed_and_added_again_waits_for_the_next_event(bell: Bell, log: Log) -> None:
    again = log.entry("again")

    def renewer(event: Event[Any]) -> None:
        bell.removeEventListener("ring", again)
        bell.addEventListener("ring", again)

    bell.addEventListener("ring", renewer)
    bell.addEventListener("ring", again)
    ring(bell)
    assert log == []


def test_a_listener_may_remove_itself(bell: Bell, log: Log) -> None:
    def listener(event: Event[Any]) -> None:
        log.append("itself")
        bell.removeEventListener("ring", listener)

    bell.addEventListener("ring", listener)
    bell.addEventListener("ring", log.entry("next"))
    ring(bell)
    ring(bell)
    assert log == ["itself", "next", "next"]


async def test_a_listener_removed_while_an_earlier_one_waits_is_not_called(bell: Bell, log: Log) -> None:
    removed = log.entry("removed")
    bell.addEventListener("ring", log.slow_entry("slow"))
    bell.addEventListener("ring", removed)
    rest = ring(bell)
    bell.removeEventListener("ring", removed)
    assert rest is not None
    await rest.finish()
    assert log == ["slow begins", "slow ends"]


# Asynchronous handlers


async def test_asynchronous_handlers_are_awaited_in_order(bell: Bell, log: Log) -> None:
    bell.onring = log.slow_entry("handler")
    bell.addEventListener("ring", log.entry("plain"))
    bell.addEventListener("ring", log.slow_entry("first"))
    bell.addEventListener("ring", log.slow_entry("second"))
    bell.addEventListener("ring", log.entry("last"))
    rest = ring(bell)
    assert log == []
    assert rest is not None
    await rest.finish()
    ends = [f"{name} {what}" for name in ("first", "second") for what in ("begins", "ends")]
    assert log == ["handler begins", "handler ends", "plain", *ends, "last"]


async def test_what_comes_before_an_asynchronous_handler_is_called_at_once(bell: Bell, log: Log) -> None:
    bell.onring = log.entry("handler")
    bell.addEventListener("ring", log.slow_entry("slow"), once=True)
    bell.addEventListener("ring", log.entry("last"))
    rest = ring(bell)
    assert log == ["handler"]
    assert rest is not None
    await rest.finish()
    assert log == ["handler", "slow begins", "slow ends", "last"]
    assert ring(bell) is None
    assert log[4:] == ["handler", "last"]


class Later:
    """A program's own awaitable."""

    def __init__(self, log: Log) -> None:
        self.log = log

    def __await__(self) -> Generator[Any, Any, None]:
        yield from anyio.lowlevel.checkpoint().__await__()
        self.log.append("awaited")


@pytest.mark.parametrize("place", ["first", "later"])
async def test_any_awaitable_is_awaited(bell: Bell, log: Log, place: str) -> None:
    if place == "later":
        bell.onring = log.slow_entry("slow")
    bell.addEventListener("ring", lambda event: Later(log))
    bell.addEventListener("ring", log.entry("last"))
    await ring_out(bell)
    assert log[-2:] == ["awaited", "last"]


RESULTS = [None, True, False, 0, "text", object(), [1], iter("abc"), (number for number in range(3))]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
def test_other_results_are_ignored(bell: Bell, log: Log, result: object) -> None:
    bell.onring = log.entry("handler", result)
    bell.addEventListener("ring", log.entry("listener", result))
    assert ring(bell) is None
    assert log == ["handler", "listener"]


@pytest.mark.parametrize("result", RESULTS, ids=lambda result: type(result).__name__)
async def test_other_results_are_ignored_after_an_asynchronous_handler(bell: Bell, log: Log, result: object) -> None:
    bell.onring = log.slow_entry("slow")
    bell.addEventListener("ring", log.entry("listener", result))
    bell.addEventListener("ring", log.entry("last"))
    await ring_out(bell)
    assert log[2:] == ["listener", "last"]


async def test_nothing_more_is_called_once_cancelled(bell: Bell, log: Log) -> None:
    with anyio.CancelScope() as scope:

        async def canceller(event: Event[Any]) -> None:
            scope.cancel()

        bell.onring = canceller
        bell.addEventListener("ring", log.entry("listener"))
        await ring_out(bell)
    assert scope.cancelled_caught
    assert log == []


@pytest.mark.parametrize("kind", ["coroutine", "awaitable"])
def test_what_is_left_may_be_dropped(bell: Bell, log: Log, kind: str) -> None:
    """Nothing more is called, and no coroutine warns that it was never awaited."""
    bell.onring = log.slow_entry("slow") if kind == "coroutine" else lambda event: Later(log)
    bell.addEventListener("ring", log.entry("listener"))
    rest = ring(bell)
    assert rest is not None
    rest.drop()
    del rest
    gc.collect()
    assert log == []


class BrokenError(Exception):
    """Raised by a handler."""


def fails(event: Event[Any]) -> None:
    raise BrokenError


async def fails_later(event: Event[Any]) -> None:
    await anyio.lowlevel.checkpoint()
    raise BrokenError


def test_what_a_handler_raises_comes_out_and_nothing_more_is_called(bell: Bell, log: Log) -> None:
    bell.onring = fails
    bell.addEventListener("ring", log.entry("listener"))
    with pytest.raises(BrokenError):
        ring(bell)
    assert log == []


@pytest.mark.parametrize(
    ("place", "failing"),
    [("first", fails_later), ("later", fails), ("later", fails_later)],
    ids=["first", "later, plain", "later"],
)
async def test_what_is_raised_while_awaited_comes_out_and_nothing_more_is_called(
    bell: Bell, log: Log, place: str, failing: Callable[[Event[Any]], object]
) -> None:
    if place == "later":
        bell.onring = log.slow_entry("slow")
    bell.addEventListener("ring", failing)
    bell.addEventListener("ring", log.entry("listener"))
    with pytest.raises(BrokenError):
        await ring_out(bell)
    assert "listener" not in log


# Accepted arguments


NOT_CALLABLE = [5, "onring", False, [], object()]


@pytest.mark.parametrize("value", NOT_CALLABLE, ids=shown)
def test_a_handler_is_callable_or_none(bell: Bell, log: Log, value: Any) -> None:
    before = log.entry("before")
    bell.onring = before
    with pytest.raises(TypeError) as raised:
        bell.onring = value
    assert str(raised.value) == f"onring must be a function that takes one event, not {value!r}"
    assert bell.onring is before


@pytest.mark.parametrize("value", [*NOT_CALLABLE, None], ids=shown)
def test_a_listener_is_callable(bell: Bell, value: Any) -> None:
    with pytest.raises(TypeError) as raised:
        bell.addEventListener("ring", value)
    assert str(raised.value) == f"a listener must be a function that takes one event, not {value!r}"
    assert not listeners_of(bell).has("ring")


@pytest.mark.parametrize("method", [EventTarget.addEventListener, EventTarget.removeEventListener])
@pytest.mark.parametrize("type_", ["chime", "onring", "Ring", "", "line", None, 5, ["ring"]], ids=shown)
def test_an_unknown_type_is_refused_with_the_types_there_are(
    bell: Bell, method: Callable[..., None], type_: Any
) -> None:
    with pytest.raises(ValueError, match="type") as raised:
        method(bell, type_, print)
    assert str(raised.value) == f"unknown event type {type_!r}: it must be one of break, ring"


@pytest.mark.parametrize(
    ("target", "types"),
    [
        (TCPSocket("localhost", 80), {"open", "drain", "data", "error", "close"}),
        (TCPServerSocket(0), {"connect", "error"}),
    ],
    ids=["socket", "server"],
)
def test_the_types_of_mdn(target: EventTarget, types: set[str]) -> None:
    for type_ in types:
        target.addEventListener(type_, print)
        setattr(target, f"on{type_}", print)
        assert listeners_of(target).has(type_)
        setattr(target, f"on{type_}", None)
        target.removeEventListener(type_, print)


# Events

DATA = TCPSocketEvent("data", TCPSocket("localhost", 80), b"hello")


def error_event() -> TCPSocketErrorEvent[TCPSocket]:
    error = TCPSocketError("ConnectionRefusedError", "Network", errno.ECONNREFUSED, "Connection refused")
    return TCPSocketErrorEvent("error", TCPSocket("localhost", 80), error)


def test_an_event_carries_its_type_and_target(bell: Bell) -> None:
    event = Event("ring", bell)
    assert event.type == "ring"
    assert event.target is bell


def test_an_error_event_carries_what_its_error_does() -> None:
    event = error_event()
    assert event.name == "ConnectionRefusedError"
    assert event.message == "Network"
    assert event.errorCode == errno.ECONNREFUSED
    assert isinstance(event.error, TCPSocketError)


def all_events() -> list[Event[Any]]:
    socket, server = TCPSocket("localhost", 80), TCPServerSocket(0)
    return [Event("open", socket), DATA, error_event(), TCPServerSocketEvent("connect", server, socket)]


@pytest.mark.parametrize("event", all_events(), ids=lambda event: str(event.type))
def test_events_are_immutable(event: Event[Any]) -> None:
    names = [name for name in dir(event) if not name.startswith("_")]
    assert {"type", "target"} <= set(names)
    for name in names:
        value = getattr(event, name)
        with pytest.raises(AttributeError):
            setattr(event, name, None)
        with pytest.raises(AttributeError):
            delattr(event, name)
        assert getattr(event, name) is value


@pytest.mark.parametrize("event", all_events(), ids=lambda event: str(event.type))
def test_events_match_patterns_by_position(event: Event[Any]) -> None:
    match event:
        case TCPSocketEvent(type, target, more) | TCPServerSocketEvent(type, target, more):
            assert more is (event.data if isinstance(event, TCPSocketEvent) else event.socket)
        case TCPSocketErrorEvent(type, target, more):
            assert more is event.error
        case Event(type, target):
            assert event.type == "open"
    assert (type, target) == (event.type, event.target)


@pytest.mark.parametrize("event", all_events(), ids=lambda event: str(event.type))
def test_events_have_slots(event: Event[Any]) -> None:
    assert not hasattr(event, "__dict__")
    with pytest.raises(AttributeError):
        event.more = 1  # type: ignore[attr-defined]


def test_events_are_equal_to_themselves_only() -> None:
    socket = DATA.target
    events = [Event("open", socket), Event("open", socket), TCPSocketEvent("data", socket, b"hello"), DATA]
    assert len(set(events)) == 4
    assert len({*events, *events}) == 4


# The repr


def test_the_repr_of_an_event(bell: Bell) -> None:
    assert repr(Event("ring", bell)) == "<Event ring, <Bell>>"


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"hello", "5 B b'hello'"),
        (b"\x00\r\n\xff", r"4 B b'\x00\r\n\xff'"),
        (b"a" * 20, "20 B b'aaaaaaaaaaaaaaaaaaaa'"),
        (b"a" * 21, "21 B b'aaaaaaaaaaaaaaaaaaaa'..."),
        (bytes(1 << 20), r"1048576 B b'" + r"\x00" * 20 + "'..."),
        ("text", "4 B 'text'"),
        ("\x1b[31m\xff" * 100, r"600 B '\x1b[31m\xff\x1b[31m\xff\x1b[31m\xff\x1b['..."),
    ],
    ids=lambda value: str(len(value)),
)
def test_the_repr_of_data_shows_its_beginning(data: Any, shown: str) -> None:
    event = TCPSocketEvent("data", TCPSocket("localhost", 80), data)
    assert repr(event) == f"<TCPSocketEvent data {shown}, {event.target!r}>"


def test_the_repr_of_an_error() -> None:
    event = error_event()
    assert repr(event) == (f"<TCPSocketErrorEvent error ConnectionRefusedError: Connection refused, {event.target!r}>")


def test_the_repr_of_a_connection(bell: Bell) -> None:
    server = TCPServerSocket(0)
    event = TCPServerSocketEvent("connect", server, TCPSocket("::1", 80))
    assert repr(event) == f"<TCPServerSocketEvent connect {event.socket!r}, {server!r}>"


class Gong(Bell):
    """A subclass of Bell with another event."""

    onfall = EventHandler[Event["Gong"]]()


def test_a_subclass_may_have_further_events(log: Log) -> None:
    gong = Gong()
    gong.onfall = log.entry("falls")
    gong.addEventListener("ring", log.entry("rings"))
    listeners_of(gong).call(Event("fall", gong))
    ring(gong)
    assert log == ["falls", "rings"]
    with pytest.raises(ValueError, match=r"it must be one of break, fall, ring$"):
        gong.addEventListener("rise", print)


def test_an_event_target_has_slots(bell: Bell) -> None:
    assert not hasattr(bell, "__dict__")
    with pytest.raises(AttributeError):
        bell.onrings = print  # type: ignore[attr-defined,unused-ignore]  # a misspelt handler is not taken silently
