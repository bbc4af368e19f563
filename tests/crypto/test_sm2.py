"""SM2: standard values, own vectors, and OpenSSL against plain Python."""

import base64
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erxhub.crypto import sm2, sm2_encoding, sm2_openssl, sm2_pure

PURE = sm2_pure.PureBackend()
OPENSSL = sm2_openssl.load()
BACKENDS: dict[str, sm2.Backend] = {"pure": PURE}
if OPENSSL is not None:
    BACKENDS["evp"] = sm2_openssl.OpenSslBackend(OPENSSL._library, uses_before_table=None)
    BACKENDS["tables"] = sm2_openssl.OpenSslBackend(OPENSSL._library, uses_before_table=0)
VECTORS: list[dict[str, str]] = json.loads((Path(__file__).parent / "sm2_vectors.json").read_text(encoding="utf-8"))[
    "vectors"
]
N = sm2_pure.SM2_CURVE.n

every_backend = pytest.mark.parametrize("backend", BACKENDS.values(), ids=BACKENDS)
every_vector = pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["name"])
needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="no OpenSSL with SM2 on this machine")


def _parts(vector: dict[str, str]) -> tuple[bytes, bytes, bytes, bytes]:
    return (
        bytes.fromhex(vector["public_hex"]),
        bytes.fromhex(vector["message_hex"]),
        bytes.fromhex(vector["signature_hex"]),
        vector["user_id"].encode(),
    )


@pytest.fixture
def pure_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sm2, "_backend", lambda: PURE)


# --- own vectors ----------------------------------------------------------------------------------


@every_backend
@every_vector
def test_a_signature_of_the_openssl_command_is_valid(backend: sm2.Backend, vector: dict[str, str]) -> None:
    assert backend.verify(*_parts(vector))


@every_backend
@every_vector
def test_a_signature_is_bound_to_message_key_and_user_id(backend: sm2.Backend, vector: dict[str, str]) -> None:
    public_key, message, signature, user_id = _parts(vector)
    other_key = bytes.fromhex(next(v for v in VECTORS if v is not vector)["public_hex"])
    assert not backend.verify(public_key, message + b"\x00", signature, user_id)
    assert not backend.verify(other_key, message, signature, user_id)
    assert not backend.verify(public_key, message, signature, user_id + b"0")


@every_backend
@every_vector
def test_the_public_key_follows_from_the_private_key(backend: sm2.Backend, vector: dict[str, str]) -> None:
    assert backend.public_key(bytes.fromhex(vector["private_hex"])).hex() == vector["public_hex"]


@every_vector
def test_the_pure_signature_never_changes(vector: dict[str, str]) -> None:
    public_key, message, _, user_id = _parts(vector)
    signature = PURE.signer(bytes.fromhex(vector["private_hex"]), public_key).sign(message, user_id)
    assert signature.hex() == vector["deterministic_signature_hex"]


@every_vector
def test_a_key_file_is_read_and_written_as_openssl_does(vector: dict[str, str]) -> None:
    pem = vector["private_pem"].encode()
    key = sm2.load_pem(pem)
    assert key.public_key.hex() == vector["public_hex"]
    assert key.to_pem() == pem


# --- OpenSSL and plain Python agree ----------------------------------------------------------------

scalars = st.integers(1, N - 2).map(lambda scalar: scalar.to_bytes(32, "big"))


@needs_openssl
@settings(max_examples=25, deadline=None, derandomize=True)
@given(scalar=scalars, message=st.binary(max_size=300), user_id=st.binary(max_size=40))
def test_each_backend_accepts_what_the_other_signs(scalar: bytes, message: bytes, user_id: bytes) -> None:
    public_key = PURE.public_key(scalar)
    for signing in BACKENDS.values():
        assert signing.public_key(scalar) == public_key
        signature = signing.signer(scalar, public_key).sign(message, user_id)
        assert len(signature) == 64
        for verifying in BACKENDS.values():
            assert verifying.verify(public_key, message, signature, user_id)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(position=st.integers(0, 63), bit=st.integers(0, 7))
def test_one_flipped_bit_is_refused_by_every_backend(position: int, bit: int) -> None:
    public_key, message, signature, user_id = _parts(VECTORS[0])
    flipped = bytearray(signature)
    flipped[position] ^= 1 << bit
    assert not any(backend.verify(public_key, message, bytes(flipped), user_id) for backend in BACKENDS.values())


