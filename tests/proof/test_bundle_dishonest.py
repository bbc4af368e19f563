"""A hub that has every key of its own, and lies: the rules inside the payloads find it, each under its reason."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import pytest
import pytest_asyncio

from erxhub.core.events import BY_NAME
from erxhub.core.keys import prescription_key
from erxhub.crypto.envelope import pae
from erxhub.ledger.entry import Header
from erxhub.ledger.store import Store, StoredEntry
from erxhub.proof.bundle import FullEntry, Shown, Subject, read_bundle, write_bundle
from erxhub.proof.bundle_verify import Verdict, verify_bundle
from erxhub.proof.reasons import Reason
from erxhub.queries.proofs import absence_bundle, chain_bundle
from erxhub.v1 import events_pb2, signed_pb2
from tests.chain import DOCTOR, Chain
from tests.live import MINUTE_MS, PERSON, PHARMACY, Live, live_hub
from tests.proof import dishonest
from tests.proof.bundle_story import Closing
from tests.proof.dishonest import Lie, Told, lied
from tests.proof.tampering import bare_stream

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live() -> AsyncIterator[Live]:
    """One hub for all: a lie is told of a copy of its ledger."""
    async with live_hub() as running:
        yield running


async def verdict_on(live: Live, rx_no: str, lie: Lie) -> Verdict:
    """What an auditor comes to when the hub's ledger is the lie."""
    store = await lied(live.hub.store, lie)
    closing = Closing(live, store=store)
    context = dataclasses.replace(closing.context, store=store)
    found = await chain_bundle(context, rx_no)
    assert found is not None
    return verify_bundle(found[0].encode(), closing.trust)


def changed(name: str, change: Callable[[Told], None]) -> Lie:
    """The entries of one event, changed."""

    def lie(told: Told) -> Iterable[Told]:
        if told.name == name:
            change(told)
        yield told

    return lie


def without(name: str) -> Lie:
    """The entries of one event were never written."""
    return lambda told: () if told.name == name else (told,)


def _forge_signature(told: Told) -> None:
    told.payload.prescription.signatures[0].signature = bytes(64)


def _other_pharmacist(told: Told) -> None:
    told.payload.pharmacist_code = "HY330100990002"


def _other_diagnosis(told: Told) -> None:
    told.payload.diagnoses[0].code = "J99.900"


def _no_causes(told: Told) -> None:
    told.header.causes = ()


def _foreign_cause(told: Told) -> None:
    told.header.causes = (*told.header.causes, bytes([7]) * 32)


def _less_debited(told: Told) -> None:
    told.payload.amount_fen += 1


def _sold_elsewhere(told: Told) -> None:
    told.payload.rx_key = bytes(32)


def _other_origin(told: Told) -> None:
    told.payload.origin = "another.example/ledger"


def _unregistered_log_key(told: Told) -> None:
    if told.payload.key.purpose == "log":
        told.payload.key.public_key = bytes(32)


def _earlier(told: Told) -> None:
    told.header.recorded_at_ms -= 10 * MINUTE_MS


def _of_another_number(told: Told) -> None:
    told.payload.rx_no = told.payload.rx_no[::-1]


def _unreadable(told: Told) -> None:
    told.payload = events_pb2.PrescriptionExpired()
    told.payload.MergeFromString(b"")
    told.header.kind = told.header.kind.__class__(2)


@pytest.mark.parametrize(
    ("lie", "reasons"),
    [
        (lambda told: (told,), set()),
        (changed("ledger.opened", _other_origin), {Reason.GENESIS}),
        (changed("hub_key.registered", _unregistered_log_key), {Reason.HUB_KEY}),
        (changed("prescription.prechecked", _of_another_number), {Reason.STREAM_KEY}),
        (changed("prescription.prechecked", _no_causes), {Reason.LINK}),
        (changed("prescription.prechecked", _foreign_cause), {Reason.CAUSE_MISSING}),
        (changed("prescription.prechecked", _earlier), {Reason.TIME_BACKWARDS}),
        (changed("prescription.effective", _unreadable), {Reason.PAYLOAD}),
        (without("review.passed"), {Reason.LIFECYCLE}),
        (without("settlement.committed"), {Reason.LIFECYCLE}),
        (without("signing_key.registered"), {Reason.SIGNING_KEY}),
        (changed("prescription.uploaded", _forge_signature), {Reason.SIGNATURE}),
        (changed("prescription.hospital_reviewed", _other_pharmacist), {Reason.DIGEST, Reason.SIGNING_KEY}),
        (changed("diagnosis.recorded", _other_diagnosis), {Reason.DIGEST}),
        (changed("account.debited", _less_debited), {Reason.MONEY}),
        (changed("trace_code.sold", _sold_elsewhere), {Reason.TRACE_CODE}),
    ],
)
async def test_a_lie_of_the_hub_is_found_under_its_reason(live: Live, lie: Lie, reasons: set[Reason]) -> None:
    chain = Chain(live, PERSON)
    await chain.diagnosed()
    live.advance(MINUTE_MS)
    chain.prescription = chain.written()
    await chain.handed_over()
    verdict = await verdict_on(live, chain.rx_no, lie)
    found = {fault.reason for fault in verdict.faults}
    assert found <= reasons
    assert bool(found) == bool(reasons)


