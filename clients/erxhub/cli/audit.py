"""`erxhub audit`: verify the ledger or a bundle, find the chains of a case, and take proofs away (审计).

Owns the words of these verbs. It must never call without a reason of its own or the context's; the hub refuses it.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from erxhub.cli.audit_proofs import log_options, trust_options
from erxhub.cli.commands import group
from erxhub.cli.exits import NEGATIVE, OK, UNAVAILABLE, exit_code_for
from erxhub.cli.local_errors import Failed
from erxhub.cli.output import FORMATS, NewFile, Output, output_option
from erxhub.cli.replies import limit_option, rows_of, show_rows
from erxhub.cli.session import context_option, run, with_client

if TYPE_CHECKING:
    from erxhub.cli.context import Context
    from erxhub.client import AuditorClient, MirrorClient

LIST_COLUMNS: Final = ("rx_no", "hospital_code", "prescribed_at")
REASON_HELP: Final = "审计事由; by default the context's."


@group("audit", example="erxhub audit verify --reason 'case 2026-17'")
def audit() -> None:
    """Verify the ledger and bundles, find chains, take proofs away (审计). One chain on the screen: `erxhub trace`."""


@audit.command(
    "verify",
    example="""\
erxhub audit verify --reason 'case 2026-17'
erxhub audit verify FILE --about RX_NO --log-key KEY --ca ca.pem""",
)
@click.argument("file", required=False, type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--about",
    metavar="RX_NO|TRACE_CODE|STREAM",
    help="What the bundle has to be about; by default what it says itself, which is printed.",
)
@trust_options
@click.option("--reason", help=REASON_HELP)
@context_option
@output_option
def verify(
    out: Output,
    context_name: str | None,
    reason: str | None,
    file: Path | None,
    about: str | None,
    log_keys: tuple[str, ...],
    policy: Path | None,
    ca: Path | None,
) -> None:
    """Verify a bundle FILE offline, or without one the hub's whole ledger (账本校验); exit code 1 if it does not hold.

    A bundle is checked with nothing but the file, the log's key or a policy, and if given the trust domain's root.
    """
    if file is None:
        if about or log_keys or policy or ca:
            raise Failed("CLI_OPTION_NEEDS", field="FILE", options="--about, --log-key, --policy, --ca", other="FILE")
        run(context_name, "auditor", functools.partial(_verify_ledger, reason=reason), out)
        return
    from erxhub.cli.audit_proofs import read_file, subject_of, verify_file

    asked = subject_of(about, None) if about else None
    code = verify_file(read_file(file), out, log_keys, policy, ca, asked)
    if code:
        raise click.exceptions.Exit(code)


async def _verify_ledger(client: AuditorClient, ctx: Context, out: Output, *, reason: str | None) -> int:
    from erxhub.cli.records import finding_record

    reply = await client.verify_ledger(case_reason=reason)
    findings = [finding_record(finding) for finding in reply.findings]
    out.object(
        {
            "verified": reply.verified,
            "entries": reply.entries,
            "streams": reply.streams,
            "as_of": reply.as_of_position,
            "findings": findings,
        }
    )
    return OK if reply.verified and not findings else NEGATIVE


@audit.command("export", example="erxhub audit export RX_NO -o rx.bundle --reason 'case 2026-17'")
@click.argument("rx_no")
@click.option("-o", "--output", "path", required=True, type=NewFile(path_type=Path, dir_okay=False), help="The file.")
@click.option("--reason", help=REASON_HELP)
@context_option
def export(rx_no: str, path: Path, reason: str | None, context_name: str | None) -> None:
    """Take away everything that proves one prescription, for `erxhub audit verify FILE` (导出证据包).

    It holds the prescription's and the visit's content: keep it as you keep the case. The export is recorded.
    """

    async def call(client: AuditorClient, ctx: Context, out: Output) -> None:
        from erxhub.cli.audit_proofs import write_file

        reply = await client.export_bundle(rx_no=rx_no, case_reason=reason)
        write_file(path, reply.bundle)
        out.say(f"{path}: {len(reply.bundle.encode())} bytes")

    run(context_name, "auditor", call, Output())


_kind_option = click.option(
    "--kind",
    type=click.Choice(["prescription", "trace_code", "stream"]),
    help="What the subject is; by default told by its form (27 digits, 64 hexadecimal digits, else a code).",
)
_proof_option = click.option(
    "-o",
    "--output",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE|FORMAT",
    help="Keep the proof in this file. Or table, json, jsonl: how to print the verdict.",
)
_from_option = click.option(
    "--from",
    "source",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Check this proof, kept before, without a hub.",
)


def _destination(path: Path | None, source: Path | None) -> tuple[Path | None, Output]:
    """Where a proof is kept, if anywhere, and how the verdict is printed."""
    if str(path) in FORMATS:
        return None, Output(str(path))
    if source is not None and path is not None:
        raise Failed("CLI_OPTION_ALONE", field="--from", options="--from", other="-o FILE")
    return path, Output()


def _exit(code: int) -> None:
    if code:
        raise click.exceptions.Exit(code)


@audit.command(
    "absent",
    example="""\
