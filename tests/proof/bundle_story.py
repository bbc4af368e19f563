"""Bundles of real chains for tests: a hub on memory lives through a story, and its log is closed and signed here.

Must never make a proof of its own: what is tested is what the hub gives.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from erxhub.crypto.suites import SigningKey
from erxhub.ledger.log import Checkpoint, Cosignature
from erxhub.ledger.store import Store
from erxhub.proof.bundle import Subject
from erxhub.proof.bundle_checkpoint import Trust
from erxhub.proof.checkpoints import write_checkpoint
from erxhub.proof.notes import Cosigner, LogSigner
from erxhub.proof.policy import read_policy
from erxhub.queries.base import ReadContext
from erxhub.queries.proofs import absence_bundle, chain_bundle
from tests.live import Live

WITNESSES = {name: SigningKey.generate("EdDSA") for name in ("witness.one", "witness.two")}


@dataclass
class Closing:
    """Closes a hub's log on demand: one step, signed by the log and, when asked, by two witnesses."""

    live: Live
    witnessed: bool = False
    store: Store | None = None

    @property
    def signer(self) -> LogSigner:
        return LogSigner(self.live.hub.engine.config.origin, self.live.hub_keys.log)

    async def covering(self, position: int) -> Checkpoint:
        store = self.store or self.live.hub.store
        while (newest := await store.checkpoint()) is None or newest.covered_position < position:
            await store.integrate(self.live.clock.now_ms(), 10_000)
        text = write_checkpoint(self.signer.key.name, newest.size, newest.root)
        await store.sign(newest.no, self.signer.note(text))
        if self.witnessed:
            lines = [
                Cosignature(name, Cosigner(name, key).line(text, 1_795_140_000)) for name, key in WITNESSES.items()
            ]
            await store.cosign(newest.no, lines)
        signed = await store.checkpoint(no=newest.no)
        assert signed is not None
        return signed

    @property
    def context(self) -> ReadContext:
        return dataclasses.replace(self.live.hub.core.reads, covering=self.covering)

    @property
    def policy(self) -> bytes:
        lines = [f"log {self.signer.key.vkey}"]
        lines += [f"witness {name} {Cosigner(name, key).key.vkey}" for name, key in WITNESSES.items()]
        return "\n".join([*lines, "group both all witness.one witness.two", "quorum both", ""]).encode()

    @property
    def trust(self) -> Trust:
        """What an auditor knows beforehand."""
        if self.witnessed:
            return Trust(policy=read_policy(self.policy), ca_pem=self.live.trust.ca_pem)
        return Trust((self.signer.key,), ca_pem=self.live.trust.ca_pem)

    async def chain(self, rx_no: str) -> bytes:
        found = await chain_bundle(self.context, rx_no)
        assert found is not None
        return found[0].encode()

    async def absence(self, kind: str, name: str) -> bytes:
        return (await absence_bundle(self.context, Subject(kind, name)))[0].encode()
