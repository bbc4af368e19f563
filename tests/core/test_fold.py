"""Which events a kind of stream folds: those that the table of events gives it, and no other."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

import pytest

from erxhub.core import fold_order, fold_prescription, fold_registry, fold_visit
from erxhub.core.events import EVENT_TYPES, At, EventType
from erxhub.core.fold import STATE_TYPES, EventMisplaced, evolve
from erxhub.core.lifecycle import IllegalTransition

PARTS = (fold_registry.FOLDS, fold_visit.FOLDS, fold_prescription.FOLDS, fold_order.FOLDS)


def is_folded(stream_kind: str, event: EventType) -> bool:
    """Whether the event has a place in such a stream; that an empty state cannot take it is another matter."""
    try:
        with suppress(IllegalTransition, AssertionError, LookupError, StopIteration):
            evolve(stream_kind, STATE_TYPES[stream_kind](), event.name, event.payload(), At(1, 0, ""))
    except EventMisplaced:
        return False
    return True


@pytest.mark.parametrize("stream_kind", STATE_TYPES)
def test_a_stream_folds_the_events_that_the_table_gives_it(stream_kind: str) -> None:
    folded = {event.name for event in EVENT_TYPES if is_folded(stream_kind, event)}
    assert folded == {event.name for event in EVENT_TYPES if stream_kind in event.stream_kinds}


def test_no_two_parts_fold_the_same_event() -> None:
    rows = Counter(row for part in PARTS for row in part)
    assert [row for row, times in rows.items() if times > 1] == []
