"""Three witnesses with an HTTP address each, as a hub meets them: some there, some away, and what each was shown."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from erxhub.ports import Clock
from erxhub.proof.notes import Cosigner, NoteKey
from erxhub.proof.policy import Policy, read_policy
from erxhub.witness.protocol import read_add_checkpoint
from erxhub.witness.server import WitnessServer
from erxhub.witness.witness import Answer, Witness
from tests.witness.ground import MemoryRecords, key_of


class Listening(Witness):
    """Remembers the notes that it was shown."""

    notes: list[str]

    async def add_checkpoint(self, body: bytes) -> Answer:
        self.notes.append(read_add_checkpoint(body).note.decode())
        return await super().add_checkpoint(body)


@dataclass
class Town:
    """`quorum` of three witnesses W0, W1, W2; each keeps its records when it goes away and comes back."""

    log_key: NoteKey
    clock: Clock
    quorum: str = "2"
    cosigners: list[Cosigner] = field(
        default_factory=lambda: [Cosigner(f"witness.test/{n}", key_of(f"w{n}")) for n in range(3)]
    )
    records: list[MemoryRecords] = field(default_factory=lambda: [MemoryRecords() for _ in range(3)])
    notes: list[list[str]] = field(default_factory=lambda: [[], [], []])
    ports: list[int] = field(default_factory=lambda: [0, 0, 0])
    servers: dict[int, WitnessServer] = field(default_factory=dict)

    async def come(self, *numbers: int) -> None:
        """These witnesses answer, each at the port that it had before."""
        for number in numbers:
            witness = Listening(self.cosigners[number], [self.log_key], self.records[number], self.clock)
            witness.notes = self.notes[number]
            self.servers[number] = WitnessServer(witness)
            self.ports[number] = await self.servers[number].start("127.0.0.1", self.ports[number])

    async def go(self, *numbers: int) -> None:
        """These do not answer any more."""
        for number in numbers:
            await self.servers.pop(number).stop()

    @property
    def policy(self) -> Policy:
        return read_policy(self.text)

    @property
    def text(self) -> bytes:
        """The policy file."""
        lines = [f"log {self.log_key.vkey}\n"]
        lines += [
            f"witness W{n} {one.key.vkey} http://127.0.0.1:{self.ports[n] or 9}\n"
            for n, one in enumerate(self.cosigners)
        ]
        return "".join([*lines, f"group q {self.quorum} W0 W1 W2\nquorum q\n"]).encode()


@contextlib.asynccontextmanager
async def town_of(
    log_key: NoteKey, clock: Clock, present: tuple[int, ...] = (0, 1), quorum: str = "2"
) -> AsyncIterator[Town]:
    """A town in which these witnesses answer."""
    town = Town(log_key, clock, quorum)
    await town.come(0, 1, 2)
    await town.go(*({0, 1, 2} - set(present)))
    try:
        yield town
    finally:
        await town.go(*town.servers)
