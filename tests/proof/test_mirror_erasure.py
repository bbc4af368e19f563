"""A hub that erases to silence a mirror: what is there is judged, and an erasure has to be one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from erxhub.erasing import Erasing
from erxhub.ledger.entry import Header
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.store import Write
from erxhub.mirror.faults import MirrorFault, Reason
from erxhub.v1 import events_pb2
from tests.chain import Chain
from tests.hub.test_erasure import BY_ITSELF
from tests.live import DAY_MS, PERSON, live_hub
from tests.proof.test_mirror import (
    Echo,
    Entry,
    Hub,
    Place,
    entry_of,
    erasure,
    resealed,
    sealed,
    shown,
    streamed,
    told_of,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def honest() -> AsyncIterator[Hub]:
    async with live_hub() as live:
        yield await streamed(live)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def key_at(entries: list[Entry], at: int) -> bytes:
    return Header.decode(entries[at].header).stream_key


def add_erasure(entries: list[Entry], key: bytes, *, hides: bool, **said: Any) -> None:
    """Append an erasure of the stream; with `hides` what came before it is no longer streamed."""
    entries.append(erasure(entries, key, **said))
    for entry in entries[:-1]:
        if hides and Header.decode(entry.header).stream_key == key:
            entry.salt, entry.payload = b"", b""


def forge_signature(field: str) -> Callable[[Any], None]:
    def forge(payload: Any) -> None:
        getattr(payload, field).signatures[0].signature = bytes(64)

    return forge


async def fault_of(place: Place, hub: Hub, entries: list[Entry]) -> MirrorFault:
    """What a mirror comes to, and comes to again when it is started anew."""
    echo = await Echo(hub.signer, entries).prepare(place)
    faults = []
    for _ in range(2):
        with pytest.raises(MirrorFault) as caught:
            await place.replayed(echo)
        faults.append(caught.value)
    assert faults[0].evidence == faults[1].evidence
    return faults[0]


def findings(fault: MirrorFault) -> set[tuple[str, str]]:
    return {(each["stream_kind"], each["reason"]) for each in fault.evidence["findings"]}


@pytest.mark.parametrize(
    ("name", "field", "kind"),
    [
        ("prescription.uploaded", "prescription", "prescription"),
        ("dispense.handed_over", "statement", "prescription"),
        ("diagnosis.recorded", "statement", "encounter"),
    ],
)
@pytest.mark.parametrize("erases_visit", [False, True])
async def test_an_erasure_does_not_silence_the_mirror_about_what_it_was_shown(
    honest: Hub, place: Place, name: str, field: str, kind: str, erases_visit: bool
) -> None:
    at = entry_of(honest, name, last=False)
    entries = resealed(honest, {at: forge_signature(field)})
    if erases_visit:
        add_erasure(entries, key_at(entries, entry_of(honest, "diagnosis.recorded", last=False)), hides=False)
    add_erasure(entries, key_at(entries, entry_of(honest, "prescription.uploaded", last=False)), hides=False)
    fault = await fault_of(place, honest, entries)
    assert fault.reason == Reason.SIGNED
    assert findings(fault) == {(kind, "SIGNATURE")}


async def test_a_part_that_is_hidden_does_not_silence_the_mirror_about_the_rest(honest: Hub, place: Place) -> None:
    at = entry_of(honest, "prescription.uploaded")
    entries = resealed(honest, {at: forge_signature("seal")})
    effective = entries[entry_of(honest, "prescription.effective")]
    effective.salt, effective.payload = b"", b""
    add_erasure(entries, key_at(entries, at), hides=False)
    fault = await fault_of(place, honest, entries)
    assert fault.reason == Reason.SIGNED
    assert findings(fault) == {("prescription", "SIGNATURE")}


@pytest.mark.parametrize("forges", [False, True])
async def test_a_visit_that_was_erased_while_a_prescription_of_it_was_not_is_reported(
    honest: Hub, place: Place, forges: bool
) -> None:
    at = entry_of(honest, "prescription.uploaded")
    entries = resealed(honest, {at: forge_signature("prescription")} if forges else {})
    add_erasure(entries, key_at(entries, entry_of(honest, "diagnosis.recorded")), hides=True)
    add_erasure(entries, key_at(entries, entry_of(honest, "dispense.handed_over")), hides=True)
    fault = await fault_of(place, honest, entries)
    # What is forged is found first, before the erasure is taken.
    assert findings(fault) == {("prescription", "SIGNATURE") if forges else ("encounter", "CONTENT_MISSING")}


async def test_a_visit_is_not_erased_before_the_last_of_its_prescriptions_that_was_judged_long_ago(
    honest: Hub, place: Place
) -> None:
    entries = resealed(honest, {})
    visit = key_at(entries, entry_of(honest, "diagnosis.recorded"))
    before = len(entries)
    add_erasure(entries, visit, hides=False)
    add_erasure(entries, key_at(entries, entry_of(honest, "dispense.handed_over")), hides=False)
    hub = await several_checkpoints(place, Hub(honest.signer, entries), before, len(entries))
    mirror, _ = await place.mirror(hub)
    await mirror.catch_up(hub.part(before, 1))
    assert mirror.judged_position == before
    with pytest.raises(MirrorFault) as caught:
        await mirror.catch_up(hub)
    assert caught.value.reason == Reason.CONTENT_MISSING
    assert caught.value.evidence["findings"][0]["stream_key"] == visit.hex()
    assert mirror.judged_position == before
    await place.close()


@pytest.mark.parametrize("hides", [False, True])
async def test_a_visit_and_its_prescription_may_come_in_two_checkpoints(honest: Hub, place: Place, hides: bool) -> None:
    entries = resealed(honest, {})
    before = len(entries)
    add_erasure(entries, key_at(entries, entry_of(honest, "diagnosis.recorded")), hides=hides)
    add_erasure(entries, key_at(entries, entry_of(honest, "prescription.uploaded")), hides=hides)
    hub = await several_checkpoints(place, Hub(honest.signer, entries), before, before + 1, before + 2)
    mirror, _ = await place.mirror(hub)
    await mirror.catch_up(hub.part(before + 1, 2))
    assert mirror.judged_position <= before, "half an erasure is agreed with"
    await place.close()
    again, _ = await place.mirror(hub)
    assert (await again.catch_up(hub)).chains_erased == 1
    assert again.judged_position == before + 2
    await place.close()


async def several_checkpoints(place: Place, hub: Hub, *covered: int) -> Hub:
    """The hub with checkpoints up to these positions."""
    store = await open_sqlite(place.folder / "several.db")
    assert not (await store.append([Write(entries=tuple(map(sealed, hub.entries_)))])).conflicts
    last = 0
    for position in covered:
        made = await store.integrate(1, position - last)
        assert made is not None
        hub.told.append(told_of(hub, made))
        last = position
    await store.close()
    return hub


Said = events_pb2.ContentErased


@pytest.mark.parametrize(
    ("said", "actor", "reason"),
    [
        (Said(), "hospital/H33010000101", Reason.LIFECYCLE),
        (Said(), "", Reason.LIFECYCLE),
        (Said(kept_until_ms=2**60), "agency/330100", Reason.CONTENT_MISSING),
        (Said(kept_until_ms=2**60), "hub/hub-1", Reason.CONTENT_MISSING),
        (Said(retention_class=99), "agency/330100", Reason.PAYLOAD),  # type: ignore[arg-type]
    ],
)
async def test_an_erasure_is_by_who_may_and_not_before_its_time(
    honest: Hub, place: Place, said: Said, actor: str, reason: Reason
) -> None:
    entries = resealed(honest, {})
    add_erasure(entries, key_at(entries, entry_of(honest, "dispense.handed_over")), hides=True, said=said, actor=actor)
    fault = await fault_of(place, honest, entries)
    assert fault.reason == reason
    assert fault.evidence["header"] == entries[-1].header.hex()


async def test_an_erasure_that_cannot_be_read_erased_nothing(honest: Hub, place: Place) -> None:
    entries = resealed(honest, {})
    add_erasure(entries, key_at(entries, entry_of(honest, "dispense.handed_over")), hides=True)
    entries[-1].salt, entries[-1].payload = b"", b""
    assert (await fault_of(place, honest, entries)).reason == Reason.CONTENT_MISSING


async def test_content_is_erased_once(honest: Hub, place: Place) -> None:
    entries = resealed(honest, {})
    key = key_at(entries, entry_of(honest, "dispense.handed_over"))
    for _ in range(2):
        add_erasure(entries, key, hides=False)
    fault = await fault_of(place, honest, entries)
    assert findings(fault) == {("prescription", "STATE")}


async def test_the_hubs_clock_may_erase_too(honest: Hub, place: Place) -> None:
    entries = resealed(honest, {})
    key = key_at(entries, entry_of(honest, "dispense.handed_over"))
    add_erasure(entries, key, hides=True, said=Said(legal_basis="示例", kept_until_ms=1), actor="hub/hub-1")
    echo = await Echo(honest.signer, entries).prepare(place)
    assert (await place.replayed(echo)).chains_erased == 1


async def test_what_an_honest_hub_erases_is_agreed_with_by_who_saw_it_and_by_who_comes_later(place: Place) -> None:
    async with live_hub() as live:
        before = await streamed(live)
        mirror, _ = await place.mirror(before)
        await mirror.catch_up(before)
        chain = await Chain(live, PERSON).handed_over()
        live.advance(380 * DAY_MS)
        while await live.hub.engine.sweep():
            pass
        reply = await (await live.agency()).erase_content(rx_no=chain.rx_no, legal_basis="示例")
        assert reply.encounter_erased
        after = await shown(live)
        assert (await mirror.catch_up(after)).chains_erased == 1
        assert mirror.judged_position == after.told[-1].covered_position
        await place.close()
        late = await place.replayed(after, "late")
        assert (late.chains_erased, late.kept_back, late.root) == (1, 0, after.told[-1].root)


# ---- vouchers and accounts ----

BY_CLOCK: dict[str, Any] = {"said": Said(legal_basis="示例", kept_until_ms=1), "actor": "hub/hub-1"}


def key_of(hub: Hub, name: str) -> bytes:
    return key_at(hub.entries_, entry_of(hub, name, last=False))


@pytest.mark.parametrize("hides", [False, True])
@pytest.mark.parametrize("another_is", [False, True])
async def test_a_voucher_is_not_erased_before_what_rests_on_it(
    honest: Hub, place: Place, hides: bool, another_is: bool
) -> None:
    """Nor after something that rests on another one."""
    entries = resealed(honest, {})
    if another_is:
        add_erasure(entries, key_of(honest, "diagnosis.recorded"), hides=hides, **BY_CLOCK)
        add_erasure(entries, key_of(honest, "prescription.uploaded"), hides=hides, **BY_CLOCK)
    voucher = key_at(entries, entry_of(honest, "voucher.verified", last=another_is))
    add_erasure(entries, voucher, hides=hides, **BY_CLOCK)
    fault = await fault_of(place, honest, entries)
    assert fault.reason == Reason.CONTENT_MISSING
    assert findings(fault) == {("voucher", "CONTENT_MISSING")}
    assert {each["stream_key"] for each in fault.evidence["findings"]} == {voucher.hex()}


async def test_what_goes_right_after_a_voucher_does_not_hide_that_it_went_too_early(honest: Hub, place: Place) -> None:
    entries = resealed(honest, {})
    voucher = key_of(honest, "voucher.verified")
    for key in (voucher, key_of(honest, "diagnosis.recorded"), key_of(honest, "prescription.uploaded")):
        add_erasure(entries, key, hides=False, **BY_CLOCK)
    assert findings(await fault_of(place, honest, entries)) == {("voucher", "CONTENT_MISSING")}


async def test_a_voucher_goes_after_everything_that_rests_on_it_and_once(honest: Hub, place: Place) -> None:
    entries = resealed(honest, {})
    for name in ("diagnosis.recorded", "prescription.uploaded"):
        add_erasure(entries, key_of(honest, name), hides=True, **BY_CLOCK)
    first = honest.entries_[: entry_of(honest, "dispense.handed_over", last=False)]
    vouchers = list(dict.fromkeys(Header.decode(each.header).stream_key for each in first if is_code(each)))
    assert len(vouchers) > 1
    for key in vouchers:
        add_erasure(entries, key, hides=True, **BY_CLOCK)
    echo = await Echo(honest.signer, entries).prepare(place)
    assert (await place.replayed(echo)).chains_erased == 1
    add_erasure(entries, vouchers[0], hides=False, **BY_CLOCK)
    again = Place(place.folder / "again")
    again.folder.mkdir()
    assert findings(await fault_of(again, honest, entries)) == {("voucher", "STATE")}


def is_code(entry: Entry) -> bool:
    return Header.decode(entry.header).stream_kind == "voucher"


async def test_an_account_with_money_in_it_is_not_erased(honest: Hub, place: Place) -> None:
    entries = resealed(honest, {})
    add_erasure(entries, key_of(honest, "account.debited"), hides=False, **BY_CLOCK)
    fault = await fault_of(place, honest, entries)
    assert fault.reason == Reason.LIFECYCLE


async def test_what_a_hub_erases_by_its_clock_is_agreed_with(place: Place) -> None:
    async with live_hub(config=BY_ITSELF) as live:
        await Chain(live, PERSON).handed_over()
        before = await streamed(live)
        mirror, _ = await place.mirror(before)
        await mirror.catch_up(before)
        live.advance(380 * DAY_MS)
        while await live.hub.engine.sweep():
            pass
        assert await Erasing(live.hub.engine, BY_ITSELF).day() > 0
        after = await shown(live)
        assert sum(is_code(each) and not each.payload for each in after.entries_) > 1
        assert (await mirror.catch_up(after)).chains_erased > 0
        assert mirror.judged_position == after.told[-1].covered_position
        await place.close()
        late = await place.replayed(after, "late")
        assert (late.kept_back, late.root) == (0, after.told[-1].root)