erxhub audit absent TRACE_CODE -o code.absent --log-key KEY --reason 'case 2026-17'
erxhub audit absent TRACE_CODE --from code.absent --log-key KEY""",
)
@click.argument("subject", metavar="RX_NO|TRACE_CODE|STREAM")
@_kind_option
@_proof_option
@_from_option
@trust_options
@click.option("--reason", help=REASON_HELP)
@context_option
def absent(
    subject: str,
    kind: str | None,
    path: Path | None,
    source: Path | None,
    log_keys: tuple[str, ...],
    policy: Path | None,
    ca: Path | None,
    reason: str | None,
    context_name: str | None,
) -> None:
    """Prove that nothing was ever dispensed on a number or a code (不存在证明); exit code 1 if it cannot be proven.

    Either there is no such stream, or these are all its entries and none is a dispensing. The key that is looked up is
    computed here from what you ask, never taken from the hub.
    """
    from erxhub.cli.audit_proofs import read_file, subject_of, verify_file, write_file
    from erxhub.proof.bundle import Form

    path, printed = _destination(path, source)
    asked = subject_of(subject, kind)
    check = functools.partial(verify_file, log_keys=log_keys, policy=policy, ca=ca, asked=asked, form=Form.ABSENCE)
    if source is not None:
        _exit(check(read_file(source), printed))
        return

    async def call(client: AuditorClient, ctx: Context, out: Output) -> int:
        named = {
            "prescription": {"rx_no": asked.name},
            "trace_code": {"trace_code": asked.name},
            "stream": {"stream_key": asked.key},
        }[asked.kind]
        reply = await client.prove_absence(case_reason=reason, **named)  # type: ignore[arg-type]
        if path is not None:
            write_file(path, reply.bundle)
        return check(reply.bundle.encode(), out)

    run(context_name, "auditor", call, printed)


@audit.command(
    "inclusion",
    example="""\
erxhub audit inclusion RX_NO 3 -o entry.tlog-proof --log-key KEY --reason 'case 2026-17'
erxhub audit inclusion RX_NO 3 --from entry.tlog-proof --log-key KEY""",
)
@click.argument("subject", metavar="RX_NO|TRACE_CODE|STREAM")
@click.argument("version", type=click.IntRange(1))
@_kind_option
@_proof_option
@_from_option
@log_options
@click.option("--reason", help=REASON_HELP)
@context_option
def inclusion(
    subject: str,
    version: int,
    kind: str | None,
    path: Path | None,
    source: Path | None,
    log_keys: tuple[str, ...],
    policy: Path | None,
    reason: str | None,
    context_name: str | None,
) -> None:
    """Prove that an entry is in the log (包含证明), by stream and version; exit code 1 if it cannot be proven.

    The file is one of the published formats. It holds no content: what kind of entry it is, when and where.
    """
    from erxhub.cli.audit_inclusion import verify_file
    from erxhub.cli.audit_proofs import read_file, subject_of, write_file
    from erxhub.proof.tlogproof import write_tlog_proof

    path, printed = _destination(path, source)
    asked = subject_of(subject, kind)
    check = functools.partial(verify_file, log_keys=log_keys, policy=policy, asked=asked, version=version)
    if source is not None:
        _exit(check(read_file(source), printed))
        return

    async def call(client: AuditorClient, ctx: Context, out: Output) -> int:
        reply = await client.prove_inclusion(stream_key=asked.key, version=version, case_reason=reason)
        file = write_tlog_proof(reply.index, reply.path, reply.note, reply.leaf)
        if path is not None:
            write_file(path, file)
        return check(file.encode(), out)

    run(context_name, "auditor", call, printed)


@audit.command("checkpoint", example="erxhub audit checkpoint")
@click.option(
    "--size", type=click.IntRange(1), default=None, help="The checkpoint of this size; by default the newest."
)
@with_client("auditor")
async def checkpoint(client: AuditorClient, ctx: Context, out: Output, size: int | None) -> None:
    """Print a signed checkpoint of the log (检查点): the note itself, for any tool, or an object with -o json."""
    reply = await client.checkpoint(size=size or 0)
    if out.format == "table":
        click.echo(reply.note, nl=False)
    else:
        out.reply(reply)


@audit.command(
    "monitor",
    example="""\
