"""The PROXY protocol, versions 1 and 2 (HAProxy): the header by which a load balancer passes on the client's address.

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
"""The most bytes in a header of version 1, its CR LF included (section 2.1)."""

_V1_START = b"PROXY "
_V2_START = b"\r\n\r\n\0\r\nQUIT\n"
_V2_FIXED = struct.Struct("!12s2BH")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}")

_LOCAL, _PROXY = 0x20, 0x21  # the version (2) and the command
_TCP4, _TCP6, _UNIX = 0x11, 0x21, 0x31  # the address family and the transport
_LAST_FAMILY, _LAST_TRANSPORT = 3, 2  # higher ones "must be rejected as invalid by receivers" (section 2.2)


class Header(NamedTuple):
    """A header of the PROXY protocol.

    :ivar size: its length in bytes
    :ivar source: the client's address and port; of a UNIX-domain socket its path and 0; None if the header has none
    """

    size: int
    source: tuple[str, int] | None


def parse(data: bytes | bytearray) -> Header | None:
    """Parse the header at the beginning of a connection.

    :param data: the first bytes of the connection
    :return: the header; None if it is not complete yet
    :raises OSError: if the bytes are not a header
    """
    if data[:12] == _V2_START[: len(data)]:
        return _parse_v2(data)
    if data[:6] == _V1_START[: len(data)]:
        return _parse_v1(data)
    raise _malformed(f"the connection begins with {bytes(data[:16])!r}")


def missing(data: bytes | bytearray) -> int:
    """The least number of bytes that an incomplete header lacks. A header of version 2 gives its length.

    :param data: the first bytes of the connection
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
    if "%" in word:  # a zone has no place in this protocol, and may contain any characters
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
        raise _malformed(f"unknown version and command {command:#04x}")
    size = _V2_FIXED.size + length
    if len(data) < size:
        return None
    return Header(size, _source(family, bytes(data[_V2_FIXED.size : size])) if command == _PROXY else None)


def _source(family: int, block: bytes) -> tuple[str, int] | None:
    """The client's address in an address block, after which there may be extensions.

    :return: None if it is unspecified, or not of a stream: the receiver has to use the address of the connection itself
    """
    if family >> 4 > _LAST_FAMILY or family & 15 > _LAST_TRANSPORT:
        raise _malformed(f"unknown address family and transport {family:#04x}")
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
    return OSError(errno.EPROTO, f"not a header of the PROXY protocol: {what}")
