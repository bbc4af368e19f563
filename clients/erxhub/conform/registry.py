"""Cases in code: the `@case` decorator and where it keeps them.

Owns: that such a case has the same metadata as one in a file, and says in its docstring which rule it is about.
Must never: run one.

    @case(
        id="DSP-002", revision=1, since="0.2", status="stable", first_release=True,
        title_zh="未经审方不得调配", title_en="No dispensing without a review",
        level="MUST", verifies=("RX-P-21", "INV-I3"),
    )
    async def dispensing_without_a_review(run: HubRun) -> None:
        '''P-21: a prescription is dispensed only after a pharmacist has passed it.'''
        ...
        run.checks.refused(reply, "REVIEW_REQUIRED")

What `run` offers is in `erxhub.conform.hub.run.HubRun`; `run.checks` is an `erxhub.conform.checks.Checks`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Sequence
from typing import Final

from erxhub.conform.model import PROFILES, Case, CaseFunction, Text

HUB_CASES: Final = "erxhub.conform.hub_cases"

REGISTERED: Final[list[Case]] = []
"""Every case in code, in the order of the modules; the loader looks for ids that are given twice."""


def case(
    *,
    id: str,  # noqa: A002 the word of the schema
    revision: int,
    since: str,
    status: str,
    title_zh: str,
    title_en: str,
    level: str,
    verifies: Sequence[str],
    first_release: bool = False,
    roles: Sequence[str] = ("hub",),
    needs: Sequence[str] = (),
    suites: Sequence[str] = (),
    profiles: Sequence[str] = PROFILES,
    deadline_ms: int = 0,
) -> Callable[[CaseFunction], CaseFunction]:
    """Registers an async function as a case. Its docstring names the rule; without one it is a TypeError."""

    def register(function: CaseFunction) -> CaseFunction:
        rule = inspect.getdoc(function)
        if not rule or not inspect.iscoroutinefunction(function):
            raise TypeError(f"case {id}: an async function whose docstring names the rule")
        REGISTERED.append(
            Case(
                id=id,
                revision=revision,
                since=since,
                status=status,
                first_release=first_release,
                title=Text(title_en, title_zh),
                roles=tuple(roles),
                level=level,
                verifies=tuple(verifies),
                needs=tuple(needs),
                suites=tuple(suites),
                profiles=tuple(profiles),
                deadline_ms=deadline_ms,
                function=function,
                rule=rule,
                source=f"{function.__module__.rpartition('.')[2]}.py",
            )
        )
        return function

    return register


def registered_cases() -> list[Case]:
    """Imports every module of `erxhub.conform.hub_cases`, and returns what they registered."""
    try:
        package = importlib.import_module(HUB_CASES)
    except ModuleNotFoundError as error:
        if error.name != HUB_CASES:
            raise
        return []
    for module in sorted(found.name for found in pkgutil.iter_modules(package.__path__)):
        importlib.import_module(f"{HUB_CASES}.{module}")
    return [case for case in REGISTERED if case.function is not None and case.function.__module__.startswith(HUB_CASES)]
