"""The command line: ``python -m benchmarks``."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .report import plot, print_tables, write_markdown
from .results import Key, Results
from .runner import one_round, plan, run
from .scenarios import SCENARIOS
from .subjects import LOOPS, SUBJECTS

BACKENDS = tuple(LOOPS)
QUICK = 0.05
HERE = Path(__file__).parent


@click.command()
@click.option(
    "--scenario",
    "scenarios",
    multiple=True,
    type=click.Choice(tuple(SCENARIOS)),
    help="Only this scenario; repeatable.",
)
@click.option(
    "--backend", "backends", multiple=True, type=click.Choice(BACKENDS), help="Only this event loop; repeatable."
)
@click.option(
    "--subject", "subjects", multiple=True, type=click.Choice(tuple(SUBJECTS)), help="Only this subject; repeatable."
)
@click.option("--rounds", type=click.IntRange(1), help="How many rounds to measure; by default 5.")
@click.option("--quick", is_flag=True, help="One round of small measurements, for a rough impression.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write all figures to this file."
)
@click.option(
    "--plot", "plot_path", type=click.Path(path_type=Path, dir_okay=False), help="Draw the plot to this SVG file."
)
@click.option(
    "--from",
    "earlier",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Measure nothing: use the figures that an earlier run wrote with --json.",
)
@click.option("--results", "record", is_flag=True, help="Write benchmarks/RESULTS.md and its plot.")
@click.option("--check", is_flag=True, help="Exit with 1 if a target is missed.")
def main(
    scenarios: tuple[str, ...],
    backends: tuple[str, ...],
    subjects: tuple[str, ...],
    rounds: int | None,
    quick: bool,
    json_path: Path | None,
    plot_path: Path | None,
    earlier: Path | None,
    record: bool,
    check: bool,
) -> None:
    """Measure mozsocket and its alternatives in turn, each time in a fresh process."""
    if earlier:
        results = Results.read_json(earlier)
    else:
        keys = plan(scenarios or tuple(SCENARIOS), backends or BACKENDS, subjects or tuple(SUBJECTS))
        results = run_with_progress(keys, rounds or (1 if quick else 5), QUICK if quick else 1)
    print_tables(results, Console())
    if json_path:
        results.write_json(json_path)
    if plot_path:
        plot(results, plot_path)
    if record:
        plot(results, HERE / "RESULTS.svg")
        write_markdown(results, HERE / "RESULTS.md", HERE / "RESULTS.svg")
    if check and not all(outcome.met for outcome in results.outcomes()):
        raise SystemExit(1)


def run_with_progress(keys: list[Key], rounds: int, scale: float) -> Results:
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=Console(stderr=True)) as progress:
        total = len(one_round(keys, 0)) * rounds
        task = progress.add_task("", total=total)
        begun = -1

        def show(key: Key) -> None:
            nonlocal begun
            begun += 1
            progress.update(task, completed=begun, description=f"{key.scenario}: {key.label}")

        results = run(keys, rounds, scale, show)
        progress.update(task, completed=total, description="done")
    return results


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")
