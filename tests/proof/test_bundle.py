"""A bundle of a real chain verifies offline, and says what it proves; so does the proof that there is nothing."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import pytest_asyncio

from erxhub.core.keys import prescription_key
from erxhub.crypto.suites import SigningKey
from erxhub.proof.bundle import BareLeaf, Form, Subject, read_bundle, write_bundle
from erxhub.proof.bundle_checkpoint import Trust
from erxhub.proof.bundle_verify import Verdict, verify_bundle
from erxhub.proof.notes import LogSigner
from erxhub.proof.policy import read_policy
from erxhub.proof.reasons import Reason
from erxhub.v1 import signed_pb2
from tests.chain import DOCTOR, Chain
from tests.live import DAY_MS, EMPLOYEE, MINUTE_MS, PERSON, Live, live_hub
from tests.proof.bundle_story import Closing

pytestmark = pytest.mark.asyncio(loop_scope="module")

CODE = "81234567890123456789"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live() -> AsyncIterator[Live]:
    """One hub for all, whose log grows from test to test."""
    async with live_hub() as running:
        yield running


def reasons(verdict: Verdict) -> set[Reason]:
    """Why it was refused."""
    return {fault.reason for fault in verdict.faults}


# ---- sound chains of every way ----


async def _undone(chain: Chain) -> None:
    await chain.settled()
    pharmacy = await chain.live.pharmacy()
    await pharmacy.undo_settlement(rx_no=chain.rx_no, settlement_id=chain.settlement_id, reason="退款")


async def _undo_reversed(chain: Chain) -> None:
    await chain.settled()
    pharmacy = await chain.live.pharmacy()
    await pharmacy.undo_settlement(
        rx_no=chain.rx_no, settlement_id=chain.settlement_id, reason="退款", request_id="undo-request-9"
    )
    await pharmacy.reverse_settlement(original_request_id="undo-request-9", original_transaction="2103")
    await chain.handed_over()


async def _rejected_first(chain: Chain) -> None:
    await chain.held()
    await chain.review(signed_pb2.REVIEW_DECISION_REJECT, "剂量过大")
    await chain.handed_over()


async def _revoked(chain: Chain) -> None:
    await chain.uploaded()
    await (await chain.live.hospital()).revoke(rx_no=chain.rx_no, doctor_code=DOCTOR, reason="改方")


WAYS: dict[str, Callable[[Chain], Awaitable[Any]]] = {
    "prechecked": Chain.prechecked,
    "uploaded": Chain.uploaded,
    "quoted": Chain.quoted,
    "handed over": Chain.handed_over,
    "delivered": Chain.delivered,
    "settlement undone": _undone,
    "undo reversed": _undo_reversed,
    "review rejected first": _rejected_first,
    "revoked": _revoked,
}


@pytest.mark.parametrize("way", WAYS)
async def test_the_bundle_of_a_sound_chain_verifies_with_the_logs_key_alone(live: Live, way: str) -> None:
    chain = Chain(live, PERSON)
    await WAYS[way](chain)
    live.advance(4 * DAY_MS)
    closing = Closing(live)
    data = await closing.chain(chain.rx_no)
    verdict = verify_bundle(data, closing.trust, Subject("prescription", chain.rx_no), Form.CHAIN)
    assert verdict.faults == []
    assert verdict.holds
    assert [check.number for check in verdict.checks] == list(range(1, len(verdict.checks) + 1))
    assert write_bundle(read_bundle(data)).encode() == data


@pytest.mark.parametrize("suite", ["EdDSA", "SM2-SM3"])
async def test_a_chain_signed_under_another_suite_verifies(suite: str) -> None:
    async with live_hub(suite=suite) as live:
        chain = await Chain(live, PERSON).handed_over()
        closing = Closing(live)
        assert verify_bundle(await closing.chain(chain.rx_no), closing.trust).faults == []


async def test_the_signers_certificates_come_from_the_trust_domain_that_was_named_and_from_no_other() -> None:
    async with live_hub() as live, live_hub() as elsewhere:
        chain = await Chain(live, PERSON).uploaded()
        closing = Closing(live)
        data = await closing.chain(chain.rx_no)
        assert verify_bundle(data, closing.trust).holds
        foreign = dataclasses.replace(closing.trust, ca_pem=elsewhere.trust.ca_pem)
        assert reasons(verify_bundle(data, foreign)) == {Reason.CERTIFICATE}


async def test_a_bundle_stays_the_same_proof_while_the_log_goes_on(live: Live) -> None:
    chain = await Chain(live, PERSON).uploaded()
    closing = Closing(live)
    before = await closing.chain(chain.rx_no)
    live.advance(MINUTE_MS)
    await chain.handed_over()
    after = await closing.chain(chain.rx_no)
    assert [verify_bundle(data, closing.trust).faults for data in (before, after)] == [[], []]
    assert len(after) > len(before)


async def test_of_a_renewed_prescription_only_the_leaf_is_shown(live: Live) -> None:
    first = await Chain(live, PERSON).handed_over()
    live.advance(MINUTE_MS)
    second = await Chain(live, PERSON).diagnosed()
    second.prescription.renews_rx_no = first.rx_no
    await second.uploaded()
    closing = Closing(live)
    data = await closing.chain(second.rx_no)
    verdict = verify_bundle(data, closing.trust)
    assert verdict.faults == []
    bare = [single.entry for single in read_bundle(data).singles if isinstance(single.entry, BareLeaf)]
    assert [entry.leaf[3:35] for entry in bare] == [prescription_key(first.rx_no)]


# ---- whom to believe ----


async def prepared(live: Live, *, witnessed: bool = False) -> tuple[Closing, bytes]:
    """A closed log, and the bundle of an uploaded prescription."""
    chain = await Chain(live, PERSON).uploaded()
    closing = Closing(live, witnessed=witnessed)
    return closing, await closing.chain(chain.rx_no)


async def test_another_logs_key_and_another_subject_are_refused(live: Live) -> None:
    closing, data = await prepared(live)
    stranger = LogSigner(closing.signer.key.name, SigningKey.generate("EdDSA"))
    assert reasons(verify_bundle(data, Trust((stranger.key,)))) == {Reason.CHECKPOINT}
    assert reasons(verify_bundle(data, Trust())) == {Reason.CHECKPOINT}
    asked = Subject("prescription", "330100" + "1" * 21)
    assert reasons(verify_bundle(data, closing.trust, asked)) == {Reason.SUBJECT}
    assert reasons(verify_bundle(data, closing.trust, None, Form.ABSENCE)) == {Reason.SUBJECT}


async def test_a_policy_demands_its_quorum_and_without_one_the_bundle_is_called_unwitnessed(live: Live) -> None:
    closing, data = await prepared(live)
    alone = verify_bundle(data, Trust((closing.signer.key,)))
    assert alone.holds
    assert any("unwitnessed" in check.words for check in alone.checks)
    demanding = Trust((closing.signer.key,), read_policy(closing.policy))
    assert reasons(verify_bundle(data, demanding)) == {Reason.QUORUM}


async def test_the_witnesses_of_a_policy_are_named(live: Live) -> None:
    closing, data = await prepared(live, witnessed=True)
    verdict = verify_bundle(data, closing.trust)
    assert verdict.faults == []
    assert verdict.checkpoint is not None
    assert verdict.checkpoint.witnesses == ("witness.one", "witness.two")
    assert verdict.checkpoint.cosigned_at_s == (1_795_140_000, 1_795_140_000)
    assert any("witness.one at 2026-11-20T02:00:00Z" in check.words for check in verdict.checks)


# ---- nothing there ----


@pytest.mark.parametrize(("kind", "name"), [("prescription", "330100" + "1" * 21), ("trace_code", CODE)])
async def test_what_never_was_is_proven_to_be_absent(live: Live, kind: str, name: str) -> None:
    await Chain(live, PERSON).uploaded()
    closing = Closing(live)
    asked = Subject(kind, name)
    verdict = verify_bundle(await closing.absence(kind, name), closing.trust, asked, Form.ABSENCE)
    assert verdict.faults == []
    assert (verdict.entries, verdict.form) == (0, Form.ABSENCE)


async def test_a_prescription_without_a_dispensing_is_told_with_all_its_entries_and_none_of_its_content(
    live: Live,
) -> None:
    chain = await Chain(live, PERSON).quoted()
    closing = Closing(live)
    data = await closing.absence("prescription", chain.rx_no)
    verdict = verify_bundle(data, closing.trust)
    assert verdict.faults == []
    assert verdict.entries > 5
    assert b"\nentry " not in data


async def test_an_absence_is_not_proven_where_goods_went_out(live: Live) -> None:
    chain = await Chain(live, PERSON).dispensed()
    closing = Closing(live)
    data = await closing.absence("prescription", chain.rx_no)
    assert reasons(verify_bundle(data, closing.trust)) == {Reason.DISPENSED}
    sold = (await _sold_codes(live))[0]
    assert reasons(verify_bundle(await closing.absence("trace_code", sold), closing.trust)) == {Reason.DISPENSED}


async def _sold_codes(live: Live) -> list[str]:
    """The drug trace codes of everything that went out."""
    from erxhub.core.events import BY_NAME
    from erxhub.ledger.entry import Header

    entries = await live.hub.store.log(0, 10_000)
    outbound = BY_NAME["dispense.outbound"]
    found = [
        outbound.payload.FromString(entry.payload or b"")
        for entry in entries
        if Header.decode(entry.header).type == outbound.number
    ]
    return [code for each in found for lot in each.lots for code in lot.trace_codes]  # type: ignore[attr-defined]


async def test_an_absence_claimed_for_what_exists_is_refused(live: Live) -> None:
    chain = await Chain(live, PERSON).dispensed()
    other = await Chain(live, EMPLOYEE).uploaded()
    closing = Closing(live)
    absent = read_bundle(await closing.absence("prescription", "330100" + "1" * 21))
    there = read_bundle(await closing.absence("prescription", chain.rx_no))
    others = read_bundle(await closing.absence("prescription", other.rx_no))
    subject = there.subject
    assert there.streams
    for claim, reason in (
        (dataclasses.replace(absent, subject=subject), Reason.ABSENCE),
        (dataclasses.replace(absent, subject=subject, absence=b""), Reason.ABSENCE),
        (dataclasses.replace(absent, subject=subject, absence=there.streams[0].map_proof), Reason.ABSENCE),
        (dataclasses.replace(others, subject=subject), Reason.STREAM_KEY),
        (dataclasses.replace(there, streams=()), Reason.STREAM_MISSING),
        (_shortened(there, 5), Reason.MAP),
    ):
        assert reasons(verify_bundle(write_bundle(claim).encode(), closing.trust)) == {reason}


def _shortened(bundle: Any, entries: int) -> Any:
    stream = dataclasses.replace(bundle.streams[0], entries=bundle.streams[0].entries[:entries])
    return dataclasses.replace(bundle, streams=(stream,))


# ---- what it costs ----


async def test_a_whole_chain_is_verified_in_25_ms_of_cpu(live: Live) -> None:
    chain = await Chain(live, PERSON).delivered()
    closing = Closing(live)
    data = await closing.chain(chain.rx_no)
    taken_ms = []
    for _ in range(7):
        before = time.process_time()
        assert verify_bundle(data, closing.trust).holds
        taken_ms.append((time.process_time() - before) * 1_000)
    middle = sorted(taken_ms)[3]
    print(f"bundle of a delivered prescription: {len(data)} bytes, verified in {middle:.1f} ms of CPU")
    assert middle <= 25
