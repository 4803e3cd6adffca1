"""Printing lines for the user without breaking the progress bars."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from typing import TextIO

import click
from tqdm import tqdm

__all__ = ("say",)

tqdm.monitor_interval = 0  # without tqdm's thread that monitors the bars
tqdm.set_lock(threading.RLock())  # tqdm's default lock serves several processes too, and may start one for that


def say(line: str, *, err: bool = True) -> None:
    """Print a line above the progress bars, which move down.

    :param err: whether to print to standard error, or else to standard output
    :raises OSError: if it cannot be written, such as when its reader has closed
    """
    stream = sys.stderr if err else sys.stdout
    try:
        with tqdm.external_write_mode(file=stream):
            click.echo(line, err=err)
    except OSError:
        _give_up(stream)
        raise


def _give_up(stream: TextIO) -> None:
    """Redirect a broken stream to nowhere.

    Otherwise Python would try at exit to write the unwritten line again, and exit with status 120.
    """
    with suppress(OSError, ValueError):  # it may have no descriptor
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)