async def test_more_goods_than_prescribed_are_found_though_the_pharmacy_signed_for_them(live: Live) -> None:
    chain = await Chain(live, PERSON).handed_over()
    key = live.key(PHARMACY, PHARMACY)

    def more(told: Told) -> None:
        statement = signed_pb2.DispenseStatement.FromString(told.payload.statement.payload)
        for lots in (statement.lots, told.payload.lots):
            lots[0].quantity = "99"
        _sign(told.payload.statement, statement, key)

    verdict = await verdict_on(live, chain.rx_no, changed("dispense.outbound", more))
    assert [fault.reason for fault in verdict.faults] == [Reason.QUANTITY]


def _sign(signed: Any, statement: Any, key: Any) -> None:
    signed.payload = statement.SerializeToString(deterministic=True)
    signed.signatures[0].signature = key.sign(pae(signed.payload_type, signed.payload))


@dataclasses.dataclass
class OneLine(Chain):
    """A sale of one line of the prescription, at the counter."""

    line: int = 1

    def sale_lines(self) -> list[signed_pb2.SaleLine]:
        return [each for each in super().sale_lines() if each.line_no == self.line]

    def lots(self) -> list[signed_pb2.DispensedLot]:
        return [each for each in super().lots() if each.line_no == self.line]


async def two_sales(live: Live) -> Chain:
    """A prescription of which each line was sold and handed over by itself."""
    chain = OneLine(live, PERSON)
    await chain.handed_over()
    live.advance(MINUTE_MS)
    chain.line, chain.settlement_id = 2, ""
    return await chain.handed_over()


async def test_a_statement_about_one_order_does_not_stand_for_another(live: Live) -> None:
    chain = await two_sales(live)
    first: list[Any] = []

    def again(told: Told) -> None:
        first.append(told.payload.statement)
        told.payload.statement.CopyFrom(first[0])

    assert (await verdict_on(live, chain.rx_no, lambda told: (told,))).faults == []
    lie = changed("dispense.handed_over", lambda told: again(told) if _is_of(told, chain.rx_no) else None)
    verdict = await verdict_on(live, chain.rx_no, lie)
    assert [fault.reason for fault in verdict.faults] == [Reason.REUSED]
    versions = [entry.version for entry in await live.hub.store.entries(prescription_key(chain.rx_no), 0, 100)]
    assert verdict.faults[0].version <= versions[-1]


def _is_of(told: Told, rx_no: str) -> bool:
    return told.header.stream_key == prescription_key(rx_no)


@pytest.mark.parametrize("later_ms", [0, 1])
async def test_a_diagnosis_that_was_amended_does_not_come_back_under_its_first_statement(
    live: Live, later_ms: int
) -> None:
    """Two steps of one instant may be alike: whoever signs both has nothing to tell them apart by."""
    chain = await Chain(live, PERSON).diagnosed()
    live.advance(MINUTE_MS)
    chain.prescription = chain.written()
    await chain.handed_over()

    def lie(told: Told) -> Iterable[Told]:
        yield told
        if told.name == "diagnosis.recorded":
            header = dataclasses.replace(told.header, recorded_at_ms=told.header.recorded_at_ms + later_ms)
            again = Told("diagnosis.amended", header, events_pb2.DiagnosisRecorded())
            again.payload.CopyFrom(told.payload)
            # Under another signature of the same content: only its bytes count.
            statement = signed_pb2.DiagnosisStatement.FromString(told.payload.statement.payload)
            _sign(again.payload.statement, statement, live.key(DOCTOR, chain.hospital_code))
            yield again

    verdict = await verdict_on(live, chain.rx_no, lie)
    assert {fault.reason for fault in verdict.faults} == ({Reason.REUSED} if later_ms else set())


async def test_a_pharmacys_seal_is_no_pharmacist(live: Live) -> None:
    chain = await Chain(live, PERSON).handed_over()
    seal = live.key(PHARMACY, PHARMACY)

    def unreviewed(told: Told) -> None:
        statement = signed_pb2.ReviewStatement.FromString(told.payload.statement.payload)
        statement.pharmacist_code = told.payload.pharmacist_code = ""
        told.payload.statement.signatures[0].key_id = seal.key_id
        _sign(told.payload.statement, statement, seal)

    verdict = await verdict_on(live, chain.rx_no, changed("review.passed", unreviewed))
    assert {fault.reason for fault in verdict.faults} == {Reason.SIGNING_KEY}


