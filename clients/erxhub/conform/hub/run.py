"""One case at one hub: who takes part, what the case asks of them, and what is checked of their answers.

Owns: the parties of a case, and the checks that every case ends with. Must never: weigh a check; the judge does.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from erxhub.client import ClientFailure, ClientIdentity, ReceiptInvalid, check_receipt
from erxhub.client.environment import Environment
from erxhub.conform.checks import CaseEnded, Checks
from erxhub.conform.hub.journey import Journey
from erxhub.conform.hub.ledger_copy import EVENT, CopiedEntry, read_header
from erxhub.conform.hub.parties import CASE_REASON, PARTIES, NumberedIds, Party, meet
from erxhub.conform.hub.places import Place
from erxhub.conform.hub.raw import BY_SHORT_NAME, Answer, RawCaller
from erxhub.conform.plan import Planned
from erxhub.core.refusals import CATALOGUE
from erxhub.crypto.suites import SigningKey
from erxhub.rpc.methods import COMMAND
from erxhub.v1 import audit_pb2, common_pb2, sandbox_pb2

MIRROR: Final = "mirror-1"
STREAM_TRIES: Final = 5
BROKEN: Final = frozenset({"INTERNAL", "UNKNOWN", "DATA_LOSS"})
"""Statuses that no call may end with, whatever it asked for."""


class HubRun:
    """One case at one hub. Parties are attributes; `place` is where it is played."""

    hospital: Party
    hospital_b: Party
    pharmacy: Party
    pharmacy_b: Party
    channel: Party
    agency: Party
    auditor: Party

    def __init__(self, place: Place, planned: Planned, checks: Checks, environment: Environment) -> None:
        self.place = place
        self.planned = planned
        self.checks = checks
        self.environment = environment
        self.ids = NumberedIds(f"{place.name}/{planned.key}")
        self.packs = itertools.count(1)
        """Numbers of the packs that are sold in this case."""
        self._parties: list[Party] = []
        self._callers: list[RawCaller] = []
        self._activated: set[str] = set()
        self._keys: dict[str, SigningKey] = {}
        self._traffic: list[sandbox_pb2.Exchange] = []

    @classmethod
    async def begin(cls, place: Place, planned: Planned, checks: Checks, environment: Environment) -> HubRun:
        """Connects every party. Raises ClientFailure, Unsupported."""
        run = cls(place, planned, checks, environment)
        for name in PARTIES:
            party = await meet(name, place, run.ids, environment)
            run._parties.append(party)
            setattr(run, name, party)
        return run

    async def close(self) -> None:
        """Ends every connection."""
        for party in self._parties:
            await party.close()
        for caller in self._callers:
            await caller.close()

    # ---- the surroundings ----

    @property
    def now_ms(self) -> int:
        """The hub's clock."""
        return self.place.now_ms()

    @property
    def disturbed(self) -> bool:
        """Whether the profile disturbs calls by itself."""
        return self.planned.profile != "dev"

    def key(self, subject_code: str) -> SigningKey:
        """The signing key that somebody uses: the world's, or the one that `renew_key` gave him."""
        return self._keys.get(subject_code) or self.place.key(subject_code)

    async def register_key(
        self, subject: str, institution: str, *, suite: str = "", valid_from_ms: int = 0, valid_until_ms: int = 0
    ) -> SigningKey:
        """A fresh signing key, registered by the agency; of the case's suite, for an hour from a minute ago."""
        key = SigningKey.generate(suite or self.planned.suite)
        await self.agency.client.register_signing_key(
            subject_code=subject,
            institution_code=institution,
            suite=key.suite.name,
            public_key=key.public_key,
            valid_from_ms=valid_from_ms or self.now_ms - 60_000,
            valid_until_ms=valid_until_ms or self.now_ms + 3_600_000,
        )
        return key

    async def renew_key(self, subject: str, institution: str, *, valid_ms: int) -> None:
        """A fresh key, which somebody signs with from now on."""
        self._keys[subject] = await self.register_key(subject, institution, valid_until_ms=self.now_ms + valid_ms)

    async def advance(self, *, by_ms: int | None = None, until_ms: int | None = None) -> None:
        """Moves the hub's clock. Raises Unsupported."""
        await self.place.advance(by_ms=by_ms, until_ms=until_ms)

    def journey(self, **how: Any) -> Journey:
        """A prescription that begins now; arguments as for Journey."""
        return Journey(self, **how)

    async def show_code(self, person_no: str, business_type: str, delegate_person_no: str = "") -> str:
        """A fresh e-voucher code; the person's voucher is activated the first time."""
        channel = self.channel.client
        if person_no not in self._activated:
            self._activated.add(person_no)
            await channel.activate_voucher(person_no=person_no)
        issued = await channel.issue_voucher(
            person_no=person_no, business_type=business_type, delegate_person_no=delegate_person_no
        )
        return str(issued.voucher_code)

    async def reference(self, party: Party, person_no: str, business_type: str) -> str:
        """A code of the person, verified by the party."""
        verified = await party.client.verify_voucher(
            voucher_code=await self.show_code(person_no, business_type), business_type=business_type
        )
        return str(verified.voucher_ref)

    def caller(self, identity: ClientIdentity, *, direct: bool = True) -> RawCaller:
        """Raw calls with any certificate, at the hub's own port (or through the proxy); closed with the case."""
        target = self.place.direct_target if direct else self.place.target
        made = RawCaller(target, identity, self.environment, server_name=self.place.server_name)
        self._callers.append(made)
        return made

    # ---- checks at the answer ----

    def accepted(self, answer: Answer, en: str = "the call is accepted", zh: str = "调用应被受理") -> bool:
        """Checks that the hub said yes, with a receipt where it must give one."""
        holds = self.checks.that(
            answer.ok, point="sut", en=en, zh=zh, expected="OK", actual=_shown(answer), where=answer.method
        )
        if holds:
            self._check_receipt(answer)
        return holds

    def must_accept(self, answer: Answer, en: str = "the call is accepted", zh: str = "调用应被受理") -> Any:
        """As `accepted`; ends the case otherwise. Returns the reply."""
        if not self.accepted(answer, en, zh):
            raise CaseEnded(en)
        return answer.reply

    def refused(
        self, answer: Answer, code: str, *, field: str = "", en: str = "", zh: str = "", where: str = ""
    ) -> bool:
        """Checks that the hub said no, with exactly this code, its status, both sentences and (if given) the field."""
        status = CATALOGUE[code].grpc_status
        en = en or f"the call is refused with {code}"
        zh = zh or f"调用应被拒绝，代码 {code}"
        where = where or answer.method
        refusal = answer.refusal
        if not self.checks.that(
            refusal is not None and refusal.code == code and answer.status == status,
            point="sut",
            en=en,
            zh=zh,
            expected=f"{status} {code}",
            actual=_shown(answer),
            where=where,
        ):
            return False
        assert refusal is not None
        told = bool(refusal.text_en) and any("\u4e00" <= letter <= "\u9fff" for letter in refusal.text_zh)
        retriable = refusal.retriable == CATALOGUE[code].retriable
        named = not field or field in (refusal.field, *(one.field for one in refusal.violations))
        self.checks.that(
            told and retriable,
            point="sut",
            en=f"{code} comes with a sentence in both languages and says truly whether it is retriable",
            zh=f"{code} 应附中英文说明，并如实标明能否重试",
            actual=(refusal.text_en, refusal.text_zh, refusal.retriable),
            where=where,
        )
        if field:
            shown = [refusal.field, *(one.field for one in refusal.violations)]
            self.checks.that(
                named,
                point="sut",
                en=f"{code} names the field {field}",
                zh=f"{code} 应指明字段 {field}",
                expected=field,
                actual=shown,
                where=where,
            )
        return named and told and retriable

    def same_reply(self, first: Answer, again: Answer) -> bool:
        """I19: the first reply again, byte for byte (fields that the line added apart)."""
        one, two = (first.known(), again.known()) if self.disturbed else (first.data, again.data)
        return self.checks.that(
            first.ok and again.ok and one == two,
            point="sut",
            en="a repeated request gets the first reply, byte for byte",
            zh="重复请求应逐字节返回首次应答",
            expected=_shown(first),
            actual=_shown(again),
            where=first.method,
        )

    def _check_receipt(self, answer: Answer) -> None:
        method = BY_SHORT_NAME.get(answer.method)
        keys = self.place.receipt_keys
        if method is None or method.effect != COMMAND or not keys:
            return
        fault = "no receipt"
        try:
            if answer.reply.HasField("receipt"):
                check_receipt(answer.reply.receipt, keys)
                fault = ""
        except ReceiptInvalid as invalid:
            fault = str(invalid)
        self.checks.that(
            not fault,
            point="sut",
            en="an accepted command brings a receipt that a published key signed",
            zh="受理的命令应附有公布密钥签名的回执",
            actual=fault,
            where=answer.method,
        )

    # ---- checks at the ledger ----

    async def trace(self, rx_no: str) -> audit_pb2.TraceChainResponse:
        """The whole chain, verified, as an auditor sees it."""
        traced: audit_pb2.TraceChainResponse = await self.auditor.client.trace(rx_no=rx_no, verify=True)
        return traced

    async def events(self, rx_no: str) -> list[str]:
        """The types of the chain's events in the order of the ledger."""
        return [entry.type for entry in (await self.trace(rx_no)).entries]

    async def chain(
        self,
        rx_no: str,
        *,
        events: Mapping[str, int] | None = None,
        refusals: Mapping[str, int] | None = None,
        light: str = "",
    ) -> audit_pb2.TraceChainResponse:
        """Checks a chain: it verifies, and holds these events and refusals so often."""
        traced = await self.trace(rx_no)
        self.checks.that(
            traced.verified and not traced.findings,
            en="the chain's hashes, links and signatures verify",
            zh="链条的哈希、链接与签名应校验通过",
            actual=[(one.stream_kind, one.version, one.reason) for one in traced.findings],
        )
        types = [entry.type for entry in traced.entries]
        for event, count in (events or {}).items():
            self.checks.equal(
                types.count(event),
                count,
                en=f"{event} stands in the chain {count} times",
                zh=f"链上 {event} 应有 {count} 条",
            )
        outcomes = [access.outcome for access in traced.accesses if access.kind == "refusal"]
        for code, count in (refusals or {}).items():
            self.checks.equal(
                outcomes.count(code),
                count,
                en=f"the refusal {code} stands in the trace {count} times",
                zh=f"追溯中应有 {count} 次拒绝 {code}",
            )
        if light:
            self.checks.equal(
                audit_pb2.Light.Name(traced.light).removeprefix("LIGHT_"),
                light,
                en=f"the auditor's light is {light}",
                zh=f"审计灯应为 {light}",
            )
        return traced

    async def status(self, rx_no: str, party: Party | None = None) -> tuple[str, str]:
        """The names of rx_stas and rx_used as the issuing hospital reads them."""
        hospital = (party or self.hospital).client
        read = await hospital.get(rx_no=rx_no)
        if self.disturbed:
            # The first read after a change may be an old one under this profile.
            read = await hospital.get(rx_no=rx_no)
        return (
            common_pb2.RxStatus.Name(read.statuses.rx).removeprefix("RX_STATUS_"),
            common_pb2.RxUseStatus.Name(read.statuses.use).removeprefix("RX_USE_STATUS_"),
        )

    async def stands(self, rx_no: str, status: str, use: str, party: Party | None = None) -> bool:
        """Checks rx_stas and rx_used."""
        found = await self.status(rx_no, party)
        return self.checks.equal(
            found, (status, use), en=f"the prescription is {status} and {use}", zh=f"处方状态应为 {status}、{use}"
        )

    async def entries(self) -> int:
        """How many entries the ledger has."""
        return int((await self.auditor.client.verify_ledger()).entries)

    async def copy(self, *, after: int = 0, as_mirror: bool = True) -> list[CopiedEntry]:
        """The ledger's entries after a position; with salts and content as a mirror. Raises Unsupported."""
        if not as_mirror:
            return [CopiedEntry.of(one) async for one in self.auditor.client.stream_entries(after_position=after)]
        mirror = self.caller(await self.place.identity("mirror", MIRROR), direct=False)
        request = audit_pb2.StreamEntriesRequest(after_position=after, case_reason=CASE_REASON)
        messages: list[audit_pb2.StreamEntriesResponse] = []
        for _ in range(STREAM_TRIES):
            request.after_position = messages[-1].position if messages else after
            more, ended = await mirror.stream("Audit/StreamEntries", request, count=1_000_000)
            messages += more
            if ended is None or ended.ok:
                break
        return [CopiedEntry.of(one) for one in messages]

    async def written(self, after: int) -> Counter[str]:
        """The types of the events that were written after a position; accesses and refusals are not among them."""
        headers = [read_header(one.header) for one in await self.copy(after=after, as_mirror=False)]
        return Counter(header.type_name for header in headers if header.kind == EVENT)

    async def no_effect(self, after: int) -> bool:
        """Checks that nothing but accesses and refusals was written after a position."""
        found = await self.written(after)
        return self.checks.that(
            not found, en="a refused call changes nothing", zh="被拒绝的调用不得产生任何变更", actual=dict(found)
        )

    # ---- checks on the wire ----

    def traffic(self) -> list[sandbox_pb2.Exchange]:
        """Every call of the case, once it has ended."""
        return list(self._traffic)

    async def keep_traffic(self) -> None:
        """Reads the record; what cannot be read is not there."""
        try:
            self._traffic = await self.place.traffic()
        except ClientFailure:
            self._traffic = []

    async def calls(self, method: str, actor: str = "") -> list[sandbox_pb2.Exchange]:
        """The calls so far of a method ("Dispensing/Settle"), of one actor on request."""
        return [one for one in await self.place.traffic() if one.method == method and (not actor or one.actor == actor)]

    async def on_the_wire(self, method: str, *, outcomes: Mapping[str, int], actor: str = "") -> None:
        """Checks how often calls of a method ended with "OK" or a refusal code."""
        calls = await self.calls(method, actor)
        for outcome, count in outcomes.items():
            found = sum((one.refusal_code or one.status) == outcome for one in calls)
            self.checks.equal(
                found,
                count,
                point="wire",
                en=f"{method} ended {count} times with {outcome}",
                zh=f"{method} 以 {outcome} 结束应为 {count} 次",
            )

    # ---- the end ----

    async def finish(self) -> None:
        """What holds after every case: no call broke inside the hub, and the ledger verifies."""
        await self.place.clear_faults()
        broken = [
            f"{one.number} {one.method} {one.status}" for one in await self.place.traffic() if one.status in BROKEN
        ]
        self.checks.that(
            not broken, point="wire", en="no call broke inside the hub", zh="不得有调用在中心内部出错", actual=broken
        )
        verified = await self.auditor.client.verify_ledger()
        self.checks.that(
            verified.verified and not verified.findings,
            en="the whole ledger verifies",
            zh="整个账本应校验通过",
            actual=[(one.stream_kind, one.version, one.reason) for one in verified.findings[:5]],
        )
        findings: Sequence[sandbox_pb2.InvariantFinding] = await self.place.findings()
        self.checks.that(
            not findings,
            en="the invariants hold over the whole ledger",
            zh="不变量应在整个账本上成立",
            actual=[f"{one.invariant} {one.where} {one.text_en}" for one in findings[:5]],
        )


def _shown(answer: Answer) -> str:
    """An answer in one line."""
    if answer.ok:
        return f"OK ({len(answer.data)} bytes)"
    refusal = answer.refusal
    if refusal is None:
        return f"{answer.status} {answer.details}"
    return f"{answer.status} {refusal.code} {refusal.field} {dict(refusal.metadata)}"
