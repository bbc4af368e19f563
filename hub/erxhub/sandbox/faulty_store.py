"""A namespace's store with the faults of the ledger in front of it: a full disk, a crash before or after a commit.

Owns no data. Reads pass; a write asks the rules first, and tells the recorder what it left. With no rule it adds
nothing to a commit but that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

from erxhub.ledger.log import Checkpoint, Cosignature, Proofs, ProofsWanted
from erxhub.ledger.store import (
    AppendResult,
    ListingRow,
    Loaded,
    NameRow,
    Others,
    PlacedRow,
    Store,
    StoredEntry,
    StoreUnavailable,
    Wanted,
    Write,
)
from erxhub.proof.tiles import TilePlace
from erxhub.sandbox.control import Control
from erxhub.sandbox.faults import Faults
from erxhub.sandbox.recorder import Recorder


class FaultyStore:
    """Fulfils Store over another one, which it closes when it is closed."""

    def __init__(self, store: Store, *, control: Control, faults: Faults, recorder: Recorder) -> None:
        self._store = store
        self._control = control
        self._faults = faults
        self._recorder = recorder

    async def append(self, batch: Sequence[Write]) -> AppendResult:
        """See Store. Raises StoreUnavailable for a full disk; a crash never returns."""
        if not self._faults.watch_commits:
            result = await self._store.append(batch)
            self._recorder.committed(batch, result)
            return result
        plan = self._faults.plan_commit(
            (write.entries[0].header.actor, write.entries[0].header.request_id, write.entries)
            for write in batch
            if write.entries
        )
        if plan.disk_full is not None:
            raise StoreUnavailable("the disk is full (a fault rule)")
        if plan.crash is not None and not plan.crash.arguments.after_commit:
            await self._crash()
        result = await self._store.append(batch)
        self._recorder.committed(batch, result)
        if plan.crash is not None:
            await self._crash()
        for actor, request_id, rule in plan.lost:
            self._faults.lose(actor, request_id, rule)
        return result

    async def _crash(self) -> None:
        """The lane that waits here dies with the hub; it must not go on, whatever the namespace does."""
        await self._control.crash()
        await asyncio.Event().wait()

    @property
    def others(self) -> Others | None:
        return self._store.others

    async def load(self, wanted: Wanted) -> Loaded:
        return await self._store.load(wanted)

    async def read(self, wanted: Wanted) -> Loaded:
        return await self._store.read(wanted)

    async def entries(self, stream_key: bytes, after_version: int, limit: int) -> list[StoredEntry]:
        return await self._store.entries(stream_key, after_version, limit)

    async def log(self, after_position: int, limit: int) -> list[StoredEntry]:
        return await self._store.log(after_position, limit)

    async def listing(
        self, space: str, key: bytes, after_position: int, limit: int, newest_first: bool = False
    ) -> list[ListingRow]:
        return await self._store.listing(space, key, after_position, limit, newest_first)

    async def names(self, after: tuple[str, bytes] | None, limit: int) -> list[NameRow]:
        return await self._store.names(after, limit)

    async def listings(self, after_position: int, until_position: int) -> list[PlacedRow]:
        return await self._store.listings(after_position, until_position)

    async def blob(self, stream_key: bytes, digest: bytes) -> bytes | None:
        return await self._store.blob(stream_key, digest)

    async def catalog_page(self, dataset: str, edition: str, after_code: str, limit: int) -> list[tuple[str, bytes]]:
        return await self._store.catalog_page(dataset, edition, after_code, limit)

    async def due(self, now_ms: int, limit: int) -> list[bytes]:
        return await self._store.due(now_ms, limit)

    async def last_position(self) -> int:
        return await self._store.last_position()

    @property
    def integrates(self) -> bool:
        return self._store.integrates

    async def integrate(self, now_ms: int, leaves_max: int) -> Checkpoint | None:
        return await self._store.integrate(now_ms, leaves_max)

    async def checkpoint(self, no: int | None = None, size: int | None = None) -> Checkpoint | None:
        return await self._store.checkpoint(no, size)

    async def checkpoints(self, after_no: int, limit: int) -> list[Checkpoint]:
        return await self._store.checkpoints(after_no, limit)

    async def sign(self, no: int, note: str) -> None:
        await self._store.sign(no, note)

    async def cosign(self, no: int, lines: Sequence[Cosignature]) -> None:
        await self._store.cosign(no, lines)

    async def witness_sizes(self) -> dict[str, int]:
        return await self._store.witness_sizes()

    async def prove(self, wanted: ProofsWanted) -> Proofs:
        return await self._store.prove(wanted)

    async def inclusion(self, index: int, size: int) -> list[bytes]:
        return await self._store.inclusion(index, size)

    async def consistency(self, size1: int, size2: int) -> list[bytes]:
        return await self._store.consistency(size1, size2)

    async def tiles(self, places: Collection[TilePlace]) -> dict[TilePlace, bytes]:
        return await self._store.tiles(places)

    async def pages(self, paths: Collection[bytes]) -> dict[bytes, bytes]:
        return await self._store.pages(paths)

    async def close(self) -> None:
        await self._store.close()
