"""THE table of event types: number, name, stage, flow, stream kind and payload message.

Owns the numbers, and what stands beside an event when it is folded. A number is stable and never used again; a new
event takes a new one. A name with a second word ("prescription.used partial") never exists here: that form belongs to
the transition tables, which tell two outcomes of one event apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from google.protobuf.message import Message

from erxhub.v1 import audit_pb2, events_pb2

INFORMATION: Final = audit_pb2.FLOW_INFORMATION
FUND: Final = audit_pb2.FLOW_FUND
GOODS: Final = audit_pb2.FLOW_GOODS

_DIAGNOSIS: Final = audit_pb2.STAGE_DIAGNOSIS
_PRESCRIPTION: Final = audit_pb2.STAGE_PRESCRIPTION
_TRANSACTION: Final = audit_pb2.STAGE_TRANSACTION
_DELIVERY: Final = audit_pb2.STAGE_DELIVERY
_NONE: Final = audit_pb2.STAGE_UNSPECIFIED


@dataclass(frozen=True, slots=True)
class EventType:
    """One kind of entry. `stream_kinds` names the streams in which it may live."""

    number: int
    name: str
    stage: audit_pb2.Stage.ValueType
    flow: audit_pb2.Flow.ValueType
    stream_kinds: tuple[str, ...]
    payload: type[Message]


def _type(
    number: int,
    name: str,
    stage: audit_pb2.Stage.ValueType,
    flow: audit_pb2.Flow.ValueType,
    stream_kinds: str,
    payload: type[Message],
) -> EventType:
    return EventType(number, name, stage, flow, tuple(stream_kinds.split("|")), payload)


_E = events_pb2
_RX = "prescription"

EVENT_TYPES: Final[tuple[EventType, ...]] = (
    # ledger
    _type(0x0101, "ledger.opened", _NONE, INFORMATION, "ledger", _E.LedgerOpened),
    _type(0x0102, "hub_key.registered", _NONE, INFORMATION, "ledger", _E.HubKeyRegistered),
    _type(0x0103, "certificate.revoked", _NONE, INFORMATION, "ledger", _E.CertificateRevoked),
    _type(0x0104, "catalogue.imported", _NONE, INFORMATION, "ledger", _E.CatalogueImported),
    # registry
    _type(0x0111, "institution.registered", _NONE, INFORMATION, "institution", _E.InstitutionRegistered),
    _type(0x0112, "agreement.signed", _NONE, INFORMATION, "institution", _E.AgreementSigned),
    _type(0x0113, "agreement.suspended", _NONE, INFORMATION, "institution", _E.AgreementChanged),
    _type(0x0114, "agreement.resumed", _NONE, INFORMATION, "institution", _E.AgreementChanged),
    _type(0x0115, "agreement.terminated", _NONE, INFORMATION, "institution", _E.AgreementChanged),
    _type(0x0116, "practitioner.registered", _NONE, INFORMATION, "practitioner", _E.PractitionerRegistered),
    _type(0x0117, "practitioner.suspended", _NONE, INFORMATION, "practitioner", _E.PractitionerChanged),
    _type(0x0118, "practitioner.resumed", _NONE, INFORMATION, "practitioner", _E.PractitionerChanged),
    _type(0x0119, "practitioner.terminated", _NONE, INFORMATION, "practitioner", _E.PractitionerChanged),
    _type(0x011A, "signing_key.registered", _NONE, INFORMATION, "institution|practitioner", _E.SigningKeyRegistered),
    _type(0x011C, "person.registered", _NONE, INFORMATION, "person", _E.PersonRegistered),
    _type(0x011D, "person.status_changed", _NONE, INFORMATION, "person", _E.PersonStatusChanged),
    # erasure
    _type(0x0121, "content.erased", _NONE, INFORMATION, "voucher|account|encounter|prescription", _E.ContentErased),
    # e-voucher
    _type(0x0201, "person.voucher_activated", _DIAGNOSIS, INFORMATION, "person", _E.VoucherActivated),
    _type(0x0202, "person.voucher_deactivated", _DIAGNOSIS, INFORMATION, "person", _E.VoucherDeactivated),
    _type(0x0203, "voucher.issued", _DIAGNOSIS, INFORMATION, "voucher", _E.VoucherIssued),
    _type(0x0204, "voucher.verified", _DIAGNOSIS, INFORMATION, "voucher", _E.VoucherVerified),
    _type(0x0205, "voucher.try_counted", _DIAGNOSIS, INFORMATION, "voucher", _E.VoucherTryCounted),
    _type(0x0206, "voucher.expired", _DIAGNOSIS, INFORMATION, "voucher", _E.VoucherExpired),
    _type(0x0207, "voucher.revoked", _DIAGNOSIS, INFORMATION, "voucher", _E.VoucherRevoked),
    # account
    _type(0x0281, "account.opened", _NONE, FUND, "account", _E.AccountOpened),
    _type(0x0282, "account.debited", _TRANSACTION, FUND, "account", _E.AccountDebited),
    _type(0x0283, "account.restored", _TRANSACTION, FUND, "account", _E.AccountRestored),
    # encounter
    _type(0x0301, "encounter.registered", _DIAGNOSIS, INFORMATION, "encounter", _E.EncounterRegistered),
    _type(0x0302, "encounter.started", _DIAGNOSIS, INFORMATION, "encounter", _E.EncounterStarted),
    _type(0x0303, "encounter.doctor_attested", _DIAGNOSIS, INFORMATION, "encounter", _E.DoctorAttested),
    _type(0x0304, "encounter.revisit_proven", _DIAGNOSIS, INFORMATION, "encounter", _E.FollowUpProven),
    _type(0x0305, "diagnosis.recorded", _DIAGNOSIS, INFORMATION, "encounter", _E.DiagnosisRecorded),
    _type(0x0306, "diagnosis.amended", _DIAGNOSIS, INFORMATION, "encounter", _E.DiagnosisRecorded),
    _type(0x0307, "encounter.closed", _DIAGNOSIS, INFORMATION, "encounter", _E.EncounterClosed),
    _type(0x0308, "encounter.cancelled", _DIAGNOSIS, INFORMATION, "encounter", _E.EncounterCancelled),
    # prescription
    _type(0x0401, "prescription.prechecked", _PRESCRIPTION, INFORMATION, _RX, _E.PrescriptionPrechecked),
    _type(0x0402, "prescription.rule_warned", _PRESCRIPTION, INFORMATION, _RX, _E.RuleWarned),
    _type(0x0403, "prescription.override_recorded", _PRESCRIPTION, INFORMATION, _RX, _E.OverrideRecorded),
    _type(0x0404, "prescription.hospital_reviewed", _PRESCRIPTION, INFORMATION, _RX, _E.HospitalReviewed),
    _type(0x0405, "prescription.signed", _PRESCRIPTION, INFORMATION, _RX, _E.PrescriptionSigned),
    _type(0x0406, "prescription.uploaded", _PRESCRIPTION, INFORMATION, _RX, _E.PrescriptionUploaded),
    _type(0x0407, "prescription.effective", _PRESCRIPTION, INFORMATION, _RX, _E.PrescriptionEffective),
    _type(0x0408, "prescription.undo_requested", _PRESCRIPTION, INFORMATION, _RX, _E.UndoRequested),
    _type(0x0409, "prescription.undone", _PRESCRIPTION, INFORMATION, _RX, _E.PrescriptionUndone),
    _type(0x040A, "prescription.expired", _PRESCRIPTION, INFORMATION, _RX, _E.PrescriptionExpired),
    _type(0x040B, "prescription.exhausted", _PRESCRIPTION, INFORMATION, _RX, _E.PrescriptionExhausted),
    _type(0x040C, "prescription.frozen", _PRESCRIPTION, INFORMATION, _RX, _E.PrescriptionFrozen),
    _type(0x040D, "prescription.unfrozen", _PRESCRIPTION, INFORMATION, _RX, _E.PrescriptionUnfrozen),
    _type(0x040E, "prescription.renewed", _PRESCRIPTION, INFORMATION, _RX, _E.PrescriptionRenewed),
    _type(0x040F, "prescription.used", _TRANSACTION, INFORMATION, _RX, _E.PrescriptionUsed),
    # authorisation, order, review
    _type(0x0501, "authorization.qr_issued", _TRANSACTION, INFORMATION, _RX, _E.QrIssued),
    _type(0x0502, "authorization.issued", _TRANSACTION, INFORMATION, _RX, _E.AuthorizationIssued),
    _type(0x0503, "authorization.consumed", _TRANSACTION, INFORMATION, _RX, _E.AuthorizationConsumed),
    _type(0x0504, "authorization.expired", _TRANSACTION, INFORMATION, _RX, _E.AuthorizationExpired),
    _type(0x0505, "authorization.revoked", _TRANSACTION, INFORMATION, _RX, _E.AuthorizationRevoked),
    _type(0x0511, "order.created", _TRANSACTION, INFORMATION, _RX, _E.OrderCreated),
    _type(0x0512, "order.routed", _TRANSACTION, INFORMATION, _RX, _E.OrderRouted),
    _type(0x0513, "order.held", _TRANSACTION, INFORMATION, _RX, _E.OrderHeld),
    _type(0x0514, "order.released", _TRANSACTION, INFORMATION, _RX, _E.OrderReleased),
    _type(0x0515, "order.cancelled", _TRANSACTION, INFORMATION, _RX, _E.OrderCancelled),
    _type(0x0516, "order.expired", _TRANSACTION, INFORMATION, _RX, _E.OrderExpired),
    _type(0x0517, "order.completed", _DELIVERY, INFORMATION, _RX, _E.OrderCompleted),
    _type(0x0518, "prescription.downloaded", _TRANSACTION, INFORMATION, _RX, _E.PrescriptionDownloaded),
    _type(0x0521, "review.passed", _TRANSACTION, INFORMATION, _RX, _E.ReviewGiven),
    _type(0x0522, "review.rejected", _TRANSACTION, INFORMATION, _RX, _E.ReviewGiven),
    _type(0x0523, "review.returned_to_doctor", _TRANSACTION, INFORMATION, _RX, _E.ReviewGiven),
    # settlement
    _type(0x0601, "settlement.quoted", _TRANSACTION, FUND, _RX, _E.SettlementQuoted),
    _type(0x0602, "settlement.quote_expired", _TRANSACTION, FUND, _RX, _E.SettlementQuoteExpired),
    _type(0x0603, "settlement.committed", _TRANSACTION, FUND, _RX, _E.SettlementCommitted),
    _type(0x0604, "settlement.self_paid", _TRANSACTION, FUND, _RX, _E.SettlementSelfPaid),
    _type(0x0605, "settlement.undone", _TRANSACTION, FUND, _RX, _E.SettlementUndone),
    _type(0x0606, "settlement.reversed", _TRANSACTION, FUND, "prescription|institution", _E.SettlementReversed),
    # dispense
    _type(0x0701, "dispense.ready", _TRANSACTION, GOODS, _RX, _E.DispenseReady),
    _type(0x0702, "dispense.picked", _TRANSACTION, GOODS, _RX, _E.DispensePicked),
    _type(0x0703, "dispense.checked", _TRANSACTION, GOODS, _RX, _E.DispenseChecked),
    _type(0x0704, "dispense.outbound", _TRANSACTION, GOODS, _RX, _E.DispenseOutbound),
    _type(0x0705, "dispense.voided", _TRANSACTION, GOODS, _RX, _E.DispenseVoided),
    _type(0x0706, "dispense.handed_over", _DELIVERY, GOODS, _RX, _E.HandedOver),
    _type(0x0711, "trace_code.sold", _TRANSACTION, GOODS, "trace_code", _E.TraceCodeSold),
    # delivery
    _type(0x0801, "delivery.requested", _DELIVERY, GOODS, _RX, _E.DeliveryRequested),
    _type(0x0802, "delivery.sign_code_renewed", _DELIVERY, INFORMATION, _RX, _E.SignCodeRenewed),
    _type(0x0803, "delivery.try_counted", _DELIVERY, INFORMATION, _RX, _E.DeliveryTryCounted),
    _type(0x0804, "delivery.assigned", _DELIVERY, GOODS, _RX, _E.DeliveryAssigned),
    _type(0x0805, "delivery.picked_up", _DELIVERY, GOODS, _RX, _E.DeliveryMoved),
    _type(0x0806, "delivery.in_transit", _DELIVERY, GOODS, _RX, _E.DeliveryMoved),
    _type(0x0807, "delivery.arrived", _DELIVERY, GOODS, _RX, _E.DeliveryMoved),
    _type(0x0808, "delivery.signed", _DELIVERY, GOODS, _RX, _E.DeliverySigned),
    _type(0x0809, "delivery.refused", _DELIVERY, GOODS, _RX, _E.DeliveryMoved),
    _type(0x080A, "delivery.lost", _DELIVERY, GOODS, _RX, _E.DeliveryMoved),
    _type(0x080B, "delivery.returning", _DELIVERY, GOODS, _RX, _E.DeliveryMoved),
    _type(0x080C, "delivery.returned", _DELIVERY, GOODS, _RX, _E.DeliveryMoved),
    _type(0x080D, "delivery.cancelled", _DELIVERY, GOODS, _RX, _E.DeliveryCancelled),
    # accesses and refusals, in access streams
    _type(0x0F01, "audit.read", _NONE, INFORMATION, "access", _E.AccessRecorded),
    _type(0x0F02, "command.refused", _NONE, INFORMATION, "access", _E.CommandRefused),
    _type(0x0F03, "voucher.rejected", _DIAGNOSIS, INFORMATION, "access", _E.CommandRefused),
    _type(0x0F04, "prescription.rule_blocked", _PRESCRIPTION, INFORMATION, "access", _E.CommandRefused),
    _type(0x0F05, "trace_code.duplicate_detected", _TRANSACTION, GOODS, "access", _E.CommandRefused),
    _type(0x0F06, "access.budget_exceeded", _NONE, INFORMATION, "access", _E.AccessBudgetExceeded),
)

BY_NUMBER: Final[Mapping[int, EventType]] = MappingProxyType({event.number: event for event in EVENT_TYPES})
BY_NAME: Final[Mapping[str, EventType]] = MappingProxyType({event.name: event for event in EVENT_TYPES})


@dataclass(slots=True, init=False)
class At:
    """Where an event stands: its version in the stream, its instant (UTC ms), the request that caused it."""

    version: int
    recorded_at_ms: int
    request_id: str

    def __init__(self, version: int, recorded_at_ms: int, request_id: str) -> None:
        self.version = version
        self.recorded_at_ms = recorded_at_ms
        self.request_id = request_id


Folds = Mapping[tuple[str, str], Callable[[Any, Any, At], None]]
"""What an event does to a state, by kind of stream and event; called with state, payload and where it stands."""
