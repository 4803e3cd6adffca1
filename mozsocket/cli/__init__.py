"""The command line: ``mozsocket demo``, ``connect`` and ``listen``."""

from __future__ import annotations

import itertools
import math
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import closing
from functools import partial
from socket import AF_INET, AF_INET6, AddressFamily
from typing import Any, TypeVar

import anyio
import click

from .. import BinaryType, TCPServerSocket, TCPServerSocketEvent, TCPSocket, TCPSocketError
from .._options import check_server_hostname
from ._console import Console, occupy_standard_descriptors
from ._contexts import client_context, server_context
from ._demo import Contexts, Demo, conclusion
from ._echo import EchoService
from ._lines import say
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
from ._where import ANY_ADDRESS, family_of, host_and_port, listening_socket, port_number

__all__ = ("main",)

CommandT = TypeVar("CommandT", bound=Callable[..., Any])

GRACE = 5
"""Default of --grace: seconds that connections may continue after the signal to stop."""

LOOPBACK: dict[AddressFamily | None, str] = {None: "localhost", AF_INET: "127.0.0.1", AF_INET6: "::1"}
"""Default of --host: both loopback addresses, as clients may try either first, or that of the chosen family."""

FILE = click.Path(exists=True, dir_okay=False)


class Commands(click.Group):
    """The commands, with the usual exit status after Ctrl-C."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:  # outside the event loop; click would print "Aborted!"
            ctx.exit(INTERRUPTED)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mozsocket", message="%(prog)s %(version)s")
def cli() -> None:
    """TCP sockets with Mozilla's TCPSocket API: try them out, and use them from a shell."""


def main() -> None:
    occupy_standard_descriptors()
    with Complaints().installed():
        cli(prog_name="mozsocket")


def shared_options(command: CommandT) -> CommandT:
    """Add the options that connect and listen share."""
    for option in (
        click.option(
            "--progress", is_flag=True, help="Show on standard error how much has been sent and received, and how fast."
        ),
        click.option(
            "-v",
            "--verbose",
            count=True,
            help="Report every event on standard error; with -vv also report what is sent, and show the bytes.",
        ),
        click.option(
            "--binary-type",
            type=click.Choice(["arraybuffer", "string"]),
            default="arraybuffer",
            show_default=True,
            help="The type of received data within the program: bytes, or str of one character per byte. The bytes"
            " that are sent and written are the same.",
        ),
        click.option(
            "--backend", type=click.Choice(list(BACKENDS)), default="asyncio", show_default=True, help="The event loop."
        ),
        click.option(
            "--crlf",
            is_flag=True,
            help="End the lines that are sent with carriage return and line feed, as SMTP, HTTP and others require.",
        ),
        click.option(
            "--timeout",
            type=click.FloatRange(0, min_open=True),
            metavar="SECONDS",
            help="Abort a connection on which, for this long, nothing was received and none of the data to send was"
            " accepted; by default never.",
        ),
        click.option("-6", "ipv6", is_flag=True, help="Use IPv6 only."),
        click.option("-4", "ipv4", is_flag=True, help="Use IPv4 only."),
    ):
        command = option(command)
    return command


