"""Retention classes: which apply, that the longest wins, and the day on which a record may go."""

from __future__ import annotations

from datetime import date

import pytest

from erxhub.core.retention import Kept, kept
from erxhub.policy.pack import DAY_MS, shipped_packs
from erxhub.policy.rules import Rules
from erxhub.v1 import common_pb2, registry_pb2, signed_pb2, state_pb2

NEW_YEAR_MS = 1_767_196_800_000
"""2026-01-01 00:00 in China."""

OFFLINE, INTERNET = common_pb2.VISIT_KIND_OFFLINE, common_pb2.VISIT_KIND_INTERNET
_Class = registry_pb2.RetentionClass


def found(rx: state_pb2.PrescriptionState, visit_kind: common_pb2.VisitKind.ValueType = OFFLINE) -> Kept:
    """How long the record is kept, as of 2027."""
    encounter = state_pb2.EncounterState(visit_kind=visit_kind, registered_at_ms=NEW_YEAR_MS)
    return kept(Rules(shipped_packs().pack_for("000000"), date(2027, 1, 1)), rx, encounter)


def written(rx_type: str = "1") -> state_pb2.PrescriptionState:
    """A prescription of 2026-01-01 that is valid for three days."""
    content = common_pb2.Prescription(
        rx_type=rx_type, prescribed_at_ms=NEW_YEAR_MS, valid_until_ms=NEW_YEAR_MS + 3 * DAY_MS
    )
    return state_pb2.PrescriptionState(content=content)


def sold(expires_on: str, **how: object) -> state_pb2.PrescriptionState:
    """The same, settled on 2026-01-02, with a lot of a drug."""
    rx = written()
    order = rx.orders.add(**how)  # type: ignore[arg-type]
    order.claim.settled_at_ms = NEW_YEAR_MS + DAY_MS
    order.dispense.lots.append(signed_pb2.DispensedLot(line_no=1, expires_on=expires_on))
    return rx


@pytest.mark.parametrize(
    ("rx_type", "last_on", "retention_class"),
    [
        ("1", date(2027, 1, 4), _Class.RETENTION_CLASS_ORDINARY),
        ("3", date(2027, 1, 4), _Class.RETENTION_CLASS_ORDINARY),
        ("5", date(2027, 1, 4), _Class.RETENTION_CLASS_ORDINARY),
        ("8", date(2028, 1, 4), _Class.RETENTION_CLASS_PSYCHOTROPIC_2),
        ("7", date(2029, 1, 4), _Class.RETENTION_CLASS_NARCOTIC),
    ],
)
def test_the_kind_of_prescription_decides(
    rx_type: str, last_on: date, retention_class: registry_pb2.RetentionClass.ValueType
) -> None:
    assert found(written(rx_type)) == (last_on, retention_class)


def test_an_internet_visit_is_kept_for_fifteen_years_whatever_it_prescribed() -> None:
    expected = (date(2041, 1, 4), _Class.RETENTION_CLASS_INTERNET_CONSULTATION)
    assert found(written("7"), INTERNET) == expected


@pytest.mark.parametrize("how", [{"by_patient": True}, {"mode": common_pb2.FULFILMENT_MODE_DELIVERY}])
def test_an_online_sale_is_kept_for_five_years_or_a_year_after_the_drug_expires(how: dict[str, object]) -> None:
    assert found(sold("2027-06-30", **how)) == (date(2031, 1, 4), _Class.RETENTION_CLASS_ONLINE_SALE)
    assert found(sold("2030-06-30", **how)) == (date(2031, 6, 30), _Class.RETENTION_CLASS_DRUG_EXPIRY)
    assert found(sold("2028-02-29", **how)).last_on == date(2031, 1, 4)


def test_a_sale_at_the_counter_is_no_online_sale() -> None:
    assert found(sold("2030-06-30")) == (date(2027, 1, 4), _Class.RETENTION_CLASS_ORDINARY)


def test_the_last_step_begins_the_time() -> None:
    rx = sold("2026-06-30")
    rx.orders[0].handed_over_at_ms = NEW_YEAR_MS + 40 * DAY_MS
    assert found(rx).last_on == date(2027, 2, 10)


def test_a_record_of_29_february_is_kept_until_the_first_of_march() -> None:
    rx = written()
    rx.content.prescribed_at_ms = rx.content.valid_until_ms = 1_835_366_400_000  # 2028-02-29 00:00 in China
    assert found(rx).last_on == date(2029, 3, 1)


def test_a_day_ends_in_china() -> None:
    assert Kept(date(2026, 1, 1), _Class.RETENTION_CLASS_ORDINARY).until_ms == NEW_YEAR_MS + DAY_MS - 1
