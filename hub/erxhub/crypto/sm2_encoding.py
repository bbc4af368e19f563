"""The byte forms of SM2 keys and signatures, as OpenSSL writes them.

Owns: DER in and out. The forms are so small and fixed that a table of prefixes is easier to check than an
ASN.1 library.
Must never: compute on the curve or choose a nonce; see `sm2_pure` and `sm2_openssl`.
"""

from __future__ import annotations

import base64
import binascii
import re

SCALAR_SIZE = 32
POINT_SIZE = 65
SIGNATURE_SIZE = 64

_OID_EC_PUBLIC_KEY = bytes.fromhex("06072a8648ce3d0201")  # 1.2.840.10045.2.1
_OID_SM2_CURVE = bytes.fromhex("06082a811ccf5501822d")  # 1.2.156.10197.1.301
_ALGORITHM = b"\x30\x13" + _OID_EC_PUBLIC_KEY + _OID_SM2_CURVE

_INTEGER, _BIT_STRING, _OCTET_STRING, _SEQUENCE, _CONTEXT_1 = 0x02, 0x03, 0x04, 0x30, 0xA1

_PEM = re.compile(rb"-----BEGIN PRIVATE KEY-----[ \t]*\r?\n([A-Za-z0-9+/=\s]+?)-----END PRIVATE KEY-----", re.ASCII)


def _wrap(tag: int, body: bytes) -> bytes:
    """One DER element; bodies here are always shorter than 256 bytes."""
    length = bytes([len(body)]) if len(body) < 0x80 else bytes([0x81, len(body)])
    return bytes([tag]) + length + body


def _take(data: bytes, tag: int) -> tuple[bytes, bytes]:
    """The body of the first element, which must have `tag`, and what follows it. Raises ValueError."""
    if len(data) < 2 or data[0] != tag:
        raise ValueError(f"expected a DER element with tag 0x{tag:02x}")
    length, start = data[1], 2
    if length >= 0x80:
        if length != 0x81 or len(data) < 3 or data[2] < 0x80:
            raise ValueError("DER length is not in its shortest form, or longer than any SM2 key")
        length, start = data[2], 3
    body = data[start : start + length]
    if len(body) != length:
        raise ValueError("DER element is truncated")
    return body, data[start + length :]


def public_key_der(point: bytes) -> bytes:
    """SubjectPublicKeyInfo of a 65-byte uncompressed point."""
    return _wrap(_SEQUENCE, _ALGORITHM + _wrap(_BIT_STRING, b"\x00" + point))


def private_key_der(scalar: bytes, point: bytes | None) -> bytes:
    """Unencrypted PKCS#8 of a 32-byte scalar; with its point, byte for byte what `openssl genpkey` writes."""
    public = _wrap(_CONTEXT_1, _wrap(_BIT_STRING, b"\x00" + point)) if point is not None else b""
    ec_private_key = _wrap(_SEQUENCE, b"\x02\x01\x01" + _wrap(_OCTET_STRING, scalar) + public)
    return _wrap(_SEQUENCE, b"\x02\x01\x00" + _ALGORITHM + _wrap(_OCTET_STRING, ec_private_key))


def private_key_pem(scalar: bytes, point: bytes) -> bytes:
    """`private_key_der` in PEM armour, 64 characters a line."""
    text = base64.b64encode(private_key_der(scalar, point))
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN PRIVATE KEY-----", *lines, b"-----END PRIVATE KEY-----", b""])


def parse_private_key_pem(pem: bytes) -> tuple[bytes, bytes | None]:
    """The scalar and, where the file carries it, the point. Raises ValueError if it is no SM2 PKCS#8 key."""
    match = _PEM.search(pem)
    if match is None:
        raise ValueError(
            "no unencrypted PKCS#8 PEM block ('BEGIN PRIVATE KEY'); convert with openssl pkcs8 -topk8 -nocrypt"
        )
    try:
        der = base64.b64decode(b"".join(match.group(1).split()), validate=True)
    except binascii.Error as error:
        raise ValueError("the PEM block is not base64") from error
    outer, rest = _take(der, _SEQUENCE)
    if rest:
        raise ValueError("bytes follow the private key")
    version, outer = _take(outer, _INTEGER)
    if version != b"\x00" or not outer.startswith(_ALGORITHM):
        raise ValueError("not a private key on the SM2 curve")
    inner, _attributes = _take(outer[len(_ALGORITHM) :], _OCTET_STRING)
    fields, rest = _take(inner, _SEQUENCE)
    if rest:
        raise ValueError("bytes follow the EC private key")
    version, fields = _take(fields, _INTEGER)
    scalar, fields = _take(fields, _OCTET_STRING)
    if version != b"\x01" or len(scalar) != SCALAR_SIZE:
        raise ValueError("the EC private key does not have the form of RFC 5915")
    if fields[:1] == b"\xa0":  # optional curve parameters; the algorithm has named the curve already
        _, fields = _take(fields, 0xA0)
    if not fields:
        return scalar, None
    bits, _ = _take(_take(fields, _CONTEXT_1)[0], _BIT_STRING)
    if len(bits) != POINT_SIZE + 1 or bits[0] != 0:
        raise ValueError("the public key inside the private key is not an uncompressed point")
    return scalar, bits[1:]


def is_sm2_private_key_pem(pem: bytes) -> bool:
    """Whether the PEM block holds a key on the SM2 curve (so that a loader can choose the suite)."""
    try:
        parse_private_key_pem(pem)
    except ValueError:
        return False
    return True


def _unsigned(value: bytes) -> bytes:
    """A big-endian unsigned number as a DER INTEGER."""
    digits = value.lstrip(b"\x00") or b"\x00"
    return _wrap(_INTEGER, b"\x00" + digits if digits[0] & 0x80 else digits)


def signature_to_der(signature: bytes) -> bytes:
    """64 bytes r‖s as the SEQUENCE{r, s} that OpenSSL wants."""
    return _wrap(_SEQUENCE, _unsigned(signature[:32]) + _unsigned(signature[32:]))


def signature_from_der(der: bytes) -> bytes:
    """SEQUENCE{r, s} as 64 bytes r‖s. Raises ValueError."""
    body, rest = _take(der, _SEQUENCE)
    r, body = _take(body, _INTEGER)
    s, body = _take(body, _INTEGER)
    if rest or body:
        raise ValueError("bytes follow the signature")
    return b"".join(int.from_bytes(part, "big").to_bytes(32, "big") for part in (r, s))
