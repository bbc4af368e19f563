"""Finds what no retention class keeps any longer, and has it erased, where the operator switched that on.

Owns the way through the log: once a day in China from its beginning, a bounded part of it at a time. Whether something
may be erased is decided in the lane, by the same rule as an agency's call (core.retention); what is found here is only
asked for. It must never write, and never hold more than one page of the log and the vouchers of some days.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Final

from erxhub.config import Config
from erxhub.core.events import BY_NAME
from erxhub.core.fold import STATE_TYPES
from erxhub.core.retention import Found, account_kept, account_may_go, kept, voucher_kept, voucher_may_go
from erxhub.engine import Engine, HubStopped
from erxhub.ledger.entry import Header
from erxhub.ledger.store import StoredEntry, StoreUnavailable, Wanted
from erxhub.policy.pack import DAY_MS, china_date
from erxhub.v1 import events_pb2

_log = logging.getLogger("erxhub.erasing")

_PAGE_ENTRIES: Final = 256

_AT_ONCE: Final = 20
"""Streams in one commit at most, so that calls get their turn in the lane."""

_SHORTEST_MS: Final = 365 * DAY_MS
"""Retention is counted in whole years, so nothing younger is looked at."""

_SKEW_MS: Final = DAY_MS
"""An entry that quotes a voucher may bear the time of another hub's clock."""

_QUOTING: Final = frozenset({"encounter", "prescription"})
_DECODED: Final = BY_NAME["voucher.verified"].number
_UNUSED: Final = frozenset(BY_NAME[name].number for name in ("voucher.expired", "voucher.revoked"))


@dataclass(slots=True)
class _Voucher:
    """A voucher that the way has passed. `by`: each stream with an entry that rests on its last one, and its kind."""

    stream_key: bytes
    quotable_until_ms: int
    by: dict[bytes, str] = field(default_factory=dict)


