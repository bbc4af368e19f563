"""What a hub's start writes: the ledger's first entry, this hub's public keys, and check values of the HMAC keys.

Owns how a hub joins a ledger. It decides from what the lane has loaded, and must never write by itself.
"""

from __future__ import annotations

import hmac
from typing import Final

from erxhub.config import Config
from erxhub.core import index
from erxhub.core.draft import Lookups, WorkingDraft, Workspace
from erxhub.core.model import Missing
from erxhub.keys import HubKeys
from erxhub.ledger.store import Reply
from erxhub.v1 import events_pb2, state_pb2

_KEY_CHECKS: Final = "hmac-key"


def check_keys(keys: HubKeys, space: Workspace, wanted: Lookups) -> tuple[tuple[Reply, ...], str | None]:
    """What the ledger is yet to be told of this hub's HMAC keys, and in what they are not the ledger's own.

    The check of each version is kept as a reply to a request that no caller can make; the first hub writes it.
    Raises Missing when the replies, or the ledger's own name, are not loaded yet.
    """
    checks = keys.hmac_checks()
    places = {version: (_KEY_CHECKS, str(version)) for version in range(1, max(checks) + 2)}
    missing = set(places.values()) - space.replies.keys()
    if missing or index.LEDGER_NAME not in space.names:
        wanted.replies |= missing
        wanted.names.add(index.LEDGER_NAME)
        raise Missing
    kept = {version: space.replies[place] for version, place in places.items() if space.replies[place] is not None}
    for version, reply in kept.items():
        if version not in checks:
            return (), f"the ledger has an HMAC key of version {version}, which is missing here"
        if not hmac.compare_digest(reply.content_mac, checks[version]):
            return (), f"HMAC key {version} is not the key of that version with which the ledger was written"
    new = [version for version in checks if version not in kept]
    return tuple(Reply(*places[version], _KEY_CHECKS, checks[version], b"", None, None) for version in new), None


def open_ledger(tx: WorkingDraft, ledger_key: bytes, config: Config) -> None:
    """The first entry of all."""
    opened = events_pb2.LedgerOpened(origin=config.origin, digest="SHA-256", format_version=1)
    tx.emit("ledger", ledger_key, "ledger.opened", opened)


def register_keys(tx: WorkingDraft, ledger_key: bytes, keys: HubKeys, config: Config) -> None:
    """An entry for each public key of this hub that the ledger does not name yet. Raises Missing."""
    known = tx.state(ledger_key, state_pb2.LedgerState)
    assert known is not None
    registered = {key.key_id for key in known.keys}
    for purpose, key in (("receipt", keys.receipt), ("log", keys.log)):
        if key.key_id not in registered:
            made = state_pb2.HubKey(purpose=purpose, key_id=key.key_id, public_key=key.public_key, hub_id=config.hub_id)
            tx.emit("ledger", ledger_key, "hub_key.registered", events_pb2.HubKeyRegistered(key=made))
