"""One prescription told event by event: real entries, real folds, real signatures, in a memory store.

A test leaves events out, changes payloads or moves the clock, and asks what the auditor says. The hub would refuse most
of these stories, so they are sealed here directly.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hashlib import sha256
from typing import Any

from google.protobuf.message import Message

from erxhub.config import Config
from erxhub.core import events, index
from erxhub.core.draft import MacKeys
from erxhub.core.events import At
from erxhub.core.fold import STATE_TYPES, EventMisplaced, evolve
from erxhub.core.keys import prescription_key, stream_key, trace_code_key
from erxhub.core.lifecycle import IllegalTransition
from erxhub.core.model import Accepted, Caller, Refused
from erxhub.crypto.envelope import pae
from erxhub.crypto.suites import SUITES, SigningKey, Verifier
from erxhub.ledger.entry import FIRST_PREV_LEAF_HASH, EntryKind, Header, seal
from erxhub.ledger.memory import MemoryStore
from erxhub.ledger.store import Blob, Listing, NewName, NewState, StoredEntry, Write
from erxhub.policy.pack import shipped_packs
from erxhub.ports import ManualClock
from erxhub.queries import audit
from erxhub.queries.base import ReadContext
from erxhub.v1 import audit_pb2, common_pb2, events_pb2, registry_pb2, signed_pb2, state_pb2

START_MS = 1_795_312_800_000
"""2026-11-22 10:00 in Beijing."""
MINUTE_MS = 60_000
DAY_MS = 86_400_000
STEP_MS = 1_000

HOSPITAL = "H33010099901"
PHARMACY = "P33010099101"
DOCTOR = "D330100990001"
REVIEWER = "HY330100990001"
PHARMACIST = "YS330100990001"
RX_NO = "330100" + "4" * 21
ENCOUNTER_ID = "330100" + "7" * 20
PERSON_NO = "PSN0001"
ADDRESS = "示例路 1 号"
CODES = tuple(f"8{number:019d}" for number in range(1, 4))
ORDER = "ORDER1"
FILE = b"%PDF-1.7 a prescription"

RX = prescription_key(RX_NO)
LEDGER = stream_key("ledger", b"ledger")
PERSON = stream_key("person", b"person")
DELEGATE = stream_key("person", b"delegate")
STRANGER = stream_key("person", b"stranger")
ACCOUNT = stream_key("account", b"account")
ENCOUNTER = stream_key("encounter", b"encounter")
INSTITUTIONS = {code: stream_key("institution", code.encode()) for code in (HOSPITAL, PHARMACY)}
PRACTITIONERS = {code: stream_key("practitioner", code.encode()) for code in (DOCTOR, REVIEWER, PHARMACIST)}
AUDITOR = Caller("auditor", "auditor-1", "", b"f" * 32)
MIRROR = Caller("mirror", "mirror-1", "", b"g" * 32)

Change = Callable[[Any], object]


def voucher(name: str) -> bytes:
    """The stream of one of the vouchers of the story."""
    return stream_key("voucher", name.encode())


def signing_key(subject: str) -> SigningKey:
    """The same key for the same subject in every run."""
    suite = SUITES["EdDSA"]
    return SigningKey(suite, suite.load_private(sha256(subject.encode()).digest()))


def signed(statement: Message, subject: str) -> common_pb2.Signed:
    payload_type = f"application/vnd.erxhub.v1.{type(statement).__name__}"
    payload = statement.SerializeToString(deterministic=True)
    key = signing_key(subject)
    signature = common_pb2.Signature(key_id=key.key_id, signature=key.sign(pae(payload_type, payload)))
    return common_pb2.Signed(payload_type=payload_type, payload=payload, signatures=[signature])


@dataclass
class Ledger:
    """Seals events one by one, each under a Write of its own."""

    now_ms: int = START_MS
    store: MemoryStore = field(default_factory=MemoryStore)
    heads: dict[bytes, tuple[int, bytes]] = field(default_factory=dict)
    states: dict[bytes, Any] = field(default_factory=dict)
    order: list[tuple[bytes, int, str]] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)

    def version(self, key: bytes) -> int:
        return self.heads.get(key, (0, b""))[0]

    def leaf(self, key: bytes) -> bytes:
        return self.heads[key][1]

    def add(
        self,
        kind: str,
        key: bytes,
        event: str,
        payload: Message,
        *,
        actor: str,
        causes: Sequence[bytes] = (),
        blobs: Sequence[Blob] = (),
        entry_kind: EntryKind = EntryKind.EVENT,
    ) -> None:
        version, prev = self.heads.get(key, (0, FIRST_PREV_LEAF_HASH))
        version += 1
        header = Header(
            kind,
            key,
            version,
            entry_kind,
            events.BY_NAME[event].number,
            self.now_ms,
            actor,
            "request",
            b"",
            tuple(causes),
        )
        salt = sha256(key + version.to_bytes(8, "big")).digest()[:16]
        entry = seal(header, salt, payload.SerializeToString(deterministic=True), prev)
        self.heads[key] = version, entry.leaf_hash
        states: tuple[NewState, ...] = ()
        state: Any = None
        listings: list[Listing] = []
        if kind in STATE_TYPES:
            state = self.states.setdefault(key, STATE_TYPES[kind]())
            # In a story that no hub would tell the state is not what the test is about.
            with suppress(IllegalTransition, EventMisplaced, LookupError, StopIteration, AssertionError, ValueError):
                evolve(kind, state, event, payload, At(version, self.now_ms, "request"))
            body = state.SerializeToString(deterministic=True)
            states = (NewState(key, version, entry.leaf_hash, body, None),)
        if kind == "prescription":
            since = version.to_bytes(8, "big")
            listings = [Listing(index.FEED, code.encode(), key, version, since) for code in index.watchers(state)]
        listings += [
            Listing(space, listed, key, version) for space, listed in index.listings(event, key, payload, state)
        ]
        self.writes.append(
            Write(
                entries=(entry,),
                states=states,
                names=tuple(NewName(space, name, key) for space, name in index.names(event, payload, _mac)),
                listings=tuple(listings),
                blobs=tuple(blobs),
            )
        )
        self.order.append((key, version, event))
        self.now_ms += STEP_MS

    def place(self, event: str) -> tuple[bytes, int]:
        """(stream, version) of the last entry of an event."""
        return next((key, version) for key, version, name in reversed(self.order) if name == event)

    async def stored(self) -> MemoryStore:
        """The store with everything in it."""
        result = await self.store.append(self.writes)
        assert not result.conflicts
        self.writes.clear()
        return self.store


def _mac(space: str, value: str) -> bytes:
    return hmac.digest(b"k" * 32, f"{space}\0{value}".encode(), "sha256")


def _claim() -> state_pb2.Claim:
    """Two packs at 45.50 in class 甲 and one at 60.00 in class 丙; 50.00 from the account."""
    lines = [
        state_pb2.ClaimLine(
            line_no=1,
            drug_code="XA01",
            quantity_e4=20_000,
            price_e6=45_500_000,
            charge_class="01",
            amount_fen=9_100,
            in_scope_fen=9_100,
        ),
        state_pb2.ClaimLine(
            line_no=2,
            drug_code="XB02",
            quantity_e4=10_000,
            price_e6=60_000_000,
            charge_class="03",
            amount_fen=6_000,
            own_pay_fen=6_000,
        ),
    ]
    amounts = signed_pb2.ClaimAmounts(
        total_fen=15_100,
        own_pay_fen=6_000,
        in_scope_fen=9_100,
        pooled_fund_fen=6_370,
        fund_fen=6_370,
        person_fen=8_730,
        account_fen=5_000,
        cash_fen=3_730,
    )
    return state_pb2.Claim(quote_id="QUOTE1", amounts=amounts, lines=lines, quote_expires_at_ms=START_MS + 30 * DAY_MS)


def self_paid_claim() -> state_pb2.Claim:
    claim = _claim()
    claim.quote_id, claim.quote_expires_at_ms = "", 0
    for line in claim.lines:
        line.own_pay_fen, line.in_scope_fen = line.amount_fen, 0
    claim.amounts.CopyFrom(
        signed_pb2.ClaimAmounts(total_fen=15_100, own_pay_fen=15_100, person_fen=15_100, cash_fen=15_100)
    )
    return claim


def content(at_ms: int) -> common_pb2.Prescription:
    lines = [
        common_pb2.RxLine(line_no=1, item_type="11", drug_code="XA01", quantity="2", quantity_unit="盒"),
        common_pb2.RxLine(line_no=2, item_type="11", drug_code="XB02", quantity="1", quantity_unit="盒"),
    ]
    return common_pb2.Prescription(
        hospital_rx_no="RX1",
        hospital_code=HOSPITAL,
        encounter_id=ENCOUNTER_ID,
        person_no=PERSON_NO,
        doctor_code=DOCTOR,
        prescribed_at_ms=at_ms,
        valid_days=3,
        valid_until_ms=at_ms + 3 * DAY_MS,
        lines=lines,
    )


class Story:
    """Tells the whole way, or part of it.

    `without` names events that never came; `changed` alters a payload before it is sealed; `statements` alters what is
    signed, by the event that carries it; `causes` replaces an event's causes; `until` is the last event told.
    """

    def __init__(
        self,
        *,
        without: Collection[str] = (),
        changed: Mapping[str, Change] | None = None,
        statements: Mapping[str, Change] | None = None,
        causes: Mapping[str, Sequence[bytes]] | None = None,
        later_ms: Mapping[str, int] | None = None,
        until: str = "",
        internet: bool = False,
        delivery: bool = False,
        self_paid: bool = False,
        register_keys: bool = True,
    ) -> None:
        self.ledger = Ledger()
        self._without = set(without)
        self._changed = changed or {}
        self._statements = statements or {}
        self._causes = causes or {}
        self._later_ms = later_ms or {}
        self._until = until
        self._ended = False
        self._internet = internet
        self._delivery = delivery
        self._self_paid = self_paid
        self._signed: dict[str, common_pb2.Signed] = {}
        self._registry(register_keys)
        self._diagnosis()
        self._prescription()
        self._transaction()
        self._goods()

    # ---- telling ----

    def emit(
        self, kind: str, key: bytes, event: str, payload: Message, actor: str = "hub/hub-1", **kwargs: Any
    ) -> None:
        if event in self._without or self._ended:
            return
        if event in self._changed:
            self._changed[event](payload)
        self.ledger.now_ms += self._later_ms.get(event, 0)
        if event in self._causes:
            kwargs["causes"] = self._causes[event]
        self.ledger.add(kind, key, event, payload, actor=actor, **kwargs)
        self._ended = event == self._until

    def rx(self, event: str, payload: Message, actor: str = f"pharmacy/{PHARMACY}", **kwargs: Any) -> None:
        self.emit("prescription", RX, event, payload, actor, **kwargs)

    def _sign(self, event: str, statement: Any, subject: str, name: str = "") -> common_pb2.Signed:
        statement.signed_at_ms = self.ledger.now_ms + self._later_ms.get(event, 0)
        if (name or event) in self._statements:
            self._statements[name or event](statement)
        self._signed[name or event] = signed(statement, subject)
        return self._signed[name or event]

    def _voucher(self, name: str, business_type: str, institution: str, online: bool = False) -> bytes:
        key = voucher(name)
        if not self._ended:
            issued = events_pb2.VoucherIssued(
                person_key=PERSON,
                channel_id="demo-app",
                business_type=business_type,
                expires_at_ms=self.ledger.now_ms + MINUTE_MS,
                code_mac=name.encode(),
            )
            if f"voucher.issued {name}" in self._changed:
                self._changed[f"voucher.issued {name}"](issued)
            self.ledger.add("voucher", key, "voucher.issued", issued, actor="channel/demo-app")
            verified = events_pb2.VoucherVerified(
                institution_code=institution,
                ref_mac=b"ref" + name.encode(),
                ref_expires_at_ms=self.ledger.now_ms + 30 * MINUTE_MS,
                online=online,
            )
            if f"voucher.verified {name}" not in self._without:
                if f"voucher.verified {name}" in self._changed:
                    self._changed[f"voucher.verified {name}"](verified)
                self.ledger.add("voucher", key, "voucher.verified", verified, actor=f"hospital/{institution}")
        return key

    def _leaf(self, key: bytes) -> list[bytes]:
        return [self.ledger.leaf(key)] if key in self.ledger.heads else []

    # ---- chapters ----

    def _registry(self, register_keys: bool) -> None:
        add = self.ledger.add
        add("ledger", LEDGER, "ledger.opened", events_pb2.LedgerOpened(origin="test"), actor="hub/hub-1")
        for person_key, person_no, delegates in (
            (PERSON, PERSON_NO, ["PSN0002"]),
            (DELEGATE, "PSN0002", []),
            (STRANGER, "PSN0003", []),
        ):
            person = state_pb2.PersonState(
                person_no=person_no, name="示例", delegate_person_nos=delegates, account_key=ACCOUNT
            )
            add(
                "person",
                person_key,
                "person.registered",
                events_pb2.PersonRegistered(person=person),
                actor="agency/330100",
            )
        opened = events_pb2.AccountOpened(balance_fen=100_000, person_key=PERSON)
        self.emit("account", ACCOUNT, "account.opened", opened, "agency/330100")
        for code, key in INSTITUTIONS.items():
            institution = state_pb2.InstitutionState(institution_code=code, area_code="330100")
            registered = events_pb2.InstitutionRegistered(institution=institution)
            add("institution", key, "institution.registered", registered, actor="agency/330100")
            if register_keys:
                self.key("institution", key, code, code)
        for code, key in PRACTITIONERS.items():
            practitioner = state_pb2.PractitionerState(practitioner_code=code)
            payload = events_pb2.PractitionerRegistered(practitioner=practitioner)
            add("practitioner", key, "practitioner.registered", payload, actor="agency/330100")
            if register_keys:
                self.key("practitioner", key, code, PHARMACY if code == PHARMACIST else HOSPITAL)

    def key(self, kind: str, key: bytes, subject: str, institution: str) -> None:
        own = signing_key(subject)
        record = registry_pb2.SigningKeyRecord(
            key_id=own.key_id,
            subject_code=subject,
            institution_code=institution,
            suite=own.suite.name,
            public_key=own.public_key,
            valid_from_ms=START_MS - DAY_MS,
            valid_until_ms=START_MS + 365 * DAY_MS,
        )
        registered = events_pb2.SigningKeyRegistered(key=record)
        if f"signing_key.registered {subject}" in self._changed:
            self._changed[f"signing_key.registered {subject}"](registered.key)
        self.ledger.add(kind, key, "signing_key.registered", registered, actor="agency/330100")

    def _diagnosis(self) -> None:
        business_type = "03131" if self._internet else "01201"
        shown = self._voucher("visit", business_type, HOSPITAL, online=self._internet)
        registered = events_pb2.EncounterRegistered(
            encounter_id=ENCOUNTER_ID,
            hospital_code=HOSPITAL,
            person_key=PERSON,
            person_no=PERSON_NO,
            visit_kind=common_pb2.VISIT_KIND_INTERNET if self._internet else common_pb2.VISIT_KIND_OFFLINE,
            med_type="11",
            voucher_key=shown,
            certificate_type="01",
        )
        hospital = f"hospital/{HOSPITAL}"
        self.emit("encounter", ENCOUNTER, "encounter.registered", registered, hospital, causes=self._leaf(shown))
        started = events_pb2.EncounterStarted(doctor_code=DOCTOR)
        self.emit("encounter", ENCOUNTER, "encounter.started", started, f"{hospital}/{DOCTOR}")
        self.started_ms = self.ledger.now_ms
        if self._internet:
            attested = events_pb2.DoctorAttested(attested_at_ms=self.ledger.now_ms)
            self.emit("encounter", ENCOUNTER, "encounter.doctor_attested", attested, hospital)
            proven = events_pb2.FollowUpProven(disease_code="I10", earlier_hospital_code=HOSPITAL)
            self.emit("encounter", ENCOUNTER, "encounter.revisit_proven", proven, hospital)
        diagnoses = [common_pb2.Diagnosis(code="I10", name="高血压", main=True, diagnosis_type="1")]
        statement = signed_pb2.DiagnosisStatement(encounter_id=ENCOUNTER_ID, doctor_code=DOCTOR, diagnoses=diagnoses)
        recorded = events_pb2.DiagnosisRecorded(
            statement=self._sign("diagnosis.recorded", statement, DOCTOR), diagnoses=diagnoses, doctor_code=DOCTOR
        )
        self.emit("encounter", ENCOUNTER, "diagnosis.recorded", recorded, f"{hospital}/{DOCTOR}")

    def _prescription(self) -> None:
        hospital = f"hospital/{HOSPITAL}"
        written = content(self.ledger.now_ms)
        prechecked = events_pb2.PrescriptionPrechecked(
            rx_no=RX_NO,
            rx_trace_code="5" * 20,
            content=written,
            encounter_key=ENCOUNTER,
            person_key=PERSON,
            diagnosis_version=self.ledger.version(ENCOUNTER),
            fills_allowed=1,
        )
        self.rx("prescription.prechecked", prechecked, hospital, causes=self._leaf(ENCOUNTER))
        document = signed_pb2.PrescriptionDocument(rx_no=RX_NO, rx_trace_code="5" * 20, prescription=written)
        self._sign("prescription.uploaded", document, DOCTOR, "document")
        self.prescription_sha256 = sha256(self._signed["document"].payload).digest()
        statement = signed_pb2.HospitalReviewStatement(
            rx_no=RX_NO, pharmacist_code=REVIEWER, prescription_sha256=self.prescription_sha256, opinion="可"
        )
        review = self._sign("prescription.hospital_reviewed", statement, REVIEWER)
        reviewed = events_pb2.HospitalReviewed(statement=review, pharmacist_code=REVIEWER)
        self.rx("prescription.hospital_reviewed", reviewed, f"{hospital}/{REVIEWER}")
        by_doctor = events_pb2.PrescriptionSigned(
            doctor_code=DOCTOR, prescription_sha256=self.prescription_sha256, signed_at_ms=self.ledger.now_ms
        )
        self.rx("prescription.signed", by_doctor, f"{hospital}/{DOCTOR}")
        seal_statement = signed_pb2.UploadSealStatement(
            rx_no=RX_NO,
            hospital_code=HOSPITAL,
            prescription_sha256=self.prescription_sha256,
            review_sha256=sha256(review.payload).digest(),
            file_sha256=sha256(FILE).digest(),
        )
        uploaded = events_pb2.PrescriptionUploaded(
            prescription=self._signed["document"],
            seal=self._sign("prescription.uploaded", seal_statement, HOSPITAL, "seal"),
            file_sha256=sha256(FILE).digest(),
            file_media_type="application/pdf",
            file_size_bytes=len(FILE),
        )
        blobs = [Blob(RX, sha256(FILE).digest(), FILE)]
        self.rx("prescription.uploaded", uploaded, hospital, blobs=blobs)
        effective = events_pb2.PrescriptionEffective(valid_until_ms=written.valid_until_ms)
        self.rx("prescription.effective", effective, hospital)

    def _transaction(self) -> None:
        shown = self._voucher("list", "02122", PHARMACY)
        authorization = state_pb2.Authorization(
            pharmacy_code=PHARMACY,
            secret_mac=b"auth",
            expires_at_ms=self.ledger.now_ms + 30 * MINUTE_MS,
            voucher_key=shown,
        )
        issued = events_pb2.AuthorizationIssued(authorization=authorization)
        self.rx("authorization.issued", issued, causes=self._leaf(shown))
        created = events_pb2.OrderCreated(
            order_no=ORDER, pharmacy_code=PHARMACY, mode=common_pb2.FULFILMENT_MODE_PICKUP
        )
        self.rx("order.created", created)
        self.rx("authorization.consumed", events_pb2.AuthorizationConsumed(secret_mac=b"auth"))
        hold_until_ms = self.ledger.now_ms + 120 * MINUTE_MS
        self.rx("order.held", events_pb2.OrderHeld(order_no=ORDER, hold_until_ms=hold_until_ms))
        downloaded = events_pb2.PrescriptionDownloaded(pharmacy_code=PHARMACY, order_no=ORDER)
        self.rx("prescription.downloaded", downloaded)
        statement = signed_pb2.ReviewStatement(
            rx_no=RX_NO,
            pharmacy_code=PHARMACY,
            pharmacist_code=PHARMACIST,
            decision=signed_pb2.REVIEW_DECISION_PASS,
            opinion="用药合理",
            prescription_sha256=self.prescription_sha256,
        )
        review = events_pb2.ReviewGiven(
            order_no=ORDER,
            pharmacist_code=PHARMACIST,
            opinion="用药合理",
            statement=self._sign("review.passed", statement, PHARMACIST),
        )
        self.rx("review.passed", review, f"pharmacy/{PHARMACY}/{PHARMACIST}")
        if self._self_paid:
            self._pay_self()
        else:
            self._quote_and_settle(hold_until_ms)
        self.rx("dispense.ready", events_pb2.DispenseReady(order_no=ORDER))

    def _pay_self(self) -> None:
        claim = self_paid_claim()
        claim.settlement_id = "SETL1"
        statement = signed_pb2.SettleStatement(
            rx_no=RX_NO, pharmacy_code=PHARMACY, pay_mode=signed_pb2.PAY_MODE_SELF, amounts=claim.amounts
        )
        signed_statement = self._sign("settlement.self_paid", statement, PHARMACY)
        paid = events_pb2.SettlementSelfPaid(order_no=ORDER, claim=claim, statement=signed_statement)
        self.rx("settlement.self_paid", paid)

    def _quote_and_settle(self, hold_until_ms: int) -> None:
        shown = self._voucher("pay", "02121", PHARMACY)
        claim = _claim()
        quoted = events_pb2.SettlementQuoted(
            order_no=ORDER, claim=claim, hold_until_ms=hold_until_ms, voucher_key=shown
        )
        self.rx("settlement.quoted", quoted, causes=self._leaf(shown))
        claim.settlement_id = "SETL1"
        debited = events_pb2.AccountDebited(
            amount_fen=5_000,
            in_scope_fen=9_100,
            fund_fen=6_370,
            settlement_id="SETL1",
            rx_key=RX,
            rx_version=self.ledger.version(RX) + 1,
        )
        if self._until != "settlement.quoted":
            self.emit("account", ACCOUNT, "account.debited", debited, f"pharmacy/{PHARMACY}")
        statement = signed_pb2.SettleStatement(
            rx_no=RX_NO,
            pharmacy_code=PHARMACY,
            quote_id="QUOTE1",
            pay_mode=signed_pb2.PAY_MODE_INSURED,
            amounts=claim.amounts,
        )
        committed = events_pb2.SettlementCommitted(
            order_no=ORDER,
            claim=claim,
            statement=self._sign("settlement.committed", statement, PHARMACY),
            account_key=ACCOUNT,
            voucher_key=shown,
        )
        self.rx("settlement.committed", committed, causes=[*self._leaf(ACCOUNT), *self._leaf(shown)])

    def give_back(self, *, restore: bool = True) -> None:
        """Undo the settlement and release the order."""
        if restore:
            restored = events_pb2.AccountRestored(
                amount_fen=5_000,
                in_scope_fen=9_100,
                fund_fen=6_370,
                settlement_id="SETL1",
                rx_key=RX,
                rx_version=self.ledger.version(RX) + 1,
            )
            self.ledger.add("account", ACCOUNT, "account.restored", restored, actor=f"pharmacy/{PHARMACY}")
        undone = events_pb2.SettlementUndone(order_no=ORDER, settlement_id="SETL1", reason="错误")
        causes = self._leaf(ACCOUNT)
        self.ledger.add("prescription", RX, "settlement.undone", undone, actor=f"pharmacy/{PHARMACY}", causes=causes)

    def then(self, event: str, payload: Message) -> Story:
        """One more event of the prescription."""
        self.ledger.add("prescription", RX, event, payload, actor=f"pharmacy/{PHARMACY}")
        return self

    def _goods(self) -> None:
        sold = []
        for code, drug in zip(CODES, ("XA01", "XA01", "XB02"), strict=True):
            key = trace_code_key(code)
            payload = events_pb2.TraceCodeSold(
                drug_code=drug, pharmacy_code=PHARMACY, rx_key=RX, rx_version=self.ledger.version(RX) + 3
            )
            if not self._ended:
                self.emit("trace_code", key, "trace_code.sold", payload, f"pharmacy/{PHARMACY}")
                sold += self._leaf(key)
        self.rx("dispense.picked", events_pb2.DispensePicked(order_no=ORDER, dispenser_code="DS1"))
        self.rx("dispense.checked", events_pb2.DispenseChecked(order_no=ORDER, checker_code="DS2"))
        lots = [
            signed_pb2.DispensedLot(line_no=1, drug_code="XA01", quantity="2", lot_no="L1", trace_codes=CODES[:2]),
            signed_pb2.DispensedLot(line_no=2, drug_code="XB02", quantity="1", lot_no="L2", trace_codes=CODES[2:]),
        ]
        statement = signed_pb2.DispenseStatement(
            rx_no=RX_NO,
            pharmacy_code=PHARMACY,
            settlement_id="SETL1",
            dispenser_code="DS1",
            checker_code="DS2",
            lots=lots,
        )
        outbound = events_pb2.DispenseOutbound(
            order_no=ORDER, sale_no="SALE1", statement=self._sign("dispense.outbound", statement, PHARMACY), lots=lots
        )
        self.rx("dispense.outbound", outbound, causes=sold)
        self.rx("prescription.used", events_pb2.PrescriptionUsed())
        self.rx("prescription.exhausted", events_pb2.PrescriptionExhausted())
        if self._delivery:
            self._deliver()
        else:
            self._hand_over()

    def _hand_over(self) -> None:
        shown = self._voucher("take", "01302", PHARMACY)
        statement = signed_pb2.HandOverStatement(rx_no=RX_NO, pharmacy_code=PHARMACY, staff_code="DS1")
        handed_over = events_pb2.HandedOver(
            order_no=ORDER,
            statement=self._sign("dispense.handed_over", statement, PHARMACY),
            voucher_key=shown,
        )
        self.rx("dispense.handed_over", handed_over, causes=self._leaf(shown))

    def _deliver(self) -> None:
        requested = events_pb2.DeliveryRequested(
            order_no=ORDER, delivery_no="DLV1", address=ADDRESS, phone="13800000000"
        )
        self.rx("delivery.requested", requested, "channel/demo-app")
        self.rx("delivery.assigned", events_pb2.DeliveryAssigned(order_no=ORDER, courier_code="KD1"))
        for event in ("delivery.picked_up", "delivery.in_transit", "delivery.arrived"):
            moved = events_pb2.DeliveryMoved(order_no=ORDER, at_ms=self.ledger.now_ms, courier_code="KD1")
            self.rx(event, moved)
        statement = signed_pb2.SignDeliveryStatement(rx_no=RX_NO, pharmacy_code=PHARMACY, delivery_no="DLV1")
        delivered = events_pb2.DeliverySigned(
            order_no=ORDER, statement=self._sign("delivery.signed", statement, PHARMACY), by_sign_code=True
        )
        self.rx("delivery.signed", delivered)
        self.rx("order.completed", events_pb2.OrderCompleted(order_no=ORDER))

    # ---- asking ----

    def context(self, store: Any = None, now_ms: int = 0) -> ReadContext:
        """What the queries need; the clock stands right after the last event unless told otherwise."""
        return ReadContext(
            store=store or asyncio.run(self.ledger.stored()),
            mac_keys=MacKeys({1: b"k" * 32}),
            ledger_key=LEDGER,
            config=Config(),
            clock=ManualClock(now_ms or self.ledger.now_ms),
            packs=shipped_packs(),
            verifier=Verifier(),
            subscribe=lambda code: asyncio.Event(),
            unsubscribe=lambda code, event: None,
            running=lambda: True,
            page_key=b"p" * 32,
        )

    def trace(self, *, verify: bool = False, now_ms: int = 0, store: Any = None) -> audit_pb2.TraceChainResponse:
        request = audit_pb2.TraceChainRequest(rx_no=RX_NO, case_reason="case 1", verify=verify)
        outcome = ask(self.context(store, now_ms), audit.trace_chain, request)
        assert isinstance(outcome, Accepted), outcome
        reply = outcome.reply
        assert isinstance(reply, audit_pb2.TraceChainResponse)
        return reply


def ask(ctx: ReadContext, query: Any, request: Message, caller: Caller = AUDITOR) -> Accepted | Refused:
    outcome = asyncio.run(query(ctx, caller, request))
    assert isinstance(outcome, Accepted | Refused)
    return outcome


class Damaged(MemoryStore):
    """A store whose bytes somebody changed: what comes out of it is not what went in."""

    def __init__(
        self,
        whole: MemoryStore,
        entries: Mapping[tuple[bytes, int], Callable[[StoredEntry], StoredEntry | None]] | None = None,
        states: Mapping[bytes, Change] | None = None,
    ) -> None:
        super().__init__()
        self.__dict__.update(whole.__dict__)
        changes = entries or {}

        def changed(entry: StoredEntry) -> StoredEntry | None:
            change = changes.get((entry.stream_key, entry.version))
            return change(entry) if change else entry

        self._log = [after for entry in whole._log if (after := changed(entry)) is not None]
        self._streams = {
            key: [after for entry in stream if (after := changed(entry)) is not None]
            for key, stream in whole._streams.items()
        }
        self._streams = {key: stream for key, stream in self._streams.items() if stream}
        self._states = {key: state for key, state in whole._states.items() if key in self._streams}
        for key, rewrite in (states or {}).items():
            head = whole._states[key]
            kind = next(entry.stream_kind for entry in whole._streams[key])
            state = STATE_TYPES[kind].FromString(head.body)
            rewrite(state)
            self._states[key] = head._replace(body=state.SerializeToString(deterministic=True))


def with_payload(change: Change) -> Callable[[StoredEntry], StoredEntry]:
    """The entry with its payload altered, and nothing else."""

    def changed(entry: StoredEntry) -> StoredEntry:
        payload = events.BY_NUMBER[Header.decode(entry.header).type].payload()
        payload.ParseFromString(entry.payload or b"")
        change(payload)
        return replace(entry, payload=payload.SerializeToString(deterministic=True))

    return changed
