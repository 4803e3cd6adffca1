"""Makes one measurement and prints its figures: ``python -m benchmarks.worker SUBJECT BACKEND SCALE SCENARIO``.

Several scenarios are accepted, but what one leaves in memory may make the next faster or slower.
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
"""The fraction of a measurement that is run first, untimed."""

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
    "none": ("asyncio", {}),
}
"""AnyIO's name and options for each. Subjects with their own event loop are awaited on asyncio."""


async def measure(scenario: str, subject: str, scale: float) -> dict[str, float]:
    """Measure one scenario with one subject, and return the figures."""
    if SCENARIOS[scenario].small_messages:
        scale *= SUBJECTS[subject].per_message
    made = make(subject)
    if not isinstance(made, Foreign):  # a foreign subject warms up by itself, in the process that is measured
        await SCENARIOS[scenario].run(made, scale * WARM_UP)
    return await SCENARIOS[scenario].run(made, scale)


def main() -> None:
    subject, backend, scale, *scenarios = sys.argv[1:]
    allow_many_descriptors()
    bytearray(1 << 20)  # freed again: afterwards, as in a long-running program, glibc maps no memory for each read
    name, options = BACKENDS[backend]
    for scenario in scenarios:
        figures = anyio.run(measure, scenario, subject, float(scale), backend=name, backend_options=options)
        print(json.dumps(figures), flush=True)
    os._exit(0)  # ends without waiting for threads or spending time on cleanup


if __name__ == "__main__":
    main()
