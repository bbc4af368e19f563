"""A witness's folder: its private key (0600), its public key in one line, and the folder of its records.

Owns the names in it. It must never print or log the private key, nor make a key where one is.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from erxhub.crypto.suites import KeyFormatError, SigningKey
from erxhub.proof.merkle import ProofInvalid
from erxhub.proof.notes import COSIGNATURE, Cosigner, read_vkey, valid_name

KEY_FILE: Final = "witness.pem"
VKEY_FILE: Final = "witness.vkey"
RECORDS_FOLDER: Final = "records"


class WitnessFilesError(Exception):
    """The folder holds no usable key, or has one already; the message names the file and the cure."""


def make_witness(folder: Path, name: str) -> Cosigner:
    """Make a folder with a fresh key. Raises WitnessFilesError, OSError."""
    if not valid_name(name) or any(not character.isprintable() for character in name):
        raise WitnessFilesError(f"{name!r} is no name for a witness: no white space, no +; say example.org/witness-1")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (folder / KEY_FILE).exists():
        raise WitnessFilesError(f"{folder / KEY_FILE} exists: a witness that changed its key would be another witness")
    private = SigningKey.generate("EdDSA")
    cosigner = Cosigner(name, private)
    descriptor = os.open(folder / KEY_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(private.to_pem())
    (folder / VKEY_FILE).write_text(cosigner.key.vkey + "\n", encoding="utf-8")
    return cosigner


def load_witness(folder: Path) -> Cosigner:
    """The witness of a folder. Raises WitnessFilesError."""
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
