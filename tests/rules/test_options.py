"""The arguments that calls accept: each is checked, and the error message says what is accepted."""

from __future__ import annotations

import inspect
import math
import re
import socket
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, fields
from enum import IntEnum
from subprocess import run
from typing import Any

import pytest

from mozsocket import MozTCPSocket, TCPServerSocket, TCPSocket
from mozsocket._options import (
    AdoptListenerOptions,
    AdoptOptions,
    ConnectOptions,
    ListenOptions,
    SocketOptions,
    check_count,
    check_encodable_host,
    check_flag,
    check_host,
    check_port,
    check_stream_socket,
)

from ..parameters import shown


class Number(IntEnum):
    """Named numbers, as a program may define its ports."""

    HTTP = 80


class Text(str):
    """A program's subclass of str."""


OF_ALL = {
    "binaryType": "arraybuffer",
    "max_buffered_amount": None,
    "linger": 5,
    "allow_half_open": False,
    "useSecureTransport": False,
    "ssl_context": None,
    "handshake_timeout": 30,
    "idle_timeout": None,
    "keep_alive": None,
    "tls_standard_compatible": True,
}
OF_ADOPTED = {**OF_ALL, "server_hostname": None}
OF_CLIENTS = {**OF_ADOPTED, "connect_timeout": None, "local_host": None, "local_port": 0}
OF_ADOPTED_SERVERS = {**OF_ALL, "proxy_protocol": False, "max_connections": None, "max_handshakes": 1000}
OF_SERVERS = {**OF_ADOPTED_SERVERS, "host": None, "backlog": 0, "reuse_port": False}

CALLS: dict[Callable[..., Any], tuple[list[str], dict[str, Any]]] = {
    TCPSocket: (["host", "port"], OF_CLIENTS),
    TCPSocket.from_socket: (["sock"], OF_ADOPTED),
    MozTCPSocket().open: (["host", "port"], OF_CLIENTS),
    TCPServerSocket: (["port"], OF_SERVERS),
    TCPServerSocket.from_socket: (["sock"], OF_ADOPTED_SERVERS),
    MozTCPSocket().listen: (["port"], OF_SERVERS),
}
"""The calls that take options, with their arguments and options."""

each_call = pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__qualname__)


@each_call
def test_the_signature_has_each_option_once_with_its_default(call: Callable[..., Any]) -> None:
    positional, options = CALLS[call]
    parameters = inspect.signature(call).parameters.values()
    assert [each.name for each in parameters if each.kind is each.POSITIONAL_OR_KEYWORD] == positional
    assert {each.name: each.default for each in parameters if each.kind is each.KEYWORD_ONLY} == options
    assert len(parameters) == len(positional) + len(options)
    assert all(isinstance(each.annotation, str) for each in parameters)
    assert inspect.signature(call).parameters["binaryType"].annotation == "BinaryType"


@each_call
def test_the_help_describes_each_parameter_once_and_in_order(call: Callable[..., Any]) -> None:
    text = inspect.getdoc(call) or ""
    assert re.findall(r"^:param (\w+): \S", text, re.MULTILINE) == list(inspect.signature(call).parameters)
    assert text.rindex("\n:param ") < min(text.index(f"\n:{field}") for field in ("return", "raises") if field in text)
    assert "\n\n:param " in text


def test_the_help_of_a_server_says_what_an_option_is_to_a_server() -> None:
    assert "``open`` fires after" in str(inspect.getdoc(MozTCPSocket.open))
    assert "``connect`` fires after" in str(inspect.getdoc(MozTCPSocket.listen))


@each_call
def test_the_call_looks_like_the_method_that_it_is(call: Any) -> None:
    method = call.__init__ if inspect.isclass(call) else call.__func__
    assert method.__qualname__ in (call.__qualname__, f"{call.__qualname__}.__init__")
    assert method.__module__ == call.__module__
    shown = inspect.signature(method)
    assert method.__annotations__ == {
        **{each.name: each.annotation for each in list(shown.parameters.values())[1:]},
        "return": shown.return_annotation,
    }


@each_call
@pytest.mark.parametrize(
    ("given", "meant"), [("lingr", "linger"), ("binary_type", "binaryType"), ("useSecureTransports", None)]
)
def test_an_option_with_a_mistake_in_its_name(call: Callable[..., Any], given: str, meant: str | None) -> None:
    name = f"{call.__qualname__}()"
    with pytest.raises(TypeError) as raised:
        call(**{given: 1})
    assert str(raised.value) == f"{name} takes no {given}: did you mean {meant or 'useSecureTransport'}?"
    assert raised.value.__suppress_context__


