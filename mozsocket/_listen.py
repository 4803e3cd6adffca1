"""Listening: from a host and a port to listening sockets."""

from __future__ import annotations

import errno
import socket
from functools import cached_property
from typing import Any

from ._addresses import display, host_and_port
from ._options import identity

__all__ = ("listen", "stop_listening")

_PORT_TRIES = 32

_ALL_INTERFACES = [(socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")]  # noqa: S104


class _ListeningSocket(socket.socket):
    """A socket that looks its family and type up once: ``accept()`` asks for both each time, which takes 1.1 µs."""

    @cached_property
    def family(self) -> socket.AddressFamily:
        return super().family

    @cached_property
    def type(self) -> socket.SocketKind:
        return super().type


def listen(host: str | None, port: int, backlog: int, reuse_port: bool) -> list[socket.socket]:
    """Make sockets that listen on the same port of each address of a host.

    :param host: a name or an address; None for all interfaces, by IPv4 and IPv6
    :param port: the port; 0 for one that is free on all the addresses
    :param backlog: the most connections that the system queues before they are accepted
    :param reuse_port: whether other processes may listen on the same port (``SO_REUSEPORT``)
    :return: non-blocking sockets; none for addresses that this machine does not have, if it has any of them
    :raises OSError: if the name cannot be resolved, or an address cannot be bound
    """
    if host is None:
        addresses: list[tuple[int, tuple[Any, ...]]] = [
            (family, (address, port)) for family, address in _ALL_INTERFACES
        ]
    else:
        found = _look_up(host, port)
        addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    for _ in range(_PORT_TRIES - 1):
        try:
            return _listen_on_each(addresses, backlog, reuse_port)
        except OSError as exc:
            # With port 0 the system chooses a port for the first address, which may be taken on another address.
            if exc.errno != errno.EADDRINUSE or port or len(addresses) == 1:
                raise
    return _listen_on_each(addresses, backlog, reuse_port)


def _look_up(host: str, port: int) -> list[tuple[Any, ...]]:
    name = host if host.isascii() else identity(host)  # Python itself would encode it by an older IDNA
    try:
        return list(socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE))
    except OSError as exc:
        exc.filename = host  # shown in its message
        raise


def _listen_on_each(
    addresses: list[tuple[int, tuple[Any, ...]]], backlog: int, reuse_port: bool
) -> list[socket.socket]:
    bound: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, (host, port, *rest) in addresses:
            if bound and not port:
                port = bound[0].getsockname()[1]
            address = (host, port, *rest)
            try:
                bound.append(_listen_on(family, address, backlog, reuse_port, alone=len(addresses) == 1))
            except OSError as exc:
                exc.filename = display(*host_and_port(address))  # shown in its message
                if exc.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    raise
                missing = exc  # this machine may have only one of IPv4 and IPv6
        if missing is not None and not bound:
            raise missing
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    return bound


def _listen_on(family: int, address: tuple[Any, ...], backlog: int, reuse_port: bool, *, alone: bool) -> socket.socket:
    """Make a socket that listens on one address.

    :param alone: whether it is the only address: if so, the wildcard address of IPv6 includes IPv4
    """
    sock = _ListeningSocket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if hasattr(socket, "SO_EXCLUSIVEADDRUSE"):  # pragma: no cover  (Windows, where SO_REUSEADDR steals ports)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            # "::" alone includes IPv4, as in Node and others, whatever the system's default is.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not alone)
        sock.bind(address)
        sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def stop_listening(sock: socket.socket) -> None:
    """Stop listening immediately, where the system can (Linux). Elsewhere the socket listens until it is closed.

    The socket itself is closed later, when the tasks that wait for it have woken. On Linux this also stops any other
    process that has the same socket.
    """
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
