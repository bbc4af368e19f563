"""What robots share: chance, the time, request ids, and the board on which they find one another's things.

A robot's journey is a generator: it yields a call and gets the answer. It knows only what it was told in answers, as a
client does. Owns no step of any journey.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

from erxhub.core.model import Caller, Evidence
from erxhub.ports import ManualClock
from erxhub.v1 import common_pb2, voucher_pb2
from tests.simulation.cast import CHANNELS, PERSONS, SHOPS, WARDS, Person, Shop, Ward
from tests.simulation.wire import Answer, Call, Pen, make_call

T = TypeVar("T")
Journey = Generator[Call, Answer, None]
Step = Generator[Call, Answer, Answer]

VISIT = "01201"
ONLINE = "03131"
LIST = "02122"
PURCHASE = "02121"
ONLINE_PURCHASE = "03132"
HAND_OVER = "01302"


@dataclass(slots=True)
class Rx:
    """A prescription as the robots know it."""

    rx_no: str
    person: Person
    ward: Ward
    content: common_pb2.Prescription
    doctor: str
    signed: bytes
    encounter_id: str
    over: bool = False
    """Whether a robot knows that nothing can be had on it any more."""


@dataclass(slots=True)
class Board:
    """What robots tell one another outside the hub: the patient carries his number to the pharmacy."""

    prescriptions: list[Rx] = field(default_factory=list)
    encounters: list[tuple[Ward, str, str]] = field(default_factory=list)
    """Ward, encounter, doctor."""
    sold_codes: list[str] = field(default_factory=list)
    shown_codes: list[str] = field(default_factory=list)
    packs: int = 0
    keys: dict[str, str] = field(default_factory=dict)
    """Which key a person signs with now, when it is not the first one."""


@dataclass(frozen=True, slots=True)
class Habits:
    """What the robots of a run tend to do.

    `slips` is how often they do something wrong at any step, `stumbles` the steps at which they do it more often than
    not. `detours` are taken often, the others as each says. Calm robots make no mistake and take no detour.
    """

    slips: float = 0.0
    stumbles: frozenset[str] = frozenset()
    detours: frozenset[str] = frozenset()
    calm: bool = False


CALM = Habits(calm=True)
_OFTEN = 0.4
_STUMBLING = 0.6


class Desk:
    """One run's chance, clock, pen and board."""

    def __init__(self, chance: Random, clock: ManualClock, pen: Pen, habits: Habits | None = None) -> None:
        self.chance = chance
        self.clock = clock
        self.pen = pen
        self.board = Board()
        self._numbers = 0
        self.take_up(habits or CALM)

    def take_up(self, habits: Habits) -> None:
        """Behave like this from now on."""
        self.habits = habits
        self.calm = habits.calm

    # ---- chance ----

    @property
    def now_ms(self) -> int:
        return self.clock.at_ms

    def maybe(self, probability: float, detour: str = "") -> bool:
        """A detour that an honest robot may take; never a calm one."""
        if self.calm:
            return False
        return self.chance.random() < (_OFTEN if detour in self.habits.detours else probability)

    def slip(self, step: str = "") -> bool:
        """Whether a robot does something wrong now."""
        probability = _STUMBLING if step in self.habits.stumbles else self.habits.slips
        return bool(probability) and self.chance.random() < probability

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.chance.random() * len(options))]

    def number(self) -> int:
        """A number that was not used in this run."""
        self._numbers += 1
        return self._numbers

    # ---- calls ----

    def call(
        self,
        caller: Caller,
        method: str,
        request: Any,
        statements: Mapping[str, Any] | None = None,
        proven: Evidence | None = None,
        request_id: str = "",
    ) -> Call:
        """A call under a fresh request id."""
        return make_call(
            caller, method, request, request_id or f"{caller.kind}-{self.number():06d}", statements, proven
        )

    def attempt(self, step: str, right: Callable[[], Call], *wrong: Callable[[], Call]) -> Step:
        """Now and then one of the wrong calls first; then the right one."""
        while self.slip(step):
            yield self.pick(wrong)()
        return (yield right())

    def key_of(self, owner: str) -> str:
        """The name of the key with which somebody signs now."""
        return self.board.keys.get(owner, owner)

    # ---- what many do ----

    def person(self) -> Person:
        return self.pick(PERSONS)

    def prescription(self) -> Rx | None:
        """A prescription to go on with: as a rule one that may still be filled; None when there is none at all."""
        known = self.board.prescriptions
        live = [rx for rx in known if not rx.over]
        if live and (self.calm or self.chance.random() < 0.9):
            return live[-1] if self.calm else self.pick(live)
        return self.pick(known) if known else None

    def ward(self) -> Ward:
        return WARDS[0] if self.chance.random() < 0.7 else WARDS[1]

    def shop(self) -> Shop:
        return SHOPS[0] if self.chance.random() < 0.6 else self.pick(SHOPS)

    def delegate_of(self, person: Person) -> str:
        """Who acts for a person now; empty when he acts himself."""
        return person.delegates[0] if person.delegates and self.maybe(0.7) else ""

    def code(self, person: Person, business_type: str) -> Generator[Call, Answer, str]:
        """A fresh code of the person, or one that is nobody's when he gets none."""
        delegate = self.delegate_of(person)

        def issue(**changes: Any) -> Call:
            fields = {"person_no": person.number, "delegate_person_no": delegate, "business_type": business_type}
            return self.call(
                CHANNELS[0], "VoucherService/IssueVoucher", voucher_pb2.IssueVoucherRequest(**(fields | changes))
            )

        answer = yield from self.attempt(
            "issue",
            issue,
            lambda: issue(person_no="33010000000099"),
            lambda: issue(delegate_person_no=PERSONS[2].number),
            lambda: issue(business_type="99999"),
        )
        if not answer.ok:
            return "0" * 28
        self.board.shown_codes.append(answer.reply.voucher_code)
        return str(answer.reply.voucher_code)

    def proof(self, caller: Caller, person: Person, business_type: str) -> Generator[Call, Answer, str]:
        """A live reference at an institution (or the online identity number); 64 x when there is none."""
        code = yield from self.code(person, business_type)

        def verify(**changes: Any) -> Call:
            fields = {"voucher_code": code, "business_type": business_type}
            return self.call(
                caller, "VoucherService/VerifyVoucher", voucher_pb2.VerifyVoucherRequest(**(fields | changes))
            )

        answer = yield from self.attempt(
            "verify",
            verify,
            lambda: verify(business_type=HAND_OVER if business_type != HAND_OVER else VISIT),
            lambda: verify(person_no=PERSONS[1 if person is PERSONS[0] else 0].number),
            lambda: verify(channel_id=CHANNELS[1].id),
            lambda: verify(voucher_code="3" * 28),
            lambda: verify(voucher_code=self.pick(self.board.shown_codes or ["4" * 28])),
        )
        if not answer.ok:
            return "x" * 64
        return str(answer.reply.voucher_ref or answer.reply.online_identity_no)
