"""THE table of signature suites, and signing and verifying through it.

| suite   | curve and digest     | public key                  | signature      |
|---------|----------------------|-----------------------------|----------------|
| ES256   | P-256, SHA-256       | 65 bytes, 0x04 ‖ x ‖ y      | 64 bytes, r‖s  |
| EdDSA   | Ed25519              | 32 bytes                    | 64 bytes, R‖S  |
| SM2-SM3 | SM2, SM3, default id | 65 bytes, 0x04 ‖ x ‖ y      | 64 bytes, r‖s  |

Owns: the byte forms of keys and signatures, key ids, and where a verification runs (on the event loop or
off it).
Must never: decide whether a key may sign something; it answers only whether bytes, key and signature belong
together.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import MappingProxyType
from typing import ClassVar, Final, NamedTuple, Protocol, Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from nacl.bindings import crypto_sign

from erxhub.crypto import sm2
from erxhub.crypto.sm2_encoding import is_sm2_private_key_pem
from erxhub.crypto.verify_process import Asked, Checks, VerifyProcess

DEFAULT_SUITE: Final = "ES256"
SIGNATURE_SIZE: Final = 64
PUBLIC_KEYS_KEPT: Final = 4096  # parsed keys per suite; parsing is a fifth of a P-256 verification
CALLERS_AT_ONCE: Final = 16  # that the verifying thread answers together: some 5 ms for three SM2 signatures each
PROCESS_FROM_CALLERS: Final = 8  # waiting at once: below that a process of its own is not worth its 40 MB

_PEM_START = b"-----BEGIN"
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


class KeyFormatError(ValueError):
    """Bytes that are not a private key of the suite. The message never holds any of them."""


class PrivateKey(Protocol):
    """A private key of some suite."""

    @property
    def public_key(self) -> bytes: ...

    def sign(self, message: bytes) -> bytes: ...

    def to_pem(self) -> bytes: ...


class Suite(ABC):
    """One row of the table.

    `off_loop`: a verification takes so long that it must not run on the event loop.
    """

    name: ClassVar[str]
    off_loop: ClassVar[bool]
    public_key_size: ClassVar[int]

    @abstractmethod
    def generate(self) -> PrivateKey:
        """A new key, drawn by OpenSSL."""

    @abstractmethod
    def load_private(self, pem_or_raw: bytes) -> PrivateKey:
        """From unencrypted PKCS#8 PEM or 32 raw bytes (scalar big-endian, Ed25519 seed).

        Raises KeyFormatError.
        """

    @abstractmethod
    def is_public_key(self, candidate: bytes) -> bool:
        """Whether a registry may take these bytes as a key: right size, on the curve, of large order."""

    @abstractmethod
    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        """Whether the signature is valid. Malformed keys and signatures are simply not: no input raises."""


def _pkcs8(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_pem(pem: bytes) -> object:
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFormatError("not a readable, unencrypted private key in PEM form") from error


# --- ES256 ----------------------------------------------------------------------------------------

_ECDSA_SHA256 = ec.ECDSA(hashes.SHA256())


class _Es256PrivateKey:
    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )

    def sign(self, message: bytes) -> bytes:
        r, s = decode_dss_signature(self._key.sign(message, _ECDSA_SHA256))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    def to_pem(self) -> bytes:
        return _pkcs8(self._key)


@functools.lru_cache(maxsize=PUBLIC_KEYS_KEPT)
def _parse_p256(public_key: bytes) -> ec.EllipticCurvePublicKey:
    if len(public_key) != 65 or public_key[0] != 4:
        raise ValueError("not an uncompressed point")
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public_key)


class _Es256(Suite):
    name = "ES256"
    off_loop = False
    public_key_size = 65

    def generate(self) -> PrivateKey:
        return _Es256PrivateKey(ec.generate_private_key(ec.SECP256R1()))

    def load_private(self, pem_or_raw: bytes) -> PrivateKey:
        if not pem_or_raw.startswith(_PEM_START):
            scalar = int.from_bytes(pem_or_raw, "big")
            if len(pem_or_raw) != 32 or not 0 < scalar < _P256_ORDER:
                raise KeyFormatError("a raw P-256 private key is 32 bytes below the group order")
            return _Es256PrivateKey(ec.derive_private_key(scalar, ec.SECP256R1()))
        key = _load_pem(pem_or_raw)
        if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
            raise KeyFormatError("not a P-256 private key")
        return _Es256PrivateKey(key)

    def is_public_key(self, candidate: bytes) -> bool:
        try:
            _parse_p256(candidate)
        except ValueError:
            return False
        return True

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        if len(signature) != SIGNATURE_SIZE:
            return False
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        try:
            _parse_p256(public_key).verify(encode_dss_signature(r, s), message, _ECDSA_SHA256)
        except (InvalidSignature, ValueError):
            return False
        return True


# --- EdDSA ----------------------------------------------------------------------------------------

_ED25519_PRIME = 2**255 - 19
_ED25519_ORDER_EIGHT_Y = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD83D3D706A17C7
# The y coordinates of the eight points of small order. Such a "key" has signatures that fit many messages,
# so that its owner could deny every one of them.
_ED25519_SMALL_ORDER_Y = frozenset(
    {0, 1, _ED25519_PRIME - 1, _ED25519_ORDER_EIGHT_Y, _ED25519_PRIME - _ED25519_ORDER_EIGHT_Y}
)


class _Ed25519PrivateKey:
    """Signs with libsodium, which takes two thirds of OpenSSL's time for the same bytes (docs/decisions/0016)."""

    def __init__(self, key: ed25519.Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = key.public_key().public_bytes_raw()
        self._seed_and_public_key = key.private_bytes_raw() + self.public_key

    def sign(self, message: bytes) -> bytes:
        return crypto_sign(message, self._seed_and_public_key)[:SIGNATURE_SIZE]

    def to_pem(self) -> bytes:
        return _pkcs8(self._key)


@functools.lru_cache(maxsize=PUBLIC_KEYS_KEPT)
def _parse_ed25519(public_key: bytes) -> ed25519.Ed25519PublicKey:
    y = int.from_bytes(public_key, "little") & (2**255 - 1)
    if len(public_key) != 32 or y >= _ED25519_PRIME or y in _ED25519_SMALL_ORDER_Y:
        raise ValueError("not the canonical form of a point of large order")
    return ed25519.Ed25519PublicKey.from_public_bytes(public_key)


class _EdDsa(Suite):
    name = "EdDSA"
    off_loop = False
    public_key_size = 32

    def generate(self) -> PrivateKey:
        return _Ed25519PrivateKey(ed25519.Ed25519PrivateKey.generate())

    def load_private(self, pem_or_raw: bytes) -> PrivateKey:
        if not pem_or_raw.startswith(_PEM_START):
            if len(pem_or_raw) != 32:
                raise KeyFormatError("a raw Ed25519 private key is a seed of 32 bytes")
            return _Ed25519PrivateKey(ed25519.Ed25519PrivateKey.from_private_bytes(pem_or_raw))
        key = _load_pem(pem_or_raw)
        if not isinstance(key, ed25519.Ed25519PrivateKey):
            raise KeyFormatError("not an Ed25519 private key")
        return _Ed25519PrivateKey(key)

    def is_public_key(self, candidate: bytes) -> bool:
        try:
            _parse_ed25519(candidate)
        except ValueError:
            return False
        return True

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        try:
            _parse_ed25519(public_key).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


# --- SM2-SM3 --------------------------------------------------------------------------------------


class _Sm2(Suite):
    name = "SM2-SM3"
    off_loop = True
    public_key_size = sm2.PUBLIC_KEY_SIZE

    def generate(self) -> PrivateKey:
        return sm2.generate()

    def load_private(self, pem_or_raw: bytes) -> PrivateKey:
        try:
            return sm2.load_pem(pem_or_raw) if pem_or_raw.startswith(_PEM_START) else sm2.PrivateKey(pem_or_raw)
        except ValueError as error:
            raise KeyFormatError(str(error)) from error

    def is_public_key(self, candidate: bytes) -> bool:
        return sm2.is_public_key(candidate)

    def verify(self, public_key: bytes, message: bytes, signature: bytes) -> bool:
        return sm2.verify(public_key, message, signature)


SUITES: Final[Mapping[str, Suite]] = MappingProxyType({suite.name: suite for suite in (_Es256(), _EdDsa(), _Sm2())})
"""By the name that registry records and signatures carry. An unknown name is a KeyError."""


# --- signing --------------------------------------------------------------------------------------


def key_id(suite_name: str, public_key: bytes) -> str:
    """The name of a public key: the first 32 hexadecimal digits of SHA-256(suite ‖ 0x00 ‖ public key)."""
    return hashlib.sha256(suite_name.encode("ascii") + b"\x00" + public_key).hexdigest()[:32]


class SigningKey:
    """A private key together with its suite. Its repr names the key and holds nothing secret."""

    __slots__ = ("_private", "key_id", "public_key", "suite")

    def __init__(self, suite: Suite, private: PrivateKey) -> None:
        self._private = private
        self.suite = suite
        self.public_key: bytes = private.public_key
        self.key_id = key_id(suite.name, self.public_key)

    @classmethod
    def generate(cls, suite_name: str = DEFAULT_SUITE) -> Self:
        """A new key. Raises KeyError for an unknown suite."""
        return cls(SUITES[suite_name], SUITES[suite_name].generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """The key of an unencrypted PKCS#8 PEM; its algorithm decides the suite. Raises KeyFormatError."""
        if is_sm2_private_key_pem(pem):
            suite = SUITES["SM2-SM3"]
        else:
            suite = SUITES["EdDSA" if isinstance(_load_pem(pem), ed25519.Ed25519PrivateKey) else "ES256"]
        return cls(suite, suite.load_private(pem))

    def sign(self, message: bytes) -> bytes:
        """64 bytes over the exact bytes of `message` (see `envelope.pae` for what they should be)."""
        return self._private.sign(message)

    def to_pem(self) -> bytes:
        """Unencrypted PKCS#8; the caller keeps it readable by its owner alone."""
        return self._private.to_pem()

    def __repr__(self) -> str:
        return f"SigningKey({self.suite.name}, {self.key_id})"


# --- verifying ------------------------------------------------------------------------------------


class Check(NamedTuple):
    """One signature to verify; a plain tuple of the same four does as well."""

    suite: str
    public_key: bytes
    message: bytes
    signature: bytes


def _verify_each(checks: Checks) -> list[bool]:
    return [SUITES[suite].verify(public_key, message, signature) for suite, public_key, message, signature in checks]


_Answered = tuple[asyncio.Future[list[bool]], list[bool] | Exception]


def _answered(asked: Asked) -> _Answered:
    try:
        return asked.answer, _verify_each(asked.checks)
    except Exception as error:  # noqa: BLE001 raised again where the caller waits, and takes nobody else with it
        return asked.answer, error


def _hand_out(answers: Iterable[_Answered]) -> None:
    for future, answer in answers:
        if future.done():
            continue
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)


class Verifier:
    """Verifies signatures without holding up the event loop. It belongs to one loop.

    A P-256 or Ed25519 verification is cheaper than a hop to a thread and runs where it is asked for. SM2
    takes a tenth of a millisecond and more, and goes to a thread of its own, with the interpreter lock free.
    Under load the thread takes what many callers ask in one go, wakes the loop once for all of them, and
    starts a process; from then on the loop asks that, and the thread is for when it has gone. The queues are
    bounded by the callers, each of whom waits for its answer.
    """

    def __init__(self, process_from_callers: int | None = PROCESS_FROM_CALLERS) -> None:
        """The process starts when so many callers wait at once; None for never."""
        self._process_from_callers = process_from_callers
        self._queue: SimpleQueue[Asked | None] = SimpleQueue()
        self._verifying: threading.Thread | None = None
        self._process: VerifyProcess | None = None
        self._process_wanted = process_from_callers is not None
        self._connecting: asyncio.Task[None] | None = None
        self._closed = False

    async def verify_all(self, checks: Checks) -> list[bool]:
        """One verdict per (suite, public key, message, signature), in order.

        Raises KeyError for an unknown suite, and RuntimeError for a verifier that is closed.
        """
        off_loop = [index for index, check in enumerate(checks) if SUITES[check[0]].off_loop]
        if not off_loop:
            return _verify_each(checks)
        if len(off_loop) == len(checks):
            return await self._ask(checks)
        pending = self._ask([checks[index] for index in off_loop])
        on_loop = [index for index in range(len(checks)) if index not in off_loop]
        verdicts = dict(zip(on_loop, _verify_each([checks[index] for index in on_loop]), strict=True))
        verdicts.update(zip(off_loop, await pending, strict=True))
        return [verdicts[index] for index in range(len(checks))]

    def verify_now(self, checks: Checks) -> list[bool] | None:
        """The same at once; None when a suite of these is verified off the loop. Raises KeyError for an unknown one."""
        return None if any(SUITES[check[0]].off_loop for check in checks) else _verify_each(checks)

    def _ask(self, checks: Checks) -> asyncio.Future[list[bool]]:
        if self._closed:
            raise RuntimeError("the verifier is closed")
        asked = Asked(checks, asyncio.get_running_loop().create_future())
        if self._process is not None and self._process.ready:
            self._process.ask(asked)
        else:
            self._ask_thread(asked)
        return asked.answer

    # ---- the thread ----

    def _ask_thread(self, asked: Asked) -> None:
        if self._verifying is None:
            # A daemon: a process that ends without `close` does not wait for it.
            self._verifying = threading.Thread(target=self._work, name="erxhub-verify", daemon=True)
            self._verifying.start()
        self._queue.put(asked)

    def _work(self) -> None:
        while not self._closed:
            asked = self._next()
            if asked:
                loop = asked[0].answer.get_loop()
                with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
                    if self._process_wanted and len(asked) >= (self._process_from_callers or 0):
                        self._start_process(loop)
                    loop.call_soon_threadsafe(_hand_out, [_answered(one) for one in asked])

    def _next(self) -> list[Asked]:
        """What to verify in one go: whatever waits, or else the next to come. Callers who have gone are left out."""
        taken = [self._queue.get()]
        with suppress(Empty):
            while len(taken) < CALLERS_AT_ONCE:
                taken.append(self._queue.get_nowait())
        return [asked for asked in taken if asked is not None and not asked.answer.done()]

    # ---- the process ----

    def _start_process(self, loop: asyncio.AbstractEventLoop) -> None:
        """On the thread, where starting it holds nobody up. Where it cannot be started the thread does all."""
        self._process_wanted = False
        process = VerifyProcess(self._process_gone)
        with suppress(OSError):
            process.start()
            self._process = process
            loop.call_soon_threadsafe(self._connect, process)

    def _connect(self, process: VerifyProcess) -> None:
        if not self._closed:
            self._connecting = asyncio.create_task(process.connect())

    def _process_gone(self, left: Iterable[Asked]) -> None:
        # One that never answered would not do so the next time either.
        self._process_wanted = self._process is not None and self._process.answered
        self._process = None
        for asked in left:
            self._ask_thread(asked)

    def close(self) -> None:
        """Waits for what the thread computes (some milliseconds); callers whose turn has not come are cancelled.

        To be called on the loop.
        """
        self._closed = True
        with suppress(Empty):
            while asked := self._queue.get_nowait():
                asked.answer.cancel()
        self._queue.put(None)  # wakes the thread, which sees that it is over
        if self._verifying is not None:
            self._verifying.join()
        if self._connecting is not None:
            self._connecting.cancel()
        if self._process is not None:
            self._process.close()
            self._process = None
