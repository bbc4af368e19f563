"""`erxhub proof`: judging proofs, notes and maps that somebody else made, and the spelling of keys."""

from __future__ import annotations

from typing import BinaryIO

import click

from erxhub.cli.commands import group


@group("proof", example="erxhub proof check < vectors.jsonl")
def proof() -> None:
    """Proofs in the published formats, of any log: check them line by line, write the key of a log."""


@proof.command("check", example="erxhub proof check < vectors.jsonl")
def check() -> None:
    """Judge each line of stdin, a JSON object, by a line on stdout: {"ok": true|false, "reason": …}.

    \b
    {"kind":"inclusion","index":n,"size":n,"root":b64,"leaf_hash":b64,"proof":[b64…]}
    {"kind":"consistency","size1":n,"size2":n,"root1":b64,"root2":b64,"proof":[b64…]}
    {"kind":"root","leaves":[b64…],"root":b64}
    {"kind":"note","note":text,"vkeys":[text…]}
    {"kind":"checkpoint","note":text,"origin":text,"vkeys":[text…]}
    {"kind":"cosignature","note":text,"vkeys":[text…]}
    {"kind":"map","root":b64,"key":b64,"value":b64|null,"proof":b64}   (null: there is no such key)

    Anything else is answered with ok false. The reason is OK, or a stable code and words. Exit code 0 after the last
    line, whatever the verdicts.
    """
    import json
    import sys

    from erxhub.proof.check import check_line

    source = sys.stdin.buffer
    while line := _line(source):
        verdict = check_line(line.removesuffix(b"\n"))
        click.echo(json.dumps(verdict._asdict()))


@proof.command("vkey", example="erxhub proof vkey example.org/ledger 3163fafff5c8944b43396978adfe1522…")
@click.argument("origin")
@click.argument("public")
def vkey(origin: str, public: str) -> None:
    """The line by which witnesses and policies know a log: its ORIGIN and its PUBLIC log key in hexadecimal.

    `erxhub keys list` shows a hub's log key.
    """
    from erxhub.cli.local_errors import Failed
    from erxhub.proof.merkle import ProofInvalid
    from erxhub.proof.notes import ED25519, NoteKey, read_vkey

    try:
        made = NoteKey(origin, ED25519, bytes.fromhex(public)).vkey
        click.echo(read_vkey(made).vkey)
    except ProofInvalid as error:
        raise Failed("CLI_LOG_KEY", field="ORIGIN, PUBLIC", details=str(error)) from None
    except ValueError:
        raise Failed("CLI_VALUE_FORM", field="PUBLIC", value=public, form="HEX (64)") from None


def _line(source: BinaryIO) -> bytes:
    """The next line; of one that is too long only so much that it is seen to be."""
    from erxhub.proof.check import LINE_BYTES_MAX

    line = rest = source.readline(LINE_BYTES_MAX + 2)
    while len(rest) > LINE_BYTES_MAX and not rest.endswith(b"\n"):
        rest = source.readline(LINE_BYTES_MAX + 2)
    return line
