"""Hubs and stores that are broken on purpose: one for each check of the checker, to see that it fires.

Owns how each is broken, and nothing else: a break changes the hub's own functions, or what the store gives back.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import pytest

from erxhub import deciding
from erxhub.accesses import AccessLog
from erxhub.core import account, fold, goods, guards, hold, index, lifecycle, orders, settlement, voucher
from erxhub.core.events import BY_NAME, BY_NUMBER
from erxhub.crypto.suites import Verifier
from erxhub.ledger.entry import Header, seal
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.store import AppendResult, NewState, StoredEntry, Write
from erxhub.sealing import StoredReply
from erxhub.v1 import common_pb2, events_pb2, state_pb2
from tests.simulation.cast import START_MS, WARDS
from tests.simulation.checker import Checker
from tests.simulation.hub import FaultyStore, SimulatedHub

Edit = Callable[[Header, str, Any], Iterator[tuple[str, Any]]]
"""What a store gives back in place of one event: (event, payload) of none, one or more."""


class RewritingStore(FaultyStore):
    """Gives back another history than it was given, each stream properly chained."""

    def __init__(self, edit: Edit, ahead_ms: int = 0) -> None:
        super().__init__(MemoryStore())
        self._edit = edit
        self._ahead_ms = ahead_ms
        self._read = 0
        self._told: list[StoredEntry] = []
        self._heads: dict[bytes, tuple[int, bytes]] = {}
        self._leaves: dict[bytes, bytes] = {}

    async def log(self, after_position: int, limit: int) -> list[StoredEntry]:
        for entry in await self.inner.log(self._read, 10_000):
            self._read = entry.position
            self._rewrite(entry)
        return self._told[after_position : after_position + limit]

    def _rewrite(self, entry: StoredEntry) -> None:
        header = Header.decode(entry.header)
        event = BY_NUMBER[header.type]
        assert entry.payload is not None
        assert entry.salt is not None
        for name, payload in self._edit(header, event.name, event.payload.FromString(entry.payload)):
            version, before = self._heads.get(header.stream_key, (0, bytes(32)))
            causes = tuple(self._leaves[cause] for cause in header.causes if cause in self._leaves)
            told = dataclasses.replace(header, version=version + 1, type=BY_NAME[name].number, causes=causes)
            if self._ahead_ms:
                told = dataclasses.replace(told, recorded_at_ms=START_MS + self._ahead_ms - entry.position)
            body = payload.SerializeToString(deterministic=True)
            sealed = seal(told, entry.salt, body, before)
            self._heads[header.stream_key] = (told.version, sealed.leaf_hash)
            self._leaves[entry.leaf_hash] = sealed.leaf_hash
            self._told.append(
                StoredEntry(
                    len(self._told) + 1,
                    header.stream_kind,
                    header.stream_key,
                    sealed.header_bytes,
                    sealed.commitment,
                    sealed.leaf_hash,
                    entry.salt,
                    body,
                    told.version,
                )
            )


class EventsOnly(Checker):
    """A checker that looks at events alone: what a store leaves out would otherwise show in states and receipts."""

    def _check_states(self, keys: Any) -> None:
        pass

    def _check_lists(self, lines: Any) -> None:
        pass

    def _check_answers(self, calls: Any, answers: Any, lines: Any) -> None:
        pass


@dataclasses.dataclass(frozen=True, slots=True)
class Break:
    """A way to be broken, and the invariant whose check has to fire."""

    invariant: str
    apply: Callable[[pytest.MonkeyPatch], None] = lambda patch: None
    store: Callable[[], FaultyStore] | None = None
    checker: Callable[[SimulatedHub], Checker] = Checker
    signatures: bool = False

    def hub(self, seed: int, *, signatures: bool) -> SimulatedHub:
        """A hub over this break's store."""
        return SimulatedHub(seed, signatures=signatures, store=self.store() if self.store else None)


