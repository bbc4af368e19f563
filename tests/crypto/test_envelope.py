from hypothesis import given
from hypothesis import strategies as st

from erxhub.crypto.envelope import pae


def test_the_published_example_of_dsse_is_met() -> None:
    assert (
        pae("http://example.com/HelloWorld", b"hello world")
        == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    )


def test_lengths_count_bytes_and_not_characters() -> None:
    assert pae("处方", "药".encode()) == b"DSSEv1 6 " + "处方".encode() + b" 3 " + "药".encode()


def test_nothing_at_all_still_has_two_lengths() -> None:
    assert pae("", b"") == b"DSSEv1 0  0 "


def test_payload_bytes_are_kept_as_they_are() -> None:
    assert pae("t", b"\x00\xff\r\n").endswith(b" 4 \x00\xff\r\n")


@given(st.text(max_size=9), st.binary(max_size=9), st.text(max_size=9), st.binary(max_size=9))
def test_two_documents_never_share_the_bytes_to_sign(a: str, b: bytes, c: str, d: bytes) -> None:
    assert (pae(a, b) == pae(c, d)) == ((a, b) == (c, d))
