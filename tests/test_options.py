"""What the calls accept: each check, and that it says what would be right."""

from __future__ import annotations

import math
import socket
from dataclasses import FrozenInstanceError
from enum import IntEnum
from typing import Any

import pytest

from mozsocket._options import SocketOptions, check_count, check_flag, check_host, check_port, check_stream_socket


class Number(IntEnum):
    """A number with a name, as a program may have its ports."""

    HTTP = 80


class Text(str):
    """A str of a program's own type."""


def test_the_defaults() -> None:
    options = SocketOptions()
    assert options.binaryType == "arraybuffer"
    assert options.connect_timeout is None
    assert options.local_host is None
    assert options.max_buffered_amount is None
    assert options.linger == 5


def test_what_is_accepted_is_kept() -> None:
    options = SocketOptions("string", 0.5, "127.0.0.1", 1, 0)
    assert options.binaryType == "string"
    assert options.connect_timeout == 0.5
    assert options.local_host == "127.0.0.1"
    assert options.max_buffered_amount == 1
    assert options.linger == 0


def test_the_options_that_connections_share_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        SocketOptions().linger = 1  # type: ignore[misc]


@pytest.mark.parametrize("value", ["blob", "", "ArrayBuffer", "STRING", None, b"string", 1, []], ids=repr)
def test_binary_type(value: Any) -> None:
    with pytest.raises(ValueError, match="binaryType") as raised:
        SocketOptions(binaryType=value)
    assert str(raised.value) == f'binaryType must be "arraybuffer" or "string", not {value!r}'


SECONDS = ["connect_timeout", "linger"]


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [0, 0.0, 1e-9, 3, 2.5, math.inf], ids=repr)
def test_seconds(name: str, value: float) -> None:
    options: dict[str, Any] = {name: value}
    assert getattr(SocketOptions(**options), name) == value


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [-1, -0.001, -math.inf, math.nan], ids=repr)
def test_seconds_out_of_range(name: str, value: float) -> None:
    options: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match="seconds") as raised:
        SocketOptions(**options)
    assert str(raised.value) == f"{name} must be a number of seconds, 0 or more, not {value}"


@pytest.mark.parametrize("name", SECONDS)
@pytest.mark.parametrize("value", [True, False, "1", b"1", [1], 1j], ids=repr)
def test_seconds_of_another_type(name: str, value: Any) -> None:
    with pytest.raises(TypeError) as raised:
        SocketOptions(**{name: value})
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


@pytest.mark.parametrize("value", ["localhost", "127.0.0.1", "::1", "fe80::1%lo", "bücher.example", Text("a"), " "])
def test_hosts(value: str) -> None:
    check_host("host", value)
    assert SocketOptions(local_host=value).local_host == value


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


@pytest.mark.parametrize(("value", "error", "problem"), BAD_HOSTS)
def test_local_hosts_refused(value: Any, error: type[Exception], problem: str) -> None:
    with pytest.raises(error) as raised:
        SocketOptions(local_host=value)
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


@pytest.mark.parametrize("value", [None, 0, 1, "yes", [], math.nan], ids=repr)
def test_flags_refused(value: Any) -> None:
    with pytest.raises(TypeError) as raised:
        check_flag("certified", value)
    assert str(raised.value) == f"certified must be a bool, not {type(value).__name__}"


def test_stream_sockets() -> None:
    one, other = socket.socketpair()
    with one, other, socket.socket() as unconnected:
        for sock in one, other, unconnected:
            check_stream_socket(sock)


@pytest.mark.parametrize("value", [None, 3, "socket", [], object()], ids=repr)
def test_what_is_no_socket_is_refused(value: Any) -> None:
    with pytest.raises(TypeError) as raised:
        check_stream_socket(value)
    assert str(raised.value) == f"from_socket() takes a socket.socket, not {type(value).__name__}"


def test_a_closed_socket_is_refused() -> None:
    with socket.socket() as sock:
        pass
    with pytest.raises(ValueError, match=r"^from_socket\(\) takes an open socket, not one that is closed$"):
        check_stream_socket(sock)


def test_a_socket_of_datagrams_is_refused() -> None:
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        with pytest.raises(ValueError, match="stream") as raised:
            check_stream_socket(sock)
        assert str(raised.value) == f"from_socket() takes a stream socket, not one of type {sock.type!r}"
