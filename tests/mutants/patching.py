"""One broken thing and how it is put in place: attributes are replaced, and put back where the process lives on.

Owns: what a mutant is. Must never: run one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class Patches:
    """Replaced attributes, and what they were."""

    def __init__(self) -> None:
        self._before: list[tuple[Any, str, Any]] = []

    def set(self, owner: Any, name: str, value: Any) -> Any:
        """Replaces an attribute that exists; returns what it was."""
        before = owner.__dict__[name]
        self._before.append((owner, name, before))
        setattr(owner, name, value)
        return before

    def everywhere(self, name: str, value: Any, *owners: Any) -> None:
        """The same attribute of several modules, each of which imported it by name."""
        for owner in owners:
            self.set(owner, name, value)

    def undo(self) -> None:
        """Puts everything back, the last first."""
        while self._before:
            owner, name, before = self._before.pop()
            setattr(owner, name, before)


@dataclass(frozen=True, slots=True)
class Mutant:
    """One broken thing. `role` is who is broken, `killed_by` names the cases of role `judged_as` that must catch it."""

    name: str
    role: str
    broken: str
    apply: Callable[[Patches], None]
    killed_by: tuple[str, ...]
    judged_as: str = ""

    @property
    def cases_of(self) -> str:
        """The role whose cases judge it."""
        return self.judged_as or self.role


class Table:
    """Collects mutants; each is a function whose docstring says what is broken."""

    def __init__(self) -> None:
        self._mutants: dict[str, Mutant] = {}

    def add(
        self, role: str, *killed_by: str, judged_as: str = ""
    ) -> Callable[[Callable[[Patches], None]], Callable[[Patches], None]]:
        """Registers the function under its own name."""

        def register(apply: Callable[[Patches], None]) -> Callable[[Patches], None]:
            name = apply.__name__
            broken = " ".join((apply.__doc__ or "").split()).rstrip(".")
            assert name not in self._mutants, name
            assert broken, name
            self._mutants[name] = Mutant(name, role, broken, apply, killed_by, judged_as)
            return apply

        return register

    @property
    def mutants(self) -> Mapping[str, Mutant]:
        """By name, in the order of the file."""
        return self._mutants
