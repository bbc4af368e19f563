"""Events on existing objects, each by its rightful actor through the hub's own commands, or by the passing of time.

Owns who does what. Must never: write an entry itself; what the lifecycle forbids, no trigger can do.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from erxhub.admission import Violation
from erxhub.core.events import BY_NUMBER
from erxhub.core.fold import STATE_TYPES
from erxhub.core.keys import prescription_key
from erxhub.core.lifecycle import ENDED_ORDER, WITHDRAWABLE
from erxhub.core.orders import order_status
from erxhub.crypto.certs import is_signer_code
from erxhub.ledger.entry import EntryKind, Header
from erxhub.ledger.store import Wanted
from erxhub.sandbox.control import RefusedCall
from erxhub.sandbox.errors import SandboxRefused, argument_refused
from erxhub.sandbox.namespace import Namespace
from erxhub.v1 import common_pb2, patient_pb2, registry_pb2, sandbox_pb2, state_pb2

_P = registry_pb2.PractitionerStatus
_A = registry_pb2.AgreementStatus
_CASE: Final = "SANDBOX-TRIGGER"
_PAGE: Final = 1_000


@dataclass(slots=True)
class Triggers:
    """Those of one namespace. `channel` and `agency` act for patients and for the insurance."""

    namespace: Namespace
    channel: str
    agency: str

    async def fire(self, request: sandbox_pb2.TriggerRequest) -> list[str]:
        """The names of the events that it left, in order.

        Raises SandboxRefused (SBX_ARGUMENT without the id that the kind needs and for one that nothing can have,
        SBX_TRIGGER_STATE).
        """
        field, act = self._act(request.kind)
        subject = getattr(request, field)
        if not subject:
            raise argument_refused(field, "required", f"{sandbox_pb2.TriggerKind.Name(request.kind)} needs {field}")
        before = await self.namespace.store.last_position()
        try:
            await act(subject)
        except RefusedCall as refused:
            if refused.code == "INPUT_MALFORMED":
                # All that a request has from outside is the subject; the hub's own field for it is nobody's here.
                broken = [Violation(field, one.rule, one.text) for one in refused.violations]
                raise SandboxRefused("SBX_ARGUMENT", {"field": field}, broken) from None
            detail = {"hub_code": refused.code, "hub_status": refused.status, "hub_message": refused.en}
            raise SandboxRefused("SBX_TRIGGER_STATE", detail) from None
        return await self._events(before)

    def _act(self, kind: sandbox_pb2.TriggerKind.ValueType) -> tuple[str, Callable[[str], Awaitable[None]]]:
        """Which field names the object, and what happens to it."""
        return {
            sandbox_pb2.TRIGGER_KIND_CANCEL_ORDER: ("rx_no", self._cancel_order),
            sandbox_pb2.TRIGGER_KIND_FREEZE: ("rx_no", self._freeze),
            sandbox_pb2.TRIGGER_KIND_UNFREEZE: ("rx_no", self._unfreeze),
            sandbox_pb2.TRIGGER_KIND_SUSPEND_PRACTITIONER: ("id", self._practitioner(_P.PRACTITIONER_STATUS_SUSPENDED)),
            sandbox_pb2.TRIGGER_KIND_RESUME_PRACTITIONER: ("id", self._practitioner(_P.PRACTITIONER_STATUS_ACTIVE)),
            sandbox_pb2.TRIGGER_KIND_SUSPEND_AGREEMENT: ("id", self._agreement(_A.AGREEMENT_STATUS_SUSPENDED)),
            sandbox_pb2.TRIGGER_KIND_RESUME_AGREEMENT: ("id", self._agreement(_A.AGREEMENT_STATUS_ACTIVE)),
            sandbox_pb2.TRIGGER_KIND_PAUSE_PERSON: ("id", self._person(registry_pb2.PERSON_STATUS_PAUSED)),
            sandbox_pb2.TRIGGER_KIND_RESUME_PERSON: ("id", self._person(registry_pb2.PERSON_STATUS_ACTIVE)),
            sandbox_pb2.TRIGGER_KIND_REVOKE_SIGNING_KEY: ("id", self._revoke_signing_key),
            sandbox_pb2.TRIGGER_KIND_EXPIRE_HOLD: ("rx_no", self._expire_hold),
            sandbox_pb2.TRIGGER_KIND_EXPIRE_PRESCRIPTION: ("rx_no", self._expire_prescription),
        }[kind]

    # ---- the patient ----

    async def _cancel_order(self, rx_no: str) -> None:
        rx = await self._prescription(rx_no)
        order = next((one for one in reversed(rx.orders) if order_status(one) not in ENDED_ORDER), None)
        if order is None:
            raise _state("the prescription has no live order", rx_no=rx_no)
        request = patient_pb2.CancelOrderRequest(
            person_no=rx.content.person_no, rx_no=rx_no, pharmacy_code=order.pharmacy_code
        )
        await self._call("channel", self.channel, "PatientService/CancelOrder", request)

    # ---- the agency ----

    async def _freeze(self, rx_no: str) -> None:
        await self._by_agency("FreezePrescription", registry_pb2.FreezePrescriptionRequest(rx_no=rx_no, case_no=_CASE))

    async def _unfreeze(self, rx_no: str) -> None:
        await self._by_agency(
            "UnfreezePrescription", registry_pb2.UnfreezePrescriptionRequest(rx_no=rx_no, case_no=_CASE)
        )

    def _practitioner(self, status: registry_pb2.PractitionerStatus.ValueType) -> Callable[[str], Awaitable[None]]:
        async def change(code: str) -> None:
            request = registry_pb2.ChangePractitionerStatusRequest(practitioner_code=code, status=status, case_no=_CASE)
            await self._by_agency("ChangePractitionerStatus", request)

        return change

    def _agreement(self, status: registry_pb2.AgreementStatus.ValueType) -> Callable[[str], Awaitable[None]]:
        async def change(code: str) -> None:
            request = registry_pb2.ChangeAgreementStatusRequest(
                institution_code=code, kind=registry_pb2.AGREEMENT_KIND_BASE, status=status, case_no=_CASE
            )
            await self._by_agency("ChangeAgreementStatus", request)

        return change

    def _person(self, status: registry_pb2.PersonStatus.ValueType) -> Callable[[str], Awaitable[None]]:
        async def change(person_no: str) -> None:
            request = registry_pb2.ChangePersonStatusRequest(person_no=person_no, status=status, reason=_CASE)
            await self._by_agency("ChangePersonStatus", request)

        return change

    async def _revoke_signing_key(self, code: str) -> None:
        if not is_signer_code(code):
            raise argument_refused("id", "code", "no practitioner or institution can have this code")
        keys = [key.key_id for key in await self._signing_keys(code) if not key.revoked]
        if not keys:
            raise _state("there is no signing key of this code that is not revoked", id=code)
        for key_id in keys:
            request = registry_pb2.RevokeCertificateRequest(key_id=key_id, reason=_CASE)
            await self._by_agency("RevokeCertificate", request)

    async def _signing_keys(self, code: str) -> list[registry_pb2.SigningKeyRecord]:
        spaces = [("practitioner", code.encode()), ("institution", code.encode())]
        loaded = await self.namespace.store.read(Wanted(names=frozenset(spaces)))
        found: list[registry_pb2.SigningKeyRecord] = []
        for stream in loaded.names.values():
            head = loaded.heads[stream]
            state: Any = STATE_TYPES[head.stream_kind].FromString(head.body)
            found += state.keys
        return found

    # ---- time ----

    async def _expire_hold(self, rx_no: str) -> None:
        rx = await self._prescription(rx_no)
        order = next((one for one in rx.orders if order_status(one) in WITHDRAWABLE), None)
        if order is None:
            raise _state("the prescription has no hold that time could end", rx_no=rx_no)
        await self._pass(order.hold_until_ms)

    async def _expire_prescription(self, rx_no: str) -> None:
        rx = await self._prescription(rx_no)
        if rx.rx_status != common_pb2.RX_STATUS_EFFECTIVE:
            status = common_pb2.RxStatus.Name(rx.rx_status).removeprefix("RX_STATUS_")
            raise _state("the prescription is not effective", rx_no=rx_no, status=status)
        await self._pass(rx.content.valid_until_ms)

    async def _pass(self, last_ms: int) -> None:
        """Until the instant after the last good one, unless that is over already and only not written yet."""
        await self.namespace.advance(max(last_ms + 1, self.namespace.now_ms()))

    # ---- common ----

    async def _prescription(self, rx_no: str) -> state_pb2.PrescriptionState:
        key = prescription_key(rx_no)
        head = (await self.namespace.store.read(Wanted(streams=frozenset({key})))).heads.get(key)
        if head is None:
            raise _state("there is no prescription of this number", rx_no=rx_no)
        return state_pb2.PrescriptionState.FromString(head.body)

    async def _by_agency(self, rpc: str, request: Any) -> None:
        await self._call("agency", self.agency, f"RegistryService/{rpc}", request)

    async def _call(self, role: str, peer_id: str, method: str, request: Any) -> None:
        # The position makes it new each time, and the same in a namespace that repeats the same calls.
        request.request_id = f"sandbox-trigger-{await self.namespace.store.last_position()}"
        await self.namespace.as_caller(role, peer_id, method, request)

    async def _events(self, after_position: int) -> list[str]:
        names: list[str] = []
        while page := await self.namespace.log_entries(after_position, _PAGE):
            after_position = page[-1].position
            headers = [Header.decode(entry.header) for entry in page]
            names += [BY_NUMBER[header.type].name for header in headers if header.kind == EntryKind.EVENT]
        return names


def _state(text: str, **detail: str) -> SandboxRefused:
    return SandboxRefused("SBX_TRIGGER_STATE", {"reason": text, **detail})
