"""Verification with a table for each key: against plain Python and OpenSSL's EVP interface, and its limits."""

import ctypes
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erxhub.crypto import sm2, sm2_openssl, sm2_pure
from erxhub.crypto.sm2_tables import Curve, OpenSslError

OPENSSL = sm2_openssl.load()
if OPENSSL is None or OPENSSL._tables is None:
    pytest.skip("this machine's OpenSSL keeps no tables for SM2 keys", allow_module_level=True)
CURVE = OPENSSL._tables.curve
LIBRARY = OPENSSL._library
EVP = sm2_openssl.OpenSslBackend(LIBRARY, uses_before_table=None)
TABLES = sm2_openssl.OpenSslBackend(LIBRARY, uses_before_table=0)
VECTORS: list[dict[str, str]] = json.loads((Path(__file__).parent / "sm2_vectors.json").read_text(encoding="utf-8"))[
    "vectors"
]
C = sm2_pure.SM2_CURVE
N, P, G = C.n, C.p, (C.gx, C.gy)
ID = sm2.DEFAULT_USER_ID


def _public(scalar: int) -> sm2_pure.Point:
    point = sm2_pure.combine(scalar, 0, G)
    assert point is not None
    return point


KEYS = {scalar: _public(scalar) for scalar in (1, 2, 3, N - 2, N - 1, *range(7**80, 7**80 + 5))}
POINT_TABLES = {scalar: CURVE.table(sm2_pure.encode_point(point)) for scalar, point in KEYS.items()}


def _both(scalar: int, digest: int, r: int, s: int) -> bool:
    """The verdict of table and plain Python, which have to agree."""
    verdict = CURVE.verify(POINT_TABLES[scalar], digest, r, s)
    assert verdict == sm2_pure.verify_digest(KEYS[scalar], digest, r, s)
    return verdict


