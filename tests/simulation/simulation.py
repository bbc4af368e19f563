"""One run: robots, faults and the checker around one hub, all from one seed.

Owns the scheduler: who acts when, what is sent together, what goes wrong. The same seed gives the same run, byte for
byte. A run that fails raises `Failed`, whose text is one line that repeats it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

from erxhub.core.catalog import CatalogImport
from erxhub.jobs import Answer as HubAnswer
from erxhub.jobs import Declined, Replied
from tests.simulation import cast, hospital, officials, pharmacy
from tests.simulation.cast import DAY_MS, HOUR_MS, MINUTE_MS
from tests.simulation.checker import Checker, Seen
from tests.simulation.desk import CALM, Desk, Habits, Journey
from tests.simulation.hub import SimulatedHub
from tests.simulation.pharmacy import DETOURS
from tests.simulation.wire import Answer, Call, Pen, make_call, read_reply

COMMANDS: Final = 50
REPLAYED: Final = 5

FAULTS: Final = (
    "dropped",
    "reply lost",
    "sent twice",
    "stale id",
    "killed before",
    "killed after",
    "lost",
    "down",
    "jump",
)
_OFTEN: Final[Mapping[str, float]] = {
    "dropped": 0.08,
    "reply lost": 0.1,
    "sent twice": 0.08,
    "stale id": 0.06,
    "killed before": 0.05,
    "killed after": 0.05,
    "lost": 0.04,
    "down": 0.03,
    "jump": 0.07,
}
"""How often a fault strikes, of calls or of turns, in a run that has it."""

_JUMPS_MS: Final = (
    70_000,
    6 * MINUTE_MS,
    16 * MINUTE_MS,
    31 * MINUTE_MS,
    31 * MINUTE_MS,
    2 * HOUR_MS + MINUTE_MS,
    3 * HOUR_MS,
    70_000,
    DAY_MS,
    4 * DAY_MS,
)
SALE_STEPS: Final = (
    "list",
    "download",
    "review",
    "quote",
    "settle",
    "self pay",
    "undo",
    "dispense",
    "dispense",
    "hand over",
    "deliver",
    "sign",
)
CARE_STEPS: Final = (
    "issue",
    "verify",
    "register",
    "start",
    "prove",
    "diagnose",
    "precheck",
    "precheck",
    "upload",
    "withdraw",
    "order",
    "office",
)
"""Steps at which robots stumble, by name."""

_TICKS_MS: Final = (0, 200, 1_000, 1_000, 5_000)

_JOURNEYS: Final[tuple[tuple[Callable[[Desk], Journey], str], ...]] = (
    (hospital.visit, "care"),
    (pharmacy.fill, "sales"),
    (pharmacy.order, "orders"),
    (hospital.withdraw, "after"),
    (hospital.tidy_up, "after"),
    (pharmacy.present_twice, "after"),
    (officials.own_affairs, "after"),
    (officials.suspend, "offices"),
    (officials.renew_key, "offices"),
    (officials.register, "registry"),
    (officials.revoke_certificate, "revocations"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What kind of run a seed is: how many robots at once, what they tend to do, which faults, which journeys.

    `head_start` is how many prescriptions are in force before the first robot acts.
    """

    crowd: int
    head_start: int
    habits: Habits
    faults: Mapping[str, float]
    weights: Mapping[str, float]


@dataclass(slots=True)
class Result:
    """What a run left. `ledger` and `trace` are SHA-256 in hexadecimal, over every byte and over every step."""

    seed: int
    ledger: str
    trace: str
    entries: int
    seen: Seen
    faults: Counter[str]


class Failed(Exception):
    """A run that did not hold; the text repeats it."""

    def __init__(self, simulation: Simulation, cause: BaseException) -> None:
        self.cause = cause
        found = str(cause) or repr(cause)
        if type(cause).__name__ != "Violation":
            found = f"{type(cause).__name__}: {found}"
        signatures = " --signatures" if simulation.hub.signatures else ""
        super().__init__(
            f"seed {simulation.seed} fails at step {simulation.steps}: {' '.join(found.split())}"
            f" -- again: python -m tests.simulation --seeds {simulation.seed}"
            f" --commands {simulation.commands}{signatures}"
        )


@dataclass(slots=True)
class _Walk:
    journey: Journey
    call: Call


def planned(chance: Random) -> Plan:
    """A plan; runs differ more than steps do, so that some reach far and others stumble all the time."""

    def one_of(*options: Any) -> Any:
        return options[int(chance.random() * len(options))]

    faults = {name: _OFTEN[name] for name in FAULTS if chance.random() < 0.3}
    officials_weight = one_of(0.0, 0.0, 0.4, 1.2)
    return Plan(
        crowd=one_of(1, 1, 1, 2, 2, 4),
        head_start=one_of(0, 1, 1, 2, 3),
        habits=Habits(
            slips=one_of(0.0, 0.0, 0.03, 0.1),
            stumbles=frozenset((one_of(*SALE_STEPS), one_of(*CARE_STEPS))),
            detours=frozenset(chance.sample(DETOURS, 2)),
        ),
        faults=faults,
        weights={
            "care": one_of(0.3, 1.0),
            "sales": 4.0,
            "orders": one_of(0.2, 0.8),
            "after": one_of(0.1, 0.5),
            "offices": officials_weight,
            "registry": one_of(0.0, 0.1, 0.5),
            "revocations": one_of(0.0, 0.0, 0.1),
        },
    )