@every_backend
@pytest.mark.parametrize("scalar", [1, 2, 3, N - 3, N - 2])
def test_keys_at_the_edge_of_the_range_work(backend: sm2.Backend, scalar: int) -> None:
    raw = scalar.to_bytes(32, "big")
    public_key = backend.public_key(raw)
    signature = backend.signer(raw, public_key).sign(b"m", sm2.DEFAULT_USER_ID)
    assert all(other.verify(public_key, b"m", signature, sm2.DEFAULT_USER_ID) for other in BACKENDS.values())


# --- malformed input ------------------------------------------------------------------------------

PUBLIC_KEY, MESSAGE, SIGNATURE, _ = _parts(VECTORS[0])
ZERO, ORDER = bytes(32), N.to_bytes(32, "big")
BAD_SIGNATURES = {
    "empty": b"",
    "short": SIGNATURE[:-1],
    "long": SIGNATURE + b"\x00",
    "der": sm2_encoding.signature_to_der(SIGNATURE),
    "r is zero": ZERO + SIGNATURE[32:],
    "s is zero": SIGNATURE[:32] + ZERO,
    "r is the order": ORDER + SIGNATURE[32:],
    "s is the order": SIGNATURE[:32] + ORDER,
    "r + s is the order": SIGNATURE[:32] + (N - int.from_bytes(SIGNATURE[:32], "big")).to_bytes(32, "big"),
    "all ones": b"\xff" * 64,
}
BAD_KEYS = {
    "empty": b"",
    "no prefix": PUBLIC_KEY[1:],
    "compressed": b"\x02" + PUBLIC_KEY[1:33],
    "hybrid": b"\x06" + PUBLIC_KEY[1:],
    "infinity": b"\x00",
    "off the curve": PUBLIC_KEY[:-1] + bytes([PUBLIC_KEY[-1] ^ 1]),
    "not reduced": b"\x04" + b"\xff" * 64,
    "zero": b"\x04" + bytes(64),
}


@pytest.mark.parametrize("signature", BAD_SIGNATURES.values(), ids=BAD_SIGNATURES)
def test_a_malformed_signature_is_invalid_and_raises_nothing(signature: bytes) -> None:
    assert not sm2.verify(PUBLIC_KEY, MESSAGE, signature)
    if len(signature) == 64:
        assert not any(one.verify(PUBLIC_KEY, MESSAGE, signature, sm2.DEFAULT_USER_ID) for one in BACKENDS.values())


@pytest.mark.parametrize("public_key", BAD_KEYS.values(), ids=BAD_KEYS)
def test_a_malformed_key_verifies_nothing_and_raises_nothing(public_key: bytes) -> None:
    assert not sm2.is_public_key(public_key)
    assert not sm2.verify(public_key, MESSAGE, SIGNATURE)
    assert not any(one.verify(public_key, MESSAGE, SIGNATURE, sm2.DEFAULT_USER_ID) for one in BACKENDS.values())


@pytest.mark.parametrize("scalar", [b"", bytes(31), bytes(32), (N - 1).to_bytes(32, "big"), b"\xff" * 32])
def test_a_private_key_out_of_range_is_refused(scalar: bytes) -> None:
    with pytest.raises(ValueError, match="private key"):
        sm2.PrivateKey(scalar)


def test_a_user_id_that_its_length_field_cannot_hold_is_refused() -> None:
    key = sm2.generate()
    longest = b"i" * sm2.USER_ID_BYTES_MAX
    assert sm2.verify(key.public_key, b"m", key.sign(b"m", longest), longest)
    with pytest.raises(ValueError, match="user id"):
        key.sign(b"m", longest + b"i")
    with pytest.raises(ValueError, match="user id"):
        sm2.verify(key.public_key, b"m", SIGNATURE, longest + b"i")


def _pem(der: bytes) -> bytes:
    return b"-----BEGIN PRIVATE KEY-----\n" + base64.encodebytes(der) + b"-----END PRIVATE KEY-----\n"


def test_a_key_file_without_its_public_key_is_read() -> None:
    scalar = bytes.fromhex(VECTORS[0]["private_hex"])
    assert sm2.load_pem(_pem(sm2_encoding.private_key_der(scalar, None))).public_key == PUBLIC_KEY


