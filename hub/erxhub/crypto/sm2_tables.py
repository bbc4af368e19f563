"""SM2 verification with a table of multiples for each key, through OpenSSL's EC interface.

A verification computes s·G + t·P. OpenSSL can precompute multiples of the generator of a group, and a group may have
any point as its generator: one group has the curve's own G, and each key that is seen often gets a group whose
generator is its P. Both products then need 8 doublings in place of 256, which takes 0.4 of the time.

These functions are deprecated since OpenSSL 3.0 and may be left out of a build: whoever makes a `Curve` must be
ready to do without, and must prove it with a published signature.

Owns: every EC_GROUP, EC_POINT and BIGNUM here, and the verification equation over them.
Must never: see a secret (the products are not constant in time), or take a point that was not checked.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_size_t, c_void_p
from typing import Any, Final

from erxhub.crypto import sm2_pure

_P: Final = sm2_pure.SM2_CURVE.p
_N: Final = sm2_pure.SM2_CURVE.n
_GENERATOR: Final = sm2_pure.encode_point((sm2_pure.SM2_CURVE.gx, sm2_pure.SM2_CURVE.gy))
_NUMBER_SIZE: Final = 32

Bind = Callable[..., Callable[..., Any]]
"""(name, result type, *argument types) to a function of the library. Raises AttributeError where it is missing."""


class OpenSslError(Exception):
    """OpenSSL refused something that only a library without SM2, or exhausted memory, explains."""


class _Owned:
    """Something of OpenSSL's, freed with its last reference.

    It is passed to functions as it is, never as the bare pointer, so that it lives as long as the call.
    """

    __slots__ = ("_as_parameter_", "_free")

    def __init__(self, free: Callable[[c_void_p], None], pointer: int | None) -> None:
        if pointer is None:
            raise OpenSslError("OpenSSL made nothing")
        self._as_parameter_ = c_void_p(pointer)
        self._free = free

    def __del__(self) -> None:
        if hasattr(self, "_free"):
            self._free(self._as_parameter_)


class KeyTable:
    """The multiples of one public key: some 84 KiB. Any number of threads may use it."""

    __slots__ = ("group",)

    def __init__(self, group: _Owned) -> None:
        self.group = group


class _Scratch(threading.local):
    """What one verification computes in; each thread has its own."""

    def __init__(self, curve: Curve) -> None:
        self.context = curve.own(curve.context_free, curve.context_new())
        self.left, self.right = (curve.point() for _ in range(2))
        self.s, self.t, self.x, self.z = (curve.own(curve.number_free, curve.number_new()) for _ in range(4))
        self.x_bytes, self.z_bytes = (ctypes.create_string_buffer(_NUMBER_SIZE) for _ in range(2))


class Curve:
    """The SM2 curve with the table of its generator.

    `short` binds functions that keep the interpreter lock, `long` those that release it. Raises AttributeError or
    OpenSslError where this OpenSSL cannot do it.
    """

    own = _Owned

    def __init__(self, short: Bind, long: Bind) -> None:
        pointers = POINTER(c_void_p)
        three, five = (c_void_p,) * 3, (c_void_p,) * 5
        self._nid = short("OBJ_txt2nid", c_int, c_char_p)(b"SM2")
        self._group_new = short("EC_GROUP_new_by_curve_name", c_void_p, c_int)
        self._group_free = short("EC_GROUP_free", None, c_void_p)
        self._order = short("EC_GROUP_get0_order", c_void_p, c_void_p)
        self._set_generator = short("EC_GROUP_set_generator", c_int, *(c_void_p,) * 4)
        self._precompute = long("EC_GROUP_precompute_mult", c_int, c_void_p, c_void_p)
        self._has_table = short("EC_GROUP_have_precompute_mult", c_int, c_void_p)
        self._point_new = short("EC_POINT_new", c_void_p, c_void_p)
        self._point_free = short("EC_POINT_free", None, c_void_p)
        self._decode = short("EC_POINT_oct2point", c_int, *(c_void_p,) * 2, c_char_p, c_size_t, c_void_p)
        self._multiply = long("EC_POINTs_mul", c_int, *three, c_size_t, pointers, pointers, c_void_p)
        self._add = short("EC_POINT_add", c_int, *five)
        self._coordinates = short("EC_POINT_get_Jprojective_coordinates_GFp", c_int, *five, c_void_p)
        self.number_new = short("BN_new", c_void_p)
        self.number_free = short("BN_free", None, c_void_p)
        self._number_read = short("BN_bin2bn", c_void_p, c_char_p, c_int, c_void_p)
        self._number_write = short("BN_bn2binpad", c_int, c_void_p, c_char_p, c_int)
        self.context_new = short("BN_CTX_new", c_void_p)
        self.context_free = short("BN_CTX_free", None, c_void_p)
        self._clear_error = short("ERR_clear_error", None)

        self._group = self._new_group()
        self._one, self._zero = (
            _Owned(self.number_free, self._number_read(raw, len(raw), None)) for raw in (b"\1", b"")
        )
        # OpenSSL takes its slow constant-time ladder for a product that stands alone; a second one, 0·G, prevents it.
        self._base = self.point(_GENERATOR)
        self._idle_points = (c_void_p * 1)(self._base._as_parameter_)
        self._idle_scalars = (c_void_p * 1)(self._zero._as_parameter_)
        self._make_table(self._group)
        self._scratch = _Scratch(self)

    def _new_group(self) -> _Owned:
        return _Owned(self._group_free, self._group_new(self._nid))

    def point(self, encoded: bytes | None = None) -> _Owned:
        """A point, at infinity unless it is given (65 bytes uncompressed)."""
        group = self._group
        point = _Owned(self._point_free, self._point_new(group))
        if encoded is not None:
            self._check(self._decode(group, point, encoded, len(encoded), None))
        return point

    def _check(self, succeeded: int) -> None:
        if succeeded != 1:
            self._clear_error()
            raise OpenSslError("OpenSSL refused a step of the computation")

    def _make_table(self, group: _Owned) -> None:
        self._check(self._precompute(group, None))
        self._check(self._has_table(group))

    def table(self, public_key: bytes) -> KeyTable:
        """The table of a key that is known to be on the curve; takes as long as three or four verifications."""
        group = self._new_group()
        order = self._order(group)
        self._check(self._set_generator(group, self.point(public_key), order, self._one))
        self._make_table(group)
        return KeyTable(group)

    def verify(self, table: KeyTable, digest: int, r: int, s: int) -> bool:
        """GB/T 32918.2 §7.1 steps B1, B2 and B5 to B7 for e = `digest`. Raises OpenSslError without memory."""
        t = (r + s) % _N
        if not (0 < r < _N and 0 < s < _N) or t == 0:
            return False
        scratch, context = self._scratch, self._scratch.context
        group, left, right = self._group, scratch.left, scratch.right
        for number, scratch_number, of, product in (
            (s, scratch.s, group, left),
            (t, scratch.t, table.group, right),
        ):
            raw = number.to_bytes(_NUMBER_SIZE, "big")
            self._check(self._number_read(raw, _NUMBER_SIZE, scratch_number) is not None)
            self._check(self._multiply(of, product, scratch_number, 1, self._idle_points, self._idle_scalars, context))
        self._check(self._add(group, left, left, right, context))
        self._check(self._coordinates(group, left, scratch.x, None, scratch.z, context))
        z = self._read(scratch.z, scratch.z_bytes)
        if z == 0:
            return False
        # (e + x1) mod n = r, where x1 = x / z²: whichever of the two numbers below p that r allows is compared with x
        # without a division.
        x, z_squared, x1 = self._read(scratch.x, scratch.x_bytes), z * z % _P, (r - digest) % _N
        return x1 * z_squared % _P == x or (x1 + _N < _P and (x1 + _N) * z_squared % _P == x)

    def _read(self, number: _Owned, buffer: ctypes.Array[ctypes.c_char]) -> int:
        if self._number_write(number, buffer, _NUMBER_SIZE) != _NUMBER_SIZE:
            raise OpenSslError("OpenSSL gave a coordinate of more than 32 bytes")
        return int.from_bytes(buffer.raw, "big")
