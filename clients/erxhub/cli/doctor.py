"""`erxhub doctor`: looks for what is wrong on this machine, with the certificates, and on the way to the hub.

Owns the list of checks. It changes nothing, and each finding says what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from erxhub.cli.commands import command
from erxhub.cli.output import Output, output_option
from erxhub.cli.session import context_option

if TYPE_CHECKING:
    from erxhub.cli.context import Context, Contexts
    from erxhub.client import Environment
    from erxhub.ledger.postgres_inspection import PostgresFacts

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "FAIL"
EXPIRY_WARNING_MS: Final = 7 * 86_400_000
HEALTH_TIMEOUT_S: Final = 5.0
_UNREACHED: Final = ("UNAVAILABLE", "DEADLINE_EXCEEDED")
REACHABLE: Final = "database: reachable"
SKEW_WARNING_MS: Final = 1_000
"""Hubs that are a second apart put entries of one moment into one another's past; streams hide it, reports do not."""
SKEW_FAILURE_MS: Final = 60_000
"""The time within which a receipt promises an entry in the log."""
FREE_BYTES_MIN: Final = 256 * 1024 * 1024
PROJECT_BEGAN_MS: Final = 1_767_225_600_000
"""2026-01-01: a clock that shows an earlier time is wrong."""

_SQLITE_MAGIC: Final = b"SQLite format 3\x00"
_WRITE_AHEAD_LOG: Final = 2
"""Bytes 18 and 19 of an SQLite file in WAL mode (SQLite file format, 1.3.3)."""


class Check(NamedTuple):
    """One finding: `result` is ok, warn or FAIL."""

    check: str
    result: str
    detail: str


@command(
    "doctor",
    example="erxhub doctor\nerxhub doctor --context pharmacy --db hub.db\nerxhub doctor --db postgresql://hub@localhost/erxhub",
)
@context_option
@click.option("--db", metavar="FILE|URL", help="Look at this ledger too, a SQLite file or postgresql://…; only read.")
@output_option
def doctor(context_name: str | None, db: str | None, out: Output) -> None:
    """Check Python, cryptography, contexts, certificates, the clock, the connection, and a database.

    Of a database: whether it can be reached, its schema, what its role may do, whether an acknowledged commit survives
    a crash, and how far its clock is from this machine's.

    Exit code 1 when something has failed, 6 when it is nothing but an unreachable hub.
    """
    import asyncio

    from erxhub.cli.context import Contexts
    from erxhub.cli.exits import NEGATIVE, UNAVAILABLE
    from erxhub.cli.local_errors import Failed
    from erxhub.cli.stores import is_postgres

    checks = [*_machine()]
    unreachable: list[Check] = []
    try:
        contexts = Contexts.load()
    except Failed as error:
        checks.append(Check("contexts", FAIL, error.message))
    else:
        chosen, found = _chosen(contexts, context_name)
        checks += found
        for context in chosen:
            local = [*_certificates(context)]
            checks += local
            if not any(check.result == FAIL for check in local):
                reached = asyncio.run(_reached(contexts, context))
                checks.append(reached)
                unreachable += [reached] if any(word in reached.detail for word in _UNREACHED) else []
    if db is not None:
        found = asyncio.run(_postgres(db)) if is_postgres(db) else [*_database(Path(db))]
        checks += found
        unreachable += [check for check in found if check.check == REACHABLE and check.result == FAIL]
    out.rows([check._asdict() for check in checks], Check._fields)
    failed = [check for check in checks if check.result == FAIL]
    if failed:
        raise click.exceptions.Exit(UNAVAILABLE if failed == unreachable else NEGATIVE)


def _machine() -> Iterator[Check]:
    import ssl
    import sys
    from importlib.metadata import version

    from erxhub import process
    from erxhub.crypto import sm2
    from erxhub.ports import SystemClock

    python = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", OK if sys.version_info >= (3, 11) else FAIL, f"{python}, 3.11 or newer is needed")
    yield Check("code", OK, f"{process.code()} (docs/decisions/0014)")
    libraries = ", ".join(f"{name} {version(name)}" for name in ("grpcio", "protobuf", "cryptography", "aiosqlite"))
    yield Check("libraries", OK, libraries)
    yield Check("openssl", OK, ssl.OPENSSL_VERSION)
    backend = sm2.backend()
    slow = backend == "pure-python"
    yield Check("sm2", WARN if slow else OK, f"{backend}: slow; install OpenSSL 3" if slow else backend)
    now_ms = SystemClock().now_ms()
    yield Check("clock", FAIL if now_ms < PROJECT_BEGAN_MS else OK, _time(now_ms))


def _chosen(contexts: Contexts, name: str | None) -> tuple[list[Context], list[Check]]:
    """The contexts to look at, and what is to be said about the file."""
    where = str(contexts.folder)
    if name is not None and name not in contexts.by_name:
        return [], [Check("contexts", FAIL, f"there is no context {name!r} in {where}")]
    if not contexts.by_name:
        return [], [Check("contexts", WARN, f"none in {where}; `erxhub dev` makes some, `erxhub context add` one")]
    chosen = [contexts.by_name[name]] if name else list(contexts.by_name.values())
    return chosen, [Check("contexts", OK, f"{len(contexts.by_name)} in {where}, current: {contexts.current or 'none'}")]


