"""Documents and files of the business verbs: prescriptions from JSON, sold lines, lots, downloads, quotes.

Owns how they are read, filled in and written. What is at fault in a file is a local error that names the file. It must
never sign (the client library does), ask the time, or judge a content that is well-formed; the hub does.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from erxhub.cli.arguments import DiagnosisArgument, LotArgument, SaleArgument
from erxhub.cli.local_errors import Failed, failing_as, unusable
from erxhub.v1 import common_pb2, dispensing_pb2, signed_pb2

DAY_MS: Final = 86_400_000
VALID_DAYS: Final = 3
"""The longest ordinary validity; a file that wants another says so."""

PAYLOAD_FILE: Final = "prescription.bin"
SIGNATURES_FILE: Final = "signatures.json"
FILE_SUFFIXES: Final[Mapping[str, str]] = {"application/pdf": ".pdf", "application/ofd": ".ofd"}
STANDARD_INPUT: Final = "-"

Content = TypeVar("Content", bound=Message)


# --- JSON files ---


def read_json(path: str) -> Any:
    """The content of a JSON file, or of the standard input for "-"."""
    try:
        data = sys.stdin.buffer.read() if path == STANDARD_INPUT else Path(path).read_bytes()
        return json.loads(data.decode())
    except OSError as error:
        raise unusable(error, path) from None
    except ValueError as error:
        raise Failed("CLI_FILE_NOT_JSON", field=path, details=str(error), path=path) from None


def read_message(path: str, kind: type[Content]) -> Content:
    """A message in protobuf-JSON form; unknown fields and wrong types are refused."""
    return parse_message(read_json(path), kind, path)


def parse_message(content: Any, kind: type[Content], source: str) -> Content:
    """As `read_message`, of JSON that was read already."""
    message = kind()
    if not isinstance(content, dict):
        raise Failed("CLI_FILE_NOT_OBJECT", field=source, path=source)
    try:
        json_format.ParseDict(content, message)
    except json_format.ParseError as error:
        name = kind.DESCRIPTOR.name
        raise Failed("CLI_FILE_NOT_MESSAGE", field=source, details=str(error), path=source, kind=name) from None
    return message


def write_message(path: Path, message: Message) -> None:
    """protobuf-JSON with the field names of the .proto files, readable by the owner alone."""
    text = json_format.MessageToJson(message, preserving_proto_field_name=True, ensure_ascii=False)
    write_private(path, text.encode() + b"\n")


def write_private(path: Path, data: bytes) -> None:
    """Writes clinical content so that only the owner may read it."""
    try:
        path.touch(mode=0o600)
        path.write_bytes(data)
    except OSError as error:
        raise Failed("CLI_FILE_UNWRITABLE", field=str(path), details=error.strerror or "", path=path) from None


# --- the hospital's side ---


def fill_prescription(
    prescription: common_pb2.Prescription,
    *,
    now_ms: int,
    hospital_code: str,
    hospital_rx_no: str,
    encounter_id: str = "",
    person_no: str = "",
    doctor_code: str = "",
) -> None:
    """Writes options over the file's values, and defaults where it has none: hospital, number, time and validity.

    Who wrote the prescription (`origin`) and everything medical stay as they are.
    """
    named = {"encounter_id": encounter_id, "person_no": person_no, "doctor_code": doctor_code}
    for field, value in named.items():
        if value:
            setattr(prescription, field, value)
    prescription.hospital_code = prescription.hospital_code or hospital_code
    prescription.hospital_rx_no = prescription.hospital_rx_no or hospital_rx_no
    prescription.prescribed_at_ms = prescription.prescribed_at_ms or now_ms
    prescription.valid_days = prescription.valid_days or VALID_DAYS
    if not prescription.valid_until_ms:
        prescription.valid_until_ms = prescription.prescribed_at_ms + prescription.valid_days * DAY_MS


def checked_prescription(path: str) -> common_pb2.Prescription:
    """The prescription of an upload: complete, because it has to be what was pre-checked."""
    prescription = read_message(path, common_pb2.Prescription)
    needed = ("hospital_code", "hospital_rx_no", "encounter_id", "prescribed_at_ms", "valid_days", "valid_until_ms")
    missing = [field for field in needed if not getattr(prescription, field)]
    if missing:
        raise Failed("CLI_PRECHECK_MISSING", field=path, path=path, fields=", ".join(missing))
    return prescription


def diagnoses_of(arguments: Iterable[DiagnosisArgument], names: Mapping[str, str]) -> list[common_pb2.Diagnosis]:
    """The first is the main one. `names` gives the names that were not typed; a code without one stands for itself."""
    return [
        common_pb2.Diagnosis(
            code=typed.code,
            name=typed.name or names.get(typed.code, typed.code),
            main=place == 0,
            diagnosis_type=typed.kind,
        )
        for place, typed in enumerate(arguments)
    ]


# --- the pharmacy's side ---


class Download(NamedTuple):
    """What `erxhub pharmacy download` left in a folder."""

    signed: common_pb2.Signed
    document: signed_pb2.PrescriptionDocument

    def line(self, line_no: int) -> common_pb2.RxLine:
        """Raises Failed for a line that the prescription does not have."""
        for line in self.document.prescription.lines:
            if line.line_no == line_no:
                return line
        raise Failed("CLI_LINE_UNKNOWN", field="LINE_NO", line=line_no)


def prepare_folder(folder: Path) -> None:
    """Makes the folder before the download, which uses up a number: what comes must find its place."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        probe = folder / f".{SIGNATURES_FILE}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise unusable(error, folder) from None


