"""`erxhub conform init`: a folder with which a vendor gets to the first green case.

Owns: what is written there, from the templates beside this file. Must never: overwrite or change what is there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final

from erxhub.crypto.ca import TrustDomain
from erxhub.seed import SeedWorld, identity

TRUST_DOMAIN: Final = "erxhub.test"
ROLES: Final = ("hospital", "pharmacy")

_CODES: Final = {"hospital": SeedWorld.hospital_code, "pharmacy": SeedWorld.pharmacy_code}
_ROLE_ZH: Final = {"hospital": "医疗机构", "pharmacy": "零售药店"}
_OPERATIONS: Final = {"hospital": "verify_voucher", "pharmacy": "list_available"}
_BLOCK: Final = re.compile(r"^\[\[(hospital|pharmacy)\]\]\n(.*?)^\[\[end\]\]\n", re.DOTALL | re.MULTILINE)
_NOT_FOR_VENDORS: Final = frozenset({"sandbox.proto"})


@dataclass(frozen=True, slots=True)
class Language:
    """How a driver is written in one language: its file, its command, and what it needs first."""

    file: str
    command: str
    needs_en: str
    needs_zh: str
    build: str = ""


LANGUAGES: Final = {
    "python": Language(
        "driver.py",
        "python driver.py",
        "In the environment in which erxhub is installed:",
        "在安装了 erxhub 的环境中，",
    ),
    "java": Language(
        "Driver.java",
        "java -cp . Driver",
        "With a JDK 17 or newer:",
        "安装 JDK 17 或更新版本后，",
        "javac Driver.java\n",
    ),
    "node": Language("driver.js", "node driver.js", "With Node 18 or newer:", "安装 Node 18 或更新版本后，"),
    "go": Language(
        "driver.go",
        "./driver",
        "With Go 1.21 or newer:",
        "安装 Go 1.21 或更新版本后，",
        "go build -o driver driver.go\n",
    ),
}


class FolderTaken(Exception):
    """Something of that name is there already; nothing was written. `paths` are what stands in the way."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__(", ".join(map(str, paths)))
        self.paths = paths


def write_skeleton(folder: Path, *, role: str, language: str, now_ms: int) -> list[Path]:
    """Writes driver, protos, certificates and README, and returns the files' paths; `now_ms` dates the certificates.

    Raises FolderTaken, OSError.
    """
    files = dict(_files(role, LANGUAGES[language]))
    targets = [folder / name for name in files]
    taken = [path for path in (*targets, folder / "home") if path.exists() or path.is_symlink()]
    if taken:
        raise FolderTaken(taken)
    for path, content in zip(targets, files.values(), strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8", newline="\n") as file:
            file.write(content)
    pki = folder / "home" / "pki"
    held = identity(TrustDomain.init(pki, TRUST_DOMAIN, now_ms), role, _CODES[role], now_ms, directory=pki)
    assert held.path is not None, "an identity of a folder has files"
    return [*targets, *sorted(held.path.iterdir())]


def _files(role: str, language: Language) -> Iterator[tuple[str, str]]:
    """Name below the folder, and content."""
    templates = resources.files("erxhub.conform").joinpath("templates")
    yield "README.md", _filled(templates.joinpath("README.md.tmpl"), role, language)
    yield ".gitignore", templates.joinpath("gitignore.tmpl").read_text(encoding="utf-8")
    name = next(name for name, one in LANGUAGES.items() if one is language)
    yield language.file, _filled(templates.joinpath(name, f"{language.file}.tmpl"), role, language)
    for file in sorted(resources.files("erxhub.v1").iterdir(), key=lambda one: one.name):
        if file.name.endswith(".proto") and file.name not in _NOT_FOR_VENDORS:
            yield f"protos/erxhub/v1/{file.name}", file.read_text(encoding="utf-8")
    yield "protos/buf/validate/validate.proto", _validation_rules().read_text(encoding="utf-8")


def _validation_rules() -> Traversable:
    """The published validation rules: in an installed package beside their code, in a checkout beside the package."""
    packaged = resources.files("erxhub._vendor").joinpath("buf", "validate", "validate.proto")
    if packaged.is_file():
        return packaged
    package = resources.files("erxhub.v1")
    assert isinstance(package, Path), "a checkout is a folder"
    return package.parents[1] / "buf" / "validate" / "validate.proto"


def _filled(template: Traversable, role: str, language: Language) -> str:
    text = template.read_text(encoding="utf-8")
    text = _BLOCK.sub(lambda block: block[2] if block[1] == role else "", text)
    values = {
        "role": role,
        "role_zh": _ROLE_ZH[role],
        "operation": _OPERATIONS[role],
        "code": _CODES[role],
        "file": language.file,
        "command": language.command,
        "needs_en": language.needs_en,
        "needs_zh": language.needs_zh,
        "build": language.build,
    }
    for name, value in values.items():
        text = text.replace("{{" + name + "}}", value)
    return text
