"""A build hook: the hub's hot modules as compiled ones, in a wheel that is built with HATCH_BUILD_HOOKS_ENABLE=1.

Owns how mypyc is called and where its files go. Which modules are compiled is in pyproject.toml, with the hook. The
wheel holds each module as .py file too: it is the same code, and what a traceback shows. Nothing is written into the
source tree, where a compiled module would go on standing in for a .py file that was edited since.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_GROUP = "erxhub_compiled"
_ROOTS = ("hub", "clients", "protos")
_OPTIMISED = "2"  # 3 takes longer to build and makes nothing faster that can be measured

_MYPY = """\
[mypy]
mypy_path = {roots}
namespace_packages = true
explicit_package_bases = true
ignore_missing_imports = true
cache_dir = {cache}
"""


class CustomBuildHook(BuildHookInterface[Any]):
    """Found by its name."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and put what came out beside the .py files of the wheel; an editable install stays as it is."""
        if version == "editable":
            return
        self._folder = TemporaryDirectory(prefix="erxhub-compiled-")
        built = Path(self._folder.name)
        _compile(Path(self.root), sorted(self._modules()), built)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        for file in (built / "lib").rglob("*"):
            if file.is_file():
                build_data["force_include"][str(file)] = file.relative_to(built / "lib").as_posix()

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """The wheel is written; what was compiled for it may go."""
        if version != "editable":
            self._folder.cleanup()

    def _modules(self) -> Iterator[str]:
        hub = Path(self.root, "hub")
        left_out = {path for pattern in self.config["interpreted"] for path in hub.glob(pattern)}
        for pattern in self.config["compiled"]:
            found = [path for path in hub.glob(pattern) if path not in left_out]
            if not found:
                raise ValueError(f"pyproject.toml: no module is found by {pattern}")
            yield from (path.relative_to(hub).as_posix() for path in found)


def _compile(root: Path, modules: list[str], built: Path) -> None:
    """The modules, paths below hub/, as extension modules below built/lib. Ends the process when they are not typed."""
    # Both are there only where a compiled wheel is built.
    from mypyc.build import mypycify
    from setuptools import Distribution

    settings = built / "mypy.ini"
    roots = ":".join(str(root / part) for part in _ROOTS)
    settings.write_text(_MYPY.format(roots=roots, cache=built / "cache"), "utf-8")
    with chdir(root / "hub"):
        extensions = mypycify(
            [f"--config-file={settings}", *modules],
            opt_level=_OPTIMISED,
            target_dir=str(built / "c"),
            group_name=_GROUP,
        )
        distribution = Distribution({"name": _GROUP, "ext_modules": extensions, "script_name": sys.argv[0]})
        build = distribution.get_command_obj("build_ext")
        build.build_lib, build.build_temp, build.parallel = str(built / "lib"), str(built / "o"), os.cpu_count()
        distribution.run_command("build_ext")
