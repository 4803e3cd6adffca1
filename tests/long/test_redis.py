"""Bulk transfer through a real server."""

from __future__ import annotations

import hashlib

import pytest

from mozsocket import TCPSocket

from ..examples import example
from ..services import redis


@pytest.mark.anyio
async def test_a_quarter_of_a_gibibyte_of_values_through_redis() -> None:
    """Commands are pipelined: the first answers arrive while the last commands are still being sent."""
    size, count, rounds = 1 << 20, 128, 2
    with redis() as port:
        async with TCPSocket("127.0.0.1", port) as sock:
            client = example("redis")["Redis"](sock)
            await sock.opened()
            for number in range(rounds):
                values = [bytes([number, index]) * (size // 2) for index in range(count)]
                replies = []
                for index, value in enumerate(values):
                    client.command("SET", f"key {index}", value)
                    replies.append(client.command("GET", f"key {index}"))
                    if sock.bufferedAmount > 16 * size:
                        await sock.drained()
                for reply, value in zip(replies, values, strict=True):
                    got = await reply.get()
                    assert hashlib.md5(got).digest() == hashlib.md5(value).digest()  # noqa: S324  (only for comparison)
            client.command("FLUSHALL")
            assert await client.command("DBSIZE").get() == 0