@each_call
@pytest.mark.parametrize("given", ["timeout", "self", "cls", "owner", "options"])
def test_an_option_that_there_is_not(call: Callable[..., Any], given: str) -> None:
    positional, _ = CALLS[call]
    with pytest.raises(TypeError) as raised:
        call(*positional, **{given: 1})
    there_are = ", ".join(inspect.signature(call).parameters)
    assert str(raised.value) == f"{call.__qualname__}() takes no {given}: it takes {there_are}"


@pytest.mark.parametrize(
    ("call", "given"),
    [
        (TCPSocket, "proxy_protocol"),
        (TCPSocket.from_socket, "connect_timeout"),
        (TCPSocket.from_socket, "local_host"),
        (TCPServerSocket, "server_hostname"),
        (TCPServerSocket.from_socket, "backlog"),
    ],
)
def test_an_option_of_another_call(call: Callable[..., Any], given: str) -> None:
    with pytest.raises(TypeError, match=rf"^{call.__qualname__}\(\) takes no {given}: it takes "):
        call(1, **{given: 1})


@each_call
def test_too_few_and_too_many_arguments(call: Callable[..., Any]) -> None:
    positional, _ = CALLS[call]
    name = re.escape(call.__qualname__)
    with pytest.raises(TypeError, match=rf"^{name}\(\): missing a required argument: '{positional[0]}'$"):
        call()
    hint = "; options are keyword arguments, such as linger=5"
    with pytest.raises(TypeError, match=rf"^{name}\(\): too many positional arguments{hint}$"):
        call(*positional, {"useSecureTransport": True})
    with pytest.raises(TypeError, match=rf"^{name}\(\): multiple values for argument '{positional[0]}'$"):
        call(*positional, **{positional[0]: 1})


def test_a_connection_without_an_option_finds_its_default() -> None:
    for declaration in (ConnectOptions, AdoptOptions, ListenOptions, AdoptListenerOptions):
        for each in fields(declaration):
            if hasattr(SocketOptions(), each.name):
                assert getattr(SocketOptions(), each.name) == each.default


def test_no_docstrings_are_needed() -> None:
    program = "from mozsocket import TCPSocket; assert TCPSocket.__doc__ is None; print(TCPSocket('localhost', 80))"
    done = run([sys.executable, "-OO", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "<TCPSocket #1 localhost:80 connecting>\n"


def connect_options(**options: Any) -> ConnectOptions:
    return ConnectOptions("localhost", 80, **options)


def test_what_is_accepted_is_kept() -> None:
    options = connect_options(
        binaryType="string", connect_timeout=0.5, local_host="127.0.0.1", max_buffered_amount=1, linger=0
    )
    assert options.host == "localhost"
    assert options.port == 80
    assert options.binaryType == "string"
    assert options.connect_timeout == 0.5
    assert options.local_host == "127.0.0.1"
    assert options.max_buffered_amount == 1
    assert options.linger == 0


def test_the_options_that_connections_share_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        SocketOptions().linger = 1  # type: ignore[misc]


@pytest.mark.parametrize("value", ["blob", "", "ArrayBuffer", "STRING", None, b"string", 1, []], ids=shown)
def test_binary_type(value: Any) -> None:
    with pytest.raises(ValueError, match="binaryType") as raised:
        SocketOptions(binaryType=value)
    assert str(raised.value) == f'binaryType must be "arraybuffer" or "string", not {value!r}'


SECONDS = ["connect_timeout", "linger", "handshake_timeout"]


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [0, 0.0, 1e-9, 3, 2.5, math.inf], ids=shown)
def test_seconds(name: str, value: float) -> None:
    assert getattr(connect_options(**{name: value}), name) == value


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [-1, -0.001, -math.inf, math.nan], ids=shown)
def test_seconds_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match="seconds") as raised:
        connect_options(**{name: value})
    assert str(raised.value) == f"{name} must be a number of seconds, 0 or more, not {value}"


