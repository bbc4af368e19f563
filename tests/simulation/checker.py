"""Watches a simulated hub: after every commit the new entries, the stored states and the answers.

Owns the order of the checks: the chain first, then each event against the model, then states, accesses and replies.
Which invariant is checked where: docs/simulation.md. Must never repair or repeat anything.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from erxhub.core import timers
from erxhub.core.events import At
from erxhub.core.fold import STATE_TYPES, evolve
from erxhub.core.keys import prescription_key
from erxhub.core.model import Caller
from erxhub.jobs import Answer as HubAnswer
from erxhub.jobs import Declined, Replied
from erxhub.ledger.store import StoredEntry, Wanted
from erxhub.ledger.verify import verify_ledger
from tests.simulation.cast import HOUR_MS, hub_keys
from tests.simulation.hub import SimulatedHub, at_once
from tests.simulation.model import Model
from tests.simulation.reading import ACCESS, EVENT, REFUSAL, Chains, Line, Violation, read
from tests.simulation.wire import Call, read_reply

KEPT_EVENTS: Final = frozenset(
    {"voucher.try_counted", "voucher.revoked", "prescription.undo_requested", "delivery.try_counted"}
)
"""What a refused command may leave, because a limit or a later step is decided by it."""

_NOT_PERSONAL: Final = frozenset(
    {
        "VoucherService/IssueVoucher",
        "PrescribingService/PrecheckPrescription",
        "PrescribingService/UploadPrescription",
        "PrescribingService/RevokePrescription",
    }
)
"""Replies to those who wrote the content, or that hold a code and nothing of a person."""

_LISTED_AT_MOST: Final = 64


@dataclass(slots=True)
class _Accepted:
    method: str
    content: bytes
    body: bytes
    caller: Caller


class _Left(NamedTuple):
    """An entry that a request left."""

    stream_key: bytes
    version: int
    leaf_hash: bytes
    name: str


@dataclass(slots=True)
class Seen:
    """What was met in a run, for the report."""

    events: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    commands: Counter[str] = field(default_factory=Counter)
    """Accepted, by method."""


class Checker:
    """One hub's checker. Every method may raise a Violation."""

    def __init__(self, hub: SimulatedHub) -> None:
        self.hub = hub
        self.seen = Seen()
        self.model = Model(signatures=hub.signatures)
        self.model.blob = lambda key, digest: at_once(self.hub.store.blob(key, digest))
        self.chains = Chains()
        self.accepted: dict[tuple[str, str], _Accepted] = {}
        """Every accepted command by actor and request id: what its repetition must get."""
        self._callers: dict[tuple[str, str], Caller] = {}
        self._states: dict[bytes, tuple[str, Any]] = {}
        self._events: dict[tuple[str, str], dict[int, list[_Left]]] = {}
        """What each request left that was not answered yet, by commit."""
        self._commit = 0
        self._reported: dict[str, int] = {}

    # ---- after a commit ----

    def after(self, calls: Sequence[Call], answers: Sequence[HubAnswer | BaseException | None]) -> None:
        """Check what these calls left and what they were told; with no calls, what a sweep left."""
        for call in calls:
            self._callers[call.caller.actor, call.request_id] = call.caller
            if call.method == "DispensingService/QuoteSettlement":
                self.model.uses_account[call.request_id] = call.request.use_account
        self._commit += 1
        lines = self._read()
        self._check_states(line.stream_key for line in lines if line.kind == EVENT)
        self._check_lists(lines)
        self._check_answers(calls, answers, lines)

    def _read(self) -> list[Line]:
        lines = []
        changed = False
        for entry in self.hub.log(self.chains.position):
            line = read(entry)
            self.chains.take(entry, line)
            self.seen.events[line.name] += 1
            if line.kind == EVENT:
                self.model.take(line)
                self._fold(line)
                self._of_request(line, entry)
                changed = True
            lines.append(line)
        if changed:
            self.model.after_commit()
        return lines

    def _of_request(self, line: Line, entry: StoredEntry) -> None:
        if not line.request_id:
            return
        request = (line.institution, line.request_id)
        if request not in self._callers:
            raise Violation("I24", f"{line.name} names a request of {line.institution} that nobody sent")
        if self._callers[request].fingerprint in self.model.revoked_certificates:
            raise Violation("I14", f"{line.name} under a certificate that was revoked before")
        if request in self.accepted:
            raise Violation("I19", f"{line.name} was left by the repetition of an accepted request")
        left = _Left(line.stream_key, line.version, entry.leaf_hash, line.name)
        self._events.setdefault(request, {}).setdefault(self._commit, []).append(left)

    # ---- I10, I12: states ----

    def _fold(self, line: Line) -> None:
        kind_and_state = self._states.get(line.stream_key)
        if kind_and_state is None:
            kind_and_state = self._states[line.stream_key] = (line.stream_kind, STATE_TYPES[line.stream_kind]())
        at = At(line.version, line.at_ms, line.request_id)
        evolve(line.stream_kind, kind_and_state[1], line.name, line.payload, at)

    def _check_states(self, keys: Any) -> None:
        wanted = list(dict.fromkeys(keys))
        if not wanted:
            return
        heads = at_once(self.hub.store.inner.load(Wanted(streams=frozenset(wanted)))).heads
        for key in wanted:
            kind, state = self._states[key]
            head = heads.get(key)
            what = f"a {kind}"
            if head is None or (head.version, head.leaf_hash) != self.chains.heads[key]:
                raise Violation("I10", f"the stored state of {what} is not that after its last entry")
            if head.body != state.SerializeToString(deterministic=True):
                raise Violation("I10", f"the stored state of {what} is not the fold of its entries")
            if head.due_at_ms != timers.next_due_ms(kind, state):
                raise Violation("I10", f"the stored deadline of {what} is not that of its state")
            if kind == "account":
                self._check_account(key, state)
            elif kind == "prescription":
                self._check_prescription(key, state)

    def _check_account(self, key: bytes, state: Any) -> None:
        account = self.model.accounts[key]
        in_scope, fund = account.years.get(state.benefit_year, (0, 0))
        found = (state.balance_fen, state.in_scope_year_fen, state.fund_year_fen)
        if found != (account.balance_fen, in_scope, fund):
            raise Violation("I7", f"the account says {found}, its moves {(account.balance_fen, in_scope, fund)}")

    def _check_prescription(self, key: bytes, state: Any) -> None:
        rx = self.model.rx[key]
        if state.content.valid_until_ms != rx.content.valid_until_ms:
            raise Violation("I12", f"the end of validity of {rx.number} moved")
        out = {use.line_no: use.out_e4 for use in state.lines if use.out_e4}
        if out != {line_no: quantity for line_no, quantity in rx.out_e4.items() if quantity}:
            raise Violation("I2", f"{rx.number}: the state says {out} is out, its entries {dict(rx.out_e4)}")

    # ---- I21: the patient's list ----

    def _check_lists(self, lines: Sequence[Line]) -> None:
        for line in lines:
            if line.kind == ACCESS and line.name == "audit.read":
                people = dict.fromkeys(target.person_key for target in line.payload.targets)
            elif line.kind == REFUSAL:
                people = dict.fromkeys(line.payload.person_keys)
            else:
                continue
            for person_key in people:
                if not person_key:
                    continue
                rows = at_once(
                    self.hub.store.inner.listing("person_access", person_key, 0, _LISTED_AT_MOST, newest_first=True)
                )
                if all(row.position != line.position for row in rows):
                    raise Violation("I21", f"the person does not find {line.name} at {line.position}")

    # ---- I13, I19, I21: answers ----

    def _check_answers(
        self, calls: Sequence[Call], answers: Sequence[HubAnswer | BaseException | None], lines: Sequence[Line]
    ) -> None:
        refusals: Counter[tuple[str, str, str, str]] = Counter()
        accesses: Counter[tuple[str, str, bytes, bytes]] = Counter()
        for line in lines:
            if line.kind == REFUSAL:
                payload = line.payload
                refusals[line.actor, line.request_id, payload.method, payload.code] += 1
            elif line.kind == ACCESS and line.name == "audit.read":
                for target in line.payload.targets:
                    accesses[line.actor, target.method, target.stream_key, target.person_key] += 1
        for call, answer in zip(calls, answers, strict=True):
            if answer is None:
                continue
            if isinstance(answer, BaseException):
                raise Violation("BUG", f"{call.method} ended in {answer!r}")
            if isinstance(answer, Declined):
                self._refused(call, answer, refusals)
            else:
                self._replied(call, answer, accesses)
        if +refusals and all(answer is not None for answer in answers):
            raise Violation("I21", f"refusals are recorded that nobody got: {dict(+refusals)}")

    def _refused(self, call: Call, answer: Declined, refusals: Counter[tuple[str, str, str, str]]) -> None:
        code, actor = answer.refused.code, call.caller.actor
        request = (actor, call.request_id)
        self.seen.refusals[code] += 1
        before = self.accepted.get(request)
        if before is not None and code != "CERT_REVOKED":
            same = before.method == call.method and before.content == call.content
            if same or code != "IDEMPOTENCY_CONFLICT":
                raise Violation("I19", f"{call.method} was accepted as {call.request_id}, and now answers {code}")
        if before is None:
            self._check_nothing_left(call, code)
        entry = (actor, call.request_id, call.method, code)
        told = code == "CERT_REVOKED" and self._told_before(actor)
        if refusals[entry]:
            refusals[entry] -= 1
        elif not told:
            raise Violation("I21", f"no entry says that {call.method} was refused with {code}")

    def _check_nothing_left(self, call: Call, code: str) -> None:
        """A refusal binds nothing.

        An earlier try whose answer was lost may have been accepted; only a certificate that was revoked since keeps its
        caller from hearing of it.
        """
        left = self._events.get((call.caller.actor, call.request_id), {})
        for commit, entries in left.items():
            lasting = [entry.name for entry in entries if entry.name not in KEPT_EVENTS]
            if lasting and (commit == self._commit or code != "CERT_REVOKED"):
                raise Violation("I19", f"{call.method} is refused with {code}, and left {lasting}")

    def _told_before(self, actor: str) -> bool:
        """Whether a refusal of a revoked certificate need not be recorded: one was, within the hour."""
        now, last = self.hub.clock.at_ms, self._reported.get(actor)
        if last is not None and now - last < HOUR_MS:
            return True
        self._reported[actor] = now
        return False

    def _replied(self, call: Call, answer: Replied, accesses: Counter[tuple[str, str, bytes, bytes]]) -> None:
        request = (call.caller.actor, call.request_id)
        if request in self.model.taken_ids:
            raise Violation("I19", f"{call.method} is accepted as {call.request_id}, which a reversal took")
        before = self.accepted.get(request)
        reply = read_reply(call.method, answer.body)
        if before is None:
            self.accepted[request] = _Accepted(call.method, call.content, answer.body, call.caller)
            self.seen.commands[call.method] += 1
            self._check_receipt(call, reply)
        elif (before.method, before.content) != (call.method, call.content):
            raise Violation("I19", f"{call.method} is accepted as {call.request_id}, which was something else")
        elif before.body != answer.body:
            raise Violation("I19", f"{call.method} as {call.request_id} answers other bytes than before")
        self._check_access(call, reply, accesses)
        if answer.attach_upload:
            self._check_bytes(call, answer)

    def _check_receipt(self, call: Call, reply: Any) -> None:
        """The receipt names exactly the entries that the request left, and is the hub's."""
        receipt = reply.receipt
        named = [(entry.stream_key, entry.version, entry.leaf_hash) for entry in receipt.entries]
        # Refused tries before, answered or not, may have left what a limit is decided by.
        tries = self._events.pop((call.caller.actor, call.request_id), {}).values()
        lasting = [entries for entries in tries if any(entry[:3] in named for entry in entries)]
        left = [entry[:3] for entries in lasting for entry in entries]
        others = [entry.name for entries in tries if entries not in lasting for entry in entries]
        if named != left or any(name not in KEPT_EVENTS for name in others):
            raise Violation(
                "I19", f"the receipt of {call.method} names {len(named)} entries, {len(left)} are there, and {others}"
            )
        if not self.hub.signatures:
            return
        body = b"".join(
            (
                len(receipt.origin.encode()).to_bytes(4, "big"),
                receipt.origin.encode(),
                receipt.recorded_at_ms.to_bytes(8, "big"),
                receipt.max_merge_delay_ms.to_bytes(8, "big"),
                len(named).to_bytes(4, "big"),
                *(key + version.to_bytes(8, "big") + leaf for key, version, leaf in named),
            )
        )
        name = b"application/vnd.erxhub.v1.Receipt"
        signed = b"DSSEv1 %d %b %d %b" % (len(name), name, len(body), body)
        try:
            Ed25519PublicKey.from_public_bytes(hub_keys().receipt.public_key).verify(receipt.signature, signed)
        except InvalidSignature:
            raise Violation("I19", f"the receipt of {call.method} is not signed by the hub") from None

    # ---- I21: who reads what ----

    def _check_access(self, call: Call, reply: Any, accesses: Counter[tuple[str, str, bytes, bytes]]) -> None:
        if call.method in _NOT_PERSONAL:
            return
        actor = call.caller.actor
        if call.method == "VoucherService/VerifyVoucher":
            if not any(found[:2] == (actor, call.method) and count for found, count in accesses.items()):
                raise Violation("I21", f"no entry says that {actor} saw a person")
            return
        for rx_no in self._shown(call, reply):
            key = prescription_key(rx_no)
            rx = self.model.rx[key]
            entry = (actor, call.method, key, rx.person_key)
            if not accesses[entry]:
                raise Violation("I21", f"no entry says that {actor} saw {rx_no} by {call.method}")
            accesses[entry] -= 1
            if call.caller.kind == "pharmacy" and call.caller.id not in rx.shown_to:
                raise Violation("I21", f"{actor} saw {rx_no}, which nobody showed it")
            if call.caller.kind == "hospital" and call.caller.id != rx.content.hospital_code:
                raise Violation("I21", f"{actor} saw {rx_no} of another hospital")

    @staticmethod
    def _shown(call: Call, reply: Any) -> list[str]:
        """The prescriptions that a reply to a pharmacy or a channel is about."""
        if call.method == "DispensingService/ListByVoucher":
            return [row.rx_no for row in reply.prescriptions]
        if call.method == "DispensingService/ResolveQr":
            return [reply.prescription.rx_no]
        if call.method == "DispensingService/DownloadPrescription":
            return [reply.rx_no]
        if call.method.startswith(("DispensingService/", "PatientService/")):
            named = next(iter(call.statements.values()), call.request)
            return [named.rx_no] if getattr(named, "rx_no", "") else []
        return []

    def _check_bytes(self, call: Call, answer: Replied) -> None:
        """I13: what comes down is what was signed."""
        reply = read_reply(call.method, self.hub.attached(call.method, answer.body, answer.attach_upload))
        rx = self.model.rx[answer.attach_upload]
        if hashlib.sha256(reply.prescription.payload).digest() != rx.signed_sha256:
            raise Violation("I13", f"other bytes of {rx.number} come down than were signed")
        if hashlib.sha256(reply.file.data).digest() != rx.file_sha256:
            raise Violation("I13", f"another file of {rx.number} comes down than was sealed")

    # ---- at the end ----

    def finish(self) -> None:
        """The whole ledger once more: every state, and the hub's own verification."""
        self._read()
        self._check_states(self._states)
        verification = self.hub.loop.run(verify_ledger(self.hub.store.inner))
        if verification.findings:
            raise Violation("I11", f"the hub's own verification finds {verification.findings[:3]}")
