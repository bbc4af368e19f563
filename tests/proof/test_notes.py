"""Notes, checkpoints and proof files that we write ourselves, and what a reader must not take."""

from hashlib import sha256

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from erxhub.crypto.suites import SigningKey
from erxhub.proof import tlogproof
from erxhub.proof.checkpoints import open_checkpoint, read_checkpoint, write_checkpoint
from erxhub.proof.hashing import EMPTY_ROOT
from erxhub.proof.merkle import ProofInvalid
from erxhub.proof.notes import (
    LINES_MAX,
    ML_DSA_COSIGNATURE,
    NOTE_BYTES_MAX,
    Cosigner,
    LogSigner,
    NoteKey,
    add_line,
    open_note,
    read_line,
    read_note,
    read_vkey,
    write_line,
)

LOG = LogSigner("log.test/ledger", SigningKey.generate("EdDSA"))
WITNESS = Cosigner("witness.test/1", SigningKey.generate("EdDSA"))
TEXT = write_checkpoint(LOG.key.name, 7, sha256(b"root").digest())
NOTE = LOG.note(TEXT)


def reason(note: bytes | str, *keys: NoteKey) -> str:
    with pytest.raises(ProofInvalid) as found:
        open_note(note, keys or (LOG.key,))
    return found.value.reason


def test_what_we_write_we_read() -> None:
    for signer in (LOG, WITNESS):
        assert read_vkey(signer.key.vkey) == signer.key
    note = add_line(NOTE, WITNESS.line(TEXT, 1_900_000_000))
    opened = open_checkpoint(note, LOG.key.name, [LOG.key, WITNESS.key])
    assert opened.said == read_checkpoint(TEXT)
    assert [(one.key.name, one.timestamp) for one in opened.note.signers] == [
        ("log.test/ledger", None),
        ("witness.test/1", 1_900_000_000),
    ]
    # Without the witness's key its line is a stranger's.
    assert len(open_note(note, [LOG.key]).signers) == 1


def test_a_newer_line_of_a_key_takes_the_place_of_the_older() -> None:
    older, newer = WITNESS.line(TEXT, 1), WITNESS.line(TEXT, 2)
    note = add_line(add_line(NOTE, older), newer)
    assert [line.line for line in read_note(note).lines][1:] == [newer]
    assert add_line(note, newer) == note
    with pytest.raises(ProofInvalid):
        add_line(note, "no line")


def test_both_lines_of_one_key_are_verified_and_count_once() -> None:
    note = NOTE + WITNESS.line(TEXT, 1) + "\n" + WITNESS.line(TEXT, 2) + "\n"
    assert [one.timestamp for one in open_note(note, [WITNESS.key]).signers] == [1]
    bad = write_line(WITNESS.key, (3).to_bytes(8, "big") + bytes(64))
    assert reason(note + bad + "\n", WITNESS.key) == "BAD_SIGNATURE"
    assert len(open_note(note + bad + "\n", [LOG.key]).signers) == 1


def test_limits() -> None:
    strangers = "".join(f"— s{n} {'A' * 8}\n" for n in range(LINES_MAX))
    assert open_note(NOTE + strangers.partition("\n")[2], [LOG.key])
    assert reason(NOTE + strangers) == "MALFORMED"
    with pytest.raises(ProofInvalid):
        add_line(NOTE + strangers.partition("\n")[2], WITNESS.line(TEXT, 1))
    long = "x" * (NOTE_BYTES_MAX - len(LOG.note("\n").encode())) + "\n"
    assert len(LOG.note(long).encode()) == NOTE_BYTES_MAX
    assert open_note(LOG.note(long), [LOG.key])
    assert reason(LOG.note("x" + long)) == "MALFORMED"


@pytest.mark.parametrize("character", [chr(n) for n in range(32) if n != 10])
def test_a_control_character_anywhere_spoils_the_note(character: str) -> None:
    assert reason(NOTE + character) == "MALFORMED"
    assert reason(LOG.note(f"a{character}b\n")) == "MALFORMED"


@pytest.mark.parametrize("character", ["\x7f", "\x85", "\u2028", "药", "𠮷"])
def test_other_characters_are_text(character: str) -> None:
    assert open_note(LOG.note(f"a{character}b\n"), [LOG.key]).text == f"a{character}b\n"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "—",
        "— ",
        "— name",
        "— name ",
        "—  AAAAAAA=",
        "— name AAAAAA==",
        "— name AAAAAAA",
        "— name AAAAAAA= ",
        "— name  AAAAAAA=",
        "— na+me AAAAAAA=",
        "— na\u00a0me AAAAAAA=",
        "- name AAAAAAA=",
        "-- name AAAAAAA=",
        " — name AAAAAAA=",
        "— name AAAAAAB=",
        "— name AAAA-AA=",
    ],
)
def test_what_is_no_signature_line(line: str) -> None:
    with pytest.raises(ProofInvalid) as found:
        read_line(line)
    assert found.value.reason == "MALFORMED"
    assert reason(f"{NOTE}{line}\n") in ("MALFORMED", "UNVERIFIED")
    assert read_line("— name AAAAAAA=").signature == b"\x00"


