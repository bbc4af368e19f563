"""Hubs with one thing broken, made of our own.

Owns: the table HUBS. Must never: change what a case sends; a mutant is a bad hub, not a bad robot.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Final

from google.rpc import error_details_pb2, status_pb2

from erxhub import deciding, sealing
from erxhub.accesses import AccessLog
from erxhub.admission import FieldRules
from erxhub.audit.chain import Chain
from erxhub.core import goods, guards, hold, settlement, voucher
from erxhub.core.model import Refused
from erxhub.crypto.suites import Verifier
from erxhub.policy.rules import Rules
from erxhub.queries import audit
from erxhub.rpc import calls
from erxhub.rpc.calls import Calls
from erxhub.rpc.errors import wire_status
from erxhub.rpc.methods import METHODS, Method
from erxhub.rpc.steps import Steps
from erxhub.sealing import StoredReply
from erxhub.v1 import audit_pb2
from tests.mutants.patching import Mutant, Patches, Table

_table = Table()
hub = _table.add

_UNKNOWN_FIELD: Final = b"\xf8\x3f\x01"
_LONG_MS: Final = 365 * 86_400_000
_ROLES: Final = frozenset[str]().union(*(method.callers for method in METHODS.values()))


def _lasts(p: Patches, name: str) -> None:
    before = Rules.__dict__["duration_ms"]
    p.set(Rules, "duration_ms", lambda self, wanted: _LONG_MS if wanted == name else before(self, wanted))


# ---- identity ----


@hub("hub", "CONN-004")
def any_role_may_call_anything(p: Patches) -> None:
    """The caller's role is not looked at."""
    before = Steps.__dict__["entered"]

    def entered(self: Any, method: Method, *given: Any) -> Any:
        return before(self, replace(method, callers=_ROLES), *given)

    p.set(Steps, "entered", entered)


@hub("hub", "CONN-005")
def speaks_for_any_institution(p: Patches) -> None:
    """A request may name another institution than its certificate."""
    p.set(guards, "own_institution", lambda command, code, field: None)


@hub("hub", "CONN-015")
def agreements_do_not_matter(p: Patches) -> None:
    """A suspended agreement stops nothing."""
    p.set(guards, "agreement", lambda tx, institution, kind: None)


@hub("hub", "SIG-001")
def believes_every_signature(p: Patches) -> None:
    """No signature is verified."""

    async def believed(self: Any, checks: Any) -> list[bool]:
        return [True] * len(checks)

    p.set(Verifier, "verify_all", believed)


@hub("hub", "SIG-002")
def any_registered_key_signs(p: Patches) -> None:
    """Whose signature it is does not matter, as long as it verifies."""

    def signed(tx: Any, command: Any, field: str, message_type: Any, *whose: str) -> Any:
        fact = next(iter(command.evidence.signatures.get(field, ())), None)
        if fact is None or not fact.valid:
            return Refused("SIG_INVALID", field=f"{field}.signatures[0]")
        return guards.claimed(command, field, message_type)

    p.set(guards, "signed", signed)


# ---- vouchers ----


@hub("hub", "VOU-002")
def codes_live_for_a_year(p: Patches) -> None:
    """A voucher code does not expire."""
    _lasts(p, "voucher_code_lifetime")


@hub("hub", "VOU-004")
def codes_are_good_twice(p: Patches) -> None:
    """A used voucher code is taken again."""
    p.set(voucher, "_spent", lambda tx, found, trigger, role: "")


@hub("hub", "VOU-003")
def codes_are_good_for_anybody(p: Patches) -> None:
    """A code is taken for whoever the caller says that the patient is."""
    p.set(voucher, "_decode_fault", lambda tx, request, found: None)


@hub("hub", "VOU-005")
def codes_are_good_for_any_step(p: Patches) -> None:
    """A code that was shown for one step is taken for another."""
    before = voucher._decode_fault

    def fault(tx: Any, request: Any, found: Any) -> Any:
        refused = before(tx, request, found)
        return None if refused is not None and refused.code == "VCH_WRONG_BUSINESS" else refused

    p.set(voucher, "_decode_fault", fault)


# ---- prescriptions and goods ----


@hub("hub", "CLM-003")
def two_may_hold(p: Patches) -> None:
    """A second pharmacy gets a hold beside the first."""
    p.set(hold, "_held_elsewhere", lambda seen: None)


@hub("hub", "DSP-002")
def reviews_and_money_do_not_matter(p: Patches) -> None:
    """Goods go out without review and settlement."""
    p.set(goods, "_not_paid", lambda seen, order, statement: None)


@hub("hub", "DSP-006")
def more_than_prescribed_goes_out(p: Patches) -> None:
    """Quantities are not compared."""
    p.set(goods, "_quantity_fault", lambda seen, order, statement: None)


