"""Telling of events as they happen."""

from __future__ import annotations

import ssl
import time
from functools import partial
from typing import Any

import click
from anyio.streams.tls import TLSAttribute

from .. import (
    Event,
    TCPServerSocket,
    TCPServerSocketEvent,
    TCPSocket,
    TCPSocketErrorEvent,
    TCPSocketEvent,
)

__all__ = ("EVENT_TYPES", "ShortTrace", "Trace", "peer_of", "tls_of")


class Trace:
    """Tells of events as they happen: seconds since the start, which socket, what, how much.

    :param enabled: whether to tell at all
    :param err: to standard error, or else to standard output
    :ivar failure: what it could not be written for; nothing more is told then
    """

    def __init__(self, *, enabled: bool = True, err: bool = True) -> None:
        self.failure: OSError | None = None
        self._enabled = enabled
        self._err = err
        self._start = time.monotonic()

    def watch(self, target: TCPSocket[bytes | str] | TCPServerSocket[bytes | str], name: str) -> None:
        """Tell of all events of a socket or a server."""
        if self._enabled:
            for type_ in EVENT_TYPES[type(target)]:
                target.addEventListener(type_, partial(self._event, name))

    def _event(self, name: str, event: Event[Any]) -> None:
        self.tell(name, event.type, details(event))

    def tell(self, name: str, what: str, more: str = "") -> None:
        self.write(f"{self.clock()}  {name:<11} {what:<9} {more}".rstrip())

    def clock(self) -> str:
        return f"{time.monotonic() - self._start:9.4f} s"

    def write(self, line: str) -> None:
        if not self._enabled:
            return
        try:
            click.echo(line, err=self._err)
        except OSError as exc:  # not to be raised in a handler: it is not the socket's trouble
            self._enabled = False
            self.failure = exc


class ShortTrace(Trace):
    """Sums up the successive ``data`` of a socket, with the ``drain`` that comes between."""

    def __init__(self, *, err: bool) -> None:
        super().__init__(err=err)
        self._summed = ""  # the socket's name
        self._sizes: list[int] = []
        self._drains = 0
        self._last = ""

    def _event(self, name: str, event: Event[Any]) -> None:
        if isinstance(event, TCPSocketEvent):
            if name != self._summed:
                self._tell_sum()
                self._summed = name
            self._sizes.append(len(event.data))
            self._last = self.clock()
        elif event.type == "drain" and name == self._summed:
            self._drains += 1
            self._last = self.clock()
        else:
            self.tell(name, event.type, details(event))

    def tell(self, name: str, what: str, more: str = "") -> None:
        self._tell_sum()
        super().tell(name, what, more)

    def _tell_sum(self) -> None:
        if self._summed:
            count = f" in {len(self._sizes)} events" if len(self._sizes) > 1 else ""
            drains = f", drain after {self._drains} of them" if self._drains else ""
            self.write(f"{self._last}  {self._summed:<11} {'data':<9} {sum(self._sizes)} B{count}{drains}")
            self._summed, self._sizes, self._drains = "", [], 0


EVENT_TYPES: dict[type[TCPSocket[Any] | TCPServerSocket[Any]], tuple[str, ...]] = {
    TCPSocket: ("open", "secure", "drain", "data", "end", "error", "close"),
    TCPServerSocket: ("connect", "error"),
}


def details(event: Event[Any]) -> str:
    if isinstance(event, TCPSocketEvent):
        return f"{len(event.data)} B"
    if isinstance(event, TCPSocketErrorEvent):
        return str(event.error)
    if isinstance(event, TCPServerSocketEvent):
        return ", ".join(filter(None, [f"from {peer_of(event.socket)}", encryption_of(event.socket)]))
    if event.type in ("open", "secure"):
        return encryption_of(event.target)
    return ""


def encryption_of(socket: TCPSocket[bytes | str]) -> str:
    """The version of TLS and the cipher; empty in plaintext."""
    tls = tls_of(socket)
    cipher = tls.cipher() if tls is not None else None
    return f"{tls.version()}, {cipher[0]}" if tls is not None and cipher is not None else ""


def tls_of(socket: TCPSocket[bytes | str]) -> ssl.SSLObject | None:
    """None in plaintext, and when it is closed."""
    tls: ssl.SSLObject | None = socket.extra(TLSAttribute.ssl_object, None)  # noqa: S610  (this is not Django's)
    return tls


def peer_of(socket: TCPSocket[bytes | str]) -> str:
    return f"{socket.host} port {socket.port}"
