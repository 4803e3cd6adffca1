"""Running an event loop for a command, and failing with one line."""

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
"""What asks the program to end."""

INTERRUPTED = 130
"""The exit status after Ctrl-C: 128 and the number of SIGINT, as shells have it."""

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


class Failure(click.ClickException):
    """What ends the command with one line on standard error and exit status 1."""

    def show(self, file: Any = None) -> None:
        complain(self.message)


class ConnectionLost(Failure):
    """What ends one connection."""


def complain(message: str) -> None:
    say(f"mozsocket: error: {message}")


def note(message: str) -> None:
    say(f"mozsocket: {message}")


def warn(message: str) -> None:
    say(f"mozsocket: warning: {message}")


class Complaints(logging.Handler):
    """Tells in our own way what the package logs, such as a connection that ends before it is handed over, in its TLS
    handshake.
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
            pass  # nobody reads it, which is no trouble of the connection's

    @contextmanager
    def installed(self) -> Iterator[None]:
        logger = logging.getLogger("mozsocket")
        logger.addHandler(self)
        try:
            yield
        finally:
            logger.removeHandler(self)


def words(exc: Exception) -> str:
    """An exception without its class and number."""
    return (exc.strerror if isinstance(exc, OSError) else None) or str(exc) or type(exc).__name__


def installed(backend: str) -> bool:
    return importlib.util.find_spec(backend) is not None


def run(backend: str, function: Callable[[], Awaitable[None]], stop: Callable[[], bool] = lambda: False) -> int:
    """Run an event loop until a function is done, or Ctrl-C or SIGTERM.

    :param stop: called at the first of these. If it gives True, the function will soon be done, and only the second
        ends it
    :return: the exit status: 0, or that of a program that was ended by the signal
    :raises Failure: if the backend is not installed, or from the function
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
    """The exception itself, out of the groups that task groups put it in."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


async def run_until_signalled(function: Callable[[], Awaitable[None]], stop: Callable[[], bool]) -> int:
    status = 0
    # What is ignored, as shells have Ctrl-C for a script's background jobs, stays ignored.
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
        # Without this Ctrl-C would be an exception anywhere, and there would be a traceback from a handler.
        if watched:
            await tasks.start(call_with_status, watch)
        await function()
        tasks.cancel_scope.cancel()
    return status


async def call_with_status(
    function: Callable[[anyio.abc.TaskStatus[None]], Awaitable[None]], *, task_status: anyio.abc.TaskStatus[None]
) -> None:
    await function(task_status)
