"""Decisions by which a pharmacy comes to hold a prescription: list, resolve, download, release, review.

Owns the authorisation, the exclusive hold and the pharmacist's review. It never moves money or goods, and it never lets
a secret into an event: authorisation numbers and tokens leave in the reply, the events carry their keyed hashes.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from typing import Final

from erxhub.core import guards, orders
from erxhub.core.consequences import after_hold_ended, current, end_with_order, revoke_authorizations, statuses
from erxhub.core.fold_order import order_of
from erxhub.core.lifecycle import HOLDING, WITHDRAWABLE, Machine, Role, permits, triggers_exist
from erxhub.core.model import Accepted, Ahead, Command, Draft, Handler, LookAhead, Outcome, Refused, Target
from erxhub.core.orders import PRESCRIPTION, Seen
from erxhub.core.statuses import state_name
from erxhub.policy.pack import DAY_MS
from erxhub.policy.rules import Rules
from erxhub.v1 import common_pb2, dispensing_pb2, events_pb2, registry_pb2, signed_pb2, state_pb2

AUTHORIZATION_LENGTH: Final = 30
TOKEN_LENGTH: Final = 64
QR_LENGTH: Final = 27

PRESCRIPTIONS_LOOKED_AT: Final = 50
"""A list looks at a person's newest prescriptions only: validity is a matter of days, so an older one is over."""

PAGE_TOKEN_BYTES: Final = 16

_REVOKED: Final = frozenset({"REVOKED"})
_REPLACED: Final = "replaced"

_DECISIONS: Final[Mapping[int, tuple[str, str]]] = {
    signed_pb2.REVIEW_DECISION_PASS: ("pass", "review.passed"),
    signed_pb2.REVIEW_DECISION_REJECT: ("reject", "review.rejected"),
    signed_pb2.REVIEW_DECISION_RETURN_TO_DOCTOR: ("return to doctor", "review.returned_to_doctor"),
}
"""Trigger of the tables and event of each decision of a review."""


# ---- authorisation ----


def list_by_voucher(tx: Draft, command: Command) -> Outcome:
    """List what the person behind a voucher reference may have filled, each with a one-time number (X-10).

    Newest first: what is in force and not used up. Leaves, for each listed prescription, `authorization.revoked` for
    the caller's earlier authorisation and `authorization.issued`. A page token is good for this caller and this person.
    Refusals: INST_UNKNOWN, AGR_INACTIVE, VCH_*, PSN_INACTIVE, PAGE_TOKEN_INVALID.
    """
    request: dispensing_pb2.ListByVoucherRequest = command.request
    pharmacy = orders.at_counter(tx, command)
    if isinstance(pharmacy, Refused):
        return pharmacy
    rules = tx.rules(command.caller.area_code)
    business_type = rules.text("business_type_list_and_download")
    shown = guards.reference(tx, command, request.voucher_ref, (business_type,), "voucher_ref")
    if isinstance(shown, Refused):
        return shown
    person = guards.person_active(tx, shown.person_key)
    if isinstance(person, Refused):
        return person
    keys = tx.listing("person_rx", shown.person_key, PRESCRIPTIONS_LOOKED_AT)
    tx.want(streams=keys)
    if request.page.page_token:
        shown_before = _place_of(tx, command, shown.person_key, keys)
        if shown_before is None:
            about_person = (Target(shown.person_key, shown.person_key),)
            return Refused("PAGE_TOKEN_INVALID", field="page.page_token", targets=about_person)
        keys = keys[shown_before + 1 :]
    offered = [key for key in keys if _may_be_offered(current(tx, key))]
    page = offered[: request.page.page_size or PRESCRIPTIONS_LOOKED_AT]
    tx.want(names=[("institution", current(tx, key).content.hospital_code.encode()) for key in page])
    reply = dispensing_pb2.ListByVoucherResponse()
    for key in page:
        number = tx.draw.token(AUTHORIZATION_LENGTH)
        issued = _authorization(tx, rules, pharmacy, "authorization", number)
        issued.authorization.voucher_key = shown.voucher_key
        _authorize(tx, key, issued, causes=[tx.leaf(shown.voucher_key)])
        row = _offered(tx, key)
        row.authorization_no = number
        reply.prescriptions.append(row)
    if len(page) < len(offered):
        reply.next_page_token = _page_token(tx, command, shown.person_key, reply.prescriptions[-1].rx_no)
    return Accepted(reply, targets=tuple(Target(key, shown.person_key) for key in page))


