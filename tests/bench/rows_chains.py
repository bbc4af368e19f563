"""Rows about full chains, from the first voucher to the hand-over: on SQLite and on PostgreSQL, in turns."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass
from pathlib import Path

from tests import postgres
from tests.bench.chains import SIGNATURES, ChainWorld, verification_us
from tests.bench.processes import ServerProcess, family_cpu_ns
from tests.bench.results import Results
from tests.bench.world import World
from tests.postgres import PostgresServer

IN_FLIGHT = 64


@dataclass
class _Side:
    """One hub with its robots, and what its store takes."""

    hub: ServerProcess
    robots: ChainWorld
    cpu_ns: Callable[[], int]
    stored_bytes: Callable[[], int]


async def chains(folder: Path, quick: bool, results: Results) -> None:
    """Full chains for a second of server CPU at 64 in flight, and the bytes that one leaves, on each store."""
    rounds, count = (1, 64) if quick else (5, 192)
    per_cpu_s: dict[str, list[float]] = {"sqlite": [], "postgres": []}
    net: dict[str, list[float]] = {"sqlite": [], "postgres": []}
    stored: dict[str, list[float]] = {"sqlite": [], "postgres": []}
    hub_us: list[float] = []
    async with AsyncExitStack() as stack:
        sides = {"sqlite": await _sqlite(stack, folder / "sqlite")}
        if postgres.binaries() is not None:
            sides["postgres"] = await _postgres(stack, folder / "postgres")
        for number in range(rounds):
            checks_us = SIGNATURES * verification_us()
            for name in list(sides)[:: -1 if number % 2 else 1]:
                side = sides[name]
                persons = await side.robots.admit(count)
                bytes_before, before_ns = side.stored_bytes(), side.cpu_ns()
                hub_before_ns = side.hub.cpu_ns()
                await side.robots.run(persons, IN_FLIGHT)
                used_us = (side.cpu_ns() - before_ns) / 1000 / count
                if name == "postgres":
                    hub_us.append((side.hub.cpu_ns() - hub_before_ns) / 1000 / count)
                per_cpu_s[name].append(1e6 / used_us)
                net[name].append(1e6 / (used_us - checks_us))
                stored[name].append((side.stored_bytes() - bytes_before) / count)
    for name in sides:
        results.figure(f"chains_per_cpu_s_{name}", per_cpu_s[name])
        results.figure(f"chains_per_cpu_s_{name}_net", net[name])
        results.figure(f"disk_bytes_per_chain_{name}", stored[name])
    goal = "postgres_chains_vs_sqlite"
    if hub_us:
        results.goal(goal, [a / b for a, b in zip(net["postgres"], net["sqlite"], strict=True)], 0.5, at_least=True)
        results.figure("postgres_hub_us_per_chain", hub_us)
    else:
        results.not_measured(goal, 0.5)


async def _side(
    stack: AsyncExitStack,
    folder: Path,
    options: tuple[str, ...],
    more_cpu_ns: Callable[[], int],
    stored_bytes: Callable[[], int],
) -> _Side:
    world = World(folder)
    hub = stack.enter_context(ServerProcess("tests.bench.hub_server", str(folder), *options))
    robots = ChainWorld(world)
    await robots.populate(hub.port)
    await stack.enter_async_context(robots.connected(hub.port))
    await robots.run(await robots.admit(IN_FLIGHT), IN_FLIGHT)
    return _Side(hub, robots, lambda: hub.cpu_ns() + more_cpu_ns(), stored_bytes)


async def _sqlite(stack: AsyncExitStack, folder: Path) -> _Side:
    path = folder / "ledger.db"

    def stored_bytes() -> int:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        return path.stat().st_size

    return await _side(stack, folder, (), lambda: 0, stored_bytes)


async def _postgres(stack: AsyncExitStack, folder: Path) -> _Side:
    server, url = new_postgres(stack)
    database = url.partition("@/")[2].partition("?")[0]
    process = server.process
    assert process is not None

    def stored_bytes() -> int:
        server.sql("CHECKPOINT")
        return int(server.sql(f"SELECT pg_database_size('{database}')"))

    return await _side(stack, folder, ("--db", url), lambda: family_cpu_ns(process.pid), stored_bytes)


def new_postgres(stack: AsyncExitStack) -> tuple[PostgresServer, str]:
    """A private server with an empty ledger, gone with the stack; the ledger's address."""
    server = postgres.start_server(shared_buffers="256MB")
    stack.callback(postgres.stop_server, server)
    return server, server.url(server.database(server.ledger_template()), "hub")
