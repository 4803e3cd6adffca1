"""Tables and a plot of the results of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure as Drawing
from rich.console import Console
from rich.table import Table

from .results import Key, Results, Series
from .scenarios import SCENARIOS, Figure
from .subjects import LOOPS
from .targets import TARGETS

__all__ = ("plot", "print_tables", "write_markdown")

INTRODUCTION = """\
# Results

Made by `python -m benchmarks --results`. The figures are medians of several rounds; the spread is from the lowest to
the highest. Each round measures the subjects of a scenario in another order, and three times where single figures
differ much on a shared machine. `mozsocket is` gives the ratio of mozsocket's median on the same event loop. Both ends
of a connection are in one process, except for a server under load, Redis, idle connections and the cost of a
connection: there the clients are in another process. Every process first frees a large block of memory, as a program
that has run for a while has done: until then glibc maps and unmaps the buffer of each read of 128 KiB and more, which
makes asyncio's protocols less than half as fast. Under load, the server's processor time is given in all and outside
the kernel. The kernel's part is about the same for all that receive and send once for a message, so the time outside of
it is all that there is to save.

The prototype is the least that mozsocket's interface costs in Python (`benchmarks/subjects/prototype.py`): an event, a
context and a buffered `send()` for each read, and nothing else: no TLS, failures, cancellation, limits or counts. A
target that it misses too is out of reach; the distance to it is what all of that costs.
"""

LIMITS = """\
## What limits the targets that are missed

Measured apart from the tables, by `perf record -e cpu-clock` of the server of load-50 on asyncio (2026-11-26): of the
processor time of a round trip, about 8 µs, the kernel's `send()` takes 57 %, as over loopback it delivers to the
receiver too; `recv()` takes 11 % and `epoll_wait()` 2 %. What remains outside of the kernel is 2.1 µs for mozsocket,
2.5 for asyncio.Protocol and 1.4 for the prototype. With stubs in place of `recv()` and `send()`, mozsocket's code takes
1.0 µs; the remainder is theirs outside of the kernel, and the event loop's.

- **Load, Redis, echo and short connections, on uvloop or against it:** uvloop's code is compiled, and takes less than a
  microsecond. The prototype, whose figures are beside the targets, is as near to it as Python comes; mozsocket adds
  0.6 µs to that for TLS, failures, cancellation, limits and counts, and to refuse `send()` from other threads.
- **Load and echo, as multiples of Trio streams:** nearly all that is left is the kernel's part, which Trio streams have
  too.
- **Bulk on asyncio, 3 ×:** the kernel copies each byte twice. Two threads with blocking sockets, which do nothing else,
  are slower.
- **Messages on Trio, 100 ×:** that would be 0.24 µs a message from one end to the other. The call of `send()` alone
  takes 0.25 µs.
- **Chance:** the machine has slow phases of some ten seconds. Two runs of that day gave, for load-50, 1.07 and 0.96 on
  asyncio, 0.86 and 1.01 on uvloop; for Redis on uvloop with 16 requests at once 0.91 and 1.16; for messages on asyncio
  6.12 and 4.61; for short connections on asyncio 0.97 and 1.22; for bulk by TLS and `stream()` on Trio 1.22 and 0.81.
