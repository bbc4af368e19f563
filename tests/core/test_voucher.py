import pytest

from erxhub.core import guards
from erxhub.core.model import Accepted, Caller, Command, Evidence, Outcome, Refused, Target
from erxhub.core.voucher import REJECTED
from erxhub.v1 import events_pb2, registry_pb2, voucher_pb2
from tests.core.harness import World
from tests.core.population import (
    AGENCY,
    CHANNEL,
    CHILD_NO,
    HOSPITAL,
    HOSPITAL_CODE,
    OFFLINE_TYPE,
    ONLINE_TYPE,
    OTHER_AGENCY,
    OTHER_CHANNEL,
    OTHER_HOSPITAL,
    PERSON_NO,
    PHARMACY,
    STRANGER_NO,
    accepted,
    activate,
    code_for,
    decoded,
    person_key,
    populated,
    refused,
)


@pytest.fixture
def world() -> World:
    return populated()


def issue(world: World, caller: Caller = CHANNEL, **fields: str) -> Outcome:
    request = voucher_pb2.IssueVoucherRequest(**({"person_no": PERSON_NO, "business_type": OFFLINE_TYPE} | fields))
    return world.do(caller, "VoucherService/IssueVoucher", request)


def verify(world: World, code: str, caller: Caller = HOSPITAL, **fields: str) -> Outcome:
    request = voucher_pb2.VerifyVoucherRequest(**({"voucher_code": code, "business_type": OFFLINE_TYPE} | fields))
    return world.do(caller, "VoucherService/VerifyVoucher", request)


def revoke(world: World, code: str, caller: Caller = CHANNEL) -> Outcome:
    return world.do(caller, "VoucherService/RevokeVoucher", voucher_pb2.RevokeVoucherRequest(voucher_code=code))


def deactivate(world: World, caller: Caller = CHANNEL, person_no: str = PERSON_NO, channel_id: str = "") -> Outcome:
    request = voucher_pb2.DeactivateVoucherRequest(person_no=person_no, channel_id=channel_id)
    return world.do(caller, "VoucherService/DeactivateVoucher", request)


def pause(world: World, person_no: str = PERSON_NO, status: int = registry_pb2.PERSON_STATUS_PAUSED) -> None:
    request = registry_pb2.ChangePersonStatusRequest(person_no=person_no, reason="示例原因")
    request.status = registry_pb2.PersonStatus.ValueType(status)
    accepted(world.do(AGENCY, "RegistryService/ChangePersonStatus", request))


def suspend_hospital(world: World) -> None:
    request = registry_pb2.ChangeAgreementStatusRequest(
        institution_code=HOSPITAL_CODE,
        kind=registry_pb2.AGREEMENT_KIND_BASE,
        status=registry_pb2.AGREEMENT_STATUS_SUSPENDED,
        case_no="C-1",
    )
    accepted(world.do(AGENCY, "RegistryService/ChangeAgreementStatus", request))


# ---- activation ----


def test_a_second_activation_on_the_same_channel_is_refused(world: World) -> None:
    request = voucher_pb2.ActivateVoucherRequest(person_no=PERSON_NO, identity_level=1)
    no = refused(world.do(CHANNEL, "VoucherService/ActivateVoucher", request), "RECORD_STATE")
    assert no.detail == {"state": "ACTIVATED"}


def test_an_activation_can_end_and_begin_again(world: World) -> None:
    accepted(deactivate(world))
    refused(issue(world), "VCH_REVOKED")
    activate(world, PERSON_NO)
    accepted(issue(world))


def test_an_unknown_person_cannot_be_activated(world: World) -> None:
    request = voucher_pb2.ActivateVoucherRequest(person_no="nobody", identity_level=1)
    refused(world.do(CHANNEL, "VoucherService/ActivateVoucher", request), "RECORD_UNKNOWN", "person_no")


def test_a_paused_person_cannot_be_activated(world: World) -> None:
    pause(world, STRANGER_NO)
    request = voucher_pb2.ActivateVoucherRequest(person_no=STRANGER_NO, identity_level=1)
    refused(world.do(CHANNEL, "VoucherService/ActivateVoucher", request), "PSN_INACTIVE")


def test_a_channel_ends_only_its_own_activation(world: World) -> None:
    refused(deactivate(world, OTHER_CHANNEL, channel_id=CHANNEL.id), "INST_IMPERSONATION", "channel_id")
    first = refused(deactivate(world, OTHER_CHANNEL), "VCH_REVOKED")
    second = refused(deactivate(world, OTHER_CHANNEL, person_no="nobody"), "VCH_REVOKED")
    assert (first.field, first.detail) == (second.field, second.detail)


def test_an_agency_ends_an_activation_by_naming_the_channel(world: World) -> None:
    refused(deactivate(world, AGENCY), "INPUT_MALFORMED", "channel_id")
    refused(deactivate(world, OTHER_AGENCY, channel_id=CHANNEL.id), "RECORD_UNKNOWN", "person_no")
    refused(deactivate(world, AGENCY, channel_id=OTHER_CHANNEL.id), "RECORD_STATE", "channel_id")
    accepted(deactivate(world, AGENCY, channel_id=CHANNEL.id))


