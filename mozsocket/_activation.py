"""Sockets that a service manager has opened for this process.

Source: sd_listen_fds(3) of systemd; systemd-socket-activate(1), s6 and others do the same.
"""

from __future__ import annotations

import os
import socket

__all__ = ("listen_fds",)

FIRST = 3
"""The first descriptor that is passed (``SD_LISTEN_FDS_START``)."""


def listen_fds(name: str | None = None) -> list[socket.socket]:
    """The sockets that a service manager such as systemd has opened for this process ("socket activation"), for
    :meth:`TCPServerSocket.from_socket`::

        async with TCPServerSocket.from_socket(*listen_fds()) as server:

    They are the caller's, and no child process inherits them. Call it once: the environment variables
    ``LISTEN_PID``, ``LISTEN_FDS`` and ``LISTEN_FDNAMES``, which tell of them, are removed.

    :param name: of which name to return them (``FileDescriptorName=`` in systemd); None for all; the others are closed
    :return: the sockets in the order of their descriptors; none if this process was not started that way
    :raises TypeError: if the name is not a str
    :raises ValueError: if the variables are malformed
    :raises OSError: if a descriptor is not a socket
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    pid, count, names = (os.environ.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if not pid or _number("LISTEN_PID", pid) != os.getpid():
        return []
    descriptors = range(FIRST, FIRST + _number("LISTEN_FDS", count))
    sockets = [socket.socket(fileno=descriptor) for descriptor in descriptors]
    wanted = []
    for sock, its_name in zip(sockets, [*names.split(":"), *[""] * len(sockets)], strict=False):
        sock.set_inheritable(False)
        if name in (None, its_name):
            wanted.append(sock)
        else:
            sock.close()
    return wanted


def _number(variable: str, value: str) -> int:
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"{variable} must be a number, not {value!r}")
    return int(value)
