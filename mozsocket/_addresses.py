"""Socket addresses, as the program is shown them."""

from __future__ import annotations

import socket
from typing import Any

__all__ = ("display", "host_and_port", "plain", "printable")


def plain(address: Any) -> Any:
    """A socket address as a host and a port: an IPv4 peer in its own form, and an IPv6 address with its zone if it has
    one, without which a link-local one cannot be connected to (RFC 4007).
    """
    if not isinstance(address, tuple):
        return address
    host, port = address[:2]
    host = host.partition("%")[0]
    if "." in host:
        host = host.removeprefix("::ffff:")
    elif len(address) == 4 and address[3]:
        host = f"{host}%{_zone(address[3])}"
    return host, port


def _zone(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except (OSError, OverflowError):  # it has gone meanwhile, or is no number of one
        return str(index)


def host_and_port(address: Any) -> tuple[str, int]:
    """Of a socket address: a tuple in the Internet, a path or a name, and 0, among UNIX-domain sockets."""
    if isinstance(address, tuple):
        host, port = plain(address)
        return host, port
    if isinstance(address, bytes):  # a name that is no path (Linux)
        return repr(address), 0
    return address or "", 0


def display(host: str, port: int) -> str:
    """A host and a port as one writes them; of a UNIX-domain socket its path."""
    if not port:
        return host or "a socket without an address"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def printable(text: str) -> str:
    """Text in ASCII, and with no line feeds in it: it may be another's choice, and has to be fit for any terminal and
    log.
    """
    return text.encode("unicode_escape").decode("ascii")
