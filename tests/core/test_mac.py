"""The HMAC whose key is prepared once gives the bytes of the library's own."""

from __future__ import annotations

import hmac

from hypothesis import given
from hypothesis import strategies as st

from erxhub.core.mac import HmacSha256


@given(key=st.binary(max_size=130), messages=st.lists(st.binary(max_size=300), min_size=1, max_size=4))
def test_every_key_and_message_gives_the_bytes_of_the_library(key: bytes, messages: list[bytes]) -> None:
    begun = HmacSha256(key)
    assert [begun.digest(message) for message in messages] == [
        hmac.digest(key, message, "sha256") for message in messages
    ]
