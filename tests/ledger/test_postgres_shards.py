"""That the tables can be spread by shard: every key begins with it, and every statement of a hub names it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from importlib import resources
from types import ModuleType
from typing import Any

import asyncpg
import pytest

from erxhub.ledger import (
    postgres_append,
    postgres_homes,
    postgres_log,
    postgres_read,
    postgres_sequencer,
    postgres_session,
    postgres_writer,
)
from erxhub.ledger.postgres import open_postgres
from erxhub.ledger.postgres_homes import FIND_EVERYWHERE
from erxhub.ledger.postgres_read import OVER_ALL_SHARDS, load_statement
from erxhub.placement import AreaPlacement
from tests.chain import Chain
from tests.live import HOSPITAL, PERSON, PHARMACY, live_hub
from tests.postgres import PostgresServer
from tests.several.ground import several_hubs

REFERENCE = {"catalog_row", "schema_version"}
"""The same on every node: published code lists, and the schema's number."""

MODULES = (
    *(postgres_append, postgres_homes, postgres_log, postgres_read, postgres_sequencer, postgres_session),
    postgres_writer,
)
_SQL = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")
_PARTS = range(6)


@pytest.fixture(scope="module")
def tables(postgres_server: PostgresServer) -> frozenset[str]:
    names = postgres_server.sql(
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relnamespace = 'erxhub'::regnamespace",
        postgres_server.ledger_template(),
    )
    return frozenset(names.split())


# --- the schema -----------------------------------------------------------------------------------


def test_every_key_of_a_table_of_domain_state_begins_with_shard(
    postgres_server: PostgresServer, tables: frozenset[str]
) -> None:
    keys = postgres_server.sql(
        """
        SELECT c.relname || ' ' || x.kind || ' ' || a.attname FROM (
            SELECT indrelid, 'unique', indkey[0] FROM pg_index WHERE indisunique
            UNION ALL SELECT conrelid, 'foreign', conkey[1] FROM pg_constraint WHERE contype = 'f'
            UNION ALL SELECT confrelid, 'referred', confkey[1] FROM pg_constraint WHERE contype = 'f'
        ) x (relation, kind, number)
        JOIN pg_class c ON c.oid = x.relation
        JOIN pg_attribute a ON a.attrelid = x.relation AND a.attnum = x.number
        WHERE c.relnamespace = 'erxhub'::regnamespace
        """,
        postgres_server.ledger_template(),
    )
    found = [line.split() for line in keys.splitlines()]
    assert {table for table, kind, _ in found if kind == "unique"} == tables
    assert [line for line in found if line[0] not in REFERENCE and line[2] != "shard"] == []


def test_spread_tables_have_no_triggers_of_their_own(postgres_server: PostgresServer) -> None:
    count = "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal"
    assert postgres_server.sql(count, postgres_server.ledger_template()) == "0"


def test_the_file_for_citus_spreads_every_table_by_its_shard(
    postgres_server: PostgresServer, tables: frozenset[str]
) -> None:
    text = resources.files("erxhub.ledger").joinpath("schema/citus.sql").read_text("utf-8")
    calls = re.findall(
        r"^SELECT (\w+)\('erxhub\.(\w+)'(?:, '(\w+)', colocate_with => '([\w.]+)')?\);$", text, re.MULTILINE
    )
    assert len(calls) == len(re.findall("^SELECT", text, re.MULTILINE))
    spread = [table for call, table, column, _ in calls if (call, column) == ("create_distributed_table", "shard")]
    everywhere = {table for call, table, _, _ in calls if call == "create_reference_table"}
    assert sorted([*spread, *everywhere]) == sorted(tables)
    assert everywhere == REFERENCE
    assert [with_ for _, table, _, with_ in calls if table in spread] == ["none"] + ["erxhub.stream"] * (
        len(spread) - 1
    )
    # What is referred to is spread before what refers to it, and nothing that is spread refers to what is not.
    referring = postgres_server.sql(
        "SELECT conrelid::regclass, confrelid::regclass FROM pg_constraint WHERE contype = 'f'"
        " AND connamespace = 'erxhub'::regnamespace",
        postgres_server.ledger_template(),
    )
    for line in referring.splitlines():
        table, other = (name.removeprefix("erxhub.") for name in line.split("|"))
        assert spread.index(other) < spread.index(table)


