"""The soak runs, and detects faults."""

from __future__ import annotations

from typing import Any

import pytest

from .. import soak

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def few_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "WORKERS", 8)  # each takes a thread


async def test_it_finds_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert await soak.Soak(seed=1).run(0.6) == []
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 2
    assert all("errors, all of them meant" in line for line in lines)


async def test_it_notices_a_wrong_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(server: Any, event: Any) -> None:
        event.target.send(bytes(len(event.data)))

    monkeypatch.setattr(soak.EchoServer, "_echo", spoil)
    problems = await soak.Soak(seed=1).run(0.6)
    assert any("wrong data" in problem for problem in problems)


async def test_it_notices_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    measure = soak.Soak._measure

    async def leak(self: soak.Soak) -> None:
        kept.extend([number] for number in range(2 * soak.OBJECTS))
        await measure(self)

    monkeypatch.setattr(soak.Soak, "_measure", leak)
    problems = await soak.Soak(seed=1).run(0.6)
    assert any(problem.startswith("objects: ") for problem in problems)
