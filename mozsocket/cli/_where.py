"""Where to connect to and where to listen, as it is written in a command."""

from __future__ import annotations

import os
import re
import socket
from typing import Any

import click

__all__ = ("ANY_ADDRESS", "family_of", "host_and_port", "listening_socket", "port_number")

ANY_ADDRESS: dict[socket.AddressFamily, str] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}  # noqa: S104  (to connect from)

WAYS = "Write HOST PORT or HOST:PORT, with an IPv6 address as in [::1]:25"


def port_number(port: str, *, lowest: int) -> int:
    """
    :param port: a number, or the name of a service of TCP, such as ``smtp``, as this machine knows it (its
        ``/etc/services``)
    :param lowest: of the numbers; 0 is for a free port
    :raises click.BadParameter: if it is neither
    """
    number = number_of(port)
    if number is None:
        raise click.BadParameter(f"{port!r} is neither a number nor a service of TCP that is known here.")
    if not lowest <= number <= 65535:
        raise click.BadParameter(f"{port!r} is not a port from {lowest} to 65535.")
    return number


def number_of(port: str) -> int | None:
    if re.fullmatch("-?[0-9]+", port):
        return int(port)
    try:
        return socket.getservbyname(port, "tcp")
    except (OSError, ValueError):  # ValueError: it cannot be a name
        return None


def host_and_port(where: str, port: str | None) -> tuple[str, int]:
    """
    :param where: the host, or ``HOST:PORT``
    :param port: the port, if it stands by itself
    :raises click.UsageError: if that is not one host and one port
    """
    host, with_host = split(where)
    if port is not None and with_host is not None:
        raise click.UsageError(f"{where!r} has a port already, so what is {port!r}? {WAYS}.")
    found = with_host if port is None else port
    if found is None:
        raise click.UsageError(f"{where!r} has no port. {WAYS}.")
    return host, port_number(found, lowest=1)


def split(where: str) -> tuple[str, str | None]:
    """
    :return: the host, and the port if there is one
    """
    if where.startswith("["):
        address, bracket, rest = where[1:].partition("]")
        if bracket and rest[:1] in ("", ":"):
            return address, rest[1:] if rest else None
    host, colon, port = where.partition(":")
    if not colon or ":" in port:  # a name, or an IPv6 address
        return where, None
    return host, port


def family_of(ipv4: bool, ipv6: bool) -> socket.AddressFamily | None:
    """Which family of addresses is asked for; None for either.

    :raises click.UsageError: if both are
    """
    if ipv4 and ipv6:
        raise click.UsageError("-4 and -6 exclude each other.")
    return socket.AF_INET if ipv4 else socket.AF_INET6 if ipv6 else None


def listening_socket(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    """One that listens on the first address of a family that a host has, and on no other: on ``::`` not for IPv4 too.

    :raises OSError: if there is none, or it cannot be listened on
    """
    found: list[Any] = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    try:
        return socket.create_server(found[0][4], family=family, backlog=socket.SOMAXCONN)
    except OSError as exc:
        raise OSError(exc.errno, os.strerror(exc.errno or 0)) from exc  # without the address, which is told anyway
