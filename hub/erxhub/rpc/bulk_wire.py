"""The bytes of a bulk stream's messages: items out of a request as they were sent, results into a response.

It never reads an item but for its request id, and never writes a reply again: both stay byte for byte what they were.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import DecodeError

from erxhub.v1 import common_pb2, prescribing_pb2

_ITEMS_TAG: Final[int] = prescribing_pb2.UploadPrescriptionsRequest.ITEMS_FIELD_NUMBER << 3 | 2
_RESULTS: Final[int] = prescribing_pb2.UploadPrescriptionsResponse.RESULTS_FIELD_NUMBER
_ACCEPTED: Final[int] = prescribing_pb2.UploadResult.ACCEPTED_FIELD_NUMBER
_REFUSED: Final[int] = prescribing_pb2.UploadResult.REFUSED_FIELD_NUMBER


def accepted(
    number: int,
    raw: bytes,
    reply: bytes,
    reached: common_pb2.WaitFor.ValueType = common_pb2.WAIT_FOR_UNSPECIFIED,
) -> bytes:
    """The result of an accepted item, as a field of the response. `reply` is the unary call's, byte for byte."""
    told = _delimited(_ACCEPTED, reply)
    if reached:
        told += prescribing_pb2.UploadResult(reached=reached).SerializeToString()
    return _result(number, raw, told)


def refused(number: int, raw: bytes, refusal: bytes) -> bytes:
    """The result of a refused item, as a field of the response. `refusal` is an UploadRefusal."""
    return _result(number, raw, _delimited(_REFUSED, refusal))


def _result(number: int, raw: bytes, told: bytes) -> bytes:
    head = prescribing_pb2.UploadResult(item=number, request_id=_request_id(raw)).SerializeToString()
    return _delimited(_RESULTS, head + told)


def _delimited(number: int, data: bytes) -> bytes:
    """A field with a length."""
    size, head = len(data), bytes([number << 3 | 2])
    while size >= 0x80:
        head += bytes([size & 0x7F | 0x80])
        size >>= 7
    return head + bytes([size]) + data


def items_of(raw: bytes) -> list[bytes] | None:
    """The items of a message as the bytes that were sent; None when they cannot be read."""
    items: list[bytes] = []
    position = 0
    while position < len(raw):
        if raw[position] != _ITEMS_TAG:
            return None
        size = shift = 0
        while True:
            position += 1
            if position >= len(raw) or shift > 28:
                return None
            size |= (raw[position] & 0x7F) << shift
            shift += 7
            if raw[position] < 0x80:
                break
        end = position + 1 + size
        if end > len(raw):
            return None
        items.append(raw[position + 1 : end])
        position = end
    return items


def _request_id(raw: bytes) -> str:
    """The request id, which a client writes first; "" when it does not, or cannot be read."""
    # Field 1 with a length of one byte: an id has at most 64 characters.
    if len(raw) < 2 or raw[0] != 0x0A or raw[1] >= 0x80:
        return _parsed_request_id(raw)
    try:
        return raw[2 : 2 + raw[1]].decode()
    except UnicodeDecodeError:
        return ""


def _parsed_request_id(raw: bytes) -> str:
    try:
        return prescribing_pb2.UploadPrescriptionRequest.FromString(raw).request_id
    except DecodeError:
        return ""
