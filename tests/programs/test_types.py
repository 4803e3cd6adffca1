"""mypy and pyright in strict mode accept the examples, and find in typed.py exactly what it marks.

The checkers are in the extra ``dev``. Their results do not depend on the version of Python.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ..examples import EXAMPLES

ROOT = Path(__file__).parents[2]

STRICT = {
    "typeCheckingMode": "strict",
    "reportUnnecessaryTypeIgnoreComment": True,
    "extraPaths": [str(ROOT)],
}
"""The configuration of pyright."""

pytestmark = pytest.mark.timeout(300)  # the checkers read all of AnyIO and Trio


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the examples and typed.py."""
    folder = tmp_path_factory.mktemp("programs")
    shutil.copytree(EXAMPLES, folder / "programs")
    shutil.copy(ROOT / "tests" / "typed.py", folder)
    (folder / "pyrightconfig.json").write_text(json.dumps(STRICT))
    return folder


def check(command: list[str], folder: Path) -> None:
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_mypy(programs: Path) -> None:
    pytest.importorskip("mypy")
    check([sys.executable, "-m", "mypy", "--strict", "."], programs)


def test_pyright(programs: Path) -> None:
    pytest.importorskip("pyright")
    check([sys.executable, "-m", "pyright", "--pythonpath", sys.executable], programs)
