"""The agency's robots and the patient's own affairs: what is suspended, frozen, revoked, registered and activated."""

from __future__ import annotations

from typing import Any

from erxhub.core.model import Caller, CertifiedPeer, Evidence
from erxhub.v1 import registry_pb2, voucher_pb2
from tests.simulation import cast
from tests.simulation.cast import AGENCY, CHANNELS, HOSPITALS, OTHER_AGENCY, PHARMACIES, SHOPS, WARDS, Person
from tests.simulation.desk import LIST, VISIT, Desk, Journey
from tests.simulation.wire import Call

_ACTIVE = registry_pb2.AGREEMENT_STATUS_ACTIVE
_SUSPENDED = registry_pb2.AGREEMENT_STATUS_SUSPENDED


def _agency(desk: Desk, method: str, request: Any, caller: Caller = AGENCY, proven: Evidence | None = None) -> Call:
    return desk.call(caller, f"RegistryService/{method}", request, proven=proven)


def suspend(desk: Desk) -> Journey:
    """Something is suspended and, as a rule, resumed while other robots go on."""
    what = desk.chance.random()
    if what < 0.35:
        yield from _agreement(desk)
    elif what < 0.65:
        yield from _practitioner(desk)
    elif what < 0.85:
        yield from _insurance(desk)
    else:
        yield from _freeze(desk)


def _meanwhile(desk: Desk) -> Journey:
    """Some time in which the others go on: a counter somewhere is tried."""
    for _ in range(int(desk.chance.random() * 3)):
        shop = desk.shop()
        yield from desk.proof(shop.caller, desk.person(), LIST)


def _agreement(desk: Desk) -> Journey:
    place = desk.pick((*HOSPITALS, *PHARMACIES[:2]))
    kind = desk.pick((cast.BASE, cast.POOLING if place.kind == "pharmacy" else cast.INTERNET))

    def change(status: registry_pb2.AgreementStatus.ValueType, caller: Caller = AGENCY, **changes: Any) -> Call:
        fields: dict[str, Any] = {
            "institution_code": place.id,
            "kind": kind,
            "status": status,
            "case_no": "CASE-1",
        }
        request = registry_pb2.ChangeAgreementStatusRequest(**(fields | changes))
        return _agency(desk, "ChangeAgreementStatus", request, caller)

    answer = yield from desk.attempt(
        "office",
        lambda: change(_SUSPENDED),
        lambda: change(_SUSPENDED, OTHER_AGENCY),
        lambda: change(_SUSPENDED, case_no=" "),
        lambda: change(_SUSPENDED, etag="999"),
        lambda: change(_ACTIVE),
        lambda: change(_SUSPENDED, institution_code="P33010099109"),
    )
    if answer.ok and desk.maybe(0.85):
        yield from _meanwhile(desk)
        yield change(_ACTIVE)
        if desk.maybe(0.1):
            yield change(registry_pb2.AGREEMENT_STATUS_TERMINATED)
            number = f"again-{desk.number()}"
            lasts_ms = cast.DAY_MS if desk.maybe(0.5) else cast.YEAR_MS
            yield _agency(desk, "SignAgreement", cast.agreement(place, kind, number, desk.now_ms, lasts_ms))


def _practitioner(desk: Desk) -> Journey:
    ward, shop = desk.ward(), desk.shop()
    code = desk.pick((ward.doctor, ward.pharmacist, shop.pharmacist, shop.dispensers[0], shop.courier))

    def change(status: registry_pb2.PractitionerStatus.ValueType, caller: Caller = AGENCY, **changes: Any) -> Call:
        fields = {"practitioner_code": code, "status": status, "case_no": "CASE-2"} | changes
        request = registry_pb2.ChangePractitionerStatusRequest(**fields)
        return _agency(desk, "ChangePractitionerStatus", request, caller)

    suspended = registry_pb2.PRACTITIONER_STATUS_SUSPENDED
    answer = yield from desk.attempt(
        "office",
        lambda: change(suspended),
        lambda: change(suspended, OTHER_AGENCY),
        lambda: change(suspended, case_no=""),
        lambda: change(registry_pb2.PRACTITIONER_STATUS_ACTIVE),
        lambda: change(suspended, practitioner_code="NOBODY01"),
    )
    if answer.ok and desk.maybe(0.85):
        yield from _meanwhile(desk)
        yield change(registry_pb2.PRACTITIONER_STATUS_ACTIVE)
    elif answer.ok and desk.maybe(0.3):
        yield change(registry_pb2.PRACTITIONER_STATUS_TERMINATED)


