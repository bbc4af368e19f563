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

OK: Final = "ok"
WARN: Final = "warn"
FAIL: Final = "FAIL"
EXPIRY_WARNING_MS: Final = 7 * 86_400_000
HEALTH_TIMEOUT_S: Final = 5.0
_UNREACHED: Final = ("UNAVAILABLE", "DEADLINE_EXCEEDED")
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


@command("doctor", example="erxhub doctor\nerxhub doctor --context pharmacy --db hub.db")
@context_option
@click.option(
    "--db",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Look at this ledger file too; it is only read.",
)
@output_option
def doctor(context_name: str | None, db: Path | None, out: Output) -> None:
    """Check Python, cryptography, contexts, certificates, the clock, the connection, and a database.

    Exit code 1 when something has failed, 6 when it is nothing but an unreachable hub.
    """
    import asyncio

    from erxhub.cli.context import Contexts
    from erxhub.cli.exits import NEGATIVE, UNAVAILABLE, Failed

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
        checks += _database(db)
    out.rows([check._asdict() for check in checks], Check._fields)
    failed = [check for check in checks if check.result == FAIL]
    if failed:
        raise click.exceptions.Exit(UNAVAILABLE if failed == unreachable else NEGATIVE)


def _machine() -> Iterator[Check]:
    import ssl
    import sys
    from importlib.metadata import version

    from erxhub.crypto import sm2
    from erxhub.ports import SystemClock

    python = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", OK if sys.version_info >= (3, 11) else FAIL, f"{python}, 3.11 or newer is needed")
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
    from erxhub.cli.exits import Failed
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
    return Check(name, OK, f"{context.target}: {len(namespaces)} namespaces")


async def _hub(context: Context, environment: Environment | None) -> Check:
    """Whether the hub answers its health check, and then a small read of this caller, sent with this clock's time."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from erxhub.cli.session import connect
    from erxhub.client.failures import refusal_of
    from erxhub.rpc.dispatch import SENT_AT_HEADER
    from erxhub.v1 import catalog_pb2, registry_pb2, registry_pb2_grpc

    name = f"{context.name}: hub"
    async with connect(context, environment) as connection:
        health = health_pb2_grpc.HealthStub(connection.channel)
        registry = registry_pb2_grpc.RegistryServiceStub(connection.channel)
        try:
            reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_TIMEOUT_S)
            status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
            if status != "SERVING":
                return Check(name, FAIL, f"{context.target}: {status}")
            # Everybody may read the lists. The hub compares the clocks, and refuses a revoked certificate.
            await registry.ListCatalog(
                registry_pb2.ListCatalogRequest(dataset=catalog_pb2.CATALOG_DATASET_FREQUENCIES),
                timeout=HEALTH_TIMEOUT_S,
                metadata=((SENT_AT_HEADER, str(connection.environment.now_ms())),),
            )
        except grpc.aio.AioRpcError as error:
            refusal = refusal_of(error)
            if refusal is None:
                return Check(name, FAIL, f"{context.target}: {error.code().name}: {error.details()}")
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
    wal = header[18] == header[19] == _WRITE_AHEAD_LOG
    advice = "write-ahead log; the hub writes with synchronous=FULL" if wal else "no write-ahead log; start a hub on it"
    yield Check("database: journal", OK if wal else FAIL, advice)
    if path.stat().st_mode & 0o077:
        yield Check("database: file mode", WARN, f"{path} can be read by others; chmod 600")
    free = shutil.disk_usage(path.resolve().parent).free
    enough = free >= FREE_BYTES_MIN
    yield Check("database: disk", OK if enough else WARN, f"{free // (1024 * 1024)} MiB free")


def _time(at_ms: int) -> str:
    from erxhub.cli.arguments import iso_beijing

    return iso_beijing(at_ms)