def _certificates(context: Context) -> Iterator[Check]:
    from erxhub.cli.local_errors import Failed
    from erxhub.crypto import certs
    from erxhub.ports import SystemClock

    name = f"{context.name}: certificate"
    now_ms = SystemClock().now_ms()
    try:
        identity = context.identity()
    except Failed as error:
        yield Check(name, FAIL, error.message)
        return
    fault = certs.explain_tls(identity.cert_pem, identity.ca_pem, now_ms)
    cert_pem, key_pem = identity.cert_pem or b"", identity.key_pem or b""
    if fault is not None:
        yield Check(name, FAIL, f"{fault.code}: {fault.en} {fault.zh}")
    elif not certs.key_matches(cert_pem, key_pem):
        yield Check(name, FAIL, f"{context.key} is not the key of {context.cert}")
    else:
        yield _validity(name, cert_pem, now_ms)
    if context.key.stat().st_mode & 0o077:
        yield Check(f"{context.name}: key file", WARN, f"{context.key} can be read by others; chmod 600")
    for subject in context.signing_keys:
        try:
            context.signing_key(subject)
        except Failed as error:
            yield Check(f"{context.name}: signing key", FAIL, error.message)


def _validity(name: str, cert_pem: bytes, now_ms: int) -> Check:
    from erxhub.crypto import certs

    try:
        peer = certs.peer_identity(cert_pem, certs.trust_domain_of(cert_pem))
    except certs.PeerIdentityError as error:
        return Check(name, FAIL, str(error))
    soon = peer.not_after_ms - now_ms < EXPIRY_WARNING_MS
    return Check(name, WARN if soon else OK, f"{peer.path}, valid until {_time(peer.not_after_ms)}")


async def _reached(contexts: Contexts, context: Context) -> Check:
    """Whether what the context points at answers: a hub, or the control port of a sandbox."""
    from erxhub.cli.local_errors import Failed
    from erxhub.cli.session import SANDBOX_ROLE, connect, environment_of
    from erxhub.client import CallFailed, Refusal, SandboxClient

    name = f"{context.name}: sandbox"
    try:
        if context.role != SANDBOX_ROLE:
            return await _hub(context, await environment_of(contexts, context))
        async with connect(context) as connection:
            namespaces = await SandboxClient(connection).list_namespaces()
    except (CallFailed, Refusal) as failure:
        return Check(name, FAIL, f"{failure.grpc_status}: {failure}")
    except Failed as error:
        return Check(name, FAIL, error.message)
    return Check(name, OK, f"{context.target}: answers, namespaces: {len(namespaces)}")


