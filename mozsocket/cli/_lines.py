"""Lines for the user, which do not end up in the middle of a progress bar."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import TextIO

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
    stream = sys.stderr if err else sys.stdout
    try:
        with tqdm.external_write_mode(file=stream):
            click.echo(line, err=err)
    except OSError:
        _give_up(stream)
        raise


def _give_up(stream: TextIO) -> None:
    """What could not be written, Python would try to write once more when it ends, and end with status 120."""
    with suppress(OSError, ValueError):  # it may have no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