def _refold(patch: pytest.MonkeyPatch, kind: str, event: str, first: Callable[[Any, Any], None]) -> None:
    """Do something to the state before the hub's own fold of an event."""
    folds: Any = fold._FOLDS
    plain = folds[kind, event]

    def folded(state: Any, payload: Any, at: Any) -> None:
        first(state, payload)
        plain(state, payload, at)

    patch.setitem(folds, (kind, event), folded)


# ---- broken hubs ----


def _two_holders(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(hold, "_held_elsewhere", lambda seen: None)

    def free(state: Any, payload: Any) -> None:
        if state.use_status == common_pb2.RX_USE_STATUS_HELD:
            state.use_status = common_pb2.RX_USE_STATUS_UNUSED

    _refold(patch, "prescription", "order.held", free)


def _one_pack_more(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(orders, "remaining_e4", lambda rx, use: use.prescribed_e4 + 10_000)


def _force_does_not_matter(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(orders, "fillable", lambda seen, undo_stops=True: None)


def _a_fen_too_much(patch: pytest.MonkeyPatch) -> None:
    plain = settlement._amounts

    def amounts(computed: Any) -> Any:
        found = plain(computed)
        found.cash_fen += 1
        return found

    patch.setattr(settlement, "_amounts", amounts)


def _another_ratio(patch: pytest.MonkeyPatch) -> None:
    plain = settlement._amounts

    def amounts(computed: Any) -> Any:
        """Adds up, and is not what the pack says."""
        found = plain(computed)
        if found.person_fen:
            found.fund_fen += 1
            found.pooled_fund_fen += 1
            found.person_fen -= 1
            if found.cash_fen:
                found.cash_fen -= 1
            else:
                found.account_fen -= 1
        return found

    patch.setattr(settlement, "_amounts", amounts)


def _accounts_stand_still(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(account, "_moves", lambda amounts: False)


def _codes_are_sold_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(goods, "_sold_before", lambda tx, seen, order, statement: None)
    _refold(patch, "trace_code", "trace_code.sold", lambda state, payload: state.Clear())


def _validity_grows(patch: pytest.MonkeyPatch) -> None:
    def grow(state: Any, payload: Any) -> None:
        state.content.valid_until_ms += 1

    _refold(patch, "prescription", "order.created", grow)


def _revoked_keys_are_good(patch: pytest.MonkeyPatch) -> None:
    def any_key(tx: Any, fact: Any, subject_code: str, institution_code: str) -> Any:
        if fact is None or not fact.suite:
            return None
        return next(
            (key for key in guards._keys(tx, subject_code, institution_code) if key.key_id == fact.key_id), None
        )

    patch.setattr(guards, "_signing_key", any_key)


def _signatures_are_believed(patch: pytest.MonkeyPatch) -> None:
    async def believed(self: Verifier, checks: Sequence[Any]) -> list[bool]:
        return [True] * len(checks)

    patch.setattr(Verifier, "verify_all", believed)


def _anybody_may_pack(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(goods, "_staff_fault", lambda tx, seen, order, statement, rules: None)


def _codes_are_good_twice(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(voucher, "_spent", lambda tx, found, trigger, role: "")

    def again(state: Any, payload: Any) -> None:
        state.status = state_pb2.VOUCHER_STATUS_ISSUED

    for event in ("voucher.verified", "voucher.try_counted", "voucher.revoked"):
        _refold(patch, "voucher", event, again)


def _other_bytes_again(patch: pytest.MonkeyPatch) -> None:
    plain = StoredReply.decode

    def decode(data: bytes) -> StoredReply:
        stored = plain(data)
        # A field that no reply has; a parser passes over it.
        return dataclasses.replace(stored, body=stored.body + b"\xf8\x3f\x01")

    patch.setattr(StoredReply, "decode", decode)


def _content_is_not_compared(patch: pytest.MonkeyPatch) -> None:
    class Lenient:
        digest = staticmethod(deciding.hmac.digest)

        @staticmethod
        def compare_digest(one: bytes, other: bytes) -> bool:
            return True

    patch.setattr(deciding, "hmac", Lenient)


def _a_fen_is_kept(patch: pytest.MonkeyPatch) -> None:
    plain = account.restore

    def restore(tx: Any, seen: Any, claim: Any) -> Any:
        less = type(claim)()
        less.CopyFrom(claim)
        less.amounts.in_scope_fen -= 1
        return plain(tx, seen, less)

    patch.setattr(account, "restore", restore)


def _refusals_leave_nothing(patch: pytest.MonkeyPatch) -> None:
    plain = AccessLog.note

    def note(self: AccessLog, batch: Any, found: Any) -> bool:
        return plain(self, batch, found) if found.refused is None else False

    patch.setattr(AccessLog, "note", note)


def _reads_leave_nothing(patch: pytest.MonkeyPatch) -> None:
    plain = AccessLog.note

    def note(self: AccessLog, batch: Any, found: Any) -> bool:
        return plain(self, batch, found) if found.refused is not None else False

    patch.setattr(AccessLog, "note", note)


def _nobody_finds_them(patch: pytest.MonkeyPatch) -> None:
    listings: Any = index._LISTINGS
    patch.setitem(listings, "audit.read", lambda payload, state: iter(()))


def _no_rules_named(patch: pytest.MonkeyPatch) -> None:
    plain = deciding.entries_of
    patch.setattr(deciding, "entries_of", lambda tx, draw, **known: plain(tx, draw, **(known | {"policy_digest": b""})))


def _agreements_do_not_matter(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(guards, "agreement", lambda tx, institution, kind: None)


def _crashes(patch: pytest.MonkeyPatch) -> None:
    def raises(*anything: Any) -> Any:
        raise lifecycle.IllegalTransition("broken on purpose")

    patch.setattr(goods, "_quantity_fault", raises)


# ---- broken stores ----


def _without(*events: str) -> Edit:
    def edit(header: Header, name: str, payload: Any) -> Iterator[tuple[str, Any]]:
        if name not in events:
            yield name, payload

    return edit


def _faithful(header: Header, name: str, payload: Any) -> Iterator[tuple[str, Any]]:
    yield name, payload


def _prescribed_before(header: Header, name: str, payload: Any) -> Iterator[tuple[str, Any]]:
    if name == "prescription.prechecked":
        payload.content.prescribed_at_ms = START_MS - 1
    yield name, payload


def _reviewed_by_himself(header: Header, name: str, payload: Any) -> Iterator[tuple[str, Any]]:
    if name == "prescription.hospital_reviewed":
        ward = next(ward for ward in WARDS if header.actor.startswith(ward.caller.actor))
        payload.pharmacist_code = ward.doctor
    yield name, payload


def _life_after_death(header: Header, name: str, payload: Any) -> Iterator[tuple[str, Any]]:
    yield name, payload
    if name == "prescription.expired":
        yield "authorization.revoked", events_pb2.AuthorizationRevoked(reason="too late")


class _OtherFile(FaultyStore):
    async def blob(self, stream_key: bytes, digest: bytes) -> bytes | None:
        data = await self.inner.blob(stream_key, digest)
        return data and data + b"."


def _with(record: Any, **changes: Any) -> Any:
    """The record of a store with other fields, whether it is a dataclass or a tuple."""
    return record._replace(**changes) if isinstance(record, tuple) else dataclasses.replace(record, **changes)


class _LosesDeadlines(FaultyStore):
    async def append(self, batch: Sequence[Write]) -> AppendResult:
        return await super().append([self._altered(write) for write in batch])

    def _altered(self, write: Write) -> Write:
        states = tuple(_with(state, due_at_ms=None) for state in write.states)
        return _with(write, states=states)


class _AltersAccounts(_LosesDeadlines):
    def _altered(self, write: Write) -> Write:
        accounts = {entry.header.stream_key for entry in write.entries if entry.header.stream_kind == "account"}

        def altered(state: NewState) -> NewState:
            if state.stream_key not in accounts:
                return state
            found = state_pb2.AccountState.FromString(state.body)
            found.balance_fen += 100
            return _with(state, body=found.SerializeToString(deterministic=True))

        return _with(write, states=tuple(map(altered, write.states)))


class _AltersPayloads(FaultyStore):
    async def log(self, after_position: int, limit: int) -> list[StoredEntry]:
        found = await self.inner.log(after_position, limit)
        return [
            _with(entry, payload=(entry.payload or b"") + b"\xf8\x3f\x01") if entry.stream_kind == "voucher" else entry
            for entry in found
        ]


class _LeavesOut(FaultyStore):
    async def log(self, after_position: int, limit: int) -> list[StoredEntry]:
        found = await self.inner.log(after_position, limit)
        return [entry for entry in found if (entry.stream_kind, entry.version) != ("voucher", 2)]


class _Forgets(FaultyStore):
    async def log(self, after_position: int, limit: int) -> list[StoredEntry]:
        found = await self.inner.log(after_position, limit)
        return [_with(entry, payload=None, salt=None) if entry.stream_kind == "voucher" else entry for entry in found]


def _rewriting(edit: Edit, ahead_ms: int = 0) -> Callable[[], FaultyStore]:
    return lambda: RewritingStore(edit, ahead_ms)


BREAKS: Final[Mapping[str, Break]] = {
    "two pharmacies hold": Break("I1", _two_holders),
    "a pack more than prescribed": Break("I2", _one_pack_more),
    "paid while withdrawn or frozen": Break("I3", _force_does_not_matter),
    "settlements are lost": Break(
        "I4",
        store=_rewriting(_without("settlement.committed", "settlement.self_paid", "account.debited")),
        checker=EventsOnly,
    ),
    "goods out are lost": Break(
        "I5",
        store=_rewriting(
            _without("dispense.outbound", "trace_code.sold", "prescription.used", "prescription.exhausted")
        ),
        checker=EventsOnly,
    ),
    "a fen too much": Break("I6", _a_fen_too_much),
    "another ratio": Break("I6", _another_ratio),
    "accounts stand still": Break("I7", _accounts_stand_still),
    "account events are lost": Break(
        "I7", store=_rewriting(_without("account.debited", "account.restored")), checker=EventsOnly
    ),
    "trace codes are sold again": Break("I9", _codes_are_sold_again),
    "trace codes' entries are lost": Break("I9", store=_rewriting(_without("trace_code.sold")), checker=EventsOnly),
    "deadlines are lost": Break("I10", store=lambda: _LosesDeadlines(MemoryStore())),
    "accounts are altered": Break("I10", store=lambda: _AltersAccounts(MemoryStore())),
    "entries are altered": Break("I11", store=lambda: _AltersPayloads(MemoryStore())),
    "time goes back": Break("I11", store=_rewriting(_faithful, ahead_ms=1_000)),
    "entries are left out": Break("I11", store=lambda: _LeavesOut(MemoryStore())),
    "validity grows": Break("I12", _validity_grows),
    "another file": Break("I13", store=lambda: _OtherFile(MemoryStore())),
    "revoked keys sign": Break("I14", _revoked_keys_are_good),
    "signatures are believed": Break("I14", _signatures_are_believed, signatures=True),
    "prescribed before he was registered": Break("I15", store=_rewriting(_prescribed_before), checker=EventsOnly),
    "reviewed by the prescriber": Break("I16", store=_rewriting(_reviewed_by_himself), checker=EventsOnly),
    "one packs and checks": Break("I17", _anybody_may_pack),
    "codes are good twice": Break("I18", _codes_are_good_twice),
    "a repetition gets other bytes": Break("I19", _other_bytes_again),
    "content is not compared": Break("I19", _content_is_not_compared),
    "less is given back": Break("I20", _a_fen_is_kept),
    "refusals leave no entry": Break("I21", _refusals_leave_nothing),
    "reads leave no entry": Break("I21", _reads_leave_nothing),
    "the person does not find the access": Break("I21", _nobody_finds_them),
    "life after the end": Break("I23", store=_rewriting(_life_after_death), checker=EventsOnly),
    "entries name no rules": Break("I24", _no_rules_named),
    "content is gone": Break("I25", store=lambda: _Forgets(MemoryStore())),
    "suspended agreements go on": Break("STEP", _agreements_do_not_matter),
    "a decision crashes": Break("BUG", _crashes),
}
"""By what is broken; every invariant that is checked has at least one."""
