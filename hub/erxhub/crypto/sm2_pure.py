"""SM2 signatures (GB/T 32918.2) in plain Python.

The fallback where no OpenSSL with SM2 can be loaded, and the reference that tests compare OpenSSL with.

Slow and documented as such: about a millisecond or two for a verification, under the interpreter lock. Not
constant in time, so a machine that signs with valuable keys needs OpenSSL.

Owns: the curve, ZA, the signature equations and a nonce derived as in RFC 6979 from key and digest.
Must never: contain a source of randomness; see `sm2.generate`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import hashes, hmac

Point = tuple[int, int]
_Jacobian = tuple[int, int, int]  # z = 0 is the point at infinity

_BASE_WINDOW = 7
_POINT_WINDOW = 5


@dataclass(frozen=True, slots=True)
class Curve:
    """A curve y² = x³ + ax + b over GF(p) with base point (gx, gy) of prime order n, all of 256 bits."""

    p: int
    a: int
    b: int
    gx: int
    gy: int
    n: int

    def contains(self, point: Point) -> bool:
        """Whether the coordinates are reduced and on the curve. The cofactor is 1: no further check is needed."""
        x, y = point
        return 0 <= x < self.p and 0 <= y < self.p and (y * y - x * x * x - self.a * x - self.b) % self.p == 0


SM2_CURVE: Final = Curve(  # sm2p256v1, GB/T 32918.5
    p=0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFF,
    a=0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF00000000FFFFFFFFFFFFFFFC,
    b=0x28E9FA9E9D9F5E344D5A9E4BCF6509A7F39789F515AB8F92DDBCBD414D940E93,
    gx=0x32C4AE2C1F1981195F9904466A39C9948FE30BBFF2660BE1715A4589334C74C7,
    gy=0xBC3736A2F4F6779C59BDCEE36B692153D0A9877CC62A474002DF32E52139F0A0,
    n=0xFFFFFFFEFFFFFFFFFFFFFFFFFFFFFFFF7203DF6B21C6052B53BBF40939D54123,
)


def sm3(data: bytes) -> bytes:
    """SM3 digest (GB/T 32905), 32 bytes. Taken from `cryptography`: not every Python's hashlib offers it."""
    digest = hashes.Hash(hashes.SM3())
    digest.update(data)
    return digest.finalize()


def _hmac_sm3(key: bytes, data: bytes) -> bytes:
    code = hmac.HMAC(key, hashes.SM3())
    code.update(data)
    return code.finalize()


# --- the group ------------------------------------------------------------------------------------


def _double(curve: Curve, point: _Jacobian) -> _Jacobian:
    x, y, z = point
    p = curve.p
    y_squared = y * y % p
    s = 4 * x * y_squared % p
    z_squared = z * z % p
    m = (3 * x * x + curve.a * (z_squared * z_squared % p)) % p
    x_new = (m * m - 2 * s) % p
    return x_new, (m * (s - x_new) - 8 * y_squared * y_squared) % p, 2 * y * z % p


def _add(curve: Curve, left: _Jacobian, right: Point) -> _Jacobian:
    """Mixed addition of a Jacobian and an affine point; every special case is covered."""
    x1, y1, z1 = left
    x2, y2 = right
    if z1 == 0:
        return x2, y2, 1
    p = curve.p
    z_squared = z1 * z1 % p
    h = (x2 * z_squared - x1) % p
    r = (y2 * z_squared * z1 - y1) % p
    if h == 0:
        return _double(curve, left) if r == 0 else (1, 1, 0)
    h_squared = h * h % p
    h_cubed = h_squared * h % p
    v = x1 * h_squared % p
    x_new = (r * r - h_cubed - 2 * v) % p
    return x_new, (r * (v - x_new) - y1 * h_cubed) % p, z1 * h % p


def _affine(curve: Curve, point: _Jacobian) -> Point | None:
    x, y, z = point
    if z == 0:
        return None
    inverse = pow(z, -1, curve.p)
    inverse_squared = inverse * inverse % curve.p
    return x * inverse_squared % curve.p, y * inverse_squared * inverse % curve.p


def _odd_multiples(curve: Curve, point: Point, window: int) -> list[Point]:
    """P, 3P, 5P … (2^(window-1) - 1)P, affine. None is infinity: n is a prime far above the window."""
    twice = _affine(curve, _double(curve, (*point, 1)))
    assert twice is not None
    multiples = [point]
    for _ in range((1 << (window - 2)) - 1):
        following = _affine(curve, _add(curve, (*multiples[-1], 1), twice))
        assert following is not None
        multiples.append(following)
    return multiples


@functools.lru_cache(maxsize=2)
def _base_multiples(curve: Curve) -> list[Point]:
    return _odd_multiples(curve, (curve.gx, curve.gy), _BASE_WINDOW)


def _digits(scalar: int, window: int) -> list[int]:
    """The width-`window` non-adjacent form, least significant first: few non-zero digits, all odd."""
    digits = []
    modulus, half = 1 << window, 1 << (window - 1)
    while scalar:
        digit = 0
        if scalar & 1:
            digit = scalar & (modulus - 1)
            digit -= modulus if digit >= half else 0
            scalar -= digit
        digits.append(digit)
        scalar >>= 1
    return digits