@cli.command(short_help="Connect standard input and output to a port.")
@click.argument("where", metavar="HOST[:PORT]")
@click.argument("port", required=False)
@click.option(
    "--connect-timeout",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="How long connecting may take, with TLS if that is requested; by default as long as the operating system"
    f" allows, and {NEGOTIATION_LIMIT} seconds for TLS.",
)
@click.option("--tls", is_flag=True, help="Use TLS from the start.")
@click.option(
    "--starttls",
    type=click.Choice(list(DIALOGUES)),
    help="Begin in plaintext, ask for TLS with this protocol's command, and relay only within TLS. If the server"
    " refuses, no input is sent.",
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
@shared_options
def connect(
    where: str,
    port: str | None,
    connect_timeout: float | None,
    tls: bool,
    starttls: str | None,
    cafile: str | None,
    server_hostname: str | None,
    insecure: bool,
    ipv4: bool,
    ipv6: bool,
    timeout: float | None,
    crlf: bool,
    backend: str,
    binary_type: BinaryType,
    verbose: int,
    progress: bool,
) -> None:
    """Connect to a PORT of a HOST: send standard input, and write what is received to standard output.

    The end of the input is passed on to the other side. The command ends when the other side ends the connection, so
    that no part of an answer is missed; input from a file is first sent to its end. PORT is a number or a service,
    such as smtp; after an IPv6 address it is written as in [::1]:25, or as a separate argument.

    \b
    Examples:
      mozsocket connect localhost 8007 < file
      printf 'PING\\n' | mozsocket connect --crlf localhost:6379
      mozsocket connect --crlf --starttls smtp mail.example.com:submission
      mozsocket connect --tls --timeout 10 -vv www.example.com https
    """
    family = family_of(ipv4, ipv6)
    exclude("--tls", tls, "--starttls", starttls)
    exclude("--cafile", cafile, "--insecure", insecure)
    if not (tls or starttls):
        for name, value in (("cafile", cafile), ("server-hostname", server_hostname), ("insecure", insecure)):
            demand(f"--{name}", value, "--tls or --starttls")
    host, number = host_and_port(where, port)
    context = client_context(cafile, insecure=insecure)
    console, trace = Console(crlf=crlf), Trace(enabled=verbose > 0, bytes_too=verbose > 1)
    try:
        socket = TCPSocket(
            host,
            number,
            binaryType=binary_type,
            connect_timeout=connect_timeout,
            idle_timeout=timeout,
            allow_half_open=console.input_size() is not None,
            local_host=None if family is None else ANY_ADDRESS[family],  # which leaves out the other family
            useSecureTransport=tls,
            ssl_context=context if tls else None,
            server_hostname=server_hostname if tls else None,
        )
        if server_hostname is not None:  # with --starttls: checked before connecting, long before its use
            check_server_hostname(server_hostname)
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    if insecure:
        warn(f"--insecure: the certificate of {host} is not checked, so anyone may be at the other end")
    upgrade = partial(StartTLS, socket, starttls, context, server_hostname, trace) if starttls else None
    bars = Progress(enabled=progress, total=console.bytes_to_send())
    leave(console, run(backend, partial(connect_and_relay, socket, console, bars, trace, upgrade, connect_timeout)))


def exclude(name: str, value: object, other: str, other_value: object) -> None:
    """Reject two options that exclude each other.

    :raises click.UsageError: if both are given
    """
    if value and other_value:
        raise click.UsageError(f"{name} and {other} exclude each other.")


def demand(name: str, value: object, other: str) -> None:
    """Reject an option that has no effect without another. The caller has checked that the other is missing.

    :raises click.UsageError: if it is given
    """
    if value:
        raise click.UsageError(f"{name} can only be used with {other}.")


async def connect_and_relay(
    socket: TCPSocket[bytes | str],
    console: Console,
    progress: Progress,
    trace: Trace,
    make_upgrade: Callable[[], StartTLS] | None,
    connect_timeout: float | None,
) -> None:
    """Connect, upgrade to TLS if requested, then relay until the connection has ended."""
    trace.watch(socket, "client")
    begun = anyio.current_time()
    # Both set handlers, so they are created before the socket connects: no data can be missed.
    relay = Relay(socket, "client", console, progress, trace, end_with_input=True)
    upgrade = make_upgrade() if make_upgrade is not None else None
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
    """Exit with a status, without waiting for output that nobody reads."""
    if status and console.writing:  # pragma: no cover  (a process that ends like this records no coverage)
        os._exit(status)  # a thread is blocked in a write, and Python would wait for it
    sys.exit(status)


@cli.command(short_help="Listen on a port: one connection, several, or an echo server.")
@click.argument("port", callback=lambda ctx, param, value: port_number(value, lowest=0))
@click.option(
    "--host",
    help="The address to listen on, or its name; :: stands for all addresses of this machine, IPv4 included. By"
    " default localhost, which only this machine can reach.",
)
@click.option("--echo", is_flag=True, help="Send back what is received, on any number of connections, until Ctrl-C.")
@click.option(
    "--grace",
    type=click.FloatRange(0),
    metavar="SECONDS",
    help="With --echo: how long connections may continue after Ctrl-C or SIGTERM, by default"
    f" {GRACE}; a second signal ends them immediately.",
)
@click.option("--keep-open", is_flag=True, help="Accept further connections, one after another, until Ctrl-C.")
@click.option("--tls", is_flag=True, help="Use TLS from the start.")
@click.option("--certfile", type=FILE, help="For TLS: a PEM file with the certificate, its chain, and its private key.")
@click.option("--keyfile", type=FILE, help="For TLS: a PEM file with the private key, if it is not in the --certfile.")
@shared_options
def listen(
    port: int,
    host: str | None,
    echo: bool,
    grace: float | None,
    keep_open: bool,
    tls: bool,
    certfile: str | None,
    keyfile: str | None,
    ipv4: bool,
    ipv6: bool,
    timeout: float | None,
    crlf: bool,
    backend: str,
    binary_type: BinaryType,
    verbose: int,
    progress: bool,
) -> None:
    """Listen on a PORT, 0 for any free one, and accept one connection.

    Standard input is sent to it, and what is received is written to standard output. The command ends when the other
    side ends the connection; input from a file is first sent to its end. The end of the input alone does not end it.
    PORT is a number or a service, such as smtp. The address and port are printed on standard error.

    \b
    Examples:
      mozsocket listen 8007 > file
      mozsocket listen --host :: --echo --timeout 60 8007
      mozsocket listen --tls --certfile server.pem --crlf -v 8443
    """
    family = family_of(ipv4, ipv6)
    address = LOOPBACK[family] if host is None else host
    exclude("--crlf", crlf, "--echo", echo)
    exclude("--progress", progress, "--echo", echo)
    exclude("--keep-open", keep_open, "--echo", echo)
    if not echo:
        demand("--grace", grace is not None, "--echo")
    console, trace = Console(crlf=crlf), Trace(enabled=verbose > 0, bytes_too=verbose > 1)
    service = EchoService(trace, GRACE if grace is None else grace)
    size = None if keep_open else console.input_size()  # with --keep-open the input is for several connections
    bars = Progress(enabled=progress, total=None if keep_open else console.bytes_to_send())
    serve = service.serve if echo else partial(serve_relays, trace, console, bars, keep_open)
    options: dict[str, Any] = {
        "binaryType": binary_type,
        "idle_timeout": timeout,
        "max_connections": None if echo else 1,
        "allow_half_open": size is not None and not echo,
        **server_tls(tls, certfile, keyfile),
    }
    try:
        status = run(backend, partial(listen_and_serve, trace, serve, family, address, port, options), service.stop)
    except (OSError, UnicodeError) as exc:
        raise Failure(f"cannot listen on {address} port {port}: {words(exc)}") from exc
    except ValueError as exc:
        raise click.UsageError(str(exc)) from exc
    leave(console, status)


def server_tls(tls: bool, certfile: str | None, keyfile: str | None) -> dict[str, Any]:
    """The TLS options of :class:`TCPServerSocket`; none without --tls."""
    if not tls:
        demand("--certfile", certfile, "--tls")
        demand("--keyfile", keyfile, "--tls")
        return {}
    if certfile is None:
        raise click.UsageError("--tls needs a --certfile.")
    context = server_context(certfile, keyfile)
    # Many clients end without close_notify, as nothing depends on it: they have sent a complete request or received the
    # answer. Only a client needs to know whether an answer was cut off, and `connect` reports that.
    return {"useSecureTransport": True, "ssl_context": context, "tls_standard_compatible": False}


async def listen_and_serve(
    trace: Trace,
    serve: Callable[[TCPServerSocket[bytes | str]], Awaitable[None]],
    family: AddressFamily | None,
    host: str,
    port: int,
    options: dict[str, Any],
) -> None:
    """Listen, print the address and port, and serve until the function given returns."""
    if family is None:
        server = TCPServerSocket(port, host=host, **options)
    else:
        sock = listening_socket(family, host, port)
        host = sock.getsockname()[0]
        server = TCPServerSocket.from_socket(sock, **options)
    async with server:
        trace.watch(server, "server")
        say(f"listening on {host} port {server.localPort}")
        await serve(server)


async def serve_relays(
    trace: Trace, console: Console, progress: Progress, keep_open: bool, server: TCPServerSocket[bytes | str]
) -> None:
    """Relay one connection, or with --keep-open one after another."""
    numbers = itertools.count(1)
    accepted, relays = anyio.create_memory_object_stream[Relay](math.inf)

    def on_connect(event: TCPServerSocketEvent[bytes | str]) -> None:
        name = f"accepted {next(numbers)}"
        trace.watch(event.socket, name)
        accepted.send_nowait(Relay(event.socket, name, console, progress, trace, end_with_input=False))
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
    await server.closed()  # raises the error that ended the server, if it was not closed here


@cli.command(short_help="Show sockets at work on each event loop, and check them.")
def demo() -> None:
    """Run an echo server and a client in one process, on each event loop that is installed. They agree on TLS in
    plaintext, then continue in TLS.

    Each event is printed as it happens, and at the end what the events prove.
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
