"""One whole chain with a standing clock, seeded ids and fixed keys: the ledger and a receipt, byte for byte.

A literal that changes means that what was written before reads differently now, or that old receipts would not be made
again. Change a literal only together with a format version, a new field of an event, or (leaves alone) the region pack.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from erxhub.crypto.suites import SUITES, SigningKey
from erxhub.keys import HubKeys
from erxhub.ledger.entry import FIRST_PREV_LEAF_HASH, Header, leaf_bytes
from erxhub.ledger.store import StoredEntry
from erxhub.v1 import catalog_pb2, common_pb2, registry_pb2
from tests.chain import DOCTOR, HOSPITAL_PHARMACIST, Chain
from tests.live import AGENCY, DAY_MS, HOSPITAL, PERSON, PHARMACY, Live, live_hub

pytestmark = pytest.mark.asyncio(loop_scope="module")

BEGIN_MS = 1_795_140_000_000
"""2026-11-20 10:00 in Beijing."""

AMLODIPINE = "XC08CAA999A001010199001"
CLAUSES = ("scope", "conditions", "charge_and_settlement_standard", "payment_mode")
BASE = registry_pb2.AGREEMENT_KIND_BASE
POOLING = registry_pb2.AGREEMENT_KIND_POOLING
STAFF = {
    DOCTOR: (registry_pb2.PRACTITIONER_KIND_DOCTOR, HOSPITAL),
    HOSPITAL_PHARMACIST: (registry_pb2.PRACTITIONER_KIND_HOSPITAL_PHARMACIST, HOSPITAL),
    "YS330100990001": (registry_pb2.PRACTITIONER_KIND_PHARMACIST, PHARMACY),
    "PY330100990001": (registry_pb2.PRACTITIONER_KIND_DISPENSER, PHARMACY),
    "PY330100990003": (registry_pb2.PRACTITIONER_KIND_DISPENSER, PHARMACY),
    "PS330100990001": (registry_pb2.PRACTITIONER_KIND_COURIER, PHARMACY),
}

ENTRIES = 80
PAYLOADS_SHA256 = "3962122e85b3b15013f86e03ed088969cdd2c5fdfe392f459e9b39924124feb3"
HEADERS_SHA256 = "4171a36ade1032fecfb55de5920f2d0c47b8db25b071c481dade6e48c95f898f"
LEAVES_SHA256 = "6fa2fe3861fe122fc94c2ee749cef0153a800eec73945c79d953d5d71be2ae32"
HEADER = (
    "010000000c707265736372697074696f6e0000002040c7cb6c1d441996149765f73d197d8ce010eb4af2f1041ac95bf02695"
    "f0aaca000000080000000000000002000000010100000002040400000008000001a1f6af836000000024686f73706974616c"
    "2f4833333031303039393930312f485933333031303039393030303100000014676f6c64656e2d686f73706974616c2d3030"
    "303600000020c3857657ce0d913c30d79903fa0baa005db8dc5504086fb7ac511f452e74633f00000000"
)
LEAF = (
    "01040440c7cb6c1d441996149765f73d197d8ce010eb4af2f1041ac95bf02695f0aaca0000000000000002a812e70fc714fd"
    "df5db364aef6418a2a907a9cc6bd43369a6dc4d084c9447d8526ff0006616ca3f19d528398bf50f3184461aaeb4eb4d79f96"
    "5450a483e5d77a000001a1f6af8360"
)
RECEIPT = (
    "0a126572786875622e746573742f6c656467657210e086beb59f3418e0d40322460a2040c7cb6c1d441996149765f73d197d"
    "8ce010eb4af2f1041ac95bf02695f0aaca10021a20f223dc949acef63012b48a07e6471a7b68574d022676dc1998e1a6efa2"
    "1fe66a22460a2040c7cb6c1d441996149765f73d197d8ce010eb4af2f1041ac95bf02695f0aaca10031a206797c92c7a9034"
    "4a8cfe93d90aaf5dc1f4f52c83127983db871bfd129f8867b322460a2040c7cb6c1d441996149765f73d197d8ce010eb4af2"
    "f1041ac95bf02695f0aaca10041a2096a43ed6ca4fd1092bdbeee7b335473c1cfebcd6a441be62736ed6b360ee62df22460a"
    "2040c7cb6c1d441996149765f73d197d8ce010eb4af2f1041ac95bf02695f0aaca10051a203ab4d083e3ece81e5bd306caa3"
    "88bb7d31ef28037083868a96457e75e0887bea2a203362326534633533303062396232346439623634663061393961626632"
    "306362324086ce3029b8443b37b48d4bf6d6b8eb5aa9e65888373c9bf7c1e141c74b47b58c9672af8d68240ebce77ace2d83"
    "19be3d4a41c492dff691d2cd503a77b046700c"
)


class _Numbered:
    """Request ids that count, for one caller."""

    def __init__(self, role: str) -> None:
        self._role, self._numbers = role, itertools.count(1)

    def new(self) -> str:
        return f"golden-{self._role}-{next(self._numbers):04d}"


def fixed_key(name: str) -> SigningKey:
    """An Ed25519 key (whose signatures are always the same) from a name."""
    suite = SUITES["EdDSA"]
    return SigningKey(suite, suite.load_private(hashlib.sha256(name.encode()).digest()))


class _World:
    """What Chain looks signing keys up in."""

    def __init__(self) -> None:
        self.signing_keys = {(subject, institution): fixed_key(subject) for subject, (_, institution) in STAFF.items()}
        self.signing_keys |= {(code, code): fixed_key(code) for code in (HOSPITAL, PHARMACY)}


async def _register(live: Live) -> None:
    agency = await live.agency()
    now_ms = live.clock.now_ms()
    drug = catalog_pb2.Drug(code=AMLODIPINE, generic_name="示例药", charge_class="02", prior_pay_ratio="0.10")
    await agency.import_catalog(
        dataset=catalog_pb2.CATALOG_DATASET_DRUGS,
        edition="golden",
        valid_from_on="2026-11-01",
        file_sha256=hashlib.sha256(b"golden").digest(),
        entries=[catalog_pb2.CatalogEntry(line=2, drug=drug)],
    )
    for code, kinds in ((HOSPITAL, [BASE]), (PHARMACY, [BASE, POOLING])):
        await agency.register_institution(institution_code=code, name="示例机构（虚构）")
        for kind in kinds:
            await agency.sign_agreement(
                institution_code=code,
                kind=kind,
                agreement_no=f"{code}-{kind}",
                valid_from_ms=now_ms,
                valid_until_ms=now_ms + 365 * DAY_MS,
                clauses=CLAUSES,
            )
    for code, (kind, institution) in STAFF.items():
        await agency.register_practitioner(
            practitioner_code=code, name="示例（虚构）", kind=kind, institution_codes=[institution], practice_years=8
        )
    for (subject, institution), key in live.world.signing_keys.items():
        await agency.register_signing_key(
            subject_code=subject,
            institution_code=institution,
            suite=key.suite.name,
            public_key=key.public_key,
            valid_from_ms=now_ms,
            valid_until_ms=now_ms + 365 * DAY_MS,
        )
    await agency.register_person(
        person_no=PERSON,
        name="林示例甲",
        id_number="990101196104129019",
        sex=common_pb2.SEX_MALE,
        born_on="1961-04-12",
        insured_area_code=AGENCY,
        insurance_type="310",
        person_type="1201",
        account_balance_fen=86_000,
    )
    await (await live.channel()).activate_voucher(person_no=PERSON)


@dataclasses.dataclass
class _GoldenChain(Chain):
    """A chain of which every byte is written here."""

    def written(self) -> common_pb2.Prescription:
        now_ms = self.live.clock.now_ms()
        return common_pb2.Prescription(
            hospital_rx_no="RX-GOLDEN",
            hospital_code=HOSPITAL,
            encounter_id=self.encounter_id,
            person_no=PERSON,
            rx_type="1",
            med_type="11",
            doctor_code=DOCTOR,
            prescribed_at_ms=now_ms,
            valid_days=3,
            valid_until_ms=now_ms + 3 * DAY_MS,
            diagnoses=[common_pb2.Diagnosis(code="I10.x00x002", name="高血压", main=True, diagnosis_type="1")],
            lines=[
                common_pb2.RxLine(
                    line_no=1,
                    item_type="11",
                    drug_code=AMLODIPINE,
                    generic_name="示例药",
                    dose="2.5",
                    dose_unit="mg",
                    frequency_code="11",
                    route_code="1",
                    supply_days=7,
                    quantity="1",
                    quantity_unit="盒",
                    unit_price="10.37",
                    amount_fen=1037,
                )
            ],
            patient=common_pb2.PatientFacts(age_years=65),
            origin=common_pb2.PRESCRIPTION_ORIGIN_HUMAN,
        )

    def upload_arguments(self) -> dict[str, Any]:
        return {**super().upload_arguments(), "file": b"%PDF-1.4 golden"}


class Golden(NamedTuple):
    """The whole log of the chain, and one receipt."""

    log: list[StoredEntry]
    receipt: common_pb2.Receipt


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def golden() -> AsyncIterator[Golden]:
    keys = HubKeys(fixed_key("receipt"), fixed_key("log"), {1: hashlib.sha256(b"hmac").digest()})
    async with live_hub(seed=False, start_ms=BEGIN_MS, hub_keys=keys) as live:
        live.world = _World()  # type: ignore[assignment]
        for client in (await live.agency(), await live.channel(), await live.hospital(), await live.pharmacy()):
            client.request_ids = _Numbered(client.connection.peer_name.role)
        await _register(live)
        chain = _GoldenChain(live)
        await chain.prechecked()
        live.advance(60_000)
        uploaded = await (await live.hospital()).upload(**chain.upload_arguments())
        await chain.delivered()
        yield Golden(await live.hub.store.log(0, 10_000), uploaded.receipt)


def _leaves(log: list[StoredEntry]) -> list[bytes]:
    newest: dict[bytes, bytes] = {}
    found = []
    for entry in log:
        header = Header.decode(entry.header)
        before = newest.get(entry.stream_key, FIRST_PREV_LEAF_HASH)
        found.append(
            leaf_bytes(header.type, header.stream_key, header.version, before, entry.commitment, header.recorded_at_ms)
        )
        newest[entry.stream_key] = entry.leaf_hash
    return found


def _uploaded(log: list[StoredEntry], receipt: common_pb2.Receipt) -> int:
    """The place of the first entry of the upload."""
    first = receipt.entries[0]
    return next(
        place
        for place, entry in enumerate(log)
        if (entry.stream_key, entry.version) == (first.stream_key, first.version)
    )


def _sha256(parts: list[bytes]) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


async def test_payloads_of_the_events_are_written_as_ever(golden: Golden) -> None:
    assert len(golden.log) == ENTRIES
    assert _sha256([entry.payload or b"" for entry in golden.log]) == PAYLOADS_SHA256


async def test_headers_are_written_as_ever_but_for_the_digest_of_the_pack(golden: Golden) -> None:
    headers = [Header.decode(entry.header) for entry in golden.log]
    # A cause is a leaf hash, which the digest of the pack reaches too.
    bare = [
        dataclasses.replace(
            header,
            policy_digest=bytes(len(header.policy_digest)),
            causes=tuple(bytes(len(cause)) for cause in header.causes),
        )
        for header in headers
    ]
    assert _sha256([header.encode() for header in bare]) == HEADERS_SHA256


async def test_leaves_are_written_as_ever(golden: Golden) -> None:
    leaves = _leaves(golden.log)
    assert {len(leaf) for leaf in leaves} == {115}
    assert _sha256(leaves) == LEAVES_SHA256


async def test_one_header_and_its_leaf_are_these_bytes(golden: Golden) -> None:
    place = _uploaded(golden.log, golden.receipt)
    assert golden.log[place].header.hex() == HEADER
    assert _leaves(golden.log)[place].hex() == LEAF


async def test_one_receipt_is_these_bytes(golden: Golden) -> None:
    assert golden.receipt.SerializeToString(deterministic=True).hex() == RECEIPT
