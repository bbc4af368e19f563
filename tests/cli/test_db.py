"""`erxhub db` and `erxhub serve` on both engines: made, checked, copied, put back, and refused where that is right."""

import asyncio
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import pytest

from erxhub.cli.exits import CONFLICT, NEGATIVE, OK, UNAVAILABLE, USAGE
from erxhub.cli.stores import open_store
from erxhub.ledger.migrations import newest
from erxhub.ledger.store import Write
from erxhub.ledger.tampering import change_payload
from tests.cli.conftest import Erxhub, erxhub_in, start_process, stop_process
from tests.cli.test_serve import ended
from tests.ledger.contract import key_of, next_entry, stream_of
from tests.postgres import PostgresServer


@dataclass
class Engine:
    """One engine: where new databases are, and as whom one goes there."""

    name: str
    folder: Path
    server: PostgresServer | None = None
    made: int = 0

    def new(self) -> str:
        """A database that does not exist yet, or is empty; by its owner."""
        self.made += 1
        if self.server is None:
            return str(self.folder / f"{self.made}.db")
        name = self.server.database()
        self.server.sql(f"ALTER DATABASE {name} OWNER TO keeper")
        return self.server.url(name, "keeper")

    def as_hub(self, database: str) -> str:
        """The same database, as a hub."""
        return database if self.server is None else database.replace("//keeper:", "//hub:", 1)

    def damage(self, database: str) -> None:
        """Change a payload behind the ledger's back."""
        if self.server is None:
            change_payload(Path(database), key_of("a"), 2, lambda payload: payload + b"!")
        else:
            name = database.partition("@/")[2].partition("?")[0]
            self.server.sql("UPDATE erxhub.content SET payload = payload || '!' WHERE version = 2", name)


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    server = None
    if request.param == "postgres":
        server = request.getfixturevalue("postgres_server")
        server.ledger_template()  # makes the logins
        server.login("keeper")  # owns a ledger without being a superuser
        server.sql("ALTER ROLE keeper CREATEROLE")
    return Engine(request.param, tmp_path, server)


def written(database: str) -> None:
    """Two entries of one stream, and one of another."""

    async def write() -> None:
        store = await open_store(database)
        result = await store.append([Write(entries=tuple(stream_of("a", 2))), Write(entries=(next_entry("b"),))])
        assert not result.conflicts
        await store.close()

    asyncio.run(write())


def checked(erxhub: Erxhub, database: str) -> dict[str, object]:
    result = erxhub("db", "check", "--db", database, "-o", "json")
    found: dict[str, object] = json.loads(result.stdout)
    assert result.exit_code == (OK if found["sound"] else NEGATIVE)
    return found


def test_a_ledger_is_made_checked_copied_and_put_back(engine: Engine, erxhub: Erxhub, tmp_path: Path) -> None:
    database, backup = engine.new(), tmp_path / "backup"
    scripts = newest("postgres" if database.startswith("postgresql") else "sqlite")
    for ran in (list(range(1, scripts + 1)), []):
        made = erxhub("db", "migrate", "--db", database, "-o", "json")
        assert made.exit_code == OK, made.stderr
        assert json.loads(made.stdout)["scripts_run"] == ran
    written(engine.as_hub(database))
    before = checked(erxhub, engine.as_hub(database))
    assert (before["entries"], before["streams"], before["sound"]) == (3, 2, True)

    copied = erxhub("db", "backup", "--db", database, str(backup))
    assert copied.exit_code == OK, copied.stderr
    assert backup.stat().st_mode & 0o077 == 0, "a backup holds personal data"
    assert erxhub("db", "backup", "--db", database, str(backup)).exit_code == CONFLICT
    target = engine.new()
    restored = erxhub("db", "restore", "--db", target, str(backup))
    assert restored.exit_code == OK, restored.stderr
    after = checked(erxhub, engine.as_hub(target))
    assert {**after, "database": ""} == {**before, "database": ""}
    over = erxhub("db", "restore", "--db", target, str(backup))
    assert over.exit_code in {CONFLICT, USAGE}
    assert "never replace" in over.stderr


def test_a_restored_ledger_goes_on(engine: Engine, erxhub: Erxhub, tmp_path: Path) -> None:
    database, target = engine.new(), engine.new()
    erxhub("db", "migrate", "--db", database)
    erxhub("db", "backup", "--db", database, str(tmp_path / "backup"))
    assert erxhub("db", "restore", "--db", target, str(tmp_path / "backup")).exit_code == OK
    written(engine.as_hub(target))
    assert checked(erxhub, engine.as_hub(target))["entries"] == 3


def test_a_check_finds_a_changed_payload(engine: Engine, erxhub: Erxhub) -> None:
    database = engine.new()
    erxhub("db", "migrate", "--db", database)
    written(engine.as_hub(database))
    engine.damage(database)
    found = checked(erxhub, engine.as_hub(database))
    assert not found["sound"]
    assert "COMMITMENT" in str(found["findings"])


