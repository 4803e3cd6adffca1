"""Socket addresses, as the program is shown them."""

from __future__ import annotations

from typing import Any

__all__ = ("display", "host_and_port", "plain")


def plain(address: Any) -> Any:
    """A socket address without the flow label and scope of IPv6, and of an IPv4 peer in its own form."""
    if not isinstance(address, tuple):
        return address
    host, port = address[:2]
    return host.removeprefix("::ffff:") if "." in host else host, port


def host_and_port(address: Any) -> tuple[str, int]:
    """Of a socket address: a tuple in the Internet, a path or a name, and 0, among UNIX-domain sockets."""
    if isinstance(address, tuple):
        host, port = plain(address)
        return host, port
    return (address if isinstance(address, str) else repr(address)), 0


def display(host: str, port: int) -> str:
    """A host and a port as one writes them; of a UNIX-domain socket its path. In ASCII, and with no line feeds in it:
    it may be another's choice, and has to be fit for any terminal and log.
    """
    host = host.encode("unicode_escape").decode("ascii")
    if not port:
        return host or "a socket without an address"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