def test_a_key_file_with_another_keys_public_part_is_refused() -> None:
    scalar = bytes.fromhex(VECTORS[1]["private_hex"])
    with pytest.raises(ValueError, match="does not belong"):
        sm2.load_pem(_pem(sm2_encoding.private_key_der(scalar, PUBLIC_KEY)))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(position=st.integers(0, 137), value=st.integers(0, 255), cut=st.integers(0, 138))
def test_a_damaged_key_file_raises_nothing_but_value_error(position: int, value: int, cut: int) -> None:
    der = bytearray(sm2_encoding.private_key_der(bytes.fromhex(VECTORS[0]["private_hex"]), PUBLIC_KEY))
    der[position] = value
    for damaged in (bytes(der), bytes(der[:cut]), bytes(der) + b"\x00"):
        try:
            scalar, point = sm2_encoding.parse_private_key_pem(_pem(damaged))
        except ValueError:
            continue
        assert len(scalar) == 32
        assert point is None or len(point) == 65


@given(r=st.binary(min_size=32, max_size=32), s=st.binary(min_size=32, max_size=32))
def test_a_signature_survives_der_and_back(r: bytes, s: bytes) -> None:
    assert sm2_encoding.signature_from_der(sm2_encoding.signature_to_der(r + s)) == r + s


# --- the choice of the backend --------------------------------------------------------------------


def test_the_backend_is_named() -> None:
    assert sm2.backend() == (OPENSSL.name if OPENSSL else "pure-python")


@pytest.mark.usefixtures("pure_only")
def test_without_openssl_the_suite_works_in_plain_python() -> None:
    assert sm2.backend() == "pure-python"
    key = sm2.generate()
    assert sm2.verify(key.public_key, b"m", key.sign(b"m"))
    assert key.sign(b"m") == key.sign(b"m")
    assert sm2.load_pem(key.to_pem()).public_key == key.public_key


def test_a_library_that_is_no_openssl_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "libcrypto.so.3").write_bytes(b"no library")
    candidates = [str(tmp_path / "missing.so"), str(tmp_path / "libcrypto.so.3"), "libc.so.6"]
    monkeypatch.setattr(sm2_openssl, "_candidates", lambda: iter(candidates))
    assert sm2_openssl.load() is None


@needs_openssl
def test_a_library_that_gets_sm2_wrong_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sm2_openssl, "_KNOWN_SIGNATURE", SIGNATURE)
    assert sm2_openssl.load() is None


@needs_openssl
def test_the_key_cache_is_bounded_and_an_evicted_key_still_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sm2_openssl, "PUBLIC_KEYS_KEPT", 2)
    backend = sm2_openssl.load()
    assert backend is not None
    for _ in range(3):
        assert all(backend.verify(*_parts(vector)) for vector in VECTORS)
    assert backend._public_key.cache_info().currsize == 2


