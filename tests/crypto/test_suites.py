import asyncio
import hashlib
import threading
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from erxhub.crypto.suites import (
    CALLERS_AT_ONCE,
    DEFAULT_SUITE,
    SUITES,
    Check,
    KeyFormatError,
    SigningKey,
    Verifier,
    key_id,
)

KEYS = {name: SigningKey.generate(name) for name in SUITES}
every_suite = pytest.mark.parametrize("name", SUITES)

# RFC 8032 §7.1, test 2.
RFC8032_SEED = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
RFC8032_PUBLIC = bytes.fromhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
RFC8032_SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)
# RFC 6979 §A.2.5, P-256 with SHA-256, message "sample".
RFC6979_SCALAR = bytes.fromhex("c9afa9d845ba75166b5c215767b1d6934e50c3db36e89b127b8a622b120f6721")
RFC6979_PUBLIC = bytes.fromhex(
    "0460fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6"
    "7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299"
)
RFC6979_SIGNATURE = bytes.fromhex(
    "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716"
    "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
)


def test_the_table_has_three_suites_and_an_unknown_one_is_a_key_error() -> None:
    assert list(SUITES) == ["ES256", "EdDSA", "SM2-SM3"]
    assert DEFAULT_SUITE == "ES256"
    with pytest.raises(KeyError):
        SUITES["RS256"]
    with pytest.raises(KeyError):
        SigningKey.generate("none")


def test_only_sm2_leaves_the_event_loop() -> None:
    assert [name for name, suite in SUITES.items() if suite.off_loop] == ["SM2-SM3"]


@pytest.mark.parametrize(
    ("name", "private", "public_key", "message", "signature"),
    [
        ("ES256", RFC6979_SCALAR, RFC6979_PUBLIC, b"sample", RFC6979_SIGNATURE),
        ("EdDSA", RFC8032_SEED, RFC8032_PUBLIC, b"\x72", RFC8032_SIGNATURE),
    ],
)
def test_published_values_are_met(
    name: str, private: bytes, public_key: bytes, message: bytes, signature: bytes
) -> None:
    suite = SUITES[name]
    assert suite.load_private(private).public_key == public_key
    assert suite.verify(public_key, message, signature)


@given(seed=st.binary(min_size=32, max_size=32), message=st.binary(max_size=2048))
def test_ed25519_signs_as_openssl_does_byte_for_byte(seed: bytes, message: bytes) -> None:
    """Two libraries share the work: one signs, the other verifies."""
    key = SUITES["EdDSA"].load_private(seed)
    assert key.sign(message) == ed25519.Ed25519PrivateKey.from_private_bytes(seed).sign(message)
    assert SUITES["EdDSA"].verify(key.public_key, message, key.sign(message))


@every_suite
def test_sizes_are_those_of_the_table(name: str) -> None:
    key = KEYS[name]
    assert len(key.public_key) == SUITES[name].public_key_size
    assert len(key.sign(b"m")) == 64
    assert SUITES[name].is_public_key(key.public_key)


@every_suite
def test_a_signature_is_bound_to_message_and_key(name: str) -> None:
    key, other = KEYS[name], SigningKey.generate(name)
    signature = key.sign(b"m")
    assert SUITES[name].verify(key.public_key, b"m", signature)
    assert not SUITES[name].verify(key.public_key, b"M", signature)
    assert not SUITES[name].verify(other.public_key, b"m", signature)


@every_suite
def test_a_signature_of_one_suite_is_nothing_in_another(name: str) -> None:
    key = KEYS[name]
    signature = key.sign(b"m")
    for other in SUITES.values():
        if other.name != name:
            assert not other.verify(key.public_key, b"m", signature)


@every_suite
@settings(max_examples=80, deadline=None, derandomize=True)
@given(key=st.binary(max_size=70), signature=st.binary(max_size=70))
def test_bytes_of_any_kind_are_invalid_and_raise_nothing(name: str, key: bytes, signature: bytes) -> None:
    suite, good = SUITES[name], KEYS[name]
    assert not suite.verify(key, b"m", signature)
    assert not suite.verify(good.public_key, b"m", signature)
    assert not suite.verify(key, b"m", good.sign(b"m"))