async def test_a_hospitals_seal_is_no_doctor(live: Live) -> None:
    chain = await Chain(live, PERSON).uploaded()
    seal = live.key(chain.hospital_code, chain.hospital_code)

    def undiagnosed(told: Told) -> None:
        statement = signed_pb2.DiagnosisStatement.FromString(told.payload.statement.payload)
        statement.doctor_code = told.payload.doctor_code = chain.hospital_code
        told.payload.statement.signatures[0].key_id = seal.key_id
        _sign(told.payload.statement, statement, seal)

    verdict = await verdict_on(live, chain.rx_no, changed("diagnosis.recorded", undiagnosed))
    assert {fault.reason for fault in verdict.faults} == {Reason.SIGNING_KEY}


async def test_a_key_that_is_revoked_later_did_sign_and_one_that_was_revoked_before_did_not() -> None:
    async with live_hub() as live:
        live.advance(MINUTE_MS)
        chain = await Chain(live, PERSON).uploaded()
        live.advance(MINUTE_MS)
        key_id = live.key(DOCTOR, chain.hospital_code).key_id
        await (await live.agency()).revoke_certificate(key_id=key_id, reason="lost")

        def before(told: Told) -> None:
            told.header.recorded_at_ms -= 2 * MINUTE_MS

        honest = await verdict_on(live, chain.rx_no, lambda told: (told,))
        assert honest.faults == []
        lying = await verdict_on(live, chain.rx_no, changed("certificate.revoked", before))
        assert {fault.reason for fault in lying.faults} == {Reason.SIGNING_KEY}


async def test_with_the_root_a_key_that_certificates_are_made_for_needs_one(live: Live) -> None:
    chain = await Chain(live, PERSON).handed_over()

    def uncertified(told: Told) -> None:
        told.payload.certificate_pem = b""

    verdict = await verdict_on(live, chain.rx_no, changed("signing_key.registered", uncertified))
    assert {fault.reason for fault in verdict.faults} == {Reason.CERTIFICATE}


async def test_a_key_that_outlives_its_certificate_is_found(live: Live) -> None:
    chain = await Chain(live, PERSON).handed_over()

    def longer(told: Told) -> None:
        told.payload.key.valid_until_ms += 100 * 365 * 24 * 60 * MINUTE_MS

    verdict = await verdict_on(live, chain.rx_no, changed("signing_key.registered", longer))
    assert {fault.reason for fault in verdict.faults} == {Reason.CERTIFICATE}


