"""Addresses and ports as arguments of a command, and the socket that listens there."""

from __future__ import annotations

import os
import re
import socket
from typing import Any

import click

__all__ = ("ANY_ADDRESS", "family_of", "host_and_port", "listening_socket", "port_number")

ANY_ADDRESS: dict[socket.AddressFamily, str] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # noqa: S104

WAYS = "Write HOST PORT or HOST:PORT, with an IPv6 address as in [::1]:25"


def port_number(port: str, *, lowest: int) -> int:
    """Convert a port argument to its number.

    :param port: a number, or the name of a TCP service that this machine knows (``/etc/services``), such as ``smtp``
    :param lowest: the lowest number that is accepted; 0 stands for any free port
    :raises click.BadParameter: if it is neither
    """
    number = number_of(port)
    if number is None:
        raise click.BadParameter(f"{port!r} is neither a number nor the name of a TCP service.")
    if not lowest <= number <= 65535:
        raise click.BadParameter(f"{port!r} is not a port from {lowest} to 65535.")
    return number


def number_of(port: str) -> int | None:
    """The number of a port or service; None if it is neither."""
    if re.fullmatch("-?[0-9]+", port):
        return int(port)
    try:
        return socket.getservbyname(port, "tcp")
    except (OSError, ValueError):  # ValueError: no possible name, such as one with a NUL
        return None


def host_and_port(where: str, port: str | None) -> tuple[str, int]:
    """Determine the host and the port number from the arguments of ``connect``.

    :param where: ``HOST`` or ``HOST:PORT``
    :param port: the port, if given as a separate argument
    :raises click.UsageError: if the port is missing or given twice
    """
    host, with_host = split(where)
    if port is not None and with_host is not None:
        raise click.UsageError(f"{where!r} has a port already, and {port!r} is another. {WAYS}.")
    found = with_host if port is None else port
    if found is None:
        raise click.UsageError(f"{where!r} has no port. {WAYS}.")
    return host, port_number(found, lowest=1)


def split(where: str) -> tuple[str, str | None]:
    """Split ``HOST:PORT`` into the host, and the port or None."""
    if where.startswith("["):
        address, bracket, rest = where[1:].partition("]")
        if bracket and rest[:1] in ("", ":"):
            return address, rest[1:] if rest else None
    host, colon, port = where.partition(":")
    if not colon or ":" in port:  # a name, or an IPv6 address
        return where, None
    return host, port


def family_of(ipv4: bool, ipv6: bool) -> socket.AddressFamily | None:
    """The address family that -4 or -6 selects; None for either.

    :raises click.UsageError: if both are given
    """
    if ipv4 and ipv6:
        raise click.UsageError("-4 and -6 exclude each other.")
    return socket.AF_INET if ipv4 else socket.AF_INET6 if ipv6 else None


def listening_socket(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    """Listen on the first address of one family that a host has. On ``::`` IPv4 is not included.

    :raises OSError: if the host has no such address, or it cannot be listened on
    """
    found: list[Any] = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        return socket.create_server(found[0][4], family=family, backlog=socket.SOMAXCONN)
    except OSError as exc:
        raise OSError(exc.errno, os.strerror(exc.errno or 0)) from exc  # without the address, which the caller prints