@given(st.binary(max_size=300))
@settings(derandomize=True, database=None, deadline=None)
def test_no_bytes_make_a_reader_stumble(data: bytes) -> None:
    with pytest.raises(ProofInvalid):
        open_note(data, [LOG.key])
    with pytest.raises(ProofInvalid):
        open_note(TEXT.encode() + b"\n" + data, [LOG.key])


@given(st.data())
@settings(derandomize=True, database=None, deadline=None)
def test_every_turned_bit_of_text_or_signature_is_seen(data: st.DataObject) -> None:
    raw = bytearray(NOTE.encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(ProofInvalid):
        open_note(bytes(raw), [LOG.key])


@given(st.text())
@settings(derandomize=True, database=None, deadline=None)
def test_no_text_makes_the_reader_of_keys_stumble(text: str) -> None:
    with pytest.raises(ProofInvalid):
        read_vkey(text)


def test_keys_of_another_place() -> None:
    with pytest.raises(ProofInvalid) as found:
        read_vkey(LOG.key.vkey, (4,))
    assert found.value.reason == "VKEY_TYPE"
    large = NoteKey("pq.test", ML_DSA_COSIGNATURE, bytes(1_312))
    assert read_vkey(large.vkey, (4, 6)) == large
    for name in ("", "a b", "a+b", "a\u2003b", "\ud800"):
        with pytest.raises(ValueError):
            LogSigner(name, SigningKey.generate("EdDSA"))


def test_a_key_that_is_no_point_verifies_nothing() -> None:
    odd = NoteKey(LOG.key.name, 1, b"\xff" * 32)
    assert reason(f"{TEXT}\n{write_line(odd, bytes(64))}\n", odd) == "BAD_SIGNATURE"


def test_a_cosignature_is_not_the_logs_line_and_the_reverse() -> None:
    private = Ed25519PrivateKey.generate()
    raw = private.public_key().public_bytes_raw()
    as_log, as_witness = NoteKey("n", 1, raw), NoteKey("n", 4, raw)
    assert as_log.key_id != as_witness.key_id
    plain = private.sign(TEXT.encode())
    assert reason(f"{TEXT}\n{write_line(as_witness, plain)}\n", as_witness) == "BAD_SIGNATURE"
    assert reason(f"{TEXT}\n{write_line(as_witness, bytes(8) + plain)}\n", as_witness) == "BAD_SIGNATURE"
    with pytest.raises(ProofInvalid) as found:
        open_checkpoint(f"{TEXT}\n{WITNESS.line(TEXT, 5)}\n", LOG.key.name, [LOG.key, WITNESS.key])
    assert found.value.reason == "LOG_UNSIGNED"


def test_checkpoints() -> None:
    with pytest.raises(ProofInvalid) as found:
        open_checkpoint(NOTE, "log.test/other", [LOG.key])
    assert found.value.reason == "ORIGIN"
    assert read_checkpoint(write_checkpoint("o", 0, EMPTY_ROOT)).size == 0
    for origin, size, root in (("", 1, bytes(32)), ("a\nb", 1, bytes(32)), ("o", -1, bytes(32)), ("o", 1, bytes(31))):
        with pytest.raises(ValueError):
            write_checkpoint(origin, size, root)
    with pytest.raises(ValueError):
        write_checkpoint("o", 0, bytes(32))


@pytest.mark.parametrize("size", ["", "-1", "+1", "01", "1 ", " 1", "1.0", "1e3", "١", "9" * 19, "9" * 5_000])
def test_a_size_has_one_spelling(size: str) -> None:
    with pytest.raises(ProofInvalid):
        read_checkpoint(f"o\n{size}\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n")


@given(st.binary(max_size=200))
@settings(derandomize=True, database=None, deadline=None)
def test_no_bytes_are_a_proof_file(data: bytes) -> None:
    with pytest.raises(ProofInvalid):
        tlogproof.read_tlog_proof(data)


def test_proof_files() -> None:
    hashes = [sha256(b"%d" % n).digest() for n in range(63)]
    file = tlogproof.write_tlog_proof(5, hashes, NOTE, b"extra")
    assert tlogproof.read_tlog_proof(file.encode()) == tlogproof.TlogProof(5, tuple(hashes), NOTE.encode(), b"extra")
    for broken in (
        tlogproof.write_tlog_proof(5, [*hashes, hashes[0]], NOTE),
        file.replace("extra ZXh0cmE=\n", "extra ZXh0cmE=\nextra ZXh0cmE=\n"),
        file.replace("extra ", "extra  "),
        file.replace("\nindex 5", "\n\nindex 5"),
        file.replace("\n", "\r\n"),
    ):
        with pytest.raises(ProofInvalid):
            tlogproof.read_tlog_proof(broken.encode())
