"""Hospitals and pharmacies with one thing broken, made of the reference products.

Owns: the table CLIENTS. Must never: break the driver's own speech; a mutant is a bad product, not a bad driver.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final

from erxhub.client import CallFailed, ClientFailure, Connection, PharmacyClient, Refusal
from erxhub.conform.drivers import hospital, hospital_product, pharmacy, pharmacy_product, product
from erxhub.conform.drivers.hospital_product import Hospital
from erxhub.conform.drivers.journal import Journal
from erxhub.conform.drivers.pharmacy_product import Pharmacy
from erxhub.conform.drivers.product import Product, Rejected, ToldClock
from erxhub.v1 import dispensing_pb2, prescribing_pb2, signed_pb2
from tests.mutants.patching import Mutant, Patches, Table

_table = Table()
client = _table.add

_HOLD_MS: Final = 7_200_000


def _copy(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _renamed(request: Any, number: int) -> Any:
    """The same request under another id of the same form."""
    copy = _copy(request)
    copy.request_id = f"{request.request_id[:-4]}{9_000 + number}"
    return copy


# ---- request ids and repeats ----


def _new_id_on_retry(p: Patches) -> None:
    before = Connection.__dict__["unary"]
    sent: set[str] = set()
    numbers = itertools.count()

    async def unary(self: Any, method: Any, request: Any, timeout_s: float | None = None) -> Any:
        request_id = getattr(request, "request_id", "")
        if request_id in sent:
            request = _renamed(request, next(numbers))
        elif request_id:
            sent.add(request_id)
        return await before(self, method, request, timeout_s)

    p.set(Connection, "unary", unary)


@client("pharmacy", "IDEM-012")
def pharmacy_new_id_on_retry(p: Patches) -> None:
    """Each retry of a request goes out under a new request id."""
    _new_id_on_retry(p)


@client("hospital", "IDEM-004")
def hospital_new_id_on_retry(p: Patches) -> None:
    """Each retry of a request goes out under a new request id."""
    _new_id_on_retry(p)


@client("pharmacy", "IDEM-010")
def new_id_after_retriable_refusal(p: Patches) -> None:
    """What was refused as busy is sent again under a new request id."""
    before = Connection.__dict__["unary"]
    refused: set[str] = set()
    numbers = itertools.count()

    async def unary(self: Any, method: Any, request: Any, timeout_s: float | None = None) -> Any:
        request_id = getattr(request, "request_id", "")
        if request_id in refused:
            request = _renamed(request, next(numbers))
        try:
            return await before(self, method, request, timeout_s)
        except Refusal as refusal:
            if refusal.grpc_status == "UNAVAILABLE":
                refused.add(request_id)
            raise

    p.set(Connection, "unary", unary)


@client("pharmacy", "IDEM-003")
def forgets_request_after_restart(p: Patches) -> None:
    """The bytes of a request are not kept: after a restart the act is begun again under a new id."""
    p.set(Product, "_keep", lambda self, request: None)


@client("hospital", "IDEM-016")
def forgets_outbox_after_restart(p: Patches) -> None:
    """What was open before a restart is forgotten."""
    before = Journal.__dict__["__init__"]

    def begin(self: Any, path: Any) -> None:
        path.unlink(missing_ok=True)
        before(self, path)

    p.set(Journal, "__init__", begin)


class _Everything:
    def __contains__(self, _: object) -> bool:
        return True


def _retries_every_refusal(p: Patches) -> None:
    p.set(product, "_BUSY", _Everything())


@client("pharmacy", "IDEM-011")
def pharmacy_retries_non_retriable(p: Patches) -> None:
    """A refusal for good is sent again as if the hub were busy."""
    _retries_every_refusal(p)


@client("hospital", "IDEM-011")
def hospital_retries_non_retriable(p: Patches) -> None:
    """A refusal for good is sent again as if the hub were busy."""
    _retries_every_refusal(p)


def _ignores_retry_info(p: Patches) -> None:
    before = ToldClock.__dict__["back_off"]

    async def back_off(self: Any, failed: int, asked_ms: int) -> None:
        await before(self, failed, 0)

    p.set(ToldClock, "back_off", back_off)


@client("pharmacy", "IDEM-010")
def pharmacy_ignores_retry_info(p: Patches) -> None:
    """The wait that the hub asks for is not kept."""
    _ignores_retry_info(p)


@client("hospital", "IDEM-010")
def hospital_ignores_retry_info(p: Patches) -> None:
    """The wait that the hub asks for is not kept."""
    _ignores_retry_info(p)


@client("pharmacy", "IDEM-003")
def claims_failure_after_lost_reply(p: Patches) -> None:
    """A lost reply is taken for a failure: the shop says that it was not done."""
    before = product.classified

    def classified(failure: Any) -> Any:
        return Rejected("FAILED") if isinstance(failure, CallFailed) else before(failure)

    p.set(product, "classified", classified)


# ---- proofs and connections ----


@client("pharmacy", "SIG-008")
def ignores_doctor_signature(p: Patches) -> None:
    """The doctor's signature in a download is not looked at."""

    def unchecked(reply: Any, signers: Any) -> Any:
        return SimpleNamespace(document=signed_pb2.PrescriptionDocument.FromString(reply.prescription.payload))

    p.set(pharmacy_product, "check_download", unchecked)


