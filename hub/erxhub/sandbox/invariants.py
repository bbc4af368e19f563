"""The invariants of the lifecycle (I1…I25) as far as they can be read off a ledger, checked over all of it.

Owns which of them are checked and how: hashes and folds entry by entry, rules on the states around each event, and the
auditor's own verdict on each chain. It claims only what it looked at, and changes nothing: no access is recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from erxhub.audit.chain import Record, read_entry
from erxhub.audit.integrity import Refold
from erxhub.core.fold import STATE_TYPES
from erxhub.core.lifecycle import HOLDING, Machine
from erxhub.core.model import Caller, Refused
from erxhub.core.statuses import state_name
from erxhub.ledger.store import Head, StoredEntry, Wanted
from erxhub.ledger.verify import verify_ledger
from erxhub.ports import give_way
from erxhub.queries import QUERIES
from erxhub.queries.base import ReadContext
from erxhub.v1 import audit_pb2, sandbox_pb2, state_pb2

_PAGE: Final = 500
FINDINGS_MAX: Final = 1_000

_TEXTS: Final[dict[str, tuple[str, str]]] = {
    "I1": ("More than one live hold on one prescription.", "同一处方存在多个有效占用。"),
    "I2": ("More was dispensed than prescribed.", "调配数量超过处方数量。"),
    "I3": (
        "A settlement of a prescription that is not effective, reviewed and held by the settler.",
        "处方未处于有效、已审核且由结算方占用的状态即结算。",
    ),
    "I4": ("Goods went out without settlement or self-payment.", "未结算或自费即出库。"),
    "I5": ("A delivery began without goods that went out.", "未出库即配送。"),
    "I6": ("The money identities do not hold.", "金额勾稽关系不成立。"),
    "I9": ("A trace code was sold twice.", "追溯码重复销售。"),
    "I10": ("The stored state is not the fold of the events.", "存储的状态与事件推演结果不一致。"),
    "I11": ("The hash chain, the sequence or the time of the entries is broken.", "条目的哈希链、序号或时间不连续。"),
    "I12": ("The end of validity changed.", "处方有效截止时间发生改变。"),
    "I13": ("A signed content or file is not the one that was signed.", "签名内容或处方文件与签署时不一致。"),
    "I14": ("A signing key was not the signer's, not valid or revoked.", "签名密钥不属于签名人、无效或已吊销。"),
    "I16": ("The reviewing pharmacist is the prescriber.", "审方药师与开方医师为同一人。"),
    "I17": ("The checker is the dispenser.", "核对人与调配人为同一人。"),
    "I18": ("A voucher code was consumed twice.", "医保电子凭证码被重复使用。"),
}
CHECKED: Final = tuple(_TEXTS)

_GAPS: Final = {
    "GAP_NO_REVIEW": "I3",
    "GAP_NO_SETTLEMENT": "I4",
    "GAP_QUANTITY": "I2",
    "GAP_MONEY": "I6",
    "GAP_TRACE_CODE": "I9",
}
"""What a gap of a chain breaks. GAP_CHAIN is not among them: its findings say which entry, and of what kind."""

_REASONS: Final = {
    "SIGNATURE": "I13",
    "DIGEST": "I13",
    "FILE": "I13",
    "SIGNING_KEY": "I14",
    "STATE": "I10",
    "HEAD_MISMATCH": "I10",
}
"""Findings of a verified chain by their reason; every other reason is one of the chain itself."""

_SETTLING: Final = frozenset({"settlement.committed", "settlement.self_paid"})
_PAID: Final = frozenset({"SETTLED", "SELF_PAID"})
_AUDITOR: Final = Caller("auditor", "sandbox", "", b"")


@dataclass(slots=True)
class _Report:
    """What was found, each once."""

    findings: dict[tuple[str, str], sandbox_pb2.InvariantFinding] = field(default_factory=dict)

    def add(self, invariant: str, where: str) -> None:
        if len(self.findings) < FINDINGS_MAX:
            english, chinese = _TEXTS[invariant]
            self.findings[invariant, where] = sandbox_pb2.InvariantFinding(
                invariant=invariant, where=where, text_en=english, text_zh=chinese
            )


async def check(reads: ReadContext) -> sandbox_pb2.CheckInvariantsResponse:
    """Every finding over the ledger as it is now, at most FINDINGS_MAX. Raises StoreUnavailable."""
    report = _Report()
    verified = await verify_ledger(reads.store, between_pages=give_way)
    for broken in verified.findings:
        invariant = _REASONS.get(broken.reason.value, "I11")
        report.add(invariant, f"{broken.stream_kind}/{broken.stream_key.hex()} version {broken.version}")
    walk = _Walk(report)
    position, last = 0, await reads.store.last_position()
    while position < last and (page := await reads.store.log(position, min(_PAGE, last - position))):
        position = page[-1].position
        await walk.meet(reads, page)
        await give_way()
    for rx_no in sorted(walk.prescriptions):
        await _trace(reads, rx_no, report)
    return sandbox_pb2.CheckInvariantsResponse(entries=last, checked=CHECKED, findings=report.findings.values())


async def _trace(reads: ReadContext, rx_no: str, report: _Report) -> None:
    """The auditor's verdict on one chain, with every hash and signature verified; the query alone records no access."""
    request = audit_pb2.TraceChainRequest(rx_no=rx_no, case_reason="CheckInvariants", verify=True)
    outcome = await QUERIES["AuditService/TraceChain"](reads, _AUDITOR, request)
    if isinstance(outcome, Refused):
        report.add("I10", rx_no)
        return
    trace: Any = outcome.reply
    for gap in trace.gaps:
        if gap in _GAPS:
            report.add(_GAPS[gap], rx_no)
    for finding in trace.findings:
        report.add(_REASONS.get(finding.reason, "I11"), rx_no)