@pytest.mark.parametrize("name", SECONDS)
def test_seconds_that_no_clock_can_count(name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a number of seconds, and is too large for one$"):
        connect_options(**{name: 10**400})


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [True, False, "1", b"1", [1], 1j], ids=shown)
def test_seconds_of_another_type(name: str, value: Any) -> None:
    with pytest.raises(TypeError) as raised:
        connect_options(**{name: value})
    assert str(raised.value) == f"{name} must be a number of seconds, not {type(value).__name__}"


def test_linger_has_no_none() -> None:
    with pytest.raises(TypeError, match=r"^linger must be a number of seconds, not NoneType$"):
        SocketOptions(linger=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [1, 65536, 1 << 40])
def test_max_buffered_amount(value: int) -> None:
    assert SocketOptions(max_buffered_amount=value).max_buffered_amount == value


@pytest.mark.parametrize(
    ("value", "error", "problem"),
    [
        (0, ValueError, "at least 1, not 0"),
        (-1, ValueError, "at least 1, not -1"),
        (True, TypeError, "an int, not bool"),
        (1.0, TypeError, "an int, not float"),
        (math.inf, TypeError, "an int, not float"),
        ("1", TypeError, "an int, not str"),
    ],
)
def test_max_buffered_amount_refused(value: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=f"^max_buffered_amount must be {problem}$"):
        SocketOptions(max_buffered_amount=value)


@pytest.mark.parametrize("value", [1e-6, 1, 60.5, math.inf])
def test_idle_timeout(value: float) -> None:
    assert SocketOptions(idle_timeout=value).idle_timeout == value


@pytest.mark.parametrize(
    ("value", "error", "problem"),
    [
        (0, ValueError, "a number of seconds, more than 0, not 0"),
        (-1, ValueError, "a number of seconds, more than 0, not -1"),
        (math.nan, ValueError, "a number of seconds, more than 0, not nan"),
        (True, TypeError, "a number of seconds, not bool"),
        ("1", TypeError, "a number of seconds, not str"),
    ],
)
def test_idle_timeout_refused(value: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=f"^idle_timeout must be {problem}$"):
        SocketOptions(idle_timeout=value)


@pytest.mark.parametrize(
    ("value", "error", "problem"),
    [
        (0, ValueError, "from 1 to 32767, not 0"),
        (32768, ValueError, "from 1 to 32767, not 32768"),
        (True, TypeError, "an int, not bool"),
        (1.5, TypeError, "an int, not float"),
    ],
)
def test_keep_alive_refused(value: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=f"^keep_alive must be {problem}$"):
        SocketOptions(keep_alive=value)


@pytest.mark.parametrize(
    ("value", "error", "problem"),
    [
        (-1, ValueError, "from 0 to 65535, not -1"),
        (65536, ValueError, "from 0 to 65535, not 65536"),
        ("80", TypeError, "an int, not str"),
    ],
)
def test_local_port_refused(value: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=f"^local_port must be {problem}$"):
        connect_options(local_port=value)


HOSTS = [
    *("localhost", "127.0.0.1", "bücher.example", "_a.example", Text("a"), " "),
    *("::1", "::", "fe80::1%lo", "FE80::1%eth0/1", "::ffff:127.0.0.1"),
]


@pytest.mark.parametrize("value", HOSTS)
def test_hosts(value: str) -> None:
    check_host("host", value)
    assert connect_options(local_host=value).local_host == value


BAD_HOSTS = [
    ("", ValueError, "a host name or an IP address, not ''"),
    ("\0", ValueError, r"a host name or an IP address, not '\x00'"),
    ("localhost\0.example", ValueError, r"a host name or an IP address, not 'localhost\x00.example'"),
    (b"localhost", TypeError, "a str, a host name or an IP address, not bytes"),
    (0, TypeError, "a str, a host name or an IP address, not int"),
    (("127.0.0.1", 80), TypeError, "a str, a host name or an IP address, not tuple"),
]


@pytest.mark.parametrize(
    ("value", "error", "problem"), [*BAD_HOSTS, (None, TypeError, "a str, a host name or an IP address, not NoneType")]
)
def test_hosts_refused(value: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error) as raised:
        check_host("host", value)
    assert str(raised.value) == f"host must be {problem}"


@pytest.mark.parametrize("value", HOSTS)
def test_hosts_that_are_no_paths(value: str) -> None:
    check_encodable_host("host", value)


@pytest.mark.parametrize(
    "value", ["[::1]", "[::1]:80", "localhost:80", "127.0.0.1:80", ":80", "http://localhost", "localhost/path"]
)
def test_hosts_with_more_than_a_host(value: str) -> None:
    with pytest.raises(ValueError, match=r"^host must") as raised:
        ListenOptions(0, host=value)
    assert str(raised.value).endswith(f"without brackets or a port, not {value!r}")


