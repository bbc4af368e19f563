"""Every refusal of the catalogue, provoked over gRPC and judged in one way. A code without a case fails the suite."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from erxhub.core.refusals import CATALOGUE
from tests.refusals import cases_dispensing, cases_edge, cases_identity, cases_prescribing, cases_retention
from tests.refusals.bench import Bench
from tests.refusals.provoking import CASES, Case, judge

_MODULES = (cases_dispensing, cases_edge, cases_identity, cases_prescribing, cases_retention)
assert all(module.provokes for module in _MODULES)


def _later() -> dict[str, str]:
    """The codes that the documentation says no call can meet, and why."""
    path = Path(__file__).parents[2] / "docs" / "generate.py"
    specification = importlib.util.spec_from_file_location("docs_generate", path)
    assert specification is not None
    assert specification.loader is not None
    module: Any = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    later: dict[str, str] = module.LATER
    return later


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
async def test_refusal_is_told_recorded_and_changes_nothing(bench: Bench, case: Case) -> None:
    try:
        await judge(bench, case)
    finally:
        await bench.tidy()


def test_every_code_is_either_provoked_or_explained() -> None:
    provoked, later = {case.expected.code for case in CASES}, _later()
    assert provoked & later.keys() == set()
    assert CATALOGUE.keys() - provoked - later.keys() == set()
    assert later.keys() <= CATALOGUE.keys()
    assert all(later.values())