class Erasing:
    """One hub's way through the log. Of several hubs that switched it on, the one that integrates the log goes it."""

    def __init__(self, engine: Engine, config: Config) -> None:
        self._engine = engine
        self._config = config
        self._position = 0
        self._begun_on: date | None = None
        self._turn = asyncio.Lock()
        # By the leaf hash that others name, in the order of the log. Whoever quotes a voucher comes after it, and soon.
        self._vouchers: dict[bytes, _Voucher] = {}

    async def day(self) -> int:
        """Take steps until today's way is at its end; returns how many prescriptions were erased. Raises as `step`."""
        erased = 0
        for _ in range(2):  # that of an earlier day may be under way
            erased += await self.step()
            while self._position:
                erased += await self.step()
        return erased

    async def step(self) -> int:
        """Look through the next `erasure_entries_max` entries; returns how many prescriptions were erased.

        Does nothing unless it is switched on, and after the last old entry until the next day.
        Raises HubStopped, StoreUnavailable; the next step then goes on at the same place.
        """
        async with self._turn:
            now_ms = self._engine.clock.now_ms()
            today = china_date(now_ms)
            if not self._config.erases_after_retention or not self._engine.store.integrates:
                return 0
            if not self._position:
                if self._begun_on == today:
                    return 0
                self._begun_on = today
            erased = await self._walk(now_ms)
        if erased:
            _log.info("the content of prescriptions was erased after its retention", extra={"facts": {"count": erased}})
        return erased

    async def _walk(self, now_ms: int) -> int:
        erased, left, old_ms = 0, self._config.erasure_entries_max, now_ms - _SHORTEST_MS
        while left > 0:
            page = await self._engine.store.log(self._position, min(_PAGE_ENTRIES, left))
            headers = [Header.decode(entry.header) for entry in page]
            reached_ms = min(headers[-1].recorded_at_ms, old_ms) if headers else old_ms
            begun = [header for header in headers if header.version == 1]
            erased += await self._erase(await self._prescriptions(begun, now_ms))
            await self._erase(await self._accounts(begun, now_ms))
            self._pass(page, headers)
            await self._erase(await self._unquoted(reached_ms, now_ms))
            if not headers or headers[-1].recorded_at_ms > old_ms:
                self._position = 0
                self._vouchers.clear()
                break
            self._position = page[-1].position
            left -= len(page)
        return erased

    async def _erase(self, over: Sequence[Found]) -> int:
        """Ask for erasures; returns how many there were."""
        erased = 0
        for start in range(0, len(over), _AT_ONCE):
            some = over[start : start + _AT_ONCE]
            results = await asyncio.gather(*map(self._engine.erase_over, some), return_exceptions=True)
            for found, result in zip(some, results, strict=True):
                if isinstance(result, HubStopped | StoreUnavailable):
                    raise result
                if isinstance(result, BaseException):
                    # The lane logged why. One that cannot be erased holds up no other; it comes again tomorrow.
                    _log.error("the content of stream %s cannot be erased", found.stream_key.hex())
                elif result:
                    erased += 1
        return erased

    async def _states(self, keys: Iterable[bytes]) -> Mapping[bytes, Any]:
        wanted = frozenset(keys)
        heads = (await self._engine.store.read(Wanted(streams=wanted))).heads if wanted else {}
        return {key: STATE_TYPES[head.stream_kind].FromString(head.body) for key, head in heads.items()}

    async def _prescriptions(self, begun: Sequence[Header], now_ms: int) -> list[Found]:
        """Those of the prescriptions that begin here that no class keeps at this instant."""
        found = await self._states(_keys(begun, "prescription"))
        there = {key: rx for key, rx in found.items() if not rx.erased_version}
        visits = await self._states(rx.encounter_key for rx in there.values())
        return [
            Found("prescription", key)
            for key, rx in there.items()
            if now_ms > kept(self._engine.rules(rx.rx_no[:6]), rx, visits.get(rx.encounter_key)).until_ms
        ]

    async def _accounts(self, begun: Sequence[Header], now_ms: int) -> list[Found]:
        """Those of the accounts that begin here in which nothing has moved for as long as any class keeps."""
        found = await self._states(_keys(begun, "account"))
        persons = await self._states(account.person_key for account in found.values() if not account.erased_version)
        over = []
        for key, account in found.items():
            person = persons.get(account.person_key)
            if person is None or not account_may_go(account, person):
                continue
            ended_at_ms = max([await self._last_at_ms(each) for each in (key, account.person_key)])
            if now_ms > account_kept(self._engine.rules(person.insured_area_code), ended_at_ms).until_ms:
                over.append(Found("account", key, ended_at_ms=ended_at_ms))
        return over

    async def _last_at_ms(self, key: bytes) -> int:
        """When the newest entry of a stream was recorded."""
        store = self._engine.store
        head = (await store.read(Wanted(streams=frozenset({key})))).heads[key]
        return Header.decode((await store.entries(key, head.version - 1, 1))[0].header).recorded_at_ms

    # ---- vouchers ----

    def _pass(self, page: Sequence[StoredEntry], headers: Sequence[Header]) -> None:
        """Note the vouchers that were decoded or ended here, and what rests on one."""
        for entry, header in zip(page, headers, strict=True):
            if header.stream_kind in _QUOTING:
                for cause in header.causes:
                    voucher = self._vouchers.get(cause)
                    if voucher is not None:
                        voucher.by[header.stream_key] = header.stream_kind
            elif header.type in _UNUSED:
                self._vouchers[entry.leaf_hash] = _Voucher(header.stream_key, 0)
            elif header.type == _DECODED and entry.payload is not None:
                verified = events_pb2.VoucherVerified.FromString(entry.payload)
                self._vouchers[entry.leaf_hash] = _Voucher(header.stream_key, verified.ref_expires_at_ms)

    async def _unquoted(self, reached_ms: int, now_ms: int) -> list[Found]:
        """Those of the vouchers that nobody can quote from here on that nothing keeps at this instant."""
        passed = list(self._taken(reached_ms))
        states = await self._states(key for voucher in passed for key in (voucher.stream_key, *voucher.by))
        there = [
            (each, states[each.stream_key])
            for each in passed
            if voucher_may_go(states[each.stream_key], map(states.get, each.by))
        ]
        persons = await self._states(voucher.person_key for _, voucher in there)
        return [
            Found("voucher", each.stream_key, tuple((kind, key) for key, kind in each.by.items()))
            for each, voucher in there
            if now_ms
            > voucher_kept(self._engine.rules(persons[voucher.person_key].insured_area_code), voucher).until_ms
        ]

    def _taken(self, reached_ms: int) -> Iterator[_Voucher]:
        while self._vouchers:
            leaf_hash = next(iter(self._vouchers))
            if self._vouchers[leaf_hash].quotable_until_ms + _SKEW_MS >= reached_ms:
                return
            yield self._vouchers.pop(leaf_hash)


def _keys(headers: Iterable[Header], stream_kind: str) -> list[bytes]:
    return [header.stream_key for header in headers if header.stream_kind == stream_kind]
