"""CheckInvariants finds nothing in a sound ledger, finds what was done to one, and claims only what it looked at."""

import asyncio
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from erxhub.core.keys import trace_code_key
from erxhub.ledger.entry import Header
from erxhub.sandbox import invariants
from erxhub.v1 import events_pb2
from tests.audit.story import (
    CODES,
    DOCTOR,
    ORDER,
    PHARMACY,
    RX,
    Damaged,
    Story,
    voucher,
    with_payload,
)
from tests.sandbox.ground import Box


async def test_a_sound_ledger_has_no_finding(box: Box) -> None:
    place = await box.new("one")
    await place.chain(1).delivered()
    await place.chain(2).handed_over()
    await place.chain(3).held()
    await box.operator.advance_clock(by_ms=4 * 86_400_000, namespace="one")
    before = await box.ledger("one")
    checked = await box.operator.check_invariants(namespace="one")
    assert [finding.invariant for finding in checked.findings] == []
    assert checked.entries == len(before)
    assert set(checked.checked) == set(invariants.CHECKED)
    # Looking leaves no trace: the check is no auditor's access.
    assert await box.ledger("one") == before


def _log(box: Box) -> Any:
    """The rows of the namespace's own ledger, to be damaged."""
    return box.namespace("one").store._store._log  # type: ignore[attr-defined]


async def _damaged(box: Box, event: int, **changes: Any) -> set[str]:
    log = _log(box)
    place = next(at for at, entry in enumerate(log) if Header.decode(entry.header).type == event)
    altered = dataclasses.replace(log[place], **changes)
    streams = box.namespace("one").store._store._streams  # type: ignore[attr-defined]
    log[place] = streams[altered.stream_key][altered.version - 1] = altered
    checked = await box.operator.check_invariants(namespace="one")
    for finding in checked.findings:
        assert finding.where
        assert finding.text_en
        assert finding.text_zh
    return {finding.invariant for finding in checked.findings}


async def test_an_altered_payload_breaks_the_chain(box: Box) -> None:
    await (await box.new("one")).chain().delivered()
    assert "I11" in await _damaged(box, 0x0406, payload=b"")


async def test_an_altered_state_is_not_the_fold(box: Box) -> None:
    place = await box.new("one")
    chain = await place.chain().uploaded()
    states = box.namespace("one").store._store._states  # type: ignore[attr-defined]
    key = next(key for key, state in states.items() if chain.rx_no.encode() in state.body)
    states[key] = states[key]._replace(body=states[key].body[:-2])
    found = {finding.invariant for finding in (await box.operator.check_invariants(namespace="one")).findings}
    assert found == {"I10"}


# ---- each invariant that is claimed, broken ----


def _with(**fields: Any) -> Callable[[Any], None]:
    """Alters these fields of a payload or of a signed content."""

    def change(message: Any) -> None:
        for name, value in fields.items():
            setattr(message, name, value)

    return change


def _more_out(payload: events_pb2.DispenseOutbound) -> None:
    payload.lots[0].quantity = "9"


def _fund_pays_less(payload: events_pb2.SettlementCommitted) -> None:
    payload.claim.amounts.fund_fen -= 1


def _and_then(story: Story, kind: str, key: bytes, event: str, payload: Any, actor: str) -> Story:
    story.ledger.add(kind, key, event, payload, actor=actor)
    return story


def _second_hold() -> Story:
    """Another pharmacy gets the prescription while the first holds it."""
    story = Story(until="order.held")
    other = "P33010099102"
    for event, payload in (
        ("order.created", events_pb2.OrderCreated(order_no="ORDER2", pharmacy_code=other)),
        ("order.held", events_pb2.OrderHeld(order_no="ORDER2", hold_until_ms=story.ledger.now_ms)),
    ):
        _and_then(story, "prescription", RX, event, payload, f"pharmacy/{other}")
    return story


def _settled_by_another() -> Story:
    committed = events_pb2.SettlementCommitted(order_no=ORDER)
    committed.claim.settlement_id = "SETL1"
    story = Story(until="settlement.quoted")
    return _and_then(story, "prescription", RX, "settlement.committed", committed, "pharmacy/P33010099102")


def _sold_twice() -> Story:
    sold = events_pb2.TraceCodeSold(drug_code="XA01", rx_key=RX, pharmacy_code=PHARMACY)
    return _and_then(Story(), "trace_code", trace_code_key(CODES[0]), "trace_code.sold", sold, f"pharmacy/{PHARMACY}")


def _used_twice() -> Story:
    verified = events_pb2.VoucherVerified(institution_code=PHARMACY, ref_mac=b"again")
    return _and_then(Story(), "voucher", voucher("pay"), "voucher.verified", verified, f"pharmacy/{PHARMACY}")


BROKEN: dict[str, tuple[str, Callable[[], Story]]] = {
    "two pharmacies hold": ("I1", _second_hold),
    "more goes out than was prescribed": ("I2", lambda: Story(changed={"dispense.outbound": _more_out})),
    "another pharmacy settles": ("I3", _settled_by_another),
    "settled without a review": ("I3", lambda: Story(without=["review.passed"])),
    "out without settlement": ("I4", lambda: Story(without=["settlement.committed"])),
    "on the way without going out": ("I5", lambda: Story(delivery=True, without=["dispense.outbound"])),
    "the sums do not add up": ("I6", lambda: Story(changed={"settlement.committed": _fund_pays_less})),
    "a pack is sold again": ("I9", _sold_twice),
    "a step that no table allows": ("I10", lambda: Story(without=["order.held"])),
    "valid for longer than written": (
        "I12",
        lambda: Story(changed={"prescription.effective": _with(valid_until_ms=1)}),
    ),
    "another file than the sealed one": ("I13", lambda: Story(statements={"seal": _with(file_sha256=b"x" * 32)})),
    "keys of nobody": ("I14", lambda: Story(register_keys=False)),
    "the doctor reviews at the hospital": (
        "I16",
        lambda: Story(changed={"prescription.hospital_reviewed": _with(pharmacist_code=DOCTOR)}),
    ),
    "the doctor reviews at the pharmacy": (
        "I16",
        lambda: Story(changed={"review.passed": _with(pharmacist_code=DOCTOR)}),
    ),
    "one person picks and checks": (
        "I17",
        lambda: Story(
            changed={"dispense.picked": _with(dispenser_code="DS1"), "dispense.checked": _with(checker_code="DS1")}
        ),
    ),
    "a code is used again": ("I18", _used_twice),
}


def _found(story: Story, store: Any = None) -> set[str]:
    checked = asyncio.run(invariants.check(story.context(store)))
    return {finding.invariant for finding in checked.findings}


@pytest.mark.parametrize("what", BROKEN)
def test_a_ledger_that_breaks_an_invariant_is_found_out(what: str) -> None:
    invariant, told = BROKEN[what]
    assert invariant in _found(told())


@pytest.mark.parametrize("way", [{}, {"delivery": True}, {"self_paid": True}, {"internet": True}])
def test_the_stories_that_are_broken_there_are_sound_as_they_are(way: dict[str, bool]) -> None:
    assert _found(Story(**way)) == set()


def test_an_altered_entry_breaks_the_chain() -> None:
    story = Story()
    place = story.ledger.place("review.passed")
    damaged = Damaged(asyncio.run(story.ledger.stored()), {place: with_payload(_with(opinion="altered"))})
    assert "I11" in _found(story, damaged)


def test_no_invariant_is_claimed_that_no_broken_ledger_was_found_by() -> None:
    assert set(invariants.CHECKED) == {invariant for invariant, _ in BROKEN.values()} | {"I11"}
