"""The header in which a load balancer says whom it speaks for: the PROXY protocol, versions 1 and 2 (HAProxy).

Source: https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt
"""

from __future__ import annotations

import errno
import ipaddress
import re
import struct
from typing import NamedTuple

__all__ = ("Header", "missing", "parse")

V1_MAX = 107
"""Bytes of a header of version 1 at most, its CR LF included (section 2.1)."""

_V1_START = b"PROXY "
_V2_START = b"\r\n\r\n\0\r\nQUIT\n"
_V2_FIXED = struct.Struct("!12s2BH")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}")

_LOCAL, _PROXY = 0x20, 0x21  # version 2, and the command
_TCP4, _TCP6, _UNIX = 0x11, 0x21, 0x31
_LAST_FAMILY, _LAST_TRANSPORT = 3, 2  # others "must be rejected as invalid by receivers" (section 2.2)


class Header(NamedTuple):
    """What a header says.

    :ivar size: its length in bytes
    :ivar source: the client's address and port, of a UNIX-domain socket its path and 0; None if it tells of none
    """

    size: int
    source: tuple[str, int] | None


def parse(data: bytes | bytearray) -> Header | None:
    """The header that bytes begin with.

    :param data: what a connection has begun with
    :return: None if it is not all there yet
    :raises OSError: if it is none
    """
    if data[:12] == _V2_START[: len(data)]:
        return _parse_v2(data)
    if data[:6] == _V1_START[: len(data)]:
        return _parse_v1(data)
    raise _malformed(f"the connection begins with {bytes(data[:16])!r}")


def missing(data: bytes | bytearray) -> int:
    """How many bytes there are to come at least, where the header is not all there yet. One of version 2 says how long
    it is.
    """
    size = _V2_FIXED.size
    if data[:1] != _V2_START[:1]:
        return 1
    if len(data) >= size:
        size += _V2_FIXED.unpack_from(data)[3]
    return size - len(data)


def _parse_v1(data: bytes | bytearray) -> Header | None:
    end = data.find(b"\r\n", 0, V1_MAX)
    if end < 0:
        if len(data) >= V1_MAX:
            raise _malformed(f"no end of line in the first {V1_MAX} bytes")
        return None
    words = data[:end].decode("latin-1").split(" ")
    size = end + 2
    if words[1] == "UNKNOWN":
        return Header(size, None)
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        raise _malformed(repr(bytes(data[:end])))
    try:
        host, _ = (_address(word, words[1]) for word in words[2:4])
        port, _ = (_port(word) for word in words[4:])
    except ValueError as exc:
        raise _malformed(repr(bytes(data[:end]))) from exc
    return Header(size, (host, port))


def _address(word: str, family: str) -> str:
    if "%" in word:  # a zone, which is no part of an address here, and may be any characters
        raise ValueError(f"{word!r} has a zone")
    return str(ipaddress.IPv4Address(word)) if family == "TCP4" else _of_ipv6(ipaddress.IPv6Address(word))


def _of_ipv6(address: ipaddress.IPv6Address) -> str:
    return str(address.ipv4_mapped or address)


def _port(word: str) -> int:
    if not _NUMBER.fullmatch(word) or int(word) > 65535:
        raise ValueError(f"{word!r} is not a port")
    return int(word)


def _parse_v2(data: bytes | bytearray) -> Header | None:
    if len(data) < _V2_FIXED.size:
        return None
    _, command, family, length = _V2_FIXED.unpack_from(data)
    if command not in (_LOCAL, _PROXY):
        raise _malformed(f"version and command {command:#04x}")
    size = _V2_FIXED.size + length
    if len(data) < size:
        return None
    return Header(size, _source(family, bytes(data[_V2_FIXED.size : size])) if command == _PROXY else None)


def _source(family: int, block: bytes) -> tuple[str, int] | None:
    """The source in an address block, behind which there may be extensions.

    :return: None for one that is not said, or of no stream: the receiver is to go by the connection's own
    """
    if family >> 4 > _LAST_FAMILY or family & 15 > _LAST_TRANSPORT:
        raise _malformed(f"address family and transport {family:#04x}")
    try:
        if family == _TCP4:
            host, _, port, _ = struct.unpack_from("!4s4s2H", block)
            return str(ipaddress.IPv4Address(host)), port
        if family == _TCP6:
            host, _, port, _ = struct.unpack_from("!16s16s2H", block)
            return _of_ipv6(ipaddress.IPv6Address(host)), port
        if family == _UNIX:
            (path,) = struct.unpack_from("!108s108x", block)
            return path.partition(b"\0")[0].decode("utf-8", "surrogateescape"), 0
    except struct.error as exc:
        raise _malformed(f"{len(block)} bytes are too few for addresses of family {family:#04x}") from exc
    return None


def _malformed(what: str) -> OSError:
    return OSError(errno.EPROTO, f"no header of the PROXY protocol: {what}")