def _ahead_of_list(command: Command) -> Ahead:
    voucher_ref = command.request.voucher_ref
    return Ahead((("institution", command.caller.id.encode()),), secrets=(("voucher_ref", voucher_ref),))


def _page_token(tx: Draft, command: Command, person_key: bytes, rx_no: str) -> str:
    """Stands for the last prescription shown, for this caller and person; it tells nothing and cannot be made up."""
    bound = f"{command.caller.actor}/{person_key.hex()}/{rx_no}"
    return tx.mac("list_page", bound)[:PAGE_TOKEN_BYTES].hex()


def _place_of(tx: Draft, command: Command, person_key: bytes, keys: list[bytes]) -> int | None:
    """The place in the list of the prescription that the request's page token stands for."""
    sent = command.request.page.page_token.encode()
    for place, key in enumerate(keys):
        if hmac.compare_digest(sent, _page_token(tx, command, person_key, current(tx, key).rx_no).encode()):
            return place
    return None


def _may_be_offered(rx: state_pb2.PrescriptionState) -> bool:
    return orders.is_in_force(rx) and triggers_exist(Machine.USE, state_name(Machine.USE, rx.use_status))


def resolve_qr(tx: Draft, command: Command) -> Outcome:
    """Turn a prescription QR value (27 characters, single use) into the prescription's token (X-11).

    Leaves `authorization.revoked` for the caller's earlier authorisation, and `authorization.issued`, which uses the
    value up. Refusals: INST_UNKNOWN, AGR_INACTIVE, QR_INVALID, PSN_INACTIVE, RX_ALREADY_USED, RX_NOT_EFFECTIVE.
    """
    request: dispensing_pb2.ResolveQrRequest = command.request
    has_length = len(request.rx_qr) == QR_LENGTH
    tx.want(
        names=[
            ("institution", command.caller.id.encode()),
            *(tx.secret_names("rx_qr", request.rx_qr) if has_length else ()),
        ]
    )
    pharmacy = orders.at_counter(tx, command)
    if isinstance(pharmacy, Refused):
        return pharmacy
    key = tx.find_secret("rx_qr", request.rx_qr) if has_length else None
    if key is None:
        return Refused("QR_INVALID", field="rx_qr")
    seen = Seen(key, current(tx, key), command.caller.id)
    live = [
        value.secret_mac
        for value in seen.rx.qr_values
        if not value.used
        and tx.now_ms <= value.expires_at_ms
        and tx.mac_matches("rx_qr", request.rx_qr, value.secret_mac)
    ]
    if not live:
        return seen.refuse("QR_INVALID", "rx_qr")
    # As after a download: a requested withdrawal stops the hold, not the look at the list.
    refused = orders.insured(tx, seen) or orders.fillable(seen, undo_stops=False)
    if refused is not None:
        return refused
    tx.want(names=[("institution", seen.rx.content.hospital_code.encode())])
    token = tx.draw.token(TOKEN_LENGTH)
    issued = _authorization(tx, tx.rules(command.caller.area_code), pharmacy, "rx_token", token)
    issued.authorization.is_token = True
    issued.qr_mac = live[0]
    _authorize(tx, key, issued)
    reply = dispensing_pb2.ResolveQrResponse(rx_token=token, prescription=_offered(tx, key))
    return Accepted(reply, targets=seen.targets)


def _authorization(
    tx: Draft, rules: Rules, pharmacy: state_pb2.InstitutionState, space: str, secret: str
) -> events_pb2.AuthorizationIssued:
    authorization = state_pb2.Authorization(
        pharmacy_code=pharmacy.institution_code,
        secret_mac=tx.mac(space, secret),
        expires_at_ms=tx.now_ms + rules.duration_ms("authorization_lifetime"),
    )
    return events_pb2.AuthorizationIssued(authorization=authorization, key_version=tx.mac_key_version)


