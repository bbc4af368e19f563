"""`erxhub fault`: what goes wrong in a sandbox's namespace, and when (故障)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from erxhub.cli.commands import group
from erxhub.cli.local_errors import Failed, failing_as
from erxhub.cli.namespaces import with_sandbox

if TYPE_CHECKING:
    from erxhub.cli.context import Context
    from erxhub.cli.output import Output
    from erxhub.client import SandboxClient
    from erxhub.v1 import sandbox_pb2

COLUMNS: Final = ("id", "rule", "matched", "fired")


@group("fault", example="erxhub fault set 'Dispensing/Settle nth=1 do=lose_ack'")
def fault() -> None:
    """Fault rules of a namespace (故障): lost replies, refusals, delays, crashes, exactly when they are to happen.

    A rule is what it is on, a method (Dispensing/Settle, Dispensing/*, *) or an event (settlement.committed), and
    KEY=VALUE each: do, id, actor, rx, nth, prob, max_consecutive, max_total, and for the action delay, code,
    retry_after, window, lag, after_messages, skew, after_commit, hang, page_size, any_order. Durations have a unit:
    delay=2s.
    """


@fault.command("list", example="erxhub fault list\nerxhub fault list -o json > rules.json")
@with_sandbox
async def list_(client: SandboxClient, ctx: Context, out: Output) -> None:
    """The rules, with how many calls matched and how many got the fault."""
    _print(out, await client.list_faults())


@fault.command(
    "set",
    example="erxhub fault set 'Dispensing/Settle nth=1 do=lose_ack'\n"
    "erxhub fault set '* prob=0.05 do=error code=UNAVAILABLE max_consecutive=2' 'Prescribing/* do=delay delay=2s'\n"
    "erxhub fault set --file rules.json --replace",
)
@click.argument("rules", nargs=-1, metavar="[RULE]...")
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Rules as a JSON array, as `erxhub fault list -o json` prints them.",
)
@click.option("--profile", type=click.Choice(["dev", "strict", "chaos"]), help="The rules of this profile.")
@click.option("--replace", is_flag=True, help="These rules take the place of all that were set before.")
@with_sandbox
async def set_(
    client: SandboxClient,
    ctx: Context,
    out: Output,
    rules: tuple[str, ...],
    file: Path | None,
    profile: str | None,
    replace: bool,
) -> None:
    """Add rules, from words, a file or a profile; print all that are set then (设置故障)."""
    from erxhub.client import fault_rule

    if not rules and file is None and profile is None:
        raise Failed("CLI_OPTION_SOME_OF", field="RULE, --file, --profile", options="RULE, --file, --profile")
    with failing_as("CLI_FAULT_RULE", ValueError, field="--file" if file else "RULE"):
        found = [fault_rule(words) for words in rules] + (_from_file(file) if file else [])
    if profile is not None:
        found += _of_profile(profile)
    _print(out, await client.set_faults(found, replace=replace))


@fault.command("clear", example="erxhub fault clear\nerxhub fault clear lost-settlement")
@click.argument("rule_ids", nargs=-1, metavar="[ID]...")
@with_sandbox
async def clear(client: SandboxClient, ctx: Context, out: Output, rule_ids: tuple[str, ...]) -> None:
    """Remove these rules, or all of them; print those that are left (清除故障)."""
    known = {rule.rule_id for rule in await client.list_faults()}
    missing = sorted(set(rule_ids) - known)
    if missing:
        raise Failed("CLI_FAULT_UNKNOWN", field="ID", rule=missing[0], known=", ".join(sorted(known)) or "-")
    _print(out, await client.clear_faults(rule_ids))


def _print(out: Output, rules: list[sandbox_pb2.FaultRule]) -> None:
    from erxhub.client.fault_rules import fault_record, fault_words

    if out.format != "table":
        out.rows([fault_record(rule) for rule in rules])
        return
    rows: list[dict[str, Any]] = [
        {"id": rule.rule_id, "rule": fault_words(rule), "matched": rule.matched, "fired": rule.fired} for rule in rules
    ]
    out.rows(rows, COLUMNS)


def _from_file(path: Path) -> list[sandbox_pb2.FaultRule]:
    import json

    from erxhub.client.fault_rules import fault_rule_of

    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(content, list) or not all(isinstance(one, dict) for one in content):
        raise ValueError(f"{path} is no JSON array of objects")
    rules = []
    for place, one in enumerate(content, start=1):
        try:
            rules.append(fault_rule_of(one))
        except ValueError as error:
            raise ValueError(f"{path}, rule {place}: {error}") from None
    return rules


def _of_profile(profile: str) -> list[sandbox_pb2.FaultRule]:
    from erxhub.sandbox.profiles import profile_rules
    from erxhub.v1 import sandbox_pb2

    return list(profile_rules(sandbox_pb2.FaultProfile.Value(f"FAULT_PROFILE_{profile.upper()}")))
