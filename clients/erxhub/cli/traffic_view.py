"""How a recorded call looks on one line, and as a JSON object.

Owns both forms. Must never: shorten what the JSON says.
"""

from __future__ import annotations

import json
from typing import Any

from erxhub.cli.arguments import iso_beijing
from erxhub.cli.records import stream_name
from erxhub.v1 import sandbox_pb2


def exchange_line(exchange: sandbox_pb2.Exchange) -> str:
    """Number, time, caller, method, outcome, and what else there is to say: prescription, entries, faults, replay."""
    at = iso_beijing(exchange.received_at_ms)[11:23]
    ended = exchange.answered_us >= exchange.arrived_us and exchange.status
    took = f"{(exchange.answered_us - exchange.arrived_us) / 1000:.1f} ms" if ended else "open"
    parts = [f"{exchange.number:>5} {at}  {exchange.actor:<24} {exchange.method:<34} {outcome(exchange):<12} {took:>9}"]
    parts += [f"rx {exchange.rx_no}"] if exchange.rx_no else []
    parts += ["+ " + ", ".join(entry.type for entry in exchange.entries)] if exchange.entries else []
    parts += ["stored reply"] if exchange.replayed else []
    parts += [f"bad signature of {one.field}: {one.reason}" for one in exchange.signatures if not one.valid]
    parts += ["fault " + ", ".join(exchange.faults)] if exchange.faults else []
    return "  ".join(parts)


def outcome(exchange: sandbox_pb2.Exchange) -> str:
    """The refusal's code, or the status that the caller saw."""
    return exchange.refusal_code or exchange.status or "…"


def exchange_record(exchange: sandbox_pb2.Exchange) -> dict[str, Any]:
    """A call as one JSON object; requests and replies are the messages themselves (proto3 JSON)."""
    return {
        "number": exchange.number,
        "method": exchange.method,
        "actor": exchange.actor,
        "request_id": exchange.request_id,
        "rx_no": exchange.rx_no,
        "received_at": iso_beijing(exchange.received_at_ms),
        "arrived_us": exchange.arrived_us,
        "answered_us": exchange.answered_us,
        "status": exchange.status,
        "refusal_code": exchange.refusal_code,
        "requests": [json.loads(text) for text in exchange.requests_json],
        "replies": [json.loads(text) for text in exchange.replies_json],
        "signatures": [
            {"field": one.field, "key_id": one.key_id, "suite": one.suite, "valid": one.valid, "reason": one.reason}
            for one in exchange.signatures
        ],
        "entries": [
            {
                "position": entry.position,
                "stream": stream_name(entry.stream_kind, entry.stream_key),
                "version": entry.version,
                "type": entry.type,
            }
            for entry in exchange.entries
        ],
        "faults": list(exchange.faults),
        "replayed": exchange.replayed,
        "request_bytes": exchange.request_bytes,
        "reply_bytes": exchange.reply_bytes,
    }
