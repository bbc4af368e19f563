"""The tables that clients/javascript/verify-bundle/verify.mjs holds: event types, messages, state machines.

Owns the block between the two marks in that file, so that it says what the program says. `python -m
tests.proof.js_tables` writes it anew after a change of `protos/`, of `core/events.py` or of `core/lifecycle.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from erxhub.core.events import EVENT_TYPES
from erxhub.core.lifecycle import ROWS, Machine
from erxhub.v1 import registry_pb2, signed_pb2

VERIFIER: Final = Path(__file__).parents[2] / "clients" / "javascript" / "verify-bundle" / "verify.mjs"
_BEGIN: Final = "// ---- tables: begin ----\n"
_END: Final = "// ---- tables: end ----\n"
_LETTERS: Final = {
    FieldDescriptor.TYPE_INT64: "l",
    FieldDescriptor.TYPE_UINT64: "L",
    FieldDescriptor.TYPE_INT32: "i",
    FieldDescriptor.TYPE_UINT32: "u",
    FieldDescriptor.TYPE_ENUM: "e",
    FieldDescriptor.TYPE_BOOL: "b",
    FieldDescriptor.TYPE_STRING: "s",
    FieldDescriptor.TYPE_BYTES: "y",
    FieldDescriptor.TYPE_MESSAGE: "m",
}
_MACHINES: Final = (
    Machine.ENCOUNTER,
    Machine.RX,
    Machine.REVIEW,
    Machine.USE,
    Machine.AUTHORIZATION,
    Machine.ORDER,
    Machine.SETTLEMENT,
    Machine.DISPENSE,
    Machine.DELIVERY,
)


def tables() -> str:
    """The block as it has to be."""
    events = "\n".join(
        f"{event.number:04x} {event.name} {'|'.join(event.stream_kinds)} {event.payload.DESCRIPTOR.name}"
        for event in EVENT_TYPES
    )
    messages = "\n".join(f"{each.name}: {', '.join(map(_field, each.fields))}".rstrip() for each in _messages())
    rows = "\n".join(
        f"{row.machine} {'|'.join(row.states)}: {row.event} -> {row.next_state or '='}"
        for row in ROWS
        if row.machine in _MACHINES
    )
    made = (("EVENTS", events), ("MESSAGES", messages), ("ROWS", rows))
    classes = ", ".join(f"{number}n" for number in sorted(registry_pb2.RetentionClass.values()))
    lists = "\n".join(f"const {name} = `\n{text}\n`;" for name, text in made)
    return f"{lists}\nconst RETENTION_CLASSES = [{classes}];\n"


def _messages() -> list[Descriptor]:
    found: dict[str, Descriptor] = {}

    def walk(message: Descriptor) -> None:
        if message.name not in found:
            found[message.name] = message
            for field in message.fields:
                if field.message_type:
                    walk(field.message_type)

    for root in _roots():
        walk(root)
    return [found[name] for name in sorted(found)]


def _roots() -> Iterator[Descriptor]:
    yield from (event.payload.DESCRIPTOR for event in EVENT_TYPES)
    yield from signed_pb2.DESCRIPTOR.message_types_by_name.values()


def _field(field: FieldDescriptor) -> str:
    kind = _LETTERS[field.type] + (field.message_type.name if field.message_type else "")
    many = "*" if field.is_repeated else ""
    return f"{field.number}{kind}{many} {field.name}"


def held() -> str:
    """The block as it stands in the verifier."""
    return VERIFIER.read_text().partition(_BEGIN)[2].partition(_END)[0]


def main() -> None:
    """Write the block into the verifier."""
    text = VERIFIER.read_text()
    before, _, rest = text.partition(_BEGIN)
    VERIFIER.write_text(before + _BEGIN + tables() + _END + rest.partition(_END)[2])


if __name__ == "__main__":
    main()
