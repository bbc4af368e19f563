"""What an auditor takes away and checks elsewhere: bundles and absences. The checks need no hub and no network.

Owns the words in which a verification is told, and which keys it goes by. It must never take a key from the file that
is verified, nor end with 0 for one that does not hold.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from erxhub.cli.exits import NEGATIVE, OK
from erxhub.cli.local_errors import Failed, failing_as, unusable

if TYPE_CHECKING:
    from collections.abc import Callable

    from erxhub.cli.output import Output
    from erxhub.proof.bundle import Form, Subject
    from erxhub.proof.bundle_checkpoint import Trust
    from erxhub.proof.bundle_verify import Verdict
    from erxhub.proof.notes import NoteKey

_Function = TypeVar("_Function", bound="Callable[..., Any]")

_PUBLIC_HEX: Final = re.compile(r"[0-9a-f]{64}")
_RX_NO: Final = re.compile(r"[0-9]{27}")


_FILE: Final = click.Path(path_type=Path, exists=True, dir_okay=False)


def trust_options(function: _Function) -> _Function:
    """`--log-key`, `--policy` and `--ca`; the command gets `log_keys`, `policy` and `ca`."""
    words = "The trust domain's root (PEM): signers' certificates must come from it."
    return log_options(click.option("--ca", type=_FILE, help=words)(function))


def log_options(function: _Function) -> _Function:
    """`--log-key` and `--policy`, where nothing that participants signed is verified."""
    for option in (
        click.option("--policy", type=_FILE, help="A policy file: which witnesses must have cosigned, and how many."),
        click.option(
            "--log-key",
            "log_keys",
            multiple=True,
            metavar="KEY",
            help="The log's public key: a vkey, or its 64 hexadecimal digits. May be repeated.",
        ),
    ):
        function = option(function)
    return function


def trust_of(log_keys: tuple[str, ...], policy: Path | None, ca: Path | None, origin: str) -> Trust:
    """What the options name. A key in hexadecimal is taken under the origin that it has to have signed for.

    Raises Failed when it is not readable, or names no key of a log at all.
    """
    from erxhub.crypto.certs import holds_certificates
    from erxhub.proof.bundle_checkpoint import Trust
    from erxhub.proof.merkle import ProofInvalid
    from erxhub.proof.policy import read_policy

    try:
        keys = tuple(_log_key(text, origin) for text in log_keys)
    except ProofInvalid as error:
        raise Failed("CLI_LOG_KEY", field="--log-key", details=f"{error.reason}: {error}") from None
    try:
        trust = Trust(keys, read_policy(policy.read_bytes()) if policy else None, ca.read_bytes() if ca else None)
    except ProofInvalid as error:
        raise Failed("CLI_POLICY", field="--policy", details=f"{error.reason}: {error}", path=policy) from None
    if not trust.logs():
        raise Failed("CLI_TRUST_MISSING", field="--log-key, --policy")
    if trust.ca_pem is not None and not holds_certificates(trust.ca_pem):
        raise Failed("CLI_FILE_NO_CERTIFICATE", field="--ca", path=ca)
    return trust


def _log_key(text: str, origin: str) -> NoteKey:
    from erxhub.proof.notes import ED25519, NoteKey, read_vkey, valid_name

    if not _PUBLIC_HEX.fullmatch(text):
        return read_vkey(text, (ED25519,))
    # An origin that no key can have is found by the verification.
    return NoteKey(origin if valid_name(origin) else "unknown", ED25519, bytes.fromhex(text))


def read_file(path: Path) -> bytes:
    """The bytes of a bundle, at most as many as one may have and one more. Raises Failed."""
    from erxhub.proof.bundle import BUNDLE_BYTES_MAX

    try:
        with path.open("rb") as file:
            return file.read(BUNDLE_BYTES_MAX + 1)
    except OSError as error:
        raise unusable(error, path) from None


def write_file(path: Path, text: str) -> None:
    """Write a bundle for its owner's eyes; an older file goes only once the new one is whole. Raises Failed."""
    part = path.with_name(path.name + ".part")
    try:
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode())
        part.replace(path)
    except OSError as error:
        raise unusable(error, path) from None