# ---- issue ----


def test_a_code_is_the_insured_area_and_22_digits_and_lives_a_minute(world: World) -> None:
    reply = accepted(issue(world))
    assert len(reply.voucher_code) == 28
    assert reply.voucher_code.startswith("330100")
    assert reply.voucher_code.isdigit()
    assert reply.expires_at_ms == world.now_ms + 60_000


def test_no_event_holds_a_code_or_a_reference(world: World) -> None:
    code = code_for(world)
    secrets = [code.encode(), accepted(verify(world, code)).voucher_ref.encode()]
    kept = [payload.SerializeToString() for kind, _, payload in world.events if kind == "voucher"]
    assert len(kept) == 2
    assert not any(secret in body for secret in secrets for body in kept)


def test_an_unknown_and_a_not_activated_person_get_the_same_answer(world: World) -> None:
    stranger = refused(issue(world, person_no=STRANGER_NO), "VCH_REVOKED")
    nobody = refused(issue(world, person_no="nobody"), "VCH_REVOKED")
    assert (stranger.field, stranger.detail, stranger.legal) == (nobody.field, nobody.detail, nobody.legal)
    assert stranger.targets
    assert not nobody.targets


def test_a_paused_person_gets_no_code(world: World) -> None:
    pause(world)
    refused(issue(world), "PSN_INACTIVE")


def test_an_unknown_business_type_is_malformed(world: World) -> None:
    refused(issue(world, business_type="99999"), "INPUT_MALFORMED", "business_type")


def test_a_linked_delegate_shows_the_code_of_another(world: World) -> None:
    accepted(issue(world, person_no=CHILD_NO, delegate_person_no=PERSON_NO))
    issued = next(payload for _, event, payload in reversed(world.events) if event == "voucher.issued")
    assert issued.person_key == person_key(world, CHILD_NO)
    assert issued.delegate_key == person_key(world, PERSON_NO)


@pytest.mark.parametrize(
    ("subject", "delegate"),
    [(PERSON_NO, CHILD_NO), (CHILD_NO, STRANGER_NO), (CHILD_NO, "nobody")],
    ids=["not linked", "linked but not activated here", "unknown"],
)
def test_without_a_usable_link_a_delegate_shows_nothing(world: World, subject: str, delegate: str) -> None:
    refused(issue(world, person_no=subject, delegate_person_no=delegate), "VCH_NO_DELEGATION", "delegate_person_no")


def test_a_dead_delegate_shows_nothing(world: World) -> None:
    pause(world, status=registry_pb2.PERSON_STATUS_DEAD)
    refused(issue(world, person_no=CHILD_NO, delegate_person_no=PERSON_NO), "VCH_NO_DELEGATION")


# ---- verify ----


def test_a_decode_consumes_the_code_and_shows_the_person(world: World) -> None:
    code = code_for(world)
    outcome = verify(world, code)
    reply = accepted(outcome)
    assert len(reply.voucher_ref) == 64
    assert reply.online_identity_no == ""
    assert (reply.person_no, reply.name, reply.born_on) == (PERSON_NO, "林示例甲", "1961-04-12")
    assert reply.expires_at_ms == world.now_ms + 30 * 60_000
    assert isinstance(outcome, Accepted)
    assert outcome.targets == (Target(person_key(world), person_key(world)),)
    replayed = refused(verify(world, code), "VCH_REPLAYED", "voucher_code")
    assert replayed.entry == REJECTED
    assert not replayed.keeps_events


def test_an_online_identification_gives_the_online_identity_number_instead(world: World) -> None:
    reply = decoded(world, ONLINE_TYPE)
    assert reply.voucher_ref == ""
    assert len(reply.online_identity_no) == 64
    assert reply.expires_at_ms == world.now_ms + 24 * 3_600_000


def test_an_unknown_code_is_invalid(world: World) -> None:
    assert refused(verify(world, "3" * 28), "VCH_INVALID", "voucher_code").entry == REJECTED


def test_a_code_is_good_in_its_last_millisecond_and_expired_in_the_next(world: World) -> None:
    first, second = code_for(world), code_for(world)
    world.advance(60_000)
    accepted(verify(world, first))
    world.advance(1)
    refused(verify(world, second), "VCH_EXPIRED", "voucher_code")
    assert "voucher.try_counted" not in world.names_of_events("voucher")


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"business_type": "02121"}, "VCH_WRONG_BUSINESS", "business_type"),
        ({"channel_id": "bank.example"}, "VCH_INVALID", "channel_id"),
        ({"person_no": CHILD_NO}, "VCH_SUBJECT_MISMATCH", "person_no"),
        ({"person_no": "nobody"}, "VCH_SUBJECT_MISMATCH", "person_no"),
    ],
)
def test_a_refused_decode_counts_a_try_and_leaves_the_code_usable(
    world: World, fields: dict[str, str], code: str, field: str
) -> None:
    voucher_code = code_for(world)
    no = refused(verify(world, voucher_code, **fields), code, field)
    assert no.keeps_events
    assert no.entry == REJECTED
    _, event, payload = world.events[-1]
    assert (event, payload) == (
        "voucher.try_counted",
        events_pb2.VoucherTryCounted(institution_code=HOSPITAL_CODE, refusal_code=code),
    )
    accepted(verify(world, voucher_code))