numbers = st.one_of(
    st.integers(0, 2**256 - 1),
    st.sampled_from([0, 1, 2, N - 1, N, N + 1, P - 1, P, 2**256 - 1, 2**255, 2**128, 2**8, N // 2]),
)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(scalar=st.sampled_from(list(KEYS)), digest=numbers, r=numbers, s=numbers)
def test_any_numbers_get_the_verdict_of_plain_python(scalar: int, digest: int, r: int, s: int) -> None:
    _both(scalar, digest, r, s)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(scalar=st.sampled_from([k for k in KEYS if k != N - 1]), nonce=st.integers(1, N - 1), digest=numbers)
def test_what_the_key_signed_is_valid_and_alterations_get_the_verdict_of_plain_python(
    scalar: int, nonce: int, digest: int
) -> None:
    signature = sm2_pure.sign_digest(scalar, digest, nonce)
    if signature is None:
        return
    r, s = signature
    assert _both(scalar, digest, r, s)
    assert not _both(scalar, digest + 1, r, s)
    assert not _both(scalar, digest, r + N, s)
    for altered in ((r ^ 1, s), (r, s ^ 1), (N - r, N - s), (s, r)):
        _both(scalar, digest, *altered)  # a weak key and nonce can make one of these valid


@pytest.mark.parametrize("scalar", [k for k in KEYS if k not in (1, N - 1)])
def test_a_sum_at_infinity_is_refused_and_two_equal_products_are_added(scalar: int) -> None:
    r = 0xABCDEF
    opposite = -r * scalar * pow(1 + scalar, -1, N) % N  # s·G = -(r + s)·P
    assert sm2_pure.combine(opposite, (r + opposite) % N, KEYS[scalar]) is None
    for digest in (0, r, N - r, 12345):
        assert not _both(scalar, digest, r, opposite)
    equal = r * scalar * pow(1 - scalar, -1, N) % N  # s·G = (r + s)·P
    total = sm2_pure.combine(equal, (r + equal) % N, KEYS[scalar])
    assert total is not None
    assert _both(scalar, (r - total[0]) % N, r, equal)


def test_a_sum_whose_x_is_not_below_the_group_order_is_recognised() -> None:
    # One point in 2^128 has such an x; this key is made for one.
    x = N
    while pow(cube := (x**3 + C.a * x + C.b) % P, (P - 1) // 2, P) != 1:
        x += 1
    total = (x, pow(cube, (P + 1) // 4, P))
    assert C.contains(total)
    assert N <= x < P
    s, t = 987654321, 123456789
    minus = sm2_pure.combine(N - s, 1, total)  # total - s·G
    assert minus is not None
    key = sm2_pure.combine(0, pow(t, -1, N), minus)
    assert key is not None
    r = (t - s) % N
    digest = (r - x) % N
    assert sm2_pure.verify_digest(key, digest, r, s)
    table = CURVE.table(sm2_pure.encode_point(key))
    assert CURVE.verify(table, digest, r, s)
    assert not CURVE.verify(table, digest + 1, r, s)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(message=st.binary(max_size=200), user_id=st.binary(max_size=30), flip=st.integers(0, 511))
def test_the_two_ways_of_openssl_agree(message: bytes, user_id: bytes, flip: int) -> None:
    public_key = bytes.fromhex(VECTORS[0]["public_hex"])
    good = OPENSSL.signer(bytes.fromhex(VECTORS[0]["private_hex"]), public_key).sign(message, user_id)
    bad = (int.from_bytes(good, "big") ^ (1 << flip)).to_bytes(64, "big")
    for signature, valid in ((good, True), (bad, False)):
        assert EVP.verify(public_key, message, signature, user_id) is valid
        assert TABLES.verify(public_key, message, signature, user_id) is valid


def test_no_table_is_made_of_a_point_that_is_not_on_the_curve() -> None:
    public_key = bytes.fromhex(VECTORS[0]["public_hex"])
    p256_generator = (
        "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"
        "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
    )
    for point in (public_key[:-1] + b"\x00", b"\x04" + bytes(64), bytes.fromhex(p256_generator), b"\x04", b""):
        with pytest.raises(OpenSslError):
            CURVE.table(point)
        assert not TABLES.verify(point, b"m", bytes.fromhex(VECTORS[0]["signature_hex"]), ID)


def test_verdicts_leave_no_error_behind_for_the_next_call_of_the_thread() -> None:
    peek = LIBRARY.short("ERR_peek_error", ctypes.c_ulong)
    LIBRARY.err_clear_error()
    for digest, r, s in ((1, 2, 3), (0, 0, 1), (N, N - 1, N - 1), (5, 1, N - 1)):
        CURVE.verify(POINT_TABLES[2], digest, r, s)
    with pytest.raises(OpenSslError):
        CURVE.table(b"")
    assert peek() == 0


# --- which keys have a table ----------------------------------------------------------------------


def _verify(backend: sm2_openssl.OpenSslBackend, vector: dict[str, str]) -> bool:
    return backend.verify(
        bytes.fromhex(vector["public_hex"]),
        bytes.fromhex(vector["message_hex"]),
        bytes.fromhex(vector["signature_hex"]),
        vector["user_id"].encode(),
    )


def _has_table(backend: sm2_openssl.OpenSslBackend, vector: dict[str, str]) -> bool:
    return backend._public_key(bytes.fromhex(vector["public_hex"])).table is not None


def test_a_key_gets_its_table_once_it_has_been_used_often_enough() -> None:
    backend = sm2_openssl.OpenSslBackend(LIBRARY, uses_before_table=2)
    seen = []
    for _ in range(4):
        assert _verify(backend, VECTORS[0])
        seen.append(_has_table(backend, VECTORS[0]))
    assert seen == [False, False, True, True]


def test_the_table_used_longest_ago_makes_room_and_its_key_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sm2_openssl, "TABLES_KEPT", 1)
    backend = sm2_openssl.OpenSslBackend(LIBRARY, uses_before_table=1)
    first, second = VECTORS[0], next(v for v in VECTORS if v["public_hex"] != VECTORS[0]["public_hex"])
    for vector in (first, first, second, second):
        assert _verify(backend, vector)
    assert [_has_table(backend, vector) for vector in (first, second)] == [False, True]
    assert _verify(backend, first)
    assert not _has_table(backend, first)
    assert _verify(backend, first)
    assert [_has_table(backend, vector) for vector in (first, second)] == [True, False]


def test_openssl_without_these_functions_verifies_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *types: object) -> object:
        if name == "EC_GROUP_precompute_mult":
            raise AttributeError(name)
        return short(name, *types)

    short = LIBRARY.short
    monkeypatch.setattr(LIBRARY, "long", missing)
    backend = sm2_openssl.OpenSslBackend(LIBRARY, uses_before_table=0)
    assert backend._tables is None
    assert all(_verify(backend, vector) for vector in VECTORS)


def test_openssl_whose_curve_keeps_no_tables_verifies_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str, *types: object) -> object:
        return (lambda *_: 0) if name == "EC_GROUP_have_precompute_mult" else short(name, *types)

    short = LIBRARY.short
    monkeypatch.setattr(LIBRARY, "short", none)
    backend = sm2_openssl.OpenSslBackend(LIBRARY, uses_before_table=0)
    assert backend._tables is None
    assert all(_verify(backend, vector) for vector in VECTORS)


def test_the_long_calls_release_the_interpreter_lock_and_the_short_ones_keep_it() -> None:
    flags = {  # 0x4 is FUNCFLAG_PYTHONAPI of ctypes: the lock is kept
        function: bool(type(getattr(CURVE, function))._flags_ & 0x4)
        for function in ("_multiply", "_precompute", "_add", "_coordinates", "_number_read", "_number_write")
    }
    assert [function for function, keeps_lock in flags.items() if not keeps_lock] == ["_multiply", "_precompute"]


def test_tables_that_give_a_wrong_verdict_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Curve, "verify", lambda *_: True)
    backend = sm2_openssl.OpenSslBackend(LIBRARY, uses_before_table=0)
    assert backend._tables is None
    assert not backend.verify(bytes.fromhex(VECTORS[0]["public_hex"]), b"another", bytes(63) + b"\x01", ID)