async def test_a_dispensing_under_a_type_that_nobody_knows_does_not_pass_for_none(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    chain = await Chain(live, PERSON).handed_over()
    unknown = dataclasses.replace(BY_NAME["dispense.outbound"], number=0x7777)
    foreign = dataclasses.replace(BY_NAME["dispense.outbound"], number=BY_NAME["account.opened"].number)
    for hidden in (unknown, foreign):
        monkeypatch.setattr(dishonest, "BY_NAME", {**BY_NAME, "hidden": hidden})

        def hiding(told: Told) -> Iterable[Told]:
            is_one = told.name in ("dispense.outbound", "dispense.handed_over")
            yield Told("hidden", told.header, told.payload) if is_one else told

        closing = Closing(live, store=await lied(live.hub.store, hiding))
        context = dataclasses.replace(closing.context, store=closing.store)
        text, _ = await absence_bundle(context, Subject("prescription", chain.rx_no))
        verdict = verify_bundle(text.encode(), closing.trust)
        assert [fault.reason for fault in verdict.faults] == [Reason.PAYLOAD]


async def test_a_visit_that_was_erased_hides_no_prescription_that_was_not(live: Live) -> None:
    chain = await Chain(live, PERSON).uploaded()

    def lie(told: Told) -> Iterable[Told]:
        if told.name == "prescription.uploaded":
            _forge_signature(told)
        yield told
        if told.name == "diagnosis.recorded":
            yield Told("content.erased", told.header, BY_NAME["content.erased"].payload())

    closing = Closing(live, store=await lied(live.hub.store, lie))
    context = dataclasses.replace(closing.context, store=closing.store)
    found = await chain_bundle(context, chain.rx_no)
    assert found is not None
    bundle = read_bundle(found[0].encode())
    prescription, visit, ledger = bundle.streams
    named = {
        cause
        for entry in prescription.entries
        if isinstance(entry, FullEntry)
        for cause in Header.decode(entry.header).causes
    }
    hiding = dataclasses.replace(
        bundle,
        streams=(prescription, bare_stream(visit), ledger),
        singles=tuple(each for each in bundle.singles if _leaf_hash(each.entry) in named),
    )
    verdict = verify_bundle(write_bundle(hiding).encode(), closing.trust)
    assert [fault.reason for fault in verdict.faults] == [Reason.CONTENT_MISSING]


def _leaf_hash(shown: Shown) -> bytes:
    assert isinstance(shown, FullEntry)
    return shown.leaf_hash


async def test_content_that_is_not_shown_has_to_be_erased_by_an_entry(live: Live) -> None:
    chain = await Chain(live, PERSON).uploaded()
    closing = Closing(live)
    bundle = read_bundle(await closing.chain(chain.rx_no))
    bare = dataclasses.replace(bundle, streams=(bare_stream(bundle.streams[0]), *bundle.streams[1:]))
    verdict = verify_bundle(write_bundle(bare).encode(), closing.trust)
    assert {fault.reason for fault in verdict.faults} == {Reason.CONTENT_MISSING}


async def test_content_that_is_gone_is_taken_for_erased_only_where_an_entry_says_so(live: Live) -> None:
    chain = await Chain(live, PERSON).uploaded()
    store: Store = live.hub.store

    def erasing(told: Told) -> Iterable[Told]:
        yield told
        if told.name == "prescription.effective" and told.header.stream_key == prescription_key(chain.rx_no):
            yield Told("content.erased", told.header, BY_NAME["content.erased"].payload())

    class Emptied:
        """The store, without the content of the prescription."""

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

        async def entries(self, stream_key: bytes, after_version: int, limit: int) -> list[StoredEntry]:
            found = await store.entries(stream_key, after_version, limit)
            gone = stream_key == prescription_key(chain.rx_no)
            return [
                dataclasses.replace(one, salt=None, payload=None) if gone and one.version <= erased else one
                for one in found
            ]

    # Everything, with no entry that says so.
    closing, erased = Closing(live), 1_000
    found = await chain_bundle(dataclasses.replace(closing.context, store=Emptied()), chain.rx_no)  # type: ignore[arg-type]
    assert found is not None
    verdict = verify_bundle(found[0].encode(), closing.trust)
    assert {fault.reason for fault in verdict.faults} == {Reason.CONTENT_MISSING}
    assert verdict.erased == len(read_bundle(found[0].encode()).streams[0].entries)

    # Everything before the entry that says so.
    store = await lied(live.hub.store, erasing)
    closing = Closing(live, store=store)
    erased = len(await store.entries(prescription_key(chain.rx_no), 0, 100)) - 1
    found = await chain_bundle(dataclasses.replace(closing.context, store=Emptied()), chain.rx_no)  # type: ignore[arg-type]
    assert found is not None
    verdict = verify_bundle(found[0].encode(), closing.trust)
    assert verdict.faults == []
    assert (verdict.erased, verdict.entries) == (erased, erased + 1)


@pytest.mark.parametrize(
    ("shown", "kept_until_ms", "reason"),
    [
        ((), 0, None),
        ((), 2**60, Reason.CONTENT_MISSING),  # before its time
        ((2,), 0, Reason.CONTENT_MISSING),  # the hub shows what it likes
    ],
)
async def test_an_erasure_is_of_everything_before_it_and_not_before_its_time(
    live: Live, shown: tuple[int, ...], kept_until_ms: int, reason: Reason | None
) -> None:
    chain = await Chain(live, PERSON).uploaded()
    said = events_pb2.ContentErased(legal_basis="basis", kept_until_ms=kept_until_ms)

    def erasing(told: Told) -> Iterable[Told]:
        yield told
        if told.name == "prescription.effective" and told.header.stream_key == prescription_key(chain.rx_no):
            yield Told("content.erased", told.header, said)

    closing = Closing(live, store=await lied(live.hub.store, erasing))
    context = dataclasses.replace(closing.context, store=closing.store)
    found = await chain_bundle(context, chain.rx_no)
    assert found is not None
    bundle = read_bundle(found[0].encode())
    prescription, _, ledger = bundle.streams
    entries = [
        whole if number == len(prescription.entries) or number in shown else bare
        for number, (whole, bare) in enumerate(
            zip(prescription.entries, bare_stream(prescription).entries, strict=True), 1
        )
    ]
    erased = dataclasses.replace(prescription, entries=tuple(entries))
    named = {cause for entry in entries if isinstance(entry, FullEntry) for cause in Header.decode(entry.header).causes}
    singles = tuple(each for each in bundle.singles if _leaf_hash(each.entry) in named)
    text = write_bundle(dataclasses.replace(bundle, streams=(erased, ledger), singles=singles))
    verdict = verify_bundle(text.encode(), closing.trust)
    assert [fault.reason for fault in verdict.faults] == ([reason] if reason else [])
