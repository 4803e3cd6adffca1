"""The public classes as Python objects: attributes, weak references, and subclasses."""

from __future__ import annotations

import errno
import inspect
import re
import socket as stdlib_socket
import ssl
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import TypedAttributeLookupError, TypedAttributeProvider, TypedAttributeSet, typed_attribute
from anyio.abc import SocketAttribute
from anyio.streams.tls import TLSAttribute

import mozsocket
import mozsocket.testing
from mozsocket import (
    ConnectionLostError,
    Event,
    EventHandler,
    InvalidStateError,
    MozTCPSocket,
    ReadyState,
    TCPServerSocket,
    TCPServerSocketEvent,
    TCPSocket,
    TCPSocketError,
    TCPSocketErrorEvent,
    TCPSocketEvent,
)
from mozsocket.testing import EventRecorder, connected_pair, connected_peer

from ..certificates import client_context, server_context
from ..parameters import shown
from ..peers import PEER_TIMEOUT, blocking, dial, listening, port_of, read_all, read_exactly, secure, send_all

pytestmark = pytest.mark.anyio

unix = pytest.mark.skipif(not hasattr(stdlib_socket, "AF_UNIX"), reason="the system has no UNIX-domain sockets")

SOCKET_HANDLERS = "its handlers are onclose, ondata, ondrain, onend, onerror, onopen, onsecure"
SERVER_HANDLERS = "its handlers are onconnect, onerror"
NO_HANDLERS = "and no events: set handlers on the sockets and servers that open() and listen() return"

OBJECTS: dict[type, Callable[[], Any]] = {
    TCPSocket: lambda: TCPSocket("localhost", 80),
    TCPServerSocket: lambda: TCPServerSocket(0),
    MozTCPSocket: MozTCPSocket,
}

each_class = pytest.mark.parametrize("cls", OBJECTS)


def ignore(event: Any) -> None:
    """A handler that does nothing."""


def message_of(function: Callable[..., object], *args: Any) -> str:
    """The message of the AttributeError that a call raises."""
    with pytest.raises(AttributeError) as caught:
        function(*args)
    return str(caught.value)


# Attributes


@each_class
def test_there_is_no_dict(cls: type) -> None:
    assert not hasattr(OBJECTS[cls](), "__dict__")


@pytest.mark.parametrize(
    ("cls", "name", "hint"),
    [
        (TCPSocket, "onmessage", f"; {SOCKET_HANDLERS}"),
        (TCPSocket, "onData", f"; {SOCKET_HANDLERS}"),
        (TCPSocket, "onconnect", f"; {SOCKET_HANDLERS}"),
        (TCPSocket, "_private", f"; {SOCKET_HANDLERS}"),
        (TCPServerSocket, "onconnection", f"; {SERVER_HANDLERS}"),
        (TCPServerSocket, "ondata", f"; {SERVER_HANDLERS}"),
        (MozTCPSocket, "onopen", f", {NO_HANDLERS}"),
        (MozTCPSocket, "certified", f", {NO_HANDLERS}"),
    ],
)
def test_unknown_attributes_are_refused(cls: type, name: str, hint: str) -> None:
    target = OBJECTS[cls]()
    with pytest.raises(AttributeError) as caught:
        setattr(target, name, ignore)
    assert str(caught.value) == f"{cls.__name__} has no attribute {name!r}{hint}"
    assert caught.value.name == name
    assert caught.value.obj is target
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    assert not hasattr(target, name)


@each_class
def test_an_unknown_attribute_can_be_neither_read_nor_deleted(cls: type) -> None:
    target = OBJECTS[cls]()
    with pytest.raises(AttributeError, match="onmessage"):
        target.onmessage  # noqa: B018
    with pytest.raises(AttributeError, match="onmessage"):
        del target.onmessage


def fixed_names(cls: type) -> list[str]:
    """The public names of a class except its handlers: properties and methods."""
    return [name for name in dir(cls) if name[0] != "_" and not isinstance(getattr(cls, name), EventHandler)]


