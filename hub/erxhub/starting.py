"""A start proves itself: what the ledger holds must follow from its own bytes, and must not be less than was published.

Owns the checks before a hub takes its first call, the two codes of a refusal to start, and its evidence. It must never
repair anything: a hub that went on with an older history would fork the log that others have seen.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.message import DecodeError

from erxhub.config import Config
from erxhub.core import index
from erxhub.high_water import HighWater, HighWaterUnreadable, Mark
from erxhub.ledger.log import Checkpoint
from erxhub.ledger.store import Store, Wanted
from erxhub.ledger.verify import Verification, verify_ledger
from erxhub.proof import pages, tiles
from erxhub.proof.checkpoints import open_checkpoint
from erxhub.proof.hashing import leaf_hash
from erxhub.proof.merkle import ProofInvalid, verify_consistency
from erxhub.proof.notes import ED25519, NoteKey, PrivateKey
from erxhub.proof.records import maproot_leaf
from erxhub.proof.tiles import Nodes, TilePlace
from erxhub.v1 import state_pb2
from erxhub.witnessing import Witnessing

ROLLBACK_DETECTED: Final = "ROLLBACK_DETECTED"
LEDGER_DAMAGED: Final = "LEDGER_DAMAGED"

_STEPS: Final[Mapping[str, tuple[str, str]]] = {
    ROLLBACK_DETECTED: (
        "The hub has published or acknowledged more than this database holds. Stop here: keep the database as it is,"
        " bring back the newest backup or the replica that has everything, and start again; a ledger that stays shorter"
        " must not go on under this origin.",
        "本枢纽已公布或已确认的内容多于此数据库所存。请勿继续：原样保留该数据库，恢复最新的备份或完整的副本后重新启动；"
        "若无法恢复，不得以原日志名称继续运行。",
    ),
    LEDGER_DAMAGED: (
        "Bytes of the ledger do not agree with their own hashes. Stop here: keep a copy of the database,"
        " `erxhub audit verify` lists every entry that is affected, then bring back the newest backup that verifies.",
        "账本字节与其自身哈希不符。请勿继续：保留数据库副本，用 `erxhub audit verify` 列出受影响的条目，"
        "再恢复能通过校验的最新备份。",
    ),
}

_TRIES: Final = 20
"""Looks at a log that another hub takes on meanwhile."""


class LedgerRefused(Exception):
    """The hub does not start on this ledger. `code` is ROLLBACK_DETECTED or LEDGER_DAMAGED; the text says what was
    found and what the operator does next, in English and Chinese, and names the file with the evidence.
    """

    def __init__(
        self, code: str, found: str, evidence: Mapping[str, Any], verification: Verification | None = None
    ) -> None:
        english, chinese = _STEPS[code]
        super().__init__(f"{code}: {found}. {english}\n{chinese}")
        self.code = code
        self.found = found
        self.evidence = evidence
        self.verification = verification


async def prove_start(
    store: Store,
    log_key: PrivateKey,
    config: Config,
    high_water: HighWater | None,
    witnessing: Witnessing | None = None,
) -> Verification:
    """Verify the newest entries, the newest checkpoint over them, and that nothing published is missing.

    What was published is what the high-water file says and what the witnesses that answer have cosigned.

    Raises LedgerRefused, StoreUnavailable, HighWaterUnreadable.
    """
    mark = high_water.read() if high_water else None
    acknowledged = high_water.position() if high_water else 0
    if mark is not None and mark.origin != config.origin:
        raise HighWaterUnreadable(f"the high-water file is of the log {mark.origin}, and this is {config.origin}")
    # Before the store is asked: another hub may go on publishing, and stores before it shows.
    published = [mark] if mark is not None else []
    if witnessing is not None:
        shown = (await witnessing.ask_all()).values()
        published += [Mark(config.origin, one.said.size, one.said.root, one.note) for one in shown]
        if mark is None:
            witnessing.hold()
    try:
        return await _prove(store, log_key, config, published, acknowledged)
    except LedgerRefused as refused:
        if high_water is not None:
            name = f"evidence-{refused.code.lower().replace('_', '-')}-{refused.evidence['size']}"
            path = high_water.keep_evidence(name, refused.evidence)
            refused.args = (f"{refused.args[0]}\nevidence 证据: {path}",)
        raise


async def _prove(
    store: Store, log_key: PrivateKey, config: Config, published: list[Mark], acknowledged: int, tries: int = _TRIES
) -> Verification:
    newest = await store.checkpoint()
    last = await store.last_position()

    def refuse(
        code: str, found: str, verification: Verification | None = None, mark: Mark | None = None
    ) -> LedgerRefused:
        evidence = _evidence(code, found, config, (last, acknowledged), newest, mark or longest)
        return LedgerRefused(code, found, evidence, verification)

    longest = max(published, key=lambda mark: mark.size, default=None)
    if longest is not None and _size(newest) < longest.size:
        raise refuse(ROLLBACK_DETECTED, f"a log of {longest.size} leaves was published, and {_size(newest)} are here")
    if newest is not None and newest.covered_position > last:
        raise refuse(
            ROLLBACK_DETECTED, f"the newest checkpoint covers {newest.covered_position} entries, and {last} are here"
        )
    if last < acknowledged:
        raise refuse(ROLLBACK_DETECTED, f"{acknowledged} entries were acknowledged, and {last} are here")
    covered = newest.covered_position if newest else last
    start = max(0, min(last - config.start_verify_entries, covered))
    verification = await verify_ledger(store, from_position=start)
    if verification.findings:
        raise refuse(LEDGER_DAMAGED, _places(verification), verification)
    if newest is None:
        return verification
    try:
        fault = await _log_fault(store, newest, start, await log_keys(store, log_key, config), config)
    except (ValueError, TypeError, IndexError) as error:
        fault = f"the log cannot be read ({error})"
    if fault and tries and await _has_moved(store, newest):
        return await _prove(store, log_key, config, published, acknowledged, tries - 1)
    if fault:
        raise refuse(LEDGER_DAMAGED, fault)
    for mark in published:
        different = await _difference(store, newest, mark)
        if different:
            raise refuse(ROLLBACK_DETECTED, different, mark=mark)
    return verification


async def _has_moved(store: Store, newest: Checkpoint) -> bool:
    """Whether another hub took the log on while it was read: edge tiles and map pages are written over then."""
    there = await store.checkpoint() if store.others is not None else newest
    return there is not None and there.no > newest.no


async def _log_fault(
    store: Store, newest: Checkpoint, after_position: int, keys: list[NoteKey], config: Config
) -> str | None:
    """What is wrong with the newest checkpoint, its note, or the tree and the map under it; None if nothing."""
    edge = await store.tiles(tiles.edge(newest.size))
    if tiles.run(tiles.root(newest.size), lambda _: edge) != newest.root:
        return f"checkpoint {newest.no} has another root than its tree"
    top = await store.pages([pages.ROOT_PATH])
    if pages.run(pages.root(), lambda _: top) != newest.map_root:
        return f"checkpoint {newest.no} has another map root than its map"
    recent = await _recent(store, newest, after_position)
    leaves = await _leaves(store, newest, recent, after_position)
    places = [TilePlace(0, number) for number in sorted({index // tiles.WIDTH for index in leaves})]
    read = await store.tiles([*places, *{TilePlace(1, place.number // tiles.WIDTH) for place in places}])
    nodes = Nodes(read)
    for leaf_index, hashed in leaves.items():
        if nodes(0, leaf_index) != hashed:
            return f"the tree has another leaf at {leaf_index} than the ledger"
    for place in places:
        data = read[place]
        if len(data) == tiles.WIDTH * 32 and tiles.complete(data) != nodes(8, place.number):
            return f"the tree has another node over tile {place.number} than the tile gives"
    signed = next((one for one in reversed(recent) if one.note is not None), None)
    if signed is None or signed.note is None:
        return None
    try:
        said = open_checkpoint(signed.note, config.origin, keys).said
    except ProofInvalid as error:
        return f"the note of checkpoint {signed.no} does not verify ({error})"
    if (said.size, said.root) != (signed.size, signed.root):
        return f"the note of checkpoint {signed.no} says something else than the checkpoint"
    return None


async def _recent(store: Store, newest: Checkpoint, after_position: int) -> list[Checkpoint]:
    """The newest checkpoints: at least those over the entries after `after_position`, and two."""
    first, limit = newest.no, 64
    while True:
        first = max(0, first - limit)
        found = await store.checkpoints(first, newest.no - first)
        if [one.no for one in found] != list(range(first + 1, newest.no + 1)):
            raise ValueError("a checkpoint is missing")
        if not first or (found[0].covered_position <= after_position and len(found) > 1):
            return found
        limit *= 4


async def _leaves(store: Store, newest: Checkpoint, recent: list[Checkpoint], after_position: int) -> dict[int, bytes]:
    """Leaf hashes by index, as the ledger's entries and the checkpoints give them."""
    leaves = {
        one.size - 1: leaf_hash(maproot_leaf(one.size - 1, one.map_root))
        for one in recent
        if one.covered_position > after_position or one.no == newest.no
    }
    waiting = iter(recent)
    current = next(waiting)
    position = after_position
    while position < newest.covered_position:
        page = await store.log(position, min(256, newest.covered_position - position))
        if not page:
            raise ValueError("an entry is missing")
        for entry in page:
            while entry.position > current.covered_position:
                current = next(waiting)
            leaves[entry.position - 1 + current.no - 1] = entry.leaf_hash
        position = page[-1].position
    return leaves


