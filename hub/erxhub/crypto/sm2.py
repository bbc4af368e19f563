"""SM2 signatures with SM3 (GB/T 32918.2, GB/T 32905): the suite of the national interface.

Signatures are 64 bytes r‖s, public keys 65 bytes uncompressed, private keys 32 bytes, all big-endian. The
work is done by OpenSSL (`sm2_openssl`) and, only where no OpenSSL with SM2 can be loaded, by plain Python
(`sm2_pure`, more than ten times slower, under the interpreter lock and not constant in time); `backend()` says
which.

Owns: choosing the backend, and refusing malformed input before a backend sees it.
Must never: draw randomness anywhere but in OpenSSL, or write a private key into an error or a repr.
"""

from __future__ import annotations

import functools
from typing import Protocol

from cryptography.hazmat.primitives.asymmetric import ec

from erxhub.crypto import sm2_encoding as encoding
from erxhub.crypto import sm2_openssl, sm2_pure

DEFAULT_USER_ID = b"1234567812345678"
USER_ID_BYTES_MAX = 8190  # its length in bits must fit 16 bits; OpenSSL stops one byte short of that

PUBLIC_KEY_SIZE = encoding.POINT_SIZE
SIGNATURE_SIZE = encoding.SIGNATURE_SIZE

_N = sm2_pure.SM2_CURVE.n


class Signer(Protocol):
    """A loaded private key of one backend."""

    def sign(self, message: bytes, user_id: bytes) -> bytes: ...


class Backend(Protocol):
    """One way to compute.

    Arguments have the right sizes and the scalar the right range; points may still be invalid.
    """

    @property
    def name(self) -> str: ...

    def public_key(self, scalar: bytes) -> bytes: ...

    def signer(self, scalar: bytes, point: bytes) -> Signer: ...

    def verify(self, public_key: bytes, message: bytes, signature: bytes, user_id: bytes) -> bool: ...


@functools.cache
def _backend() -> Backend:
    # On first use and not on import: the command line must answer --help without loading a second OpenSSL.
    return sm2_openssl.load() or sm2_pure.PureBackend()


def backend() -> str:
    """What computes here: "OpenSSL 3.0.19", or "pure-python" for the slow fallback."""
    return _backend().name


def _check_user_id(user_id: bytes) -> None:
    if len(user_id) > USER_ID_BYTES_MAX:
        raise ValueError(f"an SM2 user id has at most {USER_ID_BYTES_MAX} bytes")


class PrivateKey:
    """An SM2 private key. Raises ValueError for a scalar that is not 32 bytes in [1, n-2]."""

    __slots__ = ("_public_key", "_scalar", "_signer")

    def __init__(self, scalar: bytes) -> None:
        if len(scalar) != encoding.SCALAR_SIZE or not sm2_pure.is_scalar(int.from_bytes(scalar, "big")):
            raise ValueError("an SM2 private key is 32 bytes, between 1 and the group order less 2")
        self._scalar = scalar
        self._public_key = _backend().public_key(scalar)
        self._signer = _backend().signer(scalar, self._public_key)

    @property
    def public_key(self) -> bytes:
        """65 bytes: 0x04 ‖ x ‖ y."""
        return self._public_key

    def sign(self, message: bytes, user_id: bytes = DEFAULT_USER_ID) -> bytes:
        """64 bytes r‖s over SM3(ZA ‖ message). Raises ValueError for a user id over 8,190 bytes."""
        _check_user_id(user_id)
        return self._signer.sign(message, user_id)

    def to_pem(self) -> bytes:
        """Unencrypted PKCS#8, as OpenSSL writes it."""
        return encoding.private_key_pem(self._scalar, self._public_key)


def generate() -> PrivateKey:
    """A new key, uniform in [1, n-2], drawn by OpenSSL.

    A P-256 private key is uniform below the P-256 order, which is a little larger than the order of SM2:
    refusing what is out of range (one draw in four thousand million) leaves a uniform SM2 key, whichever
    backend is in use.
    """
    while True:
        scalar = ec.generate_private_key(ec.SECP256R1()).private_numbers().private_value
        if sm2_pure.is_scalar(scalar):
            return PrivateKey(scalar.to_bytes(encoding.SCALAR_SIZE, "big"))


def load_pem(pem: bytes) -> PrivateKey:
    """The key of an unencrypted PKCS#8 PEM.

    Raises ValueError, also when the public key in the file is another key's.
    """
    scalar, point = encoding.parse_private_key_pem(pem)
    key = PrivateKey(scalar)
    if point is not None and point != key.public_key:
        raise ValueError("the public key in the file does not belong to the private key")
    return key


def is_public_key(candidate: bytes) -> bool:
    """Whether these are 65 bytes of an uncompressed point on the SM2 curve."""
    return sm2_pure.parse_point(candidate) is not None


def verify(public_key: bytes, message: bytes, signature: bytes, user_id: bytes = DEFAULT_USER_ID) -> bool:
    """Whether `signature` (64 bytes r‖s) over `message` is by `public_key`; False for anything malformed.

    Raises ValueError only for a user id over 8,190 bytes. With OpenSSL the interpreter lock is free while
    it computes.
    """
    _check_user_id(user_id)
    if len(public_key) != PUBLIC_KEY_SIZE or len(signature) != SIGNATURE_SIZE:
        return False
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    if not (0 < r < _N and 0 < s < _N):
        return False
    return _backend().verify(public_key, message, signature, user_id)
