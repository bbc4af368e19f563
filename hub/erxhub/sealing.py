"""From a decision to bytes: its entries, the Write that they are in, the receipt over them, and the stored reply.

Owns what these look like. It never decides anything, never reads a store and never writes: the lane hands in what was
decided and appends what comes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from erxhub.config import Config
from erxhub.core import index, timers
from erxhub.core.draft import Pending, WorkingDraft
from erxhub.core.model import Accepted, Target
from erxhub.core.randomness import Randomness
from erxhub.crypto.receipt import receipt_message
from erxhub.crypto.suites import SigningKey
from erxhub.ledger.entry import FIRST_PREV_LEAF_HASH, SALT_BYTES, Entry, EntryKind, Header, seal
from erxhub.ledger.store import Blob, Erasure, Listing, NewName, NewState, Reads, Reply, Write
from erxhub.v1 import common_pb2

_COUNT_BYTES: Final = 4


def entries_of(tx: WorkingDraft, draw: Randomness, *, now_ms: int, policy_digest: bytes) -> list[Entry]:
    """The entries of the draft's events, in commit order and chained; its streams stand on the last ones afterwards."""
    sealed: list[Entry] = []
    leaves: dict[tuple[bytes, int], bytes] = {}
    for event in tx.in_commit_order():
        key, version = event.stream_key, event.version
        working = tx.changed[key]
        header = Header(
            event.stream_kind,
            key,
            version,
            EntryKind.EVENT,
            event.number,
            now_ms,
            event.actor,
            tx.request_id,
            policy_digest,
            _resolve(event, leaves) if event.causes else (),
        )
        entry = seal(header, draw.bytes(SALT_BYTES), event.body, working.leaf_hash or FIRST_PREV_LEAF_HASH)
        leaves[key, version] = working.leaf_hash = entry.leaf_hash
        sealed.append(entry)
    return sealed


def _resolve(event: Pending, leaves: Mapping[tuple[bytes, int], bytes]) -> tuple[bytes, ...]:
    return tuple(cause if isinstance(cause, bytes) else leaves[cause] for cause in event.causes)


def write_of(
    tx: WorkingDraft,
    sealed: Sequence[Entry],
    *,
    outcome: Accepted | None = None,
    replies: tuple[Reply, ...] = (),
    reads: Reads | None = None,
) -> Write:
    """All that a draft leaves; `reads` where other hubs write too."""
    states = []
    listings = [Listing(space, key, stream, version) for (space, key), stream, version in tx.listings]
    for key, working in tx.changed.items():
        states.append(
            NewState(
                key,
                working.version,
                working.leaf_hash,
                working.state.SerializeToString(deterministic=True),
                timers.next_due_ms(working.kind, working.state),
            )
        )
        if working.kind == "prescription":
            first = _first_version(tx, key)
            since = first.to_bytes(8, "big")
            listings += [
                Listing(index.FEED, code.encode(), key, working.version, since)
                for code in index.watchers(working.state)
            ]
    return Write(
        entries=tuple(sealed),
        states=tuple(states),
        names=tuple([NewName(space, key, stream) for (space, key), stream in tx.names]),
        listings=tuple(listings),
        blobs=tuple([Blob(*blob) for blob in outcome.blobs]) if outcome else (),
        catalog_rows=outcome.catalog_rows if outcome else (),
        replies=replies,
        erasures=tuple([Erasure(key, tx.changed[key].version, names) for key, names in outcome.erasures])
        if outcome
        else (),
        reads=reads,
        denies=any(space in index.DENYING for (space, _), _ in tx.names),
    )


def _first_version(tx: WorkingDraft, stream_key: bytes) -> int:
    """The version of the first of the draft's events in a stream."""
    for event in tx.pending:
        if event.stream_key == stream_key:
            return event.version
    raise AssertionError("a stream that changed has an event")


def fed_by(write: Write) -> set[str]:
    """The institutions whose watch shows something of this Write."""
    return {listing.key.decode() for listing in write.listings if listing.space == index.FEED}


def write_receipt(
    receipt: common_pb2.Receipt, key: SigningKey, config: Config, now_ms: int, sealed: Iterable[Entry]
) -> None:
    """Fill in the signed promise that these entries are in the ledger."""
    listed = [(entry.header.stream_key, entry.header.version, entry.leaf_hash) for entry in sealed]
    receipt.origin = config.origin
    receipt.recorded_at_ms = now_ms
    receipt.max_merge_delay_ms = config.max_merge_delay_ms
    receipt.key_id = key.key_id
    receipt.signature = key.sign(receipt_message(config.origin, now_ms, config.max_merge_delay_ms, listed))
    add = receipt.entries.add
    for stream_key, version, leaf in listed:
        add(stream_key=stream_key, version=version, leaf_hash=leaf)


def reply_place(sealed: Sequence[Entry]) -> tuple[bytes, int] | tuple[None, None]:
    """The entry that a stored reply belongs to: the first of the thing that the command was about.

    That thing is the last kind in commit order. A command that left no entry has no such place.
    """
    own = sealed[-1].header.stream_kind if sealed else ""
    for entry in sealed:
        if entry.header.stream_kind == own:
            return entry.header.stream_key, entry.header.version
    return None, None


@dataclass(slots=True, init=False)
class StoredReply:
    """What is kept to give the same answer again, and to record the same access.

    `body` is the response without what `attach_upload` names; `targets` name their persons.
    """

    body: bytes
    targets: tuple[Target, ...]
    attach_upload: bytes

    def __init__(self, body: bytes, targets: tuple[Target, ...] = (), attach_upload: bytes = b"") -> None:
        self.body = body
        self.targets = targets
        self.attach_upload = attach_upload

    def encode(self) -> bytes:
        """As bytes: the stream to attach from, the number of targets, their keys, the body."""
        keys = [key for target in self.targets for key in (target.stream_key, target.person_key)]
        return b"".join(
            (
                _short(self.attach_upload),
                len(self.targets).to_bytes(_COUNT_BYTES, "big"),
                *map(_short, keys),
                self.body,
            )
        )

    @classmethod
    def decode(cls, data: bytes) -> StoredReply:
        """From the bytes of `encode`."""
        attach_upload, position = _short_at(data, 0)
        count = int.from_bytes(data[position : position + _COUNT_BYTES], "big")
        position += _COUNT_BYTES
        targets = []
        for _ in range(count):
            stream_key, position = _short_at(data, position)
            person_key, position = _short_at(data, position)
            targets.append(Target(stream_key, person_key))
        return cls(data[position:], tuple(targets), attach_upload)


def _short(key: bytes) -> bytes:
    return len(key).to_bytes(1, "big") + key


def _short_at(data: bytes, position: int) -> tuple[bytes, int]:
    end = position + 1 + data[position]
    return data[position + 1 : end], end
