"""What is measured, written once for all subjects."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

import anyio
import psutil

from .clients import Clients
from .subjects.base import Arrival, Foreign, Subject, client_context, server_context, stamp

__all__ = ("SCENARIOS", "Figure", "Scenario")

CHUNK = bytes(index % 251 for index in range(65_536))
MESSAGE = CHUNK[:64]
SMALL = CHUNK[:100]

AnySubject = Subject | Foreign


class Figure(NamedTuple):
    """A number that a scenario gives."""

    name: str
    unit: str
    more_is_better: bool = True


class Scenario(NamedTuple):
    """One, which is run with a number that scales it: 1 for the full size.

    :ivar small_messages: whether the subjects that are slow with those get less of them
    :ivar many_connections: whether there are thousands at once
    """

    title: str
    figures: tuple[Figure, ...]
    run: Callable[[AnySubject, float], Awaitable[dict[str, float]]]
    small_messages: bool = False
    many_connections: bool = False


def times(number: float, scale: float) -> int:
    return max(1, round(number * scale))


async def transfer(subject: AnySubject, chunk: bytes, count: int, *, tls: bool) -> float:
    """Seconds in which a chunk, sent so often, arrives."""
    if isinstance(subject, Foreign):
        return float(await subject.run("transfer", size=len(chunk), count=count, tls=tls))
    arrival = Arrival(chunk, count)
    async with subject.receiving(arrival, server_context() if tls else None) as (port, arrived):
        client = await subject.connect(port, client_context() if tls else None)
        gc.collect()
        begun = stamp()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.send, chunk, count)
            await arrived()
        taken = stamp() - begun
        await client.close()
    return taken


async def echo(subject: AnySubject, connections: int, rounds: int, *, tls: bool) -> float:
    """Seconds in which a message goes to and fro so often, on each of some connections at once."""
    if isinstance(subject, Foreign):
        return float(await subject.run("echo", size=len(MESSAGE), connections=connections, rounds=rounds, tls=tls))
    async with subject.echoing(server_context() if tls else None) as port:
        context = client_context() if tls else None
        clients = [await subject.connect(port, context) for _ in range(connections)]
        gc.collect()
        begun = stamp()
        async with anyio.create_task_group() as tasks:
            for client in clients:
                tasks.start_soon(client.echo, MESSAGE, [0.0] * rounds)
        taken = stamp() - begun
        for client in clients:
            await client.close()
    return taken


async def churn(subject: AnySubject, count: int) -> float:
    """Seconds for so many short connections, one after another."""
    if isinstance(subject, Foreign):
        return float(await subject.run("churn", size=len(MESSAGE), count=count))
    async with subject.echoing() as port:
        gc.collect()
        begun = stamp()
        await subject.churn(port, MESSAGE, count)
        return stamp() - begun


async def latency(subject: AnySubject, rounds: int) -> list[float]:
    """Seconds that each echo takes, beside a transfer that goes on."""
    if isinstance(subject, Foreign):
        taken: list[float] = await subject.run("latency", chunk=len(CHUNK), size=len(MESSAGE), rounds=rounds)
        return taken
    stamps = [0.0] * rounds
    async with subject.receiving(Arrival(CHUNK, 1 << 40)) as (sink, _), anyio.create_task_group() as tasks:
        sender = await subject.connect(sink)
        async with subject.echoing() as port:
            client = await subject.connect(port)
            gc.collect()
            tasks.start_soon(sender.send, CHUNK, 1 << 40)
            begun = stamp()
            await client.echo(MESSAGE, stamps)
        tasks.cancel_scope.cancel()
    return [later - earlier for earlier, later in zip([begun, *stamps], stamps, strict=False)]


async def bulk_figures(subject: AnySubject, scale: float, *, count: int, tls: bool) -> dict[str, float]:
    count = times(count, scale)
    return {"rate": len(CHUNK) * count / await transfer(subject, CHUNK, count, tls=tls) / 1e6}


async def message_figures(subject: AnySubject, scale: float) -> dict[str, float]:
    count = times(2_000_000, scale)
    return {"rate": count / await transfer(subject, SMALL, count, tls=False) / 1e3}


async def echo_figures(
    subject: AnySubject, scale: float, *, connections: int, total: int, tls: bool
) -> dict[str, float]:
    rounds = times(total / connections, scale)
    return {"rate": connections * rounds / await echo(subject, connections, rounds, tls=tls) / 1e3}


async def churn_figures(subject: AnySubject, scale: float) -> dict[str, float]:
    count = times(1500, scale)
    return {"rate": count / await churn(subject, count)}


async def latency_figures(subject: AnySubject, scale: float) -> dict[str, float]:
    taken = sorted(await latency(subject, times(3000, scale)))
    return {"median": 1e6 * taken[len(taken) // 2], "p99": 1e6 * taken[len(taken) * 99 // 100]}


async def idle_figures(subject: AnySubject, scale: float) -> dict[str, float]:
    count = times(10_000, scale)
    async with subject.echoing() as port, Clients(port) as clients:
        await clients.open(times(100, scale))
        gc.collect()
        process = psutil.Process(subject.pid)
        before = process.memory_info().rss
        await clients.open(count)
        gc.collect()
        memory = (process.memory_info().rss - before) / count
        return {"memory": memory / 1024, "answer": 1e6 * await clients.echo_one()}


async def growth_figures(subject: AnySubject, scale: float) -> dict[str, float]:
    """Processor time of the server for a connection that is accepted, has one message echoed and is closed."""
    async with subject.echoing() as port, Clients(port) as clients:
        process = psutil.Process(subject.pid)

        async def cost(count: int) -> float:
            repeats = times(2000 / count, scale)
            gc.collect()
            before = _processor_time(process)
            await clients.visit(count, repeats)
            return 1e6 * (_processor_time(process) - before) / (count * repeats)

        await cost(times(100, scale))
        largest = times(20_000, scale)
        return {str(count): await cost(min(count, largest)) for count in GROWTH}


def _processor_time(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return float(spent.user + spent.system)


GROWTH = (1, 10, 100, 1000, 10_000)

RATE = (Figure("rate", "MB/s"),)
TRIPS = (Figure("rate", "thousand round trips/s"),)

SCENARIOS = {
    "bulk": Scenario("One way, sends of 64 KiB", RATE, partial(bulk_figures, count=32_768, tls=False)),
    "messages": Scenario(
        "One way, pipelined messages of 100 B",
        (Figure("rate", "thousand messages/s"),),
        message_figures,
        small_messages=True,
    ),
    "echo": Scenario(
        "Echo of 64 B, 1 connection", TRIPS, partial(echo_figures, connections=1, total=20_000, tls=False)
    ),
    "echo-100": Scenario(
        "Echo of 64 B, 100 connections", TRIPS, partial(echo_figures, connections=100, total=30_000, tls=False)
    ),
    "tls-bulk": Scenario("TLS, one way, sends of 64 KiB", RATE, partial(bulk_figures, count=8192, tls=True)),
    "tls-echo": Scenario(
        "TLS, echo of 64 B, 1 connection", TRIPS, partial(echo_figures, connections=1, total=10_000, tls=True)
    ),
    "tls-echo-100": Scenario(
        "TLS, echo of 64 B, 100 connections", TRIPS, partial(echo_figures, connections=100, total=15_000, tls=True)
    ),
    "short": Scenario("Short connections: connect, one echo, close", (Figure("rate", "connections/s"),), churn_figures),
    "idle": Scenario(
        "10,000 idle connections",
        (Figure("memory", "KiB a connection", False), Figure("answer", "µs to the first answer", False)),
        idle_figures,
        many_connections=True,
    ),
    "latency": Scenario(
        "Echo of 64 B beside a transfer",
        (Figure("median", "µs, median", False), Figure("p99", "µs, 99th percentile", False)),
        latency_figures,
    ),
    "growth": Scenario(
        "Cost of a connection, by how many there are at once",
        tuple(Figure(str(count), f"µs of processor time, {count:,} at once", False) for count in GROWTH),
        growth_figures,
        many_connections=True,
    ),
}
