"""What magic values do to a call: a code is replaced by a real one, and a few calls are answered in the hub's place.

Owns the effects. Wherever the hub can do it, it does: a revoked code is a code that its channel revoked in this very
ledger. Only what no ledger can hold (an issuer that is down, a slow check, the fund's answers, a recall) is answered
here, and then nothing is written.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

import grpc

from erxhub.core.keys import prescription_key
from erxhub.ledger.store import Wanted
from erxhub.sandbox import facts
from erxhub.sandbox.answers import Status, refusal
from erxhub.sandbox.control import Control, RefusedCall
from erxhub.sandbox.magic_data import (
    CHANNEL,
    MagicAmount,
    MagicDrug,
    MagicValues,
    MagicVoucher,
    WorldAdditions,
    activation_of,
    dead_person,
    magic_values,
    registration_of,
    request_id_for,
    world_additions,
)
from erxhub.v1 import dispensing_pb2, registry_pb2, signed_pb2, state_pb2, voucher_pb2

VERIFY: Final = "VoucherService/VerifyVoucher"
SETTLE: Final = "DispensingService/Settle"
REVIEW: Final = "DispensingService/ReviewPrescription"
DISPENSE: Final = "DispensingService/Dispense"
METHODS: Final = frozenset({VERIFY, SETTLE, REVIEW, DISPENSE})
"""The calls that may carry a magic value."""

_PREFIX: Final = "tst_ec_"
_ORDINARY: Final = "P01"
_SOMEBODY_ELSE: Final = "P02"
_ANY_BUSINESS: Final = "01201"
_KEPT_MAX: Final = 50_000
_AGENCY: Final = "330100"
_DEAD_DIGITS: Final = 12
_USERS: Final = ("H33010099902", "H33010099901")
"""Who uses up a code before the caller of tst_ec_used does: the seeded hospital that is not him."""

AsCaller: TypeAlias = Callable[[str, str, str, Any], Awaitable[Any]]

__all__ = ["METHODS", "Magic", "Prepared", "Treatment", "WorldAdditions", "prepare_world", "world_additions"]


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was made ready in the world that a namespace is a copy of: a code, and when it expires."""

    expired_code: str = ""
    expires_at_ms: int = 0


async def prepare_world(as_caller: AsCaller) -> Prepared:
    """Register the magic persons in a world and issue the code that will have expired when a namespace begins.

    `as_caller(role, peer id, "<Service>/<Method>", request)` makes a call of that world's hub and returns the reply.
    The drugs are not among it: their rows belong in the world's own import (`world_additions`).
    """
    for call in world_additions().calls:
        await as_caller(call.role, call.peer_id, call.method, call.request)
    issued: voucher_pb2.IssueVoucherResponse = await as_caller(
        "channel",
        CHANNEL,
        "VoucherService/IssueVoucher",
        voucher_pb2.IssueVoucherRequest(
            request_id=request_id_for("expired code"),
            person_no=magic_values().persons[_ORDINARY].person_no,
            business_type=_ANY_BUSINESS,
        ),
    )
    return Prepared(issued.voucher_code, issued.expires_at_ms)


@dataclass(slots=True)
class Treatment:
    """What a call gets. `request`: what the hub is given instead; `answer`: what the caller gets and the hub is not
    asked; `lost_as`: what the caller gets instead of the hub's reply.
    """

    label: str = ""
    delay_ms: int = 0
    request: bytes | None = None
    answer: Status | None = None
    lost_as: Status | None = None


@dataclass(frozen=True, slots=True)
class MagicState:
    """What a snapshot keeps: opaque, and never changed."""

    met: tuple[tuple[tuple[str, str, str], int], ...]
    codes: tuple[tuple[tuple[str, str, str], str], ...]
    prepared: Prepared
    uses: int


@dataclass(slots=True)
class _Kept:
    met: OrderedDict[tuple[str, str, str], int] = field(default_factory=OrderedDict)
    codes: OrderedDict[tuple[str, str, str], str] = field(default_factory=OrderedDict)


