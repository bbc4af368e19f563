"""The hub's own keys: receipt key, log key, and the ledger's HMAC keys.

Owns their files (0600, in a folder 0700) and what is derived from them. It never prints a secret, and the public parts
are entries of the ledger stream, so that old receipts stay verifiable after a rotation.

Files: `receipt.pem` and `log.pem` (Ed25519), `hmac-<version>.key` (32 bytes in hexadecimal). All hubs of one ledger
share the HMAC keys; the receipt key is each hub's own.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from erxhub.core.draft import MacKeys
from erxhub.crypto.suites import SigningKey
from erxhub.ports import Ids

RECEIPT_FILE: Final = "receipt.pem"
LOG_FILE: Final = "log.pem"
_HMAC_PREFIX: Final = "hmac-"
_HMAC_SUFFIX: Final = ".key"
_UNFINISHED: Final = ".unfinished"


class HubKeysError(Exception):
    """The key folder is incomplete or holds something that is no key; the message names the file and the cure."""


class ForeignKeys(HubKeysError):
    """The ledger was written with other HMAC keys than this hub's: voucher codes and repeated requests of one hub would
    mean nothing to the other.
    """


class SealBroken(Exception):
    """A stored reply does not open under the ledger's keys: it was altered, or the keys are another ledger's."""


@dataclass(frozen=True, slots=True)
class HubKeys:
    """The keys of one hub, in memory."""

    receipt: SigningKey
    log: SigningKey
    hmac_keys: Mapping[int, bytes]

    @property
    def mac_keys(self) -> MacKeys:
        """The keys for secrets and personal numbers."""
        return MacKeys({version: _derive(key, "lookup") for version, key in self.hmac_keys.items()})

    def content_mac_key(self) -> bytes:
        """The key that compares the content of a repeated request."""
        return _derive(self.hmac_keys[min(self.hmac_keys)], "content")

    def reply_sealer(self) -> ReplySealer:
        """Seals stored replies: a reply may hold a secret that is kept nowhere else in clear."""
        return ReplySealer(_derive(self.hmac_keys[min(self.hmac_keys)], "reply"))

    def hmac_checks(self) -> Mapping[int, bytes]:
        """By version, what tells one HMAC key from another and gives nothing of it away: 32 bytes."""
        return {version: _derive(key, "check") for version, key in self.hmac_keys.items()}

    @classmethod
    def generate(cls, ids: Ids) -> HubKeys:
        """Fresh keys in memory, for tests and ephemeral hubs."""
        return cls(SigningKey.generate("EdDSA"), SigningKey.generate("EdDSA"), {1: ids.draw().bytes(32)})

    @classmethod
    def init(cls, folder: Path, ids: Ids) -> HubKeys:
        """Make the folder and its keys, all or nothing; refuses a folder that has keys already."""
        keys = cls.generate(ids)
        files = {
            RECEIPT_FILE: keys.receipt.to_pem(),
            LOG_FILE: keys.log.to_pem(),
            f"{_HMAC_PREFIX}1{_HMAC_SUFFIX}": _hmac_line(keys.hmac_keys[1]),
        }
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _changing(folder) as unfinished:
                if any(one != unfinished for one in folder.iterdir()):
                    raise HubKeysError(f"{folder} is not empty; `erxhub keys rotate` renews keys in place")
                _put(files, unfinished, folder)
        except BaseException:
            for one in missing:
                with suppress(OSError):
                    one.rmdir()
            raise
        return keys

    @classmethod
    def load(cls, folder: Path) -> HubKeys:
        """Read the folder."""
        try:
            receipt = SigningKey.from_pem((folder / RECEIPT_FILE).read_bytes())
            log = SigningKey.from_pem((folder / LOG_FILE).read_bytes())
        except FileNotFoundError as error:
            raise HubKeysError(f"{error.filename} is missing; `erxhub keys init` makes the keys") from None
        except ValueError as error:
            raise HubKeysError(f"{folder}: {error}") from None
        hmac_keys: dict[int, bytes] = {}
        for path in sorted(folder.glob(f"{_HMAC_PREFIX}*{_HMAC_SUFFIX}")):
            version = path.name.removeprefix(_HMAC_PREFIX).removesuffix(_HMAC_SUFFIX)
            try:
                hmac_keys[int(version)] = bytes.fromhex(path.read_text().strip())
            except ValueError:
                raise HubKeysError(f"{path} is no key of 32 bytes in hexadecimal") from None
        if not hmac_keys or any(len(key) != 32 for key in hmac_keys.values()):
            raise HubKeysError(f"{folder} has no usable {_HMAC_PREFIX}<version>{_HMAC_SUFFIX}")
        return cls(receipt, log, hmac_keys)

    @classmethod
    def rotate(cls, folder: Path, what: str, ids: Ids) -> HubKeys:
        """Renew one key: "receipt", "log" or "hmac". An HMAC key gets a new version and the old ones stay good."""
        with _changing(folder) as unfinished:
            keys = cls.load(folder)
            if what == "hmac":
                version = max(keys.hmac_keys) + 1
                files = {f"{_HMAC_PREFIX}{version}{_HMAC_SUFFIX}": _hmac_line(ids.draw().bytes(32))}
            elif what in {"receipt", "log"}:
                name, old = (RECEIPT_FILE, keys.receipt) if what == "receipt" else (LOG_FILE, keys.log)
                # The old key is copied, not moved: there is no moment without a key of this name.
                files = {f"{what}-{old.key_id}.old.pem": old.to_pem(), name: SigningKey.generate("EdDSA").to_pem()}
            else:
                raise HubKeysError('a key is "receipt", "log" or "hmac"')
            _put(files, unfinished, folder)
        return cls.load(folder)


class ReplySealer:
    """AES-SIV over stored replies: deterministic, so that the same commands give the same ledger."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESSIV(key + hashlib.sha256(key).digest())

    def seal(self, caller: str, request_id: str, body: bytes) -> bytes:
        """Encrypt a reply, bound to its request."""
        return self._cipher.encrypt(body, [caller.encode(), request_id.encode()])

    def open(self, caller: str, request_id: str, sealed: bytes) -> bytes:
        """Decrypt; raises SealBroken when the bytes or the request are not those that were sealed."""
        try:
            return self._cipher.decrypt(sealed, [caller.encode(), request_id.encode()])
        except InvalidTag:
            raise SealBroken(f"the stored reply of request {request_id} does not open") from None