def _authorize(
    tx: Draft, rx_key: bytes, issued: events_pb2.AuthorizationIssued, causes: list[bytes] | None = None
) -> None:
    """Replace the pharmacy's earlier authorisation by a new one."""
    revoke_authorizations(tx, rx_key, _REPLACED, issued.authorization.pharmacy_code)
    tx.emit(PRESCRIPTION, rx_key, "authorization.issued", issued, causes=causes or ())


def _offered(tx: Draft, rx_key: bytes) -> dispensing_pb2.OfferedPrescription:
    rx = current(tx, rx_key)
    hospital = guards.institution(tx, rx.content.hospital_code)
    return dispensing_pb2.OfferedPrescription(
        rx_no=rx.rx_no,
        hospital_code=rx.content.hospital_code,
        hospital_name="" if isinstance(hospital, Refused) else hospital.name,
        prescribed_at_ms=rx.content.prescribed_at_ms,
        valid_until_ms=rx.content.valid_until_ms,
        line_count=len(rx.content.lines),
        statuses=statuses(rx),
    )


# ---- download and hold ----


def download(tx: Draft, command: Command) -> Outcome:
    """Download a prescription and hold it exclusively; the holder may download again, which moves no deadline (X-22).

    Leaves `order.created` when the patient made no order here (presenting is choosing, P-09), `authorization.consumed`,
    `order.held` and `prescription.downloaded`. The engine attaches the uploaded bytes.
    Refusals, in this order: INPUT_MALFORMED (both proofs), AUTH_REQUIRED, INST_UNKNOWN, AGR_INACTIVE, AUTH_REUSED,
    PSN_INACTIVE, RX_ALREADY_USED, RX_NOT_EFFECTIVE, ORDER_ALREADY_HELD, ORDER_STEERING, RX_REFILL, RX_DUAL_CHANNEL.
    """
    request: dispensing_pb2.DownloadPrescriptionRequest = command.request
    if request.authorization_no and request.rx_token:
        return Refused("INPUT_MALFORMED", field="rx_token")
    if not request.authorization_no and not request.rx_token:
        return Refused("AUTH_REQUIRED", field="authorization_no")
    field, space, secret = (
        ("authorization_no", "authorization", request.authorization_no)
        if request.authorization_no
        else ("rx_token", "rx_token", request.rx_token)
    )
    tx.want(
        names=[("institution", command.caller.id.encode()), *tx.secret_names(space, secret)], streams=[tx.ledger_key]
    )
    key = tx.find_secret(space, secret)
    seen = Seen(key, current(tx, key), command.caller.id) if key is not None else None
    pharmacy = orders.at_counter(tx, command)
    if isinstance(pharmacy, Refused):
        return guards.about(pharmacy, *(seen.targets if seen else ()))
    if seen is None:
        return Refused("AUTH_REUSED", field=field)
    authorization = _own_authorization(tx, seen, space, secret)
    if authorization is None:
        return Refused("AUTH_REUSED", field=field, targets=seen.targets)
    rules = tx.rules(command.caller.area_code)
    refused = (
        orders.insured(tx, seen, with_drugs=True)
        # A requested withdrawal stops a new hold; the holder has his already, and it does not move.
        or orders.fillable(seen, undo_stops=seen.held_order() is None)
        or _held_elsewhere(seen)
        or _steered(seen, rules)
        or _too_early(tx, seen)
        or _not_listed(tx, seen, pharmacy)
    )
    if refused is not None:
        return refused
    return _held(tx, seen, pharmacy, authorization.secret_mac, rules)