def test_the_properties_are_looked_at() -> None:
    assert {"host", "port", "ssl", "readyState", "send"} <= set(fixed_names(TCPSocket))
    assert {"localPort", "close"} <= set(fixed_names(TCPServerSocket))
    assert {"cancel_scope", "open"} <= set(fixed_names(MozTCPSocket))


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls in OBJECTS for name in fixed_names(cls)])
def test_what_cannot_be_set_says_so_as_ever(cls: type, name: str) -> None:
    """The message is Python's own, and does not list the handlers."""
    target = OBJECTS[cls]()
    assert message_of(setattr, target, name, None) == message_of(object.__setattr__, target, name, None)
    assert "handlers" not in message_of(setattr, target, name, None)
    assert message_of(delattr, target, name) == message_of(object.__delattr__, target, name)


def handler_names(cls: type) -> list[str]:
    return [name for name in dir(cls) if isinstance(getattr(cls, name), EventHandler)]


@pytest.mark.parametrize(("cls", "name"), [(cls, name) for cls in OBJECTS for name in handler_names(cls)])
def test_a_handler_is_taken_back_by_none_and_not_deleted(cls: type, name: str) -> None:
    target, other = OBJECTS[cls](), OBJECTS[cls]()
    assert getattr(target, name) is None
    setattr(target, name, ignore)
    with pytest.raises(AttributeError):
        delattr(target, name)
    assert getattr(target, name) is ignore
    assert getattr(other, name) is None
    setattr(target, name, None)
    assert getattr(target, name) is None


# Weak references


def failure() -> TCPSocketError:
    return TCPSocketError("ConnectionRefusedError", "Network", errno.ECONNREFUSED, "Connection refused")


@asynccontextmanager
async def public_objects() -> AsyncIterator[list[Any]]:
    """At least one object of each public class."""
    async with AsyncExitStack() as stack:
        tcp = await stack.enter_async_context(MozTCPSocket())
        socket, server = await stack.enter_async_context(connected_pair())
        ours, peer = await stack.enter_async_context(connected_peer())
        listener = TCPServerSocket(0)
        yield [
            tcp,
            socket,
            listener,
            server.stream(),
            ours,
            peer,
            EventRecorder(socket),
            Event("open", socket),
            TCPSocketEvent("data", socket, b"data"),
            TCPSocketErrorEvent("error", socket, failure()),
            TCPServerSocketEvent("connect", listener, socket),
            TCPSocket.ondata,  # type: ignore[misc]  # generic, so ambiguous
            EventHandler[Event[Any]]("A handler."),
            failure(),
            InvalidStateError("closed"),
            ConnectionLostError("lost"),
            ReadyState.OPEN,
        ]


async def test_every_public_object_can_be_referred_to_weakly() -> None:
    async with public_objects() as objects:
        for each in objects:
            assert weakref.ref(each)() is each
        kept = weakref.WeakSet(objects)
        assert all(each in kept for each in objects)
        names = {cls.__name__ for each in objects for cls in type(each).__mro__}
    public = [getattr(module, name) for module in (mozsocket, mozsocket.testing) for name in module.__all__]
    assert {each.__name__ for each in public if inspect.isclass(each)} <= names  # no class was forgotten


def send_and_close(event: TCPServerSocketEvent) -> None:
    event.socket.send(b"data")
    event.socket.close()


async def test_the_events_that_happen_can_be_referred_to_weakly() -> None:
    async with MozTCPSocket() as tcp:
        server = tcp.listen(0, host="127.0.0.1")
        server.onconnect = send_and_close
        recorders = [EventRecorder(server), EventRecorder(tcp.open("127.0.0.1", server.localPort))]
        for recorder, last in zip(recorders, ("connect", "close"), strict=True):
            await recorder.first(last)
        server.close()
    events = [event for recorder in recorders for event in recorder.events]
    assert [event.type for event in events] == ["connect", "open", "data", "close"]
    assert all(weakref.ref(event)() is event for event in events)


# The arguments of a subclass's constructor