"""

HEADINGS = ("", "median", "spread", "mozsocket is")


def print_tables(results: Results, console: Console) -> None:
    for scenario in SCENARIOS:
        for figure, found in results.series(scenario):
            console.print(f"\n[bold]{_title(scenario, figure)}", soft_wrap=True)
            table = Table(*HEADINGS)
            for row in _rows(results, figure, found):
                table.add_row(*row)
            console.print(table)
    for key, reason in results.failures.items():
        console.print(f"[red]failed:[/] {key.scenario}, {key.label}: {reason}")
    for outcome in results.outcomes():
        could = "" if outcome.attainable is None else f" (the prototype: {_ratio(outcome.attainable)})"
        word = "[green]met[/]   " if outcome.met else "[red]missed[/]"
        console.print(f"{word} {outcome.text}: {_ratio(outcome.reached)}{could}")


def write_markdown(results: Results, path: Path, plot_path: Path) -> None:
    lines = [INTRODUCTION]
    lines += [f"- {name}: {value}" for name, value in results.environment.items()]
    lines += ["", f"![The comparison]({plot_path.name})", "", "## In short", "", *summary(results)]
    lines += ["", "## Targets", "", "| target | reached | the prototype | |", "|---|---|---|---|"]
    for outcome in results.outcomes():
        could = "" if outcome.attainable is None else _ratio(outcome.attainable)
        lines.append(f"| {outcome.text} | {_ratio(outcome.reached)} | {could} | {'met' if outcome.met else 'missed'} |")
    lines += ["", LIMITS.rstrip()]
    for scenario in SCENARIOS:
        for figure, found in results.series(scenario):
            lines += ["", f"## {_title(scenario, figure)}", "", f"| {' | '.join(HEADINGS)} |", "|---|---:|---:|---:|"]
            lines += [f"| {' | '.join(row)} |" for row in _rows(results, figure, found)]
    lines += [f"\nNot measured: {key.scenario}, {key.label}: {reason}" for key, reason in results.failures.items()]
    path.write_text("\n".join(lines) + "\n")


def summary(results: Results) -> list[str]:
    """A table for the README: the figures and ratios of mozsocket for which there are targets."""
    lines = [f"| mozsocket's | {' | '.join(f'on {loop}' for loop in LOOPS.values())} |", "|---|---|---|---|"]
    for scenario, name, subject in dict.fromkeys((each.scenario, each.figure, each.subject) for each in TARGETS):
        cells: dict[str, list[str]] = {backend: [] for backend in LOOPS}
        for target in TARGETS:
            reached = results.reached(target)
            if (target.scenario, target.figure, target.subject) == (scenario, name, subject) and reached is not None:
                cells[target.backend].append(f"{reached:.2f} {target.unit}")
        figure = next(figure for figure in SCENARIOS[scenario].figures if figure.name == name)
        how = "" if subject == "mozsocket" else "`stream()`: "
        lines.append(f"| {how}{_title(scenario, figure)} | {' | '.join(map('; '.join, cells.values()))} |")
    return lines


def plot(results: Results, path: Path) -> None:
    """Draw each figure as bars, as SVG."""
    matplotlib.rcParams["svg.hashsalt"] = "mozsocket"  # the same figures always give the same file
    matplotlib.rcParams["svg.fonttype"] = "none"  # text as text, not as outlines
    panels = [
        (scenario, *entry) for scenario in SCENARIOS if scenario != "growth" for entry in results.series(scenario)
    ]
    rows = (len(panels) + 1) // 2
    drawing = Drawing(figsize=(13, 0.5 + 3.2 * rows))
    axes = drawing.subplots(rows, 2, squeeze=False)
    for axis, (scenario, figure, found) in zip(axes.flat, panels, strict=False):
        medians = [series.median for series in found.values()]
        colours = ["#c2410c" if key.subject == "mozsocket" else "#94a3b8" for key in found]
        axis.barh([key.label for key in found], medians, color=colours)
        axis.bar_label(axis.containers[0], [_number(median) for median in medians], padding=3, fontsize=7)
        axis.invert_yaxis()
        axis.margins(x=0.12)
        axis.set_title(_title(scenario, figure), fontsize=9, loc="left")
        axis.tick_params(labelsize=7)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    drawing.tight_layout()
    drawing.savefig(path, format="svg", metadata={"Date": None})


def _title(scenario: str, figure: Figure) -> str:
    better = "more is better" if figure.more_is_better else "less is better"
    return f"{SCENARIOS[scenario].title} ({figure.unit}; {better})"


def _rows(results: Results, figure: Figure, found: dict[Key, Series]) -> Iterator[tuple[str, str, str, str]]:
    for key, series in found.items():
        spread = f"{_number(min(series.values))}–{_number(max(series.values))}"
        ratio = results.ratio(key.scenario, figure.name, key.backend, key.subject)
        compared = "" if ratio is None or key.subject == "mozsocket" else f"{ratio:.2f} ×"
        yield key.label, _number(series.median), spread, compared


def _ratio(reached: float | None) -> str:
    return "not measured" if reached is None else f"{reached:.2f}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
