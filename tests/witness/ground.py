"""A log made of nothing but leaf hashes, keys from seeds, and a witness to show its checkpoints to."""

import contextlib
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from erxhub.ports import Clock, ManualClock
from erxhub.proof.checkpoints import write_checkpoint
from erxhub.proof.hashing import leaf_hash
from erxhub.proof.merkle import consistency_path, root_of
from erxhub.proof.notes import Cosigner, LogSigner
from erxhub.witness.protocol import write_add_checkpoint
from erxhub.witness.records import FileRecords, Recorded, Records
from erxhub.witness.server import WitnessServer
from erxhub.witness.witness import Witness

ORIGIN = "log.test/ledger"
NOW_S = 1_900_000_000


class SeedKey:
    """An Ed25519 key of a seed of 32 bytes."""

    def __init__(self, seed: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self.public_key = self._private.public_key().public_bytes_raw()

    def sign(self, message: bytes) -> bytes:
        return self._private.sign(message)


def key_of(word: str) -> SeedKey:
    return SeedKey(sha256(word.encode()).digest())


class Log:
    """A log whose leaf number n is `name` and n; two logs with other names fork from leaf `same` on."""

    def __init__(self, name: str = "leaf", same: int = 0, origin: str = ORIGIN) -> None:
        self._name, self._same = name, same
        self.signer = LogSigner(origin, key_of("log"))
        self.origin = origin

    def _hashes(self, size: int) -> list[bytes]:
        return [leaf_hash(f"{'leaf' if n < self._same else self._name} {n}".encode()) for n in range(size)]

    def root(self, size: int) -> bytes:
        return root_of(self._hashes(size))

    def note(self, size: int) -> str:
        return self.signer.note(write_checkpoint(self.origin, size, self.root(size)))

    def proof(self, old: int, size: int) -> list[bytes]:
        hashes = self._hashes(size)
        if not 0 < old < size:
            return []
        return consistency_path(old, size, lambda level, at: root_of(hashes[at << level : (at + 1) << level]))

    def request(self, old: int, size: int) -> bytes:
        return write_add_checkpoint(old, self.proof(old, size), self.note(size))

    def prove(self, size: int) -> Any:
        async def proof(old: int) -> list[bytes]:
            return self.proof(old, size)

        return proof


class MemoryRecords:
    """Records that are gone with the process."""

    def __init__(self) -> None:
        self.evidence: list[dict[str, Any]] = []
        self._notes: dict[str, Recorded] = {}

    async def read(self, origin: str) -> Recorded | None:
        return self._notes.get(origin)

    async def replace(self, origin: str, old_size: int, note: str) -> bool:
        from erxhub.proof.checkpoints import read_checkpoint
        from erxhub.proof.notes import read_note

        recorded = self._notes.get(origin)
        if (recorded.size if recorded else 0) != old_size:
            return False
        said = read_checkpoint(read_note(note).text)
        self._notes[origin] = Recorded(said.size, said.root, note)
        return True

    async def keep_evidence(self, evidence: dict[str, Any]) -> None:
        self.evidence.append(evidence)


COSIGNER = Cosigner("witness.test/w1", key_of("witness"))


def witness_of(log: Log, records: Records, clock: Clock | None = None) -> Witness:
    return Witness(COSIGNER, [log.signer.key], records, clock or ManualClock(NOW_S * 1_000))


@contextlib.asynccontextmanager
async def serving(witness: Witness, **limits: Any) -> AsyncIterator[str]:
    """The URL of the witness while it is served."""
    server = WitnessServer(witness, **limits)
    port = await server.start("127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await server.stop()


@contextlib.contextmanager
def files(folder: Path) -> Any:
    records = FileRecords(folder, COSIGNER.key)
    try:
        yield records
    finally:
        records.close()
