"""The identity of a client, from files or from memory."""

from pathlib import Path

import pytest

from erxhub.client import ClientIdentity
from erxhub.client.connection import PeerName
from erxhub.crypto.ca import Identity, TrustDomain
from tests.client.conftest import HOSPITAL
from tests.client.fake_hub import client_identity


def test_the_files_of_the_certificate_authority_are_read(tmp_path: Path, now_ms: int) -> None:
    issued = TrustDomain.init(tmp_path / "pki", "erxhub.example", now_ms).issue_tls("hospital", HOSPITAL, now_ms, 30)
    assert issued.path is not None
    assert ClientIdentity.from_directory(issued.path) == client_identity(issued)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"ca\.pem"):
        ClientIdentity.from_directory(tmp_path)


def test_the_certificate_says_who_the_client_is(hospital_identity: Identity) -> None:
    assert client_identity(hospital_identity).peer_name() == PeerName("hospital", HOSPITAL)
    assert ClientIdentity(hospital_identity.ca_pem).peer_name() is None
    assert ClientIdentity(hospital_identity.ca_pem, b"not a certificate", b"").peer_name() is None


def test_the_private_key_is_not_shown(hospital_identity: Identity) -> None:
    assert "PRIVATE KEY" not in repr(client_identity(hospital_identity))