# --- the statements -------------------------------------------------------------------------------

_TABLE = re.compile(
    r"\b(FROM|JOIN|INTO|UPDATE|USING)\s+(?:erxhub\.)?([a-z_]+)\b(?!\.)(?:\s+(?:AS\s+)?(?!ON\b|WHERE\b|SET\b|ORDER\b|JOIN\b"
    r"|LEFT\b|USING\b|SELECT\b|UNION\b)([a-z_]+))?"
)


_EQUAL = re.compile(r"(?<![.\w])(?:(\w+)\.)?(?:shard|home) = (?:(\w+)\.\w+|(\$\d|ANY\(\$\d))")
_BY_INDEX = re.compile(r"\b(\w+)\.idx [<>=]+ \$")


def without_shard(statement: str, tables: frozenset[str]) -> list[str]:
    """The tables of a statement of which it does not say the shard, directly or by another row whose shard it says."""
    text = " ".join(statement.split())
    asked: dict[str, str] = {}
    missing = []
    for verb, table, alias in _TABLE.findall(text):
        if table not in tables or table in REFERENCE:
            continue
        if verb != "INTO":
            asked[alias] = table
        elif not re.search(rf"INTO (erxhub\.)?{table}( AS [a-z]+)? \(shard,", text):
            missing.append(table)
    log = set(re.findall(r"erxhub_log\.log_index (\w+)", text)) - set(_BY_INDEX.findall(text))
    equal = [(left, right or given) for left, right, given in _EQUAL.findall(text)]
    said = {name for pair in equal for name in pair if name not in asked and name not in log}
    while found := {name for pair in equal for name in pair if said.intersection(pair)} - said:
        said |= found
    return missing + [table for alias, table in asked.items() if alias not in said]


def statements() -> dict[str, str]:
    """Every statement that a hub can send, by where it stands."""
    found: dict[str, str] = {}
    for module in MODULES:
        found.update({f"{module.__name__}.{name}": text for name, text in _constants(module)})
    for count in range(1, len(_PARTS) + 1):
        for parts in itertools.combinations(_PARTS, count):
            found[f"load {parts}"] = load_statement(parts)
    return found


def _constants(module: ModuleType) -> Iterator[tuple[str, str]]:
    for name, value in vars(module).items():
        # Those with an underscore are parts of others.
        if name.isupper() and not name.startswith("_") and isinstance(value, str) and _SQL.match(value):
            yield name, value


def is_exempt(statement: str) -> bool:
    """Whether a statement is one that goes over all shards, or is made with the part that does."""
    return statement in OVER_ALL_SHARDS


def test_every_statement_names_its_shard(tables: frozenset[str]) -> None:
    known = statements()
    assert len(known) > 50
    everywhere = [part for part in _PARTS if load_statement((part,)) in OVER_ALL_SHARDS]
    assert len(everywhere) == 1
    broken = {
        where: missing
        for where, text in known.items()
        if not is_exempt(text)
        and not (where.startswith("load") and str(everywhere[0]) in where)
        and (missing := without_shard(text, tables))
    }
    assert broken == {}


def test_every_exemption_is_used_and_has_a_reason(tables: frozenset[str]) -> None:
    known = set(statements().values())
    assert OVER_ALL_SHARDS.keys() <= known
    assert all(reason.strip() for reason in OVER_ALL_SHARDS.values())
    assert [text for text in OVER_ALL_SHARDS if not without_shard(text, tables)] == []


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT version FROM state WHERE stream = $1",
        "SELECT s.key FROM stream s JOIN state t ON t.stream = s.no WHERE s.shard = $1",
        "SELECT s.key FROM stream s JOIN state t ON t.shard = s.shard AND t.stream = s.no WHERE s.key = $1",
        "SELECT 1 FROM erxhub_log.log_index i JOIN unlisted u ON u.shard = i.shard AND u.stream = i.stream",
        "INSERT INTO name (space, key, shard) VALUES ($1, $2, $3)",
        "INSERT INTO entry SELECT * FROM unnest($1::integer[])",
        "UPDATE state SET version = 2 WHERE stream = 1",
        "DELETE FROM unindexed u USING next n WHERE u.ticket = n.ticket",
        "WITH a AS (SELECT 1 FROM erxhub.reply r WHERE r.caller = $1) SELECT * FROM a",
    ],
)
def test_statement_without_a_shard_is_seen(statement: str, tables: frozenset[str]) -> None:
    assert without_shard(statement, tables)


