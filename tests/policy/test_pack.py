"""Region packs: what ships, how dates and regions resolve, and which files are not taken."""

from __future__ import annotations

import hashlib
from datetime import date, timedelta
from fractions import Fraction
from importlib import resources
from pathlib import Path

import pytest

from erxhub.core.claim_arithmetic import ChargeLine, compute
from erxhub.policy.pack import PackError, PackLibrary, china_date, day_begins_ms, pack_for, shipped_packs

TODAY = date(2026, 1, 15)
NATIONAL = resources.files("erxhub.policy").joinpath("packs", "CN.toml").read_bytes()


def region(pack_id: str, body: str) -> bytes:
    return f'# made up for a test\n[pack]\nid = "{pack_id}"\n\n{body}'.encode()


def days_row(value: int, since: str, until: str | None = None) -> str:
    end = f", valid_to = {until}" if until else ""
    return f'{{ value = {value}, valid_from = {since}{end}, verified = "no", source_doc = "made up" }}'


def raw_row(value: str, verified: str = "no", source: str = "x") -> str:
    return f'{{ value = {value}, valid_from = 2020-01-01, verified = "{verified}", source_doc = "{source}" }}'


def parameter(name: str, row: str) -> str:
    return f"[parameter.{name}]\nrows = [{row}]\n"


def supply_days(*rows: str) -> str:
    return f"[parameter.supply_days]\nrows = [{', '.join(rows)}]\n"


# --- What ships ---


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_drugs", 5),
        ("validity_days_max", 3),
        ("supply_days", 7),
        ("supply_days_emergency", 3),
        ("long_term_days", 28),
        ("long_term_days_assessed", 84),
        ("guardian_age_years", 6),
        ("doctor_practice_years", 3),
        ("refused_decodes_max", 3),
        ("lapsed_holds_max", 2),
        ("orders_max", 20),
        ("sign_code_tries", 5),
        ("delivery_distance_max_km", 100),
    ],
)
def test_national_count_has_its_value(name: str, value: int) -> None:
    assert pack_for("330100").integer(name, TODAY) == value


@pytest.mark.parametrize(
    ("name", "seconds"),
    [
        ("voucher_code_lifetime", 60),
        ("voucher_ref_lifetime", 30 * 60),
        ("online_identity_lifetime", 24 * 3600),
        ("authorization_lifetime", 30 * 60),
        ("qr_lifetime", 60),
        ("hold", 2 * 3600),
        ("hold_extension", 30 * 60),
        ("quote_lifetime", 30 * 60),
        ("signing_age", 15 * 60),
        ("attestation_window", 5 * 60),
        ("follow_up_lookback", 180 * 86400),
        ("dispense_deadline", 72 * 3600),
        ("receipt_deadline", 7 * 86400),
    ],
)
def test_national_time_has_its_length(name: str, seconds: int) -> None:
    assert pack_for("330100").duration_ms(name, TODAY) == seconds * 1000


@pytest.mark.parametrize(
    ("step", "business_type"),
    [
        ("prescribing_offline", "01201"),
        ("prescribing_internet", "03131"),
        ("list_and_download", "02122"),
        ("settle_offline", "02121"),
        ("settle_online", "03132"),
        ("hand_over", "01302"),
    ],
)
def test_each_step_has_its_voucher_business_type(step: str, business_type: str) -> None:
    assert pack_for("330100").text(f"business_type_{step}", TODAY) == business_type


def test_switches_are_off_by_default_and_both_ways_of_fulfilment_are_open() -> None:
    pack = pack_for("330100")
    assert not pack.flag("multi_use", TODAY)
    assert not pack.flag("single_shift_double_sign", TODAY)
    assert pack.flag("reviewer_may_dispense", TODAY)
    assert pack.texts("fulfilment_modes", TODAY) == ("PICKUP", "DELIVERY")


def test_trace_codes_are_required_from_the_first_of_july_2025() -> None:
    pack = pack_for("330100")
    assert not pack.flag("trace_codes_required", date(2025, 6, 30))
    assert pack.flag("trace_codes_required", date(2025, 7, 1))


@pytest.mark.parametrize(
    ("code", "accepted"),
    [
        ("8" + "0" * 19, True),
        ("8" + "0" * 18, False),
        ("7" + "0" * 19, False),
        ("8" + "0" * 19 + "\n", False),
        ("8" + "٠" * 19, False),
    ],
)
def test_a_trace_code_has_twenty_digits_and_begins_with_eight(code: str, accepted: bool) -> None:
    assert pack_for("330100").has_form("trace_code_forms", TODAY, code) is accepted