def combine(base_scalar: int, scalar: int, point: Point, curve: Curve = SM2_CURVE) -> Point | None:
    """base_scalar·G + scalar·point, both scalars ≥ 0; None is infinity. One row of doublings for both."""
    terms = [(_digits(base_scalar, _BASE_WINDOW), _base_multiples(curve))]
    if scalar:
        terms.append((_digits(scalar, _POINT_WINDOW), _odd_multiples(curve, point, _POINT_WINDOW)))
    result: _Jacobian = (1, 1, 0)
    for position in range(max(len(digits) for digits, _ in terms) - 1, -1, -1):
        result = _double(curve, result)
        for digits, multiples in terms:
            digit = digits[position] if position < len(digits) else 0
            if digit:
                x, y = multiples[abs(digit) >> 1]
                result = _add(curve, result, (x, y) if digit > 0 else (x, curve.p - y))
    return _affine(curve, result)


# --- keys -----------------------------------------------------------------------------------------


def parse_point(public_key: bytes, curve: Curve = SM2_CURVE) -> Point | None:
    """The point of a 65-byte uncompressed key, or None: wrong form, or not on the curve."""
    if len(public_key) != 65 or public_key[0] != 4:
        return None
    point = int.from_bytes(public_key[1:33], "big"), int.from_bytes(public_key[33:], "big")
    return point if curve.contains(point) else None


def encode_point(point: Point) -> bytes:
    """65 bytes: 0x04 ‖ x ‖ y."""
    return b"\x04" + point[0].to_bytes(32, "big") + point[1].to_bytes(32, "big")


def is_scalar(scalar: int, curve: Curve = SM2_CURVE) -> bool:
    """Whether a private key lies in [1, n-2]; n-1 has no signature because 1 + d would be zero."""
    return 1 <= scalar <= curve.n - 2


def public_key(scalar: bytes) -> bytes:
    """The uncompressed public point of a 32-byte private scalar in range."""
    point = combine(int.from_bytes(scalar, "big"), 0, (SM2_CURVE.gx, SM2_CURVE.gy))
    assert point is not None
    return encode_point(point)


# --- signatures -----------------------------------------------------------------------------------


def identity_digest(user_id: bytes, point: Point, curve: Curve = SM2_CURVE) -> bytes:
    """ZA (GB/T 32918.2 §5.5): SM3 over the signer's id, the curve and the public key."""
    numbers = (curve.a, curve.b, curve.gx, curve.gy, *point)
    return sm3(
        (8 * len(user_id)).to_bytes(2, "big") + user_id + b"".join(number.to_bytes(32, "big") for number in numbers)
    )


def message_digest(user_id: bytes, point: Point, message: bytes, curve: Curve = SM2_CURVE) -> int:
    """e = SM3(ZA ‖ message) as an integer."""
    return int.from_bytes(sm3(identity_digest(user_id, point, curve) + message), "big")


def sign_digest(scalar: int, digest: int, nonce: int, curve: Curve = SM2_CURVE) -> tuple[int, int] | None:
    """(r, s) under a given nonce in [1, n-1], or None when the standard asks for another nonce.

    Anyone who learns a nonce learns the key: only `nonces` and published test values belong here.
    """
    point = combine(nonce, 0, (curve.gx, curve.gy), curve)
    assert point is not None
    r = (digest + point[0]) % curve.n
    if r == 0 or r + nonce == curve.n:
        return None
    s = pow(1 + scalar, -1, curve.n) * (nonce - r * scalar) % curve.n
    return (r, s) if s else None


def nonces(scalar: int, digest: int, curve: Curve = SM2_CURVE) -> Iterator[int]:
    """Nonces in [1, n-1] from key and digest (RFC 6979 §3.2 with HMAC-SM3), so that none needs randomness."""
    seed = scalar.to_bytes(32, "big") + (digest % curve.n).to_bytes(32, "big")
    key, value = b"\x00" * 32, b"\x01" * 32
    for separator in (b"\x00", b"\x01"):
        key = _hmac_sm3(key, value + separator + seed)
        value = _hmac_sm3(key, value)
    while True:
        value = _hmac_sm3(key, value)
        nonce = int.from_bytes(value, "big")
        if 1 <= nonce < curve.n:
            yield nonce
        key = _hmac_sm3(key, value + b"\x00")
        value = _hmac_sm3(key, value)


def verify_digest(point: Point, digest: int, r: int, s: int, curve: Curve = SM2_CURVE) -> bool:
    """GB/T 32918.2 §7.1 steps B1–B7 for a point already known to be on the curve."""
    if not (1 <= r < curve.n and 1 <= s < curve.n):
        return False
    t = (r + s) % curve.n
    if t == 0:
        return False
    result = combine(s, t, point, curve)
    return result is not None and (digest + result[0]) % curve.n == r


class PureSigner:
    """A private key of the fallback; the same message under the same id always gives the same signature."""

    def __init__(self, scalar: bytes, point: bytes) -> None:
        self._scalar = int.from_bytes(scalar, "big")
        self._point = int.from_bytes(point[1:33], "big"), int.from_bytes(point[33:], "big")

    def sign(self, message: bytes, user_id: bytes) -> bytes:
        digest = message_digest(user_id, self._point, message)
        for nonce in nonces(self._scalar, digest):
            signature = sign_digest(self._scalar, digest, nonce)
            if signature is not None:
                return signature[0].to_bytes(32, "big") + signature[1].to_bytes(32, "big")
        raise AssertionError("unreachable: nonces never end")


class PureBackend:
    """The fallback behind `sm2`; see the module's docstring for what it costs."""

    name = "pure-python"

    def public_key(self, scalar: bytes) -> bytes:
        return public_key(scalar)

    def signer(self, scalar: bytes, point: bytes) -> PureSigner:
        return PureSigner(scalar, point)

    def verify(self, candidate: bytes, message: bytes, signature: bytes, user_id: bytes) -> bool:
        point = parse_point(candidate)
        if point is None:
            return False
        digest = message_digest(user_id, point, message)
        return verify_digest(
            point, digest, int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        )
