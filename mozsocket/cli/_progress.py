"""Progress bars on standard error: how much a connection has sent and received."""

from __future__ import annotations

import os
import sys
from typing import Any

from tqdm import tqdm

__all__ = ("Progress",)


class Progress:
    """One bar for sent data and one for received data, each shown from its first byte on.

    :param total: how many bytes there are to send, if known
    """

    def __init__(self, *, enabled: bool, total: int | None) -> None:
        self._enabled = enabled
        self._totals = {"sent": total, "received": None}
        self._bars: dict[str, tqdm[Any]] = {}

    def count(self, what: str, size: int) -> None:
        """Advance a bar.

        :param what: ``"sent"`` or ``"received"``
        :param size: the number of further bytes
        """
        if not self._enabled:
            return
        if what not in self._bars:
            self._bars[what] = self._make_bar(what)
        self._bars[what].update(size)

    def _make_bar(self, what: str) -> tqdm[Any]:
        return tqdm(
            desc=f"{what:8}",
            total=self._totals[what],
            unit="B",
            unit_scale=True,
            unit_divisor=1024,
            file=sys.stderr,
            position=len(self._bars),
            **width(),
        )

    def close(self) -> None:
        """Leave the bars as they are, with their last counts."""
        for bar in self._bars.values():
            bar.close()


def width() -> dict[str, Any]:
    """tqdm's options for the width of a bar: the terminal's, even when resized; 80 if the terminal reports none."""
    try:
        known = os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except (AttributeError, OSError, ValueError):  # not a terminal
        known = True
    return {"dynamic_ncols": True} if known else {"ncols": 80, "nrows": 24}
