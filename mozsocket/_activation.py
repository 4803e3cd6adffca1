"""Socket activation: sockets that a service manager has opened for this process.

Source: sd_listen_fds(3) of systemd. systemd-socket-activate(1), s6 and others use the same protocol.
"""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack
from itertools import chain, repeat

__all__ = ("listen_fds",)

FIRST = 3
"""The first descriptor that is passed (``SD_LISTEN_FDS_START``)."""

VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
"""The environment variables that describe the sockets."""


def listen_fds(name: str | None = None) -> list[socket.socket]:
    """The sockets that a service manager such as systemd has opened for this process ("socket activation"), for
    :meth:`TCPServerSocket.from_socket`::

        for sock in listen_fds():
            server = TCPServerSocket.from_socket(sock)

    The sockets belong to the caller, and no child process inherits them. Call it only once: it removes the environment
    variables that describe the sockets (``LISTEN_PID``, ``LISTEN_FDS`` and others).

    :param name: return only the sockets of this name (``FileDescriptorName=`` in systemd), and close the others; None
        to return all
    :return: the sockets in the order of their descriptors; empty if this process was not started that way
    :raises TypeError: if the name is not a str
    :raises ValueError: if the variables are malformed
    :raises OSError: if a descriptor is not a socket
    """
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    pid, count, names, _ = (os.environ.pop(variable, "") for variable in VARIABLES)
    if not pid or not count or _number("LISTEN_PID", pid) != os.getpid():
        return []
    descriptors = range(FIRST, FIRST + _number("LISTEN_FDS", count))
    with ExitStack() as unwanted:
        wanted = []
        for descriptor, its_name in zip(descriptors, chain(names.split(":"), repeat("")), strict=False):
            sock = unwanted.enter_context(socket.socket(fileno=descriptor))
            sock.set_inheritable(False)
            if name in (None, its_name):
                wanted.append(sock)
        return [socket.socket(fileno=sock.detach()) for sock in wanted]


def _number(variable: str, value: str) -> int:
    """:raises ValueError: if the value of a variable is not a number"""
    if not (value.isascii() and value.isdigit()):
        raise ValueError(f"{variable} must be a number, not {value!r}")
    return int(value)
