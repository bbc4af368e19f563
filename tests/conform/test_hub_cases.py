"""The cases of the hub role one by one: under strict, the provisional ones, over a bad line, and that they can fail."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from erxhub.conform.checks import CaseEnded, Checks, Unsupported
from erxhub.conform.hub import target
from erxhub.conform.hub.ledger_copy import verify
from erxhub.conform.hub.raw import Answer
from erxhub.conform.hub.run import HubRun
from erxhub.conform.hub_cases.events import follow, once, tells
from erxhub.conform.model import Case, Text
from erxhub.conform.plan import Planned
from erxhub.conform.registry import registered_cases
from erxhub.testing.hubs import ErxhubHub

CASES = registered_cases()
CORE = [case for case in CASES if case.core]
CAMPAIGNS = ("LIM-002", "LIM-003")
"""Thousands of calls each: played by `erxhub conform run`, not at every check."""
AT_ONCE = 4
"""Each case has a hub of its own, and some wait for their hub."""

Own = tuple[ErxhubHub, Path]


def a_case(function: Any) -> Case:
    """A case that is in no list."""
    return Case("X-001", 1, "0.2", "stable", True, Text("x", "测"), ("hub",), "MUST", (), function=function)


async def played(hub: target.HubTarget, cases: Iterable[Case], *, profile: str = "dev") -> tuple[list[str], list[str]]:
    """Plays cases in every suite of theirs: the checks that failed, and the cases that the hub has nothing for."""
    places = asyncio.Semaphore(AT_ONCE)

    async def play(case: Case, suite: str) -> tuple[list[str], list[str]]:
        planned, checks = Planned(case, "hub", suite, profile, 1), Checks()
        assert case.function is not None
        try:
            async with places, asyncio.timeout(60), hub.run(planned, checks) as run:
                await case.function(run)
        except CaseEnded:
            assert checks.failed
        except Unsupported:
            return [], [case.id]
        assert checks.found, f"{planned.key} checked nothing"
        return [f"{planned.key} {one.what.en}: {one.expected} / {one.actual}" for one in checks.failed], []

    found = await asyncio.gather(
        *(
            play(case, suite)
            for case in cases
            for suite in case.suites or ("ES256",)
            if profile in case.profiles and suite in hub.describe()["suites"]
        )
    )
    return [one for failed, _ in found for one in failed], [one for _, unsupported in found for one in unsupported]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    """Our own hub as a process, and the folder that it lives in."""
    folder = tmp_path_factory.mktemp("hub")
    with ErxhubHub.as_process(folder) as hub:
        operator = folder / "operator"
        operator.mkdir()
        for name in ("ca", "cert", "key"):
            (operator / f"{name}.pem").write_bytes(getattr(hub.operator, f"{name}_pem"))
        yield hub, folder


@asynccontextmanager
async def with_sandbox(own: Own) -> AsyncIterator[target.HubTarget]:
    hub, folder = own
    settings = target.TargetSettings(address=hub.target, sandbox=hub.control_target, identity_dir=folder / "operator")
    async with target.open(settings) as opened:
        yield opened


@asynccontextmanager
async def as_a_stranger(own: Own) -> AsyncIterator[target.HubTarget]:
    """The same hub by its data port alone: through the fault proxy, with certificates from a folder."""
    hub, folder = own
    async with target.open(target.TargetSettings(address=hub.target, identity_dir=folder / "home" / "pki")) as opened:
        yield opened


async def test_our_hub_passes_every_core_case_under_strict(own: Own) -> None:
    async with with_sandbox(own) as hub:
        assert await played(hub, CORE, profile="strict") == ([], [])


async def test_our_hub_passes_every_provisional_case(own: Own) -> None:
    cases = [case for case in CASES if not case.core and case.id not in CAMPAIGNS]
    async with with_sandbox(own) as hub:
        assert await played(hub, cases) == ([], [])


async def test_a_case_that_needs_a_sandbox_is_not_played_on_a_hub_without_one(own: Own) -> None:
    needing = [case for case in CASES if "sandbox" in case.needs]
    async with as_a_stranger(own) as hub:
        failed, unsupported = await played(hub, needing)
    assert failed == []
    assert unsupported == [case.id for case in needing]


# ---- a bad line ---------------------------------------------------------------------------------------


async def test_a_lost_reply_on_the_line_leaves_one_effect(own: Own) -> None:
    async def case(run: HubRun) -> None:
        journey = await run.journey().to("settled")
        await run.place.set_faults("Dispensing/Dispense nth=1 do=lose_ack")
        request = await journey.dispense_request()
        lost = await run.pharmacy.ask(request, once=True)
        run.checks.equal(lost.status, "UNAVAILABLE", en="lost", zh="丢失")
        run.accepted(await run.pharmacy.ask(request))
        await run.chain(journey.rx_no, events={"dispense.outbound": 1})

    async with as_a_stranger(own) as hub:
        assert await played(hub, [a_case(case)]) == ([], [])


@pytest.mark.parametrize(
    "rule", ["truncate_stream after_messages=3", "reorder window=4", "duplicate", "delay delay=5ms"]
)
async def test_a_watch_over_a_bad_line_still_tells_every_step(own: Own, rule: str) -> None:
    doubles: list[bool] = []

    async def case(run: HubRun) -> None:
        await run.place.set_faults(f"Prescribing/WatchPrescriptions do={rule}")
        # The second hospital has little history on this hub that would have to be followed first.
        journey = await run.journey(hospital=run.hospital_b).to("dispensed")
        messages = await follow(run, run.hospital_b, tells(journey.rx_no, "prescription.exhausted"))
        steps = once(messages, journey.rx_no)
        doubles.append(sum(one.rx_no == journey.rx_no for one in messages) > len(steps))
        told = [event for step in steps for event in step.events if event.startswith(("order.", "review."))]
        ledger = [one for one in await run.events(journey.rx_no) if one.startswith(("order.", "review."))]
        run.checks.equal(told, ledger, en="every step once, in its order", zh="每一步依次一次")

    async with as_a_stranger(own) as hub:
        assert await played(hub, [a_case(case)]) == ([], [])
    assert doubles == [rule == "duplicate"]


async def test_a_watch_that_is_cut_leaves_nothing_open_at_the_hub(own: Own) -> None:
    async def case(run: HubRun) -> None:
        await run.journey(hospital=run.hospital_b).to("effective")
        await run.place.set_faults("Prescribing/WatchPrescriptions do=truncate_stream after_messages=1")
        # More than a caller may have open at once.
        for _ in range(40):
            messages, ended = await run.hospital_b.raw.stream(
                "Prescribing/WatchPrescriptions", b"\x10\x01", count=2, timeout_s=5
            )
            run.checks.that(
                len(messages) == 1 and ended is not None and ended.code == "UNAVAILABLE",
                en="cut after one message",
                zh="一条后中断",
                actual=(len(messages), ended and ended.code),
            )

    async with as_a_stranger(own) as hub:
        assert await played(hub, [a_case(case)]) == ([], [])


# ---- a case can fail ------------------------------------------------------------------------------------


async def test_a_preparation_that_is_refused_is_a_failed_check_and_no_error_of_the_harness(own: Own) -> None:
    async def case(run: HubRun) -> None:
        await run.hospital.client.get(rx_no="no such number")

    async with with_sandbox(own) as hub:
        failed, _ = await played(hub, [a_case(case)])
    assert len(failed) == 1
    assert "a call that keeps every rule succeeds" in failed[0]


async def test_every_kind_of_check_can_fail(own: Own) -> None:
    async def case(run: HubRun) -> None:
        journey = await run.journey().to("effective")
        good = await run.hospital.ask(await run.hospital.drafts.get(rx_no=journey.rx_no))
        bad = await run.hospital.ask(await run.hospital.drafts.get(rx_no="1" * 27))
        position = await run.entries()
        await run.journey().to("visited")
        run.accepted(bad)
        run.refused(good, "RX_UNKNOWN")
        run.refused(bad, "RX_UNDO_DENIED")
        run.same_reply(good, bad)
        await run.no_effect(position)
        await run.stands(journey.rx_no, "UNDONE", "UNUSED")
        await run.on_the_wire("Prescribing/GetPrescription", outcomes={"OK": 9})
        await run.chain(journey.rx_no, events={"order.held": 1}, refusals={"RX_UNKNOWN": 1}, light="GREEN")

    async with with_sandbox(own) as hub:
        failed, _ = await played(hub, [a_case(case)])
    assert len(failed) == 10, "\n".join(failed)


async def test_a_refusal_must_have_both_sentences_and_its_field(own: Own) -> None:
    found: list[bool] = []

    async def case(run: HubRun) -> None:
        answer = await run.hospital.ask(await run.hospital.drafts.get(rx_no=""))
        assert answer.refusal is not None
        found.append(run.refused(answer, "INPUT_MALFORMED", field="rx_no"))
        found.append(run.refused(answer, "INPUT_MALFORMED", field="person_no"))
        answer.refusal.text_zh = "no Chinese"
        found.append(run.refused(answer, "INPUT_MALFORMED"))
        found.append(run.refused(Answer("x", "UNAVAILABLE"), "INPUT_MALFORMED"))

    async with with_sandbox(own) as hub:
        failed, _ = await played(hub, [a_case(case)])
    assert found == [True, False, False, False]
    assert len(failed) == 3


async def test_a_copy_that_was_altered_in_any_entry_is_found_there(own: Own) -> None:
    faults: list[tuple[int, list[int]]] = []

    async def case(run: HubRun) -> None:
        await run.journey().to("effective")
        entries = await run.copy()
        run.checks.equal(verify(entries), [], en="whole", zh="完整")
        for place, entry in enumerate(entries):
            altered = [*entries[:place], entry.with_payload_bit(), *entries[place + 1 :]]
            faults.append((entry.position, [fault.position for fault in verify(altered)]))

    async with with_sandbox(own) as hub:
        assert await played(hub, [a_case(case)]) == ([], [])
    assert len(faults) > 50
    assert all(found == [position] for position, found in faults)


async def test_the_same_seed_gives_the_same_checks_and_calls(own: Own) -> None:
    async def seen() -> list[Any]:
        found: list[Any] = []
        async with with_sandbox(own) as hub:
            for case in (one for one in CORE if one.id in ("DSP-002", "IDEM-005", "VOU-003")):
                checks = Checks()
                async with hub.run(Planned(case, "hub", "ES256", "strict", 7), checks) as run:
                    assert case.function is not None
                    await case.function(run)
                found.append([check.record() for check in checks.found])
                found.append([(one.method, one.status, one.refusal_code, one.request_id) for one in run.traffic()])
        return found

    assert await seen() == await seen()


# ---- opening --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        target.TargetSettings(address="localhost:1"),
        target.TargetSettings(address="localhost:1", sandbox="localhost:1"),
        target.TargetSettings(address="localhost:1", identity_dir=Path("no such folder")),
        target.TargetSettings(address="localhost:1", sandbox="localhost:1", identity_dir=Path("no such folder")),
    ],
)
async def test_a_hub_that_cannot_be_opened_is_unusable_and_says_why(settings: target.TargetSettings) -> None:
    with pytest.raises(target.Unusable) as failure:
        async with target.open(settings):
            pass
    assert "--identity" in failure.value.text.en
    assert "--identity" in failure.value.text.zh


async def test_a_sandbox_that_does_not_answer_is_unusable(own: Own) -> None:
    _, folder = own
    settings = target.TargetSettings(address="localhost:1", sandbox="localhost:1", identity_dir=folder / "operator")
    with pytest.raises(target.Unusable, match="does not answer"):
        async with target.open(settings):
            pass


async def test_our_own_hub_that_does_not_start_is_unusable(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where a folder has to be", encoding="utf-8")
    with pytest.raises(target.Unusable, match="did not start"):
        async with target.open(target.TargetSettings(work=tmp_path)):
            pass


# ---- the list of cases ------------------------------------------------------------------------------------


def test_every_case_has_both_titles_its_rule_and_a_status_that_fits() -> None:
    for case in CASES:
        assert case.rule, case.id
        assert case.title.en, case.id
        assert any("\u4e00" <= letter <= "\u9fff" for letter in case.title.zh), case.id
        assert case.status == ("stable" if case.first_release else "provisional"), case.id
        assert set(case.profiles) <= {"dev", "strict"}, case.id
    assert len({case.id for case in CASES}) == len(CASES)


def test_every_listed_case_of_hub_and_auditor_is_there_or_left_out_with_a_reason(shared: Path) -> None:
    def ours(row: dict[str, str]) -> bool:
        return bool({"hub", "auditor"} & set(row["under_test"].split("/")))

    with (shared / "harness" / "cases.csv").open(encoding="utf-8") as lines:
        listed = {row["id"]: row["first_release"] == "yes" for row in csv.DictReader(lines) if ours(row)}
    out = resources.files("erxhub.conform").joinpath("cases", "left_out.csv").read_text(encoding="utf-8")
    left_out = {
        row["id"] for row in csv.DictReader(out.splitlines()) if ours(row) and row["reason_zh"] and row["reason_en"]
    }
    there = {case.id: case.first_release for case in CASES}
    assert there.keys() | left_out == listed.keys()
    assert not there.keys() & left_out
    assert all(listed[one] == first for one, first in there.items())
