"""The figures of a run, and their medians, ratios and targets."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import ssl
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

from .scenarios import SCENARIOS, Figure
from .subjects import LOOPS, SUBJECTS
from .targets import TARGETS, Limit, Target

__all__ = ("Key", "Outcome", "Results", "Series")

PROTOTYPE = "prototype"
"""The subject that shows what can be reached."""

PACKAGES = ("mozsocket", "anyio", "trio", "uvloop", "twisted")


class Key(NamedTuple):
    """Identifies a measurement: the scenario, the event loop and the subject."""

    scenario: str
    backend: str
    subject: str

    @property
    def label(self) -> str:
        label = SUBJECTS[self.subject].label
        return f"{label} on {LOOPS[self.backend]}" if self.backend in LOOPS else label


class Series(NamedTuple):
    """All measured values of one figure."""

    figure: Figure
    values: list[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)


class Outcome(NamedTuple):
    """Whether a target was met.

    :ivar text: the target in words
    :ivar reached: the ratio or value that was measured; None if a measurement failed
    :ivar attainable: the ratio that the prototype has reached in mozsocket's place; None if it was not measured
    """

    text: str
    reached: float | None
    met: bool
    attainable: float | None


@dataclass
class Results:
    """All figures of a run, in the order in which they were first measured.

    :ivar failures: the measurements that failed, and the reasons
    :ivar environment: the machine, and the versions of the software
    """

    figures: dict[Key, dict[str, list[float]]] = field(default_factory=dict)
    failures: dict[Key, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=lambda: _environment())

    def add(self, key: Key, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.figures.setdefault(key, {}).setdefault(name, []).append(value)

    def series(self, scenario: str) -> Iterator[tuple[Figure, dict[Key, Series]]]:
        """Each figure of a scenario, with the values of every subject and event loop measured."""
        for figure in SCENARIOS[scenario].figures:
            found = {
                key: Series(figure, figures[figure.name])
                for key, figures in self.figures.items()
                if key.scenario == scenario and figure.name in figures
            }
            if found:
                yield figure, found

    def median(self, key: Key, figure: str) -> float | None:
        values = self.figures.get(key, {}).get(figure)
        return statistics.median(values) if values else None

    def ratio(self, scenario: str, figure: str, backend: str, peer: str, subject: str = "mozsocket") -> float | None:
        """The ratio of mozsocket's median to a peer's on the same event loop; None if either was not measured."""
        return self._quotient(figure, Key(scenario, backend, subject), figure, Key(scenario, backend, peer))

    def _quotient(self, figure: str, key: Key, other_figure: str, other: Key) -> float | None:
        dividend, divisor = self.median(key, figure), self.median(other, other_figure)
        return dividend / divisor if dividend is not None and divisor else None

    def reached(self, target: Target | Limit, subject: str | None = None) -> float | None:
        """The ratio or value that the target's bound applies to; None if it was not measured.

        :param subject: what is compared with the peer; None for the target's own
        """
        key = Key(target.scenario, target.backend, subject or target.subject)
        if target.reference is None:
            return self.median(key, target.figure)
        backend, subject, figure = target.reference
        return self._quotient(target.figure, key, figure, Key(target.scenario, backend, subject))

    def has_failed(self, target: Target | Limit) -> bool:
        """Whether a measurement that the target needs has failed."""
        sides = [target, target.reference] if target.reference else [target]
        return any(Key(target.scenario, side.backend, side.subject) in self.failures for side in sides)

    def outcomes(self) -> list[Outcome]:
        """The outcomes of the targets that were tried. A target whose measurement failed counts as missed."""
        outcomes = []
        for target in TARGETS:
            reached = self.reached(target)
            if reached is not None or self.has_failed(target):
                figures = SCENARIOS[target.scenario].figures
                more = next(figure.more_is_better for figure in figures if figure.name == target.figure)
                met = reached is not None and (reached >= target.bound if more else reached <= target.bound)
                how = "" if target.subject == "mozsocket" else f", {SUBJECTS[target.subject].label}"
                text = f"{target.scenario}{how} on {LOOPS[target.backend]}"
                text += f": {'≥' if more else '≤'} {target.bound:g} {target.unit}"
                attainable = self.reached(target, PROTOTYPE) if target.subject == "mozsocket" else None
                outcomes.append(Outcome(text, reached, met, attainable))
        return outcomes

    def write_json(self, path: Path) -> None:
        rows: list[dict[str, Any]] = [
            {
                "scenario": key.scenario,
                "event_loop": key.backend,
                "subject": key.subject,
                "figure": series.figure.name,
                "unit": series.figure.unit,
                "values": series.values,
                "median": series.median,
            }
            for scenario in SCENARIOS
            for _, found in self.series(scenario)
            for key, series in found.items()
        ]
        failures: list[dict[str, str]] = [
            {"scenario": key.scenario, "event_loop": key.backend, "subject": key.subject, "reason": reason}
            for key, reason in self.failures.items()
        ]
        document = {"environment": self.environment, "figures": rows, "failures": failures}
        path.write_text(json.dumps(document, indent=1) + "\n")

    @classmethod
    def read_json(cls, path: Path) -> Results:
        """Read the results that :meth:`write_json` has written."""
        document = json.loads(path.read_text())
        results = cls(environment=document["environment"])
        for row in document["figures"]:
            key = Key(row["scenario"], row["event_loop"], row["subject"])
            results.figures.setdefault(key, {})[row["figure"]] = row["values"]
        for failure in document["failures"]:
            key = Key(failure["scenario"], failure["event_loop"], failure["subject"])
            results.failures[key] = failure["reason"]
        return results


def _environment() -> dict[str, str]:
    found = {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "processor": f"{_processor()}, {os.cpu_count()} of its cores",
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "Python": platform.python_version(),
        "OpenSSL": ssl.OPENSSL_VERSION.split()[1],
    }
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    for name, program in (("Node", "node"), ("Redis", "redis-benchmark")):
        if shutil.which(program):
            version = subprocess.run([program, "--version"], capture_output=True, text=True).stdout
            found[name] = version.split()[-1]
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
