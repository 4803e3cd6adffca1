"""Prints events as they happen."""

from __future__ import annotations

import ssl
import time
from functools import partial
from typing import Any

from anyio.streams.tls import TLSAttribute

from .. import (
    Event,
    TCPServerSocket,
    TCPServerSocketEvent,
    TCPSocket,
    TCPSocketErrorEvent,
    TCPSocketEvent,
)
from .._buffers import octets
from ._lines import say

__all__ = ("EVENT_TYPES", "ShortTrace", "Trace", "hex_dump", "peer_of", "tls_of")


class Trace:
    """Prints a line for each event: seconds since the start, the socket, the event, and details such as sizes.

    :param enabled: whether to print at all
    :param bytes_too: whether to report sent data too, and show the bytes sent and received
    :param err: whether to print to standard error, or else to standard output
    :ivar failure: the error with which writing failed; nothing more is printed after it
    """

    def __init__(self, *, enabled: bool = True, bytes_too: bool = False, err: bool = True) -> None:
        self.failure: OSError | None = None
        self._enabled = enabled
        self._bytes_too = bytes_too
        self._err = err
        self._start = time.monotonic()

    def watch(self, target: TCPSocket[bytes | str] | TCPServerSocket[bytes | str], name: str) -> None:
        """Print all events of a socket or a server from now on."""
        if self._enabled:
            for type_ in EVENT_TYPES[type(target)]:
                target.addEventListener(type_, partial(self._event, name))

    def _event(self, name: str, event: Event[Any]) -> None:
        self.tell(name, event.type, details(event))
        if self._bytes_too and isinstance(event, TCPSocketEvent):
            self.write(hex_dump(octets(event.data)))

    def sent(self, name: str, data: bytes) -> None:
        """Report data that was passed to ``send()``, for which no event exists."""
        if self._bytes_too:
            self.tell(name, "sent", f"{len(data)} B")
            self.write(hex_dump(data))

    def tell(self, name: str, what: str, more: str = "") -> None:
        self.write(f"{self.clock()}  {name:<11} {what:<9} {more}".rstrip())

    def clock(self) -> str:
        return f"{time.monotonic() - self._start:9.4f} s"

    def write(self, line: str) -> None:
        if not self._enabled:
            return
        try:
            say(line, err=self._err)
        except OSError as exc:  # raised in a handler, it would close the socket
            self._enabled = False
            self.failure = exc


class ShortTrace(Trace):
    """Prints successive ``data`` events of a socket as one line, with the number of ``drain`` events among them."""

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


DUMPED = 512
"""The most bytes that are shown of one piece of data."""


def hex_dump(data: bytes) -> str:
    """The first bytes in hexadecimal and as text, 16 on a line, as by ``hexdump -C``; then how many more there are."""
    lines = []
    for begin in range(0, min(len(data), DUMPED), 16):
        row = data[begin : begin + 16]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in row)
        lines.append(f"  {begin:08x}  {row[:8].hex(' '):23}  {row[8:].hex(' '):23}  |{text}|")
    if len(data) > DUMPED:
        lines.append(f"  and {len(data) - DUMPED} B more")
    return "\n".join(lines)


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
    """The TLS version and cipher of a socket; empty in plaintext."""
    tls = tls_of(socket)
    cipher = tls.cipher() if tls is not None else None
    return f"{tls.version()}, {cipher[0]}" if tls is not None and cipher is not None else ""


def tls_of(socket: TCPSocket[bytes | str]) -> ssl.SSLObject | None:
    """The TLS object of a socket; None in plaintext, or when it is closed."""
    tls: ssl.SSLObject | None = socket.extra(TLSAttribute.ssl_object, None)  # noqa: S610  (not Django's extra())
    return tls


def peer_of(socket: TCPSocket[bytes | str]) -> str:
    return f"{socket.host} port {socket.port}"
