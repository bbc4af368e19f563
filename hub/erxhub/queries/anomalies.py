"""The auditor's daily report: one walk through the entries of a day, and the chains that they belong to.

Owns finding the day in the log, and the limits of the walk; what makes a line is `erxhub.audit.anomalies`'s. Entries
are ordered by commit and not by the clock, so the walk begins early and ends late, and takes each by its own instant.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from statistics import median_low
from typing import Final

from erxhub.audit.anomalies import Report
from erxhub.audit.chain import read_entry
from erxhub.audit.gaps import gaps
from erxhub.core.model import Accepted, Caller, Refused, Target
from erxhub.ledger.entry import Header, HeaderMalformed
from erxhub.ledger.store import StoredEntry
from erxhub.ledger.verify import verify_ledger
from erxhub.policy.pack import DAY_MS, china_date, day_begins_ms
from erxhub.ports import give_way
from erxhub.queries.audit import view_of
from erxhub.queries.base import Query, ReadContext
from erxhub.v1 import audit_pb2

PRESCRIPTIONS_MAX: Final = 5_000
"""Chains that one report reads whole, at a few milliseconds each; the rest is told as a number."""

_ENTRIES_AT_ONCE: Final = 256
_PROBE: Final = 9
"""Entries that are looked at together, so that one with a wrong instant leads nobody astray."""

_MARGIN_MS: Final = 3_600_000
"""Entries may stand so far from where their instant belongs; what is further off, a verification finds."""


async def report(ctx: ReadContext, caller: Caller, request: audit_pb2.ReportAnomaliesRequest) -> Accepted | Refused:
    """What was not as it should be on one day (每日异常报告), judged by what is known now.

    It verifies what was recorded since the day began, so a hub does one at a time.
    Refusals: AUDIT_REASON, INPUT_MALFORMED (no such day), OVERLOADED (a verification runs).
    """
    if not request.case_reason.strip():
        return Refused("AUDIT_REASON", field="case_reason")
    try:
        day = date.fromisoformat(request.day) if request.day else china_date(ctx.clock.now_ms())
    except ValueError:
        return Refused("INPUT_MALFORMED", field="day")
    if ctx.verification.locked():
        return Refused("OVERLOADED")
    async with ctx.verification:
        return await _report(ctx, day)


async def _report(ctx: ReadContext, day: date) -> Accepted:
    from_ms = day_begins_ms(day)
    found = Report(from_ms, from_ms + DAY_MS)
    as_of = await ctx.store.last_position()
    start = await _position_before(ctx, from_ms - _MARGIN_MS, as_of)
    walked = await _Walk(ctx, found, as_of).through(start, from_ms + DAY_MS + _MARGIN_MS)
    targets: dict[str, Target] = {}
    for key in list(walked.prescriptions)[:PRESCRIPTIONS_MAX]:
        view = await view_of(ctx, key, as_of, verify=True)
        if view is not None:
            found.chain(view, gaps(view))
            targets[view.chain.rx_no or key.hex()] = Target(key, view.chain.person_key)
        await give_way()
    await _verified(ctx, found, start)
    for kept in ctx.evidence():
        found.evidence(kept.name, kept.code, kept.written_at_ms)
    lines, left_out = found.lines()
    reply = audit_pb2.ReportAnomaliesResponse(
        day=day.isoformat(),
        anomalies=lines,
        entries=walked.entries,
        prescriptions=min(len(walked.prescriptions), PRESCRIPTIONS_MAX),
        anomalies_left_out=left_out,
        prescriptions_left_out=max(0, len(walked.prescriptions) - PRESCRIPTIONS_MAX),
        as_of_position=as_of,
    )
    told = dict.fromkeys(line.where for line in lines if line.where in targets)
    return Accepted(reply, targets=tuple(targets[rx_no] for rx_no in told))


class _Walk:
    """The entries of the day, in the order of the log."""

    def __init__(self, ctx: ReadContext, found: Report, as_of: int) -> None:
        self.entries = 0
        self.prescriptions: dict[bytes, None] = {}
        self._ctx = ctx
        self._found = found
        self._as_of = as_of

    async def through(self, position: int, until_ms: int) -> _Walk:
        """From after `position` until what is recorded lies after `until_ms`."""
        while position < self._as_of:
            page = await self._ctx.store.log(position, min(_ENTRIES_AT_ONCE, self._as_of - position))
            for entry in page:
                self._take(entry)
            if not page or (_recorded_at_ms(page) or 0) > until_ms:
                break
            position = page[-1].position
            await give_way()
        return self

    def _take(self, entry: StoredEntry) -> None:
        record = read_entry(entry)
        if record is None or not self._found.covers(record.at_ms):
            return
        self.entries += 1
        if record.payload is not None:
            self._found.entry(record)
        if entry.stream_kind == "prescription":
            self.prescriptions.setdefault(entry.stream_key)


async def _verified(ctx: ReadContext, found: Report, start: int) -> None:
    """Every entry since the day began: what was damaged today may have been recorded on another day before."""
    verification = await verify_ledger(ctx.store, from_position=start, between_pages=give_way)
    for finding in verification.findings:
        entry = await ctx.store.entries(finding.stream_key, finding.version - 1, 1) if finding.version else []
        record = read_entry(entry[0]) if entry else None
        at_ms, who = (record.at_ms, record.header.actor) if record else (0, "")
        found.finding(finding, at_ms, who)


async def _position_before(ctx: ReadContext, at_ms: int, last: int) -> int:
    """A position such that what comes before it was recorded before an instant; 0 where that is not known."""
    low, high = 0, last
    while high - low > _ENTRIES_AT_ONCE:
        middle = (low + high) // 2
        recorded_at_ms = _recorded_at_ms(await ctx.store.log(middle, _PROBE))
        if recorded_at_ms is None or recorded_at_ms >= at_ms:
            high = middle
        else:
            low = middle
    return low


def _recorded_at_ms(page: list[StoredEntry]) -> int | None:
    """The instant around which entries were recorded; None if none of them can be read."""
    found = []
    for entry in page[-_PROBE:]:
        try:
            found.append(Header.decode(entry.header).recorded_at_ms)
        except HeaderMalformed:
            continue
    return median_low(found) if found else None


QUERIES: Final[Mapping[str, Query]] = {"AuditService/ReportAnomalies": report}
