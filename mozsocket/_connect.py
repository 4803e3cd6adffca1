"""Connecting: from a host and a port to a connected socket, by name resolution and Happy Eyeballs (RFC 8305)."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Callable
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import anyio

from ._readiness import wait_writable

if sys.version_info < (3, 11):  # AnyIO depends on the backport
    from exceptiongroup import ExceptionGroup

__all__ = ("Attempt", "connect")

ATTEMPT_DELAY = 0.25
"""Seconds after which the next address is tried, beside those that have not answered yet (RFC 8305, section 5)."""

# The error numbers by which a non-blocking connect() says that it has begun.
_BEGUN = frozenset(
    getattr(errno, name) for name in ("EINPROGRESS", "EINTR", "EWOULDBLOCK", "WSAEWOULDBLOCK") if hasattr(errno, name)
)


SockAddr = tuple[Any, ...]

_ANY_ADDRESS: dict[int, str] = {int(socket.AF_INET): "0.0.0.0", int(socket.AF_INET6): "::"}  # noqa: S104  (to connect from)


class Address(NamedTuple):
    """An address to connect to, and the address to connect from.

    :ivar family: the address family of both
    :ivar remote: the address to connect to
    :ivar local: the address to connect from; None for any
    """

    family: int
    remote: SockAddr
    local: SockAddr | None


class Attempt:
    """An attempt to connect that has a time limit, and that can be given up."""

    __slots__ = ("_begun", "_is_given_up", "_scope")

    def __init__(self) -> None:
        self._begun: socket.socket | None = None  # what begin() has left to run()
        self._scope: anyio.CancelScope | None = None  # that of run()
        self._is_given_up = False

    def begin(self, host: str, port: int) -> socket.socket | None:
        """Connect without waiting, if that is possible. Otherwise :meth:`run` goes on from there, or :meth:`drop` is
        called.

        :return: the connected socket; None if the host is a name, or does not answer at once as this machine does
        :raises OSError: if connecting fails at once
        """
        remote = _numeric(host, port)
        if remote is None:
            return None
        sock, is_connected = _begin(Address(*remote, None))
        if not is_connected:
            self._begun = sock
            return None
        return sock

    def drop(self) -> None:
        """Close what was begun, if nobody has gone on with it."""
        begun, self._begun = self._begun, None
        if begun is not None:
            begun.close()

    def give_up(self) -> None:
        """Have :meth:`run` return None."""
        self._is_given_up = True
        if self._scope is not None:
            self._scope.cancel()

    async def run(
        self,
        host: str,
        port: int,
        local_host: str | None,
        local_port: int,
        deadline: float,
        timeout: Callable[[], TimeoutError],
    ) -> socket.socket | None:
        """Connect, as :func:`connect` does.

        :param deadline: when the attempt ends, by the event loop's clock
        :param timeout: makes the error that is raised then
        :return: the connected socket; None if the attempt was given up
        :raises ExceptionGroup: of some addresses' failures and of that error, if the others did not answer in time
        """
        failures: list[OSError] = []
        if not self._is_given_up:
            with anyio.CancelScope(deadline=deadline) as self._scope:
                begun, self._begun = self._begun, None
                if begun is not None:
                    return await _finish(begun)
                return await connect(host, port, local_host, local_port, failures)
        if self._is_given_up:
            self.drop()
            return None
        if not failures:
            raise timeout()
        raise ExceptionGroup("some addresses failed, and the rest gave no answer in time", [*failures, timeout()])


async def connect(
    host: str,
    port: int,
    local_host: str | None = None,
    local_port: int = 0,
    failures: list[OSError] | None = None,
) -> socket.socket:
    """Connect to that address of a host which answers first.

    :param host: a name or an address
    :param port: the port
    :param local_host: the name or address to connect from; None for any
    :param local_port: the port to connect from; 0 for any that is free
    :param failures: a list to which the error of each address that fails is added, for a caller that gives up early
    :return: a non-blocking socket
    :raises OSError: if the name cannot be resolved, or its only address fails
    :raises UnicodeError: if the name is not a valid one (IDNA 2008)
    :raises ExceptionGroup: with all the errors, if all of several addresses fail
    """
    addresses = await _addresses(host, port, local_host, local_port)
    if len(addresses) == 1:
        return await _attempt(addresses[0])
    return await _race(addresses, [] if failures is None else failures)


async def _addresses(host: str, port: int, local_host: str | None, local_port: int) -> list[Address]:
    remotes = await _resolve(host, port)
    if local_host is None and not local_port:
        return [Address(family, remote, None) for family, remote in _interleave(remotes)]
    if local_host is None:
        locals_: dict[int, SockAddr] = {family: (address, local_port) for family, address in _ANY_ADDRESS.items()}
    else:
        locals_ = dict(reversed(await _resolve(local_host, local_port)))  # the first of each family
    addresses = [
        Address(family, remote, locals_[family]) for family, remote in _interleave(remotes) if family in locals_
    ]
    if not addresses:
        families = " or ".join("IPv6" if family == socket.AF_INET6 else "IPv4" for family in locals_)
        raise OSError(errno.EADDRNOTAVAIL, f"{host} has no {families} address to connect to from {local_host}")
    return addresses


def _numeric(host: str, port: int) -> tuple[int, SockAddr] | None:
    """The family and the socket address of an IP address in its usual form; None if the host is anything else."""
    for family, rest in ((socket.AF_INET, ()), (socket.AF_INET6, (0, 0))):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return family, (host, port, *rest)
    return None


async def _resolve(host: str, port: int) -> list[tuple[int, SockAddr]]:
    remote = _numeric(host, port)
    if remote is not None:
        return [remote]
    try:  # other forms of an address need no resolver either, and no thread to call it, such as fe80::1%eth0
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except (socket.gaierror, UnicodeError):
        pass
    else:
        return [(family, address) for family, _, _, _, address in found]
    answer = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    if not answer:  # AnyIO leaves out the families for which this Python has no sockets
        raise socket.gaierror(socket.EAI_NONAME, f"{host} has no address of a family that can be used here")
    return [(family, _with_zone(address)) for family, _, _, _, address in answer]


def _with_zone(address: SockAddr) -> SockAddr:
    """A socket address with its zone as a number. AnyIO returns it in the host, where connect() ignores it."""
    if "%" not in address[0]:
        return address
    return socket.getaddrinfo(address[0], address[1], type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0][4]


def _interleave(found: list[tuple[int, SockAddr]]) -> list[tuple[int, SockAddr]]:
    """Alternate between IPv6 and IPv4, beginning with the family of the first address (RFC 8305, section 4)."""
    first = [entry for entry in found if entry[0] == found[0][0]]
    others = [entry for entry in found if entry[0] != found[0][0]]
    return [entry for entry in chain(*zip_longest(first, others)) if entry is not None]


async def _race(addresses: list[Address], failures: list[OSError]) -> socket.socket:
    connected: list[socket.socket] = []

    async def run(address: Address, failed: anyio.Event) -> None:
        try:
            connected.append(await _attempt(address))
        except OSError as exc:
            failures.append(exc)
            failed.set()
        else:
            attempts.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as attempts:
            for address in addresses:
                failed = anyio.Event()
                attempts.start_soon(run, address, failed)
                with anyio.move_on_after(ATTEMPT_DELAY):
                    await failed.wait()
    except BaseException:
        for sock in connected:
            sock.close()
        raise
    for late in connected[1:]:
        late.close()
    if connected:
        return connected[0]
    raise ExceptionGroup(f"none of {len(addresses)} addresses could be connected to", failures)


async def _attempt(address: Address) -> socket.socket:
    sock, is_connected = _begin(address)
    return sock if is_connected else await _finish(sock)


def _begin(address: Address) -> tuple[socket.socket, bool]:
    """Begin to connect.

    :return: the socket, and whether it is connected already, as within one machine; else :func:`_finish` goes on
    """
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if address.local is not None:
            if address.local[1] and sys.platform != "win32":  # on Windows it would let other programs take the port
                # The port may still belong to an earlier connection (TIME_WAIT), or to another of these attempts.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(address.local)
        code = sock.connect_ex(address.remote)
        if code in _BEGUN:
            if not _is_connected(sock):
                return sock, False
            code = 0
        _check_connected(sock, code)
    except BaseException:
        sock.close()
        raise
    return sock, True


async def _finish(sock: socket.socket) -> socket.socket:
    try:
        await wait_writable(sock)
        _check_connected(sock, _outcome(sock))
    except BaseException:
        sock.close()
        raise
    return sock


def _check_connected(sock: socket.socket, code: int) -> None:
    """Raise the error of an attempt that has ended.

    :param code: its error number; 0 if there is none
    """
    if code:
        raise OSError(code, os.strerror(code))
    if _is_connected_to_itself(sock):
        # TCP may connect a socket to itself, if nobody listens on a port from the range of ephemeral ports.
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))


def _is_connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _outcome(sock: socket.socket) -> int:
    """The error number of a finished attempt; 0 if it has succeeded.

    It has also succeeded if the peer has reset the connection since, and there is still data to read.
    """
    if _is_connected(sock):
        return 0
    try:
        if sock.recv(1, socket.MSG_PEEK):
            return 0
    except (BlockingIOError, InterruptedError):
        pass
    except OSError as exc:
        if exc.errno != errno.ENOTCONN:
            return exc.errno or 0
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)


def _is_connected_to_itself(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:  # the peer has reset it already: the first read will raise that
        return False
