"""What `erxhub doctor` asks a PostgreSQL database, without opening a ledger on it.

Owns the questions. It changes nothing, takes no lease, and never fails where an answer can say what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from erxhub.ledger.migrations import postgres_version
from erxhub.ledger.postgres_session import DURABLE, Connection, check_privileges, connect, unavailable
from erxhub.ledger.store import StoreFormatError

_ASKED_TIMES: Final = 3


@dataclass(slots=True)
class PostgresFacts:
    """What a database says of itself. Clock readings in UTC milliseconds.

    `skew_ms` is how far its clock is ahead of this machine's, known to `skew_uncertain_ms` either way. `privileges`
    and `schema_fault` hold what is wrong, "" when nothing is.
    """

    server: str = ""
    role: str = ""
    schema: int = 0
    schema_fault: str = ""
    privileges: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    skew_ms: int = 0
    skew_uncertain_ms: int = 0
    connections_free: int = 0
    is_standby: bool = False


async def look_at_postgres(url: str, now_ms: Callable[[], int]) -> PostgresFacts:
    """Ask everything over one connection; `now_ms` is this machine's clock. Raises StoreUnavailable."""
    connection = await connect(url)
    facts = PostgresFacts()
    try:
        row = await connection.fetchrow(
            "SELECT current_setting('server_version') AS server, current_user AS role, pg_is_in_recovery() AS standby,"
            " current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer"
            " - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')::integer AS free"
        )
        assert row is not None
        facts.server, facts.role, facts.is_standby, facts.connections_free = row
        for name in DURABLE:
            facts.settings[name] = await connection.fetchval("SELECT current_setting($1)", name)
        try:
            facts.schema = await postgres_version(connection)
            if facts.schema:
                await check_privileges(connection)
        except StoreFormatError as error:
            facts.privileges = str(error)
        facts.skew_ms, facts.skew_uncertain_ms = await _skew(connection, now_ms)
    except (asyncpg.PostgresError, OSError) as error:
        raise unavailable(error) from error
    finally:
        await connection.close()
    return facts


async def _skew(connection: Connection, now_ms: Callable[[], int]) -> tuple[int, int]:
    """The database's clock less this machine's, from the quickest of some answers, and how uncertain that is."""
    found = []
    for _ in range(_ASKED_TIMES):
        before_ms = now_ms()
        there_ms: int = await connection.fetchval("SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint")
        after_ms = now_ms()
        took_ms = max(0, after_ms - before_ms)
        found.append((took_ms, there_ms - before_ms - took_ms // 2))
    took_ms, skew_ms = min(found)
    return skew_ms, took_ms // 2 + 1
