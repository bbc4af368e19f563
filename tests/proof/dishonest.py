"""A hub that lies from the beginning: its ledger is made anew with other contents, hashed, closed and signed as usual.

Must never break a hash: what is tested is that the rules inside the payloads hold a hub that has every key of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from erxhub.core.events import BY_NAME, BY_NUMBER
from erxhub.ledger.entry import FIRST_PREV_LEAF_HASH, Header, seal
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.store import NewName, Store, Write


@dataclass
class Told:
    """An entry before it is sealed; `payload` is its message. A change of `causes` goes by the honest leaf hashes."""

    name: str
    header: Header
    payload: Any


Lie = Callable[[Told], Iterable[Told]]
"""What stands in the ledger for an honest entry: itself, changed, nothing, or more than one."""


async def lied(store: Store, lie: Lie) -> MemoryStore:
    """The ledger with the lie in it: versions without a gap, causes and hashes as if it had always been so."""
    made = MemoryStore()
    leaves: dict[bytes, bytes] = {}
    heads: dict[bytes, tuple[int, bytes]] = {}
    entries = []
    for stored in await store.log(0, 100_000):
        header = Header.decode(stored.header)
        assert stored.payload is not None
        assert stored.salt is not None
        event = BY_NUMBER[header.type]
        honest = Told(event.name, header, event.payload.FromString(stored.payload))
        told = list(lie(honest))
        for one in told:
            version, prev = heads.get(one.header.stream_key, (0, FIRST_PREV_LEAF_HASH))
            causes = tuple(leaves.get(cause, cause) for cause in one.header.causes)
            sealed_header = replace(one.header, version=version + 1, causes=causes, type=BY_NAME[one.name].number)
            payload = one.payload.SerializeToString(deterministic=True)
            if payload == honest.payload.SerializeToString(deterministic=True) and one is honest and _same(one, stored):
                payload = stored.payload
            entry = seal(sealed_header, stored.salt, payload, prev)
            heads[one.header.stream_key] = entry.header.version, entry.leaf_hash
            leaves.setdefault(stored.leaf_hash, entry.leaf_hash)
            entries.append(entry)
    names = [NewName(row.space, row.key, row.stream_key) for row in await store.names(None, 100_000)]
    done = await made.append([Write(entries=tuple(entries), names=tuple(names))])
    assert not done.conflicts
    return made


def _same(one: Told, stored: Any) -> bool:
    """Whether the message still says what the stored bytes say."""
    return bool(BY_NAME[one.name].payload.FromString(stored.payload) == one.payload)
