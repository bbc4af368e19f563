"""Connections to the PostgreSQL ledger: how they are made, what is checked before one is used, what their errors mean.

Owns the settings of a hub's sessions and the refusals at a start. It must never let a hub run on a database that may
lose an acknowledged commit, or with a role that may change entries.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import parse_qsl, urlsplit

import asyncpg

from erxhub.ledger.store import StoreFormatError, StoreUnavailable

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
else:
    Connection = asyncpg.Connection  # subscripts exist in the stubs only

CONNECT_TIMEOUT_S: Final = 5.0
COMMAND_TIMEOUT_S: Final = 30.0
"""When the server does not even say that a statement took too long, the connection is given up."""

_SETTINGS: Final = {
    "application_name": "erxhub",
    "search_path": "erxhub",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "20s",
    "lock_timeout": "2s",
    "idle_in_transaction_session_timeout": "30s",
    # Every statement of a hub finds rows by their keys. A plan made while the tables were empty would read them whole
    # for as long as it is kept, and a plan made anew for each call costs more than finding the rows.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
}

# What a session must find; the value is what is accepted.
DURABLE: Final[Mapping[str, tuple[str, ...]]] = {
    "synchronous_commit": ("on", "remote_apply"),
    "fsync": ("on",),
    "full_page_writes": ("on",),
}

# Of the SQLSTATEs: those that say "not now" about the server, the disk, the session or a lock. All others are bugs.
_UNAVAILABLE_CLASSES: Final = frozenset({"08", "28", "40", "53", "57", "58", "3D", "XX"})
_UNAVAILABLE: Final = frozenset({"25006", "25P03", "55P03", "0A000"})  # read-only, timed out, lock; a changed plan
_AGAIN: Final = frozenset({"40001", "40P01", "55P03", "23505"})


def described(url: str) -> str:
    """The database for a message: without the password."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    host = parts.hostname or query.get("host", "")
    user = f"{parts.username}@" if parts.username else ""
    port = f":{parts.port}" if parts.port else ""
    return f"postgresql://{user}{host}{port}{parts.path}"


async def close_connection(connection: Connection) -> None:
    """End a connection that may be lost already; what it was doing is given up."""
    try:
        await connection.close(timeout=1)
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
        connection.terminate()


async def connect(url: str, *, hub: bool = True, read_only: bool = False) -> Connection:
    """A connection; `hub` gives it a hub's settings. Raises StoreUnavailable."""
    settings = dict(_SETTINGS) if hub else {"application_name": "erxhub db"}
    if read_only:
        settings["default_transaction_read_only"] = "on"
    try:
        return await asyncpg.connect(
            url,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S if hub else None,
            server_settings=settings,
        )
    except Exception as error:
        raise unavailable(error, "the database cannot be reached") from error


async def make_pool(url: str, size: int) -> asyncpg.Pool[asyncpg.Record]:
    """Connections to read with. Raises StoreUnavailable."""
    try:
        return await asyncpg.create_pool(
            url,
            min_size=1,
            max_size=size,
            timeout=CONNECT_TIMEOUT_S,
            command_timeout=COMMAND_TIMEOUT_S,
            reset=_nothing_to_reset,
            server_settings=_SETTINGS | {"default_transaction_read_only": "on"},
        )
    except Exception as error:
        raise unavailable(error, "the database cannot be reached") from error


async def _nothing_to_reset(connection: Any) -> None:
    """Between two readers: each runs single statements and changes no setting."""


async def check_durable(connection: Connection) -> None:
    """Raises StoreFormatError naming the first setting under which a crash could lose an acknowledged commit."""
    for name, accepted in DURABLE.items():
        value = await connection.fetchval("SELECT current_setting($1)", name)
        if value not in accepted:
            raise StoreFormatError(
                f"{name} is {value}: a crash could lose what was acknowledged. Set {name} = {accepted[0]} in "
                "postgresql.conf, or where ALTER SYSTEM, ALTER DATABASE or ALTER ROLE changed it"
            )


async def check_privileges(connection: Connection) -> None:
    """Raises StoreFormatError when this role may change or delete entries, or may not do a hub's work."""
    row = await connection.fetchrow(
        "SELECT current_user AS role,"
        " has_table_privilege('erxhub.entry', 'UPDATE, DELETE, TRUNCATE')"
        " OR has_table_privilege('erxhub.content', 'UPDATE, DELETE, TRUNCATE') AS changes,"
        " has_table_privilege('erxhub.entry', 'INSERT') AS writes"
    )
    assert row is not None
    if row["changes"]:
        raise StoreFormatError(
            f"the role {row['role']} may change entries: a hub runs with a role that was granted erxhub_hub and no more"
        )
    if not row["writes"]:
        raise StoreFormatError(f"the role {row['role']} may not write: GRANT erxhub_hub TO {row['role']}")


def is_retriable(error: BaseException) -> bool:
    """Whether the same transaction may well succeed when it is run again."""
    return isinstance(error, asyncpg.PostgresError) and _state(error) in _AGAIN


def is_unavailable(error: BaseException) -> bool:
    """Whether an error speaks of the server, the network or the disk, and not of a bug."""
    if isinstance(error, StoreUnavailable | OSError | TimeoutError | asyncpg.InterfaceError):
        return True
    if isinstance(error, asyncpg.InternalClientError):
        return True
    if not isinstance(error, asyncpg.PostgresError):
        return False
    state = _state(error)
    return state[:2] in _UNAVAILABLE_CLASSES or state in _UNAVAILABLE


def unavailable(error: Exception, what: str = "the ledger cannot be used") -> Exception:
    """StoreUnavailable for an error that means it, the error itself otherwise."""
    if isinstance(error, StoreUnavailable) or not is_unavailable(error):
        return error
    return StoreUnavailable(f"{what}: {error or type(error).__name__}")


def _state(error: asyncpg.PostgresError) -> str:
    return str(getattr(error, "sqlstate", "") or "")
