"""The benchmarks: every scenario with every subject at a tiny size, and what is made of the figures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from benchmarks.report import plot, print_tables, summary, write_markdown
from benchmarks.results import Key, Results
from benchmarks.runner import MeasurementError, certificate, measure, plan, run
from benchmarks.scenarios import SCENARIOS
from benchmarks.subjects import SUBJECTS
from benchmarks.subjects.base import Arrival, check_echo
from benchmarks.targets import TARGETS

PROJECT = Path(__file__).parents[1]
TINY = 0.0005
PAIRS = [(name, backend) for name, entry in SUBJECTS.items() for backend in entry.backends]


@pytest.mark.parametrize(("subject", "backend"), PAIRS, ids=map("-".join, PAIRS))
def test_every_scenario(subject: str, backend: str) -> None:
    if not SUBJECTS[subject].is_available():
        if os.environ.get("CI"):
            pytest.fail(f"{subject} is not installed")
        pytest.skip(f"{subject} is not installed")
    with certificate() as environment:
        command = [sys.executable, "-m", "benchmarks.worker", subject, backend, str(TINY), *SCENARIOS]
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(SCENARIOS)
    for line, scenario in zip(lines, SCENARIOS.values(), strict=True):
        figures = json.loads(line)
        assert list(figures) == [figure.name for figure in scenario.figures]
        figures.pop("memory", None)  # of the process for so few connections: it may have shrunk meanwhile
        assert all(value >= 0 for value in figures.values())


def test_the_command_line(tmp_path: Path) -> None:
    only = ["--scenario", "echo", "--backend", "trio", "--subject", "mozsocket", "--subject", "trio"]
    options = [*only, "--rounds", "2", "--quick"]
    files = ["--json", str(tmp_path / "figures.json"), "--plot", str(tmp_path / "plot.svg")]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options, *files], cwd=PROJECT, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    assert "Echo of 64 B, 1 connection (thousand round trips/s; more is better)" in done.stdout
    assert "× Trio streams on Trio" in done.stdout
    document = json.loads((tmp_path / "figures.json").read_text())
    assert document["failures"] == []
    assert [row["subject"] for row in document["figures"]] == ["mozsocket", "trio"]
    for row in document["figures"]:
        assert list(row) == ["scenario", "event_loop", "subject", "figure", "unit", "rounds", "median"]
        assert len(row["rounds"]) == 2
        assert row["median"] == sum(row["rounds"]) / 2
    assert ElementTree.parse(tmp_path / "plot.svg").getroot().tag.endswith("svg")  # noqa: S314


def test_what_arrives_is_checked() -> None:
    arrival = Arrival(b"abc", 3)
    arrival.take(b"abca")
    arrival.take(b"bcab")
    assert arrival.missing == 1
    for wrong in (b"b", b"ca"):
        with pytest.raises(ValueError, match="what arrived is not what was sent"):
            Arrival(b"abc", 3).take(wrong)
    with pytest.raises(ValueError, match="what arrived is not what was sent"):
        arrival.take(b"cabc")
    with pytest.raises(ValueError, match="the echo is not what was sent"):
        check_echo(b"a", b"b")


def test_the_subjects_of_an_event_loop_are_measured_in_turn() -> None:
    keys = plan(["echo", "short"], ["trio"], ["mozsocket", "protocol", "trio", "blocking"])
    on_each = [("trio", "mozsocket"), ("trio", "trio"), ("none", "blocking")]
    assert keys == [Key(scenario, *rest) for scenario in ("echo", "short") for rest in on_each]


def test_a_failure_is_told_and_stops_nothing() -> None:
    with pytest.raises(MeasurementError, match="KeyError: 'no such subject'"):
        measure(Key("echo", "trio", "no such subject"), TINY, dict(os.environ))
    failing, working = Key("echo", "trio", "no such subject"), Key("echo", "none", "blocking")
    shown: list[Key] = []
    results = run([failing, working], 2, TINY, shown.append)
    assert shown == [failing, working] * 2
    assert list(results.failures) == [failing]
    assert len(results.figures[working]["rate"]) == 2


@pytest.fixture
def results() -> Results:
    results = Results(environment={"date": "2026-01-02"})
    for ours, theirs in ((30, 10), (50, 20), (10, 30)):
        results.add(Key("bulk", "asyncio", "mozsocket"), {"rate": ours})
        results.add(Key("bulk", "asyncio", "protocol"), {"rate": theirs})
        results.add(Key("bulk", "uvloop", "mozsocket-stream"), {"rate": theirs})
        results.add(Key("bulk", "uvloop", "anyio"), {"rate": ours})
        results.add(Key("latency", "trio", "mozsocket"), {"median": 1, "p99": ours})
        results.add(Key("latency", "trio", "trio"), {"median": 1, "p99": theirs})
        results.add(Key("growth", "uvloop", "mozsocket"), {"1": 1, "100": 20, "10000": ours})
    results.failures[Key("bulk", "none", "node")] = "no node"
    return results


def test_ratios_are_of_medians(results: Results) -> None:
    assert results.ratio("bulk", "rate", "asyncio", "protocol") == 1.5
    assert results.ratio("bulk", "rate", "uvloop", "protocol") is None
    assert [(outcome.ratio, outcome.met) for outcome in results.outcomes()] == [
        (1.5, False),
        (20 / 30, False),
        (1.5, False),
        (1.5, True),
    ]
    assert [outcome.text for outcome in results.outcomes()] == [
        "bulk: ≥ 3 × asyncio.Protocol on asyncio",
        "bulk, mozsocket's stream(): ≥ 1 × AnyIO streams on uvloop",
        "latency: ≤ 1 × Trio streams on Trio",
        "growth: a connection among 10,000 ≤ 1.5 × among 100, on uvloop",
    ]


def test_a_target_that_could_not_be_measured_is_missed(results: Results) -> None:
    del results.figures[Key("bulk", "asyncio", "protocol")]
    results.failures[Key("bulk", "asyncio", "protocol")] = "not done within 120 s"
    assert results.outcomes()[0] == ("bulk: ≥ 3 × asyncio.Protocol on asyncio", None, False)


def test_targets_are_of_what_is_measured() -> None:
    for target in TARGETS:
        assert target.figure in [figure.name for figure in SCENARIOS[target.scenario].figures]
        assert target.backend in SUBJECTS[target.peer].backends
        assert target.backend in SUBJECTS[target.subject].backends


def test_the_tables(results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_tables(results, Console(width=100))
    printed = capsys.readouterr().out
    assert "1.50 ×" in printed
    assert "failed: bulk, Node: no node" in printed
    write_markdown(results, tmp_path / "RESULTS.md", tmp_path / "RESULTS.svg")
    text = (tmp_path / "RESULTS.md").read_text()
    assert "- date: 2026-01-02\n" in text
    assert "| mozsocket on asyncio | 30 | 10–50 |  |\n" in text
    assert "| asyncio.Protocol on asyncio | 20 | 10–30 | 1.50 × |\n" in text
    assert "| bulk: ≥ 3 × asyncio.Protocol on asyncio | 1.50 | missed |\n" in text
    assert "Not measured: bulk, Node: no node\n" in text


def test_figures_that_are_read_again(results: Results, tmp_path: Path) -> None:
    results.write_json(tmp_path / "figures.json")
    assert Results.read_json(tmp_path / "figures.json") == results


def test_the_environment_is_told() -> None:
    assert {"date", "processor", "system", "Python", "OpenSSL", "mozsocket", "anyio"} <= set(Results().environment)


def test_the_summary_is_of_the_targets(results: Results) -> None:
    lines = summary(results)
    assert lines[2] == ("| One way, sends of 64 KiB (MB/s; more is better) | 1.50 × asyncio.Protocol |  |  |")
    assert lines[-1] == (
        "| Echo of 64 B beside a transfer (µs, 99th percentile; less is better) |  |  | 1.50 × Trio streams |"
    )
    assert "| `stream()`: One way, sends of 64 KiB (MB/s; more is better) |  | 0.67 × AnyIO streams |  |" in lines
    assert len(lines) == 2 + len(TARGETS) / 3


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Matplotlib keeps the files of its fonts open."""
    plot(Results(figures={Key("bulk", "none", "node"): {"rate": [1.0]}}), tmp_path_factory.mktemp("plot") / "plot.svg")


@pytest.mark.usefixtures("fonts")
def test_the_plot_shows_every_figure(results: Results, tmp_path: Path) -> None:
    plot(results, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert text.count(">asyncio.Protocol on asyncio<") == 1
    assert text.count(">Trio streams on Trio<") == 2
    plot(results, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text
