"""Finds what no retention class keeps any longer, and has it erased, where the operator switched that on.

Owns the way through the log: once a day in China from its beginning, a bounded part of it at a time. Whether something
may be erased is decided in the lane, by the same rule as an agency's call (core.retention); what is found here is only
asked for. It must never write, and never hold more than one page of the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import date
from typing import Final

from erxhub.config import Config
from erxhub.core.retention import kept
from erxhub.engine import Engine, HubStopped
from erxhub.ledger.entry import Header
from erxhub.ledger.store import StoredEntry, StoreUnavailable, Wanted
from erxhub.policy.pack import DAY_MS, china_date
from erxhub.v1 import state_pb2

_log = logging.getLogger("erxhub.erasing")

_PAGE_ENTRIES: Final = 256

_AT_ONCE: Final = 20
"""Prescriptions in one commit at most, so that calls get their turn in the lane."""

_SHORTEST_MS: Final = 365 * DAY_MS
"""Retention is counted in whole years, so nothing younger is looked at."""


class Erasing:
    """One hub's way through the log. Of several hubs that switched it on, the one that integrates the log goes it."""

    def __init__(self, engine: Engine, config: Config) -> None:
        self._engine = engine
        self._config = config
        self._position = 0
        self._begun_on: date | None = None

    async def step(self) -> int:
        """Look through the next `erasure_entries_max` entries; returns how many prescriptions were erased.

        Does nothing unless it is switched on, and after the last old entry until the next day.
        Raises HubStopped, StoreUnavailable; the next step then goes on at the same place.
        """
        store = self._engine.store
        now_ms = self._engine.clock.now_ms()
        today = china_date(now_ms)
        if not self._config.erases_after_retention or not store.integrates:
            return 0
        if not self._position:
            if self._begun_on == today:
                return 0
            self._begun_on = today
        erased, left = 0, self._config.erasure_entries_max
        while left > 0:
            page = await store.log(self._position, min(_PAGE_ENTRIES, left))
            erased += await self._erase(page, now_ms)
            if not page or Header.decode(page[-1].header).recorded_at_ms > now_ms - _SHORTEST_MS:
                self._position = 0
                break
            self._position = page[-1].position
            left -= len(page)
        if erased:
            _log.info("the content of prescriptions was erased after its retention", extra={"facts": {"count": erased}})
        return erased

    async def _erase(self, page: Sequence[StoredEntry], now_ms: int) -> int:
        """Erase what may be erased of the prescriptions that begin in a page."""
        begun = [stored.stream_key for stored in page if stored.stream_kind == "prescription" and stored.version == 1]
        over = await self._over(begun, now_ms) if begun else []
        erased = 0
        for start in range(0, len(over), _AT_ONCE):
            keys = over[start : start + _AT_ONCE]
            results = await asyncio.gather(*map(self._engine.erase_over, keys), return_exceptions=True)
            for key, result in zip(keys, results, strict=True):
                if isinstance(result, HubStopped | StoreUnavailable):
                    raise result
                if isinstance(result, BaseException):
                    # The lane logged why. One that cannot be erased holds up no other; it comes again tomorrow.
                    _log.error("the content of stream %s cannot be erased", key.hex())
                elif result:
                    erased += 1
        return erased

    async def _over(self, keys: Sequence[bytes], now_ms: int) -> list[bytes]:
        """Those of the prescriptions that no class keeps at this instant."""
        heads = (await self._engine.store.read(Wanted(streams=frozenset(keys)))).heads
        found = {key: state_pb2.PrescriptionState.FromString(heads[key].body) for key in keys if key in heads}
        there = {key: rx for key, rx in found.items() if not rx.erased_version}
        visits = frozenset(rx.encounter_key for rx in there.values())
        visited = (await self._engine.store.read(Wanted(streams=visits))).heads if visits else {}
        over = []
        for key, rx in there.items():
            head = visited.get(rx.encounter_key)
            encounter = state_pb2.EncounterState.FromString(head.body) if head is not None else None
            if now_ms > kept(self._engine.rules(rx.rx_no[:6]), rx, encounter).until_ms:
                over.append(key)
        return over
