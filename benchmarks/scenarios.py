"""The scenarios that are measured, written once for all subjects."""

from __future__ import annotations

import csv
import gc
import os
import resource
import shutil
from collections.abc import Awaitable, Callable
from functools import partial
from typing import NamedTuple

import anyio
import psutil

from .clients import Clients
from .subjects import Entry
from .subjects.base import (
    HOST,
    Arrival,
    Foreign,
    RedisServer,
    Subject,
    client_context,
    server_context,
    stamp,
)

__all__ = ("SCENARIOS", "Figure", "Scenario")

CHUNK = bytes(index % 251 for index in range(65_536))
MESSAGE = CHUNK[:64]
SMALL = CHUNK[:100]

AnySubject = Subject | Foreign


class Figure(NamedTuple):
    """A number that a scenario measures."""

    name: str
    unit: str
    more_is_better: bool = True


class Scenario(NamedTuple):
    """A scenario. ``run`` takes a subject and a scale, which is 1 for the full size.

    :ivar small_messages: whether subjects that are slow with small messages get fewer of them
    :ivar many_connections: whether it uses hundreds of connections at once, or thousands
    :ivar redis: whether it needs a Redis server, which not all subjects have
    :ivar needs: the program that it needs; without it the scenario is skipped
    :ivar per_round: how often it is measured in a round: more than once where single figures differ much
    """

    title: str
    figures: tuple[Figure, ...]
    run: Callable[[AnySubject, float], Awaitable[dict[str, float]]]
    small_messages: bool = False
    many_connections: bool = False
    redis: bool = False
    needs: str = ""
    per_round: int = 1

    def is_available(self) -> bool:
        return not self.needs or shutil.which(self.needs) is not None

    def suits(self, subject: Entry) -> bool:
        return not (subject.has_threads and self.many_connections) and (subject.serves_redis or not self.redis)


def times(number: float, scale: float) -> int:
    return max(1, round(number * scale))


async def transfer(subject: AnySubject, chunk: bytes, count: int, *, tls: bool) -> float:
    """The seconds that ``count`` chunks take from one side to the other."""
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
    """The seconds for ``rounds`` echoes of a message on each connection, all connections concurrently."""
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
    """The seconds for ``count`` short connections, one after another."""
    if isinstance(subject, Foreign):
        return float(await subject.run("churn", size=len(MESSAGE), count=count))
    async with subject.echoing() as port:
        gc.collect()
        begun = stamp()
        await subject.churn(port, MESSAGE, count)
        return stamp() - begun


async def latency(subject: AnySubject, rounds: int) -> list[float]:
    """The seconds of each echo while a bulk transfer runs on another connection."""
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


async def load_figures(subject: AnySubject, scale: float, *, connections: int, total: int) -> dict[str, float]:
    rounds = times(total / connections, scale)
    async with subject.echoing() as port, Clients(port) as clients:
        await clients.open(connections)
        await clients.drive(times(300 / connections, 1))
        gc.collect()
        before = processor_times(subject)
        taken = await clients.drive(rounds)
        after = processor_times(subject)
    trips = connections * rounds
    user, system = (1e6 * (end - begin) / trips for begin, end in zip(before, after, strict=True))
    return {"rate": trips / taken / 1e3, "processor": user + system, "user": user}


async def visit_cost(subject: AnySubject, clients: Clients, at_once: int, repeats: int) -> float:
    """The server's processor time, in µs, for one connection: accept it, echo one message, close."""
    gc.collect()
    before = sum(processor_times(subject))
    await clients.visit(at_once, repeats)
    return 1e6 * (sum(processor_times(subject)) - before) / (at_once * repeats)


async def visit_figures(subject: AnySubject, scale: float) -> dict[str, float]:
    async with subject.echoing() as port, Clients(port) as clients:
        await visit_cost(subject, clients, 20, 1)
        return {"processor": await visit_cost(subject, clients, 20, times(600, scale))}


async def growth_figures(subject: AnySubject, scale: float) -> dict[str, float]:
    async with subject.echoing() as port, Clients(port) as clients:

        async def cost(count: int) -> float:
            return await visit_cost(subject, clients, count, times(2000 / count, scale))

        await cost(times(100, scale))
        largest = times(20_000, scale)
        return {str(count): await cost(min(count, largest)) for count in GROWTH}