def test_the_third_refused_decode_revokes_the_code(world: World) -> None:
    code = code_for(world)
    for caller in (HOSPITAL, PHARMACY, OTHER_HOSPITAL):
        refused(verify(world, code, caller, person_no=CHILD_NO), "VCH_SUBJECT_MISMATCH")
    assert world.names_of_events("voucher")[1:] == ["voucher.try_counted"] * 3 + ["voucher.revoked"]
    refused(verify(world, code), "VCH_REVOKED", "voucher_code")


def test_a_code_of_an_ended_activation_is_refused(world: World) -> None:
    code = code_for(world)
    accepted(deactivate(world))
    refused(verify(world, code), "VCH_REVOKED", "voucher_code")


def test_a_person_paused_meanwhile_is_refused_without_counting_a_try(world: World) -> None:
    code = code_for(world)
    pause(world)
    no = refused(verify(world, code), "PSN_INACTIVE")
    assert not no.keeps_events
    assert world.names_of_events("voucher") == ["voucher.issued"]


def test_an_institution_without_agreement_decodes_nothing_and_counts_nothing(world: World) -> None:
    code = code_for(world)
    suspend_hospital(world)
    refused(verify(world, code), "AGR_INACTIVE")
    refused(verify(world, code, Caller("hospital", "H33010012345", "330100", b"x")), "INST_UNKNOWN")
    assert world.names_of_events("voucher") == ["voucher.issued"]


# ---- revoke ----


def test_a_revoked_code_cannot_be_decoded(world: World) -> None:
    code = code_for(world)
    accepted(revoke(world, code))
    refused(verify(world, code), "VCH_REVOKED")
    refused(revoke(world, code), "VCH_REVOKED")


def test_only_the_channel_that_showed_a_code_or_its_agency_may_revoke_it(world: World) -> None:
    code = code_for(world)
    for caller in (OTHER_CHANNEL, OTHER_AGENCY):
        foreign = refused(revoke(world, code, caller), "VCH_INVALID", "voucher_code")
        unknown = refused(revoke(world, "3" * 28, caller), "VCH_INVALID", "voucher_code")
        assert foreign.detail == unknown.detail
    accepted(revoke(world, code, AGENCY))


def test_a_used_or_expired_code_cannot_be_revoked(world: World) -> None:
    used, late = code_for(world), code_for(world)
    accepted(verify(world, used))
    refused(revoke(world, used), "VCH_REPLAYED")
    world.advance(60_001)
    refused(revoke(world, late), "VCH_EXPIRED")


# ---- references ----


def reference(
    world: World, value: str, caller: Caller = HOSPITAL, types: tuple[str, ...] = (OFFLINE_TYPE,)
) -> guards.Reference | Refused:
    tx = world._draft(caller.actor, "reference")
    command = Command("", None, caller, "reference", world.now_ms, Evidence())
    tx._workspace.names.setdefault(("voucher_ref", tx.mac("voucher_ref", value)), None)
    return guards.reference(tx, command, value, types, "voucher_ref")


def test_a_reference_serves_any_step_of_its_business_type_for_30_minutes(world: World) -> None:
    value = decoded(world).voucher_ref
    world.advance(30 * 60_000)
    found = reference(world, value)
    assert isinstance(found, guards.Reference)
    assert found.person_key == person_key(world)
    world.advance(1)
    late = reference(world, value)
    assert isinstance(late, Refused)
    assert late.code == "VCH_EXPIRED"


def test_a_reference_is_bound_to_institution_and_business_type(world: World) -> None:
    value = decoded(world).voucher_ref
    foreign, unknown = reference(world, value, OTHER_HOSPITAL), reference(world, "x" * 64)
    assert isinstance(foreign, Refused)
    assert isinstance(unknown, Refused)
    assert foreign.code == unknown.code == "VCH_INVALID"
    assert (foreign.field, foreign.detail) == (unknown.field, unknown.detail)
    wrong = reference(world, value, types=("02122", "02121"))
    assert isinstance(wrong, Refused)
    assert wrong.code == "VCH_WRONG_BUSINESS"


def test_an_online_identity_number_is_no_voucher_reference(world: World) -> None:
    found = reference(world, decoded(world, ONLINE_TYPE).online_identity_no, types=(ONLINE_TYPE,))
    assert isinstance(found, Refused)
    assert found.code == "VCH_INVALID"
