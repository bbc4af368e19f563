"""`erxhub sandbox`: the namespaces of a sandbox, what went over the wire, and who is in its world (沙箱)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from erxhub.cli.arguments import InstantType
from erxhub.cli.commands import group
from erxhub.cli.exits import NEGATIVE, OK
from erxhub.cli.local_errors import unusable
from erxhub.cli.namespaces import namespace_option, with_sandbox
from erxhub.cli.output import NewFile, Output
from erxhub.cli.session import context_option, run

if TYPE_CHECKING:
    from erxhub.cli.context import Context
    from erxhub.client import SandboxClient

COLUMNS: Final = ("namespace", "clock", "now", "profile", "suite", "entries", "exchanges", "fault_rules", "snapshots")
ROLES: Final = ("hospital", "pharmacy", "channel", "agency", "auditor", "supervisor", "mirror")
DEFECTS: Final = (
    "expired",
    "not-yet-valid",
    "unknown-authority",
    "no-uri",
    "foreign-trust-domain",
    "revoked",
    "wrong-key",
)
MAGIC_KINDS: Final = ("voucher", "person", "drug", "amount")


@group("sandbox", example="erxhub sandbox status")
def sandbox() -> None:
    """The sandbox that `erxhub dev` runs (沙箱): namespaces, traffic, magic values, certificates.

    A namespace is a hub of its own, chosen by the caller's certificate. Its clock, faults and states have verbs of
    their own: `erxhub clock`, `fault`, `trigger`, `snapshot`, `reset`.
    """


# --- namespaces -----------------------------------------------------------------------------------


@sandbox.command("status", example="erxhub sandbox status")
@with_sandbox
async def status(client: SandboxClient, ctx: Context, out: Output) -> None:
    """Where a namespace stands: address, clock, seed, ledger, faults, traffic (状态)."""
    from erxhub.cli.namespaces import namespace_record

    out.object(namespace_record(await client.get_namespace()))


@sandbox.command("namespaces", example="erxhub sandbox namespaces")
@with_sandbox
async def namespaces(client: SandboxClient, ctx: Context, out: Output) -> None:
    """All namespaces of this operator (命名空间列表)."""
    from erxhub.cli.namespaces import namespace_record

    out.rows([namespace_record(one) for one in await client.list_namespaces()], COLUMNS)


@sandbox.command(
    "create",
    example="erxhub sandbox create lab --seed 7\n"
    "erxhub sandbox create lab2 --start 2026-03-01T08:00:00 --profile strict",
)
@click.argument("name", default="")
@click.option(
    "--seed", type=click.IntRange(0, 2**64 - 1), default=0, show_default=True, help="The same gives the same."
)
@click.option("--start", "start_at_ms", type=InstantType(), default=0, help="Where its clock begins; by default now.")
@click.option("--clock", type=click.Choice(["standing", "running"]), default="standing", show_default=True)
@click.option("--profile", type=click.Choice(["dev", "strict", "chaos"]), default="dev", show_default=True)
@click.option("--suite", type=click.Choice(["ES256", "EdDSA", "SM2-SM3"]), default="ES256", show_default=True)
@click.option("--bare", is_flag=True, help="Write no contexts.")
@with_sandbox
async def create(
    client: SandboxClient,
    ctx: Context,
    out: Output,
    name: str,
    seed: int,
    start_at_ms: int,
    clock: str,
    profile: str,
    suite: str,
    bare: bool,
) -> None:
    """Make a namespace, and contexts for its callers: NAME-hospital, NAME-pharmacy, … (新建命名空间)."""
    from erxhub.cli.context import Contexts
    from erxhub.cli.namespaces import namespace_record, save_callers
    from erxhub.v1 import sandbox_pb2

    made = await client.create_namespace(
        name,
        seed=seed,
        start_at_ms=start_at_ms,
        clock_mode=sandbox_pb2.ClockMode.Value(f"CLOCK_MODE_{clock.upper()}"),
        profile=sandbox_pb2.FaultProfile.Value(f"FAULT_PROFILE_{profile.upper()}"),
        suite=suite,
    )
    saved = [] if bare else await save_callers(client, Contexts.load(), ctx, made)
    out.object(namespace_record(made) | {"contexts": [one.name for one in saved]})
    if saved:
        out.say(f"speak to it with --context {saved[0].name}, control it with -n {made.name}")


@sandbox.command("delete", example="erxhub sandbox delete lab")
@click.argument("name")
@with_sandbox
async def delete(client: SandboxClient, ctx: Context, out: Output, name: str) -> None:
    """End a namespace and forget everything in it, its contexts and keys too (删除命名空间)."""
    from erxhub.cli.context import Contexts
    from erxhub.cli.namespaces import forget

    await client.delete_namespace(namespace=name)
    out.object({"deleted": name, "contexts": forget(Contexts.load(), ctx, name)})


# --- what happened --------------------------------------------------------------------------------


@sandbox.command(
    "traffic",
    example="erxhub sandbox traffic -f\nerxhub sandbox traffic --rx RX_NO -o json",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with the calls to come, until Ctrl-C.")
@click.option("--rx", "rx_no", default="", metavar="RX_NO", help="Only calls that name this prescription.")
@click.option("--actor", default="", metavar="ROLE/ID", help="Only calls of this caller.")
@click.option("--method", default="", metavar="SERVICE/METHOD", help="Only this method, e.g. Dispensing/Settle.")
@click.option("--after", "after_number", type=click.IntRange(min=0), default=0, help="Only calls after this number.")
@with_sandbox
async def traffic(
    client: SandboxClient,
    ctx: Context,
    out: Output,
    follow: bool,
    rx_no: str,
    actor: str,
    method: str,
    after_number: int,
) -> None:
    """The recorded calls: what was said, what it left in the ledger, which fault it met (通信记录).

    One line a call; -o json has the messages, the verdicts on signatures and the entries.
    """
    import asyncio

    from erxhub.cli.traffic_view import exchange_line, exchange_record

    exchanges = client.traffic(rx_no=rx_no, actor=actor, method=method, after_number=after_number, follow=follow)
    if out.format == "json" and not follow:
        out.rows([exchange_record(one) async for one in exchanges])
        return
    try:
        async for one in exchanges:
            if out.format == "table":
                click.echo(exchange_line(one))
            else:
                out.event(exchange_record(one))
    except asyncio.CancelledError:
        # Ctrl-C cancels the command's task; it is how a person ends the watching, and no failure.
        return


@sandbox.command("inspect", example="erxhub sandbox inspect -o traffic.html")
@click.option(
    "-o", "--output", "file", required=True, type=NewFile(path_type=Path, dir_okay=False), help="The page to write."
)
@click.option("--rx", "rx_no", default="", metavar="RX_NO", help="Only calls that name this prescription.")
@click.option("--language", type=click.Choice(["zh", "en"]), default="zh", show_default=True, help="To open it in.")
@namespace_option
@context_option
def inspect(file: Path, rx_no: str, language: str, namespace: str | None, context_name: str | None) -> None:
    """Write the recorded calls as one HTML page that opens offline, in English and Chinese (查看器)."""

    async def write(client: SandboxClient, ctx: Context, out: Output) -> None:
        from erxhub.sandbox.inspector import inspector_page

        client.namespace = namespace or client.namespace
        found = await client.get_namespace()
        exchanges = [one async for one in client.traffic(rx_no=rx_no)]
        _write_page(file, inspector_page(exchanges, found.name, now_ms=found.now_ms, language=language))
        out.say(f"{file}: {len(exchanges)} calls of namespace {found.name}")

    run(context_name, "sandbox", write, Output())


@sandbox.command("check", example="erxhub sandbox check")
@with_sandbox
async def check(client: SandboxClient, ctx: Context, out: Output) -> int:
    """Check the whole ledger and its invariants; exit code 1 when one is broken (不变式检查)."""
    from erxhub.cli.records import record

    reply = await client.check_invariants()
    findings = [record(finding) for finding in reply.findings]
    out.object({"entries": reply.entries, "checked": list(reply.checked), "findings": findings})
    return NEGATIVE if findings else OK


# --- the world ------------------------------------------------------------------------------------


@sandbox.command("magic", example="erxhub sandbox magic\nerxhub sandbox magic voucher")
@click.argument("kind", type=click.Choice(MAGIC_KINDS), required=False)
@with_sandbox
async def magic(client: SandboxClient, ctx: Context, out: Output, kind: str | None) -> None:
    """Values that make the sandbox behave in a known way: vouchers, persons, drugs, amounts (魔法值)."""
    from erxhub.cli.records import record

    values = (await client.get_world()).magic
    out.rows(
        [record(one) for one in values if kind in (None, one.kind)],
        ("kind", "name", "value", "effect_en", "effect_zh"),
    )


@sandbox.command("world", example="erxhub sandbox world\nerxhub sandbox world --keys keys")
@click.option(
    "--keys",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Write the signing keys to this folder too: INSTITUTION/SIGNER/key.pem.",
)
@with_sandbox
async def world(client: SandboxClient, ctx: Context, out: Output, folder: Path | None) -> None:
    """Who is registered: institutions, practitioners, persons, and who has a signing key (虚构世界)."""
    from erxhub.cli.namespaces import write_signers

    found = await client.get_world()
    suites = {(signer.subject_code, signer.institution_code): signer.suite for signer in found.signers}
    rows: list[dict[str, Any]] = [
        {
            "kind": party.kind,
            "id": party.id,
            "name": party.name,
            "institution": party.institution_code,
            "signs_with": suites.get((party.id, party.institution_code or party.id), ""),
        }
        for party in found.parties
    ]
    out.rows(rows, ("kind", "id", "name", "institution", "signs_with"))
    if folder is not None:
        write_signers(folder, found)
        out.say(f"{len(found.signers)} signing keys are in {folder}")


@sandbox.command(
    "mint",
    example="erxhub sandbox mint pharmacy P33010099101 --as mine\n"
    "erxhub sandbox mint hospital H33010099901 --defect expired --dir expired",
)
@click.argument("role", type=click.Choice(ROLES))
@click.argument("id_", metavar="ID")
@click.option(
    "--defect", "defects", multiple=True, type=click.Choice(DEFECTS), help="What is wrong with it; repeatable."
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where ca.pem, cert.pem and key.pem go. Default: a folder in ERXHUB_HOME.",
)
@click.option("--as", "context_as", metavar="CONTEXT", help="Write a context of this name, too.")
@with_sandbox
async def mint(
    client: SandboxClient,
    ctx: Context,
    out: Output,
    role: str,
    id_: str,
    defects: tuple[str, ...],
    folder: Path | None,
    context_as: str | None,
) -> None:
    """Issue a client certificate of a namespace, on request a defective one (签发证书)."""
    from erxhub.cli.context import Contexts
    from erxhub.cli.namespaces import context_in, folder_of, write_identity, write_signers
    from erxhub.v1 import sandbox_pb2

    contexts = Contexts.load()
    place = (folder or folder_of(contexts, client.namespace) / "tls" / role / "-".join((id_, *defects))).absolute()
    numbers = [sandbox_pb2.IdentityDefect.Value(f"IDENTITY_DEFECT_{_upper(defect)}") for defect in defects]
    identity = await client.mint_identity(role, id_, defects=numbers)
    write_identity(place, identity)
    shown = {"role": role, "id": id_, "namespace": client.namespace, "folder": str(place), "defects": list(defects)}
    if context_as:
        found, keys = await client.get_namespace(), await client.get_world()
        signers = write_signers(folder_of(contexts, client.namespace) / "signing", keys).get(id_, {})
        pins = {key_id: key.hex() for key_id, key in keys.receipt_keys.items()}
        contexts.by_name[context_as] = context_in(
            ctx, found, context_as, role, id_, place, signing_keys=signers, receipt_keys=pins
        )
        contexts.save()
    out.object(shown | {"context": context_as or ""})


def _write_page(file: Path, page: str) -> None:
    try:
        file.write_text(page, encoding="utf-8")
    except OSError as error:
        raise unusable(error, file) from None


def _upper(word: str) -> str:
    return word.replace("-", "_").upper()