def _own_authorization(tx: Draft, seen: Seen, space: str, secret: str) -> state_pb2.Authorization | None:
    """The caller's authorisation behind the secret: a live one, or one that ended together with the prescription.

    The second kind lets its pharmacy hear what became of the prescription that it was shown (RX_NOT_EFFECTIVE,
    RX_ALREADY_USED) and opens nothing.
    """
    own = [held for held in seen.rx.authorizations if held.pharmacy_code == seen.pharmacy_code]
    for place, held in enumerate(own):
        if held.is_token == (space == "rx_token") and tx.mac_matches(space, secret, held.secret_mac):
            revoked = state_name(Machine.AUTHORIZATION, held.status) in _REVOKED
            ended_with_it = (
                revoked
                and place == len(own) - 1
                and tx.now_ms <= held.expires_at_ms
                and not orders.is_in_force(seen.rx)
            )
            return held if orders.is_issued(held) or ended_with_it else None
    return None


def _held_elsewhere(seen: Seen) -> Refused | None:
    for order in seen.rx.orders:
        status = orders.order_status(order)
        if status not in HOLDING:
            continue
        if order.pharmacy_code == seen.pharmacy_code:
            if permits(Machine.ORDER, status, "download again", Role.PHARMACY):
                return None
            return seen.refuse("RX_ALREADY_USED", "rx_no", order=order)
        # A settled order has no end of its hold to wait for.
        detail = {"hold_until_ms": str(order.hold_until_ms)} if status in WITHDRAWABLE else {}
        return seen.refuse("ORDER_ALREADY_HELD", "rx_no", detail=detail)
    return None


def _created(seen: Seen) -> state_pb2.Order | None:
    """The order of the caller that waits for its download."""
    for order in seen.own_orders():
        if permits(Machine.ORDER, orders.order_status(order), "download and hold", Role.PHARMACY):
            return order
    return None


def _steered(seen: Seen, rules: Rules) -> Refused | None:
    """After two lapsed holds (X-22), or as many orders as one prescription bears, the patient has to order himself."""
    if seen.held_order() is not None:
        return None
    waiting = _created(seen)
    if waiting is not None and waiting.by_patient:
        return None
    lapsed = sum(held.count for held in seen.rx.lapsed if held.pharmacy_code == seen.pharmacy_code)
    if lapsed >= rules.integer("lapsed_holds_max"):
        return seen.refuse("ORDER_STEERING", "rx_no", detail={"lapsed_holds": str(lapsed)})
    made = sum(not order.by_patient for order in seen.own_orders())
    if made >= rules.integer("orders_max"):
        return seen.refuse("ORDER_STEERING", "rx_no", detail={"orders": str(made)})
    return None


def _too_early(tx: Draft, seen: Seen) -> Refused | None:
    """A further repeat begins only after the interval that the doctor set (X-12)."""
    rx = seen.rx
    # Nothing of the running fill is out: what is out, if anything, are whole fills.
    begins_fill = all(orders.remaining_e4(rx, use) in (0, use.prescribed_e4) for use in rx.lines)
    last_out_at_ms = max((order.dispense.out_at_ms for order in rx.orders), default=0)
    if seen.held_order() is not None or not last_out_at_ms or not begins_fill or rx.fills_allowed <= 1:
        return None
    not_before_ms = last_out_at_ms + rx.content.repeat_interval_days * DAY_MS
    if tx.now_ms >= not_before_ms:
        return None
    return seen.refuse("RX_REFILL", "rx_no", detail={"not_before_ms": str(not_before_ms)})


def _not_listed(tx: Draft, seen: Seen, pharmacy: state_pb2.InstitutionState) -> Refused | None:
    """A dual-channel drug goes out only where the agreement says so (P-17)."""
    drugs = orders.drugs_of(tx, [line.drug_code for line in seen.rx.content.lines])
    if not any(drug.dual_channel for drug in drugs.values()):
        return None
    refused = guards.agreement(tx, pharmacy, registry_pb2.AGREEMENT_KIND_DUAL_CHANNEL)
    return guards.about(refused, *seen.targets) if refused else None


