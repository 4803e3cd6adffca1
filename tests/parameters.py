"""What tests are run with: how it is named, and what need not be run with everything."""

from __future__ import annotations

import re

import pytest

from .peers import LOOPS

on_one_loop = pytest.mark.parametrize("anyio_backend", [LOOPS["trio"]], ids=["trio"])
"""For what the event loop has no part in, and takes long: on the one that is part of every run."""


def shown(value: object) -> str:
    """For ``ids``: a ``repr()`` that is the same in each process, so that tests can be asked for and shared out."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))
