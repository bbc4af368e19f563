"""A witness's folder: its private key (0600), its public key in one line, and the folder of its records.

Owns the names in it. It must never print or log the private key, nor make a key where one is. The private key comes
last, under its name at once and as a whole: a folder without it is none of a witness yet.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from erxhub.crypto.suites import KeyFormatError, SigningKey
from erxhub.proof.merkle import ProofInvalid
from erxhub.proof.notes import COSIGNATURE, Cosigner, read_vkey, valid_name

KEY_FILE: Final = "witness.pem"
VKEY_FILE: Final = "witness.vkey"
RECORDS_FOLDER: Final = "records"
_NEW_KEY_FILE: Final = ".witness.pem.new"
_NEW_VKEY_FILE: Final = ".witness.vkey.new"


class WitnessFilesError(Exception):
    """The folder holds no usable key, or has one already; the message names the file and the cure."""


def make_witness(folder: Path, name: str) -> Cosigner:
    """Make a folder with a fresh key. Ended between any two steps it leaves what the next attempt writes over.

    Raises WitnessFilesError, OSError.
    """
    if not valid_name(name) or any(not character.isprintable() for character in name):
        raise WitnessFilesError(f"{name!r} is no name for a witness: no white space, no +; say example.org/witness-1")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # two at once would leave the files of two keys
        return _made(folder, name, descriptor)
    finally:
        os.close(descriptor)


def _made(folder: Path, name: str, descriptor: int) -> Cosigner:
    if (folder / KEY_FILE).exists() and not (folder / VKEY_FILE).exists():
        raise WitnessFilesError(_half(folder))
    if (folder / KEY_FILE).exists():
        raise WitnessFilesError(f"{folder / KEY_FILE} exists: a witness that changed its key would be another witness")
    private = SigningKey.generate("EdDSA")
    cosigner = Cosigner(name, private)
    _write(folder / _NEW_KEY_FILE, private.to_pem(), 0o600)
    _write(folder / _NEW_VKEY_FILE, f"{cosigner.key.vkey}\n".encode(), 0o644)
    (folder / _NEW_VKEY_FILE).replace(folder / VKEY_FILE)
    (folder / _NEW_KEY_FILE).replace(folder / KEY_FILE)
    os.fsync(descriptor)
    return cosigner


def _write(path: Path, data: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)  # what an attempt that was cut short has left
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _half(folder: Path) -> str:
    return (
        f"{folder / VKEY_FILE} is missing beside {KEY_FILE}: write into it the line that `erxhub witness keygen`"
        " printed (the policies that name this witness have it too); if none was printed, nobody knows this key:"
        f" remove {folder / KEY_FILE} and make the witness again"
    )


def load_witness(folder: Path) -> Cosigner:
    """The witness of a folder. Raises WitnessFilesError."""
    if (folder / KEY_FILE).exists() and not (folder / VKEY_FILE).exists():
        raise WitnessFilesError(_half(folder))
    try:
        private = SigningKey.from_pem((folder / KEY_FILE).read_bytes())
        vkey = (folder / VKEY_FILE).read_text(encoding="utf-8").removesuffix("\n")
        key = read_vkey(vkey, (COSIGNATURE,))
    except FileNotFoundError as error:
        raise WitnessFilesError(f"{error.filename} is missing; `erxhub witness keygen` makes a witness") from None
    except OSError as error:
        raise WitnessFilesError(f"{error.filename}: {error.strerror}") from None
    except (KeyFormatError, ProofInvalid, UnicodeDecodeError) as error:
        raise WitnessFilesError(f"{folder}: {error}") from None
    if private.suite.name != "EdDSA" or private.public_key != key.public:
        raise WitnessFilesError(f"{KEY_FILE} and {VKEY_FILE} in {folder} are not of one key")
    return Cosigner(key.name, private)