@client("pharmacy", "SIG-008")
def works_on_what_was_set_aside(p: Patches) -> None:
    """A download that proves nothing is reported, and worked on all the same."""
    before = Pharmacy.__dict__["_order"]

    def order(self: Any, rx_no: str) -> Any:
        kept = self.journal.get(f"order/{rx_no}")
        return {"lines": [], **kept} if kept and "set_aside" in kept else before(self, rx_no)

    p.set(Pharmacy, "_order", order)


def _configured(p: Patches, adapter: Any, **changes: Any) -> None:
    before = adapter.configuration

    def configuration(arguments: Mapping[str, Any]) -> Any:
        return before({**arguments, **changes})

    p.set(adapter, "configuration", configuration)


@client("pharmacy", "SIG-009")
def ignores_receipts(p: Patches) -> None:
    """Receipts are not checked."""
    _configured(p, pharmacy, receipt_keys={})


@client("pharmacy", "CONN-007")
def pharmacy_accepts_any_server_name(p: Patches) -> None:
    """The server's certificate may name another host."""
    _configured(p, pharmacy, server_name="localhost")


@client("hospital", "CONN-007")
def hospital_accepts_any_server_name(p: Patches) -> None:
    """The server's certificate may name another host."""
    _configured(p, hospital, server_name="localhost")


def _stops_at_unknown_fields(p: Patches) -> None:
    before = Connection.__dict__["unary"]

    async def unary(self: Any, method: Any, request: Any, timeout_s: float | None = None) -> Any:
        reply = await before(self, method, request, timeout_s)
        known = _copy(reply)
        known.DiscardUnknownFields()
        if known.ByteSize() != reply.ByteSize():
            raise Rejected("UNKNOWN_FIELD", by_product=True)
        return reply

    p.set(Connection, "unary", unary)


@client("pharmacy", "CONN-009")
def pharmacy_stops_at_unknown_fields(p: Patches) -> None:
    """A reply with a field that was not published yet ends the act."""
    _stops_at_unknown_fields(p)


@client("hospital", "CONN-009")
def hospital_stops_at_unknown_fields(p: Patches) -> None:
    """A reply with a field that was not published yet ends the act."""
    _stops_at_unknown_fields(p)


@client("pharmacy", "CONN-010")
def unknown_status_taken_as_good(p: Patches) -> None:
    """A status that the product was not built with counts as the good one."""
    before = product.enum_name
    good = {"ReviewStatus": "PASSED", "RxStatus": "EFFECTIVE", "RxUseStatus": "HELD"}

    def named(enum: Any, value: int) -> str:
        return before(enum, value) if value in enum.values_by_number else good.get(enum.name, "OK")

    p.everywhere("enum_name", named, product, hospital_product, pharmacy_product)
    p.everywhere("has_unknown_enum", lambda message: False, product, pharmacy_product)


@client("hospital", "CONN-010")
def unknown_status_taken_as_over(p: Patches) -> None:
    """A status that the product was not built with counts as withdrawn."""
    is_unknown, before = product.has_unknown_enum, Hospital.__dict__["_shown_prescription"]

    def shown(self: Any, reply: Any) -> dict[str, Any]:
        told: dict[str, Any] = before(self, reply)
        return told | {"status": "UNDONE"} if is_unknown(reply) else told

    p.set(Hospital, "_shown_prescription", shown)


def _verifies_twice(p: Patches, owner: type[Product]) -> None:
    before = owner.__dict__["_shown"]

    async def shown(self: Any, act: Any, given: Any, kind: str) -> Any:
        found = await before(self, act, given, kind)
        code = given if isinstance(given, str) else given["voucher_code"]
        with contextlib.suppress(ClientFailure):
            await self.client.verify_voucher(voucher_code=code, business_type=kind, request_id=self.new_request_id())
        return found

    p.set(owner, "_shown", shown)


