"""Characters that hide: no text of any request, and none of what is signed, may hold one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from erxhub.admission import FieldRules
from erxhub.rpc.methods import METHODS, STATEMENTS
from erxhub.texts import Texts
from erxhub.v1 import common_pb2, encounter_pb2, sandbox_pb2

KINDS = {kind.DESCRIPTOR.full_name: kind for kind in (*(one.request for one in METHODS.values()), *STATEMENTS.values())}
RULES = FieldRules(STATEMENTS)

COMPARED = {"erxhub.v1.PrescriptionDocument.prescription"}
"""Compared whole with what was pre-checked, where each text was looked at."""

Place = tuple[FieldDescriptor, ...]


def _texts(descriptor: Descriptor, place: Place = ()) -> Iterator[Place]:
    for field in descriptor.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            yield (*place, field)
        elif field.message_type is not None and field.full_name not in COMPARED:
            yield from _texts(field.message_type, (*place, field))


def _put(message: Any, place: Place, text: str) -> str:
    """Puts the text there, and returns its path."""
    path = ""
    for field in place[:-1]:
        value = getattr(message, field.name)
        message = value.add() if field.is_repeated else value
        path += f"{field.name}[0]." if field.is_repeated else f"{field.name}."
    last = place[-1]
    if last.is_repeated:
        getattr(message, last.name).append(text)
        return f"{path}{last.name}[0]"
    setattr(message, last.name, text)
    return path + last.name


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("text", ["a\x00b", "一\u202e二"], ids=ascii)
def test_every_text_of_every_request_refuses_what_hides(kind: type[Any], text: str) -> None:
    for place in _texts(kind.DESCRIPTOR):
        message = kind()
        path = _put(message, place, text)
        found = [violation.field for violation in RULES.check(message, ())[0]]
        assert path in found


@pytest.mark.parametrize("text", ["", "𠮷·é　一/1-2", "张‧三", "Ünïcode", "🙂", "\ue000"], ids=ascii)
def test_every_visible_character_is_let_through(text: str) -> None:
    request = encounter_pb2.CancelEncounterRequest(encounter_id=text, reason=text + "\n\t")
    assert Texts().hiding(request) == []


def test_every_place_is_named_once() -> None:
    prescription = common_pb2.Prescription(hospital_rx_no="1\r", department="好")
    prescription.lines.add(usage_note="一\n二", dose_unit="m\ng")
    prescription.lines.add(usage_note="\u2069")
    prescription.patient.allergies.extend(["青霉素", "\ufeff"])
    found = Texts().hiding(prescription)
    assert sorted(found) == ["hospital_rx_no", "lines[0].dose_unit", "lines[1].usage_note", "patient.allergies[1]"]


def test_a_type_without_texts_costs_nothing_and_a_map_is_no_text() -> None:
    assert Texts().hiding(common_pb2.Signed(payload_type="\x00")) == [], "its one text has a pattern"
    assert Texts().hiding(sandbox_pb2.GetWorldResponse()) == []