def origin_of(data: bytes) -> str:
    """The origin that the file's checkpoint names; nothing is verified yet."""
    checkpoint = data.partition(b"\ncheckpoint\n")[2]
    return checkpoint.partition(b"\n")[0][:256].decode(errors="replace")


def subject_of(name: str, kind: str | None) -> Subject:
    """What the user asks about: a prescription number (27 digits), a stream key (64 hex digits), else a trace code."""
    from erxhub.proof.bundle import Subject

    if kind is None:
        is_rx, is_key = _RX_NO.fullmatch(name), _PUBLIC_HEX.fullmatch(name)
        kind = "prescription" if is_rx else "stream" if is_key else "trace_code"
    subject = Subject(kind, name)
    with failing_as("CLI_SUBJECT", ValueError, value=name):
        _ = subject.key
    return subject


def verify_file(
    data: bytes,
    out: Output,
    log_keys: tuple[str, ...],
    policy: Path | None,
    ca: Path | None,
    asked: Subject | None = None,
    form: Form | None = None,
) -> int:
    """Verify the bytes of a bundle and say every check that was made; the exit code of the verdict.

    `asked`, `form`: what it has to prove, and of what; None takes the bundle for what it says it is.
    """
    from erxhub.proof.bundle_verify import verify_bundle

    trust = trust_of(log_keys, policy, ca, origin_of(data))
    verdict = verify_bundle(data, trust, asked, form)
    if out.format == "table":
        click.echo(told(verdict), nl=False)
    else:
        out.object(verdict_record(verdict))
    return OK if verdict.holds else NEGATIVE


def told(verdict: Verdict) -> str:
    """A verdict for a person: one numbered line a check, the verdict, and what is wrong."""
    lines = [f"{check.number:>3}  {'ok' if check.held else 'FAILED':<6}  {check.words}" for check in verdict.checks]
    if verdict.holds:
        assert verdict.subject is not None
        state = "" if _is_witnessed(verdict) else ", unwitnessed"
        lines.append(f"VERIFIED: {verdict.form} of {verdict.subject.kind} {verdict.subject.name}{state}")
    else:
        lines.append("REFUSED")
        for fault in verdict.faults:
            place = f"{fault.stream_kind or 'stream'}/{fault.stream_key.hex()[:16]} version {fault.version}"
            lines.append(f"  {fault.reason}  {place if fault.stream_key else 'the file'}: {fault.words}")
    return "".join(f"{_printable(line)}\n" for line in lines)


def _printable(line: str) -> str:
    """The line with what a hostile file could steer a terminal by made visible."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in line)


def verdict_record(verdict: Verdict) -> dict[str, Any]:
    """The object of `-o json`."""
    checkpoint, subject = verdict.checkpoint, verdict.subject
    return {
        "verified": verdict.holds,
        "form": verdict.form,
        "subject": {"kind": subject.kind, "name": subject.name} if subject else None,
        "checkpoint": {"origin": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex()}
        if checkpoint
        else None,
        "witnesses": list(checkpoint.witnesses) if checkpoint else [],
        "cosigned_at_s": list(checkpoint.cosigned_at_s) if checkpoint else [],
        "witnessed": _is_witnessed(verdict),
        "entries": verdict.entries,
        "erased": verdict.erased,
        "checks": [{"number": check.number, "check": check.words, "ok": check.held} for check in verdict.checks],
        "failures": [
            {
                "reason": fault.reason,
                "stream_kind": fault.stream_kind,
                "stream_key": fault.stream_key.hex(),
                "version": fault.version,
                "words": fault.words,
            }
            for fault in verdict.faults
        ],
    }


def _is_witnessed(verdict: Verdict) -> bool:
    return verdict.checkpoint is not None and bool(verdict.checkpoint.witnesses)