@hub("hub", "DSP-008")
def packs_are_sold_twice(p: Patches) -> None:
    """A trace code that was sold is sold again."""
    p.set(goods, "_sold_before", lambda tx, seen, order, statement: None)


@hub("hub", "DSP-015")
def amounts_are_not_compared(p: Patches) -> None:
    """The pharmacy's amounts are taken as they are."""
    p.set(settlement, "_amount_fault", lambda *given: None)


@hub("hub", "RX-007")
def suspended_doctors_prescribe(p: Patches) -> None:
    """Whether a doctor is registered here and active is not looked at."""
    before = guards.practitioner

    def anybody(*given: Any, **named: Any) -> Any:
        found = before(*given, **named)
        return SimpleNamespace(code="", practice_years=99) if getattr(found, "code", "") == "DR_NOT_ALLOWED" else found

    p.set(guards, "practitioner", anybody)


# ---- the same request, the same answer ----


@hub("hub", "IDEM-001")
def a_repeat_gets_other_bytes(p: Patches) -> None:
    """A repeated request is answered with other bytes than the first."""
    decode = StoredReply.decode

    def other(data: bytes) -> StoredReply:
        stored = decode(data)
        return replace(stored, body=stored.body + _UNKNOWN_FIELD)

    p.set(StoredReply, "decode", staticmethod(other))


@hub("hub", "IDEM-005")
def another_body_is_the_same_request(p: Patches) -> None:
    """The content of a repeated request is not compared with the first."""
    p.set(deciding, "hmac", SimpleNamespace(digest=hmac.digest, compare_digest=lambda left, right: True))


# ---- refusals, traces ----


@hub("hub", "RX-004")
def one_violation_at_a_time(p: Patches) -> None:
    """Of several broken fields only the first is named."""
    before = FieldRules.__dict__["check"]

    def first(self: Any, request: Any, signed_fields: Any) -> Any:
        found, statements = before(self, request, signed_fields)
        return found[:1], statements

    p.set(FieldRules, "check", first)


@hub("hub", "DSP-002", "SIG-001")
def refusals_leave_no_entry(p: Patches) -> None:
    """A refused command is answered and not recorded."""
    before = AccessLog.__dict__["note"]

    def note(self: Any, batch: Any, noted: Any) -> bool:
        return False if noted.refused is not None else before(self, batch, noted)

    p.set(AccessLog, "note", note)


@hub("hub", "DSP-002", "CONN-004")
def refusals_have_no_code(p: Patches) -> None:
    """A refusal comes with a status and a sentence, and nothing that a program can read."""
    p.set(calls, "wire_status", lambda *given: wire_status(*given)._replace(details=b""))


@hub("hub", "VOU-006")
def refusals_name_no_wait(p: Patches) -> None:
    """What can be tried again comes without the time after which to try."""

    def status(*given: Any) -> Any:
        told = wire_status(*given)
        packed = status_pb2.Status.FromString(told.details)
        kept = [one for one in packed.details if not one.Is(error_details_pb2.RetryInfo.DESCRIPTOR)]
        del packed.details[:]
        packed.details.extend(kept)
        return told._replace(details=packed.SerializeToString())

    p.set(calls, "wire_status", status)


@hub("hub", "CONN-002")
def accesses_are_noted_twice(p: Patches) -> None:
    """Each access leaves two entries."""
    before = Calls.__dict__["note"]

    async def note(self: Any, *given: Any) -> None:
        await before(self, *given)
        await before(self, *given)

    p.set(Calls, "note", note)


@hub("hub", "AUD-001")
def deliveries_are_not_traced(p: Patches) -> None:
    """A trace ends where the courier begins."""
    before = Chain.__dict__["entries"]

    def entries(self: Any) -> Any:
        return [one for one in before(self) if not one.record.name.startswith("delivery.")]

    p.set(Chain, "entries", entries)


@hub("hub", "AUD-001")
def effects_name_no_causes(p: Patches) -> None:
    """Entries do not say which others they rest on."""
    p.set(sealing, "_resolve", lambda event, leaves: ())


@hub("hub", "AUD-002")
def copies_lack_their_salts(p: Patches) -> None:
    """A mirror gets contents without what binds them to their entries."""
    before = audit._streamed

    async def streamed(*given: Any, **named: Any) -> Any:
        async for message in before(*given, **named):
            if isinstance(message, audit_pb2.StreamEntriesResponse):
                message.ClearField("salt")
            yield message

    p.set(audit, "_streamed", streamed)


HUBS: Final[Mapping[str, Mutant]] = _table.mutants
"""By name."""
