"""What participants signed, in the streams of a mirror: whose it is, what it says, and how prescriptions are joined.

Owns which chains are looked at. The judgements are `erxhub.audit`'s; what was erased cannot be judged and counts by
type, order and hashes alone. It must never let what is there go unjudged because something else of the chain is gone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import replace
from typing import Final

from erxhub.audit import signatures
from erxhub.audit.certificates import certificate_fault
from erxhub.audit.chain import (
    Chain,
    Finding,
    Name,
    Reason,
    Record,
    Sources,
    Stream,
    assemble,
    link_findings,
    missing,
)
from erxhub.audit.sales import sales_of
from erxhub.audit.signatures import SignedContent
from erxhub.crypto.suites import SUITES
from erxhub.ledger import verify

Read = Callable[[bytes], Awaitable[Stream]]
Named = Callable[[frozenset[Name]], Awaitable[dict[Name, bytes]]]
Listed = Callable[[bytes], Awaitable[list[bytes]]]

_ERASED: Final = "content.erased"


class Judge:
    """Verifies chains. `read` gives a stream by its key, `named` the streams of signers by their names.

    `prescribed` gives those of a visit's prescriptions of which the content is there, `quoting` one of the streams that
    quote a voucher, if the content of any is. With `ca_pem` the keys that signed have certificates of this root.
    """

    def __init__(
        self,
        read: Read,
        named: Named,
        prescribed: Listed,
        quoting: Listed,
        ledger_key: bytes,
        ca_pem: bytes | None,
    ) -> None:
        self._ca_pem = ca_pem
        self._certified: set[bytes] = set()
        self._read = read
        self._named = named
        self._prescribed = prescribed
        self._quoting = quoting
        self._ledger_key = ledger_key
        self.verified = 0
        """Signatures that hold."""
        self._erased: set[bytes] = set()

    @property
    def erased(self) -> int:
        """Prescriptions whose content was erased."""
        return len(self._erased)

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
            kind = stream.records[0].header.stream_kind if stream.records else ""
            if kind in ("voucher", "account"):
                found += _twice(stream)
                if await self._quoting(key):
                    found += _too_early(stream)
                continue
            if kind != "prescription":
                visits[key] = stream
                continue
            sources = Sources(self._ledger_key, {key: stream})
            while wanted := missing(key, sources):
                for other in wanted:
                    sources.streams[other] = await self._read(other)
            chain = assemble(key, sources)
            covered.add(chain.encounter.key)
            found += self._erasure_findings(stream, chain.encounter)
            found += await self._judged(chain, sources, signers, shared)
        for key, stream in visits.items():
            if stream.first(_ERASED):
                found += _twice(stream)
                for rx_key in await self._prescribed(key):
                    found += self._erasure_findings(await self._read(rx_key), stream)
            if key not in covered:
                sources = Sources(self._ledger_key, {key: stream})
                found += await self._judged(replace(assemble(b"", sources), encounter=stream), sources, signers, shared)
        return list(dict.fromkeys(found))

    def _erasure_findings(self, rx: Stream, encounter: Stream) -> list[Finding]:
        """A visit goes with the last of its prescriptions and not before."""
        if rx.first(_ERASED):
            self._erased.add(rx.key)
            return _twice(rx)
        return _too_early(encounter)

    async def _judged(
        self, chain: Chain, sources: Sources, signers: dict[Name, bytes], shared: dict[bytes, Stream]
    ) -> list[Finding]:
        sales = sales_of(chain.rx.records)
        holders = signatures.holders(chain, sales)
        unknown = frozenset(holders - signers.keys())
        if unknown:
            signers.update(await self._named(unknown))
        for key in {signers[name] for name in holders if name in signers} - shared.keys():
            shared[key] = await self._read(key)
        sources.streams.update(shared)
        sources.names.update(signers)
        gone = {
            (record.header.stream_key, record.header.version)
            for stream in (chain.rx, chain.encounter)
            for record in stream.records
            if record.is_erased
        }
        links = link_findings(chain) if chain.rx.records else []
        found = [each for each in links if (each.stream_key, each.version) not in gone]
        for proof in signatures.proofs(chain, sales, sources):
            content = proof.content
            if content.record.is_erased or (gone and not (content.subject_code and content.institution_code)):
                continue  # it is gone, or what says whose it would have to be
            if proof.check is not None:
                suite, public_key, message, signature = proof.check
                if SUITES[suite].verify(public_key, message, signature):
                    self.verified += 1
                else:
                    found.append(content.finding(Reason.SIGNATURE))
            # What it covers may be what is gone.
            found += [content.finding(reason) for reason in proof.reasons if not gone or reason != Reason.DIGEST]
            if self._ca_pem is not None:
                found += self._certificates(content, sources, self._ca_pem)
        return found

    def _certificates(self, content: SignedContent, sources: Sources, ca_pem: bytes) -> Iterator[Finding]:
        """The faults of the certificate behind the key that signed; each key is looked at until it holds."""
        space, code = content.holder
        key_ids = {signature.key_id for signature in content.signed.signatures[:1]}
        for registered in sources.named(space, code.decode()).all("signing_key.registered"):
            if registered.payload.key.key_id not in key_ids or registered.leaf_hash in self._certified:
                continue
            if certificate_fault(registered, ca_pem):
                yield _finding(registered, Reason.CERTIFICATE)
            else:
                self._certified.add(registered.leaf_hash)


def _twice(stream: Stream) -> list[Finding]:
    """Content is erased once; an erasure after the first could only hide what that one said."""
    return [_finding(record, Reason.STATE) for record in list(stream.all(_ERASED))[1:]]


def _too_early(stream: Stream) -> list[Finding]:
    """What needs the content is there still."""
    return [_finding(record, verify.Reason.CONTENT_MISSING) for record in stream.all(_ERASED)]


def _finding(record: Record, reason: str) -> Finding:
    header = record.header
    return Finding(header.stream_kind, header.stream_key, header.version, reason)
