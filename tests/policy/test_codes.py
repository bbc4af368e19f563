"""Codes: forms, numbers with a check character, value sets."""

from __future__ import annotations

import csv
from datetime import date
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erxhub.policy.codes import (
    CodesError,
    age_years,
    birth_date,
    drug_kind,
    has_fact,
    has_form,
    id_number_fault,
    item_drug_kind,
    normal_id_number,
    parse_codes,
    sex,
    shipped_codes,
    social_credit_code_fault,
    standing,
)

# The same examples on every run: a failure must not depend on luck or on an earlier run.
REPEATABLE = settings(derandomize=True, database=None, deadline=None)
VALID_ID = "11010519491231002X"
VALID_CREDIT = "91350100M000100Y43"
TODAY = "2026-01-15"
FILE = resources.files("erxhub.policy").joinpath("codes.toml").read_bytes()


# --- Forms ---


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("XA01ABD075A002010200144", "western"),
        ("ZA01AAF0045010102950", "patent"),
        ("T001234567", "herbal"),
        ("XA01ABD075A00201020014", None),
        ("XA01ABD075A0020102001444", None),
        ("xA01ABD075A002010200144", None),
        ("XA01ABD075A002010200144\n", None),
        ("T00123456７", None),
        ("", None),
    ],
)
def test_the_form_of_a_drug_code_gives_its_kind(code: str, kind: str | None) -> None:
    assert drug_kind(code) == kind


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("service_item", "001100000010000", "011100000010000"),
        ("consumable", "C0101010010010100001", "D0101010010010100001"),
        ("hospital", "H32118100064", "P32118100064"),
        ("pharmacy", "P99010000001", "H99010000001"),
        ("doctor", "D610724006954", "N610724006954"),
        ("nurse", "N610724006954", "D610724006954"),
        ("hospital_pharmacist", "HY110000000001", "HJ110000000001"),
        ("technician", "HJ110000000001", "HY110000000001"),
        ("retail_pharmacist", "YS990100000001", "YS99010000001"),
        ("area", "341199", "34119"),
        ("chronic_disease", "M03900", "M039000"),
        ("message_id", "H990100000012026011510150000010", "H99010000001202601151015000001X"),
    ],
)
def test_a_form_takes_a_good_code_and_no_other(name: str, good: str, bad: str) -> None:
    # A message id is 30 characters; the good one above is cut to that length.
    good = good[:30] if name == "message_id" else good
    assert has_form(name, good)
    assert not has_form(name, bad)
    assert not has_form(name, f"{good} ")


@pytest.mark.parametrize(
    "code", ["I25.101", "I10.x00x002", "E11.201+N08.3*", "G46*", "A09", "A09.0", "J03.900", "C34.900M81400/3"]
)
def test_the_forms_of_disease_codes_are_many(code: str) -> None:
    assert has_form("disease", code)


@pytest.mark.parametrize("code", ["", "I2", "I25.", "25.101", "i25.101", "I25.101 ", "高血压", "I25.1011111"])
def test_other_texts_are_no_disease_code(code: str) -> None:
    assert not has_form("disease", code)


def test_a_form_that_the_file_does_not_have_is_a_bug() -> None:
    with pytest.raises(KeyError):
        has_form("doctors", "D610724006954")


def test_a_form_is_dated() -> None:
    assert has_form("hospital", "H32118100064", date(2026, 1, 1))
    assert not has_form("hospital", "H32118100064", date(1999, 12, 31))


# --- Identity numbers ---


@pytest.mark.parametrize(
    ("certno", "fault"),
    [
        (VALID_ID, None),
        ("11010519491231002x", None),
        ("110105194912310021", "CHECKSUM"),
        ("1101051949123100", "LENGTH"),
        (VALID_ID + "0", "LENGTH"),
        ("", "LENGTH"),
        ("1101051949123100X2", "CHARACTERS"),
        ("11010519491231002Y", "CHARACTERS"),
        ("１1010519491231002X", "CHARACTERS"),
        ("11010519490230002X", "DATE"),
        ("11010500000101002X", "DATE"),
        ("11010520260116002X", "FUTURE"),
    ],
)
def test_an_identity_number_fault_is_named(certno: str, fault: str | None) -> None:
    assert id_number_fault(certno, TODAY) == fault


def made_up_number(area: str, born: date, serial: int) -> str:
    body = f"{area}{born:%Y%m%d}{serial:03d}"
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return body + "10X98765432"[sum(int(d) * w for d, w in zip(body, weights, strict=True)) % 11]


@pytest.mark.parametrize("area", ["440304", "310115", "990000"])
def test_the_area_of_an_identity_number_never_refuses(area: str) -> None:
    # 440304 and 310115 were founded long after 1970; 990000 was never given out.
    assert id_number_fault(made_up_number(area, date(1970, 5, 17), 123), TODAY) is None


