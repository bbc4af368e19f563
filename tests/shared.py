"""Finds the shared data folder (real code lists, scenarios, vectors), which users of a clone do not have.

Tests take the `shared` fixture. A module that needs the folder while it is collected (for parameters)
calls `shared_or_skip()`. Either way a missing folder skips with `ABSENT`, and the run ends with a list
of those tests.
"""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
VARIABLE = "ERXHUB_SHARED"
ABSENT = f"the shared folder is absent (set {VARIABLE})"


def shared_folder() -> Path | None:
    """The folder that ERXHUB_SHARED names, by default `shared` beside the clone; None if it is not there."""
    folder = Path(os.environ.get(VARIABLE) or ROOT.parent / "shared")
    return folder.resolve() if folder.is_dir() else None


def shared_or_skip() -> Path:
    """The folder; skips the calling test, or the whole module when called at its top."""
    folder = shared_folder()
    if folder is None:
        pytest.skip(ABSENT, allow_module_level=True)
    return folder