@every_suite
@pytest.mark.parametrize("signature", [bytes(64), b"\xff" * 64], ids=["zeros", "ones"])
def test_signatures_out_of_range_are_invalid(name: str, signature: bytes) -> None:
    assert not SUITES[name].verify(KEYS[name].public_key, b"m", signature)


@every_suite
def test_a_key_survives_its_pem(name: str) -> None:
    key = KEYS[name]
    again = SigningKey.from_pem(key.to_pem())
    assert again.suite.name == name
    assert again.key_id == key.key_id
    assert SUITES[name].verify(key.public_key, b"m", again.sign(b"m"))


@every_suite
def test_a_key_of_another_suite_is_refused(name: str) -> None:
    for other, key in KEYS.items():
        if other != name:
            with pytest.raises(KeyFormatError):
                SUITES[name].load_private(key.to_pem())


@every_suite
@pytest.mark.parametrize("raw", [b"", bytes(31), bytes(33), b"-----BEGIN PRIVATE KEY-----\nAA\n"])
def test_a_malformed_private_key_is_refused(name: str, raw: bytes) -> None:
    with pytest.raises(KeyFormatError):
        SUITES[name].load_private(raw)


@pytest.mark.parametrize("name", ["ES256", "SM2-SM3"])
@pytest.mark.parametrize("raw", [bytes(32), b"\xff" * 32])
def test_a_scalar_out_of_range_is_refused(name: str, raw: bytes) -> None:
    with pytest.raises(KeyFormatError):
        SUITES[name].load_private(raw)