def _held(tx: Draft, seen: Seen, pharmacy: state_pb2.InstitutionState, secret_mac: bytes, rules: Rules) -> Accepted:
    """Create the order where needed, use the authorisation up, hold, and say what was downloaded."""
    key, code = seen.key, pharmacy.institution_code
    again, waiting = seen.held_order(), _created(seen)
    order = again or waiting
    order_no = order.order_no if order is not None else orders.new_number(tx, pharmacy.area_code)
    hold_until_ms = min(tx.now_ms + rules.duration_ms("hold"), seen.rx.content.valid_until_ms)
    if again is not None:
        hold_until_ms = again.hold_until_ms
    elif waiting is None:
        created = events_pb2.OrderCreated(
            order_no=order_no, pharmacy_code=code, mode=common_pb2.FULFILMENT_MODE_PICKUP, by_patient=False
        )
        tx.emit(PRESCRIPTION, key, "order.created", created)
    is_first = again is None
    tx.emit(PRESCRIPTION, key, "authorization.consumed", events_pb2.AuthorizationConsumed(secret_mac=secret_mac))
    if is_first:
        held = events_pb2.OrderHeld(order_no=order_no, hold_until_ms=hold_until_ms)
        tx.emit(PRESCRIPTION, key, "order.held", held)
    downloaded = events_pb2.PrescriptionDownloaded(pharmacy_code=code, order_no=order_no)
    tx.emit(PRESCRIPTION, key, "prescription.downloaded", downloaded)
    after = current(tx, key)
    reply = dispensing_pb2.DownloadPrescriptionResponse(
        rx_no=after.rx_no,
        hold_until_ms=hold_until_ms,
        statuses=statuses(after),
        remaining=[
            dispensing_pb2.RemainingLine(
                line_no=use.line_no, quantity=orders.quantity_text(orders.remaining_e4(after, use))
            )
            for use in after.lines
        ],
        mode=order_of(after, order_no).mode,
    )
    return Accepted(reply, targets=seen.targets, attach_upload=key)


# ---- release ----


def release(tx: Draft, command: Command) -> Outcome:
    """Give an order back before settlement (释放), with its hold if it has one. Leaves `order.released`.

    A requested withdrawal takes effect then (`prescription.undone`). A suspended agreement does not stand in the way.
    Refusals: INST_UNKNOWN, RX_UNKNOWN, ORDER_HOLD_LOST, RX_ALREADY_USED (settled: undo, or dispense).
    """
    request: dispensing_pb2.ReleaseOrderRequest = command.request
    orders.want(tx, command, request.rx_no)
    step = orders.finishing(tx, command, request.rx_no)
    if isinstance(step, Refused):
        return step
    seen = step.seen
    order = seen.held_order() or _created(seen)
    if order is None:
        return seen.refuse("ORDER_HOLD_LOST", "rx_no")
    if not permits(Machine.ORDER, orders.order_status(order), "release", Role.PHARMACY):
        return seen.refuse("RX_ALREADY_USED", "rx_no", order=order)
    _release(tx, seen, order, request.reason)
    reply = dispensing_pb2.ReleaseOrderResponse(statuses=statuses(current(tx, seen.key)))
    return Accepted(reply, targets=seen.targets)


def _release(tx: Draft, seen: Seen, order: state_pb2.Order, reason: str, actor: str = "") -> None:
    order_no, was_held = order.order_no, orders.order_status(order) in HOLDING
    end_with_order(tx, seen.key, order_no, "order released")
    released = events_pb2.OrderReleased(order_no=order_no, reason=reason)
    tx.emit(PRESCRIPTION, seen.key, "order.released", released, actor=actor)
    if was_held:
        after_hold_ended(tx, seen.key)


# ---- review ----


