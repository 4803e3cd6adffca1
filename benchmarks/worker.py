"""A measurement, in a process of its own: ``python -m benchmarks.worker SUBJECT BACKEND SCALE SCENARIO``.

It takes several scenarios too, but what one leaves in memory may make the next faster or slower.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import anyio

from .clients import allow_many_descriptors
from .scenarios import SCENARIOS
from .subjects import SUBJECTS, make
from .subjects.base import Foreign

__all__ = ("measure",)

WARM_UP = 0.02
"""How much of a measurement is made before, untimed."""

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
    "none": ("asyncio", {}),
}
"""AnyIO's name and options; what brings its own event loop is waited for on asyncio."""


async def measure(scenario: str, subject: str, scale: float) -> dict[str, float]:
    """The figures of one scenario with one subject."""
    if SCENARIOS[scenario].small_messages:
        scale *= SUBJECTS[subject].per_message
    made = make(subject)
    if not isinstance(made, Foreign):  # which warms up itself, in the process that is measured
        await SCENARIOS[scenario].run(made, scale * WARM_UP)
    return await SCENARIOS[scenario].run(made, scale)


def main() -> None:
    subject, backend, scale, *scenarios = sys.argv[1:]
    allow_many_descriptors()
    bytearray(1 << 20)  # freed again: as in a program that has run for a while, glibc maps no buffers for reads
    name, options = BACKENDS[backend]
    for scenario in scenarios:
        figures = anyio.run(measure, scenario, subject, float(scale), backend=name, backend_options=options)
        print(json.dumps(figures), flush=True)
    os._exit(0)  # whatever threads are left, and with no time spent on taking down


if __name__ == "__main__":
    main()
