"""How the daily report of anomalies is printed (每日异常报告).

Owns the shape of its table and of its JSON object. It must never leave out a line that the hub told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from erxhub.cli.output import Output
    from erxhub.v1 import audit_pb2

COLUMNS: Final = ("kind", "code", "where", "who", "count", "first", "last")


def show(out: Output, reply: audit_pb2.ReportAnomaliesResponse) -> None:
    """The lines as a table, as JSON lines, or with everything about the report as one JSON object."""
    from erxhub.cli.arguments import iso_beijing

    rows = [
        {
            "kind": line.kind,
            "code": line.code,
            "where": line.where,
            "who": line.who,
            "count": line.count,
            "first": iso_beijing(line.first_at_ms) if line.first_at_ms else None,
            "last": iso_beijing(line.last_at_ms) if line.last_at_ms else None,
        }
        for line in reply.anomalies
    ]
    if out.format == "json":
        out.object(
            {
                "day": reply.day,
                "anomalies": rows,
                "entries": reply.entries,
                "prescriptions": reply.prescriptions,
                "anomalies_left_out": reply.anomalies_left_out,
                "prescriptions_left_out": reply.prescriptions_left_out,
                "as_of": reply.as_of_position,
            }
        )
        return
    if rows or out.format != "table":
        out.rows(rows, COLUMNS)
    left_out = f", {reply.anomalies_left_out} more lines" if reply.anomalies_left_out else ""
    unread = f", {reply.prescriptions_left_out} not read" if reply.prescriptions_left_out else ""
    out.say(
        f"{reply.day}: {len(rows)} anomalies{left_out}"
        f" in {reply.entries} entries and {reply.prescriptions} prescriptions{unread}"
    )
