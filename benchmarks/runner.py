"""Runs the measurements, each in a fresh process, in rounds, so that a slow minute affects all subjects alike. A
scenario's measurements come in another order each time: what precedes a measurement may affect it.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

import trustme

from .results import Key, Results
from .scenarios import SCENARIOS
from .subjects import SUBJECTS

__all__ = ("one_round", "plan", "run")

TIME_LIMIT = 120
"""The most seconds that a measurement may take."""


def plan(scenarios: Sequence[str], backends: Sequence[str], subjects: Sequence[str]) -> list[Key]:
    """What is measured in a round. Subjects with their own event loop are always included."""
    return [
        Key(scenario, backend, subject)
        for scenario in scenarios
        if SCENARIOS[scenario].is_available()
        for backend in (*backends, "none")
        for subject in subjects
        if backend in SUBJECTS[subject].backends
        and SUBJECTS[subject].takes_part_in(scenario)
        and SUBJECTS[subject].is_available()
        and SCENARIOS[scenario].suits(SUBJECTS[subject])
    ]


def run(keys: Sequence[Key], rounds: int, scale: float, progress: Callable[[Key], None]) -> Results:
    """Make all measurements.

    :param rounds: how often each is made, times its scenario's ``per_round``
    :param scale: the size of the measurements; 1 for full size
    :param progress: called before each measurement
    """
    results = Results()
    with certificate() as environment:
        for number in range(rounds):
            for key in one_round(keys, number):
                progress(key)
                if key in results.failures:
                    continue
                try:
                    results.add(key, measure(key, scale, environment))
                except MeasurementError as exc:
                    results.failures[key] = str(exc)
    results.figures = {key: results.figures[key] for key in keys if key in results.figures}
    return results


def one_round(keys: Sequence[Key], seed: int) -> list[Key]:
    """The measurements of a round: those of each scenario in random order, ``per_round`` times in turn.

    :param seed: the order is the same for the same seed
    """
    order = random.Random(seed)  # noqa: S311  (nothing secret)
    groups = ((SCENARIOS[name].per_round, list(group)) for name, group in groupby(keys, lambda key: key.scenario))
    return [key for times, group in groups for _ in range(times) for key in order.sample(group, len(group))]


class MeasurementError(Exception):
    """A measurement failed. The others still run."""


def measure(key: Key, scale: float, environment: dict[str, str]) -> dict[str, float]:
    """Run one measurement in a process and return its figures.

    :raises MeasurementError: if it fails, or takes too long
    """
    command = [sys.executable, "-m", "benchmarks.worker", key.subject, key.backend, str(scale), key.scenario]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT)
    except subprocess.TimeoutExpired:
        raise MeasurementError(f"not done within {TIME_LIMIT} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise MeasurementError(next((line for line in reversed(lines) if "Error" in line), lines[-1]).strip("| "))
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


@contextmanager
def certificate() -> Iterator[dict[str, str]]:
    """Environment variables for the measuring processes, which name a certificate for TLS."""
    authority = trustme.CA()
    with tempfile.TemporaryDirectory() as folder:
        leaf, root = Path(folder, "certificate.pem"), Path(folder, "authority.pem")
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(leaf))
        authority.cert_pem.write_to_path(str(root))
        yield {**os.environ, "BENCHMARKS_CERTIFICATE": str(leaf), "BENCHMARKS_AUTHORITY": str(root)}
