"""Helpers for parametrized tests: their ids, and tests that one event loop is enough for."""

from __future__ import annotations

import re

import pytest

from .peers import LOOPS

on_one_loop = pytest.mark.parametrize("anyio_backend", [LOOPS["trio"]], ids=["trio"])
"""For long tests in which the event loop plays no part. Trio is the one that every test run includes."""


def shown(value: object) -> str:
    """A ``repr()`` for ``ids`` that is the same in each process, so that tests can be distributed and selected."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))
