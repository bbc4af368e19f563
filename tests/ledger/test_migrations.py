"""Numbered schema scripts: each runs once, a hub never runs one, and both sides say what is to be done."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from erxhub.ledger import migrations
from erxhub.ledger.migrations import migrate_postgres
from erxhub.ledger.postgres import open_postgres
from erxhub.ledger.sqlite import migrate_sqlite, open_sqlite
from erxhub.ledger.store import StoreFormatError, StoreInUse, Write
from tests.ledger.contract import append_all, next_entry
from tests.postgres import PostgresServer

NEXT = {
    "sqlite": "CREATE TABLE later (a INTEGER);",
    "postgres": "CREATE TABLE erxhub.later (shard integer PRIMARY KEY);",
}


@pytest.fixture
def next_release(monkeypatch: pytest.MonkeyPatch) -> int:
    """A release with one script more; its number."""
    scripts = migrations.scripts
    number = max((*scripts("sqlite"), *scripts("postgres"))) + 1
    monkeypatch.setattr(migrations, "scripts", lambda engine: {**scripts(engine), number: NEXT[engine]})
    return number


def test_scripts_are_numbered_from_one_without_a_gap() -> None:
    for engine in ("sqlite", "postgres"):
        numbers = list(migrations.scripts(engine))  # type: ignore[arg-type]
        assert numbers == list(range(1, len(numbers) + 1))


async def test_older_file_is_refused_until_it_is_migrated(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    file = tmp_path / "hub.db"
    store = await open_sqlite(file)
    await append_all(store, [Write(entries=(next_entry("a"),))])
    with pytest.raises(StoreInUse):
        migrate_sqlite(file)
    await store.close()
    number = request.getfixturevalue("next_release")
    with pytest.raises(StoreFormatError, match=f"run `erxhub db migrate --db {file}`"):
        await open_sqlite(file)
    assert (migrate_sqlite(file), migrate_sqlite(file)) == ([number], [])
    store = await open_sqlite(file)
    assert await append_all(store, [Write(entries=(next_entry("b"),))]) == 2
    await store.close()


async def test_older_database_is_refused_until_it_is_migrated(
    postgres_server: PostgresServer, request: pytest.FixtureRequest
) -> None:
    name = postgres_server.database(postgres_server.ledger_template())
    owner, hub = postgres_server.url(name), postgres_server.url(name, "hub")
    store = await open_postgres(hub, readers=1)
    await append_all(store, [Write(entries=(next_entry("a"),))])
    await store.close()
    number = request.getfixturevalue("next_release")
    with pytest.raises(StoreFormatError, match="run `erxhub db migrate --db postgresql://hub@"):
        await open_postgres(hub)
    assert [await migrate_postgres(owner), await migrate_postgres(owner)] == [[number], []]
    store = await open_postgres(hub, readers=1)
    assert await append_all(store, [Write(entries=(next_entry("b"),))]) == 2
    await store.close()


def test_script_that_fails_leaves_the_schema_as_it_was(
    tmp_path: Path, next_release: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "hub.db"
    migrate_sqlite(file)
    scripts = migrations.scripts
    broken = {**scripts("sqlite"), next_release + 1: "CREATE TABLE half (a INTEGER); CREATE TABLE later (a INTEGER);"}
    monkeypatch.setattr(migrations, "scripts", lambda engine: broken)
    with pytest.raises(sqlite3.OperationalError):
        migrate_sqlite(file)
    with sqlite3.connect(file) as shell:
        assert shell.execute("SELECT max(version) FROM schema_version").fetchone() == (next_release,)
        assert shell.execute("SELECT count(*) FROM sqlite_master WHERE name = 'half'").fetchone() == (0,)


def test_new_file_is_made_by_a_migration_too(tmp_path: Path) -> None:
    file = tmp_path / "hub.db"
    assert migrate_sqlite(file) == list(migrations.scripts("sqlite"))
    assert file.stat().st_mode & 0o077 == 0
