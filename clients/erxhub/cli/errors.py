"""`erxhub errors`: the refusal catalogue, for people."""

from __future__ import annotations

from typing import Any

import click

from erxhub.cli.commands import group
from erxhub.cli.output import Output, output_option


@group("errors", example="erxhub errors explain VCH_EXPIRED")
def errors() -> None:
    """Every "no" that a hub or a sandbox (SBX_…) can say: status, rules, both languages, and what helps."""


@errors.command("list", example="erxhub errors list\nerxhub errors list RX_ -o json")
@click.argument("prefix", default="")
@output_option
def list_(prefix: str, out: Output) -> None:
    """All codes, or those that begin with PREFIX."""
    from erxhub.cli.exits import NOT_FOUND, Failed

    rows = [_row(code) for code in _codes() if code.startswith(prefix.upper())]
    if not rows:
        raise Failed(f"no code begins with {prefix!r}", NOT_FOUND)
    out.rows(rows, ("code", "grpc_status", "retriable", "en", "zh"))


@errors.command("explain", example="erxhub errors explain VCH_EXPIRED")
@click.argument("code")
@output_option
def explain(code: str, out: Output) -> None:
    """One code: what it means, by which rules, and whether trying again can help."""
    import difflib

    from erxhub.cli.exits import NOT_FOUND, Failed

    wanted, codes = code.strip().upper(), _codes()
    if wanted not in codes:
        if wanted.startswith("TLS_"):
            raise Failed(f"{wanted} is about a certificate on this machine; `erxhub doctor` looks at them", NOT_FOUND)
        near = difflib.get_close_matches(wanted, codes, n=3)
        hint = f"; did you mean {', '.join(near)}?" if near else "; `erxhub errors list` has them all"
        raise Failed(f"there is no code {wanted}{hint}", NOT_FOUND)
    out.object(_row(wanted))


def _codes() -> list[str]:
    from erxhub.core.refusals import CATALOGUE
    from erxhub.sandbox.errors import ERRORS

    return [*CATALOGUE, *ERRORS]


def _row(code: str) -> dict[str, Any]:
    from erxhub.cli.exits import exit_code_of_status
    from erxhub.core.refusals import CATALOGUE
    from erxhub.sandbox.errors import ERRORS

    if code in ERRORS:
        error = ERRORS[code]
        status = error.status.name
        return {
            "code": code,
            "en": error.en,
            "zh": error.zh,
            "grpc_status": status,
            "exit_code": exit_code_of_status(status),
            "rule_ids": [],
            "retriable": status == "UNAVAILABLE",
            "needs": "",
        }
    kind = CATALOGUE[code]
    return {
        "code": kind.code,
        "en": kind.en,
        "zh": kind.zh,
        "grpc_status": kind.grpc_status,
        "exit_code": exit_code_of_status(kind.grpc_status),
        "rule_ids": list(kind.rule_ids),
        "retriable": kind.retriable,
        "needs": kind.needs,
    }
