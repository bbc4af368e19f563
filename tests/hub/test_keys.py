"""The key folder on a disk that fails: a key is there whole or not at all, and there is never no key."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from erxhub.keys import HubKeys, HubKeysError
from erxhub.ports import SeededIds

Failing = Callable[[str, int], None]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Failing:
    """The n-th use of a function of os says that the disk is full."""

    def fail(name: str, at: int) -> None:
        real, uses = getattr(os, name), iter(range(1, 1_000))

        def full(*arguments: object, **more: object) -> object:
            if next(uses) == at:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **more)

        monkeypatch.setattr(os, name, full)

    return fail


def held(folder: Path) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in folder.iterdir()}


@pytest.mark.parametrize(("name", "at"), [("fsync", 1), ("fsync", 2), ("fsync", 3), ("replace", 1), ("replace", 3)])
def test_after_an_init_that_failed_nothing_stays_and_the_next_one_goes(
    tmp_path: Path, failing: Failing, name: str, at: int
) -> None:
    failing(name, at)
    with pytest.raises(OSError, match="No space left"):
        HubKeys.init(tmp_path / "new" / "keys", SeededIds(1))
    assert list(tmp_path.iterdir()) == []
    made = HubKeys.init(tmp_path / "new" / "keys", SeededIds(1))
    assert HubKeys.load(tmp_path / "new" / "keys").receipt.key_id == made.receipt.key_id


def test_a_folder_that_was_there_stays_empty_after_an_init_that_failed(tmp_path: Path, failing: Failing) -> None:
    failing("fsync", 2)
    with pytest.raises(OSError, match="No space left"):
        HubKeys.init(tmp_path, SeededIds(1))
    assert held(tmp_path) == {}


def test_files_are_their_owners_only(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    HubKeys.init(folder, SeededIds(1))
    HubKeys.rotate(folder, "receipt", SeededIds(2))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {one.stat().st_mode & 0o777 for one in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("what", ["receipt", "log", "hmac"])
@pytest.mark.parametrize(("name", "at"), [("fsync", 1), ("replace", 1), ("replace", 2)])
def test_after_a_rotation_that_failed_the_folder_is_as_before(
    tmp_path: Path, failing: Failing, what: str, name: str, at: int
) -> None:
    HubKeys.init(tmp_path, SeededIds(1))
    before = held(tmp_path)
    if (what, at) == ("hmac", 2):
        at = 1  # one file only
    failing(name, at)
    with pytest.raises(OSError, match="No space left"):
        HubKeys.rotate(tmp_path, what, SeededIds(2))
    assert held(tmp_path) == before
    HubKeys.rotate(tmp_path, what, SeededIds(2))
    assert len(held(tmp_path)) == len(before) + 1


@pytest.mark.parametrize(("what", "file"), [("receipt", "receipt.pem"), ("log", "log.pem")])
def test_at_every_step_of_a_rotation_there_is_a_usable_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, file: str
) -> None:
    old = getattr(HubKeys.init(tmp_path, SeededIds(1)), what)
    real, seen = os.replace, []

    def replace(source: object, target: object) -> None:
        seen.append(getattr(HubKeys.load(tmp_path), what).key_id)
        real(str(source), str(target))
        seen.append(getattr(HubKeys.load(tmp_path), what).key_id)

    monkeypatch.setattr(os, "replace", replace)
    new = getattr(HubKeys.rotate(tmp_path, what, SeededIds(2)), what)
    assert seen == [old.key_id] * 3 + [new.key_id]
    assert (tmp_path / f"{what}-{old.key_id}.old.pem").read_bytes() == old.to_pem()
    assert (tmp_path / file).read_bytes() == new.to_pem()


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"mine")
    with pytest.raises(HubKeysError, match="is not empty"):
        HubKeys.init(tmp_path, SeededIds(1))
    assert held(tmp_path) == {"other": b"mine"}


def test_one_change_at_a_time_and_what_was_cut_short_is_named(tmp_path: Path) -> None:
    HubKeys.init(tmp_path, SeededIds(1))
    (tmp_path / ".unfinished").mkdir()
    with pytest.raises(HubKeysError, match=r"\.unfinished exists: "):
        HubKeys.rotate(tmp_path, "log", SeededIds(2))
    with pytest.raises(HubKeysError, match="`erxhub keys init` makes the keys"):
        HubKeys.rotate(tmp_path / "nowhere", "log", SeededIds(2))
