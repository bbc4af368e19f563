"""`erxhub errors`: the refusals of hub and sandbox, and the command's own errors, for people."""

from __future__ import annotations

from typing import Any

import click

from erxhub.cli.commands import group
from erxhub.cli.output import Output, output_option


@group("errors", example="erxhub errors explain VCH_EXPIRED")
def errors() -> None:
    """Every "no" that a hub or a sandbox (SBX_…) can say, and what the command itself finds wrong (CLI_…, local).

    Status, rules, both languages, and what helps.
    """


@errors.command("list", example="erxhub errors list\nerxhub errors list RX_ -o json")
@click.argument("prefix", default="")
@output_option
def list_(prefix: str, out: Output) -> None:
    """All codes, or those that begin with PREFIX."""
    from erxhub.cli.local_errors import Failed

    rows = [_row(code) for code in _codes() if code.startswith(prefix.upper())]
    if not rows:
        raise Failed("CLI_CODE_PREFIX", field="PREFIX", prefix=prefix)
    out.rows(rows, ("code", "source", "grpc_status", "retriable", "en", "zh"))


@errors.command("explain", example="erxhub errors explain VCH_EXPIRED")
@click.argument("code")
@output_option
def explain(code: str, out: Output) -> None:
    """One code: what it means, by which rules, and whether trying again can help."""
    import difflib

    from erxhub.cli.local_errors import Failed

    wanted, codes = code.strip().upper(), _codes()
    if wanted not in codes:
        if wanted.startswith("TLS_") or wanted == "HUB_UNREACHABLE":
            raise Failed("CLI_CODE_OF_CONNECTION", field="CODE", wanted=wanted)
        near = ", ".join(difflib.get_close_matches(wanted, codes, n=3)) or "-"
        raise Failed("CLI_CODE_UNKNOWN", field="CODE", wanted=wanted, near=near)
    out.object(_row(wanted))


def _codes() -> list[str]:
    from erxhub.cli import local_errors
    from erxhub.core.refusals import CATALOGUE
    from erxhub.sandbox.errors import ERRORS

    return [*CATALOGUE, *ERRORS, *local_errors.CATALOGUE]


def _row(code: str) -> dict[str, Any]:
    from erxhub.cli import local_errors
    from erxhub.cli.exits import exit_code_of_status
    from erxhub.core.refusals import CATALOGUE
    from erxhub.sandbox.errors import ERRORS

    if code in local_errors.CATALOGUE:
        local = local_errors.CATALOGUE[code]
        return {
            "code": code,
            "source": "local",
            "en": local.en,
            "zh": local.zh,
            "grpc_status": "",
            "exit_code": local.exit_code,
            "rule_ids": [],
            "retriable": False,
            "needs": "",
        }
    if code in ERRORS:
        error = ERRORS[code]
        status = error.status.name
        return {
            "code": code,
            "source": "sandbox",
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
        "source": "hub",
        "en": kind.en,
        "zh": kind.zh,
        "grpc_status": kind.grpc_status,
        "exit_code": exit_code_of_status(kind.grpc_status),
        "rule_ids": list(kind.rule_ids),
        "retriable": kind.retriable,
        "needs": kind.needs,
    }
