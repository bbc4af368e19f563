"""Policy files: which logs are known, which witnesses, and how many of them must have cosigned.

Owns the file's grammar and the counting. It must never count a log's line toward the quorum.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from erxhub.proof.checkpoints import CheckpointText, read_checkpoint
from erxhub.proof.merkle import ProofInvalid
from erxhub.proof.notes import COSIGNATURE, ED25519, ML_DSA_COSIGNATURE, NoteKey, Opened, open_note, read_vkey

FILE_BYTES_MAX: Final = 1024 * 1024
EACH_MAX: Final = 256
"""So many logs, witnesses and groups, each."""

_FORBIDDEN: Final = re.compile(rb"[^\t\n\x20-\x7e\x80-\xff]")
_BLANKS: Final = re.compile(r"[ \t]+")
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,9}")
_NONE: Final = "none"


class PolicyLog(NamedTuple):
    """A log whose checkpoints are taken; the key's name is its origin."""

    key: NoteKey
    url: str | None


class PolicyWitness(NamedTuple):
    """A witness; the URL, if there is one, is its submission prefix."""

    name: str
    key: NoteKey
    url: str | None


class PolicyGroup(NamedTuple):
    """Holds when at least `threshold` of the members hold."""

    name: str
    threshold: int
    members: tuple[str, ...]


class PolicyMet(NamedTuple):
    """A checkpoint that satisfies a policy, the names of the witnesses that have cosigned it, and its note."""

    said: CheckpointText
    witnesses: tuple[str, ...]
    note: Opened


@dataclass(frozen=True, slots=True)
class Policy:
    """A policy. `quorum` names a witness or a group; None asks for no cosignature at all."""

    logs: tuple[PolicyLog, ...]
    witnesses: dict[str, PolicyWitness]
    groups: dict[str, PolicyGroup]
    quorum: str | None

    def holds(self, witnesses: Collection[str]) -> bool:
        """Whether the quorum holds when these witnesses, by their names in the policy, have cosigned."""
        if self.quorum is None:
            return True
        held = set(self.witnesses).intersection(witnesses)
        # In the order of the file, in which members stand before their group.
        for group in self.groups.values():
            if len(held.intersection(group.members)) >= group.threshold:
                held.add(group.name)
        return self.quorum in held

    def check(self, note: bytes | str, log_keys: Sequence[NoteKey] = ()) -> PolicyMet:
        """Accept a checkpoint of a known log with its quorum. `log_keys`: logs that are known otherwise.

        Raises ProofInvalid with the reasons of open_note and read_checkpoint, LOG_UNKNOWN and NO_QUORUM.
        """
        logs = [*(log.key for log in self.logs), *log_keys]
        keys = dict.fromkeys([*logs, *(witness.key for witness in self.witnesses.values())])
        # What cannot be verified here is as good as unknown: it never counts.
        opened = open_note(note, [key for key in keys if key.type != ML_DSA_COSIGNATURE])
        signed_by = {signer.key for signer in opened.signers}
        names = tuple(name for name, witness in self.witnesses.items() if witness.key in signed_by)
        origin = opened.text.partition("\n")[0]
        if not any(key.type == ED25519 and key.name == origin for key in signed_by):
            raise ProofInvalid("LOG_UNKNOWN", "no known log of this origin has signed")
        if not self.holds(names):
            raise ProofInvalid("NO_QUORUM", "too few of the witnesses have cosigned")
        return PolicyMet(read_checkpoint(opened.text), names, opened)


def read_policy(file: bytes) -> Policy:
    """Read a policy file.

    Raises ProofInvalid CHARSET, LINE_END, LIMIT, KEYWORD, FIELDS, RESERVED_NAME, DUP_NAME, DUP_LOG, DUP_WITNESS, GROUP,
    THRESHOLD, DUP_MEMBER, MEMBER_TWICE, UNKNOWN_MEMBER, QUORUM, DUP_QUORUM, NO_QUORUM, and those of read_vkey.
    """
    if len(file) > FILE_BYTES_MAX:
        raise ProofInvalid("LIMIT", "a policy file is at most 1 MiB")
    if _FORBIDDEN.search(file):
        raise ProofInvalid("CHARSET", "a character that a policy file may not hold")
    if file and not file.endswith(b"\n"):
        raise ProofInvalid("LINE_END", "the last line has no end")
    reading = _Reading()
    # Names are octets: what is no UTF-8 is kept apart by surrogates and comes out of it unchanged.
    for line in file.decode("utf-8", "surrogateescape").split("\n"):
        fields = _BLANKS.split(line.strip(" \t"))
        if fields[0] and not fields[0].startswith("#"):
            reading.line(fields[0], fields[1:])
    return reading.policy()


