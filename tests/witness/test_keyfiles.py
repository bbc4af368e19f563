"""A witness's folder: made as a whole or made again, and whoever finds half of one is told what to do."""

from __future__ import annotations

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from erxhub.witness.keyfiles import KEY_FILE, VKEY_FILE, WitnessFilesError, load_witness, make_witness

NAME = "witness.test/1"


class Ended(Exception):
    """The process ends here."""


def test_keygen_that_ends_between_any_two_steps_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = ("open", "fsync", "replace")
    really = {step: getattr(os, step) for step in steps}
    ends = 0
    while True:
        folder, left = tmp_path / str(ends), ends

        def step(name: str, *arguments: object, **more: object) -> object:
            nonlocal left
            if not left:
                raise Ended
            left -= 1
            return really[name](*arguments, **more)

        for name in steps:
            monkeypatch.setattr(os, name, lambda *given, _name=name, **more: step(_name, *given, **more))
        try:
            made = make_witness(folder, NAME)
        except Ended:
            made = None
        monkeypatch.undo()
        if made is None and not (folder / KEY_FILE).exists():
            with pytest.raises(WitnessFilesError, match="`erxhub witness keygen` makes a witness"):
                load_witness(folder)
            made = make_witness(folder, NAME)
        found = load_witness(folder)
        assert made is None or found.key == made.key
        assert stat.S_IMODE((folder / KEY_FILE).stat().st_mode) == 0o600
        assert sorted(path.name for path in folder.iterdir()) == [KEY_FILE, VKEY_FILE]
        if left:
            break
        ends += 1
    assert ends >= 6


def test_a_key_without_its_public_line_says_what_to_do(tmp_path: Path) -> None:
    made = make_witness(tmp_path, NAME)
    (tmp_path / VKEY_FILE).unlink()
    for attempt in (lambda: make_witness(tmp_path, NAME), lambda: load_witness(tmp_path)):
        with pytest.raises(WitnessFilesError, match=r"printed .* remove .*witness\.pem and make the witness again"):
            attempt()
    (tmp_path / VKEY_FILE).write_text(made.key.vkey + "\n", "utf-8")
    assert load_witness(tmp_path).key == made.key


def test_one_of_many_that_make_a_key_at_once_has_made_it(tmp_path: Path) -> None:
    def attempt(_: int) -> str | None:
        try:
            return make_witness(tmp_path, NAME).key.vkey
        except WitnessFilesError:
            return None

    with ThreadPoolExecutor(8) as pool:
        made = [vkey for vkey in pool.map(attempt, range(16)) if vkey is not None]
    assert made == [load_witness(tmp_path).key.vkey]
