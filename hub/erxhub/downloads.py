"""What a download's reply carries besides its own fields: the uploaded bytes, exactly as they were received.

They lie in the ledger once, so a stored reply names their stream and they are put in each time it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from erxhub.core import events
from erxhub.ledger.entry import Header
from erxhub.ledger.store import Store, Wanted
from erxhub.v1 import common_pb2, events_pb2, state_pb2


async def attach(store: Store, reply: bytes, rx_key: bytes, into: Callable[[], Any]) -> bytes:
    """Put the uploaded bytes of a prescription into a reply, whose message `into` makes. Raises StoreUnavailable."""
    read = await store.read(Wanted(streams=frozenset({rx_key})))
    state = state_pb2.PrescriptionState()
    state.ParseFromString(read.heads[rx_key].body)
    uploaded = events_pb2.PrescriptionUploaded()
    reviewed = events_pb2.HospitalReviewed()
    for stored in await store.entries(rx_key, state.uploaded_version - 3, 3):
        name = events.BY_NUMBER[Header.decode(stored.header).type].name
        if stored.payload is None:
            continue
        if name == "prescription.uploaded":
            uploaded.ParseFromString(stored.payload)
        elif name == "prescription.hospital_reviewed":
            reviewed.ParseFromString(stored.payload)
    message = into()
    message.ParseFromString(reply)
    message.prescription.CopyFrom(uploaded.prescription)
    message.review.CopyFrom(reviewed.statement)
    message.seal.CopyFrom(uploaded.seal)
    data = await store.blob(rx_key, uploaded.file_sha256)
    message.file.CopyFrom(common_pb2.PrescriptionFile(media_type=uploaded.file_media_type, data=data or b""))
    return bytes(message.SerializeToString(deterministic=True))
