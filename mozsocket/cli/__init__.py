"""The command line: ``mozsocket demo``, ``connect`` and ``listen``."""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from typing import Any, TypeVar

import anyio
import click

from .. import BinaryType, MozTCPSocket, TCPServerSocket, TCPServerSocketEvent, TCPSocket, TCPSocketError
from ._console import Console
from ._contexts import client_context, server_context
from ._demo import Contexts, Demo, conclusion
from ._echo import EchoService
from ._loop import (
    BACKENDS,
    INTERRUPTED,
    Complaints,
    ConnectionLost,
    Failure,
    complain,
    installed,
    run,
    warn,
    words,
)
from ._progress import Progress
from ._relay import Relay
from ._starttls import DIALOGUES, NEGOTIATION_LIMIT, StartTLS
from ._trace import ShortTrace, Trace, peer_of

__all__ = ("main",)

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

GRACE = 5
"""Seconds that connections may go on, where --grace does not say."""

FILE = click.Path(exists=True, dir_okay=False)


class Commands(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # outside the event loop; click would say "Aborted!"
            ctx.exit(INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mozsocket", message="%(prog)s %(version)s")
def cli() -> None:
    """TCP sockets with Mozilla's TCPSocket API: try them out, and use them from a shell."""


def main() -> None:
    with Complaints().installed():
        cli(prog_name="mozsocket")


def loop_options(command: CommandT) -> CommandT:
    """The options that connect and listen share."""
    for option in (
        click.option(
            "--progress", is_flag=True, help="Show on standard error how much has been sent and received, and how fast."
        ),
        click.option("-v", "--verbose", is_flag=True, help="Tell of every event on standard error."),
        click.option(
            "--binary-type",
            type=click.Choice(["arraybuffer", "string"]),
            default="arraybuffer",
            show_default=True,
            help="How data is received within the program: bytes, or str of one character per byte. What goes in"
            " and out is the same.",
        ),
        click.option(
            "--backend", type=click.Choice(list(BACKENDS)), default="asyncio", show_default=True, help="The event loop."
        ),
    ):
        command = option(command)
    return command


@cli.command(short_help="Connect to a port, and to standard input and output.")
@click.argument("host")
@click.argument("port", type=click.IntRange(1, 65535))
@click.option(
    "--connect-timeout",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long to try, until TLS is up if that is asked for; by default as long as the operating system does, and"
    f" {NEGOTIATION_LIMIT} seconds for TLS.",
)
@click.option("--tls", is_flag=True, help="Use TLS from the start.")
@click.option(
    "--starttls",
    type=click.Choice(list(DIALOGUES)),
    help="Begin in plaintext, ask for TLS as this protocol has it, and relay what follows. If that is refused, nothing"
    " is sent.",
)
@click.option(
    "--cafile",
    type=FILE,
    help="Trust the authorities in this PEM file, rather than those of the system.",
)
@click.option(
    "--server-hostname",
    metavar="NAME",
    help="The name or address that the certificate must be for; by default the HOST.",
)
@click.option(
    "--insecure", is_flag=True, help="Do not check the certificate: anyone may be at the other end. For tests only."
)
@loop_options
def connect(
    host: str,
    port: int,
    connect_timeout: float | None,
    tls: bool,
    starttls: str | None,
    cafile: str | None,
    server_hostname: str | None,
    insecure: bool,
    backend: str,
    binary_type: BinaryType,
    verbose: bool,
    progress: bool,
) -> None:
    """Connect to a PORT of a HOST: standard input is sent, what is received goes to standard output.

    The other side is told of the end of the input. It ends when the other side ends the connection, so nothing of an
    answer is missed.
    """
    exclude("--tls", tls, "--starttls", starttls)
    exclude("--cafile", cafile, "--insecure", insecure)
    if not (tls or starttls):
        for name, value in (("cafile", cafile), ("server-hostname", server_hostname), ("insecure", insecure)):
            demand(f"--{name}", value, "--tls or --starttls")
    try:
        socket = TCPSocket(
            host,
            port,
            binaryType=binary_type,
            connect_timeout=connect_timeout,
            useSecureTransport=tls,
            ssl_context=client_context(cafile, insecure=insecure),
            server_hostname=server_hostname,
        )
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    if insecure:
        warn(f"--insecure: the certificate of {host} is not checked, so anyone may be at the other end")
    console = Console()
    bars = Progress(enabled=progress, total=console.input_size())
    relay = partial(connect_and_relay, socket, console, bars, Trace(enabled=verbose), starttls, connect_timeout)
    leave(console, run(backend, relay))


def exclude(name: str, value: object, other: str, other_value: object) -> None:
    """:raises click.UsageError: if two options are given of which each makes the other pointless"""
    if value and other_value:
        raise click.UsageError(f"{name} and {other} exclude each other.")


def demand(name: str, value: object, other: str) -> None:
    """:raises click.UsageError: if an option is given that is for another, which is not"""
    if value:
        raise click.UsageError(f"{name} is for {other}.")


async def connect_and_relay(
    socket: TCPSocket[bytes | str],
    console: Console,
    progress: Progress,
    trace: Trace,
    starttls: str | None,
    connect_timeout: float | None,
) -> None:
    trace.watch(socket, "client")
    begun = anyio.current_time()
    # Both are made before the connection is there, to miss nothing that is received.
    relay = Relay(socket, console, progress, end_with_input=True)
    upgrade = StartTLS(socket, starttls, trace) if starttls else None
    with closing(relay), closing(progress), console.open():
        async with socket:
            try:
                await socket.opened()
            except TCPSocketError as exc:
                raise Failure(f"cannot connect to {peer_of(socket)}: {exc.detail}") from exc
            if upgrade is not None:
                taken = anyio.current_time() - begun
                await upgrade.run(NEGOTIATION_LIMIT if connect_timeout is None else connect_timeout - taken)
            await relay.run()


def leave(console: Console, status: int) -> None:
    """End the program."""
    if status and console.writing:  # pragma: no cover  (nothing is recorded of a process that ends like this)
        os._exit(status)  # a thread is stuck in a write, for which Python would wait
    sys.exit(status)


@cli.command(short_help="Listen on a port: one connection, several, or an echo server.")
@click.argument("port", type=click.IntRange(0, 65535))
@click.option("--host", help="The address to listen on, or its name; by default all of this machine's.")
@click.option("--echo", is_flag=True, help="Send back what is received, on any number of connections, until Ctrl-C.")
@click.option(
    "--grace",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="With --echo: how long connections may go on after Ctrl-C or SIGTERM, by default"
    f" {GRACE}; a second one ends them at once.",
)
@click.option("--keep-open", is_flag=True, help="Take further connections, one after another, until Ctrl-C.")
@click.option("--tls", is_flag=True, help="Use TLS from the start.")
@click.option(
    "--certfile", type=FILE, help="For TLS: a PEM file of the certificate, of those that vouch for it, and of its key."
)
@click.option("--keyfile", type=FILE, help="For TLS: a PEM file of the key, if that is in one of its own.")
@loop_options
def listen(
    port: int,
    host: str | None,
    echo: bool,
    grace: float | None,
    keep_open: bool,
    tls: bool,
    certfile: str | None,
    keyfile: str | None,
    backend: str,
    binary_type: BinaryType,
    verbose: bool,
    progress: bool,
) -> None:
    """Listen on a PORT, 0 for one that is free, and take one connection.

    Standard input is sent to it, what is received goes to standard output. It ends when the other side ends the
    connection, and what is left of a file has been sent to it; the end of the input does not end it.
    """
    exclude("--progress", progress, "--echo", echo)
    exclude("--keep-open", keep_open, "--echo", echo)
    if not echo:
        demand("--grace", grace is not None, "--echo")
    console, trace = Console(), Trace(enabled=verbose)
    service = EchoService(trace, GRACE if grace is None else grace)
    size = None if keep_open else console.input_size()  # else it is for several
    bars = Progress(enabled=progress, total=size)
    serve = service.serve if echo else partial(serve_relays, trace, console, bars, keep_open)
    options = {"host": host, "binaryType": binary_type, "max_connections": None if echo else 1}
    options["allow_half_open"] = size is not None and not echo
    options |= server_tls(tls, certfile, keyfile)
    try:
        listening = partial(listen_and_serve, trace, serve, port, options)
        status = run(backend, listening, service.stop)
    except (OSError, UnicodeError) as exc:
        raise Failure(f"cannot listen on {host or 'any address'} port {port}: {words(exc)}") from exc
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    leave(console, status)


def server_tls(tls: bool, certfile: str | None, keyfile: str | None) -> dict[str, Any]:
    """The options of listen() that are of TLS."""
    if not tls:
        demand("--certfile", certfile, "--tls")
        demand("--keyfile", keyfile, "--tls")
        return {}
    if certfile is None:
        raise click.UsageError("--tls needs a --certfile.")
    return {"useSecureTransport": True, "ssl_context": server_context(certfile, keyfile)}


async def listen_and_serve(
    trace: Trace, serve: Callable[[TCPServerSocket[bytes | str]], Awaitable[None]], port: int, options: dict[str, Any]
) -> None:
    # Whether ports below 1024 may be listened on, the operating system decides.
    async with MozTCPSocket(certified=True) as tcp:
        server = tcp.listen(port, **options)
        trace.watch(server, "server")
        click.echo(f"listening on port {server.localPort}", err=True)
        await serve(server)


async def serve_relays(
    trace: Trace, console: Console, progress: Progress, keep_open: bool, server: TCPServerSocket[bytes | str]
) -> None:
    """Relay one connection, or one after another."""
    numbers = itertools.count(1)
    accepted, relays = anyio.create_memory_object_stream[Relay](math.inf)

    def on_connect(event: TCPServerSocketEvent[bytes | str]) -> None:
        trace.watch(event.socket, f"accepted {next(numbers)}")
        accepted.send_nowait(Relay(event.socket, console, progress, end_with_input=False))
        if not keep_open:
            server.close()
            accepted.close()

    server.onconnect = on_connect
    server.onerror = lambda event: accepted.close()
    with accepted, relays, closing(progress), console.open():
        async for relay in relays:
            try:
                await relay.run()
            except ConnectionLost as exc:
                if not keep_open:
                    raise
                complain(exc.message)
    await server.closed()  # raises what ended it, if it was not closed here


@cli.command(short_help="Show sockets at work on each event loop, and check them.")
def demo() -> None:
    """An echo server and a client in one process, on each event loop that is installed: they agree on TLS in
    plaintext, and go on in it.

    Events are told as they happen, and at the end what they prove.
    """
    contexts = Contexts.make()
    trace = ShortTrace(err=False)
    claims = {}
    for backend in filter(installed, BACKENDS):
        trace.write(f"{backend}:")
        demo = Demo(trace, contexts)
        if status := run(backend, demo.run):
            sys.exit(status)
        claims[backend] = demo.claims()
    trace.write(conclusion(claims))
    if trace.failure is not None:
        raise Failure(f"standard output: {words(trace.failure)}")