@dataclass
class Simulation:
    """One run of `commands` submissions at most.

    Not counted are the registration of the cast, the head start, and what comes once more at the end.
    """

    seed: int
    commands: int = COMMANDS
    signatures: bool = False
    make_hub: Callable[..., SimulatedHub] = SimulatedHub
    make_checker: Callable[[SimulatedHub], Checker] = Checker
    faults: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    trace: list[str] = field(default_factory=list)
    """One line for each step, in order."""

    def __post_init__(self) -> None:
        self.chance = Random(self.seed)
        self.plan = planned(self.chance)
        self.hub = self.make_hub(self.seed, signatures=self.signatures)
        self.desk = Desk(self.chance, self.hub.clock, Pen(signs=self.signatures), CALM)
        self.checker = self.make_checker(self.hub)
        self._walks: list[_Walk] = []
        self._sent = 0
        self._down_for = 0
        self._done: list[Call] = []
        total = sum(self.plan.weights[kind] for _, kind in _JOURNEYS)
        self._choices = [(journey, self.plan.weights[kind] / total) for journey, kind in _JOURNEYS]

    # ---- the run ----

    def run(self) -> Result:
        """Everything from the first registration to the last check. Raises Failed."""
        try:
            self._register()
            self._begin()
            while self._sent < self.commands:
                self._turn()
            self._settle()
        except Exception as error:
            raise Failed(self, error) from error
        log = self.hub.log(0)
        return Result(
            self.seed,
            ledger_digest(log),
            hashlib.sha256("\n".join(self.trace).encode()).hexdigest(),
            len(log),
            self.checker.seen,
            self.faults,
        )

    def _register(self) -> None:
        self.checker.after([], [])
        for round_ in cast.registrations(self.hub.clock.at_ms):
            calls = [self.desk.call(*row) for row in round_]
            for call, answer in zip(calls, self._submit(calls), strict=True):
                assert answer is not None
                if not self._heard(call, answer).ok:
                    raise AssertionError(f"the cast is not registered: {call.method} {answer}")

    def _begin(self) -> None:
        """The head start, by robots that make no mistake; then the robots get their habits."""
        journeys = [hospital.visit(self.desk) for _ in range(self.plan.head_start)]
        self._walks = [_Walk(journey, next(journey)) for journey in journeys]
        while self._walks:
            self.hub.clock.advance(1_000)
            walks = list(self._walks)
            calls = [walk.call for walk in walks]
            self._deliver(walks, calls, self._submit(calls))
        self.desk.take_up(self.plan.habits)

    def _turn(self) -> None:
        self.hub.clock.advance(self.desk.pick(_TICKS_MS))
        self._fate()
        self._welcome()
        if not self._walks:
            return
        going = [walk for walk in self._walks if self.chance.random() < 0.8] or self._walks[:1]
        self.chance.shuffle(going)
        calls, walks = self._on_the_way(going)
        if not calls:
            return
        answers = self._submit(calls)
        self._deliver(walks, calls, answers)

    def _fate(self) -> None:
        """What strikes the hub and the time in this turn."""
        if self._down_for:
            self._down_for -= 1
            if not self._down_for:
                self.hub.store.fault = ""
        for name in ("killed before", "killed after", "lost", "down"):
            if not self._down_for and self._strikes(name):
                self.hub.store.fault = name
                if name == "down":
                    self._down_for = 1 + int(self.chance.random() * 2)
        jumped = self._strikes("jump")
        if jumped:
            self.hub.clock.advance(self.desk.pick(_JUMPS_MS))
        if self.chance.random() < (0.5 if jumped else 0.05):
            self._note("sweep")
            self.hub.sweep()
            self._revive()
            self.checker.after([], [])

    def _strikes(self, name: str) -> bool:
        struck = name in self.plan.faults and self.chance.random() < self.plan.faults[name]
        self.faults[name] += struck
        return struck

    def _welcome(self) -> None:
        """New journeys, until the place is full; one that has nothing to do ends at once."""
        for _ in range(3):
            while len(self._walks) < self.plan.crowd:
                journey = self._chosen()(self.desk)
                call = next(journey, None)
                if call is None:
                    break
                self._walks.append(_Walk(journey, call))

    def _chosen(self) -> Callable[[Desk], Journey]:
        if not self.desk.board.prescriptions and self.chance.random() < 0.6:
            return hospital.visit
        place = self.chance.random()
        for journey, share in self._choices:
            place -= share
            if place < 0:
                return journey
        return hospital.visit

    # ---- sending ----

    def _on_the_way(self, walks: Sequence[_Walk]) -> tuple[list[Call], list[_Walk | None]]:
        """What reaches the hub together, and whose it is; None for what nobody waits for."""
        calls: list[Call] = []
        owners: list[_Walk | None] = []

        def send(call: Call, owner: _Walk | None) -> None:
            if self._sent < self.commands:
                self._sent += 1
                calls.append(call)
                owners.append(owner)

        for walk in walks:
            if self._strikes("dropped"):
                self._note(f"dropped {walk.call.request_id}")
                continue
            send(walk.call, None if self._strikes("reply lost") else walk)
            if self._strikes("sent twice"):
                send(walk.call, walk)
            if self._strikes("stale id"):
                stale = self._stale(walk.call)
                if stale is not None:
                    send(stale, None)
        return calls, owners

    def _stale(self, call: Call) -> Call | None:
        """The same content under a request id that its caller used for something else."""
        used = [done for done in self._done if done.caller == call.caller and done.content != call.content]
        if not used or isinstance(call.request, CatalogImport):
            return None
        request = type(call.request)()
        request.CopyFrom(call.request)
        request.request_id = ""
        earlier = self.desk.pick(used)
        return make_call(call.caller, call.method, request, earlier.request_id, call.statements, call.proven)

    def _submit(self, calls: Sequence[Call]) -> list[HubAnswer | None]:
        self.steps += 1
        answers = self.hub.submit(calls)
        for call, answer in zip(calls, answers, strict=True):
            self._note(f"{call.caller.actor} {call.method} {call.request_id} {_told(answer)}")
        self._revive()
        self.checker.after(calls, answers)
        heard: list[HubAnswer | None] = []
        for call, answer in zip(calls, answers, strict=True):
            assert not isinstance(answer, BaseException)
            if isinstance(answer, Replied):
                self._done.append(call)
            heard.append(answer)
        return heard

    def _revive(self) -> None:
        """A hub that was killed is started again over the same store."""
        if not self.hub.alive:
            self._note("restart")
            self.hub.boot()

    def _deliver(
        self, walks: Sequence[_Walk | None], calls: Sequence[Call], answers: Sequence[HubAnswer | None]
    ) -> None:
        """Each robot hears its answer and goes on; of two answers to one call the accepted one."""
        heard: dict[int, tuple[_Walk, Answer]] = {}
        for walk, call, answer in zip(walks, calls, answers, strict=True):
            if walk is None or answer is None or call is not walk.call:
                continue
            known = heard.get(id(walk))
            if known is None or not known[1].ok:
                heard[id(walk)] = (walk, self._heard(call, answer))
        for walk, told in heard.values():
            try:
                walk.call = walk.journey.send(told)
            except StopIteration:
                self._walks.remove(walk)

    def _heard(self, call: Call, answer: HubAnswer) -> Answer:
        if isinstance(answer, Declined):
            return Answer(answer.refused.code, detail=answer.refused.detail)
        body = answer.body
        if answer.attach_upload:
            body = self.hub.attached(call.method, body, answer.attach_upload)
        reply = read_reply(call.method, body)
        if call.method == "RegistryService/RegisterSigningKey":
            self.hub.registered_keys.add(reply.key_id)
        return Answer("OK", reply, answer.body)

    # ---- the end ----

    def _settle(self) -> None:
        """What is still on its way arrives; some accepted requests come once more; then everything is checked."""
        self.hub.store.fault = ""
        if self._walks:
            self._submit([walk.call for walk in self._walks])
        if self._done:
            again = [self.desk.pick(self._done) for _ in range(REPLAYED)]
            self._submit(again)
            stale = self._stale(self.desk.pick(self._done))
            if stale is not None:
                self._submit([stale])
        self.hub.clock.advance(5 * DAY_MS)
        while self.hub.engine.serving and self._sweeps():
            self.checker.after([], [])
        self.hub.stop()
        self.checker.finish()

    def _sweeps(self) -> bool:
        before = len(self.hub.log(0))
        self.hub.sweep()
        return len(self.hub.log(0)) > before

    def _note(self, text: str) -> None:
        self.trace.append(f"{self.steps} {self.hub.clock.at_ms} {text}")


def _told(answer: HubAnswer | BaseException | None) -> str:
    if answer is None:
        return "no answer"
    if isinstance(answer, Declined):
        return answer.refused.code
    if isinstance(answer, Replied):
        return f"OK {hashlib.sha256(answer.body).hexdigest()[:16]}"
    return repr(answer)


def ledger_digest(log: Sequence[Any]) -> str:
    """SHA-256 over every byte of every entry, in hexadecimal."""
    hasher = hashlib.sha256()
    for entry in log:
        for part in (entry.header, entry.commitment, entry.leaf_hash, entry.salt or b"", entry.payload or b""):
            hasher.update(len(part).to_bytes(8, "big") + part)
    return hasher.hexdigest()
