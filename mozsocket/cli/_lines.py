"""Lines for the user, which do not end up in the middle of a progress bar."""

from __future__ import annotations

import sys
import threading

import click
from tqdm import tqdm

__all__ = ("say",)

tqdm.monitor_interval = 0  # no thread that watches the bars
tqdm.set_lock(threading.RLock())  # in place of one that is for several processes too, and may start one for that


def say(line: str, *, err: bool = True) -> None:
    """Write a line where the progress bars are, which move down.

    :param err: to standard error, or else to standard output
    :raises OSError: if nobody reads it
    """
    with tqdm.external_write_mode(file=sys.stderr if err else sys.stdout):
        click.echo(line, err=err)
