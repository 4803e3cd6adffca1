"""Runs an event loop for a command, and prints errors as one line."""

from __future__ import annotations

import importlib.util
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.abc
import click

from .. import TCPSocket, TCPSocketError
from ._lines import say
from ._trace import peer_of

if sys.version_info < (3, 11):  # AnyIO depends on the backport
    from exceptiongroup import BaseExceptionGroup

__all__ = (
    "BACKENDS",
    "INTERRUPTED",
    "Complaints",
    "ConnectionLost",
    "Failure",
    "complain",
    "installed",
    "note",
    "run",
    "warn",
    "words",
)

STOP_SIGNALS = signal.SIGINT, signal.SIGTERM
"""The signals that ask the program to end."""

INTERRUPTED = 130
"""The exit status after Ctrl-C, as in shells: 128 plus the number of SIGINT."""

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


class Failure(click.ClickException):
    """An error that ends the command, with one line on standard error and exit status 1."""

    def show(self, file: Any = None) -> None:
        complain(self.message)


class ConnectionLost(Failure):
    """An error that ends one connection only."""


def complain(message: str) -> None:
    say(f"mozsocket: error: {message}")


def note(message: str) -> None:
    say(f"mozsocket: {message}")


def warn(message: str) -> None:
    say(f"mozsocket: warning: {message}")


class Complaints(logging.Handler):
    """Prints what the package logs in the command's own style.

    An example is a connection that fails in its TLS handshake, before it is handed to the program.
    """

    def emit(self, record: logging.LogRecord) -> None:
        match record.args:
            case (TCPSocket() as socket, TCPSocketError() as error):
                message = f"connection with {peer_of(socket)}: {error.detail}"
            case _:
                message = self.format(record)
        try:
            complain(message)
        except OSError:
            pass  # standard error is closed, which must not end the connection

    @contextmanager
    def installed(self) -> Iterator[None]:
        """A block in which this is a handler of the package's logger."""
        logger = logging.getLogger("mozsocket")
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)


def words(exc: Exception) -> str:
    """The text of an exception, without its class and error number."""
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__


def installed(backend: str) -> bool:
    return importlib.util.find_spec(backend) is not None


def run(backend: str, function: Callable[[], Awaitable[None]], stop: Callable[[], bool] = lambda: False) -> int:
    """Run a function in an event loop until it returns, or until Ctrl-C or SIGTERM.

    :param stop: called at the first signal. If it returns True, the function is about to end by itself, and only a
        second signal cancels it
    :return: the exit status: 0, or 128 plus the number of the signal
    :raises Failure: if the backend is not installed, or if the function raises it
    """
    if not installed(backend):
        raise Failure(f"{backend} is not installed: pip install 'mozsocket[{backend}]'")
    name, options = BACKENDS[backend]
    try:
        return anyio.run(run_until_signalled, function, stop, backend=name, backend_options=options)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseExceptionGroup as group:
        exc = first_of(group)
        if isinstance(exc, KeyboardInterrupt):
            return INTERRUPTED
        raise exc from exc.__cause__


def first_of(exc: BaseException) -> BaseException:
    """The first exception within nested exception groups, as raised by task groups."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


async def run_until_signalled(function: Callable[[], Awaitable[None]], stop: Callable[[], bool]) -> int:
    """The part of :func:`run` that runs within the event loop."""
    status = 0
    # A signal that is ignored stays so: shells make background jobs of a script ignore Ctrl-C.
    watched = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]

    async def watch(task_status: anyio.abc.TaskStatus[None]) -> None:
        nonlocal status
        stopping = False
        try:
            with anyio.open_signal_receiver(*watched) as signals:
                task_status.started()
                async for number in signals:
                    if not stopping and stop():
                        stopping = True
                    else:
                        status = 128 + number
                        tasks.cancel_scope.cancel()
        except NotImplementedError:  # pragma: no cover  (asyncio on Windows: KeyboardInterrupt will end the loop)
            task_status.started()

    async with anyio.create_task_group() as tasks:
        # Otherwise Ctrl-C would raise KeyboardInterrupt anywhere, and one from a handler would print a traceback.
        if watched:
            await tasks.start(call_with_status, watch)
        await function()
        tasks.cancel_scope.cancel()
    return status


async def call_with_status(
    function: Callable[[anyio.abc.TaskStatus[None]], Awaitable[None]], *, task_status: anyio.abc.TaskStatus[None]
) -> None:
    await function(task_status)
