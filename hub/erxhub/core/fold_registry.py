"""What events do to the ledger's own stream and to registry records.

Owns institutions with their agreements, practitioners, signing keys, and persons with their vouchers' activations. It
never decides or refuses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from erxhub.core import lifecycle
from erxhub.core.events import At, Folds
from erxhub.core.lifecycle import START, Machine
from erxhub.core.statuses import move, state_name
from erxhub.v1 import events_pb2, registry_pb2, state_pb2


def _ledger_opened(state: state_pb2.LedgerState, payload: events_pb2.LedgerOpened, at: At) -> None:
    state.origin = payload.origin


def _hub_key_registered(state: state_pb2.LedgerState, payload: events_pb2.HubKeyRegistered, at: At) -> None:
    state.keys.add().CopyFrom(payload.key)


def _catalogue_imported(state: state_pb2.LedgerState, payload: events_pb2.CatalogueImported, at: At) -> None:
    state.editions.add().CopyFrom(payload.edition)


def _institution_registered(
    state: state_pb2.InstitutionState, payload: events_pb2.InstitutionRegistered, at: At
) -> None:
    state.CopyFrom(payload.institution)


def _agreement_signed(state: state_pb2.InstitutionState, payload: events_pb2.AgreementSigned, at: At) -> None:
    for held in state.agreements:
        if held.kind == payload.agreement.kind:
            status = move(Machine.AGREEMENT, held.status, "agreement.signed")
            held.CopyFrom(payload.agreement)
            held.status = registry_pb2.AgreementStatus.ValueType(status)
            return
    added = state.agreements.add()
    added.CopyFrom(payload.agreement)
    added.status = registry_pb2.AgreementStatus.ValueType(move(Machine.AGREEMENT, 0, "agreement.signed"))


def _agreement_changed(event: str) -> Callable[[Any, Any, At], None]:
    def fold(state: state_pb2.InstitutionState, payload: events_pb2.AgreementChanged, at: At) -> None:
        held = next(agreement for agreement in state.agreements if agreement.kind == payload.kind)
        held.status = registry_pb2.AgreementStatus.ValueType(move(Machine.AGREEMENT, held.status, event))
        held.case_no = payload.case_no

    return fold


def _signing_key_registered(state: Any, payload: events_pb2.SigningKeyRegistered, at: At) -> None:
    state.keys.add().CopyFrom(payload.key)


def _practitioner_registered(
    state: state_pb2.PractitionerState, payload: events_pb2.PractitionerRegistered, at: At
) -> None:
    state.CopyFrom(payload.practitioner)
    state.status = registry_pb2.PractitionerStatus.ValueType(move(Machine.PRACTITIONER, 0, "practitioner.registered"))


def _practitioner_changed(event: str) -> Callable[[Any, Any, At], None]:
    def fold(state: state_pb2.PractitionerState, payload: events_pb2.PractitionerChanged, at: At) -> None:
        state.status = registry_pb2.PractitionerStatus.ValueType(move(Machine.PRACTITIONER, state.status, event))
        state.case_no = payload.case_no

    return fold


def _person_registered(state: state_pb2.PersonState, payload: events_pb2.PersonRegistered, at: At) -> None:
    state.CopyFrom(payload.person)
    state.status = registry_pb2.PersonStatus.ValueType(move(Machine.PERSON, 0, "person.registered"))


def _person_status_changed(state: state_pb2.PersonState, payload: events_pb2.PersonStatusChanged, at: At) -> None:
    event = f"person.status_changed {state_name(Machine.PERSON, payload.status)}"
    state.status = registry_pb2.PersonStatus.ValueType(move(Machine.PERSON, state.status, event))


def _activation_state(state: state_pb2.PersonState, channel_id: str) -> tuple[state_pb2.Activation | None, str]:
    for activation in state.activations:
        if activation.channel_id == channel_id:
            return activation, "ACTIVATED" if activation.active else "ENDED"
    return None, START


def activation_state(state: state_pb2.PersonState, channel_id: str) -> str:
    """The activation's state on a channel, as the tables name it."""
    return _activation_state(state, channel_id)[1]


def _voucher_activated(state: state_pb2.PersonState, payload: events_pb2.VoucherActivated, at: At) -> None:
    held, name = _activation_state(state, payload.channel_id)
    after = lifecycle.advance(Machine.ACTIVATION, name, "person.voucher_activated")
    if held is None:
        held = state.activations.add()
        held.channel_id = payload.channel_id
    held.level = payload.level
    held.active = after == "ACTIVATED"


def _voucher_deactivated(state: state_pb2.PersonState, payload: events_pb2.VoucherDeactivated, at: At) -> None:
    held, name = _activation_state(state, payload.channel_id)
    after = lifecycle.advance(Machine.ACTIVATION, name, "person.voucher_deactivated")
    assert held is not None
    held.active = after == "ACTIVATED"


FOLDS: Final[Folds] = {
    ("ledger", "ledger.opened"): _ledger_opened,
    ("ledger", "hub_key.registered"): _hub_key_registered,
    ("ledger", "catalogue.imported"): _catalogue_imported,
    ("institution", "institution.registered"): _institution_registered,
    ("institution", "agreement.signed"): _agreement_signed,
    ("institution", "agreement.suspended"): _agreement_changed("agreement.suspended"),
    ("institution", "agreement.resumed"): _agreement_changed("agreement.resumed"),
    ("institution", "agreement.terminated"): _agreement_changed("agreement.terminated"),
    ("institution", "signing_key.registered"): _signing_key_registered,
    ("practitioner", "practitioner.registered"): _practitioner_registered,
    ("practitioner", "practitioner.suspended"): _practitioner_changed("practitioner.suspended"),
    ("practitioner", "practitioner.resumed"): _practitioner_changed("practitioner.resumed"),
    ("practitioner", "practitioner.terminated"): _practitioner_changed("practitioner.terminated"),
    ("practitioner", "signing_key.registered"): _signing_key_registered,
    ("person", "person.registered"): _person_registered,
    ("person", "person.status_changed"): _person_status_changed,
    ("person", "person.voucher_activated"): _voucher_activated,
    ("person", "person.voucher_deactivated"): _voucher_deactivated,
}