def review(tx: Draft, command: Command) -> Outcome:
    """Record the review of the pharmacy's pharmacist (审方, P-21): pass, reject, or return to the doctor.

    Leaves `review.passed`, or the other event with `order.released`: the hold ends and another pharmacy may be tried. A
    requested withdrawal does not stop a review, because a review that is not passed lets it take effect.
    Refusals: SIG_*, INPUT_MALFORMED, INST_CODE, INST_IMPERSONATION, INST_UNKNOWN, AGR_INACTIVE, RX_UNKNOWN,
    PSN_INACTIVE, REVIEW_PHARMACIST, RX_TIME, RX_ALREADY_USED, RX_NOT_EFFECTIVE, ORDER_HOLD_LOST, REVIEW_INVALID.
    """
    claim = orders.claimed(command, signed_pb2.ReviewStatement)
    if isinstance(claim, Refused):
        return claim
    reviewer = claim.pharmacist_code
    step = orders.forward(tx, command, claim.rx_no)
    if isinstance(step, Refused):
        return step
    seen = step.seen
    field = "statement.pharmacist_code"
    kinds = (registry_pb2.PRACTITIONER_KIND_PHARMACIST,)
    pharmacist = guards.practitioner(tx, reviewer, kinds, command.caller.id, "REVIEW_PHARMACIST", field)
    if isinstance(pharmacist, Refused):
        return guards.about(pharmacist, *seen.targets)
    if reviewer == seen.rx.content.doctor_code:
        return seen.refuse("REVIEW_PHARMACIST", field)
    proven = guards.signed(tx, command, "statement", signed_pb2.ReviewStatement, reviewer, command.caller.id)
    if isinstance(proven, Refused):
        return guards.about(proven, *seen.targets)
    order = orders.fillable(seen, undo_stops=False) or orders.holding(seen)
    if isinstance(order, Refused):
        return order
    trigger, event = _DECISIONS[proven.decision]
    refused = _review_fault(tx, seen, order, proven, trigger)
    if refused is not None:
        return refused
    order_no = order.order_no
    given = events_pb2.ReviewGiven(
        order_no=order_no, pharmacist_code=reviewer, opinion=proven.opinion, statement=command.request.statement
    )
    tx.emit(PRESCRIPTION, seen.key, event, given, actor=reviewer)
    after = current(tx, seen.key)
    decided = order_of(after, order_no)
    result = decided.review
    if permits(Machine.ORDER, orders.order_status(decided), "review not passed", Role.PHARMACIST):
        _release(tx, seen, decided, event, actor=reviewer)
        after = current(tx, seen.key)
    reply = dispensing_pb2.ReviewPrescriptionResponse(statuses=statuses(after), review=result)
    return Accepted(reply, targets=seen.targets)


def _ahead_of_review(command: Command) -> Ahead:
    claim = orders.claimed(command, signed_pb2.ReviewStatement)
    if isinstance(claim, Refused):
        return Ahead()
    reviewer = ("practitioner", claim.pharmacist_code.encode())
    return orders.ahead(command, claim.rx_no, [reviewer, *orders.key_names(command)])


def _review_fault(
    tx: Draft, seen: Seen, order: state_pb2.Order, statement: signed_pb2.ReviewStatement, trigger: str
) -> Refused | None:
    reviewed = state_name(Machine.REVIEW, order.review)
    if not permits(Machine.REVIEW, reviewed, trigger, Role.PHARMACIST):
        return seen.refuse("REVIEW_INVALID", "statement.decision", order=order, detail={"review": reviewed})
    if not statement.opinion.strip():
        return seen.refuse("REVIEW_INVALID", "statement.opinion", order=order)
    if not order.downloaded_at_ms <= statement.signed_at_ms <= tx.now_ms:
        detail = {"downloaded_at_ms": str(order.downloaded_at_ms)}
        return seen.refuse("REVIEW_INVALID", "statement.signed_at_ms", order=order, detail=detail)
    if statement.prescription_sha256 != seen.rx.prescription_sha256:
        return seen.refuse("SIG_INVALID", "statement.prescription_sha256", order=order)
    return None


HANDLERS: Final[Mapping[str, Handler]] = {
    "DispensingService/ListByVoucher": list_by_voucher,
    "DispensingService/ResolveQr": resolve_qr,
    "DispensingService/DownloadPrescription": download,
    "DispensingService/ReleaseOrder": release,
    "DispensingService/ReviewPrescription": review,
}

LOOK_AHEADS: Final[Mapping[str, LookAhead]] = {
    "DispensingService/ListByVoucher": _ahead_of_list,
    "DispensingService/ReviewPrescription": _ahead_of_review,
}