def processor_times(subject: AnySubject) -> tuple[float, float]:
    """The processor time, in seconds, of the subject's servers so far: in their own code, and in the kernel."""
    if subject.pid == os.getpid():
        used = resource.getrusage(resource.RUSAGE_SELF)  # psutil counts in steps of 10 ms
        return used.ru_utime, used.ru_stime
    spent = psutil.Process(subject.pid).cpu_times()
    return float(spent.user), float(spent.system)


async def redis_figures(subject: AnySubject, scale: float, *, count: int, pipelined: int) -> dict[str, float]:
    """The rate of a mix of as many SETs as GETs, which is the harmonic mean of the two rates."""
    assert isinstance(subject, RedisServer)
    async with subject.serving_redis() as port:
        gc.collect()
        count = max(1000, times(count, scale))  # redis-benchmark measures in milliseconds
        options = f"-h {HOST} -p {port} -t set,get -c 50 -n {count} -P {pipelined} -q --csv"
        with anyio.fail_after(REDIS_LIMIT):
            done = await anyio.run_process(["redis-benchmark", *options.split()])
    rates = {row[0]: float(row[1]) for row in csv.reader(done.stdout.decode().splitlines()) if row[0] != "test"}
    return {"rate": 2 / (1 / rates["SET"] + 1 / rates["GET"]) / 1e3}


REDIS_LIMIT = 100
"""Seconds after which ``redis-benchmark`` is stopped: without an answer it would wait forever."""

GROWTH = (1, 10, 100, 1000, 10_000)

RATE = (Figure("rate", "MB/s"),)
TRIPS = (Figure("rate", "thousand round trips/s"),)
PROCESSOR = Figure("processor", "µs of the server's processor time", False)
LOAD = (*TRIPS, PROCESSOR, Figure("user", "µs of it outside the kernel", False))
REQUESTS = (Figure("rate", "thousand requests/s"),)

SCENARIOS = {
    "bulk": Scenario("One way, sends of 64 KiB", RATE, partial(bulk_figures, count=65_536, tls=False)),
    "messages": Scenario(
        "One way, pipelined messages of 100 B",
        (Figure("rate", "thousand messages/s"),),
        message_figures,
        small_messages=True,
    ),
    "echo": Scenario(
        "Echo of 64 B, 1 connection", TRIPS, partial(echo_figures, connections=1, total=60_000, tls=False)
    ),
    "echo-100": Scenario(
        "Echo of 64 B, 100 connections",
        TRIPS,
        partial(echo_figures, connections=100, total=90_000, tls=False),
        per_round=3,
    ),
    "tls-bulk": Scenario("TLS, one way, sends of 64 KiB", RATE, partial(bulk_figures, count=8192, tls=True)),
    "tls-echo": Scenario(
        "TLS, echo of 64 B, 1 connection", TRIPS, partial(echo_figures, connections=1, total=30_000, tls=True)
    ),
    "tls-echo-100": Scenario(
        "TLS, echo of 64 B, 100 connections",
        TRIPS,
        partial(echo_figures, connections=100, total=45_000, tls=True),
        per_round=3,
    ),
    "load-1": Scenario("Server under load, 1 connection", LOAD, partial(load_figures, connections=1, total=50_000)),
    "load-50": Scenario(
        "Server under load, 50 connections", LOAD, partial(load_figures, connections=50, total=150_000), per_round=3
    ),
    "load-500": Scenario(
        "Server under load, 500 connections",
        LOAD,
        partial(load_figures, connections=500, total=150_000),
        many_connections=True,
        per_round=3,
    ),
    "redis": Scenario(
        "Redis server, 50 clients",
        REQUESTS,
        partial(redis_figures, count=150_000, pipelined=1),
        redis=True,
        needs="redis-benchmark",
        per_round=3,
    ),
    "redis-pipelined": Scenario(
        "Redis server, 50 clients, 16 requests at once",
        REQUESTS,
        partial(redis_figures, count=500_000, pipelined=16),
        redis=True,
        needs="redis-benchmark",
        per_round=3,
    ),
    "visits": Scenario("Short connections, 20 at once", (PROCESSOR,), visit_figures, per_round=3),
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