async def _difference(store: Store, newest: Checkpoint, mark: Mark) -> str | None:
    """Why the ledger does not extend what was published; None if it does."""
    there = await store.checkpoint(size=mark.size)
    if there is None or there.root != mark.root:
        return f"another log of {mark.size} leaves was published than the one here"
    try:
        proof = await store.consistency(mark.size, newest.size)
        verify_consistency(mark.size, newest.size, proof, mark.root, newest.root)
    except ValueError as error:
        return f"the log here does not extend the one that was published ({error})"
    return None


async def log_keys(store: Store, log_key: PrivateKey, config: Config) -> list[NoteKey]:
    """The log keys of this ledger: the hub's own, and those that the ledger's stream names. Raises StoreUnavailable."""
    public = {log_key.public_key}
    found = await store.read(Wanted(names=frozenset({index.LEDGER_NAME})))
    for head in found.heads.values():
        try:
            state = state_pb2.LedgerState.FromString(head.body)
        except DecodeError:
            continue  # whatever a key of it signed is found not to be signed by one that is known
        public.update(key.public_key for key in state.keys if key.purpose == "log")
    return [NoteKey(config.origin, ED25519, key) for key in sorted(public)]


def _places(verification: Verification) -> str:
    places = ", ".join(
        f"{finding.stream_kind}/{finding.stream_key.hex()[:16]} version {finding.version} {finding.reason}"
        for finding in verification.findings[:5]
    )
    return f"the ledger does not verify: {places}"


def _size(checkpoint: Checkpoint | None) -> int:
    return checkpoint.size if checkpoint else 0


def _evidence(
    code: str, found: str, config: Config, entries: tuple[int, int], newest: Checkpoint | None, mark: Mark | None
) -> Mapping[str, Any]:
    return {
        "code": code,
        "found": found,
        "origin": config.origin,
        "size": _size(newest),
        "entries": entries[0],
        "entries_acknowledged": entries[1],
        "published": mark and {"size": mark.size, "root": _b64(mark.root), "note": mark.note},
        "stored": newest
        and {
            "no": newest.no,
            "size": newest.size,
            "root": _b64(newest.root),
            "map_root": _b64(newest.map_root),
            "covered_position": newest.covered_position,
            "made_at_ms": newest.made_at_ms,
            "note": newest.note,
        },
    }


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()