@REPEATABLE
@given(st.dates(date(1900, 1, 1), date(2026, 1, 15)), st.integers(0, 999))
def test_birth_date_and_sex_are_read_from_the_number(born: date, serial: int) -> None:
    number = made_up_number("990000", born, serial)
    assert id_number_fault(number, TODAY) is None
    assert birth_date(number) == born
    assert sex(number) == ("1" if serial % 2 else "2")


@REPEATABLE
@given(st.integers(0, 16), st.integers(1, 9))
def test_one_wrong_digit_is_always_seen(place: int, shift: int) -> None:
    wrong = str((int(VALID_ID[place]) + shift) % 10)
    assert id_number_fault(VALID_ID[:place] + wrong + VALID_ID[place + 1 :], TODAY) is not None


def test_a_number_is_kept_with_an_upper_case_x() -> None:
    assert normal_id_number("11010519491231002x") == VALID_ID
    assert normal_id_number("110105194912310021") == "110105194912310021"


@pytest.mark.parametrize(
    ("born", "on", "age"),
    [
        (date(2020, 1, 15), date(2026, 1, 14), 5),
        (date(2020, 1, 15), date(2026, 1, 15), 6),
        (date(2020, 2, 29), date(2026, 2, 28), 5),
        (date(2020, 2, 29), date(2026, 3, 1), 6),
    ],
)
def test_age_counts_completed_years(born: date, on: date, age: int) -> None:
    assert age_years(born, on) == age


# --- Unified social credit codes ---


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (VALID_CREDIT, None),
        ("91350100M000100Y44", "CHECKSUM"),
        ("91350101M000100Y43", "CHECKSUM"),
        ("91350100M000100Y4", "LENGTH"),
        ("91350100M000100I43", "CHARACTERS"),
        ("91350100m000100y43", "CHARACTERS"),
        ("91350100M000101Y43", "ORGANISATION"),
    ],
)
def test_a_social_credit_code_fault_is_named(code: str, fault: str | None) -> None:
    assert social_credit_code_fault(code) == fault


# --- Value sets ---


@pytest.mark.parametrize(
    ("value_set", "code", "expected"),
    [
        ("insutype", "310", "national"),
        ("insutype", "311", None),
        ("psn_type", "1201", "national"),
        ("psn_type", "1160", "local"),
        ("med_type", "14", "national"),
        ("med_type", "9901", "local"),
        ("med_type", "990902", "national"),
        ("med_type", "99", None),
        ("rx_type_code", "11", "national"),
        ("voucher_business_type", "02122", "national"),
    ],
)
def test_a_value_is_national_local_or_neither(value_set: str, code: str, expected: str | None) -> None:
    assert standing(value_set, code) == expected


def test_what_follows_from_a_code_is_data() -> None:
    assert has_fact("rx_type_code", "3", "emergency")
    assert has_fact("rx_type_code", "7", "controlled")
    assert not has_fact("rx_type_code", "1", "emergency")
    assert not has_fact("rx_type_code", "nothing", "emergency")
    assert has_fact("psn_cert_type", "01", "checked")
    assert has_fact("med_type", "14", "chronic")
    assert [item_drug_kind(code) for code in ("11", "12", "13", "21")] == [
        "western",
        "patent",
        "herbal",
        None,
    ]


def test_every_form_and_list_names_its_source() -> None:
    codes = shipped_codes()
    assert all(form.source_doc for rows in codes.forms.values() for form in rows)
    assert all(value_set.source_doc for value_set in codes.value_sets.values())
    assert {form.verified for rows in codes.forms.values() for form in rows} <= {"yes", "no", "choice"}
    assert len(codes.digest) == 32


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        FILE.replace(b"'X[A-Z]", b"'X([A-Z]", 1),
        FILE.replace(b'rule_id = "K-01"', b"", 1),
        FILE.replace(b'code = "320", zh', b'code = "310", zh', 1),
    ],
)
def test_a_wrong_file_is_not_taken(data: bytes) -> None:
    with pytest.raises(CodesError):
        parse_codes(data)


# --- Real codes ---


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_real_drug_code_has_the_kind_of_its_list(shared: Path) -> None:
    drugs = rows(shared / "data" / "drugs.csv")
    assert drugs
    assert [row["code"] for row in drugs if drug_kind(row["code"]) != row["kind"]] == []


@pytest.mark.parametrize(
    ("file", "form"),
    [("diseases.csv", "disease"), ("chronic_special.csv", "chronic_disease"), ("regions_nhsa.csv", "area")],
)
def test_every_real_code_has_its_form(shared: Path, file: str, form: str) -> None:
    codes = [row["code"] for row in rows(shared / "data" / file)]
    assert codes
    assert [code for code in codes if not has_form(form, code)] == []
