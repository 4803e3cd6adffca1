"""The benchmarks: every scenario runs with every subject at a tiny size; and the evaluation of figures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from benchmarks.redis import Session
from benchmarks.report import plot, print_tables, summary, write_markdown
from benchmarks.results import Key, Results
from benchmarks.runner import MeasurementError, certificate, measure, one_round, plan, run
from benchmarks.scenarios import SCENARIOS, Scenario
from benchmarks.subjects import SUBJECTS, Entry
from benchmarks.subjects.base import Arrival, check_echo
from benchmarks.targets import TARGETS

PROJECT = Path(__file__).parents[2]
TINY = 0.0005
PAIRS = [(name, backend) for name, entry in SUBJECTS.items() for backend in entry.backends]
REDIS_PAIRS = [(name, backend) for name, backend in PAIRS if SUBJECTS[name].serves_redis]


@pytest.mark.parametrize(("subject", "backend"), PAIRS, ids=map("-".join, PAIRS))
def test_every_scenario(subject: str, backend: str) -> None:
    check_scenarios(subject, backend, scenarios_of(subject, redis=False))


@pytest.mark.parametrize(("subject", "backend"), REDIS_PAIRS, ids=map("-".join, REDIS_PAIRS))
def test_every_scenario_of_redis(subject: str, backend: str) -> None:
    check_scenarios(subject, backend, scenarios_of(subject, redis=True))


def scenarios_of(subject: str, *, redis: bool) -> list[str]:
    return [
        name
        for name, scenario in SCENARIOS.items()
        if scenario.redis is redis and SUBJECTS[subject].takes_part_in(name)
    ]


def check_scenarios(subject: str, backend: str, scenarios: list[str]) -> None:
    needs: list[Entry | Scenario] = [SUBJECTS[subject], *(SCENARIOS[name] for name in scenarios)]
    for needed in needs:
        if not needed.is_available():
            if os.environ.get("CI"):
                pytest.fail(f"{needed.needs} is not installed")
            pytest.skip(f"{needed.needs} is not installed")
    with certificate() as environment:
        command = [sys.executable, "-m", "benchmarks.worker", subject, backend, str(TINY), *scenarios]
        done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == len(scenarios)
    for line, scenario in zip(lines, [SCENARIOS[name] for name in scenarios], strict=True):
        figures = json.loads(line)
        assert list(figures) == [figure.name for figure in scenario.figures]
        figures.pop("memory", None)  # may be negative with so few connections, as the process can shrink
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
    assert "echo on Trio: ≥ 3 × Trio streams: " in done.stdout
    document = json.loads((tmp_path / "figures.json").read_text())
    assert document["failures"] == []
    assert [row["subject"] for row in document["figures"]] == ["mozsocket", "trio"]
    for row in document["figures"]:
        assert list(row) == ["scenario", "event_loop", "subject", "figure", "unit", "values", "median"]
        assert len(row["values"]) == 2
        assert row["median"] == sum(row["values"]) / 2
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


def test_each_round_has_another_order_within_the_scenarios() -> None:
    keys = plan(["echo", "short"], ["asyncio", "trio"], ["mozsocket", "mozsocket-stream", "anyio"])
    rounds = [one_round(keys, seed) for seed in range(3)]
    for order in rounds:
        assert [key.scenario for key in order] == ["echo"] * 6 + ["short"] * 6
        assert sorted(order) == sorted(keys)
    assert rounds[0] != rounds[1] != rounds[2] != rounds[0]
    assert one_round(keys, 1) == rounds[1]


def test_a_scenario_is_measured_several_times_a_round_all_subjects_in_turn() -> None:
    keys = plan(["visits", "short"], ["asyncio", "trio"], ["mozsocket", "anyio"])
    visits, short = keys[:4], keys[4:]
    order = one_round(keys, 0)
    assert [sorted(order[begin : begin + 4]) for begin in (0, 4, 8, 12)] == [sorted(visits)] * 3 + [sorted(short)]


def test_what_does_not_suit_a_scenario_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda program: program)
    assert plan(["redis", "load-500"], ["trio"], ["mozsocket", "trio", "blocking"]) == [
        Key("redis", "trio", "mozsocket"),
        Key("load-500", "trio", "mozsocket"),
        Key("load-500", "trio", "trio"),
    ]
    assert plan(["tls-echo", "echo"], ["trio"], ["prototype"]) == [Key("echo", "trio", "prototype")]
    monkeypatch.setattr(shutil, "which", lambda program: None)
    assert plan(["redis", "redis-pipelined"], ["trio"], ["mozsocket"]) == []


COMMANDS_AND_REPLIES = [
    ([b"PING"], b"+PONG\r\n"),
    ([b"echo", b"two\r\nlines"], b"$10\r\ntwo\r\nlines\r\n"),
    ([b"GET", b"key"], b"$-1\r\n"),
    ([b"SET", b"key", b""], b"+OK\r\n"),
    ([b"GET", b"key"], b"$0\r\n\r\n"),
    ([b"INCR", b"number"], b":1\r\n"),
    ([b"INCR", b"number"], b":2\r\n"),
    ([b"GET", b"number"], b"$1\r\n2\r\n"),
    ([b"INCR", b"key"], b"-ERR value is not an integer\r\n"),
    ([b"CONFIG", b"GET", b"save"], b"*2\r\n$4\r\nsave\r\n$0\r\n\r\n"),
    ([b"CONFIG", b"SET", b"save"], b"-ERR unknown subcommand 'SET'\r\n"),
    ([b"GET"], b"-ERR wrong number of arguments for 'GET'\r\n"),
    ([b"FLUSHALL", b"ASYNC"], b"-ERR unknown command 'FLUSHALL'\r\n"),
]


def resp(*command: bytes) -> bytes:
    return b"*%d\r\n" % len(command) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in command)


def test_redis_answers_each_command() -> None:
    session = Session({})
    assert [(command, session.answer(resp(*command))) for command, _ in COMMANDS_AND_REPLIES] == COMMANDS_AND_REPLIES


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_redis_takes_pipelined_commands_in_pieces_of_any_size(size: int) -> None:
    session = Session({})
    data = b"".join(resp(*command) for command, _ in COMMANDS_AND_REPLIES)
    replies = [session.answer(data[begin : begin + size]) for begin in range(0, len(data), size)]
    assert b"".join(replies) == b"".join(reply for _, reply in COMMANDS_AND_REPLIES)


def test_redis_has_one_store_for_all_connections() -> None:
    store: dict[bytes, bytes] = {}
    Session(store).answer(resp(b"SET", b"key", b"value"))
    assert Session(store).answer(resp(b"GET", b"key")) == b"$5\r\nvalue\r\n"


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        (b"PING\r\n", "neither an array nor a bulk string"),
        (b"*1\r\n+PING\r\n", "neither an array nor a bulk string"),
        (b"*0\r\n", "an empty command"),
        (b"*-1\r\n", "a length that is not a number"),
        (b"*1\r\n$\r\n", "a length that is not a number"),
        (b"*1\r\n$3\r\nPING\r\n", "a string longer than its length says"),
    ],
)
@pytest.mark.parametrize("before", [b"", resp(b"PING")])
def test_redis_takes_nothing_else(before: bytes, wrong: bytes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Session({}).answer(before + wrong)


def test_a_failure_is_reported_and_stops_nothing() -> None:
    with pytest.raises(MeasurementError, match="KeyError: 'no such subject'"):
        measure(Key("echo", "trio", "no such subject"), TINY, dict(os.environ))
    failing, working = Key("echo", "trio", "no such subject"), Key("echo", "none", "blocking")
    shown: list[Key] = []
    results = run([failing, working], 2, TINY, shown.append)
    assert sorted(shown) == sorted([failing, working] * 2)
    assert list(results.failures) == [failing]
    assert list(results.figures) == [working]
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
        results.add(Key("load-50", "trio", "mozsocket"), {"rate": ours, "processor": 1})
        results.add(Key("load-50", "trio", "prototype"), {"rate": ours * 2, "processor": 1})
        results.add(Key("load-50", "trio", "trio"), {"rate": theirs / 2, "processor": 1})
        results.add(Key("load-50", "uvloop", "protocol"), {"rate": theirs * 2, "processor": 1})
        results.add(Key("idle", "trio", "mozsocket"), {"memory": ours / 10, "answer": 1})
        results.add(Key("growth", "uvloop", "mozsocket"), {"1": 1, "100": 20, "10000": ours})
    results.failures[Key("bulk", "none", "node")] = "no node"
    return results


def test_ratios_are_of_medians(results: Results) -> None:
    assert results.ratio("bulk", "rate", "asyncio", "protocol") == 1.5
    assert results.ratio("bulk", "rate", "uvloop", "protocol") is None
    assert results.outcomes() == [
        ("bulk on asyncio: ≥ 3 × asyncio.Protocol", 1.5, False, None),
        ("bulk, mozsocket's stream() on uvloop: ≥ 1 × AnyIO streams", 20 / 30, False, None),
        ("load-50 on Trio: ≥ 0.9 × asyncio.Protocol on uvloop", 0.75, False, 1.5),
        ("load-50 on Trio: ≥ 2.2 × Trio streams", 3, True, 6),
        ("idle on Trio: ≤ 5 KiB a connection", 3, True, None),
        ("latency on Trio: ≤ 1 × Trio streams", 1.5, False, None),
        ("growth on uvloop: ≤ 1.5 × among 100", 1.5, True, None),
    ]


@pytest.mark.parametrize(
    ("failed", "target"),
    [
        (Key("bulk", "asyncio", "protocol"), "bulk on asyncio: ≥ 3 × asyncio.Protocol"),
        (Key("load-50", "uvloop", "protocol"), "load-50 on Trio: ≥ 0.9 × asyncio.Protocol on uvloop"),
        (Key("idle", "trio", "mozsocket"), "idle on Trio: ≤ 5 KiB a connection"),
        (Key("growth", "uvloop", "mozsocket"), "growth on uvloop: ≤ 1.5 × among 100"),
    ],
    ids=["the same loop", "another loop", "a value", "a multiple of its own"],
)
def test_a_target_that_could_not_be_measured_is_missed(results: Results, failed: Key, target: str) -> None:
    del results.figures[failed]
    results.failures[failed] = "not done within 120 s"
    assert (target, None, False) in [outcome[:3] for outcome in results.outcomes()]


def test_targets_are_of_what_is_measured() -> None:
    for target in TARGETS:
        figures = [figure.name for figure in SCENARIOS[target.scenario].figures]
        for backend, subject, figure in filter(
            None, [(target.backend, target.subject, target.figure), target.reference]
        ):
            assert figure in figures
            assert backend in SUBJECTS[subject].backends
            assert SCENARIOS[target.scenario].suits(SUBJECTS[subject])


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
    assert "| bulk on asyncio: ≥ 3 × asyncio.Protocol | 1.50 |  | missed |\n" in text
    assert "| load-50 on Trio: ≥ 0.9 × asyncio.Protocol on uvloop | 0.75 | 1.50 | missed |\n" in text
    assert "Not measured: bulk, Node: no node\n" in text


def test_figures_that_are_read_again(results: Results, tmp_path: Path) -> None:
    results.write_json(tmp_path / "figures.json")
    assert Results.read_json(tmp_path / "figures.json") == results


def test_the_environment_is_recorded() -> None:
    assert {"date", "processor", "system", "Python", "OpenSSL", "mozsocket", "anyio"} <= set(Results().environment)


def test_the_summary_is_of_the_targets(results: Results) -> None:
    lines = summary(results)
    assert lines[2] == ("| One way, sends of 64 KiB (MB/s; more is better) | 1.50 × asyncio.Protocol |  |  |")
    assert lines[-2] == (
        "| Echo of 64 B beside a transfer (µs, 99th percentile; less is better) |  |  | 1.50 × Trio streams |"
    )
    assert lines[-1].endswith(", 10,000 at once; less is better) |  | 1.50 × among 100 |  |")
    assert "| 10,000 idle connections (KiB a connection; less is better) |  |  | 3.00 KiB a connection |" in lines
    assert (
        "| Server under load, 50 connections (thousand round trips/s; more is better) |  |  "
        "| 0.75 × asyncio.Protocol on uvloop; 3.00 × Trio streams |"
    ) in lines
    assert "| `stream()`: One way, sends of 64 KiB (MB/s; more is better) |  | 0.67 × AnyIO streams |  |" in lines
    assert len(lines) == 2 + len({(target.scenario, target.figure, target.subject) for target in TARGETS})


@pytest.fixture(scope="module")
def fonts(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Load Matplotlib's fonts once, as it keeps their files open."""
    plot(Results(figures={Key("bulk", "none", "node"): {"rate": [1.0]}}), tmp_path_factory.mktemp("plot") / "plot.svg")


@pytest.mark.usefixtures("fonts")
def test_the_plot_shows_every_figure(results: Results, tmp_path: Path) -> None:
    plot(results, tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert text.count(">asyncio.Protocol on asyncio<") == 1
    assert text.count(">Trio streams on Trio<") == 4
    plot(results, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text
