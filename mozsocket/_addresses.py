"""Socket addresses in the forms that the program, messages and the log get."""

from __future__ import annotations

import socket
from typing import Any

__all__ = ("display", "host_and_port", "plain", "printable")


def plain(address: Any) -> Any:
    """A socket address as a host and a port; that of a UNIX-domain socket as it is.

    The address of an IPv4 peer of an IPv6 socket (``::ffff:…``) is written as IPv4. An IPv6 address keeps its zone: a
    link-local address cannot be connected to without it (RFC 4007).
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
    except (OSError, OverflowError):  # the interface has been removed, or no interface can have that number
        return str(index)


def host_and_port(address: Any) -> tuple[str, int]:
    """The host and the port of a socket address; of a UNIX-domain socket its path or name, and 0."""
    if isinstance(address, tuple):
        host, port = plain(address)
        return host, port
    if isinstance(address, bytes):  # a name in Linux's abstract namespace, which is not a path
        return repr(address), 0
    return address or "", 0


def display(host: str, port: int) -> str:
    """A host and a port as people write them, ``host:port`` or ``[host]:port``; the path of a UNIX-domain socket."""
    if not port:
        return host or "a socket without an address"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_ESCAPES = "unicode_escape"
"".encode(_ESCAPES)  # Python imports it at its first use, which fails where no descriptor is left


def printable(text: str) -> str:
    """Text with all but printable ASCII escaped, such as control characters: the text may be somebody else's choice,
    and has to be safe for any terminal and log.
    """
    return text.encode(_ESCAPES).decode("ascii")