def test_the_national_benefit_pays_seventy_percent_of_the_in_scope_amount() -> None:
    benefit = pack_for("330100").benefit(TODAY, cum_inscope_fen=10000, cum_fund_fen=7000)
    claim = compute([ChargeLine("02", 10000, 100_000_000, Fraction(1, 10))], benefit, 1000)
    assert (claim.in_scope_fen, claim.fund_total_fen, claim.account_fen, claim.cash_fen) == (
        9000,
        6300,
        1000,
        2700,
    )
    assert benefit.fund_cap_fen is None


def test_the_pooled_ratio_says_that_it_is_illustrative() -> None:
    row = pack_for("330100").row("pooled_bands", TODAY)
    assert row is not None
    assert (row.illustrative, row.verified) == (True, "no")


def test_every_unverified_value_names_a_source_and_can_be_dated() -> None:
    pack = shipped_packs().pack_for("330100")
    for name in pack.parameters:
        row = pack.row(name, TODAY)
        if row is not None:
            assert row.source_doc
            assert row.valid_from <= TODAY


def test_an_area_without_files_of_its_own_has_the_national_pack() -> None:
    assert pack_for("990000").ids == ("CN",)
    assert pack_for("990000") is pack_for("110101")


def test_the_digest_of_one_file_is_the_sha_256_of_its_bytes() -> None:
    assert pack_for("330100").digest == hashlib.sha256(NATIONAL).digest()


@pytest.mark.parametrize("area_code", ["", "3301", "33010a", "3301000", "CN", "３３０１００", "330100\n"])
def test_an_area_code_without_six_digits_is_not_taken(area_code: str) -> None:
    with pytest.raises(ValueError, match="six digits"):
        pack_for(area_code)


# --- Regions and dates ---

LIBRARY_FILES = {
    "CN": NATIONAL,
    "CN-33": region("CN-33", supply_days(days_row(14, "2020-01-01"))),
    "330100": region("330100", supply_days(days_row(30, "2021-01-01", "2021-12-31"), days_row(21, "2023-01-01"))),
    "330106": region("330106", supply_days(days_row(10, "2024-01-01"))),
}


@pytest.mark.parametrize(
    ("area_code", "on", "days"),
    [
        ("330100", date(2019, 12, 31), 7),
        ("330100", date(2020, 1, 1), 14),
        ("330100", date(2021, 1, 1), 30),
        ("330100", date(2021, 12, 31), 30),
        ("330100", date(2022, 6, 1), 14),
        ("330100", date(2023, 1, 1), 21),
        ("330106", date(2023, 6, 1), 21),
        ("330106", date(2024, 1, 1), 10),
        ("330200", date(2024, 1, 1), 14),
        ("339900", date(2024, 1, 1), 14),
        ("110000", date(2024, 1, 1), 7),
    ],
)
def test_the_nearest_file_with_a_row_in_force_answers(area_code: str, on: date, days: int) -> None:
    assert PackLibrary(LIBRARY_FILES).pack_for(area_code).integer("supply_days", on) == days


def test_a_parameter_that_a_region_does_not_mention_falls_through() -> None:
    assert PackLibrary(LIBRARY_FILES).pack_for("330106").integer("max_drugs", TODAY) == 5


def test_a_row_says_which_file_it_came_from() -> None:
    row = PackLibrary(LIBRARY_FILES).pack_for("330100").row("supply_days", date(2020, 1, 1))
    assert row is not None
    assert row.pack_id == "CN-33"


def test_the_digest_covers_the_files_of_the_area_from_the_nation_down() -> None:
    library = PackLibrary(LIBRARY_FILES)
    chain = b"".join(LIBRARY_FILES[pack_id] for pack_id in ("CN", "CN-33", "330100"))
    assert library.pack_for("330100").ids == ("CN", "CN-33", "330100")
    assert library.pack_for("330100").digest == hashlib.sha256(chain).digest()
    digests = {library.pack_for(code).digest for code in ("110000", "330200", "330100", "330106")}
    assert len(digests) == 4


def test_a_city_can_set_bands_a_deductible_and_a_cap() -> None:
    bands = '[{ upto_yuan = "5500", ratio = "0.75" }, { upto_yuan = "10000", ratio = "0.55" }]'
    body = (
        parameter("pooled_bands", raw_row(bands))
        + parameter("deductible", raw_row('"800"'))
        + parameter("fund_cap", raw_row('"5000.00"'))
    )
    benefit = (
        PackLibrary({"CN": NATIONAL, "120000": region("120000", body)})
        .pack_for("120000")
        .benefit(TODAY, cum_inscope_fen=540000, cum_fund_fen=0)
    )
    claim = compute([ChargeLine("01", 10000, 361_000_000)], benefit, 0)
    assert (benefit.deductible_fen, benefit.fund_cap_fen, claim.pooled_fund_fen) == (80000, 500000, 21855)


