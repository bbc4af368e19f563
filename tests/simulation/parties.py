"""The checker's own picture of who takes part: institutions, staff, keys, persons and their codes, from the events.

Owns I14 and I18, and who works where. Must never use the hub's states or guards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from erxhub.v1 import registry_pb2
from tests.simulation.cast import DAY_MS, MINUTE_MS
from tests.simulation.reading import Line, Violation

SIGNING_AGE_MS: Final = 15 * MINUTE_MS
REFERENCE_MS: Final = 30 * MINUTE_MS
ONLINE_MS: Final = DAY_MS


@dataclass(slots=True)
class Voucher:
    """One code."""

    person_key: bytes
    business: str
    expires_at_ms: int
    consumed_by: str = ""
    consumed_at_ms: int = 0
    online: bool = False
    ended: bool = False


@dataclass(slots=True)
class Person:
    """One insured person."""

    account_key: bytes
    status: int = registry_pb2.PERSON_STATUS_ACTIVE


@dataclass(slots=True)
class Staff:
    """One practitioner."""

    institutions: tuple[str, ...]
    since_ms: int
    active: bool = True


@dataclass(slots=True)
class Key:
    """One signing key."""

    subject: str
    institution: str
    public_key: bytes
    valid_from_ms: int
    valid_until_ms: int
    revoked: bool = False


class Parties:
    """Everybody, and what they sign and show with."""

    def __init__(self, *, signatures: bool) -> None:
        self.signatures = signatures
        self.vouchers: dict[bytes, Voucher] = {}
        self.people: dict[bytes, Person] = {}
        self.staff: dict[str, Staff] = {}
        self.keys: dict[str, Key] = {}
        self.agreements: dict[tuple[str, int], tuple[bool, int, int]] = {}
        self.institutions: dict[bytes, str] = {}
        self.staff_of: dict[bytes, str] = {}
        self.revoked_certificates: set[bytes] = set()

    # ---- registry ----

    def _on_institution_registered(self, line: Line, payload: Any) -> None:
        self.institutions[line.stream_key] = payload.institution.institution_code

    def _on_agreement_signed(self, line: Line, payload: Any) -> None:
        held = payload.agreement
        where = (self.institutions[line.stream_key], held.kind)
        self.agreements[where] = (True, held.valid_from_ms, held.valid_until_ms)

    def _agreement(self, line: Line, payload: Any, *, active: bool) -> None:
        where = (self.institutions[line.stream_key], payload.kind)
        _, begins, ends = self.agreements[where]
        self.agreements[where] = (active, begins, ends)

    def _on_agreement_suspended(self, line: Line, payload: Any) -> None:
        self._agreement(line, payload, active=False)

    def _on_agreement_resumed(self, line: Line, payload: Any) -> None:
        self._agreement(line, payload, active=True)

    def _on_agreement_terminated(self, line: Line, payload: Any) -> None:
        self._agreement(line, payload, active=False)

    def _on_practitioner_registered(self, line: Line, payload: Any) -> None:
        found = payload.practitioner
        self.staff[found.practitioner_code] = Staff(tuple(found.institution_codes), line.at_ms)
        self.staff_of[line.stream_key] = found.practitioner_code

    def _on_practitioner_suspended(self, line: Line, payload: Any) -> None:
        self.staff[self.staff_of[line.stream_key]].active = False

    def _on_practitioner_resumed(self, line: Line, payload: Any) -> None:
        self.staff[self.staff_of[line.stream_key]].active = True

    def _on_practitioner_terminated(self, line: Line, payload: Any) -> None:
        self.staff[self.staff_of[line.stream_key]].active = False

    def _on_signing_key_registered(self, line: Line, payload: Any) -> None:
        key = payload.key
        self.keys[key.key_id] = Key(
            key.subject_code, key.institution_code, key.public_key, key.valid_from_ms, key.valid_until_ms
        )

    def _on_certificate_revoked(self, line: Line, payload: Any) -> None:
        if payload.key_id:
            self.keys[payload.key_id].revoked = True
        else:
            self.revoked_certificates.add(payload.certificate_sha256)

    def _on_person_registered(self, line: Line, payload: Any) -> None:
        self.people[line.stream_key] = Person(payload.person.account_key)

    def _on_person_status_changed(self, line: Line, payload: Any) -> None:
        self.people[line.stream_key].status = payload.status

    def _works(self, line: Line, code: str, institution: str, invariant: str) -> None:
        found = self.staff.get(code)
        if found is None or institution not in found.institutions or not found.active:
            raise Violation(invariant, f"{line.name} by {code}, who does not work at {institution}")

    def _signed(self, line: Line, content: Any, message: Any, subject: str, institution: str) -> Any:
        """I14: the first signature is the named signer's, under a key that was good. Returns the statement."""
        statement = message.FromString(content.payload)
        where = f"{line.name} at {line.position}"
        signature = content.signatures[0]
        key = self.keys.get(signature.key_id)
        if key is None or (key.subject, key.institution) != (subject, institution):
            raise Violation("I14", f"{where}: the key is not that of {subject} at {institution}")
        if key.revoked:
            raise Violation("I14", f"{where}: the key was revoked before")
        if not key.valid_from_ms <= statement.signed_at_ms <= key.valid_until_ms:
            raise Violation("I14", f"{where}: the key was not valid when it signed")
        if not 0 <= line.at_ms - statement.signed_at_ms <= SIGNING_AGE_MS:
            raise Violation("I14", f"{where}: signed {line.at_ms - statement.signed_at_ms} ms before")
        name = content.payload_type.encode()
        if not name.endswith(message.DESCRIPTOR.name.encode()):
            raise Violation("I14", f"{where}: signed as {content.payload_type}")
        if self.signatures:
            signed = b"DSSEv1 %d %b %d %b" % (len(name), name, len(content.payload), content.payload)
            try:
                Ed25519PublicKey.from_public_bytes(key.public_key).verify(signature.signature, signed)
            except InvalidSignature:
                raise Violation("I14", f"{where}: the signature does not fit the bytes") from None
        return statement

    # ---- vouchers ----

    def _on_voucher_issued(self, line: Line, payload: Any) -> None:
        self.vouchers[line.stream_key] = Voucher(payload.person_key, payload.business_type, payload.expires_at_ms)

    def _on_voucher_verified(self, line: Line, payload: Any) -> None:
        voucher = self.vouchers[line.stream_key]
        if voucher.consumed_by or voucher.ended:
            raise Violation("I18", f"a code is consumed again, at {line.position}")
        if line.at_ms > voucher.expires_at_ms:
            raise Violation("I18", f"a code is consumed after its time, at {line.position}")
        voucher.consumed_by, voucher.consumed_at_ms = line.institution.partition("/")[2], line.at_ms
        voucher.online = payload.online

    def _ended_voucher(self, line: Line, payload: Any) -> None:
        voucher = self.vouchers[line.stream_key]
        if voucher.consumed_by or voucher.ended:
            raise Violation("I18", f"{line.name} of a code that is over, at {line.position}")
        voucher.ended = True

    _on_voucher_expired = _ended_voucher
    _on_voucher_revoked = _ended_voucher

    def _shown(self, line: Line, key: bytes, person_key: bytes, *businesses: str) -> None:
        """The reference behind a step was consumed here, for this person and business, not too long ago (V-14)."""
        voucher = self.vouchers[key]
        where = f"{line.name} at {line.position}"
        if voucher.consumed_by != line.institution.partition("/")[2]:
            raise Violation("I18", f"{where} rests on a code that was not consumed there")
        if voucher.person_key != person_key or voucher.business not in businesses:
            raise Violation("I18", f"{where} rests on another person's code, or one for another business")
        if line.at_ms - voucher.consumed_at_ms > (ONLINE_MS if voucher.online else REFERENCE_MS):
            raise Violation("I18", f"{where} rests on a reference whose time was over")