async def _hub(context: Context, environment: Environment | None) -> Check:
    """Whether the hub answers its health check, and then a small read of this caller, sent with this clock's time."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from erxhub.cli.session import connect
    from erxhub.client.failures import refusal_of
    from erxhub.rpc.steps import SENT_AT_HEADER
    from erxhub.v1 import audit_pb2, audit_pb2_grpc, catalog_pb2, registry_pb2, registry_pb2_grpc

    name = f"{context.name}: hub"
    async with connect(context, environment) as connection:
        health = health_pb2_grpc.HealthStub(connection.channel)
        try:
            reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S)
            status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
            if status != "SERVING":
                return Check(name, FAIL, f"{context.target}: {status}")
            # Everybody but a mirror may read the lists. The hub compares the clocks, and refuses a revoked certificate.
            sent = ((SENT_AT_HEADER, str(connection.environment.now_ms())),)
            if context.role == "mirror":
                audit = audit_pb2_grpc.AuditServiceStub(connection.channel)
                await audit.ListCheckpoints(
                    audit_pb2.ListCheckpointsRequest(page_size=1), timeout=HEALTH_TIMEOUT_S, metadata=sent
                )
            else:
                registry = registry_pb2_grpc.RegistryServiceStub(connection.channel)
                await registry.ListCatalog(
                    registry_pb2.ListCatalogRequest(dataset=catalog_pb2.CATALOG_DATASET_FREQUENCIES),
                    timeout=HEALTH_TIMEOUT_S,
                    metadata=sent,
                )
        except grpc.aio.AioRpcError as error:
            refusal = refusal_of(error)
            if refusal is None:
                failure = await connection.failure(error)
                return Check(name, FAIL, f"{context.target}: {error.code().name}: {failure}")
            more = "".join(f" {key}={value}" for key, value in refusal.metadata.items())
            return Check(name, FAIL, f"{context.target}: {refusal.code}: {refusal.text_en} {refusal.text_zh}{more}")
    return Check(name, OK, f"{context.target}: SERVING, knows this caller, clocks agree")


def _database(path: Path) -> Iterator[Check]:
    """What the file itself says about its durability; the hub sets the rest at each start."""
    import shutil

    try:
        with path.open("rb") as file:
            header = file.read(100)
    except OSError as error:
        yield Check("database", FAIL, f"{path}: {error.strerror}")
        return
    if len(header) < 100 or not header.startswith(_SQLITE_MAGIC):
        yield Check("database", FAIL, f"{path} is no SQLite file")
        return
    yield from _file_schema(path)
    wal = header[18] == header[19] == _WRITE_AHEAD_LOG
    advice = "write-ahead log; the hub writes with synchronous=FULL" if wal else "no write-ahead log; start a hub on it"
    yield Check("database: journal", OK if wal else FAIL, advice)
    if path.stat().st_mode & 0o077:
        yield Check("database: file mode", WARN, f"{path} can be read by others; chmod 600")
    free = shutil.disk_usage(path.resolve().parent).free
    enough = free >= FREE_BYTES_MIN
    yield Check("database: disk", OK if enough else WARN, f"{free // (1024 * 1024)} MiB free")


def _file_schema(path: Path) -> Iterator[Check]:
    from erxhub.ledger.inspection import schema_of_file
    from erxhub.ledger.migrations import check_version
    from erxhub.ledger.store import StoreFormatError, StoreUnavailable

    try:
        version = schema_of_file(path)
        check_version("sqlite", version, str(path))
    except (StoreFormatError, StoreUnavailable, OSError) as error:
        yield Check("database: schema", FAIL, f"{path}: {error}")
    else:
        yield Check("database: schema", OK, f"{version}, the one of this release")


async def _postgres(url: str) -> list[Check]:
    """What a PostgreSQL database says of itself, each finding with the next step."""
    from erxhub.cli.local_errors import Failed
    from erxhub.cli.stores import failures_of, shown
    from erxhub.ports import SystemClock

    name = shown(url)
    try:
        with failures_of(url):
            from erxhub.ledger.postgres_inspection import look_at_postgres

            facts = await look_at_postgres(url, SystemClock().now_ms)
    except Failed as error:
        step = "start the server, or check address, database, role and password"
        return [Check(REACHABLE, FAIL, f"{error.message}; {step}")]
    reached = f"{name}: PostgreSQL {facts.server} as {facts.role}"
    return [
        Check(REACHABLE, FAIL if facts.is_standby else OK, reached + (", a read-only standby" * facts.is_standby)),
        *_schema(url, facts),
        *_durability(facts),
        _clock(facts),
        _connections(facts),
    ]


def _schema(url: str, facts: PostgresFacts) -> Iterator[Check]:
    from erxhub.cli.stores import shown
    from erxhub.ledger.migrations import check_version
    from erxhub.ledger.store import StoreFormatError

    try:
        # With a role that may not read it nothing is known of the schema.
        if facts.schema or not facts.privileges:
            check_version("postgres", facts.schema, shown(url))
            yield Check("database: schema", OK, f"{facts.schema}, the one of this release")
    except StoreFormatError as error:
        yield Check("database: schema", FAIL, str(error))
    if facts.privileges:
        yield Check("database: privileges", FAIL, facts.privileges)
    elif facts.schema:
        yield Check("database: privileges", OK, f"{facts.role} may insert and read entries, and not change them")


def _durability(facts: PostgresFacts) -> Iterator[Check]:
    from erxhub.ledger.postgres_session import DURABLE

    for setting, accepted in DURABLE.items():
        value = facts.settings[setting]
        if value in accepted:
            yield Check(f"database: {setting}", OK, value)
            continue
        step = f"ALTER SYSTEM SET {setting} = {accepted[0]}; SELECT pg_reload_conf();"
        where = "or where ALTER DATABASE or ALTER ROLE changed it"
        lost = "a crash may lose what was acknowledged, and no hub starts on it"
        yield Check(f"database: {setting}", FAIL, f"{value}: {lost}. {step} {where}")


def _clock(facts: PostgresFacts) -> Check:
    """Hubs record by their own clocks, so they and the database have to agree."""
    apart_ms = abs(facts.skew_ms)
    # What the network took could explain the rest.
    surely_ms = max(0, apart_ms - facts.skew_uncertain_ms)
    side = "ahead of" if facts.skew_ms > 0 else "behind"
    said = f"{apart_ms} ms {side} this machine's, known to {facts.skew_uncertain_ms} ms"
    if surely_ms < SKEW_WARNING_MS:
        return Check("database: clock", OK, said)
    step = "synchronise both machines (chrony or systemd-timesyncd) before more hubs are started"
    return Check("database: clock", FAIL if surely_ms >= SKEW_FAILURE_MS else WARN, f"{said}; {step}")


def _connections(facts: PostgresFacts) -> Check:
    from erxhub.ledger.postgres import CONNECTIONS_MAX

    enough = facts.connections_free >= CONNECTIONS_MAX
    said = f"{facts.connections_free} are free, a hub takes up to {CONNECTIONS_MAX}"
    return Check("database: connections", OK if enough else WARN, said if enough else f"{said}; raise max_connections")


def _time(at_ms: int) -> str:
    from erxhub.cli.arguments import iso_beijing

    return iso_beijing(at_ms)