@pytest.mark.parametrize("value", ["a..b", ".", "\udc80", f"{'x' * 64}.test", "größer..test"], ids=ascii)
@pytest.mark.parametrize("name", ["host", "server_hostname"])
def test_hosts_that_idna_forbids(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must"):
        check_encodable_host(name, value)
    with pytest.raises(ValueError, match=r"^host must"):
        ListenOptions(0, host=value)


@pytest.mark.parametrize(("value", "error", "problem"), BAD_HOSTS)
def test_local_hosts_refused(value: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error) as raised:
        connect_options(local_host=value)
    assert str(raised.value) == f"local_host must be {problem}"


@pytest.mark.parametrize("value", [1, 1023, 65535, Number.HTTP])
def test_ports(value: int) -> None:
    check_port(value, lowest=1)
    check_port(0, lowest=0)


@pytest.mark.parametrize(
    ("lowest", "value", "error", "problem"),
    [
        (1, 0, ValueError, "from 1 to 65535, not 0"),
        (1, 65536, ValueError, "from 1 to 65535, not 65536"),
        (1, -1, ValueError, "from 1 to 65535, not -1"),
        (0, -1, ValueError, "from 0 to 65535, not -1"),
        (0, 1 << 70, ValueError, f"from 0 to 65535, not {1 << 70}"),
        (0, True, TypeError, "an int, not bool"),
        (0, False, TypeError, "an int, not bool"),
        (1, "80", TypeError, "an int, not str"),
        (1, 80.0, TypeError, "an int, not float"),
        (1, math.nan, TypeError, "an int, not float"),
        (1, None, TypeError, "an int, not NoneType"),
    ],
)
def test_ports_refused(lowest: int, value: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error, match=f"^port must be {problem}$"):
        check_port(value, lowest=lowest)


def test_counts_have_bounds_that_belong_to_them() -> None:
    for value in (2, 3, 4):
        check_count("backlog", value, 2, 4)
    check_count("backlog", 1 << 70, 2)
    for value in (1, 5):
        with pytest.raises(ValueError, match=f"^backlog must be from 2 to 4, not {value}$"):
            check_count("backlog", value, 2, 4)
    with pytest.raises(ValueError, match=r"^backlog must be at least 2, not 1$"):
        check_count("backlog", 1, 2)


def test_flags() -> None:
    check_flag("certified", True)
    check_flag("certified", False)


@pytest.mark.parametrize("value", [None, 0, 1, "yes", [], math.nan], ids=shown)
def test_flags_refused(value: Any) -> None:
    with pytest.raises(TypeError) as raised:
        check_flag("certified", value)
    assert str(raised.value) == f"certified must be a bool, not {type(value).__name__}"


def test_stream_sockets() -> None:
    one, other = socket.socketpair()
    with one, other, socket.socket() as unconnected:
        for sock in one, other, unconnected:
            check_stream_socket(sock)


@pytest.mark.parametrize("value", [None, 3, "socket", [], object()], ids=shown)
def test_what_is_no_socket_is_refused(value: Any) -> None:
    with pytest.raises(TypeError) as raised:
        check_stream_socket(value)
    assert str(raised.value) == f"from_socket() takes a socket.socket, not {type(value).__name__}"


def test_a_closed_socket_is_refused() -> None:
    with socket.socket() as sock:
        pass
    with pytest.raises(ValueError, match=r"^from_socket\(\) takes an open socket, not one that is closed$"):
        check_stream_socket(sock)


@pytest.mark.skipif(not hasattr(socket, "AF_VSOCK"), reason="the system has no other family of streams")
def test_a_socket_of_another_family_is_refused() -> None:
    try:
        other = socket.socket(socket.AF_VSOCK)
    except OSError:
        pytest.skip("the system cannot make a socket of AF_VSOCK")
    with other, pytest.raises(ValueError, match="takes a socket of IPv4, IPv6 or a UNIX domain, not one of"):
        check_stream_socket(other)


def test_a_socket_of_datagrams_is_refused() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        with pytest.raises(ValueError, match="stream") as raised:
            check_stream_socket(sock)
        assert str(raised.value) == f"from_socket() takes a stream socket, not one of type {sock.type!r}"