def _insurance(desk: Desk) -> Journey:
    person = desk.person()

    def change(status: registry_pb2.PersonStatus.ValueType, caller: Caller = AGENCY, **changes: Any) -> Call:
        fields = {"person_no": person.number, "status": status, "reason": "示例"} | changes
        return _agency(desk, "ChangePersonStatus", registry_pb2.ChangePersonStatusRequest(**fields), caller)

    paused = registry_pb2.PERSON_STATUS_PAUSED
    answer = yield from desk.attempt(
        "office",
        lambda: change(paused),
        lambda: change(paused, OTHER_AGENCY),
        lambda: change(paused, reason=""),
        lambda: change(paused, person_no="33010000000099"),
        lambda: change(registry_pb2.PERSON_STATUS_ACTIVE),
    )
    if answer.ok and desk.maybe(0.9):
        yield from _meanwhile(desk)
        yield change(registry_pb2.PERSON_STATUS_ACTIVE)
    elif answer.ok and desk.maybe(0.3):
        yield change(registry_pb2.PERSON_STATUS_DEAD)


def _freeze(desk: Desk) -> Journey:
    if not desk.board.prescriptions:
        return
    rx = desk.pick(desk.board.prescriptions)

    def freeze(rx_no: str = rx.rx_no, caller: Caller = AGENCY) -> Call:
        request = registry_pb2.FreezePrescriptionRequest(rx_no=rx_no, case_no="CASE-3")
        return _agency(desk, "FreezePrescription", request, caller)

    def unfreeze() -> Call:
        request = registry_pb2.UnfreezePrescriptionRequest(rx_no=rx.rx_no, case_no="CASE-3")
        return _agency(desk, "UnfreezePrescription", request)

    answer = yield from desk.attempt(
        "office", freeze, unfreeze, lambda: freeze(caller=OTHER_AGENCY), lambda: freeze("330100" + "2" * 21)
    )
    if answer.ok and desk.maybe(0.8):
        yield from _meanwhile(desk)
        yield unfreeze()


def renew_key(desk: Desk) -> Journey:
    """A signing key is revoked; its owner gets another one, or goes on with the old one for a while."""
    ward, shop = desk.ward(), desk.shop()
    subject, place = desk.pick(
        (
            (ward.doctor, ward.caller),
            (ward.pharmacist, ward.caller),
            (ward.caller.id, ward.caller),
            (shop.pharmacist, shop.caller),
            (shop.caller.id, shop.caller),
        )
    )
    owner = desk.key_of(subject)

    def revoke(key_id: str = "", caller: Caller = AGENCY) -> Call:
        request = registry_pb2.RevokeCertificateRequest(
            key_id=key_id or cast.signing_key(owner).key_id, reason="示例吊销"
        )
        return _agency(desk, "RevokeCertificate", request, caller)

    fresh = f"{subject} key {desk.number()}"

    def register(**changes: Any) -> Call:
        request = cast.key_request(subject, place.id, desk.now_ms, fresh)
        for field, value in changes.items():
            setattr(request, field, value)
        return _agency(desk, "RegisterSigningKey", request)

    registered = yield from desk.attempt(
        "office",
        register,
        lambda: register(public_key=bytes(32)),
        lambda: register(suite="RSA"),
        lambda: register(valid_until_ms=1),
        lambda: register(subject_code="NOBODY01"),
        lambda: register(public_key=cast.signing_key(desk.key_of(SHOPS[0].pharmacist)).public_key),
    )
    answer = yield from desk.attempt("office", revoke, lambda: revoke(caller=OTHER_AGENCY), lambda: revoke("0" * 32))
    if answer.ok and desk.maybe(0.4):
        yield from desk.code(desk.person(), VISIT)
    if registered.ok and not desk.maybe(0.2):
        desk.board.keys[subject] = fresh
    if answer.ok and desk.maybe(0.3):
        yield revoke()