@client("pharmacy", "CONN-001")
def pharmacy_verifies_each_code_twice(p: Patches) -> None:
    """A code that was verified is sent once more, as another request."""
    _verifies_twice(p, Pharmacy)


@client("hospital", "CONN-001")
def hospital_verifies_each_code_twice(p: Patches) -> None:
    """A code that was verified is sent once more, as another request."""
    _verifies_twice(p, Hospital)


# ---- news ----


def _counts_twice(p: Patches) -> None:
    before = Product.__dict__["_take_once"]

    def take(self: Any, message: Any, fresh: list[dict[str, Any]]) -> None:
        length = len(fresh)
        before(self, message, fresh)
        if len(fresh) == length:
            fresh.extend({"rx_no": message.rx_no, "event": one, "version": message.version} for one in message.events)

    p.set(Product, "_take_once", take)


@client("pharmacy", "EVT-001")
def pharmacy_counts_events_twice(p: Patches) -> None:
    """A message that comes again is taken in again."""
    _counts_twice(p)


@client("hospital", "EVT-001", "DSP-016")
def hospital_counts_events_twice(p: Patches) -> None:
    """A message that comes again is taken in again."""
    _counts_twice(p)


def _believes_the_last_message(p: Patches, product: type[Product]) -> None:
    before = product.__dict__["_take_in"]

    def take_in(self: Any, message: Any, known: dict[str, Any], *, newest: bool) -> None:
        before(self, message, known, newest=True)

    p.set(product, "_take_in", take_in)


@client("pharmacy", "EVT-002")
def pharmacy_ignores_event_order(p: Patches) -> None:
    """What came last is taken for the newest."""
    _believes_the_last_message(p, Pharmacy)


@client("hospital", "EVT-002")
def hospital_ignores_event_order(p: Patches) -> None:
    """What came last is taken for the newest."""
    _believes_the_last_message(p, Hospital)


@client("pharmacy", "EVT-003")
def pharmacy_gives_up_a_cut_stream(p: Patches) -> None:
    """A stream that is cut is not taken up again."""
    p.set(product, "WATCHES_MAX", 1)


@client("hospital", "EVT-003")
def hospital_gives_up_a_cut_stream(p: Patches) -> None:
    """A stream that is cut is not taken up again."""
    p.set(product, "WATCHES_MAX", 1)


# ---- the pharmacy's counter ----


@client("pharmacy", "CLM-010")
def reads_one_page_only(p: Patches) -> None:
    """Of a list in pages the first one is read."""
    before = PharmacyClient.__dict__["list_by_voucher"]

    async def listed(self: Any, **asked: Any) -> Any:
        reply = await before(self, **asked)
        reply.next_page_token = ""
        return reply

    p.set(PharmacyClient, "list_by_voucher", listed)


