"""One line per entry for a person who reads a chain: what happened, in codes, numbers and quantities.

Owns THE table of these lines, one for every event type. A line never holds a name, a personal number, an address, a
phone or free text that somebody typed; what else an auditor needs is in the entry itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, Final

from erxhub.audit.chain import Record
from erxhub.core.claim_arithmetic import format_yuan
from erxhub.v1 import common_pb2, events_pb2, registry_pb2, signed_pb2, state_pb2

_CHINA: Final = timezone(timedelta(hours=8))
_SHOWN_MAX: Final = 6


ERASED: Final = "content erased: existence and order proven"
"""Stands for what an entry said."""


def summary(record: Record) -> str:
    """The line of one entry."""
    if record.is_erased:
        return ERASED
    return _LINES[record.name](record.payload)


def quantity_text(quantity_e4: int) -> str:
    """1e-4 units as decimal text without trailing zeros: 15000 → "1.5"."""
    whole, part = divmod(quantity_e4, 10_000)
    return f"{whole}.{part:04d}".rstrip("0").rstrip(".")


def _time(at_ms: int) -> str:
    """Minutes in China, which is where whoever reads this is."""
    try:
        at = datetime.fromtimestamp(at_ms // 1000, UTC).astimezone(_CHINA)
    except (OverflowError, ValueError, OSError):  # a damaged entry may hold any number
        return f"{at_ms} ms"
    return at.strftime("%Y-%m-%d %H:%M")


def _word(enum: Any, number: int, prefix: str) -> str:
    """An enum value as words; its number where this release does not know it."""
    try:
        return str(enum.Name(number)).removeprefix(prefix).lower().replace("_", " ")
    except ValueError:
        return str(number)


def _some(texts: Iterable[str]) -> str:
    """The first few, and how many more there are."""
    every = list(texts)
    more = len(every) - _SHOWN_MAX
    return ", ".join(every[:_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def _digest(digest: bytes) -> str:
    return digest.hex()[:12]


def _says(text: str) -> Callable[[Any], str]:
    return lambda payload: text


def _order(text: str) -> Callable[[Any], str]:
    return lambda payload: f"order {payload.order_no}: {text}"


# ---- registry, account ----


def _agreement(payload: Any) -> str:
    return f"{_word(registry_pb2.AgreementKind, payload.agreement.kind, 'AGREEMENT_KIND_')} agreement signed"


def _agreement_now(what: str) -> Callable[[Any], str]:
    return lambda payload: f"{_word(registry_pb2.AgreementKind, payload.kind, 'AGREEMENT_KIND_')} agreement {what}"


def _moved(what: str) -> Callable[[Any], str]:
    return lambda payload: (
        f"account {what} {format_yuan(payload.amount_fen)}, in scope {format_yuan(payload.in_scope_fen)}, "
        f"fund {format_yuan(payload.fund_fen)} yuan; settlement {payload.settlement_id}"
    )


# ---- diagnosis ----


def _issued(payload: events_pb2.VoucherIssued) -> str:
    by = ", shown by a delegate" if payload.delegate_key else ""
    return f"voucher code of business type {payload.business_type} on channel {payload.channel_id}{by}"


def _verified(payload: events_pb2.VoucherVerified) -> str:
    what = "online identity number" if payload.online else "reference"
    return f"voucher verified by {payload.institution_code}; {what} good until {_time(payload.ref_expires_at_ms)}"


def _registered(payload: events_pb2.EncounterRegistered) -> str:
    kind = _word(common_pb2.VisitKind, payload.visit_kind, "VISIT_KIND_")
    proof = "voucher" if payload.voucher_key else f"certificate type {payload.certificate_type}"
    visit = "first visit" if payload.first_visit else "follow-up"
    return f"{kind} {visit} at {payload.hospital_code}, med_type {payload.med_type}, person proven by {proof}"


def _diagnosed(payload: events_pb2.DiagnosisRecorded) -> str:
    codes = (each.code + (" (main)" if each.main else "") for each in payload.diagnoses)
    return f"diagnoses {_some(codes)} by {payload.doctor_code}"


# ---- prescription ----


def _lines(lines: Iterable[common_pb2.RxLine]) -> str:
    return _some(f"{line.drug_code} x {line.quantity} {line.quantity_unit}" for line in lines)


def _prechecked(payload: events_pb2.PrescriptionPrechecked) -> str:
    content = payload.content
    return f"{len(content.lines)} lines by {content.doctor_code}: {_lines(content.lines)}"


def _uploaded(payload: events_pb2.PrescriptionUploaded) -> str:
    return (
        f"uploaded with {payload.file_media_type} of {payload.file_size_bytes} bytes, "
        f"digest {_digest(payload.file_sha256)}"
    )


def _warned(payload: events_pb2.RuleWarned) -> str:
    return f"warnings {_some(each.code for each in payload.warnings)}"


# ---- order and review ----


def _authorized(payload: events_pb2.AuthorizationIssued) -> str:
    authorization = payload.authorization
    by = "QR value" if authorization.is_token else "voucher"
    return f"authorised {authorization.pharmacy_code} by {by} until {_time(authorization.expires_at_ms)}"


def _created(payload: events_pb2.OrderCreated) -> str:
    mode = _word(common_pb2.FulfilmentMode, payload.mode, "FULFILMENT_MODE_")
    by = "chosen in the channel" if payload.by_patient else "presented at the counter"
    return f"order {payload.order_no} at {payload.pharmacy_code}, {mode}, {by}"


def _ended_by_time(payload: events_pb2.OrderExpired) -> str:
    return f"order {payload.order_no}: {'its hold lapsed' if payload.hold_lapsed else 'ended with the prescription'}"


def _reviewed(what: str) -> Callable[[Any], str]:
    return lambda payload: f"order {payload.order_no}: review {what} by {payload.pharmacist_code}"


# ---- money ----


def _amounts(amounts: signed_pb2.ClaimAmounts) -> str:
    account_fen = amounts.account_fen + amounts.family_fen
    return (
        f"total {format_yuan(amounts.total_fen)} = fund {format_yuan(amounts.fund_fen)} + account "
        f"{format_yuan(account_fen)} + cash {format_yuan(amounts.cash_fen)} yuan"
    )


def _claim(what: str) -> Callable[[Any], str]:
    def line(payload: Any) -> str:
        claim: state_pb2.Claim = payload.claim
        sold = _some(f"{each.drug_code} x {quantity_text(each.quantity_e4)}" for each in claim.lines)
        return f"order {payload.order_no} {what}: {_amounts(claim.amounts)}; {sold}"

    return line


def _undone(payload: events_pb2.SettlementUndone) -> str:
    return f"order {payload.order_no}: settlement {payload.settlement_id} undone"


def _reversed(payload: events_pb2.SettlementReversed) -> str:
    target = _word(events_pb2.ReversalOf, payload.target, "REVERSAL_OF_")
    if payload.target == events_pb2.REVERSAL_OF_NONE:
        return f"request {payload.original_request_id} reversed before it arrived"
    return f"order {payload.order_no}: {target} of {payload.settlement_id} reversed"


# ---- goods ----


def _outbound(payload: events_pb2.DispenseOutbound) -> str:
    lots = _some(f"{lot.drug_code} x {lot.quantity} (lot {lot.lot_no})" for lot in payload.lots)
    codes = sum(len(lot.trace_codes) for lot in payload.lots)
    return f"order {payload.order_no}: out {lots}; {codes} trace codes; sale {payload.sale_no}"


def _handed_over(payload: events_pb2.HandedOver) -> str:
    return f"order {payload.order_no}: handed over, {'voucher shown' if payload.voucher_key else 'no voucher shown'}"


def _sold(payload: events_pb2.TraceCodeSold) -> str:
    return f"one pack of {payload.drug_code} sold by {payload.pharmacy_code}"


def _assigned(payload: events_pb2.DeliveryAssigned) -> str:
    cold = ", cold chain" if payload.cold_chain else ""
    return f"order {payload.order_no}: courier {payload.courier_code}{cold}"


def _delivery(what: str) -> Callable[[Any], str]:
    return lambda payload: f"order {payload.order_no}: {what} at {_time(payload.at_ms)}"


def _delivered(payload: events_pb2.DeliverySigned) -> str:
    return f"order {payload.order_no}: signed for, proven by {'sign-for code' if payload.by_sign_code else 'voucher'}"


def _tried(payload: events_pb2.DeliveryTryCounted) -> str:
    return f"order {payload.order_no}: wrong sign-for code{', now locked' if payload.locked else ''}"


def _kept_as(payload: events_pb2.ContentErased) -> str:
    return f"as {_word(registry_pb2.RetentionClass, payload.retention_class, 'RETENTION_CLASS_')}"


_LINES: Final[Mapping[str, Callable[[Any], str]]] = {
    "ledger.opened": lambda p: f"ledger {p.origin} opened, {p.digest}, format {p.format_version}",
    "hub_key.registered": lambda p: f"{p.key.purpose} key {p.key.key_id} of {p.key.hub_id}",
    "certificate.revoked": lambda p: f"revoked {f'key {p.key_id}' if p.key_id else _digest(p.certificate_sha256)}",
    "catalogue.imported": lambda p: f"edition {p.edition.edition} with {p.edition.rows} rows",
    "institution.registered": lambda p: f"institution {p.institution.institution_code}",
    "agreement.signed": _agreement,
    "agreement.suspended": _agreement_now("suspended"),
    "agreement.resumed": _agreement_now("resumed"),
    "agreement.terminated": _agreement_now("terminated"),
    "practitioner.registered": lambda p: f"practitioner {p.practitioner.practitioner_code}",
    "practitioner.suspended": _says("practitioner suspended"),
    "practitioner.resumed": _says("practitioner resumed"),
    "practitioner.terminated": _says("practitioner ended"),
    "signing_key.registered": lambda p: f"{p.key.suite} key {p.key.key_id} of {p.key.subject_code}",
    "person.registered": _says("person registered"),
    "content.erased": lambda p: f"content erased, kept until {_time(p.kept_until_ms)} {_kept_as(p)}",
    "person.status_changed": lambda p: f"person {_word(registry_pb2.PersonStatus, p.status, 'PERSON_STATUS_')}",
    "person.voucher_activated": lambda p: f"voucher activated on channel {p.channel_id}",
    "person.voucher_deactivated": lambda p: f"voucher deactivated on channel {p.channel_id}",
    "voucher.issued": _issued,
    "voucher.verified": _verified,
    "voucher.try_counted": lambda p: f"refused decode by {p.institution_code}: {p.refusal_code}",
    "voucher.expired": _says("voucher code expired"),
    "voucher.revoked": _says("voucher code revoked"),
    "account.opened": _says("account opened"),
    "account.debited": _moved("debited"),
    "account.restored": _moved("restored"),
    "encounter.registered": _registered,
    "encounter.started": lambda p: f"consultation begun by {p.doctor_code}",
    "encounter.doctor_attested": lambda p: f"doctor attested at {_time(p.attested_at_ms)}",
    "encounter.revisit_proven": lambda p: f"follow-up of {p.disease_code} proven, earlier at {p.earlier_hospital_code}",
    "diagnosis.recorded": _diagnosed,
    "diagnosis.amended": _diagnosed,
    "encounter.closed": _says("encounter closed"),
    "encounter.cancelled": _says("encounter cancelled"),
    "prescription.prechecked": _prechecked,
    "prescription.rule_warned": _warned,
    "prescription.override_recorded": lambda p: f"{p.acknowledgement.code} acknowledged by the doctor",
    "prescription.hospital_reviewed": lambda p: f"hospital review by {p.pharmacist_code}",
    "prescription.signed": lambda p: f"signed by {p.doctor_code}, digest {_digest(p.prescription_sha256)}",
    "prescription.uploaded": _uploaded,
    "prescription.effective": lambda p: f"in force until {_time(p.valid_until_ms)}",
    "prescription.undo_requested": lambda p: f"withdrawal requested by {p.doctor_code}",
    "prescription.undone": lambda p: f"withdrawn by {p.doctor_code}",
    "prescription.expired": _says("validity over"),
    "prescription.exhausted": _says("nothing left to dispense"),
    "prescription.frozen": lambda p: f"frozen under case {p.case_no}",
    "prescription.unfrozen": lambda p: f"unfrozen under case {p.case_no}",
    "prescription.renewed": lambda p: f"renews {p.renews_rx_no}",
    "prescription.used": lambda p: "used in part" if p.partial else "used up",
    "authorization.qr_issued": lambda p: f"QR value until {_time(p.expires_at_ms)}",
    "authorization.issued": _authorized,
    "authorization.consumed": _says("authorisation used for a download"),
    "authorization.expired": _says("authorisation expired"),
    "authorization.revoked": _says("authorisation revoked"),
    "order.created": _created,
    "order.routed": lambda p: f"routed to {p.pharmacy_code}",
    "order.held": lambda p: f"order {p.order_no}: held until {_time(p.hold_until_ms)}",
    "order.released": _order("released"),
    "order.cancelled": _order("cancelled by the patient"),
    "order.expired": _ended_by_time,
    "order.completed": _order("completed"),
    "prescription.downloaded": lambda p: f"order {p.order_no}: downloaded by {p.pharmacy_code}",
    "review.passed": _reviewed("passed"),
    "review.rejected": _reviewed("not passed"),
    "review.returned_to_doctor": _reviewed("returned to the doctor"),
    "settlement.quoted": _claim("quoted"),
    "settlement.quote_expired": lambda p: f"order {p.order_no}: quote {p.quote_id} lapsed",
    "settlement.committed": _claim("settled"),
    "settlement.self_paid": _claim("paid by the patient"),
    "settlement.undone": _undone,
    "settlement.reversed": _reversed,
    "dispense.ready": _order("ready to dispense"),
    "dispense.picked": lambda p: f"order {p.order_no}: picked by {p.dispenser_code}",
    "dispense.checked": lambda p: f"order {p.order_no}: checked by {p.checker_code}",
    "dispense.outbound": _outbound,
    "dispense.voided": _order("dispensing voided"),
    "dispense.handed_over": _handed_over,
    "trace_code.sold": _sold,
    "delivery.requested": lambda p: f"order {p.order_no}: delivery {p.delivery_no} requested",
    "delivery.sign_code_renewed": _order("new sign-for code"),
    "delivery.try_counted": _tried,
    "delivery.assigned": _assigned,
    "delivery.picked_up": _delivery("picked up by the courier"),
    "delivery.in_transit": _delivery("on the way"),
    "delivery.arrived": _delivery("arrived"),
    "delivery.signed": _delivered,
    "delivery.refused": _delivery("refused at the door"),
    "delivery.lost": _delivery("lost"),
    "delivery.returning": _delivery("going back"),
    "delivery.returned": _delivery("back at the pharmacy"),
    "delivery.cancelled": _order("delivery cancelled"),
    "audit.read": lambda p: f"{p.caller_kind} read {len(p.targets)} records",
    "command.refused": lambda p: f"{p.method} refused: {p.code}",
    "voucher.rejected": lambda p: f"{p.method} refused: {p.code}",
    "prescription.rule_blocked": lambda p: f"{p.method} refused: {p.code}",
    "trace_code.duplicate_detected": lambda p: f"{p.method} refused: {p.code}",
    "access.budget_exceeded": lambda p: f"{p.count} further accesses counted only",
}
