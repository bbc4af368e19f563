"""Decisions about the e-voucher: its activation on a channel, the dynamic code, its decode and its withdrawal.

Owns the order in which a decode is checked and which refused decodes count against the code. No value that opens
anything is kept: codes and references leave this module in the reply only, the events carry their keyed hashes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from erxhub.core import guards
from erxhub.core.fold_registry import activation_state
from erxhub.core.keys import stream_key
from erxhub.core.lifecycle import Machine, Role, permits
from erxhub.core.model import Accepted, Ahead, Command, Draft, Handler, LookAhead, Outcome, Refused, Target
from erxhub.core.statuses import state_name
from erxhub.policy.codes import standing
from erxhub.v1 import events_pb2, registry_pb2, state_pb2, voucher_pb2

RANDOM_DIGITS: Final = 22
REFERENCE_LENGTH: Final = 64

REJECTED: Final = "voucher.rejected"
"""Type of the entry of a refused decode."""

REASON_REFUSED_DECODES: Final = "refused decodes"

_USED_UP: Final[Mapping[str, str]] = {
    "CONSUMED": "VCH_REPLAYED",
    "EXPIRED": "VCH_EXPIRED",
    "REVOKED": "VCH_REVOKED",
}
"""The answer about a code that can no longer be used, by its state."""

_SPEAKS_FOR: Final[Mapping[str, Role]] = {
    "channel": Role.PATIENT,
    "agency": Role.AGENCY,
    "hospital": Role.HOSPITAL,
    "pharmacy": Role.PHARMACY,
}


# ---- activation ----


def activate(tx: Draft, command: Command) -> Outcome:
    """Activate a person's e-voucher on the calling channel (激活, V-05). Leaves `person.voucher_activated`.

    Refusals: RECORD_UNKNOWN, PSN_INACTIVE, RECORD_STATE (activated already).
    """
    request: voucher_pb2.ActivateVoucherRequest = command.request
    key = tx.find_secret("person", request.person_no)
    if key is None:
        return Refused("RECORD_UNKNOWN", field="person_no")
    person = guards.person_active(tx, key)
    if isinstance(person, Refused):
        return person
    channel = command.caller.id
    before = activation_state(person, channel)
    triggers = ("activate", "activate again")
    if not any(permits(Machine.ACTIVATION, before, trigger, Role.PATIENT) for trigger in triggers):
        return Refused("RECORD_STATE", detail={"state": before}, targets=(Target(key, key),))
    level = state_pb2.IdentityProof.ValueType(request.identity_level)
    tx.emit("person", key, "person.voucher_activated", events_pb2.VoucherActivated(channel_id=channel, level=level))
    return Accepted(voucher_pb2.ActivateVoucherResponse())


def deactivate(tx: Draft, command: Command) -> Outcome:
    """End an activation, by its own channel or by the agency (停用). Leaves `person.voucher_deactivated`.

    Refusals to a channel: INST_IMPERSONATION (another channel's), VCH_REVOKED (no activation here, or no such person:
    the same answer). To an agency: INPUT_MALFORMED (no channel named), RECORD_UNKNOWN, RECORD_STATE.
    """
    request: voucher_pb2.DeactivateVoucherRequest = command.request
    caller = command.caller
    role = _SPEAKS_FOR[caller.kind]
    by_channel = role is Role.PATIENT
    channel = request.channel_id or (caller.id if by_channel else "")
    if not channel:
        return Refused("INPUT_MALFORMED", field="channel_id")
    if by_channel and channel != caller.id:
        return Refused("INST_IMPERSONATION", field="channel_id")
    key = tx.find_secret("person", request.person_no)
    person = tx.state(key, state_pb2.PersonState) if key else None
    if key is None or person is None:
        return Refused("VCH_REVOKED") if by_channel else Refused("RECORD_UNKNOWN", field="person_no")
    targets = (Target(key, key),)
    if not by_channel and not guards.area_covers(caller.area_code, person.insured_area_code):
        return Refused("RECORD_UNKNOWN", field="person_no", targets=targets)
    before = activation_state(person, channel)
    if not permits(Machine.ACTIVATION, before, "deactivate", role):
        if by_channel:
            return Refused("VCH_REVOKED", targets=targets)
        return Refused("RECORD_STATE", field="channel_id", detail={"state": before}, targets=targets)
    tx.emit("person", key, "person.voucher_deactivated", events_pb2.VoucherDeactivated(channel_id=channel))
    return Accepted(voucher_pb2.DeactivateVoucherResponse())


# ---- the code ----


def issue(tx: Draft, command: Command) -> Outcome:
    """Make a dynamic, single-use code for a person, shown by himself or by a delegate (展码, V-01, V-11).

    Leaves `voucher.issued`, which carries the keyed hash of the code only.
    Refusals: INPUT_MALFORMED (no such business type), VCH_REVOKED, VCH_NO_DELEGATION, PSN_INACTIVE.
    """
    request: voucher_pb2.IssueVoucherRequest = command.request
    if standing("voucher_business_type", request.business_type) is None:
        return Refused("INPUT_MALFORMED", field="business_type")
    acting = guards.acting_person(tx, command, request.person_no, request.delegate_person_no)
    if isinstance(acting, Refused):
        return acting
    person = guards.person_active(tx, acting.person_key)
    if isinstance(person, Refused):
        return person
    area = person.insured_area_code
    code = area + tx.draw.digits(RANDOM_DIGITS)
    expires_at_ms = tx.now_ms + tx.rules(area).duration_ms("voucher_code_lifetime")
    issued = events_pb2.VoucherIssued(
        person_key=acting.person_key,
        delegate_key=acting.delegate_key,
        channel_id=command.caller.id,
        business_type=request.business_type,
        expires_at_ms=expires_at_ms,
        code_mac=tx.mac("voucher_code", code),
        key_version=tx.mac_key_version,
    )
    tx.emit("voucher", stream_key("voucher", tx.draw.bytes(16)), "voucher.issued", issued)
    return Accepted(voucher_pb2.IssueVoucherResponse(voucher_code=code, expires_at_ms=expires_at_ms))


def _ahead_of_issue(command: Command) -> Ahead:
    request: voucher_pb2.IssueVoucherRequest = command.request
    numbers = (request.person_no, request.delegate_person_no)
    return Ahead(secrets=tuple([("person", number) for number in numbers if number]))


def verify(tx: Draft, command: Command) -> Outcome:
    """Decode and consume a code (解码核验, V-02, V-03, V-14, V-15). Leaves `voucher.verified`.

    The reply carries the reference that the steps quote or, for an online identification, the online identity number
    instead; both are kept as keyed hashes only.

    A refused decode of a usable code leaves `voucher.try_counted`; the one that reaches the limit leaves
    `voucher.revoked` too (V-13). The caller's own standing and the person's insurance status are no faults of a decode
    and count nothing.

    Refusals: INST_UNKNOWN, AGR_INACTIVE; VCH_INVALID (unknown, or shown on another channel), VCH_EXPIRED, VCH_REPLAYED,
    VCH_REVOKED, VCH_WRONG_BUSINESS, VCH_SUBJECT_MISMATCH; PSN_INACTIVE.
    """
    request: voucher_pb2.VerifyVoucherRequest = command.request
    caller = command.caller
    institution = guards.institution(tx, caller.id)
    if isinstance(institution, Refused):
        return institution
    refused = guards.agreement(tx, institution, registry_pb2.AGREEMENT_KIND_BASE)
    if refused is not None:
        return refused

    key = tx.find_secret("voucher_code", request.voucher_code)
    voucher = tx.state(key, state_pb2.VoucherState) if key else None
    if key is None or voucher is None:
        return Refused("VCH_INVALID", field="voucher_code", entry=REJECTED)
    targets = (Target(key, voucher.person_key),)
    spent = _spent(tx, voucher, "decode", _SPEAKS_FOR[caller.kind])
    if spent:
        return Refused(spent, field="voucher_code", targets=targets, entry=REJECTED)
    fault = _decode_fault(tx, request, voucher)
    if fault is not None:
        code, field = fault
        _count_try(tx, command, key, voucher, code)
        return Refused(code, field=field, targets=targets, keeps_events=True, entry=REJECTED)
    person = guards.person_active(tx, voucher.person_key)
    if isinstance(person, Refused):
        return person

    rules = tx.rules(caller.area_code)
    online = voucher.business_type == rules.text("business_type_prescribing_internet")
    space, lifetime = (
        ("online_identity", "online_identity_lifetime") if online else ("voucher_ref", "voucher_ref_lifetime")
    )
    reference = tx.draw.token(REFERENCE_LENGTH)
    expires_at_ms = tx.now_ms + rules.duration_ms(lifetime)
    verified = events_pb2.VoucherVerified(
        institution_code=caller.id,
        ref_mac=tx.mac(space, reference),
        ref_expires_at_ms=expires_at_ms,
        key_version=tx.mac_key_version,
        operator_id=request.operator_id,
        online=online,
    )
    tx.emit("voucher", key, "voucher.verified", verified)
    reply = voucher_pb2.VerifyVoucherResponse(
        voucher_ref="" if online else reference,
        online_identity_no=reference if online else "",
        person_no=person.person_no,
        name=person.name,
        sex=person.sex,
        born_on=person.born_on,
        insured_area_code=person.insured_area_code,
        insurance_type=person.insurance_type,
        expires_at_ms=expires_at_ms,
    )
    return Accepted(reply, targets=(Target(voucher.person_key, voucher.person_key),))


def _ahead_of_verify(command: Command) -> Ahead:
    request: voucher_pb2.VerifyVoucherRequest = command.request
    code = ("voucher_code", request.voucher_code)
    return Ahead(
        names=(("institution", command.caller.id.encode()),),
        secrets=(code, ("person", request.person_no)) if request.person_no else (code,),
    )


def _spent(tx: Draft, voucher: state_pb2.VoucherState, trigger: str, role: Role) -> str:
    """The refusal code of a code that can no longer be used, or ""."""
    name = state_name(Machine.VOUCHER, voucher.status)
    if not permits(Machine.VOUCHER, name, trigger, role):
        return _USED_UP[name]
    return "VCH_EXPIRED" if tx.now_ms > voucher.expires_at_ms else ""


def _decode_fault(
    tx: Draft, request: voucher_pb2.VerifyVoucherRequest, voucher: state_pb2.VoucherState
) -> tuple[str, str] | None:
    """(refusal code, field) of the first binding that does not hold, or None."""
    if request.business_type != voucher.business_type:
        return "VCH_WRONG_BUSINESS", "business_type"
    if request.channel_id and request.channel_id != voucher.channel_id:
        return "VCH_INVALID", "channel_id"
    if request.person_no and tx.find_secret("person", request.person_no) != voucher.person_key:
        return "VCH_SUBJECT_MISMATCH", "person_no"
    if activation_state(guards.person(tx, voucher.person_key), voucher.channel_id) not in guards.ACTIVATED:
        return "VCH_REVOKED", "voucher_code"
    return None


def _count_try(tx: Draft, command: Command, key: bytes, voucher: state_pb2.VoucherState, refusal_code: str) -> None:
    tries = voucher.refused_decodes + 1
    counted = events_pb2.VoucherTryCounted(institution_code=command.caller.id, refusal_code=refusal_code)
    tx.emit("voucher", key, "voucher.try_counted", counted)
    if tries >= tx.rules(command.caller.area_code).integer("refused_decodes_max"):
        tx.emit("voucher", key, "voucher.revoked", events_pb2.VoucherRevoked(reason=REASON_REFUSED_DECODES))


def revoke(tx: Draft, command: Command) -> Outcome:
    """Withdraw a code that was not used, by the channel that showed it or by the agency (作废).

    Leaves `voucher.revoked`.
    Refusals: VCH_INVALID (unknown, another channel's or outside the agency's area: the same answer), VCH_EXPIRED,
    VCH_REPLAYED, VCH_REVOKED.
    """
    request: voucher_pb2.RevokeVoucherRequest = command.request
    caller = command.caller
    role = _SPEAKS_FOR[caller.kind]
    key = tx.find_secret("voucher_code", request.voucher_code)
    voucher = tx.state(key, state_pb2.VoucherState) if key else None
    if key is None or voucher is None or voucher.erased_version:  # whose it was is not known any more
        return Refused("VCH_INVALID", field="voucher_code")
    targets = (Target(key, voucher.person_key),)
    if role is Role.PATIENT:
        related = voucher.channel_id == caller.id
    else:
        related = guards.area_covers(caller.area_code, guards.person(tx, voucher.person_key).insured_area_code)
    if not related:
        return Refused("VCH_INVALID", field="voucher_code", targets=targets)
    spent = _spent(tx, voucher, "revoke", role)
    if spent:
        return Refused(spent, field="voucher_code", targets=targets)
    tx.emit("voucher", key, "voucher.revoked", events_pb2.VoucherRevoked(reason=request.reason))
    return Accepted(voucher_pb2.RevokeVoucherResponse())


HANDLERS: Final[Mapping[str, Handler]] = {
    "VoucherService/ActivateVoucher": activate,
    "VoucherService/DeactivateVoucher": deactivate,
    "VoucherService/IssueVoucher": issue,
    "VoucherService/VerifyVoucher": verify,
    "VoucherService/RevokeVoucher": revoke,
}

LOOK_AHEADS: Final[Mapping[str, LookAhead]] = {
    "VoucherService/IssueVoucher": _ahead_of_issue,
    "VoucherService/VerifyVoucher": _ahead_of_verify,
}
