"""Walks the syntax tree of hub/ and clients/ and says where a house rule is broken.

The rules: time, ids and randomness come in through the ports; SQL lives in the ledger; the core is pure;
statuses change in two files; layers know only the layers below them; compiled modules do not wait while
they handle an error. Each rule has its own counter-examples at the end, so that a rule that has gone blind fails too.
"""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCE_ROOTS = ("hub", "clients")


class Finding(NamedTuple):
    rule: str
    path: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.what}"


class Source:
    """One parsed file: its path below the root, its tree, and what its imported names stand for."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.module = ".".join(PurePosixPath(path).with_suffix("").parts[1:]).removesuffix(".__init__")
        self.tree = ast.parse(text, path)
        self.imports = list(self._imports())
        self.names = {bound: full for bound, full, _ in self.imports}

    def _imports(self) -> Iterator[tuple[str, str, int]]:
        """(bound name, full dotted name, line) of every import, wherever in the file it stands."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    bound = alias.asname or alias.name.split(".")[0]
                    yield bound, alias.name if alias.asname else bound, node.lineno
                    if not alias.asname and "." in alias.name:
                        yield f"import {alias.name}", alias.name, node.lineno
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    package = self.module.split(".")
                    keep = len(package) - node.level + self.path.endswith("/__init__.py")
                    base = ".".join([*package[:keep], *([base] if base else [])])
                for alias in node.names:
                    yield alias.asname or alias.name, f"{base}.{alias.name}", node.lineno

    def dotted(self, node: ast.expr) -> str | None:
        """The full dotted name that an expression stands for, or None when it does not begin at an import."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id)
        if isinstance(node, ast.Attribute):
            base = self.dotted(node.value)
            return f"{base}.{node.attr}" if base else None
        return None


def _below(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


# --- time, ids and randomness come in through the ports -------------------------------------------

PORTS = "hub/erxhub/ports.py"
CLOCK_AND_CHANCE = frozenset(
    {
        *(f"time.{name}" for name in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter")),
        *(f"time.{name}" for name in ("perf_counter_ns", "sleep", "localtime", "gmtime", "ctime")),
        *(f"datetime.datetime.{name}" for name in ("now", "utcnow", "today")),
        "datetime.date.today",
        "asyncio.sleep",
        "os.urandom",
        "os.getrandom",
    }
)
CHANCE_MODULES = ("uuid", "random", "secrets")
LOOP_CLOCK = "the event loop's time()"
# The loop's own clock measures durations (deadlines, linger), never instants: edge and lane may read it.
LOOP_CLOCK_ALLOWED = ("hub/erxhub/rpc/", "hub/erxhub/engine.py", PORTS)

# (file, what) -> why it is right there. An allowance that nothing uses any more fails the suite.
ALLOWED: dict[tuple[str, str], str] = {
    ("clients/erxhub/client/environment.py", "asyncio.sleep"): "the client library's one place that waits",
    ("clients/erxhub/client/environment.py", "secrets.randbelow"): "the client library's one source of chance",
    ("clients/erxhub/client/environment.py", "time.time_ns"): "the client library's one clock",
}


def clock_and_chance(source: Source) -> Iterator[Finding]:
    if source.path == PORTS:
        return
    rule = "time and ids come in through ports"
    for _, full, line in source.imports:
        if full in CLOCK_AND_CHANCE or _below(full, *CHANCE_MODULES):
            yield Finding(rule, source.path, line, full)
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute):
            full_name = source.dotted(node)
            if full_name and (full_name in CLOCK_AND_CHANCE or _below(full_name, *CHANCE_MODULES)):
                yield Finding(rule, source.path, node.lineno, full_name)
        elif isinstance(node, ast.Call) and _is_forbidden_loop_clock(source, node):
            yield Finding(rule, source.path, node.lineno, LOOP_CLOCK)


def _is_forbidden_loop_clock(source: Source, call: ast.Call) -> bool:
    function = call.func
    if not isinstance(function, ast.Attribute) or function.attr != "time" or call.args:
        return False
    if source.path.startswith(LOOP_CLOCK_ALLOWED):
        return False
    owner = function.value
    if isinstance(owner, ast.Call):
        return (source.dotted(owner.func) or "").startswith("asyncio.get_")
    name = owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else ""
    return name.lstrip("_").endswith("loop")


# --- SQL lives in the ledger ----------------------------------------------------------------------

LEDGER = "hub/erxhub/ledger/"
SQL_TEXT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|PRAGMA)\s")


def sql(source: Source) -> Iterator[Finding]:
    if source.path.startswith(LEDGER):
        return
    rule = "SQL lives in the ledger"
    for _, full, line in source.imports:
        if _below(full, "sqlite3", "aiosqlite", "asyncpg"):
            yield Finding(rule, source.path, line, f"import of {full}")
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(source.tree):
        if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or id(node) in docstrings:
            continue
        if SQL_TEXT.match(node.value):
            yield Finding(rule, source.path, node.lineno, repr(node.value[:40]))


# --- the core is pure -----------------------------------------------------------------------------

CORE = "hub/erxhub/core/"
IMPURE_CHANCE = frozenset({"random", "secrets", "time", "uuid"})
IMPURE_OUTSIDE = frozenset({"http", "logging", "shutil", "socket", "sqlite3", "ssl", "tempfile", "urllib"})
IMPURE_PARALLEL = frozenset({"asyncio", "concurrent", "multiprocessing", "signal", "subprocess", "threading"})
IMPURE = IMPURE_CHANCE | IMPURE_OUTSIDE | IMPURE_PARALLEL
CORE_MAY_IMPORT = ("google.protobuf", "erxhub.v1", "erxhub.core", "erxhub.policy")


def pure_core(source: Source) -> Iterator[Finding]:
    if not source.path.startswith(CORE):
        return
    for bound, full, line in source.imports:
        top = full.split(".")[0]
        pure_standard = top in sys.stdlib_module_names and top not in IMPURE
        # `import google.protobuf.message` binds the name `google` as well.
        namespace_only = bound == full and full in ("erxhub", "google")
        if not pure_standard and not namespace_only and not _below(full, *CORE_MAY_IMPORT):
            yield Finding("the core is pure", source.path, line, f"import of {full}")


# --- a state change is a row of the lifecycle -----------------------------------------------------

STATUS_FIELDS = frozenset({"status", "rx_status", "review_status", "use_status", "state"})
STATUS_WRITERS = CORE + "fold_"


def transitions(source: Source) -> Iterator[Finding]:
    if not source.path.startswith(CORE) or source.path.startswith(STATUS_WRITERS):
        return
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and node.attr in STATUS_FIELDS:
            yield Finding("a status changes in the folds alone", source.path, node.lineno, node.attr)


# --- layers know the layers below them ------------------------------------------------------------

TREE_AND_MAP = tuple(f"erxhub.proof.{name}" for name in ("hashing", "merkle", "pages", "records", "tiles"))
# The only parts of this project that these may import.
MAY_IMPORT = {
    "erxhub.core": ("erxhub.core", "erxhub.policy", "erxhub.v1"),
    "erxhub.crypto": ("erxhub.crypto",),
    # The shape of tree and map, over which each store has statements of its own; these know nothing of stores.
    "erxhub.ledger": ("erxhub.ledger", "erxhub.v1", *TREE_AND_MAP),
    **dict.fromkeys(TREE_AND_MAP, TREE_AND_MAP),
    "erxhub.client": ("erxhub.client", "erxhub.crypto", "erxhub.v1"),
}
# Each may import those behind it.
LANE = ("erxhub.engine", "erxhub.loading", "erxhub.deciding", "erxhub.jobs")
# The rest of the hub may import any hub module except as said here; the command line may import anything.
MUST_NOT_IMPORT = {
    "erxhub.policy": ("erxhub.ledger", "erxhub.rpc", *LANE, "erxhub.admission", "erxhub.app"),
    **{module: (*LANE[:place], "erxhub.rpc", "erxhub.app") for place, module in enumerate(LANE)},
    "erxhub.admission": ("erxhub.rpc", *LANE, "erxhub.app"),
    "erxhub.queries": ("erxhub.rpc", *LANE, "erxhub.app"),
    "erxhub.rpc": ("erxhub.app",),
}


def layers(source: Source) -> Iterator[Finding]:
    for bound, full, line in source.imports:
        if not _below(full, "erxhub") or bound == full == "erxhub":
            continue
        for layer, allowed in MAY_IMPORT.items():
            if _below(source.module, layer) and not _below(full, *allowed):
                yield Finding("layers", source.path, line, f"{layer} imports {full}")
        for layer, forbidden in MUST_NOT_IMPORT.items():
            if _below(source.module, layer) and _below(full, *forbidden):
                yield Finding("layers", source.path, line, f"{layer} imports {full}")
        if source.path.startswith("hub/") and _below(full, "erxhub.client", "erxhub.cli"):
            yield Finding("layers", source.path, line, f"the hub imports {full}")


# --- what a compiled module may not do with errors -------------------------------------------------

WAITS = (ast.Await, ast.Yield, ast.YieldFrom, ast.AsyncFor, ast.AsyncWith)
COMPILED = ("compiled", "interpreted")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@cache
def compiled_modules() -> frozenset[str]:
    """The files that `make compiled` compiles, by pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    hook = project["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]
    found, left_out = ({path for pattern in hook[name] for path in (ROOT / "hub").glob(pattern)} for name in COMPILED)
    return frozenset(path.relative_to(ROOT).as_posix() for path in found - left_out)


def waits_while_handling(source: Source) -> Iterator[Finding]:
    """mypyc (2.4) leaves the error that is being handled with the thread, where every other task would meet it."""
    if source.path not in compiled_modules():
        return
    rule = "a compiled module waits for nothing while it handles an error"
    for node in ast.walk(source.tree):
        if isinstance(node, ast.AsyncWith):  # its end is awaited while the error is handled
            yield Finding(rule, source.path, node.lineno, "async with")
        if isinstance(node, ast.Try | ast.TryStar):
            for body in (*(handler.body for handler in node.handlers), node.finalbody):
                yield from (Finding(rule, source.path, line, "await") for line in _waits(body))


def _waits(body: Sequence[ast.AST]) -> Iterator[int]:
    left = list(body)
    while left:
        node = left.pop()
        if isinstance(node, FUNCTIONS):
            continue
        if isinstance(node, WAITS):
            yield node.lineno
        left += ast.iter_child_nodes(node)


def errors_of_one_name(source: Source) -> Iterator[Finding]:
    """mypyc (2.4) takes the type of the first for the second, and a TypeError stands in for the error that came."""
    if source.path not in compiled_modules():
        return
    for function in ast.walk(source.tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        caught: dict[str, str] = {}
        for node in ast.walk(function):
            if not isinstance(node, ast.ExceptHandler) or not node.name or not node.type:
                continue
            kind = ast.unparse(node.type)
            if caught.setdefault(node.name, kind) != kind:
                rule = "in a compiled module errors of two types have two names"
                yield Finding(rule, source.path, node.lineno, node.name)


RULES = (clock_and_chance, sql, pure_core, transitions, layers, waits_while_handling, errors_of_one_name)


def findings(source: Source) -> list[Finding]:
    return sorted({finding for rule in RULES for finding in rule(source)})


@cache
def sources() -> Sequence[Source]:
    paths = sorted(path for root in SOURCE_ROOTS for path in (ROOT / root).rglob("*.py"))
    return [Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in paths]


@pytest.fixture(scope="module")
def found() -> list[Finding]:
    return [finding for source in sources() for finding in findings(source)]


def test_there_is_something_to_check() -> None:
    assert len(sources()) > 5


def test_every_source_keeps_the_house_rules(found: list[Finding]) -> None:
    broken = [str(finding) for finding in found if (finding.path, finding.what) not in ALLOWED]
    assert not broken, "\n" + "\n".join(broken)


def test_every_allowance_is_used_and_has_a_reason(found: list[Finding]) -> None:
    used = {(finding.path, finding.what) for finding in found}
    assert ALLOWED.keys() <= used
    assert all(reason.strip() for reason in ALLOWED.values())


def test_the_namespace_package_has_no_init_file() -> None:
    assert not [root for root in (*SOURCE_ROOTS, "protos") if (ROOT / root / "erxhub/__init__.py").exists()]


# --- the rules see what they are meant to see -----------------------------------------------------

BROKEN = [
    ("hub/erxhub/engine.py", "import time\nt = time.time()"),
    ("hub/erxhub/engine.py", "import time as clock\nf = clock.monotonic"),
    ("hub/erxhub/engine.py", "from time import sleep"),
    ("hub/erxhub/engine.py", "from datetime import datetime\nd = datetime.now()"),
    ("hub/erxhub/engine.py", "import datetime\nd = datetime.date.today()"),
    ("hub/erxhub/engine.py", "import uuid"),
    ("hub/erxhub/engine.py", "from secrets import token_hex"),
    ("hub/erxhub/engine.py", "def f():\n    import random\n    return random.random()"),
    ("hub/erxhub/engine.py", "import os\nb = os.urandom(16)"),
    ("hub/erxhub/rpc/server.py", "import asyncio\nasync def f():\n    await asyncio.sleep(1)"),
    ("hub/erxhub/queries.py", "import asyncio\nt = asyncio.get_running_loop().time()"),
    ("hub/erxhub/queries.py", "def f(self):\n    return self._loop.time()"),
    ("hub/erxhub/engine.py", "async def f():\n    try:\n        g()\n    except OSError:\n        await h()"),
    (
        "hub/erxhub/engine.py",
        "async def f():\n    try:\n        g()\n    finally:\n        if h:\n            await h()",
    ),
    ("hub/erxhub/core/fold.py", "def f():\n    try:\n        g()\n    except OSError:\n        yield 1"),
    ("hub/erxhub/rpc/calls.py", "async def f():\n    async with g():\n        h()"),
    (
        "hub/erxhub/engine.py",
        "def f():\n    try:\n        g\n    except OSError as e:\n        h\n    except KeyError as e:\n        h",
    ),
    ("clients/erxhub/client/calls.py", "import uuid"),
    ("hub/erxhub/engine.py", "import sqlite3"),
    ("clients/erxhub/cli/main.py", "import aiosqlite"),
    ("hub/erxhub/queries.py", "q = 'SELECT 1 FROM entry'"),
    ("hub/erxhub/queries.py", "q = f'''\n  PRAGMA {x}'''"),
    ("hub/erxhub/core/fold.py", "import logging"),
    ("hub/erxhub/core/fold.py", "import grpc"),
    ("hub/erxhub/core/fold.py", "from erxhub.ledger import entry"),
    ("hub/erxhub/core/fold.py", "from ..crypto import suites"),
    ("hub/erxhub/core/fold.py", "from cryptography import x509"),
    ("hub/erxhub/core/fold.py", "import erxhub.engine"),
    ("hub/erxhub/core/prescription.py", "def f(rx):\n    rx.use_status = 3"),
    ("hub/erxhub/core/fold.py", "def f(rx):\n    rx.status = 3"),
    ("hub/erxhub/core/lifecycle.py", "def f(rx):\n    rx.status = 3"),
    ("hub/erxhub/core/prescription.py", "def f(rx):\n    rx.order.state += 1"),
    ("hub/erxhub/core/prescription.py", "def f(rx):\n    rx.state, a = 1, 2"),
    ("hub/erxhub/ledger/sqlite.py", "from erxhub.core import fold"),
    ("hub/erxhub/crypto/ca.py", "from erxhub import config"),
    ("hub/erxhub/policy/pack.py", "from erxhub.engine import Lane"),
    ("hub/erxhub/queries/base.py", "from erxhub.deciding import Decider"),
    ("hub/erxhub/jobs.py", "from erxhub.deciding import Decider"),
    ("hub/erxhub/deciding.py", "from erxhub.loading import Loader"),
    ("hub/erxhub/loading.py", "from erxhub import engine"),
    ("hub/erxhub/rpc/server.py", "from erxhub.app import main"),
    ("hub/erxhub/app.py", "from erxhub.client import hospital"),
    ("clients/erxhub/client/calls.py", "from erxhub.core import refusals"),
    ("clients/erxhub/client/calls.py", "from erxhub import ports"),
]
KEPT = [
    ("hub/erxhub/ports.py", "import time, secrets\nt = time.time_ns()\nb = secrets.token_bytes(32)"),
    ("hub/erxhub/engine.py", "import asyncio\nt = asyncio.get_running_loop().time()"),
    ("hub/erxhub/engine.py", "def f(clock):\n    return clock.time()"),
    (
        "hub/erxhub/engine.py",
        "async def f():\n    try:\n        await g()\n    except OSError:\n        h()\n    await h()",
    ),
    ("hub/erxhub/rpc/streams.py", "async def f():\n    try:\n        g()\n    finally:\n        await h()"),
    ("hub/erxhub/engine.py", "from datetime import UTC, datetime\nd = datetime.fromtimestamp(0, UTC)"),
    ("hub/erxhub/ledger/sqlite.py", "import aiosqlite\nq = 'SELECT 1'"),
    ("hub/erxhub/queries.py", "'''SELECT is a word of a docstring.'''\nq = 'Select a pharmacy'"),
    ("hub/erxhub/core/fold.py", "from google.protobuf import message\nfrom erxhub.v1 import x_pb2"),
    ("hub/erxhub/core/fold.py", "import google.protobuf.message\nimport erxhub.core.events"),
    ("hub/erxhub/core/fold.py", "import hashlib\nfrom . import lifecycle"),
    ("hub/erxhub/core/fold_order.py", "def f(rx):\n    rx.status = 3"),
    ("hub/erxhub/core/prescription.py", "def f(rx):\n    state = rx.state\n    return state"),
    ("clients/erxhub/client/calls.py", "from erxhub.crypto import suites\nfrom erxhub.v1 import x_pb2"),
    ("clients/erxhub/cli/demo.py", "from erxhub.app import Hub\nfrom erxhub.ledger import verify"),
]


@pytest.mark.parametrize(("path", "text"), BROKEN)
def test_a_broken_rule_is_seen(path: str, text: str) -> None:
    assert findings(Source(path, text))


@pytest.mark.parametrize(("path", "text"), KEPT)
def test_a_kept_rule_is_left_alone(path: str, text: str) -> None:
    assert not findings(Source(path, text))
