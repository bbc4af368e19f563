"""The pharmacy driver on Node: a stranger's product, from the published .proto files alone, passes the core profile."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from erxhub.conform.load import load_suite
from erxhub.conform.model import Verdict
from erxhub.conform.runner import run_suite
from erxhub.conform.settings import Settings
from tests.conform.ending import ends_with_its_input
from tests.conform.node import PHARMACY_DRIVER, PROTOS, installed

WHAT = "the pharmacy driver on Node"


@pytest.fixture(scope="module")
def main_js() -> Path:
    return installed(PHARMACY_DRIVER, WHAT) / "main.js"


async def _run(main_js: Path, folder: Path, **settings: Any) -> dict[str, Verdict]:
    driver = shlex.join(["env", f"ERXHUB_PROTOS={PROTOS}", "node", str(main_js)])
    result = await run_suite(load_suite(), Settings(role="pharmacy", folder=folder, driver=driver, **settings))
    return {one.key: one.verdict for one in result.results if one.verdict is not Verdict.SKIP}


async def test_the_core_profile_passes_but_for_the_suite_that_node_does_not_have(main_js: Path, tmp_path: Path) -> None:
    verdicts = await _run(main_js, tmp_path, selection="core")
    passed = [key for key, verdict in verdicts.items() if verdict is Verdict.PASS]
    others = {key: verdict for key, verdict in verdicts.items() if verdict is not Verdict.PASS}
    assert all(key.endswith("@SM2-SM3") and verdict is Verdict.UNSUPPORTED for key, verdict in others.items()), others
    core = [case.id for case in load_suite().cases if case.core and "pharmacy" in case.roles]
    assert {key.partition("@")[0] for key in passed} == set(core)


async def test_repeats_lost_answers_and_crashes_pass_under_the_chaos_profile_too(main_js: Path, tmp_path: Path) -> None:
    verdicts = await _run(main_js, tmp_path, profile="chaos", patterns=("IDEM-0*", "EVT-00[23]", "DSP-01*"))
    assert set(verdicts.values()) == {Verdict.PASS}, verdicts


def _answers(main_js: Path, *lines: bytes) -> list[dict[str, Any]]:
    run = subprocess.run(
        ["node", str(main_js)],
        input=b"".join(line + b"\n" for line in lines),
        capture_output=True,
        env=os.environ | {"ERXHUB_PROTOS": str(PROTOS)},
        timeout=30,
        check=True,
    )
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_bad_lines_and_unknown_operations_are_answered_and_it_goes_on(main_js: Path) -> None:
    answers = _answers(
        main_js,
        b"{no json",
        b"[1, 2]",
        b'{"id": 1, "op": "fly"}',
        b'{"id": 2, "op": "toString"}',
        b'{"id": 3, "op": "dispense", "args": {"rx_no": "1"}}',
        b'{"id": 4, "op": "configure", "args": {"target": "localhost:1"}}',
        b'{"id": 5, "op": "describe"}',
        b'{"id": 6, "op": "shutdown"}',
        b'{"id": 7, "op": "describe"}',
    )
    assert [one.get("error", {}).get("code") for one in answers[:6]] == [
        "bad_request",
        "bad_request",
        "unsupported",
        "unsupported",
        "bad_request",
        "bad_request",
    ]
    assert answers[6]["result"]["role"] == "pharmacy"
    assert answers[7] == {"id": 6, "result": {"outcome": "ok"}}
    assert len(answers) == 8, "after shutdown it answers nothing"


def test_it_ends_when_its_input_does(main_js: Path, tmp_path: Path) -> None:
    ends_with_its_input(f"node {main_js}", "pharmacy", tmp_path / "ending", ERXHUB_PROTOS=str(PROTOS))


@pytest.mark.parametrize("place", ["package-lock.json", "package.json", ".npmrc"])
def test_no_registry_is_named(place: str) -> None:
    text = (PHARMACY_DRIVER / place).read_text(encoding="utf-8").lower()
    settings = [line for line in text.splitlines() if "omit-lockfile-registry-resolved" not in line]
    assert [line for line in settings if "registry" in line or '"resolved"' in line or "_auth" in line] == []


def test_it_needs_two_packages_and_none_of_this_projects() -> None:
    package = json.loads((PHARMACY_DRIVER / "package.json").read_text(encoding="utf-8"))
    assert set(package["dependencies"]) == {"@grpc/grpc-js", "@grpc/proto-loader"}
    lock = json.loads((PHARMACY_DRIVER / "package-lock.json").read_text(encoding="utf-8"))
    assert all("integrity" in one for name, one in lock["packages"].items() if name), "every package is pinned"