@every_backend
def test_threads_may_share_keys_and_backend(backend: sm2.Backend) -> None:
    wrong: list[str] = []

    def verify_everything() -> None:
        for vector in VECTORS * 4:
            public_key, message, signature, user_id = _parts(vector)
            good = backend.verify(public_key, message, signature, user_id)
            bad = backend.verify(public_key, message + b"!", signature, user_id)
            if not good or bad:
                wrong.append(vector["name"])

    threads = [threading.Thread(target=verify_everything) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_openssl
def test_the_long_calls_release_the_interpreter_lock_and_the_short_ones_keep_it() -> None:
    assert OPENSSL is not None
    library = OPENSSL._library

    def keeps_lock(function: Any) -> bool:
        return bool(type(function)._flags_ & 0x4)  # FUNCFLAG_PYTHONAPI of ctypes

    for long in (library.sign, library.verify):
        assert not keeps_lock(long)
    for short in (library.verify_init, library.set_user_id, library.md_ctx_new, library.md_ctx_free):
        assert keeps_lock(short)


@needs_openssl
def test_a_refused_signature_clears_the_errors_it_left(monkeypatch: pytest.MonkeyPatch) -> None:
    assert OPENSSL is not None
    public_key, message, signature, user_id = _parts(VECTORS[0])
    evp = BACKENDS["evp"]
    cleared: list[bool] = []
    clear = OPENSSL._library.err_clear_error
    monkeypatch.setattr(OPENSSL._library, "err_clear_error", lambda: cleared.append(clear() is None))
    assert evp.verify(public_key, message, signature, user_id)
    assert cleared == []
    assert not evp.verify(public_key, message + b"!", signature, user_id)
    assert cleared == [True]


# --- the published values -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(shared: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((shared / "national/vectors.json").read_text(encoding="utf-8"))
    return content


def _curve(name_or_parameters: Any) -> sm2_pure.Curve:
    if isinstance(name_or_parameters, str):
        assert name_or_parameters == "sm2p256v1"
        return sm2_pure.SM2_CURVE
    return sm2_pure.Curve(**{name: int(value, 16) for name, value in name_or_parameters.items()})


def test_sm3_gives_the_standard_digests(published: dict[str, Any]) -> None:
    standards = [one for one in published["standards"] if "digest_hex" in one]
    assert len(standards) == 2
    for standard in standards:
        assert sm2_pure.sm3(standard["input_ascii"].encode()).hex() == standard["digest_hex"]


def test_the_standard_nonces_give_the_standard_signatures(published: dict[str, Any]) -> None:
    standards = [one for one in published["standards"] if "k_hex" in one]
    assert len(standards) == 2
    for standard in standards:
        curve = _curve(standard["curve"])
        scalar, nonce, x, y, r, s = (
            int(standard[name], 16) for name in ("private_hex", "k_hex", "public_x", "public_y", "r_hex", "s_hex")
        )
        user_id, message = standard["user_id"].encode(), standard["message_ascii"].encode()
        assert sm2_pure.combine(scalar, 0, (curve.gx, curve.gy), curve) == (x, y)
        assert sm2_pure.identity_digest(user_id, (x, y), curve).hex() == standard["za_hex"]
        digest = sm2_pure.message_digest(user_id, (x, y), message, curve)
        assert digest == int(standard["e_hex"], 16)
        assert sm2_pure.sign_digest(scalar, digest, nonce, curve) == (r, s)
        assert sm2_pure.verify_digest((x, y), digest, r, s, curve)
        assert not sm2_pure.verify_digest((x, y), digest + 1, r, s, curve)


@every_backend
def test_the_standard_signature_is_valid(backend: sm2.Backend, published: dict[str, Any]) -> None:
    (standard,) = [one for one in published["standards"] if one.get("curve") == "sm2p256v1"]
    public_key = bytes.fromhex("04" + standard["public_x"] + standard["public_y"])
    signature = bytes.fromhex(standard["r_hex"] + standard["s_hex"])
    message = standard["message_ascii"].encode()
    assert backend.verify(public_key, message, signature, standard["user_id"].encode())


def _signature(entry: dict[str, Any]) -> bytes:
    # One tolerated entry breaks the base64 into lines, as MIME does.
    return base64.b64decode("".join(entry["envelope"]["signData"].split()))


@every_backend
@pytest.mark.parametrize("group", ["positive", "tolerated"])
def test_the_national_signatures_are_valid(backend: sm2.Backend, group: str, published: dict[str, Any]) -> None:
    entries = published[group]
    assert entries
    for entry in entries:
        # The tolerated entries name no signer: all of them are requests.
        key = published["keys"][entry.get("signer", "client")]
        public_key, text = base64.b64decode(key["public_b64"]), entry["sign_text"].encode()
        user_id = published["user_id"].encode()
        assert backend.verify(public_key, text, _signature(entry), user_id), entry["name"]
        assert not backend.verify(public_key, text + b" ", _signature(entry), user_id), entry["name"]


def test_the_national_nonces_give_the_national_signatures(published: dict[str, Any]) -> None:
    entries = [entry for entry in published["positive"] if "k_hex" in entry]
    assert entries
    for entry in entries:
        key = published["keys"][entry["signer"]]
        point = sm2_pure.parse_point(base64.b64decode(key["public_b64"]))
        assert point is not None
        assert sm2_pure.identity_digest(sm2.DEFAULT_USER_ID, point).hex() == key["za_hex"]
        text = entry["sign_text"].encode()
        assert sm2_pure.sm3(text).hex() == entry["sign_text_sm3"]
        digest = sm2_pure.message_digest(sm2.DEFAULT_USER_ID, point, text)
        assert digest == int(entry["e_hex"], 16), entry["name"]
        scalar = int.from_bytes(base64.b64decode(key["private_b64"]), "big")
        made = sm2_pure.sign_digest(scalar, digest, int(entry["k_hex"], 16))
        assert made is not None
        assert b"".join(part.to_bytes(32, "big") for part in made) == _signature(entry), entry["name"]
