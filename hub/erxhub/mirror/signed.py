"""What participants signed, in the streams of a mirror: whose it is, what it says, and how prescriptions are joined.

Owns which chains are looked at. The judgements are `erxhub.audit`'s; content that was erased cannot be judged, and such
a chain counts by type, order and hashes alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from erxhub.audit import signatures
from erxhub.audit.chain import Chain, Finding, Name, Reason, Sources, Stream, assemble, link_findings, missing
from erxhub.audit.sales import sales_of
from erxhub.crypto.suites import SUITES

Read = Callable[[bytes], Awaitable[Stream]]
Named = Callable[[frozenset[Name]], Awaitable[dict[Name, bytes]]]


class Judge:
    """Verifies chains. `read` gives a stream by its key, `named` the streams of signers by their names."""

    def __init__(self, read: Read, named: Named, ledger_key: bytes) -> None:
        self._read = read
        self._named = named
        self._ledger_key = ledger_key
        self.verified = 0
        """Signatures that hold."""
        self.erased = 0
        """Chains whose content is gone."""

    async def findings(self, keys: Iterable[bytes]) -> list[Finding]:
        """What does not hold of these prescriptions, and of these visits as far as no prescription covers them."""
        found: list[Finding] = []
        signers: dict[Name, bytes] = {}
        # Signers and the ledger are the same for many chains, and do not change while they are judged.
        shared: dict[bytes, Stream] = {self._ledger_key: await self._read(self._ledger_key)}
        visits: dict[bytes, Stream] = {}
        covered: set[bytes] = set()
        for key in keys:
            stream = await self._read(key)
            if not stream.records or stream.records[0].header.stream_kind != "prescription":
                visits[key] = stream
                continue
            sources = Sources(self._ledger_key, {key: stream})
            while wanted := missing(key, sources):
                for other in wanted:
                    sources.streams[other] = await self._read(other)
            chain = assemble(key, sources)
            covered.add(chain.encounter.key)
            found += await self._judged(chain, sources, signers, shared)
        for key, stream in visits.items():
            if key not in covered:
                sources = Sources(self._ledger_key, {key: stream})
                found += await self._judged(replace(assemble(b"", sources), encounter=stream), sources, signers, shared)
        return found

    async def _judged(
        self, chain: Chain, sources: Sources, signers: dict[Name, bytes], shared: dict[bytes, Stream]
    ) -> list[Finding]:
        if any(stream.first("content.erased") for stream in (chain.rx, chain.encounter)):
            self.erased += 1
            return []
        sales = sales_of(chain.rx.records)
        holders = signatures.holders(chain, sales)
        unknown = frozenset(holders - signers.keys())
        if unknown:
            signers.update(await self._named(unknown))
        for key in {signers[name] for name in holders if name in signers} - shared.keys():
            shared[key] = await self._read(key)
        sources.streams.update(shared)
        sources.names.update(signers)
        found = list(link_findings(chain)) if chain.rx.records else []
        for proof in signatures.proofs(chain, sales, sources):
            if proof.check is not None:
                suite, public_key, message, signature = proof.check
                if SUITES[suite].verify(public_key, message, signature):
                    self.verified += 1
                else:
                    found.append(proof.content.finding(Reason.SIGNATURE))
            found += [proof.content.finding(reason) for reason in proof.reasons]
        return found
