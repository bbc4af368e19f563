"""Policies beyond the shared examples: limits, nesting, and what satisfies one."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erxhub.crypto.suites import SigningKey
from erxhub.proof.checkpoints import write_checkpoint
from erxhub.proof.merkle import ProofInvalid
from erxhub.proof.notes import ML_DSA_COSIGNATURE, Cosigner, LogSigner, NoteKey, add_line, write_line
from erxhub.proof.policy import EACH_MAX, FILE_BYTES_MAX, Policy, read_policy

LOG = LogSigner("log.test/ledger", SigningKey.generate("EdDSA"))
WITNESSES = [Cosigner(f"witness.test/{n}", SigningKey.generate("EdDSA")) for n in range(4)]
TEXT = write_checkpoint(LOG.key.name, 7, bytes(32))
NAMES = "".join(f"witness W{n} {one.key.vkey}\n" for n, one in enumerate(WITNESSES))


def policy(rest: str) -> Policy:
    return read_policy(f"log {LOG.key.vkey}\n{NAMES}{rest}".encode())


def reason(file: str | bytes) -> str:
    with pytest.raises(ProofInvalid) as found:
        read_policy(file.encode() if isinstance(file, str) else file)
    return found.value.reason


def cosigned(*numbers: int) -> str:
    note = LOG.note(TEXT)
    for number in numbers:
        note = add_line(note, WITNESSES[number].line(TEXT, 1_900_000_000))
    return note


@pytest.mark.parametrize(
    ("by", "met"),
    [((), False), ((0,), False), ((0, 1), False), ((2,), False), ((0, 2), True), ((1, 3), True), ((0, 1, 2, 3), True)],
)
def test_groups_of_groups(by: tuple[int, ...], met: bool) -> None:
    found = policy("group a any W0 W1\ngroup b 1 W2 W3\ngroup both all a b\nquorum both\n")
    assert found.holds({f"W{n}" for n in by}) is met
    if met:
        assert found.check(cosigned(*by)).witnesses == tuple(f"W{n}" for n in by)
    else:
        with pytest.raises(ProofInvalid) as refused:
            found.check(cosigned(*by))
        assert refused.value.reason == "NO_QUORUM"


def test_a_group_is_not_met_by_its_name() -> None:
    assert not policy("group a any W0 W1\nquorum a\n").holds({"a"})


def test_what_a_checkpoint_needs() -> None:
    found = policy("quorum none\n")
    assert found.check(cosigned()).said.size == 7
    other = LogSigner("log.test/other", SigningKey.generate("EdDSA"))
    for note, wanted in (
        (other.note(TEXT), "UNVERIFIED"),
        (f"{TEXT}\n{WITNESSES[0].line(TEXT, 5)}\n", "LOG_UNKNOWN"),
        (cosigned() + write_line(WITNESSES[3].key, bytes(72)) + "\n", "BAD_SIGNATURE"),
        (LOG.note(write_checkpoint("log.test/third", 7, bytes(32))), "LOG_UNKNOWN"),
    ):
        with pytest.raises(ProofInvalid) as refused:
            found.check(note)
        assert refused.value.reason == wanted


def test_a_log_that_is_known_otherwise() -> None:
    found = read_policy(f"{NAMES}quorum W0\n".encode())
    assert found.check(cosigned(0), [LOG.key]).witnesses == ("W0",)
    with pytest.raises(ProofInvalid):
        found.check(cosigned(0))


def test_a_witness_of_a_kind_that_we_cannot_verify_never_counts() -> None:
    large = NoteKey("pq.test", ML_DSA_COSIGNATURE, bytes(1_312))
    found = policy(f"witness P {large.vkey}\nquorum P\n")
    with pytest.raises(ProofInvalid) as refused:
        found.check(cosigned(0) + write_line(large, bytes(2_428)) + "\n")
    assert refused.value.reason == "NO_QUORUM"


def test_white_space_comments_and_octets() -> None:
    key = WITNESSES[0].key.vkey.encode()
    file = b"\n \t\n#\n \t# what\xff\n\twitness \xff\xfe\t " + key + b" \xff \t\nquorum\t\xff\xfe\n"
    assert list(read_policy(file).witnesses) == ["\udcff\udcfe"]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("log\n", "FIELDS"),
        ("log VKEY url more\n", "FIELDS"),
        ("witness W\n", "FIELDS"),
        ("witness W VKEY url more\n", "FIELDS"),
        ("witness none VKEY\n", "RESERVED_NAME"),
        ("quorum\n", "FIELDS"),
        ("quorum none none\n", "FIELDS"),
        ("quorum W9\n", "QUORUM"),
        ("Quorum none\n", "KEYWORD"),
        ("group g\n", "GROUP"),
        ("group g any\n", "GROUP"),
        ("group g any g\n", "UNKNOWN_MEMBER"),
        ("quorum none", "LINE_END"),
        ("quorum none\x00\n", "CHARSET"),
        ("quorum none\x7f\n", "CHARSET"),
        ("quorum none\x0b\n", "CHARSET"),
        ("quorum\u00a0none\n", "KEYWORD"),
        ("log x\n", "VKEY_FORM"),
    ],
)
def test_lines_that_are_refused(line: str, wanted: str) -> None:
    # The key is put in here: names of tests must be the same in every process of a run.
    assert reason(line.replace("VKEY", WITNESSES[0].key.vkey)) == wanted


@pytest.mark.parametrize("wanted", ["0", "-1", "+1", "01", "1.0", "2", "9" * 5_000, "Any", "one"])
def test_a_number_of_a_group(wanted: str) -> None:
    assert reason(f"{NAMES}group g {wanted} W0\nquorum g\n") == "THRESHOLD"


def test_limits() -> None:
    chain = "".join(f"group g{n} any {f'g{n - 1}' if n else 'W0'}\n" for n in range(EACH_MAX))
    assert policy(f"{chain}quorum g{EACH_MAX - 1}\n").holds({"W0"})
    assert reason(f"{NAMES}{chain}group more any W1\nquorum W0\n") == "LIMIT"
    comment = b"#" + b"x" * (FILE_BYTES_MAX - 14) + b"\n"
    assert read_policy(comment + b"quorum none\n").quorum is None
    assert reason(b"#" + comment + b"quorum none\n") == "LIMIT"


@given(st.binary(max_size=200))
@settings(derandomize=True, database=None, deadline=None)
def test_no_bytes_make_the_reader_stumble(file: bytes) -> None:
    try:
        read_policy(file)
    except ProofInvalid:
        return
    assert b"quorum" in file