class Magic:
    """The magic values of one namespace."""

    def __init__(self, control: Control, prepared: Prepared | None = None) -> None:
        self._control = control
        self._prepared = prepared or Prepared()
        self._values: MagicValues = magic_values()
        self._kept = _Kept()
        self._uses = 0
        self._lock = asyncio.Lock()

    def export_state(self) -> MagicState:
        """For a snapshot."""
        return MagicState(tuple(self._kept.met.items()), tuple(self._kept.codes.items()), self._prepared, self._uses)

    def import_state(self, state: MagicState) -> None:
        """Go back to a snapshot."""
        self._kept = _Kept(OrderedDict(state.met), OrderedDict(state.codes))
        self._prepared, self._uses = state.prepared, state.uses

    async def treat(self, method: str, actor: str, request: Any) -> Treatment:
        """What a call of one of METHODS gets; a call without a magic value gets nothing."""
        if method == VERIFY:
            return await self._voucher(actor, request)
        if method == SETTLE:
            return self._settle(actor, request)
        if method == REVIEW:
            return await self._review(actor, request)
        return self._dispense(actor, request)

    # ---- vouchers ----

    async def _voucher(self, actor: str, request: voucher_pb2.VerifyVoucherRequest) -> Treatment:
        sent = request.voucher_code
        if not sent.startswith(_PREFIX):
            return Treatment()
        name, person_no = sent, request.person_no
        for short, person in self._values.persons.items():
            if sent.endswith(f"_{short}"):
                name, person_no = sent.removesuffix(f"_{short}"), person.person_no
        magic = self._values.vouchers.get(name)
        if magic is None:
            # No such value: the hub says what is wrong with the field.
            return Treatment()
        treatment = Treatment(f"magic {sent}", delay_ms=magic.delay_ms)
        operation = (actor, request.request_id, sent)
        if magic.refusal == "HUB_UNAVAILABLE":
            if self._meets(operation, magic.times):
                treatment.answer = refusal(magic.refusal)
                return treatment
        elif magic.name == "tst_ec_expired" and not self._has_expired():
            treatment.answer = refusal(magic.refusal, field="voucher_code")
            return treatment
        try:
            # One at a time: two attempts at once must not be given two codes.
            async with self._lock:
                code = await self._code(operation, magic, actor, request, person_no)
        except RefusedCall as refused:
            treatment.answer = (
                refusal(refused.code)
                if refused.code
                else Status(grpc.StatusCode.UNAVAILABLE, "the magic value cannot be made now")
            )
            return treatment
        changed = voucher_pb2.VerifyVoucherRequest()
        changed.CopyFrom(request)
        changed.voucher_code = code
        treatment.request = changed.SerializeToString(deterministic=True)
        return treatment

    def _has_expired(self) -> bool:
        return bool(self._prepared.expired_code) and self._control.now_ms() > self._prepared.expires_at_ms

    async def _code(
        self,
        operation: tuple[str, str, str],
        magic: MagicVoucher,
        actor: str,
        request: voucher_pb2.VerifyVoucherRequest,
        person_no: str,
    ) -> str:
        """The real code that stands for a magic one in this operation. Raises RefusedCall."""
        known = self._kept.codes.get(operation)
        if known is not None:
            return known
        self._uses += 1
        persons = self._values.persons
        owner = person_no or persons[_ORDINARY].person_no
        if magic.name == "tst_ec_expired":
            code = self._prepared.expired_code
        elif magic.name in ("tst_ec_forged", "tst_ec_future"):
            code = self._never_issued(magic.name)
        elif magic.name == "tst_ec_wrong_person":
            other = _SOMEBODY_ELSE if owner != persons[_SOMEBODY_ELSE].person_no else _ORDINARY
            code = await self._issued(persons[other].person_no, request.business_type)
        elif magic.name == "tst_ec_dead_person":
            code = await self._of_the_dead(request.business_type)
        else:
            code = await self._issued(owner, request.business_type)
            if magic.name == "tst_ec_revoked":
                await self._revoke(code)
            elif magic.name == "tst_ec_used":
                await self._use(code, actor, request.business_type)
        self._remember(self._kept.codes, operation, code)
        return code

    async def _issued(self, person_no: str, business_type: str) -> str:
        request = voucher_pb2.IssueVoucherRequest(
            request_id=self._own_id("issue"), person_no=person_no, business_type=business_type
        )
        reply = await self._control.as_caller("channel", CHANNEL, "VoucherService/IssueVoucher", request)
        return str(reply.voucher_code)

    async def _revoke(self, code: str) -> None:
        request = voucher_pb2.RevokeVoucherRequest(
            request_id=self._own_id("revoke"), voucher_code=code, reason="magic value"
        )
        await self._control.as_caller("channel", CHANNEL, "VoucherService/RevokeVoucher", request)

    async def _use(self, code: str, actor: str, business_type: str) -> None:
        request = voucher_pb2.VerifyVoucherRequest(
            request_id=self._own_id("use"), voucher_code=code, business_type=business_type
        )
        user = next(code for code in _USERS if actor != f"hospital/{code}")
        await self._control.as_caller("hospital", user, VERIFY, request)

    async def _of_the_dead(self, business_type: str) -> str:
        digest = hashlib.sha256(b"%d dead %d" % (self._control.seed, self._uses)).hexdigest()
        person = dead_person(str(int(digest, 16))[-_DEAD_DIGITS:])
        as_caller = self._control.as_caller
        await as_caller("agency", _AGENCY, "RegistryService/RegisterPerson", registration_of(person))
        await as_caller("channel", CHANNEL, "VoucherService/ActivateVoucher", activation_of(person.person_no))
        code = await self._issued(person.person_no, business_type)
        died = registry_pb2.ChangePersonStatusRequest(
            request_id=self._own_id("dead"), person_no=person.person_no, status=registry_pb2.PERSON_STATUS_DEAD
        )
        await as_caller("agency", _AGENCY, "RegistryService/ChangePersonStatus", died)
        return code

    def _never_issued(self, name: str) -> str:
        digest = hashlib.sha256(b"%d %b %d" % (self._control.seed, name.encode(), self._uses)).hexdigest()
        return f"{_AGENCY}{int(digest, 16) % 10**22:022d}"

    def _own_id(self, what: str) -> str:
        """A request id that repeats with the namespace's seed and the order of uses, and never within one ledger."""
        return request_id_for(self._control.seed, what, self._uses)

    # ---- money and goods ----

    def _settle(self, actor: str, request: dispensing_pb2.SettleRequest) -> Treatment:
        statement = facts.parsed(signed_pb2.SettleStatement, request.statement.payload)
        if statement is None or statement.pay_mode != signed_pb2.PAY_MODE_INSURED:
            return Treatment()
        magic: MagicAmount | None = self._values.amounts.get(statement.amounts.total_fen % 100)
        if magic is None or not (magic.refusal or magic.status):
            return Treatment()
        if not self._meets((actor, request.request_id, f"amount {magic.fen}"), magic.times):
            return Treatment()
        answer = (
            refusal(magic.refusal)
            if magic.refusal
            else Status(grpc.StatusCode[magic.status], "the fund did not answer in time")
        )
        label = f"magic .{magic.fen:02d}"
        return Treatment(label, lost_as=answer) if magic.committed else Treatment(label, answer=answer)

    async def _review(self, actor: str, request: dispensing_pb2.ReviewPrescriptionRequest) -> Treatment:
        statement = facts.parsed(signed_pb2.ReviewStatement, request.statement.payload)
        if statement is None or statement.decision != signed_pb2.REVIEW_DECISION_PASS:
            return Treatment()
        for code in await self._prescribed(statement.rx_no):
            magic = self._drug(code, "review_refused")
            # By prescription and not by request: it is the second review that counts, and it has an id of its own.
            if magic is not None and self._meets((actor, statement.rx_no, magic.name), magic.times):
                return Treatment(f"magic {magic.name}", answer=refusal(magic.refusal))
        return Treatment()

    async def _prescribed(self, rx_no: str) -> list[str]:
        key = prescription_key(rx_no)
        head = (await self._control.store.read(Wanted(streams=frozenset({key})))).heads.get(key)
        if head is None:
            return []
        return [line.drug_code for line in state_pb2.PrescriptionState.FromString(head.body).content.lines]

    def _dispense(self, actor: str, request: dispensing_pb2.DispenseRequest) -> Treatment:
        statement = facts.parsed(signed_pb2.DispenseStatement, request.statement.payload)
        if statement is None:
            return Treatment()
        for lot in statement.lots:
            recalled = self._drug(lot.drug_code, "dispense_refused")
            if recalled is not None:
                return Treatment(f"magic {recalled.name}", answer=refusal(recalled.refusal))
            reused = self._drug(lot.drug_code, "trace_code_refused")
            if reused is not None and lot.trace_codes and self._is_reused(actor, statement.rx_no, lot.trace_codes):
                return Treatment(f"magic {reused.name}", answer=refusal(reused.refusal))
        return Treatment()

    def _is_reused(self, actor: str, rx_no: str, trace_codes: Any) -> bool:
        """Whether the first pack that was shown for the prescription is among these: that one was sold before."""
        first = (actor, rx_no, "reused trace code")
        if first not in self._kept.codes:
            self._remember(self._kept.codes, first, trace_codes[0])
        return self._kept.codes[first] in trace_codes

    def _drug(self, code: str, effect: str) -> MagicDrug | None:
        magic = self._values.drugs.get(code)
        return magic if magic is not None and magic.effect == effect else None

    def _meets(self, operation: tuple[str, str, str], times: int) -> bool:
        """Whether this attempt of the operation is one of the `times` that meet the effect; counts it."""
        if not times:
            return True
        met = self._kept.met.get(operation, 0)
        if met >= times:
            return False
        self._remember(self._kept.met, operation, met + 1)
        return True

    @staticmethod
    def _remember(kept: OrderedDict[tuple[str, str, str], Any], key: tuple[str, str, str], value: Any) -> None:
        kept[key] = value
        if len(kept) > _KEPT_MAX:
            kept.popitem(last=False)