erxhub audit monitor --state log.seen --log-key KEY --once
erxhub audit monitor --state log.seen --log-key KEY --follow""",
)
@click.option(
    "--state",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where the newest checkpoint that was seen is remembered.",
)
@click.option(
    "--interval", type=click.IntRange(1, 86_400), default=10, show_default=True, help="Seconds between looks."
)
@click.option("--count", type=click.IntRange(1), default=None, help="End after so many looks; by default never.")
@click.option("--once/--follow", "once", default=False, help="Look once, or again and again (the default).")
@log_options
@with_client("auditor", "mirror")
async def monitor(
    client: AuditorClient | MirrorClient,
    ctx: Context,
    out: Output,
    state: Path,
    interval: int,
    count: int | None,
    once: bool,
    log_keys: tuple[str, ...],
    policy: Path | None,
) -> int:
    """Watch that the log only ever grows (日志监视): exit code 1 and an evidence file for a shorter or forked one."""
    from erxhub.cli import audit_monitor
    from erxhub.cli.audit_proofs import trust_of
    from erxhub.client import ClientFailure, Refusal
    from erxhub.proof.bundle_checkpoint import CheckpointRefused
    from erxhub.proof.reasons import Reason

    async def prove(size1: int, size2: int) -> list[bytes] | None:
        try:
            return list((await client.prove_consistency(size1=size1, size2=size2)).path)
        except Refusal as refusal:
            if refusal.code != "INPUT_MALFORMED":
                raise
            return None

    count = 1 if once else count
    looks = 0
    while True:
        try:
            note = (await client.checkpoint()).note
        except ClientFailure as failure:
            # A hub that is away is no contradiction; whoever watches for good waits for it.
            if count is not None or exit_code_for(failure) != UNAVAILABLE:
                raise
            out.say(str(failure))
            await client.connection.environment.sleep_ms(interval * 1_000)
            continue
        trusting = functools.partial(trust_of, log_keys, policy, None)
        trust = trusting(note.partition("\n")[0])
        seen = audit_monitor.load(state, trusting)
        try:
            # Another history is one whether it was witnessed or not; only after that do witnesses count.
            shown = audit_monitor.opened_unwitnessed(note, trust)
            newest: audit_monitor.Seen | None = await audit_monitor.follow(seen, shown, prove)
            try:
                audit_monitor.opened(note, trust)
            except CheckpointRefused as refused:
                if refused.reason != Reason.QUORUM:
                    raise
                out.say(f"{shown.size} leaves: not witnessed yet ({refused})")
                witnessed = await audit_monitor.newest_witnessed(client, seen, trust)
                shown = witnessed or shown
                newest = await audit_monitor.follow(seen, witnessed, prove) if witnessed else seen
        except CheckpointRefused as refused:
            out.say(f"{refused.reason}: {refused}")
            return NEGATIVE
        except audit_monitor.Contradiction as found:
            out.say(f"{found.reason}: {found}; evidence: {audit_monitor.keep_evidence(state, found, shown)}")
            return NEGATIVE
        if newest is not None:
            if newest != seen:
                audit_monitor.keep(state, newest)
            out.event({"origin": newest.origin, "size": newest.size, "root": newest.root.hex()})
        looks += 1
        if looks == count:
            return OK
        await client.connection.environment.sleep_ms(interval * 1_000)


@audit.command(
    "mirror",
    example="""\
