"""A prescription that passes every rule of the precheck, and a file to go with it.

Owns example content only. Must never: read a clock; the time comes in.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple

from erxhub.seed.catalogue import seed_drugs
from erxhub.seed.world import PERSONS, SeedWorld
from erxhub.v1 import common_pb2

DAY_MS: Final = 86_400_000
VALID_DAYS: Final = 3
WATERMARK: Final = "模拟 / SIMULATED"

_PAGE_LINES_MAX: Final = 40
_LINE_CHARACTERS_MAX: Final = 60


class _SampleLine(NamedTuple):
    """What is prescribed of one drug of the seed; `price_fen` is for one pack."""

    drug_code: str
    dose: str
    dose_unit: str
    units_per_dose: str
    frequency_code: str
    supply_days: int
    packs: int
    pack_unit: str
    price_fen: int


_LINES: Final = (
    _SampleLine("XC08CAA999A001010199001", "2.5", "mg", "1", "11", 7, 1, "盒", 1037),
    _SampleLine("XC09CAA999A001020199002", "0.15", "g", "1", "11", 7, 1, "盒", 2224),
    _SampleLine("XC10AAA999A001040199004", "20", "mg", "1", "41", 7, 1, "盒", 3150),
    _SampleLine("XA02BCA999A001050199005", "20", "mg", "1", "11", 7, 1, "盒", 1860),
    _SampleLine("ZA04CAA9990020199002", "270", "mg", "10", "13", 6, 1, "瓶", 2790),
)


def sample_diagnoses() -> list[common_pb2.Diagnosis]:
    """Hypertension, the diagnosis of the sample; record it at the visit first."""
    return [common_pb2.Diagnosis(code="I10.x00x002", name="高血压", main=True, diagnosis_type="1")]


def sample_prescription(
    world: SeedWorld | type[SeedWorld],
    encounter_id: str,
    person_no: str,
    now_ms: int,
    lines: int = 2,
    *,
    med_type: str = "11",
    number: int = 1,
) -> common_pb2.Prescription:
    """A prescription of the seed's first hospital and doctor for an adult, with 1 to 5 lines.

    Only the codes of the world are read, so its class is enough.

    `now_ms` (UTC milliseconds) is after the visit began and not in the hub's future. `number` tells apart several
    prescriptions of one visit. Raises ValueError for another number of lines, KeyError for a person not of the seed.
    """
    if not 1 <= lines <= len(_LINES):
        raise ValueError(f"the sample has 1 to {len(_LINES)} lines, not {lines}")
    person = {one.person_no: one for one in PERSONS}[person_no]
    return common_pb2.Prescription(
        hospital_rx_no=f"RX-{encounter_id}-{number}",
        hospital_code=world.hospital_code,
        encounter_id=encounter_id,
        person_no=person_no,
        rx_type="1",
        med_type=med_type,
        doctor_code=world.doctor_code,
        department="心血管内科",
        prescribed_at_ms=now_ms,
        valid_days=VALID_DAYS,
        valid_until_ms=now_ms + VALID_DAYS * DAY_MS,
        diagnoses=sample_diagnoses(),
        lines=[_line(place, sample) for place, sample in enumerate(_LINES[:lines], start=1)],
        patient=common_pb2.PatientFacts(age_years=_age_years(person.born_on, now_ms)),
        origin=common_pb2.PRESCRIPTION_ORIGIN_HUMAN,
    )


def _line(line_no: int, sample: _SampleLine) -> common_pb2.RxLine:
    drug = seed_drugs()[sample.drug_code]
    return common_pb2.RxLine(
        line_no=line_no,
        item_type="11" if sample.drug_code.startswith("X") else "12",
        drug_code=sample.drug_code,
        generic_name=drug.generic_name,
        strength=drug.strength,
        dose=sample.dose,
        dose_unit=sample.dose_unit,
        units_per_dose=sample.units_per_dose,
        frequency_code=sample.frequency_code,
        route_code="1",
        supply_days=sample.supply_days,
        quantity=str(sample.packs),
        quantity_unit=sample.pack_unit,
        unit_price=f"{sample.price_fen // 100}.{sample.price_fen % 100:02d}",
        amount_fen=sample.packs * sample.price_fen,
    )


def _age_years(born_on: str, now_ms: int) -> int:
    born = date.fromisoformat(born_on)
    today = (datetime.fromtimestamp(now_ms // 1000, UTC) + timedelta(hours=8)).date()
    return today.year - born.year - ((today.month, today.day) < (born.month, born.day))


# --- a file -----------------------------------------------------------------------------------------


def sample_pdf(text: str) -> bytes:
    """A PDF of one page with the text's lines (at most 40 of 60 characters) over a watermark 模拟 / SIMULATED.

    The same text gives the same bytes. Chinese needs no embedded font: readers bring one for STSong-Light.
    """
    shown = [line[:_LINE_CHARACTERS_MAX] for line in text.splitlines()[:_PAGE_LINES_MAX]]
    lines = [
        "q 0.85 g BT /F1 54 Tf 0.7071 0.7071 -0.7071 0.7071 110 240 Tm",
        f"<{_hex(WATERMARK)}> Tj ET Q",
        "BT /F1 11 Tf 56 780 Td 17 TL",
        *(f"<{_hex(line)}> Tj T*" for line in shown),
        "ET",
    ]
    content = "\n".join(lines).encode("ascii")
    return _pdf(
        [
            b"<< /Type /Catalog /Pages 2 0 R >>",
            b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
            b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R"
            b" /Resources << /Font << /F1 5 0 R >> >> >>",
            b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content),
            b"<< /Type /Font /Subtype /Type0 /BaseFont /STSong-Light /Encoding /UniGB-UCS2-H"
            b" /DescendantFonts [6 0 R] >>",
            b"<< /Type /Font /Subtype /CIDFontType0 /BaseFont /STSong-Light"
            b" /CIDSystemInfo << /Registry (Adobe) /Ordering (GB1) /Supplement 2 >> /FontDescriptor 7 0 R >>",
            b"<< /Type /FontDescriptor /FontName /STSong-Light /Flags 6 /FontBBox [-25 -254 1000 880]"
            b" /ItalicAngle 0 /Ascent 880 /Descent -120 /CapHeight 880 /StemV 93 >>",
        ]
    )


def _hex(text: str) -> str:
    # UCS-2 has no character above U+FFFF.
    return "".join(character if ord(character) <= 0xFFFF else "?" for character in text).encode("utf-16-be").hex()


def _pdf(objects: list[bytes]) -> bytes:
    """Objects 1… as a file, the first one being the catalogue."""
    # The second line says to whoever transports the file that it is binary (ISO 32000-1, 7.5.2).
    out = bytearray(b"%PDF-1.4\n%\xe6\xa8\xa1\xe6\x8b\x9f\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table_at = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    for offset in offsets:
        out += b"%010d 00000 n \n" % offset
    out += b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(objects) + 1, table_at)
    return bytes(out)
