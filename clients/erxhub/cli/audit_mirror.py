"""`erxhub audit mirror`: copy a hub's ledger, make its log again, and if asked cosign what agrees.

Owns the hub as the replay sees it, the files beside the copy, and when to look again. It must never go on after a
fault: what does not agree stays where it is, with evidence.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from erxhub.cli.exits import NEGATIVE, OK, UNAVAILABLE, exit_code_for
from erxhub.cli.local_errors import Failed, failing_as, unusable
from erxhub.v1 import audit_pb2

if TYPE_CHECKING:
    from erxhub.cli.output import Output
    from erxhub.client import MirrorClient
    from erxhub.ledger.log import Checkpoint
    from erxhub.ledger.store import Store
    from erxhub.mirror.faults import MirrorFault
    from erxhub.mirror.replay import Mirror, Progress
    from erxhub.proof.notes import NoteKey

_STREAM_MAX: Final = 1_000_000
"""Entries of one call; the hub gives no more."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the command was asked for. `witness_folder` has the key that cosigns; None for a mirror that does not."""

    database: Path
    log_keys: tuple[str, ...]
    policy: Path | None
    ca: Path | None
    interval_s: int
    follows: bool
    witness_folder: Path | None
    address: str
    ready_file: Path | None


class HubSource:
    """A hub behind a mirror's certificate."""

    def __init__(self, client: MirrorClient) -> None:
        self._client = client

    async def checkpoints(self, after_size: int) -> Sequence[audit_pb2.GetCheckpointResponse] | None:
        """See `erxhub.mirror.replay.Source`."""
        from erxhub.client import Refusal

        try:
            return list((await self._client.checkpoints(after_size=after_size)).checkpoints)
        except Refusal as refusal:
            if refusal.code != "INPUT_MALFORMED":
                raise
            return None

    async def checkpoint(self, size: int) -> audit_pb2.GetCheckpointResponse | None:
        """See `erxhub.mirror.replay.Source`."""
        from erxhub.client import Refusal

        try:
            return await self._client.checkpoint(size=size)
        except Refusal as refusal:
            if refusal.code != "INPUT_MALFORMED":
                raise
            return None

    async def entries(self, after_position: int, limit: int) -> AsyncGenerator[audit_pb2.StreamEntriesResponse, None]:
        """See `erxhub.mirror.replay.Source`."""
        position, until = after_position, after_position + limit
        while position < until:
            stream = self._client.stream_entries(after_position=position, limit=min(until - position, _STREAM_MAX))
            before = position
            async for entry in stream:
                yield entry
                position = entry.position
            if position == before:
                return


async def run(client: MirrorClient, out: Output, settings: Settings) -> int:
    """Replay, and with `follows` go on for good. The exit code."""
    from erxhub.cli.audit_proofs import trust_of
    from erxhub.cli.stores import failures_of, open_store
    from erxhub.client import ClientFailure
    from erxhub.mirror.faults import MirrorFault
    from erxhub.mirror.replay import Judged, Mirror
    from erxhub.mirror.witnessed import newest_witnessed

    origin = (await client.checkpoint()).note.partition("\n")[0]
    trust = trust_of(settings.log_keys, settings.policy, settings.ca, origin)
    keys = [key for key in trust.logs() if key.name == origin] or trust.logs()
    async with AsyncExitStack() as stack:
        store = await open_store(str(settings.database))
        stack.push_async_callback(store.close)
        judged = settings.database.with_name(settings.database.name + ".judged")
        mirror = Mirror(store, keys, Judged(judged), ca_pem=trust.ca_pem)
        if settings.witness_folder is not None:
            await _serve(stack, mirror, store, keys, settings)
        source = HubSource(client)
        while True:
            try:
                with failures_of(str(settings.database)):
                    progress = await mirror.catch_up(source)
                    witnessed = await newest_witnessed(store, source, trust) if trust.policy else None
            except MirrorFault as fault:
                out.say(f"{fault}; evidence: {_keep_evidence(settings.database, fault)}")
                return NEGATIVE
            except ClientFailure as failure:
                if not settings.follows or exit_code_for(failure) != UNAVAILABLE:
                    raise
                out.say(str(failure))
            else:
                out.event(_told(origin, progress, witnessed))
                lacks_witnesses = trust.policy is not None and witnessed is None
                if lacks_witnesses:
                    out.say("QUORUM: none of the newest checkpoints has the witnesses that the policy demands")
                if not settings.follows:
                    return NEGATIVE if lacks_witnesses else OK
            await client.connection.environment.sleep_ms(settings.interval_s * 1_000)


def _told(origin: str, progress: Progress, witnessed: Checkpoint | None) -> dict[str, object]:
    return {
        "origin": origin,
        "size": progress.size,
        "root": progress.root.hex(),
        "map_root": progress.map_root.hex(),
        "entries": progress.entries,
        "signatures": progress.signatures,
        "chains_erased": progress.chains_erased,
        "kept_back": progress.kept_back,
        "witnessed_size": witnessed.size if witnessed is not None else None,
    }


def _keep_evidence(database: Path, fault: MirrorFault) -> Path:
    data = json.dumps(fault.evidence, ensure_ascii=False, indent=1) + "\n"
    path = database.with_name(f"{database.name}.evidence-{fault.reason.lower()}.json")
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(data, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise unusable(error, path) from None
    return path


async def _serve(stack: AsyncExitStack, mirror: Mirror, store: Store, keys: list[NoteKey], settings: Settings) -> None:
    """Cosign over HTTP, for as long as the mirror runs."""
    import os

    from erxhub.cli.hosting import write_ready
    from erxhub.mirror.cosigning import MirrorWitness
    from erxhub.ports import SystemClock
    from erxhub.proof.merkle import ProofInvalid
    from erxhub.witness.keyfiles import RECORDS_FOLDER, WitnessFilesError, load_witness
    from erxhub.witness.records import FileRecords, RecordsBroken
    from erxhub.witness.server import WitnessServer

    folder = settings.witness_folder
    assert folder is not None
    host, _, port = settings.address.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65_535:
        raise Failed("CLI_VALUE_FORM", field="--address", value=settings.address, form="HOST:PORT")
    with (
        failing_as("CLI_WITNESS", WitnessFilesError, ProofInvalid, field="--cosign", path=folder),
        failing_as("CLI_WITNESS_RECORDS", RecordsBroken, field="--cosign", path=folder),
    ):
        cosigner = load_witness(folder)
        records = FileRecords(folder / RECORDS_FOLDER, cosigner.key)
        stack.callback(records.close)
        server = WitnessServer(MirrorWitness(mirror, store, cosigner, keys, records, SystemClock()))
    with failing_as("CLI_ADDRESS_TAKEN", OSError, field="--address", address=settings.address):
        listening = await server.start(host.strip("[]"), int(port))
    stack.push_async_callback(server.stop)
    write_ready(settings.ready_file, url=f"http://{host}:{listening}", vkey=cosigner.key.vkey, pid=os.getpid())
