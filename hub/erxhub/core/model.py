"""The words in which a decision is made: command, caller, evidence, refusal, acceptance, and the draft it writes into.

Owns no rule. A decision reads through a `Draft`, emits events into it and returns `Accepted` or `Refused`; it never
changes a state itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from google.protobuf.message import Message

from erxhub.core.randomness import Randomness
from erxhub.policy.rules import Rules

MessageT = TypeVar("MessageT", bound=Message)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the identity in the connection certificate. `area_code` is six digits or "".

    `acts_nationally`: an agency that may change what belongs to the whole ledger and to no area.
    """

    kind: str
    id: str
    area_code: str
    fingerprint: bytes
    acts_nationally: bool = False
    actor: str = field(init=False, compare=False, repr=False)
    """The caller as the `actor` of an entry."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "actor", f"{self.kind}/{self.id}")


@dataclass(slots=True, init=False)
class SignatureFact:
    """What admission proved about one signature over the received bytes.

    `suite` is "" when the key id is not registered; `valid` then is False.
    """

    key_id: str
    suite: str
    valid: bool

    def __init__(self, key_id: str, suite: str, valid: bool) -> None:
        self.key_id = key_id
        self.suite = suite
        self.valid = valid


@dataclass(frozen=True, slots=True)
class CertifiedKey:
    """What a signing certificate of the trust domain says. Instants in UTC ms."""

    subject_code: str
    institution_code: str
    suite: str
    public_key: bytes
    not_before_ms: int
    not_after_ms: int


@dataclass(frozen=True, slots=True)
class CertifiedPeer:
    """Whom a connection certificate of the trust domain speaks for. `fingerprint` is the SHA-256 of its DER."""

    role: str
    id: str
    area_code: str
    fingerprint: bytes


_NOTHING: Final[Mapping[str, Any]] = {}


class Evidence:
    """What was proven about bytes before the lane: signatures by field, SHA-256 by field, and signed contents, read.

    Nobody changes it; it is no frozen dataclass because one is made for each command.

    `file` is the prescription file as it was hashed: a request gives a copy each time it is asked for.
    `certificate` is what a signing certificate in the request says, and `connection` what a connection certificate
    does; None with `certificate_fault` when it was not issued by the trust domain or cannot be read. `key_is_sound` is
    False for a public key that is no key of its suite.
    """

    def __init__(
        self,
        signatures: Mapping[str, Sequence[SignatureFact]] = _NOTHING,
        sha256: Mapping[str, bytes] = _NOTHING,
        statements: Mapping[str, Any] = _NOTHING,
        certificate: CertifiedKey | None = None,
        connection: CertifiedPeer | None = None,
        certificate_fault: str = "",
        key_is_sound: bool = True,
        file: bytes = b"",
    ) -> None:
        self.signatures = signatures
        self.sha256 = sha256
        self.statements = statements
        self.certificate = certificate
        self.connection = connection
        self.certificate_fault = certificate_fault
        self.key_is_sound = key_is_sound
        self.file = file


@dataclass(slots=True, init=False)
class Command:
    """One request of an identified caller, ready to be decided."""

    method: str
    request: Any
    caller: Caller
    request_id: str
    received_at_ms: int
    evidence: Evidence

    def __init__(
        self,
        method: str,
        request: Any,
        caller: Caller,
        request_id: str,
        received_at_ms: int,
        evidence: Evidence,
    ) -> None:
        self.method = method
        self.request = request
        self.caller = caller
        self.request_id = request_id
        self.received_at_ms = received_at_ms
        self.evidence = evidence


class Target(NamedTuple):
    """Something that was read, or that a refusal was about. `person_key` lets its person find the access."""

    stream_key: bytes
    person_key: bytes = b""


@dataclass(frozen=True, slots=True)
class Refused:
    """An expected "no" with a stable code of the catalogue.

    `field` is the path of the request field at fault, or "". `detail` goes to the caller; it never holds personal data.
    `legal` names the triggers that a related caller may fire next. `keeps_events`: the events emitted so far are
    committed with the refusal, because a limit or a later step is decided by them. `entry` is the type of the
    refusal's entry.
    """

    code: str
    field: str = ""
    detail: Mapping[str, str] = dataclasses.field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    legal: tuple[str, ...] = ()
    keeps_events: bool = False
    entry: str = "command.refused"


@dataclass(slots=True, init=False)
class Accepted:
    """The command holds.

    `reply` is the response without its receipt; `targets` is what the reply shows of persons. `blobs` are (stream key,
    SHA-256, data), `catalog_rows` are (dataset, edition, code, body). `taken_request_id` is a request id of the caller
    that no later request may use. `attach_upload` is the stream whose uploaded bytes go into the reply as they are.
    `erasures` are (stream key, names) of streams whose newest entry here says that what was before it is erased, and
    with it these names.
    """

    reply: Message
    targets: tuple[Target, ...]
    blobs: tuple[tuple[bytes, bytes, bytes], ...]
    catalog_rows: tuple[tuple[str, str, str, bytes], ...]
    taken_request_id: str
    attach_upload: bytes
    erasures: tuple[tuple[bytes, tuple[tuple[str, bytes], ...]], ...]

    def __init__(
        self,
        reply: Message,
        targets: tuple[Target, ...] = (),
        blobs: tuple[tuple[bytes, bytes, bytes], ...] = (),
        catalog_rows: tuple[tuple[str, str, str, bytes], ...] = (),
        taken_request_id: str = "",
        attach_upload: bytes = b"",
        erasures: tuple[tuple[bytes, tuple[tuple[str, bytes], ...]], ...] = (),
    ) -> None:
        self.reply = reply
        self.targets = targets
        self.blobs = blobs
        self.catalog_rows = catalog_rows
        self.taken_request_id = taken_request_id
        self.attach_upload = attach_upload
        self.erasures = erasures


Outcome = Accepted | Refused


@dataclass(frozen=True, slots=True)
class AcceptedBefore:
    """An earlier request of the same caller that was accepted: its method, and its first entry in what it was about.

    That thing is the last in commit order: for a settlement or an undo the prescription, also where money moved.

    `method` is "reversed" when a reversal took the request id before the request arrived.
    """

    method: str
    stream_key: bytes
    version: int


class Missing(Exception):
    """A look-up of a decision is not loaded yet. `deciding` catches it; the lane loads and has it decided again."""


class Draft(Protocol):
    """What a decision reads from and writes into. Nothing is visible to anybody before the commit."""

    now_ms: int
    draw: Randomness
    ledger_key: bytes

    def rules(self, area_code: str) -> Rules:
        """The parameters in force for the area today."""

    def want(
        self,
        names: Sequence[tuple[str, bytes]] = (),
        streams: Sequence[bytes] = (),
        catalog: Sequence[tuple[str, str, str]] = (),
    ) -> None:
        """Ask for several look-ups in one round trip; raises Missing until all of them are loaded."""

    def find(self, space: str, key: bytes) -> bytes | None:
        """The stream key under a unique name, or None."""

    def listing(self, space: str, key: bytes, limit: int) -> list[bytes]:
        """The newest `limit` streams under an ordered key, newest first, each once."""

    def reply(self, request_id: str) -> AcceptedBefore | None:
        """The caller's accepted request under this id, or None."""

    def state(self, stream_key: bytes, kind: type[MessageT]) -> MessageT | None:
        """The stream's state, or None when the stream does not exist. Read only."""

    def version(self, stream_key: bytes) -> int:
        """The stream's newest version, events of this draft included; 0 when it does not exist."""

    def leaf(self, stream_key: bytes) -> bytes:
        """The leaf hash of the newest committed entry of the stream."""

    def catalog(self, dataset: str, edition: str, code: str) -> bytes | None:
        """A row of a code list, or None."""

    def mac(self, space: str, value: str) -> bytes:
        """Keyed hash of a secret or a personal number, under the newest key of the ledger; 32 bytes."""

    @property
    def mac_key_version(self) -> int:
        """The version of the key behind `mac`."""

    def find_secret(self, space: str, value: str) -> bytes | None:
        """The stream under the keyed hash of `value`, under any key version that is still good."""

    def secret_names(self, space: str, value: str) -> tuple[tuple[str, bytes], ...]:
        """The names under which `find_secret` looks, for `want`."""

    def want_ahead(self, ahead: Ahead) -> None:
        """`want` for what a decision said ahead."""

    def mac_matches(self, space: str, value: str, mac: bytes) -> bool:
        """Whether `mac` is the keyed hash of `value`, compared in constant time."""

    def emit(
        self,
        stream_kind: str,
        stream_key: bytes,
        event: str,
        payload: Message,
        *,
        actor: str = "",
        causes: Sequence[bytes | tuple[bytes, int]] = (),
    ) -> None:
        """Add an event.

        `actor` is the acting person's registry code, or "" for the caller alone. A cause is the leaf hash of a
        committed entry, or (stream key, version) of one in this draft.
        """


Handler = Callable[[Draft, Command], Outcome]


@dataclass(slots=True, init=False)
class Ahead:
    """Names and streams that a decision will look up.

    `secrets` are (space, value) of what `find_secret` looks for; `ledger` stands for the ledger's own stream.
    """

    names: tuple[tuple[str, bytes], ...]
    streams: tuple[bytes, ...]
    secrets: tuple[tuple[str, str], ...]
    ledger: bool

    def __init__(
        self,
        names: tuple[tuple[str, bytes], ...] = (),
        streams: tuple[bytes, ...] = (),
        secrets: tuple[tuple[str, str], ...] = (),
        ledger: bool = False,
    ) -> None:
        self.names = names
        self.streams = streams
        self.secrets = secrets
        self.ledger = ledger


LookAhead = Callable[[Command], Ahead]
"""What a handler will look up, as far as the command tells. It decides nothing."""
