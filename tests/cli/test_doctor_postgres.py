"""`erxhub doctor --db postgresql://…`: what it finds wrong with a database, and what it says to do."""

import asyncio
import json

import pytest

from erxhub.cli.doctor import SKEW_FAILURE_MS, SKEW_WARNING_MS, _clock, _connections
from erxhub.ledger.postgres_inspection import PostgresFacts, look_at_postgres
from erxhub.ports import ManualClock, SystemClock
from tests.cli.conftest import Erxhub
from tests.postgres import PostgresServer


def looked(erxhub: Erxhub, url: str) -> tuple[int, dict[str, tuple[str, str]]]:
    run = erxhub("doctor", "--db", url, "-o", "json")
    rows = json.loads(run.stdout)
    found = {row["check"].removeprefix("database: "): (row["result"], row["detail"]) for row in rows}
    assert all("secret" not in detail for _, detail in found.values())
    return run.exit_code, found


@pytest.fixture
def database(postgres_server: PostgresServer) -> str:
    return postgres_server.database(postgres_server.ledger_template())


def test_a_sound_database_is_said_to_be_so(erxhub: Erxhub, postgres_server: PostgresServer, database: str) -> None:
    code, found = looked(erxhub, postgres_server.url(database, "hub"))
    assert code == 0
    settings = ("fsync", "synchronous_commit", "full_page_writes")
    for check in ("reachable", "schema", "privileges", "clock", "connections", *settings):
        assert found[check][0] == "ok", found[check]
    assert postgres_server.password not in str(found)


def test_settings_that_lose_commits_are_named_with_what_to_run(
    erxhub: Erxhub, postgres_server: PostgresServer, database: str
) -> None:
    postgres_server.sql(f"ALTER DATABASE {database} SET synchronous_commit = off")
    code, found = looked(erxhub, postgres_server.url(database, "hub"))
    assert code == 1
    result, detail = found["synchronous_commit"]
    assert result == "FAIL"
    assert "ALTER SYSTEM SET synchronous_commit = on" in detail
    assert found["fsync"][0] == "ok"


def test_a_role_with_too_many_rights_and_a_database_without_a_ledger_are_named(
    erxhub: Erxhub, postgres_server: PostgresServer, database: str
) -> None:
    assert "may change entries" in looked(erxhub, postgres_server.url(database))[1]["privileges"][1]
    code, found = looked(erxhub, postgres_server.url(postgres_server.database()))
    assert (code, found["schema"][0]) == (1, "FAIL")
    assert "erxhub db migrate" in found["schema"][1]


def test_a_server_that_is_not_there_is_exit_code_6(erxhub: Erxhub) -> None:
    code, found = looked(erxhub, "postgresql://hub:secret@127.0.0.1:1/erxhub")
    assert (code, found["reachable"][0]) == (6, "FAIL")
    assert "start the server" in found["reachable"][1]


def test_the_clock_of_the_database_is_compared_with_this_machines(
    postgres_server: PostgresServer, database: str
) -> None:
    url = postgres_server.url(database, "hub")
    behind = ManualClock(SystemClock().now_ms() - 90_000)
    facts = asyncio.run(look_at_postgres(url, behind.now_ms))
    assert 90_000 <= facts.skew_ms < 120_000
    assert _clock(facts).result == "FAIL"
    assert "chrony" in _clock(facts).detail


@pytest.mark.parametrize(
    ("skew_ms", "uncertain_ms", "result"),
    [
        (SKEW_WARNING_MS - 1, 0, "ok"),
        (-SKEW_WARNING_MS, 0, "warn"),
        (SKEW_WARNING_MS + 5, 10, "ok"),
        (SKEW_FAILURE_MS, 0, "FAIL"),
        (-SKEW_FAILURE_MS, 1, "warn"),
    ],
)
def test_a_skew_that_the_network_may_explain_is_none(skew_ms: int, uncertain_ms: int, result: str) -> None:
    assert _clock(PostgresFacts(skew_ms=skew_ms, skew_uncertain_ms=uncertain_ms)).result == result


def test_too_few_connections_are_a_warning() -> None:
    assert [_connections(PostgresFacts(connections_free=free)).result for free in (15, 16)] == ["warn", "ok"]