@pytest.mark.parametrize(
    "key",
    [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())],
    ids=["RSA", "P-384"],
)
def test_a_key_of_no_suite_is_refused(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with pytest.raises(KeyFormatError):
        SigningKey.from_pem(pem)


def test_a_small_order_ed25519_key_is_no_key() -> None:
    prime = 2**255 - 19
    # With the identity as public key this "signature" would be valid for every message.
    identity = (1).to_bytes(32, "little")
    base = bytes.fromhex("58" + "66" * 31)
    one = (1).to_bytes(32, "little")
    assert not SUITES["EdDSA"].verify(identity, b"anything", base + one)
    order_eight = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD83D3D706A17C7
    for y in (0, 1, prime - 1, prime, prime + 1, order_eight, prime - order_eight):
        for sign in (0, 1 << 255):
            assert not SUITES["EdDSA"].is_public_key((y | sign).to_bytes(32, "little"))


def test_the_key_id_is_the_start_of_a_digest_over_suite_and_key() -> None:
    digest = hashlib.sha256(b"EdDSA\x00" + RFC8032_PUBLIC).hexdigest()
    assert key_id("EdDSA", RFC8032_PUBLIC) == digest[:32] == "83ca7983535ce7d2c7e6076e0a5131c8"
    assert key_id("ES256", RFC8032_PUBLIC) != key_id("EdDSA", RFC8032_PUBLIC)


@every_suite
def test_the_repr_of_a_key_holds_nothing_secret(name: str) -> None:
    assert repr(KEYS[name]) == f"SigningKey({name}, {KEYS[name].key_id})"


# --- the verifier ---------------------------------------------------------------------------------


def _checks() -> list[Check]:
    good = [Check(name, key.public_key, b"m", key.sign(b"m")) for name, key in KEYS.items()]
    bad = [check._replace(message=b"M") for check in good]
    return [good[0], bad[2], good[2], bad[0], good[1], good[2], bad[1]]


async def test_verdicts_come_in_the_order_of_the_checks() -> None:
    verifier = Verifier()
    verdicts = await verifier.verify_all(_checks())
    verifier.close()
    assert verdicts == [True, False, True, False, True, True, False]


async def test_plain_tuples_and_no_checks_are_fine() -> None:
    verifier = Verifier()
    assert await verifier.verify_all([]) == []
    assert await verifier.verify_all([("EdDSA", *_checks()[4][1:]), ("SM2-SM3", *_checks()[1][1:])]) == [True, False]
    verifier.close()


async def test_an_unknown_suite_is_a_key_error() -> None:
    verifier = Verifier()
    with pytest.raises(KeyError):
        await verifier.verify_all([Check("RS256", b"", b"", b"")])
    verifier.close()


@pytest.mark.interpreted
async def test_sm2_runs_off_the_event_loop_in_one_hop_and_the_others_on_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: dict[str, list[str]] = {name: [] for name in SUITES}

    def observe(name: str) -> Callable[[bytes, bytes, bytes], bool]:
        def verify(_public_key: bytes, _message: bytes, _signature: bytes) -> bool:
            seen[name].append(threading.current_thread().name)
            return True

        return verify

    for name, suite in SUITES.items():
        monkeypatch.setattr(suite, "verify", observe(name))
    verifier = Verifier()
    await verifier.verify_all(_checks())
    verifier.close()
    here = threading.current_thread().name
    assert set(seen["ES256"] + seen["EdDSA"]) == {here}
    assert len(set(seen["SM2-SM3"])) == 1
    assert seen["SM2-SM3"][0].startswith("erxhub-verify")


async def test_many_calls_at_once_are_answered_each_with_its_own() -> None:
    verifier = Verifier()
    checks = _checks()
    answers = await asyncio.gather(*(verifier.verify_all(checks[turn % 7 :]) for turn in range(28)))
    verifier.close()
    expected = [True, False, True, False, True, True, False]
    assert answers == [expected[turn % 7 :] for turn in range(28)]


class _Gate:
    """Stands in for SM2's verification: holds the thread up until it is opened, and remembers what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = threading.Event()
        self.open = threading.Event()
        self.messages: list[bytes] = []
        monkeypatch.setattr(SUITES["SM2-SM3"], "verify", self._verify)

    def _verify(self, _public_key: bytes, message: bytes, _signature: bytes) -> bool:
        self.messages.append(message)
        self.begun.set()
        assert self.open.wait(10)
        if message == b"fails":
            raise RuntimeError("no memory")
        return message == b"good"


async def _asked(verifier: Verifier, gate: _Gate, *messages: bytes) -> list[asyncio.Task[list[bool]]]:
    """One caller for each message; returns once the thread is busy with the first and the others wait."""
    callers = [asyncio.create_task(verifier.verify_all([Check("SM2-SM3", b"", message, b"")])) for message in messages]
    assert await asyncio.to_thread(gate.begun.wait, 10)
    return callers


@pytest.mark.interpreted
async def test_a_check_that_fails_to_run_fails_its_own_caller_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier, gate = Verifier(process_from_callers=None), _Gate(monkeypatch)
    callers = await _asked(verifier, gate, b"good", b"good", b"fails", b"bad")
    gate.open.set()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    verifier.close()
    assert answers[:2] == [[True], [True]]
    assert isinstance(answers[2], RuntimeError)
    assert answers[3] == [False]


@pytest.mark.interpreted
async def test_a_caller_who_has_gone_costs_no_verification(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier, gate = Verifier(process_from_callers=None), _Gate(monkeypatch)
    callers = await _asked(verifier, gate, b"good", *[b"waits"] * CALLERS_AT_ONCE, b"gone", b"bad")
    callers[-2].cancel()
    await asyncio.wait(callers[-2:-1])
    gate.open.set()
    assert await callers[-1] == [False]
    verifier.close()
    assert b"gone" not in gate.messages


@pytest.mark.interpreted
async def test_closing_finishes_what_has_begun_and_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    verifier, gate = Verifier(process_from_callers=None), _Gate(monkeypatch)
    callers = await _asked(verifier, gate, b"good", *[b"waits"] * CALLERS_AT_ONCE, b"never")
    threading.Timer(0.05, gate.open.set).start()
    verifier.close()
    answers = await asyncio.wait_for(asyncio.gather(*callers, return_exceptions=True), 10)
    assert answers[0] == [True]
    assert isinstance(answers[-1], asyncio.CancelledError)
    assert b"never" not in gate.messages


async def test_a_closed_verifier_takes_no_more() -> None:
    verifier = Verifier()
    verifier.close()
    verifier.close()
    with pytest.raises(RuntimeError, match="closed"):
        await verifier.verify_all([_checks()[2]])
    assert await verifier.verify_all([_checks()[0]]) == [True]