def test_an_operators_file_replaces_a_shipped_one_and_adds_regions(tmp_path: Path) -> None:
    (tmp_path / "CN.toml").write_bytes(NATIONAL.replace(b"{ value = 5,", b"{ value = 4,", 1))
    (tmp_path / "CN-33.toml").write_bytes(LIBRARY_FILES["CN-33"])
    library = PackLibrary.with_directory(tmp_path)
    assert library.pack_for("330100").integer("max_drugs", TODAY) == 4
    assert library.pack_for("330100").integer("supply_days", TODAY) == 14


@pytest.mark.parametrize(
    ("now_ms", "day"),
    [
        (0, date(1970, 1, 1)),
        (1_767_196_799_999, date(2025, 12, 31)),
        (1_767_196_800_000, date(2026, 1, 1)),
    ],
)
def test_a_day_begins_at_midnight_in_china(now_ms: int, day: date) -> None:
    assert china_date(now_ms) == day
    assert day_begins_ms(day) <= now_ms < day_begins_ms(day + timedelta(days=1))


# --- Questions and files that are wrong ---


def test_a_question_for_an_unknown_parameter_is_a_bug() -> None:
    with pytest.raises(KeyError):
        pack_for("330100").integer("max_drug", TODAY)


def test_a_question_for_another_kind_is_a_bug() -> None:
    with pytest.raises(TypeError, match="duration"):
        pack_for("330100").integer("hold", TODAY)


def test_a_date_without_a_row_is_said_with_the_files_that_were_asked() -> None:
    with pytest.raises(PackError, match="max_drugs: no row in force on 1999-12-31 in CN"):
        pack_for("330100").integer("max_drugs", date(1999, 12, 31))


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("[parameter.max_drug]\nrows = []\n", "max_drug: not a parameter"),
        ('[parameter.supply_days]\nkind = "text"\nrows = []\n', "rows only"),
        (
            supply_days(days_row(1, "2020-01-01"), days_row(2, "2021-01-01")),
            "two rows are in force on 2021-01-01",
        ),
        (
            supply_days(days_row(1, "2020-01-01", "2021-01-01"), days_row(2, "2021-01-01")),
            "two rows are in force on 2021-01-01",
        ),
        (supply_days(days_row(1, "2020-01-02", "2020-01-01")), "before valid_from"),
        (supply_days(days_row(-1, "2020-01-01")), "zero and above"),
        (supply_days(days_row(1, "2020-01-01T00:00:00")), "expected date"),
        (supply_days(raw_row('"1"')), "expected int"),
        (supply_days(raw_row("true")), "expected int"),
        (supply_days(raw_row("1", verified="maybe")), "verified"),
        (supply_days(raw_row("1", source=" ")), "source_doc"),
        (supply_days('{ value = 1, valid_from = 2020-01-01, verified = "no" }'), "a row has"),
        (supply_days("1"), "a row is a table"),
        (parameter("hold", raw_row('"2 hours"')), "a duration such as"),
        (parameter("deductible", raw_row("0.1")), "expected str"),
        (parameter("trace_code_forms", raw_row('["("]')), "regular expression"),
        (parameter("pooled_bands", raw_row('[{ ratio = "0.7" }, { ratio = "0.6" }]')), "bands ascend"),
        (parameter("pooled_bands", raw_row('[{ ration = "0.7" }]')), "a band has"),
        ("[other]\n", "only"),
        ("not toml", "CN-33.toml"),
    ],
)
def test_a_wrong_regional_file_is_not_taken(body: str, says: str) -> None:
    with pytest.raises(PackError, match=says):
        PackLibrary({"CN": NATIONAL, "CN-33": region("CN-33", body)})


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "CN.toml is missing"),
        ({"CN": NATIONAL, "CN-33": region("CN-34", "")}, "id in"),
        ({"CN": NATIONAL, "hangzhou": region("hangzhou", "")}, "id in"),
        (
            {"CN": NATIONAL, "CN-33": b'[parameter.max_drugs]\nrows = []\n[pack]\nid = "CN-33"\n'},
            "begins with",
        ),
        ({"CN": NATIONAL, "CN-33": b"\xff"}, "CN-33.toml"),
        ({"CN": NATIONAL.replace(b'kind = "integer"', b'kind = "number"', 1)}, "kind is one of"),
        ({"CN": NATIONAL.replace(b'meaning = "Most', b'purpose = "Most', 1)}, "a declaration has"),
    ],
)
def test_a_wrong_set_of_files_is_not_taken(files: dict[str, bytes], says: str) -> None:
    with pytest.raises(PackError, match=says):
        PackLibrary(files)