def write_download(folder: Path, reply: dispensing_pb2.DownloadPrescriptionResponse) -> list[Path]:
    """Writes the people's file, the signed bytes and the signatures; returns their paths."""
    prepare_folder(folder)
    people_file = folder / f"prescription{FILE_SUFFIXES.get(reply.file.media_type, '')}"
    payload_file, signatures_file = folder / PAYLOAD_FILE, folder / SIGNATURES_FILE
    parts = {"prescription": reply.prescription, "review": reply.review, "seal": reply.seal}
    signatures = {
        "rx_no": reply.rx_no,
        **{part: json_format.MessageToDict(signed, preserving_proto_field_name=True) for part, signed in parts.items()},
    }
    write_private(people_file, reply.file.data)
    write_private(payload_file, reply.prescription.payload)
    write_private(signatures_file, json.dumps(signatures, indent=2).encode() + b"\n")
    return [people_file, payload_file, signatures_file]


def read_download(folder: Path, rx_no: str) -> Download:
    """Reads a folder back. Raises Failed when it holds another prescription, or not the bytes that were signed."""
    kept = read_json(str(folder / SIGNATURES_FILE))
    if not isinstance(kept, dict) or kept.get("rx_no") != rx_no:
        raise Failed("CLI_DOWNLOAD_OTHER", field=str(folder), folder=folder, rx_no=rx_no)
    signed = parse_message(kept.get("prescription"), common_pb2.Signed, str(folder / SIGNATURES_FILE))
    payload_file = folder / PAYLOAD_FILE
    try:
        payload = payload_file.read_bytes()
    except OSError as error:
        raise unusable(error, payload_file) from None
    if payload != signed.payload:
        raise Failed("CLI_DOWNLOAD_ALTERED", field=str(payload_file), path=payload_file)
    kind = signed_pb2.PrescriptionDocument
    with failing_as(
        "CLI_FILE_NOT_MESSAGE", DecodeError, field=str(payload_file), path=payload_file, kind=kind.DESCRIPTOR.name
    ):
        document = kind.FromString(payload)
    return Download(signed, document)


def sale_lines(arguments: Iterable[SaleArgument], download: Download | None) -> list[signed_pb2.SaleLine]:
    """The typed lines; without any, all of the prescription at its own quantities and prices."""
    typed = list(arguments)
    if typed:
        return [
            signed_pb2.SaleLine(
                line_no=line.line_no,
                drug_code=line.drug_code or _drug_code(download, line.line_no),
                quantity=line.quantity,
                unit_price=line.unit_price,
            )
            for line in typed
        ]
    if download is None:
        raise Failed("CLI_LINES_MISSING", field="--line")
    lines = download.document.prescription.lines
    unpriced = [str(line.line_no) for line in lines if not line.unit_price]
    if unpriced:
        raise Failed("CLI_PRICE_MISSING", field="--line", lines=", ".join(unpriced))
    return [
        signed_pb2.SaleLine(
            line_no=line.line_no, drug_code=line.drug_code, quantity=line.quantity, unit_price=line.unit_price
        )
        for line in lines
    ]


def dispensed_lots(
    arguments: Iterable[LotArgument],
    download: Download | None,
    *,
    split_lines: Iterable[int] = (),
    uncoded_lines: Iterable[int] = (),
) -> list[signed_pb2.DispensedLot]:
    """The typed lots; `split_lines` are sold from opened packs, `uncoded_lines` from stock bought without codes."""
    split, uncoded = frozenset(split_lines), frozenset(uncoded_lines)
    lots = [
        signed_pb2.DispensedLot(
            line_no=lot.line_no,
            drug_code=lot.drug_code or _drug_code(download, lot.line_no),
            quantity=lot.quantity,
            lot_no=lot.lot_no,
            expires_on=lot.expires_on,
            trace_codes=lot.trace_codes,
            split_pack=lot.line_no in split,
            without_code=lot.line_no in uncoded,
        )
        for lot in arguments
    ]
    strangers = (split | uncoded) - {lot.line_no for lot in lots}
    if strangers:
        raise Failed("CLI_LOT_MISSING", field="--lot", line=min(strangers))
    return lots


def read_lots(path: str) -> list[signed_pb2.DispensedLot]:
    """A JSON array of DispensedLot in protobuf-JSON form, for what is too long to type."""
    content = read_json(path)
    if not isinstance(content, list):
        raise Failed("CLI_FILE_NOT_LIST", field=path, path=path)
    return [parse_message(item, signed_pb2.DispensedLot, path) for item in content]


def read_quote(path: str) -> tuple[str, signed_pb2.ClaimAmounts]:
    """Number and amounts of a quote, from what `erxhub pharmacy quote -o json` printed."""
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("quote_id"), str):
        raise Failed("CLI_QUOTE", field="--quote", path=path)
    return content["quote_id"], parse_message(content.get("amounts"), signed_pb2.ClaimAmounts, path)


def _drug_code(download: Download | None, line_no: int) -> str:
    if download is None:
        raise Failed("CLI_DRUG_MISSING", field="LINE_NO", line=line_no)
    return download.line(line_no).drug_code


def write_quote(path: Path, reply: dispensing_pb2.QuoteSettlementResponse) -> None:
    """What `read_quote` reads."""
    content = {
        "quote_id": reply.quote_id,
        "amounts": {field.name: getattr(reply.amounts, field.name) for field in reply.amounts.DESCRIPTOR.fields},
    }
    write_private(path, json.dumps(content, indent=2).encode() + b"\n")
