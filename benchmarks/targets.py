"""The targets of mozsocket's performance, for the medians of one run."""

from __future__ import annotations

from typing import NamedTuple

from .subjects import LOOPS, SUBJECTS

__all__ = ("TARGETS", "Limit", "Target")


class Reference(NamedTuple):
    """The figure of the same scenario that a target compares with."""

    backend: str
    subject: str
    figure: str


class Target(NamedTuple):
    """A bound on the ratio of mozsocket's figure to a peer's.

    :ivar subject: how mozsocket is used: with handlers, or with ``stream()``
    :ivar bound: the lowest ratio where more is better, the highest where less is better
    :ivar peer_backend: the peer's event loop; None for the same one
    """

    scenario: str
    figure: str
    backend: str
    subject: str
    peer: str
    bound: float
    peer_backend: str | None = None

    @property
    def reference(self) -> Reference:
        return Reference(self.peer_backend or self.backend, self.peer, self.figure)

    @property
    def unit(self) -> str:
        where = f" on {LOOPS[self.peer_backend]}" if self.peer_backend else ""
        return f"× {SUBJECTS[self.peer].label}{where}"


class Limit(NamedTuple):
    """A bound on mozsocket's figure that does not depend on a peer.

    :ivar other_figure: another figure, of which the bound is a multiple; None if the bound is an absolute value
    """

    scenario: str
    figure: str
    backend: str
    bound: float
    unit: str
    other_figure: str | None = None
    subject: str = "mozsocket"

    @property
    def reference(self) -> Reference | None:
        return Reference(self.backend, self.subject, self.other_figure) if self.other_figure else None


Peer = tuple[str, float] | tuple[str, float, str]
"""A subject, the bound, and the subject's event loop if it differs."""


def _row(
    scenarios: str,
    figure: str,
    *,
    asyncio: Peer | None = None,
    uvloop: Peer | None = None,
    trio: Peer | None = None,
    subject: str = "mozsocket",
) -> list[Target]:
    per_backend = {"asyncio": asyncio, "uvloop": uvloop, "trio": trio}
    return [
        Target(scenario, figure, backend, subject, *peer)
        for scenario in scenarios.split()
        for backend, peer in per_backend.items()
        if peer
    ]


def _limits(scenario: str, figure: str, bound: float, unit: str, other_figure: str | None = None) -> list[Limit]:
    return [Limit(scenario, figure, backend, bound, unit, other_figure) for backend in LOOPS]


TARGETS: list[Target | Limit] = [
    *_row("bulk", "rate", asyncio=("protocol", 3), uvloop=("protocol", 1), trio=("trio", 1)),
    *_row("messages", "rate", asyncio=("protocol", 5), uvloop=("protocol", 2.5), trio=("trio", 100)),
    *_row("echo", "rate", asyncio=("protocol", 0.95), uvloop=("protocol", 0.8), trio=("trio", 3)),
    *_row("echo-100", "rate", asyncio=("protocol", 1), uvloop=("protocol", 0.8), trio=("trio", 3.5)),
    *_row("tls-bulk", "rate", asyncio=("protocol", 1), uvloop=("anyio", 1), trio=("trio", 1)),
    *_row("tls-echo tls-echo-100", "rate", asyncio=("protocol", 1), uvloop=("protocol", 0.7), trio=("trio", 3)),
    *_row(
        "bulk echo tls-bulk tls-echo",
        "rate",
        asyncio=("anyio", 1),
        uvloop=("anyio", 1),
        trio=("anyio", 1),
        subject="mozsocket-stream",
    ),
    *_row(
        "load-50 load-500",
        "rate",
        asyncio=("protocol", 1),
        uvloop=("protocol", 0.9),
        trio=("protocol", 0.9, "uvloop"),
    ),
    *_row("load-50", "rate", trio=("trio", 2.2)),
    *_row("load-500", "rate", trio=("trio", 3)),
    *_row("redis redis-pipelined", "rate", asyncio=("protocol", 1), uvloop=("protocol", 1)),
    *_row("visits", "processor", asyncio=("protocol", 1.2), uvloop=("protocol", 2), trio=("trio", 0.6)),
    *_row("short", "rate", asyncio=("protocol", 0.7), uvloop=("protocol", 0.3), trio=("trio", 1.3)),
    *_limits("idle", "memory", 5, "KiB a connection"),
    *_row("latency", "p99", asyncio=("protocol", 1), uvloop=("anyio", 1), trio=("trio", 1)),
    *_limits("growth", "10000", 1.5, "× among 100", "100"),
]
