"""How many full chains one hub makes in a second of CPU: `python -m tests.simulation --speed`.

A chain is everything from the patient's code to the goods in his hands: four codes shown and verified, visit,
diagnosis, precheck, upload, list, download, review, quote, settlement, dispensing, hand-over: twenty commands. Robots
act many at a time, so that the lane has batches to commit. Counted is the CPU of the whole process: hub, store, robots,
loop.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import Final

from erxhub.jobs import Replied
from tests.simulation import cast, hospital, pharmacy
from tests.simulation.checker import Checker
from tests.simulation.desk import Desk, Journey
from tests.simulation.hub import SimulatedHub
from tests.simulation.wire import Answer, Call, Pen, read_reply

CHAINS: Final = 1_500
CROWD: Final = 64
ROUNDS: Final = 5
GOAL: Final = 300
COMMANDS_A_CHAIN: Final = 20
_AT_ONCE: Final = 100
_TICK_MS: Final = 1_000
"""Slow enough that no caller comes above its access budget, or entries would be missing."""


class _Bench:
    """One hub with as many persons as there will be chains; each has one prescription filled."""

    def __init__(self, chains: int, *, signatures: bool, checked: bool) -> None:
        self.hub = SimulatedHub(1, signatures=signatures)
        self.desk = Desk(Random(1), self.hub.clock, Pen(signs=signatures))
        self.checker = Checker(self.hub) if checked else None
        self.persons = [
            cast.Person(f"3301009{number:07d}", "林示例", "08", f"E3{number:07d}", "1961-04-12", 1_000_000)
            for number in range(chains)
        ]
        for round_ in cast.registrations(self.hub.clock.at_ms):
            self._must(round_)
        for begin in range(0, chains, _AT_ONCE):
            some = self.persons[begin : begin + _AT_ONCE]
            self._must([(cast.AGENCY, "RegistryService/RegisterPerson", cast.person(who)) for who in some])
            self._must([(cast.CHANNELS[0], "VoucherService/ActivateVoucher", cast.activation(who)) for who in some])

    def _must(self, rows: Sequence[cast.Registration]) -> None:
        calls = [self.desk.call(*row) for row in rows]
        for call, answer in zip(calls, self._submit(calls), strict=True):
            if call.method == "RegistryService/RegisterSigningKey":
                self.hub.registered_keys.add(answer.reply.key_id)

    def _submit(self, calls: Sequence[Call]) -> Iterator[Answer]:
        answers = self.hub.submit(calls)
        if self.checker is not None:
            self.checker.after(calls, answers)
        for call, answer in zip(calls, answers, strict=True):
            assert isinstance(answer, Replied), (call.method, answer)
            body = answer.body
            if answer.attach_upload:
                body = self.hub.attached(call.method, body, answer.attach_upload)
            yield Answer("OK", read_reply(call.method, body), answer.body)

    def _chain(self, who: cast.Person) -> Journey:
        rx = yield from hospital.visited(self.desk, who, cast.WARDS[0])
        assert rx is not None
        yield from pharmacy.fill_this(self.desk, rx, cast.SHOPS[0])
        self.finished += 1

    def run(self) -> int:
        """All chains, so many at a time; returns how many commands that took."""
        self.finished = commands = 0
        waiting = iter(self.persons)
        going: list[tuple[Journey, Call]] = []
        while True:
            while len(going) < CROWD and (who := next(waiting, None)) is not None:
                journey = self._chain(who)
                going.append((journey, next(journey)))
            if not going:
                break
            commands += len(going)
            heard = list(self._submit([call for _, call in going]))
            walking = going
            going = []
            for (journey, _), answer in zip(walking, heard, strict=True):
                with suppress(StopIteration):
                    going.append((journey, journey.send(answer)))
            self.hub.clock.advance(_TICK_MS)
        assert self.finished == len(self.persons)
        return commands


def chains_per_second(chains: int = CHAINS, *, signatures: bool = False, checked: bool = False) -> float:
    """Full chains in a second of this process's CPU, registrations not counted."""
    bench = _Bench(chains, signatures=signatures, checked=checked)
    # As `erxhub serve` sets the collector: what is there stays out of it, and it looks seldom.
    gc.collect()
    gc.freeze()
    before = gc.get_threshold()
    gc.set_threshold(10_000, 20, 20)
    began = time.process_time()
    try:
        commands = bench.run()
    finally:
        spent = time.process_time() - began
        gc.set_threshold(*before)
        gc.unfreeze()
    assert commands == COMMANDS_A_CHAIN * chains
    return chains / spent


def main(say: Callable[[str], None] = print) -> int:
    """Print the figures; 1 when the goal is missed."""
    kinds = {
        "without signature checks": {},
        "with signature checks": {"signatures": True},
        "without signature checks, every invariant after every commit": {"checked": True},
    }
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    for _ in range(ROUNDS):
        # In turns, so that other work on the machine meets all of them alike.
        for kind, options in kinds.items():
            found[kind].append(chains_per_second(**options))
    for kind, figures in found.items():
        figures.sort()
        middle = figures[len(figures) // 2]
        say(
            f"{middle:6.0f} chains per CPU second {kind}  [{figures[0]:.0f}–{figures[-1]:.0f}], "
            f"{1e6 / middle / COMMANDS_A_CHAIN:.0f} µs a command"
        )
    reached = found["without signature checks"][ROUNDS // 2] >= GOAL
    say(f"the goal of {GOAL} without signature checks is {'met' if reached else 'missed'}")
    return 0 if reached else 1
