"""What the calls accept, checked at the call: what was wrong, and what would be right."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Literal, get_args

__all__ = (
    "BinaryType",
    "SocketOptions",
    "check_count",
    "check_flag",
    "check_host",
    "check_port",
    "check_stream_socket",
)

BinaryType = Literal["arraybuffer", "string"]


@dataclass(frozen=True, slots=True)
class SocketOptions:
    """The options of a TCPSocket, which a server's connections share. See :class:`TCPSocket`."""

    binaryType: BinaryType = "arraybuffer"
    connect_timeout: float | None = None
    local_host: str | None = None
    max_buffered_amount: int | None = None
    linger: float = 5

    def __post_init__(self) -> None:
        if self.binaryType not in get_args(BinaryType):
            raise ValueError(f'binaryType must be "arraybuffer" or "string", not {self.binaryType!r}')
        if self.connect_timeout is not None:
            _check_seconds("connect_timeout", self.connect_timeout)
        if self.local_host is not None:
            check_host("local_host", self.local_host)
        if self.max_buffered_amount is not None:
            check_count("max_buffered_amount", self.max_buffered_amount, 1)
        _check_seconds("linger", self.linger)


def check_host(name: str, value: object) -> None:
    """:raises TypeError: if it is not a str
    :raises ValueError: if it is empty or has a NUL in it
    """
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, a host name or an IP address, not {type(value).__name__}")
    if not value or "\0" in value:
        raise ValueError(f"{name} must be a host name or an IP address, not {value!r}")


def check_port(value: object, *, lowest: int) -> None:
    """:raises TypeError: if it is not an int
    :raises ValueError: if it is out of range
    """
    check_count("port", value, lowest, 65535)


def check_count(name: str, value: object, lowest: int, highest: int | None = None) -> None:
    """:raises TypeError: if it is not an int
    :raises ValueError: if it is out of range
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    if value < lowest or (highest is not None and value > highest):
        bounds = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise ValueError(f"{name} must be {bounds}, not {value}")


def check_flag(name: str, value: object) -> None:
    """:raises TypeError: if it is not a bool"""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, not {type(value).__name__}")


def check_stream_socket(value: object) -> None:
    """:raises TypeError: if it is not a socket
    :raises ValueError: if it is closed, or not a stream socket
    """
    if not isinstance(value, socket.socket):
        raise TypeError(f"from_socket() takes a socket.socket, not {type(value).__name__}")
    if value.fileno() == -1:
        raise ValueError("from_socket() takes an open socket, not one that is closed")
    if value.type != socket.SOCK_STREAM:
        raise ValueError(f"from_socket() takes a stream socket, not one of type {value.type!r}")


def _check_seconds(name: str, value: object) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not value >= 0:  # nor is NaN
        raise ValueError(f"{name} must be a number of seconds, 0 or more, not {value}")
