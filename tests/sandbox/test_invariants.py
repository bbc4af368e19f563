"""CheckInvariants finds nothing in a sound ledger, finds what was done to one, and claims only what it looked at."""

import dataclasses
from typing import Any

from erxhub.ledger.entry import Header
from erxhub.sandbox import invariants
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
