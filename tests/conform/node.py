"""Node for tests: found, new enough, and with the packages of a lock file installed once, outside the repository.

Owns: the cache folder. Must never: write into the repository, or run a package's install script.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
PHARMACY_DRIVER = ROOT / "clients" / "javascript" / "pharmacy-driver"
NODE_MAJOR_MIN = 18
INSTALL_S = 180


def left_out(what: str, why: str) -> None:
    """Skips the test, and says so where a passing run is read too."""
    text = f"NOT TESTED: {what}: {why}"
    warnings.warn(text, stacklevel=2)
    pytest.skip(text)


def node_or_skip(what: str) -> str:
    """The path of a Node that is new enough and has npm."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        left_out(what, f"needs node >= {NODE_MAJOR_MIN} and npm, which are not installed")
    assert node is not None
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < NODE_MAJOR_MIN:
        left_out(what, f"needs node >= {NODE_MAJOR_MIN}; this is {version}")
    return node


def installed(project: Path, what: str) -> Path:
    """A copy of the project's files beside its packages, in a cache folder that its lock file names."""
    node_or_skip(what)
    lock = (project / "package-lock.json").read_bytes()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "erxhub-tests"
    packages = cache / f"node-{hashlib.sha256(lock).hexdigest()[:16]}"
    if not (packages / "installed").exists():
        packages.mkdir(parents=True, exist_ok=True)
        for name in ("package.json", "package-lock.json", ".npmrc"):
            shutil.copy(project / name, packages / name)
        npm = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        run = subprocess.run(npm, cwd=packages, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        if run.returncode != 0:
            left_out(what, f"npm ci failed: {run.stderr.strip()[-400:]}")
        (packages / "installed").touch()
    for file in project.iterdir():
        if file.suffix in (".js", ".proto"):
            shutil.copy(file, packages / file.name)
    return packages
