"""What tests are run with: how it is named."""

from __future__ import annotations

import re


def shown(value: object) -> str:
    """For ``ids``: a ``repr()`` that is the same in each process, so that tests can be asked for and shared out."""
    return re.sub(" at 0x[0-9a-f]+", "", repr(value))
