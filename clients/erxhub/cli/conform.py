"""`erxhub conform`: the conformance suite (互操作一致性测试): list, show, run, verify.

Owns the words of these verbs. Their exit codes are their own: 0 ok, 1 failures or unexpected passes, 2 harness error,
3 what is under test is unusable.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from erxhub.cli.commands import LazyGroup, command
from erxhub.cli.local_errors import Failed, failing_as, unusable
from erxhub.cli.output import NewFile, Output, output_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from erxhub.conform.load import Suite
    from erxhub.conform.model import Text
    from erxhub.conform.result import CaseResult, RunResult
    from erxhub.conform.settings import Settings
    from erxhub.crypto.suites import SigningKey

KEY_BYTES: Final = 32
HARNESS_ERROR: Final = 2
FAILURES: Final = 1
ROLES: Final = ("hospital", "pharmacy", "hub")

VERBS: Final = {
    "list": ("erxhub.cli.conform:list_", "The cases."),
    "show": ("erxhub.cli.conform:show", "One case: what it demands, and how it goes."),
    "run": ("erxhub.cli.conform:run", "Test a hospital's or a pharmacy's product, or a hub."),
    "verify": ("erxhub.cli.conform:verify", "Check that a bundle is as it was signed."),
    "init": ("erxhub.cli.conform_init:init", "Write a driver to begin with."),
}
"""Verb → (module:attribute, one line of help)."""


@click.group(
    "conform",
    cls=LazyGroup,
    verbs=VERBS,
    example="erxhub conform run --role pharmacy --driver 'python my_driver.py' -o result",
)
def conform() -> None:
    """Test a product against the published interface (互操作一致性测试).

    Exit codes of its own: 0 ok, 1 failures or unexpected passes, 2 harness error, 3 what is under test is unusable.
    """


@command(
    "list",
    example="erxhub conform list --role pharmacy\nerxhub conform list --cases core -o json\n"
    "erxhub conform list --requirements",
)
@click.option("--role", type=click.Choice(ROLES), help="Of what is under test.")
@click.option("--cases", type=click.Choice(["all", "stable", "core"]), default="all", show_default=True)
@click.option("--requirements", is_flag=True, help="What is demanded, with the cases that verify it (需求追溯).")
@output_option
def list_(role: str | None, cases: str, requirements: bool, out: Output) -> None:
    """The cases; what is wrong with bad ones goes to stderr, and the exit code is 2 then."""
    suite = _suite()
    chosen = [
        case
        for case in suite.cases
        if (role is None or role in case.roles)
        and (cases == "all" or case.status == "stable")
        and (cases != "core" or case.core)
    ]
    if requirements:
        verified = [
            {**one.row, "cases": list(dict.fromkeys(case.id for case in chosen if one.id in case.verifies))}
            for one in suite.requirements.values()
        ]
        out.rows(verified, ("id", "conformance", "cases", "not_tested"))
    else:
        rows = [{**case.record(), "title_zh": case.title.zh, "title_en": case.title.en} for case in chosen]
        out.rows(rows, ("id", "level", "status", "roles", "title_zh", "title_en"))
    _end_with_problems(suite, out)


@command("show", example="erxhub conform show DSP-010")
@click.argument("case_id")
@output_option
def show(case_id: str, out: Output) -> None:
    """One case with its steps and expectations, or the rule that a case in code is about."""
    from google.protobuf import json_format

    suite = _suite()
    found = [case for case in suite.cases if case.id == case_id.upper()]
    for problem in suite.problems:
        if problem.case_id == case_id.upper():
            out.say(str(problem))
    if not found:
        raise Failed("CLI_CASE_UNKNOWN", field="CASE", case=case_id)
    for case in found:
        scripts = {
            role: json_format.MessageToDict(play, preserving_proto_field_name=True) for role, play in case.plays.items()
        }
        requirements = [dict(suite.requirements[one].row) for one in case.verifies]
        out.object({**case.record(), "rule": case.rule, "requirements": requirements, "scripts": scripts})


@command(
    "run",
    example="erxhub conform run --role pharmacy --driver 'python my_driver.py' -o result\n"
    "erxhub conform run --role pharmacy --driver tcp://127.0.0.1:9000 --run 'DSP-*' --profile strict --seed 7\n"
    "erxhub conform run --role hub",
)
@click.option("--role", type=click.Choice(ROLES), required=True, help="Of what is under test.")
@click.option("--driver", metavar="COMMAND", help="Starts a driver, or tcp://HOST:PORT of one that runs.")
@click.option("--attach", is_flag=True, help="A product that you work by hand, by cards on the terminal.")
@click.option("--target", metavar="HOST:PORT", help="Role hub: the hub under test; without it, our own.")
@click.option(
    "--identities",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Role hub: folder of certificates and keys for the target's trust domain.",
)
@click.option("--sandbox", metavar="HOST:PORT", help="Role hub: the target's SandboxService, for time and faults.")
@click.option("--profile", type=click.Choice(["dev", "strict", "chaos"]), default="dev", show_default=True)
@click.option("--run", "patterns", multiple=True, metavar="GLOB", help="Only cases whose id fits; repeatable.")
@click.option("--cases", type=click.Choice(["all", "stable", "core"]), default="all", show_default=True)
@click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True)
@click.option("--start-at", type=click.IntRange(0), metavar="MS", help="Where the hub's clock begins, ms since 1970.")
@click.option(
    "--known-failing",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Ids of cases that are known to fail, one a line, a reason after #. One that does not fail is XPASS.",
)
@click.option("-o", "--output", type=NewFile(path_type=Path, file_okay=False), help="Write the bundle here.")
@click.option(
    "--sign-with",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Sign the bundle with this Ed25519 key (PEM), made here if there is none; without it, with one for this run.",
)
@click.option("--repeat-failed", type=click.IntRange(0, 5), default=0, show_default=True, help="To find flaky ones.")
@click.option("--workers", type=click.IntRange(1, 8), default=2, show_default=True, help="Cases at the same time.")
@click.option("--operation-timeout", type=click.IntRange(1), default=10, show_default=True, metavar="SECONDS")
@click.option("--case-timeout", type=click.IntRange(1), default=60, show_default=True, metavar="SECONDS")
def run(
    role: str,
    driver: str | None,
    attach: bool,
    target: str | None,
    output: Path | None,
    sign_with: Path | None,
    known_failing: Path | None,
    **options: Any,
) -> None:
    """Run the cases of a role in a sandbox of this process, and judge them (运行)."""
    import tempfile

    _check_way(role, driver, attach, target or options["sandbox"] or options["identities"])
    if sign_with is not None and output is None:
        raise Failed("CLI_OPTION_NEEDS", field="--sign-with", options="--sign-with", other="-o")
    key = _maker_key(sign_with)
    suite = _suite()
    with tempfile.TemporaryDirectory(prefix="erxhub-conform-") as folder:
        settings = _settings(suite, Path(folder), role, driver, attach, target, known_failing, options)
        result = asyncio.run(_run(suite, settings))
    _summary(result)
    if output is not None:
        from erxhub.conform.bundle import write_bundle

        try:
            write_bundle(result, output, key)
        except OSError as error:
            raise unusable(error, error.filename or output, field="-o") from None
        click.echo(f"bundle: {output}", err=True)
        if key is not None:
            click.echo(f"signed by {key.public_key.hex()}", err=True)
    raise click.exceptions.Exit(int(result.exit_code()))


@command("verify", example="erxhub conform verify result\nerxhub conform verify result --key 8f3c…")
@click.argument("bundle", type=click.Path(path_type=Path, file_okay=False))
@click.option("--key", metavar="HEX", help="The Ed25519 key that must have signed; by default the manifest's own.")
@output_option
def verify(bundle: Path, key: str | None, out: Output) -> None:
    """Check every file of a bundle against its manifest, and the manifest's signature; needs no network (校验).

    Without --key this shows that nothing was altered since; with the key that its maker handed over, also who made it.
    """
    from erxhub.conform.bundle import named_key, verify_bundle

    if not bundle.is_dir():
        raise Failed("CLI_FILE_ABSENT", field="BUNDLE", path=bundle)
    try:
        pinned = bytes.fromhex(key) if key is not None else None
    except ValueError:
        pinned = b""
    if pinned is not None and len(pinned) != KEY_BYTES:
        raise Failed("CLI_VALUE_FORM", field="--key", value=key, form=f"HEX ({2 * KEY_BYTES})")
    problems = verify_bundle(bundle, pinned)
    if out.format != "table":
        named = "" if problems else named_key(bundle)
        told = {"sound": not problems, "signed_by": named, "key_demanded": pinned is not None}
        out.object(told | {"problems": [str(problem) for problem in problems]})
        raise click.exceptions.Exit(FAILURES if problems else 0)
    for problem in problems:
        click.echo(str(problem))
    if problems:
        raise click.exceptions.Exit(FAILURES)
    click.echo("ok: every file is as it was signed 文件与签名一致")
    if pinned is None:
        click.echo(
            f"signed by {named_key(bundle)}; whose key that is, only --key can tell 签名方未核实，请用 --key 指定公钥"
        )
    else:
        click.echo("signed by the key that was demanded 签名密钥与指定公钥一致")


def _maker_key(path: Path | None) -> SigningKey | None:
    """Before the run, so that a key that is none costs no run."""
    from erxhub.conform.bundle import maker_key
    from erxhub.crypto.suites import KeyFormatError

    try:
        return None if path is None else maker_key(path)
    except OSError as error:
        raise unusable(error, path, field="--sign-with") from None
    except KeyFormatError as error:
        raise Failed("CLI_FILE_NO_PRIVATE_KEY", field="--sign-with", details=str(error), path=path) from None


def _check_way(role: str, driver: str | None, attach: bool, hub: object) -> None:
    if role == "hub":
        if driver or attach:
            raise Failed("CLI_OPTION_ALONE", field="--role", options="--driver, --attach", other="--role hub")
        return
    if hub:
        options = "--target, --sandbox, --identities"
        raise Failed("CLI_OPTION_NEEDS", field="--role", options=options, other="--role hub")
    if bool(driver) == attach:
        raise Failed("CLI_OPTION_ONE_OF", field="--driver, --attach", options="--driver, --attach")


def _settings(
    suite: Suite,
    folder: Path,
    role: str,
    driver: str | None,
    attach: bool,
    target: str | None,
    known_failing: Path | None,
    options: dict[str, Any],
) -> Settings:
    from erxhub.conform.result import ListMalformed, read_known_failing
    from erxhub.conform.settings import START_AT_MS, Settings

    known: dict[str, str] = {}
    if known_failing is not None:
        try:
            ids = {case.id for case in suite.cases} | {problem.case_id for problem in suite.problems}
            known = read_known_failing(known_failing.read_text(encoding="utf-8"), ids)
        except OSError as error:
            raise unusable(error, known_failing, field="--known-failing") from None
        except (UnicodeDecodeError, ListMalformed) as error:
            details = str(error)
            raise Failed("CLI_KNOWN_FAILING", field="--known-failing", details=details, path=known_failing) from None
    start_at = options["start_at"]
    return Settings(
        role=role,
        folder=folder,
        driver=driver or "",
        operator=_Terminal() if attach else None,
        target=target or "",
        sandbox=options["sandbox"] or "",
        identities=options["identities"],
        profile=options["profile"],
        patterns=options["patterns"],
        selection=options["cases"],
        seed=options["seed"],
        start_at_ms=START_AT_MS if start_at is None else start_at,
        known_failing=known,
        known_failing_file=str(known_failing or ""),
        repeat_failed=options["repeat_failed"],
        workers=options["workers"],
        operation_ms=options["operation_timeout"] * 1000,
        case_ms=options["case_timeout"] * 1000,
    )


async def _run(suite: Suite, settings: Settings) -> RunResult:
    if settings.role == "hub":
        from erxhub.conform.hub import target
        from erxhub.conform.hub_runner import run_hub_suite

        opened = target.open(
            target.TargetSettings(
                address=settings.target or None,
                identity_dir=settings.identities,
                sandbox=settings.sandbox or None,
                seed=settings.seed,
                profile=settings.profile,
                work=settings.folder,
                start_at_ms=settings.start_at_ms,
            )
        )
        return await run_hub_suite(suite, settings, opened, progress=_progress)
    from erxhub.conform.runner import run_suite

    return await run_suite(suite, settings, progress=_progress)


def _suite() -> Suite:
    from erxhub.conform.load import load_suite

    with failing_as("CLI_SUITE", ValueError):
        return load_suite()


def _end_with_problems(suite: Suite, out: Output) -> None:
    for problem in suite.problems:
        out.say(str(problem))
    if suite.problems:
        raise click.exceptions.Exit(HARNESS_ERROR)


def _progress(result: CaseResult) -> None:
    """One line, and for what did not pass the reasons and how to repeat it."""
    title = result.case["title"]
    click.echo(f"{result.verdict:<11} {result.key:<18} {title['zh']} / {title['en']} ({result.took_ms} ms)")
    if result.verdict == "PASS":
        return
    if result.reason is not None:
        click.echo(f"            {result.reason.zh} {result.reason.en}")
    for check in result.failed_checks:
        place = f"{check.where} " if check.where else ""
        code = f"{check.code} " if check.code else ""
        click.echo(f"            [{check.point}] {place}{code}{check.what.en}")
        if check.expected or check.actual:
            click.echo(f"              expected {check.expected or '–'}; got {check.actual or '–'}")
    if result.failed_checks:
        click.echo(f"            {result.repeat}")


def _summary(result: RunResult) -> None:
    if result.unusable is not None:
        click.echo(f"unusable: {result.unusable.zh} {result.unusable.en}", err=True)
    for one in result.results:
        # What was never run has not been told yet.
        if one.verdict in ("SKIP", "UNSUPPORTED", "ERROR") and not one.repeat:
            _progress(one)
    counts = ", ".join(f"{verdict} {count}" for verdict, count in result.counts().items()) or (
        "no case was run" if result.unusable else "no case fits"
    )
    click.echo(f"{counts}; {result.took_ms / 1000:.1f} s; seed {result.seed}, profile {result.profile}")


class _Terminal:
    """The operator, at this terminal."""

    async def do(self, card: Text, details: Sequence[str]) -> bool:
        """Shows a card; Enter when it is done, s and Enter when it cannot be done."""
        click.echo(f"\n── {card.zh}\n   {card.en}")
        for detail in details:
            click.echo(f"     {detail}")
        click.echo("   [Enter: 完成 done; s: 无法执行 cannot] ", nl=False)
        answer = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        if not sys.stdin.isatty():
            click.echo()
        return bool(answer) and answer.strip().lower() != "s"