class Called(TCPSocket):
    """Records the arguments of its constructor."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.call = (args, options)
        self.ondata = ignore
        self.addEventListener("close", ignore)


class CalledServer(TCPServerSocket):
    """Records the arguments of its constructor."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.call = (args, options)
        self.onconnect = ignore


def defaults(function: Callable[..., object]) -> dict[str, Any]:
    """The options of a call, with their defaults."""
    parameters = inspect.signature(function).parameters
    return {name: each.default for name, each in parameters.items() if each.default is not inspect.Parameter.empty}


@contextmanager
def unix_listener(path: str) -> Iterator[stdlib_socket.socket]:
    with stdlib_socket.socket(stdlib_socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        yield listener


def adopt(sock: stdlib_socket.socket, **given: Any) -> Called:
    adopted = Called.from_socket(sock, **given)
    assert isinstance(adopted, Called)
    assert adopted.ondata is ignore
    assert adopted.readyState == "connecting"
    assert adopted.call[1] == defaults(TCPSocket.from_socket) | given
    assert adopted.call[1].keys() < defaults(TCPSocket).keys()
    return adopted


@pytest.mark.skipif(sys.platform == "win32", reason="there a socketpair has addresses")
async def test_adopting_one_of_a_pair() -> None:
    ours, theirs = stdlib_socket.socketpair()
    with ours, theirs:
        socket = adopt(ours, binaryType="string", linger=1, useSecureTransport=True, server_hostname="name.example")
    assert socket.call[0] == ("localhost", 1)  # nothing was connected yet
    assert (socket.host, socket.port, socket.binaryType) == ("", 0, "string")
    assert re.fullmatch(r"<Called #\d+ a socket without an address connecting>", repr(socket))


async def test_adopting_a_tcp_socket(listener: stdlib_socket.socket) -> None:
    port = port_of(listener)
    with await dial(port) as ours:
        socket = adopt(ours, max_buffered_amount=100, allow_half_open=True)
    assert socket.call[0] == (socket.host, socket.port) == ("127.0.0.1", port)
    assert re.fullmatch(rf"<Called #\d+ 127.0.0.1:{port} connecting>", repr(socket))


@unix
async def test_adopting_a_socket_that_is_connected_to_a_path(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with unix_listener(path), stdlib_socket.socket(stdlib_socket.AF_UNIX) as ours:
        ours.connect(path)
        socket = adopt(ours)
    assert socket.call[0] == (path, 1)
    assert (socket.host, socket.port) == (path, 0)


async def test_adopting_a_tls_client(listener: stdlib_socket.socket) -> None:
    with await dial(port_of(listener)) as ours:
        assert adopt(ours, useSecureTransport=True, ssl_context=client_context(), server_hostname="localhost").ssl


async def test_adopting_a_tls_server(listener: stdlib_socket.socket) -> None:
    """The constructor is for sockets that connect, so it does not get the server's context."""
    context = server_context()
    assert context.protocol is ssl.PROTOCOL_TLS_SERVER
    with await dial(port_of(listener)) as ours:
        socket = Called.from_socket(ours, useSecureTransport=True, ssl_context=context)
    assert isinstance(socket, Called)
    expected = defaults(TCPSocket.from_socket) | {"useSecureTransport": True}
    del expected["ssl_context"]
    assert socket.call[1] == expected
    assert socket.ssl


def adopt_listener(sock: stdlib_socket.socket, **given: Any) -> CalledServer:
    adopted = CalledServer.from_socket(sock, **given)
    assert isinstance(adopted, CalledServer)
    assert adopted.onconnect is ignore
    assert adopted.call[1] == defaults(TCPServerSocket.from_socket) | given
    assert adopted.call[1].keys() < defaults(TCPServerSocket).keys()
    return adopted


async def test_adopting_a_listener(listener: stdlib_socket.socket) -> None:
    port = port_of(listener)
    tls: dict[str, Any] = {"useSecureTransport": True, "ssl_context": server_context()}
    server = adopt_listener(listener, max_connections=3, binaryType="string", **tls)
    assert server.call[0] == (port,)
    assert server.localPort == port
    assert re.fullmatch(rf"<CalledServer #\d+ 127.0.0.1:{port} listening>", repr(server))


@unix
async def test_adopting_a_listener_on_a_path(tmp_path: Path) -> None:
    with unix_listener(str(tmp_path / "socket")) as listener:
        server = adopt_listener(listener, proxy_protocol=True)
    assert server.call[0] == (0,)
    assert server.localPort == 0


async def test_a_socket_is_not_taken_where_the_constructor_fails(listener: stdlib_socket.socket) -> None:
    class Failing(TCPSocket):
        def __init__(self, *args: Any, **options: Any) -> None:
            raise ValueError("on purpose")

    class FailingServer(TCPServerSocket):
        def __init__(self, *args: Any, **options: Any) -> None:
            raise ValueError("on purpose")

    with await dial(port_of(listener)) as ours:
        for adopting, sock in ((Failing.from_socket, ours), (FailingServer.from_socket, listener)):
            with pytest.raises(ValueError, match="on purpose"):
                adopting(sock)
            assert sock.fileno() != -1
            assert sock.gettimeout() == PEER_TIMEOUT  # it was not made non-blocking


# Attributes of a subclass


class Slotted(TCPSocket):
    """A subclass with slots for its own attributes."""

    __slots__ = ("_mine", "count")


class SlottedServer(TCPServerSocket):
    __slots__ = ("count",)


class SlottedScope(MozTCPSocket):
    __slots__ = ("count",)


@pytest.mark.parametrize("target", [Slotted("localhost", 1), SlottedServer(0), SlottedScope()], ids=shown)
def test_a_subclass_may_have_slots(target: Any) -> None:
    assert not hasattr(target, "__dict__")
    target.count = 1
    target.count += 1
    assert target.count == 2
    del target.count
    assert not hasattr(target, "count")
    assert message_of(setattr, target, "counts", 1).startswith(f"{type(target).__name__} has no attribute 'counts'")


def test_a_subclass_without_slots_may_have_any_attribute() -> None:
    target: Any = Called("localhost", 1)
    target.more = [1]
    assert target.more == [1]
    del target.more
    assert not hasattr(target, "more")
    message = message_of(setattr, target, "readyState", "open")
    assert message == message_of(object.__setattr__, target, "readyState", "open")


def test_a_subclass_names_the_events_it_adds() -> None:
    class Bell(TCPSocket):
        __slots__ = ()
        onring: EventHandler[Event[TCPSocket]] = EventHandler("It rings.")

    bell = Bell("localhost", 1)
    bell.onring = ignore
    hint = SOCKET_HANDLERS.replace("onopen", "onopen, onring")
    assert message_of(setattr, bell, "onrings", ignore) == f"Bell has no attribute 'onrings'; {hint}"


def test_a_subclass_may_have_properties_that_can_be_set() -> None:
    class Named(TCPSocket):
        __slots__ = ("_name",)

        @property
        def name(self) -> str:
            return self._name

        @name.setter
        def name(self, value: str) -> None:
            self._name = value.upper()

    socket = Named("localhost", 1)
    socket.name = "mine"
    assert socket.name == "MINE"


def test_what_a_property_of_a_subclass_raises_is_its_own() -> None:
    class Failing(TCPSocket):
        __slots__ = ()

        @property
        def name(self) -> str:
            return ""

        @name.setter
        def name(self, value: str) -> None:
            raise AttributeError("on purpose")

    assert message_of(setattr, Failing("localhost", 1), "name", "") == "on purpose"


# Type parameters


def test_type_parameters_are_for_type_checkers_alone() -> None:
    socket = TCPSocket[str]("localhost", 1, binaryType="string")
    server = TCPServerSocket[str](0, binaryType="string")
    assert (type(socket), type(server)) == (TCPSocket, TCPServerSocket)
    assert not any(hasattr(made, name) for made in (socket, server) for name in ("__dict__", "__orig_class__"))


# Subclasses in use


class Echo(TCPSocket):
    """Sends back what it receives."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.received = 0
        self.ondata = self.echo

    def echo(self, event: TCPSocketEvent) -> None:
        assert event.target is self
        self.received += len(event.data)
        self.send(event.data)


class Shouting(Echo):
    """Sends it back in upper case. It has slots, which also work in a subclass of a class without them."""

    __slots__ = ("shouted",)

    def echo(self, event: TCPSocketEvent) -> None:
        self.shouted = event.data.upper()
        self.send(self.shouted)


@pytest.mark.parametrize(("cls", "answer"), [(Echo, b"hello"), (Shouting, b"HELLO")])
async def test_an_adopted_socket_of_a_subclass(cls: type[Echo], answer: bytes) -> None:
    ours, theirs = stdlib_socket.socketpair()
    theirs.settimeout(PEER_TIMEOUT)
    with theirs:
        socket = cls.from_socket(ours)
        async with socket as entered:
            assert entered is socket
            await send_all(theirs, b"hello")
            assert await blocking(read_exactly, theirs, 5) == answer
            theirs.close()
    assert socket.readyState == "closed"
    assert vars(socket)["received"] == (5 if cls is Echo else 0)


async def test_what_the_constructor_of_a_subclass_does_counts_when_it_adopts() -> None:
    class Careful(TCPSocket):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "binaryType": "string"})
            self.suspend()
            self.mine = self.stream()

    ours, theirs = stdlib_socket.socketpair()
    with theirs:
        async with Careful.from_socket(ours, linger=0.1) as socket:
            socket.resume()
            assert socket.binaryType == "string"
            assert socket.stream() is socket.mine
            theirs.sendall(b"hello")
            assert await socket.mine.receive() == b"hello"
            await socket.mine.aclose()


async def test_the_context_of_a_subclass_counts_when_it_adopts() -> None:
    """The default context would not trust the peer."""

    class Secure(TCPSocket):
        def __init__(self, *args: Any, **options: Any) -> None:
            tls = {"useSecureTransport": True, "ssl_context": client_context(), "server_hostname": "localhost"}
            super().__init__(*args, **{**options, **tls})

    ours, theirs = stdlib_socket.socketpair()
    theirs.settimeout(PEER_TIMEOUT)
    async with Secure.from_socket(ours) as socket:
        with await secure(theirs, server_context(), server_side=True) as peer:
            await socket.opened()
            socket.close()
            assert await blocking(read_all, peer) == b""


async def test_a_subclass_without_tls_is_not_given_a_context_for_it() -> None:
    class Plain(TCPSocket):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **{**options, "useSecureTransport": False, "ssl_context": None})

    ours, theirs = stdlib_socket.socketpair()
    with ours, theirs:
        for context in client_context(), server_context():
            with pytest.raises(ValueError, match="ssl_context alone encrypts nothing"):
                Plain.from_socket(ours, useSecureTransport=True, ssl_context=context)
            assert ours.fileno() != -1


def test_a_subclass_that_closes_in_its_constructor_adopts_nothing() -> None:
    class Closed(TCPSocket):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.close()

    class ClosedServer(TCPServerSocket):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.close()

    ours, theirs = stdlib_socket.socketpair()
    with theirs, stdlib_socket.create_server(("127.0.0.1", 0)) as listener:
        assert Closed.from_socket(ours).readyState == "closed"
        assert theirs.recv(1) == b""
        ClosedServer.from_socket(listener)
        assert ours.fileno() == listener.fileno() == -1


async def test_two_subclasses_speak_with_each_other() -> None:
    class Asking(TCPSocket[str]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.onopen = lambda event: self.send("question")
            self.ondata = self.answered
            self.answer = ""

        def answered(self, event: TCPSocketEvent[str]) -> None:
            self.answer += event.data
            if len(self.answer) == len("question"):
                self.close()

    ours, theirs = stdlib_socket.socketpair()
    asking, shouting = Asking.from_socket(ours, binaryType="string"), Shouting.from_socket(theirs)
    async with asking, shouting:
        with anyio.fail_after(PEER_TIMEOUT):
            await asking.closed()
            await shouting.closed()
    assert vars(asking)["answer"] == "QUESTION"


async def test_a_server_of_a_subclass_and_a_client_of_one() -> None:
    class EchoServer(TCPServerSocket):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            self.sockets: list[TCPSocket] = []
            self.onconnect = self.accepted

        def accepted(self, event: TCPServerSocketEvent) -> None:
            assert event.target is self
            self.sockets.append(event.socket)
            event.socket.send(b"hello")

    with listening() as listener:
        adopted = EchoServer.from_socket(listener.dup())
        for server in (EchoServer(0, host="127.0.0.1"), adopted):
            async with server:
                async with Echo("127.0.0.1", server.localPort) as client:
                    await EventRecorder(client).first("data")
                assert client.received == 5
                assert [type(socket) for socket in vars(server)["sockets"]] == [TCPSocket]
                assert repr(server).startswith("<EchoServer ")


# AnyIO's typed attributes


class Own(TypedAttributeSet):
    """A program's typed attribute."""

    colour: str = typed_attribute()


class AnyIOs(TypedAttributeProvider):
    """A provider with AnyIO's own ``extra()``."""

    def __init__(self, provider: Any) -> None:
        self._provider = provider

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        attributes: Mapping[Any, Callable[[], Any]] = self._provider.extra_attributes
        return attributes


ATTRIBUTES = {
    name: value
    for attributes in (SocketAttribute, TLSAttribute, Own)
    for name, value in vars(attributes).items()
    if name[0] != "_"
}


def outcome(provider: Any, attribute: Any) -> Any:
    """The value of an attribute; without one, the exception's message."""
    try:
        return provider.extra(attribute)
    except TypedAttributeLookupError as exc:
        return str(exc)


def assert_as_anyio_has_it(provider: Any) -> set[str]:
    """Check that it equals AnyIO's behaviour, and return the names of the available attributes."""
    theirs = AnyIOs(provider)
    found = set()
    for name, attribute in ATTRIBUTES.items():
        value = outcome(provider, attribute)
        assert value == outcome(theirs, attribute), name
        for default in (None, 0, "", ignore):
            assert provider.extra(attribute, default) == theirs.extra(attribute, default), name
        if attribute in provider.extra_attributes:
            found.add(name)
        else:
            assert value == "Attribute not found"
    return found


IN_ALL = {"family", "local_address", "raw_socket", "remote_address"}
WITH_PORTS = {"local_port", "remote_port"}


@pytest.mark.skipif(sys.platform == "win32", reason="there a socketpair has ports")
async def test_extra_is_anyios_for_a_pair() -> None:
    async with connected_pair() as (ours, theirs):
        assert assert_as_anyio_has_it(ours) == IN_ALL
        assert assert_as_anyio_has_it(theirs.stream()) == IN_ALL


async def test_extra_is_anyios_over_tcp() -> None:
    async with connected_peer() as (socket, _):
        assert assert_as_anyio_has_it(socket) == IN_ALL | WITH_PORTS
        assert socket.extra(SocketAttribute.remote_port) == socket.port


async def test_extra_is_anyios_over_tls() -> None:
    ours, theirs = stdlib_socket.socketpair()
    client = TCPSocket.from_socket(
        ours, useSecureTransport=True, ssl_context=client_context(), server_hostname="localhost"
    )
    server = TCPSocket.from_socket(theirs, useSecureTransport=True, ssl_context=server_context())
    async with client, server:
        await client.opened()
        await server.opened()
        for socket in (client, server):
            assert assert_as_anyio_has_it(socket) >= {"tls_version", "cipher", "peer_certificate"}
        client.close()


async def test_extra_without_a_connection() -> None:
    async with connected_peer() as (socket, peer):
        peer.close()
        await socket.closed()
        for unconnected in (socket, TCPSocket("localhost", 80)):
            assert assert_as_anyio_has_it(unconnected) == set()
            with pytest.raises(LookupError):
                unconnected.extra(SocketAttribute.family)
            assert unconnected.extra(SocketAttribute.family, None) is None
