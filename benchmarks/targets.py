"""What mozsocket is meant to reach, in medians of one run."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ("TARGETS", "Target")


class Target(NamedTuple):
    """A ratio of mozsocket's figure to a peer's on the same event loop.

    :ivar ratio: at least, where more is better; at most, where less is
    :ivar subject: how mozsocket is used: by handlers, or by ``stream()``
    """

    scenario: str
    figure: str
    backend: str
    peer: str
    ratio: float
    subject: str = "mozsocket"


def _row(
    scenarios: str,
    figure: str,
    *,
    asyncio: tuple[str, float],
    uvloop: tuple[str, float],
    trio: tuple[str, float],
    subject: str = "mozsocket",
) -> list[Target]:
    per_backend = {"asyncio": asyncio, "uvloop": uvloop, "trio": trio}
    return [
        Target(scenario, figure, backend, peer, ratio, subject)
        for scenario in scenarios.split()
        for backend, (peer, ratio) in per_backend.items()
    ]


TARGETS = [
    *_row("bulk", "rate", asyncio=("protocol", 3), uvloop=("protocol", 1), trio=("trio", 1)),
    *_row("messages", "rate", asyncio=("protocol", 5), uvloop=("protocol", 4), trio=("trio", 50)),
    *_row("echo", "rate", asyncio=("protocol", 1.15), uvloop=("anyio", 0.9), trio=("trio", 1.2)),
    *_row("echo-100", "rate", asyncio=("protocol", 1.1), uvloop=("anyio", 0.9), trio=("trio", 1.2)),
    *_row("tls-bulk tls-echo tls-echo-100", "rate", asyncio=("protocol", 1), uvloop=("anyio", 1), trio=("trio", 1)),
    *_row(
        "bulk echo tls-bulk tls-echo",
        "rate",
        asyncio=("anyio", 1),
        uvloop=("anyio", 1),
        trio=("anyio", 1),
        subject="mozsocket-stream",
    ),
    *_row("short", "rate", asyncio=("anyio", 1), uvloop=("anyio", 1), trio=("anyio", 1)),
    *_row("idle", "memory", asyncio=("anyio", 1.3), uvloop=("anyio", 1.3), trio=("anyio", 1.3)),
    *_row("latency", "p99", asyncio=("protocol", 1), uvloop=("anyio", 1), trio=("trio", 1)),
]

GROWTH_LIMIT = 1.5
"""How much more a connection may cost among 10,000 than among 100."""