@dataclass(slots=True)
class _Walk:
    """All streams folded side by side in the order of the log, with the rules asked around each event."""

    report: _Report
    prescriptions: set[str] = field(default_factory=set)
    _folds: dict[bytes, Refold] = field(default_factory=dict)
    _heads: dict[bytes, Head] = field(default_factory=dict)
    _once: Counter[tuple[str, bytes]] = field(default_factory=Counter)

    async def meet(self, reads: ReadContext, page: list[StoredEntry]) -> None:
        """The next entries."""
        wanted = frozenset(entry.stream_key for entry in page if entry.stream_kind in STATE_TYPES)
        self._heads.update((await reads.store.read(Wanted(streams=wanted))).heads)
        for entry in page:
            if entry.stream_kind in STATE_TYPES:
                self._take(entry, read_entry(entry))

    def _take(self, entry: StoredEntry, record: Record | None) -> None:
        key = entry.stream_key
        fold = self._folds.get(key)
        if fold is None:
            fold = self._folds[key] = Refold(entry.stream_kind, self._heads.get(key))
        where = f"{entry.stream_kind}/{key.hex()} version {entry.version}"
        readable = record is not None and record.payload is not None and fold.state is not None
        if readable and record is not None:
            for invariant in self._before(key, record, fold.state):
                self.report.add(invariant, where)
        if fold.take(entry, record) is not None:
            self.report.add("I10", where)
        if isinstance(fold.state, state_pb2.PrescriptionState):
            for invariant in self._after(fold.state):
                self.report.add(invariant, where)

    def _before(self, key: bytes, record: Record, state: Any) -> Iterator[str]:
        if record.name in _ONCE:
            self._once[record.name, key] += 1
            if self._once[record.name, key] > 1:
                yield _ONCE[record.name]
        if isinstance(state, state_pb2.PrescriptionState):
            order = next((one for one in state.orders if one.order_no == getattr(record.payload, "order_no", "")), None)
            yield from _EVENT_RULES.get(record.name, _nothing)(record, state, order)

    def _after(self, rx: state_pb2.PrescriptionState) -> Iterator[str]:
        if rx.rx_no:
            self.prescriptions.add(rx.rx_no)
        if any(use.out_e4 > use.prescribed_e4 * max(rx.fills_allowed, 1) for use in rx.lines):
            yield "I2"
        if rx.hospital_reviewer_code and rx.hospital_reviewer_code == rx.content.doctor_code:
            yield "I16"


_ONCE: Final = {"voucher.verified": "I18", "trace_code.sold": "I9"}
"""Events that a stream may have once, and what it breaks when it has two."""


def _nothing(record: Record, rx: state_pb2.PrescriptionState, order: state_pb2.Order | None) -> Iterator[str]:
    yield from ()


def _effective(record: Record, rx: state_pb2.PrescriptionState, order: state_pb2.Order | None) -> Iterator[str]:
    if record.payload.valid_until_ms != rx.content.valid_until_ms:
        yield "I12"


def _held(record: Record, rx: state_pb2.PrescriptionState, order: state_pb2.Order | None) -> Iterator[str]:
    # Asked before the fold: no table allows a second hold, so none is left to be seen after it.
    if any(one is not order and state_name(Machine.ORDER, one.status) in HOLDING for one in rx.orders):
        yield "I1"


def _settled(record: Record, rx: state_pb2.PrescriptionState, order: state_pb2.Order | None) -> Iterator[str]:
    sound = (
        order is not None
        and state_name(Machine.RX, rx.rx_status) == "EFFECTIVE"
        and state_name(Machine.REVIEW, order.review) == "PASSED"
        and state_name(Machine.ORDER, order.status) in HOLDING
        and record.header.actor.startswith(f"pharmacy/{order.pharmacy_code}")
    )
    if not sound:
        yield "I3"


def _out(record: Record, rx: state_pb2.PrescriptionState, order: state_pb2.Order | None) -> Iterator[str]:
    if order is None or state_name(Machine.SETTLEMENT, order.claim.status) not in _PAID:
        yield "I4"
    if order is not None and order.dispense.dispenser_code == order.dispense.checker_code:
        yield "I17"


def _shipped(record: Record, rx: state_pb2.PrescriptionState, order: state_pb2.Order | None) -> Iterator[str]:
    if order is None or state_name(Machine.DISPENSE, order.dispense.status) != "OUT":
        yield "I5"


def _reviewed(record: Record, rx: state_pb2.PrescriptionState, order: state_pb2.Order | None) -> Iterator[str]:
    if record.payload.pharmacist_code == rx.content.doctor_code:
        yield "I16"


_Rule = Callable[[Record, state_pb2.PrescriptionState, state_pb2.Order | None], Iterator[str]]
_EVENT_RULES: Final[dict[str, _Rule]] = {
    "prescription.effective": _effective,
    "order.held": _held,
    **dict.fromkeys(_SETTLING, _settled),
    "dispense.outbound": _out,
    "delivery.picked_up": _shipped,
    "review.passed": _reviewed,
    "review.rejected": _reviewed,
}
