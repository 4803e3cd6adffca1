"""Access to the README and to the examples of the package."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mozsocket

from .peers import (
    PEER_TIMEOUT,
    all_blocked,
    blocking,
    read_exactly,
)

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


EXAMPLES = Path(mozsocket.__file__).parent / "examples"


def section(title: str) -> str:
    """The text below a heading of the README."""
    return re.split(rf"\n## {re.escape(title)}(?:<a id=.*></a>)?\n", README, maxsplit=1)[1].split("\n## ", 1)[0]


def code(name: str) -> str:
    """The source of an example."""
    return (EXAMPLES / f"{name}.py").read_text(encoding="utf-8")


def example(name: str) -> dict[str, Any]:
    """Execute an example as a fresh module, and return its namespace."""
    namespace: dict[str, Any] = {"__name__": "example"}
    exec(compile(code(name), f"{name}.py", "exec"), namespace)  # noqa: S102
    return namespace


def file_of(where: Path, name: str, *, port: int | None = None) -> str:
    """Write a copy of an example, and return its file name.

    :param port: the port to use instead of the one in the source
    """
    text = code(name)
    if port is not None:
        assert "8007" in text
        text = text.replace("8007", str(port))
    (where / f"the_{name}.py").write_text(text, encoding="utf-8")  # so that it has no other module's name
    return f"the_{name}.py"


def rows(title: str) -> list[list[str]]:
    """The rows of the table below a heading of the README."""
    lines = [line for line in section(title).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


async def port_from(capsys: pytest.CaptureFixture[str]) -> int:
    """Wait until an example prints the port that it listens on."""
    await all_blocked()
    found = re.fullmatch(r"listening on (\d+)\n", capsys.readouterr().out)
    assert found
    return int(found[1])


async def said(peer: socket.socket, text: bytes) -> None:
    assert await blocking(read_exactly, peer, len(text)) == text


def output_of(where: Path, *command: str, status: int = 0, stdin: str = "") -> str:
    """Run a program and return its output. Its exit status must be ``status``."""
    found = subprocess.run(
        [sys.executable, *command],
        cwd=where,
        input=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=PEER_TIMEOUT,
    )
    assert found.returncode == status, found.stdout
    return found.stdout