def _derive(key: bytes, purpose: str) -> bytes:
    # One key file, separate keys: what a lookup hash reveals says nothing about another purpose.
    return hashlib.blake2b(b"erxhub/" + purpose.encode(), key=key, digest_size=32).digest()


def _hmac_line(key: bytes) -> bytes:
    return key.hex().encode() + b"\n"


@contextmanager
def _changing(folder: Path) -> Iterator[Path]:
    """A folder in it for files that are not whole yet. One process at a time has it, and it does not stay."""
    unfinished = folder / _UNFINISHED
    try:
        unfinished.mkdir(mode=0o700)
    except FileExistsError:
        raise HubKeysError(f"{unfinished} exists: `erxhub keys` is at work or was cut short; then remove it") from None
    except FileNotFoundError:
        raise HubKeysError(f"{folder} is missing; `erxhub keys init` makes the keys") from None
    try:
        yield unfinished
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _put(files: Mapping[str, bytes], unfinished: Path, folder: Path) -> None:
    """Put files in place, in their order, once all are on the disk. All or none: only the last may replace another."""
    for name, data in files.items():
        _write(unfinished / name, data)
    try:
        for name in files:
            (unfinished / name).replace(folder / name)
    except BaseException:
        left = [name for name in files if (unfinished / name).exists()]
        for name in files:
            if left and name not in left:
                (folder / name).unlink()
        raise
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