erxhub audit mirror --db mirror.db --log-key KEY --context mirror
erxhub audit mirror --db mirror.db --log-key KEY --policy witnesses.policy --ca trust-root.pem
erxhub audit mirror --db mirror.db --log-key KEY --follow --cosign witness-1 --address 127.0.0.1:7480""",
)
@click.option(
    "--db",
    "database",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The mirror's own copy, a SQLite file; made when there is none. It holds what the ledger holds.",
)
@click.option("--once/--follow", "once", default=True, help="End when it has caught up (the default), or never.")
@click.option(
    "--interval", type=click.IntRange(1, 86_400), default=10, show_default=True, help="Seconds between looks."
)
@click.option(
    "--cosign",
    "witness_folder",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="With --follow: be a witness with the key in this folder (`erxhub witness keygen`), for what agrees.",
)
@click.option("--address", default="127.0.0.1:7480", show_default=True, metavar="HOST:PORT", help="Where it cosigns.")
@click.option(
    "--ready-file", type=click.Path(path_type=Path, dir_okay=False), help="Written when the witness answers, as JSON."
)
@trust_options
@with_client("mirror")
async def mirror(
    client: MirrorClient,
    ctx: Context,
    out: Output,
    database: Path,
    once: bool,
    interval: int,
    witness_folder: Path | None,
    address: str,
    ready_file: Path | None,
    log_keys: tuple[str, ...],
    policy: Path | None,
    ca: Path | None,
) -> int:
    """Replay the log into a copy of one's own and compare everything (镜像重放); exit code 1 when it does not agree.

    Leaves, tree, map, signatures and the order of events are worked out from the entries alone. With --policy one of
    the newest checkpoints must have been cosigned, with --ca signers' certificates must come from the root. What the
    hub erases is erased here. The copy holds personal data: it is to be kept as the ledger is.
    """
    from erxhub.cli.audit_mirror import Settings, run

    if witness_folder is not None and once:
        raise Failed("CLI_OPTION_NEEDS", field="--cosign", options="--cosign", other="--follow")
    settings = Settings(database, log_keys, policy, ca, interval, not once, witness_folder, address, ready_file)
    return await run(client, out, settings)


@audit.command(
    "anomalies",
    example="""\
erxhub audit anomalies --reason 'daily review'
erxhub audit anomalies --day 2026-11-22 -o json --reason 'daily review'""",
)
@click.option("--day", default="", metavar="YYYY-MM-DD", help="The day in China; by default the one that it is now.")
@click.option("--reason", help=REASON_HELP)
@with_client("auditor")
async def anomalies(client: AuditorClient, ctx: Context, out: Output, day: str, reason: str | None) -> None:
    """Report what was not as it should be on a day (每日异常报告): one line for each code, place and party."""
    from erxhub.cli.audit_anomalies import show

    show(out, await client.report_anomalies(day=day, case_reason=reason))


@audit.command("find", example="erxhub audit find --institution P33010099101 --reason 'case 2026-17'")
@click.option("--rx", "rx_no", metavar="RX_NO", help="The prescription with this number.")
@click.option("--encounter", "encounter_id", metavar="ID", help="The prescriptions of this visit.")
@click.option("--institution", "institution_code", metavar="CODE", help="Those that this institution had to do with.")
@click.option("--trace-code", metavar="CODE", help="The one with which this pack was sold (药品追溯码).")
@click.option("--reason", help=REASON_HELP)
@limit_option
@with_client("auditor")
async def find(
    client: AuditorClient,
    ctx: Context,
    out: Output,
    rx_no: str | None,
    encounter_id: str | None,
    institution_code: str | None,
    trace_code: str | None,
    reason: str | None,
    limit: int,
) -> None:
    """Find prescriptions; exactly one criterion (查找链条)."""
    criteria = (rx_no, encounter_id, institution_code, trace_code)
    if sum(criterion is not None for criterion in criteria) != 1:
        criteria_options = "--rx, --encounter, --institution, --trace-code"
        raise Failed("CLI_OPTION_ONE_OF", field=criteria_options, options=criteria_options)
    fetch = functools.partial(
        client.find,
        rx_no=rx_no,
        encounter_id=encounter_id,
        institution_code=institution_code,
        trace_code=trace_code,
        case_reason=reason,
    )
    show_rows(out, await rows_of(fetch, "chains", limit), LIST_COLUMNS)
