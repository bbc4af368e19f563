"""What events do to a prescription and its authorisations.

Owns what is in force and what is left to use; what happens at a pharmacy is in fold_order. It never decides or refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from erxhub.core import lifecycle
from erxhub.core.claim_arithmetic import parse_quantity_e4
from erxhub.core.events import At, Folds
from erxhub.core.lifecycle import BEFORE_HOLD, Machine
from erxhub.core.statuses import move, number_of, state_name
from erxhub.v1 import common_pb2, events_pb2, state_pb2


def _move_rx(state: state_pb2.PrescriptionState, event: str) -> None:
    state.rx_status = common_pb2.RxStatus.ValueType(move(Machine.RX, state.rx_status, event))


def move_use(state: state_pb2.PrescriptionState, event: str) -> None:
    """Move what is left to use; a hold that ends without goods leaves it as it was before."""
    after = lifecycle.advance(Machine.USE, state_name(Machine.USE, state.use_status), event)
    number = state.use_before_hold if after == BEFORE_HOLD else number_of(Machine.USE, after)
    state.use_status = common_pb2.RxUseStatus.ValueType(number)


def _prechecked(state: state_pb2.PrescriptionState, payload: events_pb2.PrescriptionPrechecked, at: At) -> None:
    _move_rx(state, "prescription.prechecked")
    state.rx_no = payload.rx_no
    state.rx_trace_code = payload.rx_trace_code
    state.content.CopyFrom(payload.content)
    state.encounter_key = payload.encounter_key
    state.person_key = payload.person_key
    state.fills_allowed = payload.fills_allowed
    state.prechecked_at_ms = at.recorded_at_ms
    for line in payload.content.lines:
        use = state.lines.add()
        use.line_no = line.line_no
        use.prescribed_e4 = parse_quantity_e4(line.quantity)


def _hospital_reviewed(state: state_pb2.PrescriptionState, payload: events_pb2.HospitalReviewed, at: At) -> None:
    _move_rx(state, "prescription.hospital_reviewed")
    state.reviewed = True
    state.hospital_reviewer_code = payload.pharmacist_code


def _signed(state: state_pb2.PrescriptionState, payload: events_pb2.PrescriptionSigned, at: At) -> None:
    _move_rx(state, "prescription.signed")
    state.prescription_sha256 = payload.prescription_sha256


def _uploaded(state: state_pb2.PrescriptionState, payload: events_pb2.PrescriptionUploaded, at: At) -> None:
    state.uploaded_version = at.version
    state.trace_code_used = True
    state.file_sha256 = payload.file_sha256
    state.file_media_type = payload.file_media_type


def _effective(state: state_pb2.PrescriptionState, payload: Any, at: At) -> None:
    _move_rx(state, "prescription.effective")
    move_use(state, "prescription.effective")


def _undo_requested(state: state_pb2.PrescriptionState, payload: events_pb2.UndoRequested, at: At) -> None:
    _move_rx(state, "prescription.undo_requested")
    state.undo_requested = True
    state.undo_doctor_code = payload.doctor_code
    state.undo_reason = payload.reason


def _undone(state: state_pb2.PrescriptionState, payload: events_pb2.PrescriptionUndone, at: At) -> None:
    _move_rx(state, "prescription.undone")
    state.undo_requested = False
    state.undo_doctor_code = payload.doctor_code
    state.undo_reason = payload.reason


def _rx_moved(event: str) -> Callable[[Any, Any, At], None]:
    def fold(state: state_pb2.PrescriptionState, payload: Any, at: At) -> None:
        _move_rx(state, event)

    return fold


def _frozen(state: state_pb2.PrescriptionState, payload: events_pb2.PrescriptionFrozen, at: At) -> None:
    _move_rx(state, "prescription.frozen")
    state.case_no = payload.case_no


def _used(state: state_pb2.PrescriptionState, payload: events_pb2.PrescriptionUsed, at: At) -> None:
    move_use(state, "prescription.used partial" if payload.partial else "prescription.used")


# ---- authorisation ----


def _qr_issued(state: state_pb2.PrescriptionState, payload: events_pb2.QrIssued, at: At) -> None:
    # Only values that can still be used are kept, so that the state does not grow with every value made.
    live = [value for value in state.qr_values if not value.used and value.expires_at_ms >= at.recorded_at_ms]
    del state.qr_values[:]
    state.qr_values.extend(live)
    added = state.qr_values.add()
    added.secret_mac = payload.secret_mac
    added.expires_at_ms = payload.expires_at_ms


def _authorization_issued(state: state_pb2.PrescriptionState, payload: events_pb2.AuthorizationIssued, at: At) -> None:
    for value in state.qr_values:
        if payload.qr_mac and value.secret_mac == payload.qr_mac:
            value.used = True
    issued = [
        held
        for held in state.authorizations
        if lifecycle.triggers_exist(Machine.AUTHORIZATION, state_name(Machine.AUTHORIZATION, held.status))
    ]
    del state.authorizations[:]
    state.authorizations.extend(issued)
    added = state.authorizations.add()
    added.CopyFrom(payload.authorization)
    added.status = state_pb2.AuthorizationStatus.ValueType(move(Machine.AUTHORIZATION, 0, "authorization.issued"))


def _authorization_moved(event: str) -> Callable[[Any, Any, At], None]:
    def fold(state: state_pb2.PrescriptionState, payload: Any, at: At) -> None:
        held = next(held for held in state.authorizations if held.secret_mac == payload.secret_mac)
        held.status = state_pb2.AuthorizationStatus.ValueType(move(Machine.AUTHORIZATION, held.status, event))

    return fold


# ---- erasure ----


def _prescription_erased(state: state_pb2.PrescriptionState, payload: events_pb2.ContentErased, at: At) -> None:
    """What stays is whose it was to handle and how each part ended; the statuses are unchanged."""
    state.CopyFrom(
        state_pb2.PrescriptionState(
            rx_no=state.rx_no,
            rx_status=state.rx_status,
            use_status=state.use_status,
            content=common_pb2.Prescription(hospital_code=state.content.hospital_code),
            orders=[
                state_pb2.Order(
                    order_no=order.order_no,
                    pharmacy_code=order.pharmacy_code,
                    status=order.status,
                    review=order.review,
                    claim=state_pb2.Claim(status=order.claim.status),
                    dispense=state_pb2.DispenseRecord(status=order.dispense.status),
                    delivery=state_pb2.DeliveryRecord(status=order.delivery.status),
                )
                for order in state.orders
            ],
            erased_version=at.version,
        )
    )


FOLDS: Final[Folds] = {
    ("prescription", "content.erased"): _prescription_erased,
    ("prescription", "prescription.prechecked"): _prechecked,
    ("prescription", "prescription.hospital_reviewed"): _hospital_reviewed,
    ("prescription", "prescription.signed"): _signed,
    ("prescription", "prescription.uploaded"): _uploaded,
    ("prescription", "prescription.effective"): _effective,
    ("prescription", "prescription.undo_requested"): _undo_requested,
    ("prescription", "prescription.undone"): _undone,
    ("prescription", "prescription.expired"): _rx_moved("prescription.expired"),
    ("prescription", "prescription.exhausted"): _rx_moved("prescription.exhausted"),
    ("prescription", "prescription.frozen"): _frozen,
    ("prescription", "prescription.unfrozen"): _rx_moved("prescription.unfrozen"),
    ("prescription", "prescription.used"): _used,
    ("prescription", "authorization.qr_issued"): _qr_issued,
    ("prescription", "authorization.issued"): _authorization_issued,
    ("prescription", "authorization.consumed"): _authorization_moved("authorization.consumed"),
    ("prescription", "authorization.expired"): _authorization_moved("authorization.expired"),
    ("prescription", "authorization.revoked"): _authorization_moved("authorization.revoked"),
}
