"""Loading what a batch's decisions look up.

Owns which rows are fetched, what of them outlives a batch, and in what state a stream comes into one: with its overdue
deadlines fired, and the batch's time not before what another hub recorded. It never decides a command.
"""

from __future__ import annotations

from typing import Final

from erxhub.accesses import AccessBatch
from erxhub.core import index, timers
from erxhub.core.draft import Lookups, Working, Workspace
from erxhub.core.fold import STATE_TYPES
from erxhub.deciding import Decider
from erxhub.jobs import Batch
from erxhub.ledger.store import Loaded, Store, Wanted

_CATALOG_ROWS_KEPT_MAX: Final = 10_000


class Loader:
    """Loads for one hub. `shared` is whether other hubs write to the same store."""

    def __init__(self, store: Store, decider: Decider, *, shared: bool) -> None:
        self._store = store
        self._decider = decider
        self._shared = shared
        self._rows: dict[tuple[str, str, str], bytes | None] = {}
        self._rows_missed = False

    def new_batch(self, now_ms: int) -> Batch:
        """An empty batch that knows the catalogue rows of those before it."""
        return Batch(Workspace(catalog=self._known_rows()), now_ms, AccessBatch(now_ms))

    async def load(self, batch: Batch, wanted: Lookups) -> None:
        """Put look-ups into the batch's workspace, and fire what is due on them; may move its time forward."""
        found = await self._fetch(batch, wanted)
        # What nearly every step asks for next; fetching it now spares a whole dry run of the decision.
        known, next_keys = batch.workspace.streams, set()
        for key, working in found:
            next_keys.update(index.related(working.kind, key, working.state, known))
        if next_keys:
            await self._fetch(batch, Lookups(streams=next_keys))

    def _known_rows(self) -> dict[tuple[str, str, str], bytes | None]:
        """The catalogue rows of the batches before: a row of an edition never changes, so each is loaded once.

        One that was not there is looked for again.
        """
        if len(self._rows) > _CATALOG_ROWS_KEPT_MAX:
            self._rows = {}
        elif self._rows_missed:
            self._rows = {row: body for row, body in self._rows.items() if body is not None}
        self._rows_missed = False
        return self._rows

    async def _fetch(self, batch: Batch, wanted: Lookups) -> list[tuple[bytes, Working]]:
        """Put look-ups into the workspace; returns the streams that it did not have before."""
        space = batch.workspace
        listed: dict[tuple[str, bytes, int], list[bytes]] = {}
        for space_name, key, limit in wanted.listings:
            rows = await self._store.listing(space_name, key, 0, limit, newest_first=True)
            space.newest_listed[space_name, key] = rows[0].position if rows else 0
            listed[space_name, key, limit] = list(dict.fromkeys(row.stream_key for row in rows))
        loaded = await self._store.load(
            Wanted(
                names=frozenset(wanted.names),
                streams=frozenset(wanted.streams).union(*listed.values()) if listed else frozenset(wanted.streams),
                replies=frozenset(wanted.replies),
                catalog=frozenset(wanted.catalog),
            )
        )
        space.listings.update(listed)
        for name in wanted.names:
            space.names.setdefault(name, loaded.names.get(name))
        for request in wanted.replies:
            space.replies.setdefault(request, loaded.replies.get(request))
        for row in wanted.catalog:
            self._rows_missed |= space.catalog.setdefault(row, loaded.catalog.get(row)) is None
        for key in wanted.streams:
            if key not in loaded.heads:
                space.streams.setdefault(key, None)
        return self._take_heads(batch, loaded)

    def _take_heads(self, batch: Batch, loaded: Loaded) -> list[tuple[bytes, Working]]:
        space = batch.workspace
        if self._shared:
            self._keep_up(batch, loaded)
        found: list[tuple[bytes, Working]] = []
        due: list[tuple[int, str, bytes]] = []
        for key, head in loaded.heads.items():
            if key in space.streams:
                continue
            kind = STATE_TYPES.get(head.stream_kind)
            if kind is None:
                continue
            state = kind.FromString(head.body)
            working = space.streams[key] = Working(head.stream_kind, head.version, head.leaf_hash, state)
            found.append((key, working))
            if head.due_at_ms is not None and head.due_at_ms <= batch.now_ms:
                due.append((head.due_at_ms, head.stream_kind, key))
        # Sorted, because heads come in the order of a set: the same commands have to give the same ledger.
        for _, stream_kind, key in sorted(due):
            self._decider.fire(batch, stream_kind, key)
        return found

    def _keep_up(self, batch: Batch, loaded: Loaded) -> None:
        """Never decide before what another hub recorded already, however far this one's clock is behind.

        Then no stream goes back in time, nor does a chain through several streams.
        """
        newest_ms = max((head.recorded_at_ms for head in loaded.heads.values()), default=0)
        if newest_ms <= batch.now_ms:
            return
        batch.now_ms = batch.accesses.now_ms = newest_ms
        late = [
            (due_at_ms, stream.kind, key)
            for key, stream in batch.workspace.streams.items()
            if stream is not None
            and (due_at_ms := timers.next_due_ms(stream.kind, stream.state)) is not None
            and due_at_ms <= newest_ms
        ]
        for _, stream_kind, key in sorted(late):
            batch.timed.discard(key)
            self._decider.fire(batch, stream_kind, key)