def register(desk: Desk) -> Journey:
    """Registrations: again, with other content, in another's area, and new ones."""
    number, now = desk.number(), desk.now_ms
    code = f"P3301009{number % 10_000:04d}"
    institution = registry_pb2.RegisterInstitutionRequest

    def sign(**changes: Any) -> Call:
        request = cast.agreement(PHARMACIES[2], cast.BASE, f"once-more-{number}", now)
        for field, value in changes.items():
            if field == "clauses":
                del request.clauses[:]
                request.clauses.extend(value)
            else:
                setattr(request, field, value)
        return _agency(desk, "SignAgreement", request)

    def enrol(person: Person, **changes: Any) -> Call:
        request = cast.person(person)
        for field, value in changes.items():
            setattr(request, field, value)
        return _agency(desk, "RegisterPerson", request)

    options = (
        lambda: _agency(desk, "RegisterInstitution", institution(institution_code=code, name="示例新店")),
        lambda: _agency(desk, "RegisterInstitution", institution(institution_code=PHARMACIES[0].id, name="别名")),
        lambda: _agency(desk, "RegisterInstitution", institution(institution_code=code, name="示例"), OTHER_AGENCY),
        lambda: _agency(desk, "RegisterInstitution", institution(institution_code="X", name="示例")),
        lambda: _agency(
            desk, "RegisterInstitution", institution(institution_code=code, name="示例", social_credit_code="1" * 18)
        ),
        sign,
        lambda: sign(clauses=["scope"]),
        lambda: sign(agreement_no=f"{HOSPITALS[0].id}-{cast.BASE}", kind=cast.POOLING),
        lambda: sign(valid_until_ms=1),
        lambda: sign(kind=cast.INTERNET),
        lambda: sign(etag="999"),
        lambda: enrol(cast.PERSONS[0]),
        lambda: enrol(cast.PERSONS[0], name="别名"),
        lambda: enrol(cast.PERSONS[0], person_no=f"330100{number:08d}", id_number="990101196104129116"),
        lambda: enrol(cast.PERSONS[0], person_no=f"330100{number:08d}", born_on="1961-04-13"),
        lambda: enrol(cast.PERSONS[1], person_no=f"330100{number:08d}"),
        lambda: enrol(cast.PERSONS[1], person_no=f"330100{number:08d}", insured_area_code="330200"),
        lambda: enrol(cast.PERSONS[1], person_no=f"330100{number:08d}", insurance_type="999"),
        lambda: _agency(
            desk, "RegisterPractitioner", cast.practitioner(f"YS9{number:08d}", cast.DISPENSER, PHARMACIES[0].id)
        ),
        lambda: _agency(desk, "RegisterPractitioner", cast.practitioner(WARDS[0].doctor, cast.DOCTOR, HOSPITALS[1].id)),
        lambda: _agency(
            desk, "RegisterPractitioner", cast.practitioner(f"D9{number:08d}", cast.DOCTOR, PHARMACIES[0].id)
        ),
        lambda: _agency(desk, "ImportCatalog", cast.drug_import("2026")),
        lambda: _agency(desk, "ImportCatalog", cast.drug_import(f"2026-{number}")),
        lambda: _agency(desk, "ImportCatalog", cast.disease_import("2027"), OTHER_AGENCY),
    )
    for _ in range(1 + int(desk.chance.random() * 3)):
        yield desk.pick(options)()


def revoke_certificate(desk: Desk) -> Journey:
    """A pharmacy's connection certificate is revoked; it goes on calling, and is told so."""
    shop = SHOPS[2]
    peer = CertifiedPeer("pharmacy", shop.caller.id, cast.AREA, shop.caller.fingerprint)

    def revoke(caller: Caller = AGENCY, proven: Evidence | None = None) -> Call:
        request = registry_pb2.RevokeCertificateRequest(
            certificate_pem=f"certificate of {shop.caller.actor}".encode(), reason="示例吊销"
        )
        return _agency(desk, "RevokeCertificate", request, caller, proven or Evidence(connection=peer))

    yield from desk.attempt(
        "office",
        revoke,
        lambda: revoke(OTHER_AGENCY),
        lambda: revoke(proven=Evidence(certificate_fault="FOREIGN_AUTHORITY")),
    )
    for _ in range(2):
        yield from desk.proof(shop.caller, desk.person(), VISIT)


def own_affairs(desk: Desk) -> Journey:
    """A person and his channel: activations that end and begin, codes that are taken back."""
    person = desk.person()
    activation = voucher_pb2.ActivateVoucherRequest
    level = voucher_pb2.IDENTITY_LEVEL_REAL_NAME

    def activate(number: str = person.number, channel: Caller = CHANNELS[0]) -> Call:
        request = activation(person_no=number, identity_level=level)
        return desk.call(channel, "VoucherService/ActivateVoucher", request)

    def deactivate(caller: Caller = CHANNELS[0], **changes: Any) -> Call:
        request = voucher_pb2.DeactivateVoucherRequest(**({"person_no": person.number} | changes))
        return desk.call(caller, "VoucherService/DeactivateVoucher", request)

    def take_back(code: str, caller: Caller = CHANNELS[0]) -> Call:
        request = voucher_pb2.RevokeVoucherRequest(voucher_code=code, reason="示例")
        return desk.call(caller, "VoucherService/RevokeVoucher", request)

    if desk.maybe(0.5):
        code = yield from desk.code(person, VISIT)
        yield from desk.attempt(
            "office",
            lambda: take_back(code),
            lambda: take_back(code, CHANNELS[1]),
            lambda: take_back(code, OTHER_AGENCY),
            lambda: take_back("5" * 28),
        )
        if desk.maybe(0.5):
            yield take_back(code, AGENCY)
        return
    by_agency = {"channel_id": CHANNELS[0].id}
    answer = yield from desk.attempt(
        "office",
        lambda: deactivate() if desk.chance.random() < 0.7 else deactivate(AGENCY, **by_agency),
        lambda: deactivate(CHANNELS[1]),
        lambda: deactivate(channel_id=CHANNELS[1].id),
        lambda: deactivate(AGENCY),
        lambda: deactivate(OTHER_AGENCY, **by_agency),
        lambda: deactivate(person_no="33010000000099"),
        activate,
        lambda: activate("33010000000099"),
    )
    if answer.ok:
        yield from desk.code(person, VISIT)
        yield activate()