def test_a_scrub_leaves_the_ledger_as_it_is(engine: Engine, erxhub: Erxhub) -> None:
    database = engine.new()
    erxhub("db", "migrate", "--db", database)
    written(engine.as_hub(database))
    if engine.server is not None:
        refused = erxhub("db", "scrub", "--db", database)
        assert refused.exit_code == USAGE
        assert "superuser" in refused.stderr
        database = engine.server.url(database.partition("@/")[2].partition("?")[0])
    done = erxhub("db", "scrub", "--db", database, "-o", "json")
    assert done.exit_code == OK, done.stderr
    assert json.loads(done.stdout)["scrubbed"]
    if engine.server is None:
        assert checked(erxhub, database)["entries"] == 3
    else:
        name = database.partition("@/")[2].partition("?")[0]
        assert engine.server.sql("SELECT count(*) FROM erxhub.content", name) == "3"


def test_a_check_makes_no_ledger_where_there_is_none(engine: Engine, erxhub: Erxhub) -> None:
    result = erxhub("db", "check", "--db", engine.as_hub(engine.new()))
    assert result.exit_code == USAGE


def test_what_is_no_backup_is_not_restored(engine: Engine, erxhub: Erxhub, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database at all, but a text that is long enough to be looked at" * 20)
    result = erxhub("db", "restore", "--db", engine.new(), str(tmp_path / "text"))
    assert result.exit_code in {USAGE, UNAVAILABLE}


def test_a_schema_of_a_newer_release_is_refused(tmp_path: Path, erxhub: Erxhub) -> None:
    database = tmp_path / "hub.db"
    erxhub("db", "migrate", "--db", str(database))
    with sqlite3.connect(database) as shell:
        shell.execute("INSERT INTO schema_version VALUES (99)")
    for verb in ("check", "migrate"):
        result = erxhub("db", verb, "--db", str(database))
        assert result.exit_code == USAGE
        assert "schema 99" in result.stderr


def test_a_file_that_a_hub_has_open_is_left_alone(tmp_path: Path, erxhub: Erxhub) -> None:
    database = str(tmp_path / "hub.db")

    async def beside_a_store() -> list[int]:
        store = await open_store(database)
        codes = [
            await asyncio.to_thread(lambda verb=verb: erxhub("db", verb, "--db", database).exit_code) for verb in VERBS
        ]
        await store.close()
        return codes

    assert asyncio.run(beside_a_store()) == [CONFLICT, CONFLICT, CONFLICT]
    assert erxhub("db", "check", "--db", database).exit_code == OK


VERBS = ("migrate", "check", "scrub")


def test_no_password_is_shown(postgres_server: PostgresServer, erxhub: Erxhub) -> None:
    database = postgres_server.url(postgres_server.database(), "hub")
    for verb in VERBS:
        result = erxhub("db", verb, "--db", database)
        assert result.exit_code == USAGE
        assert postgres_server.password not in result.stderr + result.stdout
        assert "hub@" in result.stderr


def test_two_hubs_are_served_over_one_database(postgres_server: PostgresServer, tmp_path: Path) -> None:
    erxhub, ready = erxhub_in(tmp_path), tmp_path / "ready.json"
    empty = postgres_server.url(postgres_server.database(), "hub")
    url = postgres_server.url(postgres_server.database(postgres_server.ledger_template()), "hub")
    for words in (
        ("ca", "init", "--trust-domain", "example.org"),
        ("ca", "issue", "hub/hub-1", "--host", "localhost", "--host", "127.0.0.1"),
        ("ca", "issue", "agency/330100"),
        ("keys", "init"),
    ):
        assert erxhub(*words).exit_code == OK

    def words(database: str, hub_id: str) -> tuple[str, ...]:
        tls = tmp_path / "pki/tls/hub/hub-1"
        return (
            *("serve", "--db", database, "--keys", str(tmp_path / "keys"), "--ca", str(tmp_path / "pki/ca.pem")),
            *("--cert", str(tls / "cert.pem"), "--key", str(tls / "key.pem"), "--trust-domain", "example.org"),
            *("--address", "127.0.0.1:0", "--hub-id", hub_id, "--ready-file", str(ready)),
        )

    refused = ended(*words(empty, "hub-1"))
    assert refused.returncode == USAGE
    assert "run `erxhub db migrate --db postgresql://hub@" in refused.stderr
    hubs, targets = [], []
    for hub_id in ("hub-1", "hub-2"):
        process, line = start_process(*words(url, hub_id), until="listens on port")
        hubs.append(process)
        targets.append("localhost:" + json.loads(line)["message"].partition("listens on port ")[2].partition(";")[0])
    for number, target in enumerate(targets):
        folder = str(tmp_path / "pki/tls/agency/330100")
        assert erxhub("context", "add", f"at{number}", "--target", target, "--dir", folder).exit_code == OK
    seeded = erxhub("seed", "--pki", str(tmp_path / "pki"), "--context", "at0", "-o", "json")
    assert seeded.exit_code == OK, seeded.stderr
    for number in (0, 1):
        listed = erxhub("registry", "list", "institutions", "--context", f"at{number}", "-o", "json")
        assert [row["etag"] for row in json.loads(listed.stdout)] == ["4", "3", "5", "4"]
    for process in hubs:
        code, printed = stop_process(process)
        assert code == OK
        assert postgres_server.password not in printed
    assert checked(erxhub, url)["sound"]
