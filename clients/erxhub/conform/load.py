"""Reads the cases: those in files against their schema, those in code from the registry.

Owns: what makes a case bad. A bad case is a `Problem` and never an exception, so that the others run. Must never: run
one, or read a file outside the folders that it is given.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Final, NamedTuple

import protovalidate
import yaml
from google.protobuf import json_format

from erxhub.conform.model import PROFILES, Case, Text
from erxhub.conform.registry import registered_cases
from erxhub.conform.script import script_problems
from erxhub.harness.v1 import case_pb2

FILE_BYTES_MAX: Final = 1_000_000
REQUIREMENT_COLUMNS: Final = (
    "set",
    "id",
    "document",
    "requirement_en",
    "requirement_zh",
    "conformance",
    "actors",
    "source",
    "not_tested",
)


class Problem(NamedTuple):
    """What is wrong with a case, and where. `case_id` and `roles` are empty where the file does not say."""

    file: str
    case_id: str
    where: str
    code: str
    text: Text
    roles: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.file}: {self.case_id or '?'}{f': {self.where}' if self.where else ''}: {self.text.en}"


@dataclass(frozen=True, slots=True)
class Requirement:
    """One row of requirements.csv."""

    id: str
    row: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Suite:
    """Every good case, in order of id, and what was wrong with the others."""

    cases: tuple[Case, ...]
    problems: tuple[Problem, ...]
    requirements: Mapping[str, Requirement]


class _StrictLoader(yaml.SafeLoader):
    """YAML with few surprises: no key twice, no dates, no yes and no, no octal numbers."""


def _mapping(loader: _StrictLoader, node: yaml.MappingNode) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise yaml.constructor.ConstructorError(None, None, f"a key is text, not {key!r}", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        seen[key] = loader.construct_object(value_node, deep=True)
    return seen


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)
_StrictLoader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"^(?:true|false)$", "tf"),
    ("tag:yaml.org,2002:int", r"^-?(?:0|[1-9][0-9]*)$", "-0123456789"),
    ("tag:yaml.org,2002:float", r"^-?(?:0|[1-9][0-9]*)[.][0-9]+$", "-0123456789"),
    ("tag:yaml.org,2002:null", r"^(?:null|)$", ["n", ""]),
):
    _StrictLoader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))


def load_requirements(source: Traversable | Path | None = None) -> dict[str, Requirement]:
    """The requirements by id. Raises ValueError for a file without the columns or with an id twice."""
    place = source or resources.files("erxhub.conform").joinpath("spec", "requirements.csv")
    with place.open(encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if tuple(reader.fieldnames or ()) != REQUIREMENT_COLUMNS:
            raise ValueError(f"{place}: the columns are {', '.join(REQUIREMENT_COLUMNS)}")
        found: dict[str, Requirement] = {}
        for row in reader:
            if row["id"] in found:
                raise ValueError(f"{place}: {row['id']} is given twice")
            found[row["id"]] = Requirement(row["id"], row)
    return found


def load_suite(
    files: Iterable[Traversable | Path] | None = None,
    *,
    in_code: Iterable[Case] | None = None,
    requirements: Mapping[str, Requirement] | None = None,
) -> Suite:
    """Reads everything; by default what is installed. Raises ValueError for a bad requirements.csv only."""
    if files is None:
        folder = resources.files("erxhub.conform").joinpath("cases")
        files = sorted((one for one in folder.iterdir() if one.name.endswith(".yaml")), key=lambda one: one.name)
    wanted = load_requirements() if requirements is None else requirements
    problems: list[Problem] = []
    cases: list[Case] = []
    for file in files:
        read = _read_file(file, problems)
        cases += [case for case in read if _is_good(case, wanted, problems)]
    for case in registered_cases() if in_code is None else in_code:
        if _is_good(case, wanted, problems):
            cases.append(case)
    return Suite(tuple(sorted(_unique(cases, problems), key=_order)), tuple(problems), wanted)


def _order(case: Case) -> tuple[str, tuple[str, ...]]:
    return case.id, case.roles


def _unique(cases: Iterable[Case], problems: list[Problem]) -> Iterator[Case]:
    """A case whose id is taken for one of its roles is left out; the first one stands."""
    taken: dict[tuple[str, str], Case] = {}
    for case in cases:
        double = next((taken[case.id, role] for role in case.roles if (case.id, role) in taken), None)
        if double is not None:
            text = Text(
                f"the id {case.id} is given twice, also in {double.source}",
                f"用例编号 {case.id} 重复，另见 {double.source}",
            )
            problems.append(Problem(case.source, case.id, "id", "CASE_ID_TWICE", text, case.roles))
            continue
        taken.update({(case.id, role): case for role in case.roles})
        yield case


def _is_good(case: Case, requirements: Mapping[str, Requirement], problems: list[Problem]) -> bool:
    found = [
        Problem(
            case.source,
            case.id,
            "verifies",
            "CASE_REQUIREMENT",
            Text(f"there is no requirement {one}", f"需求编号 {one} 不存在"),
            case.roles,
        )
        for one in case.verifies
        if one not in requirements
    ]
    if case.function is not None:
        found += [
            Problem(case.source, case.id, where, "CASE_SCHEMA", Text(en, zh), case.roles)
            for where, en, zh in _schema_problems(_metadata_of(case))
        ]
    for role, play in case.plays.items():
        found += [
            Problem(case.source, case.id, where, "CASE_SCRIPT", Text(f"{role}: {en}", f"{role}：{zh}"), (role,))
            for where, en, zh in script_problems(role, play)
        ]
    problems += found
    return not found


def _read_file(file: Traversable | Path, problems: list[Problem]) -> list[Case]:
    def bad(en: str, zh: str, code: str = "CASE_FILE", case_id: str = "", where: str = "") -> None:
        problems.append(Problem(file.name, case_id, where, code, Text(en, zh)))

    try:
        data = file.read_bytes()
        if len(data) > FILE_BYTES_MAX:
            raise ValueError(f"the file is larger than {FILE_BYTES_MAX} bytes")
        read = yaml.load(data.decode("utf-8"), _StrictLoader)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        bad(f"the file cannot be read: {' '.join(str(error).split())}", f"无法读取用例文件：{type(error).__name__}")
        return []
    if not isinstance(read, dict) or set(read) != {"cases"} or not isinstance(read["cases"], list):
        bad("a file is a list under `cases` and nothing else", "用例文件只能是 `cases` 下的列表")
        return []
    cases = []
    for place, raw in enumerate(read["cases"]):
        case_id = str(raw.get("id", "")) if isinstance(raw, dict) else ""
        try:
            if not isinstance(raw, dict):
                raise json_format.ParseError("a case is a mapping")
            parsed = json_format.ParseDict(raw, case_pb2.Case())
            found = list(_schema_problems(parsed))
            for where, en, zh in found:
                bad(en, zh, "CASE_SCHEMA", case_id, where)
            if not found:
                cases.append(_case_of(parsed, file.name))
        except json_format.ParseError as error:
            bad(str(error), f"与用例格式不符：{error}", "CASE_SCHEMA", case_id, f"cases[{place}]")
        except ValueError as error:
            bad(str(error), f"用例不完整：{error}", "CASE_SCHEMA", case_id, f"cases[{place}]")
    return cases


def _schema_problems(case: case_pb2.Case) -> Iterator[tuple[str, str, str]]:
    """(where, English, Chinese) of everything that the schema does not allow."""
    try:
        protovalidate.validate(case)
    except protovalidate.ValidationError as error:
        for violation in error.violations:
            where = _path(violation)
            said = violation.proto.message or violation.proto.rule_id
            yield where, f"{where}: {said}", f"{where} 不符合格式：{said}"


def _metadata_of(case: Case) -> case_pb2.Case:
    """A case in code as the schema has it, without any script."""
    return case_pb2.Case(
        id=case.id,
        revision=case.revision,
        since=case.since,
        status=case.status,
        first_release=case.first_release,
        title=case_pb2.Text(zh=case.title.zh, en=case.title.en),
        roles=case.roles,
        level=case.level,
        verifies=case.verifies,
        needs=case.needs,
        axes=case_pb2.Axes(suite=case.suites),
        profiles=case.profiles,
        deadline_ms=case.deadline_ms,
    )


def _path(violation: Any) -> str:
    parts = []
    for element in violation.proto.field.elements:
        subscript = element.subscript
        parts.append(element.field_name + (f"[{subscript.value}]" if subscript else ""))
    return ".".join(parts)


def _case_of(parsed: case_pb2.Case, source: str) -> Case:
    """Raises ValueError when the parts and the roles do not go together."""
    roles = tuple(parsed.roles)
    whole = bool(parsed.steps)
    if whole == bool(parsed.by_role):
        raise ValueError("a case has either steps or by_role")
    if "hub" in roles:
        raise ValueError("a case for the role hub is written in code")
    if whole:
        play = case_pb2.Play(given=parsed.given, steps=parsed.steps, expect=parsed.expect, also_ok=parsed.also_ok)
        plays = dict.fromkeys(roles, play)
    else:
        if set(parsed.by_role) != set(roles) or parsed.HasField("given") or parsed.HasField("expect") or parsed.also_ok:
            raise ValueError(
                "by_role has exactly the roles of the case, and stands in place of given, expect and also_ok"
            )
        plays = {role: parsed.by_role[role] for role in roles}
    return Case(
        id=parsed.id,
        revision=parsed.revision,
        since=parsed.since,
        status=parsed.status,
        first_release=parsed.first_release,
        title=Text(parsed.title.en, parsed.title.zh),
        roles=roles,
        level=parsed.level,
        verifies=tuple(parsed.verifies),
        needs=tuple(parsed.needs),
        suites=tuple(parsed.axes.suite),
        profiles=tuple(parsed.profiles) or PROFILES,
        deadline_ms=parsed.deadline_ms,
        plays=plays,
        source=source,
    )