@dataclass(slots=True)
class _Reading:
    logs: list[PolicyLog] = field(default_factory=list)
    witnesses: dict[str, PolicyWitness] = field(default_factory=dict)
    groups: dict[str, PolicyGroup] = field(default_factory=dict)
    members: set[str] = field(default_factory=set)
    quorum: list[str | None] = field(default_factory=list)

    def line(self, keyword: str, fields: list[str]) -> None:
        readers: dict[str, Callable[[list[str]], None]] = {
            "log": self._log,
            "witness": self._witness,
            "group": self._group,
            "quorum": self._quorum,
        }
        if keyword not in readers:
            raise ProofInvalid("KEYWORD", "a line is log, witness, group or quorum")
        readers[keyword](fields)

    def policy(self) -> Policy:
        if not self.quorum:
            raise ProofInvalid("NO_QUORUM", "no quorum line")
        return Policy(tuple(self.logs), self.witnesses, self.groups, self.quorum[0])

    def _log(self, fields: list[str]) -> None:
        _count(fields, 1, 2)
        key = read_vkey(fields[0], (ED25519, ML_DSA_COSIGNATURE))
        if any(log.key.public == key.public for log in self.logs):
            raise ProofInvalid("DUP_LOG", "two logs have one public key")
        _limit(self.logs)
        self.logs.append(PolicyLog(key, _optional(fields, 1)))

    def _witness(self, fields: list[str]) -> None:
        _count(fields, 2, 3)
        name = self._new_name(fields[0])
        key = read_vkey(fields[1], (COSIGNATURE, ML_DSA_COSIGNATURE))
        if any(witness.key.public == key.public for witness in self.witnesses.values()):
            raise ProofInvalid("DUP_WITNESS", "two witnesses have one public key")
        _limit(self.witnesses)
        self.witnesses[name] = PolicyWitness(name, key, _optional(fields, 2))

    def _group(self, fields: list[str]) -> None:
        if len(fields) < 3:
            raise ProofInvalid("GROUP", "a group has a name, a number and at least one member")
        name, wanted, *members = fields
        self._new_name(name)
        for member in members:
            if not self._known(member):
                raise ProofInvalid("UNKNOWN_MEMBER", "a member is not defined on an earlier line")
        if len(set(members)) != len(members):
            raise ProofInvalid("DUP_MEMBER", "a member is named twice in a group")
        if self.members.intersection(members):
            raise ProofInvalid("MEMBER_TWICE", "a name is a member of two groups")
        self.members.update(members)
        _limit(self.groups)
        self.groups[name] = PolicyGroup(name, _threshold(wanted, len(members)), tuple(members))

    def _quorum(self, fields: list[str]) -> None:
        _count(fields, 1, 1)
        if self.quorum:
            raise ProofInvalid("DUP_QUORUM", "two quorum lines")
        if fields[0] != _NONE and not self._known(fields[0]):
            raise ProofInvalid("QUORUM", "the quorum is not defined on an earlier line")
        self.quorum.append(None if fields[0] == _NONE else fields[0])

    def _known(self, name: str) -> bool:
        return name in self.witnesses or name in self.groups

    def _new_name(self, name: str) -> str:
        if name == _NONE:
            raise ProofInvalid("RESERVED_NAME", "none is the name of nothing")
        if self._known(name):
            raise ProofInvalid("DUP_NAME", "a name is defined twice")
        return name


def _threshold(wanted: str, members: int) -> int:
    if wanted == "any":
        return 1
    if wanted == "all":
        return members
    if not _NUMBER.fullmatch(wanted) or int(wanted) > members:
        raise ProofInvalid("THRESHOLD", "the number of a group is from 1 to that of its members")
    return int(wanted)


def _count(fields: list[str], least: int, most: int) -> None:
    if not least <= len(fields) <= most:
        raise ProofInvalid("FIELDS", "a line has too few or too many fields")


def _optional(fields: list[str], place: int) -> str | None:
    return fields[place] if place < len(fields) else None


def _limit(held: Collection[object]) -> None:
    if len(held) >= EACH_MAX:
        raise ProofInvalid("LIMIT", f"more than {EACH_MAX} logs, witnesses or groups")