# --- a whole hub ----------------------------------------------------------------------------------

# Transactions, what a start checks, and what the driver asks to learn the types of arrays.
_OF_THE_SESSION = re.compile(
    r"BEGIN|COMMIT|ROLLBACK|LISTEN|UNLISTEN|SELECT current_|SELECT to_regclass|SELECT coalesce\(max|WITH RECURSIVE"
    r" typeinfo_tree|SELECT\s+current_setting\('jit'\)|SELECT set_config"
)


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every statement that a hub of this test sends."""
    heard: set[str] = set()
    connect, create_pool = asyncpg.connect, asyncpg.create_pool

    async def listened(connection: Any) -> None:
        connection.add_query_logger(lambda query: heard.add(query.query))

    async def connect_and_listen(*args: Any, **kwargs: Any) -> Any:
        connection = await connect(*args, **kwargs)
        await listened(connection)
        return connection

    monkeypatch.setattr(postgres_session.asyncpg, "connect", connect_and_listen)
    monkeypatch.setattr(
        postgres_session.asyncpg, "create_pool", lambda *args, **kwargs: create_pool(*args, init=listened, **kwargs)
    )
    return heard


_NEXT = {
    "prechecked": Chain.uploaded,
    "uploaded": Chain.listed,
    "reviewed": Chain.quote_again,
    "settled": Chain.dispensed,
    "arrived": Chain.sign,
}


async def test_a_hub_that_met_nothing_yet_goes_on_with_a_prescription_in_its_own_shards(
    postgres_server: PostgresServer, sent: set[str]
) -> None:
    everywhere = {FIND_EVERYWHERE} | {
        load_statement(parts)
        for count in range(1, len(_PARTS) + 1)
        for parts in itertools.combinations(_PARTS, count)
        if 2 in parts
    }
    assert everywhere & OVER_ALL_SHARDS.keys() == {FIND_EVERYWHERE, load_statement((2,))}
    url = postgres_server.url(postgres_server.database(postgres_server.ledger_template()), "hub")
    async with several_hubs([url, url]) as several:
        for until, goes_on in _NEXT.items():
            chain = Chain(several[0])
            await getattr(chain, until)()
            sent.clear()
            chain.live = several[1]
            await goes_on(chain)
            assert sent & everywhere == set(), until


async def test_a_whole_hub_does_its_job_and_sends_no_other_statement(
    postgres_server: PostgresServer, sent: set[str]
) -> None:
    database = postgres_server.database(postgres_server.ledger_template())
    store = await open_postgres(postgres_server.url(database, "hub"), placement=AreaPlacement())
    async with live_hub(store=store) as live:
        chain = Chain(live)
        await chain.delivered()
        auditor = await live.auditor()
        assert (await auditor.verify_ledger()).verified
        assert await auditor.trace(rx_no=chain.rx_no, verify=True)
        homes = postgres_server.sql("SELECT kind, shard FROM erxhub.stream", database)
    own = set(statements().values())
    assert {query for query in sent if query not in own and not _OF_THE_SESSION.match(query.lstrip())} == set()
    assert len(sent & own) > 25
    shards: dict[str, set[int]] = {}
    for line in homes.splitlines():
        kind, shard = line.split("|")
        shards.setdefault(kind, set()).add(int(shard))
    area = int(HOSPITAL[1:7])
    assert PHARMACY[1:7] == PERSON[:6] == HOSPITAL[1:7]
    for kind in ("prescription", "encounter", "voucher", "account", "person", "institution", "practitioner"):
        assert shards[kind] == {area}, kind
    assert all(shard < 4096 for shard in shards["trace_code"] | shards["ledger"])
    assert area in shards["access"]