@client("pharmacy", "CLM-001")
def downloads_whatever_is_listed(p: Patches) -> None:
    """Everything on the list is downloaded, and so held, before anybody chose it."""
    before = Pharmacy.__dict__["_list"]

    async def listed(self: Any, act: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = await before(self, act, arguments)
        for one in result["prescriptions"]:
            await self.perform("download", one["rx_no"], {"rx_no": one["rx_no"]})
        return result

    p.set(Pharmacy, "_list", listed)


@client("pharmacy", "CLM-005", "CLM-009")
def counts_the_hold_from_each_download(p: Patches) -> None:
    """The end of the hold is reckoned by the product, two hours from each download."""
    before = Pharmacy.__dict__["_download"]

    async def download(self: Any, act: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        return {**await before(self, act, arguments), "hold_until_ms": self.clock.now_ms() + _HOLD_MS}

    p.set(Pharmacy, "_download", download)


@client("pharmacy", "CLM-002")
def takes_a_hold_to_last_a_day(p: Patches) -> None:
    """The end of the hold that the hub names is not read: a hold is taken to last a day."""
    before = Pharmacy.__dict__["_download"]

    async def download(self: Any, act: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        return {**await before(self, act, arguments), "hold_until_ms": self.clock.now_ms() + 12 * _HOLD_MS}

    p.set(Pharmacy, "_download", download)


@client("pharmacy", "DSP-010")
def settles_anew_after_a_timeout(p: Patches) -> None:
    """A settlement that nothing was heard of is begun anew, under a request id of its own."""
    before = Connection.__dict__["unary"]
    sent: set[str] = set()
    numbers = itertools.count()

    async def unary(self: Any, method: Any, request: Any, timeout_s: float | None = None) -> Any:
        if isinstance(request, dispensing_pb2.SettleRequest):
            if request.request_id in sent:
                request = _renamed(request, next(numbers))
            sent.add(request.request_id)
        return await before(self, method, request, timeout_s)

    p.set(Connection, "unary", unary)


@client("pharmacy", "DSP-001")
def reviews_on_paper_only(p: Patches) -> None:
    """The review is not sent; settling and dispensing do not wait for it."""

    async def review(self: Any, act: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        self._kept(arguments["rx_no"], reviewer=self._staff["pharmacist"])
        return {"review": "PASSED"}

    p.set(Pharmacy, "_review", review)


@client("pharmacy", "DSP-012")
def keeps_the_money_when_goods_are_missing(p: Patches) -> None:
    """A settlement whose goods are not to be had is not given back."""

    async def undo(self: Any, act: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"settlement_id": self._settlement(arguments["rx_no"])}

    p.set(Pharmacy, "_undo", undo)


@client("pharmacy", "CLM-007")
def keeps_the_hold(p: Patches) -> None:
    """A hold that is given back is forgotten here, and the hub is not told."""

    async def release(self: Any, act: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        self.journal.put(f"order/{arguments['rx_no']}", None)
        return {}

    p.set(Pharmacy, "_release", release)


# ---- the hospital's desk ----


@client("hospital", "RX-009")
def insists_on_a_withdrawal(p: Patches) -> None:
    """A withdrawal that was refused is asked for once more under a new id."""
    before = Product.__dict__["perform"]

    async def perform(self: Any, verb: str, rx_no: str, arguments: dict[str, Any]) -> dict[str, Any]:
        result: dict[str, Any] = await before(self, verb, rx_no, arguments)
        if result.get("code") == "RX_UNDO_STATE":
            result = await before(self, verb, rx_no, {**arguments, "again": True})
        return result

    p.set(Product, "perform", perform)


def _takes_a_refusal_for_success(p: Patches) -> None:
    before = Product.__dict__["_attempt"]

    async def attempt(self: Any, act: Any) -> dict[str, Any]:
        result: dict[str, Any] = await before(self, act)
        return {**result, "outcome": "ok"} if result["outcome"] == "rejected" else result

    p.set(Product, "_attempt", attempt)


@client("hospital", "RX-010", "VOU-001", "VOU-002")
def hospital_takes_a_refusal_for_success(p: Patches) -> None:
    """What the hub refused is told as done."""
    _takes_a_refusal_for_success(p)


@client("pharmacy", "CLM-006")
def pharmacy_takes_a_refusal_for_success(p: Patches) -> None:
    """What the hub refused is told as done."""
    _takes_a_refusal_for_success(p)


@client("hospital", "RX-001")
def uploads_twice(p: Patches) -> None:
    """An upload that was accepted is sent once more, as another request."""
    before = Connection.__dict__["unary"]
    numbers = itertools.count()

    async def unary(self: Any, method: Any, request: Any, timeout_s: float | None = None) -> Any:
        reply = await before(self, method, request, timeout_s)
        if isinstance(request, prescribing_pb2.UploadPrescriptionRequest):
            with contextlib.suppress(ClientFailure):
                await before(self, method, _renamed(request, next(numbers)), timeout_s)
        return reply

    p.set(Connection, "unary", unary)


@client("hospital", "RX-008")
def withdraws_on_paper_only(p: Patches) -> None:
    """A withdrawal is noted here, and the hub is not told."""

    async def revoke(self: Any, act: Any, arguments: dict[str, Any]) -> dict[str, Any]:
        return {"status": "UNDONE", "use": "UNUSED"}

    p.set(Hospital, "_revoke", revoke)


def _writes(p: Patches, change: Any) -> None:
    before = Hospital.__dict__["_written"]

    def written(self: Any, arguments: Any, encounter_id: str, visit: Any) -> Any:
        prescription = before(self, arguments, encounter_id, visit)
        change(prescription)
        return prescription

    p.set(Hospital, "_written", written)


@client("hospital", "RX-003")
def loses_rare_characters(p: Patches) -> None:
    """Texts go through GB 2312, which does not have every character."""

    def poorer(prescription: Any) -> None:
        for line in prescription.lines:
            line.usage_note = line.usage_note.encode("gb2312", "replace").decode("gb2312")

    _writes(p, poorer)


@client("hospital", "RX-012")
def uses_a_number_twice(p: Patches) -> None:
    """The second prescription of a visit has the first one's hospital number."""

    def numbered(prescription: Any) -> None:
        prescription.hospital_rx_no = f"RX-{prescription.encounter_id}"

    _writes(p, numbered)


CLIENTS: Final[Mapping[str, Mutant]] = _table.mutants
"""By name."""
