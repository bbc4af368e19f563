"""Minted certificates are what they are asked to be: good, or wrong in exactly one way."""

from typing import Any

import pytest
from cryptography import x509

from erxhub.client import ClientFailure, ClientIdentity, HubUnreachable, Refusal
from erxhub.crypto.certs import key_matches
from erxhub.v1 import sandbox_pb2
from tests.live import AGENCY, AUDITOR, CHANNEL, HOSPITAL, PHARMACY
from tests.sandbox.ground import UNKNOWN_RX, Box

D = sandbox_pb2.IdentityDefect


async def _refusal(box: Box, identity: ClientIdentity, name: str = "one") -> ClientFailure:
    hospital = await (await box.place(name)).connect("hospital", HOSPITAL, identity)
    with pytest.raises(ClientFailure) as failed:
        await hospital.get(rx_no=UNKNOWN_RX)
    return failed.value


@pytest.mark.parametrize(
    ("role", "peer_id"),
    [
        ("hospital", HOSPITAL),
        ("pharmacy", PHARMACY),
        ("channel", CHANNEL),
        ("agency", AGENCY),
        ("auditor", AUDITOR),
        ("supervisor", AGENCY),
        ("mirror", "mirror-1"),
    ],
)
async def test_a_certificate_says_its_role_in_the_trust_domain_of_the_namespace(
    box: Box, role: str, peer_id: str
) -> None:
    await box.operator.create_namespace("one")
    identity = await box.identity("one", role, peer_id)
    certificate = x509.load_pem_x509_certificate(identity.cert_pem or b"")
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    assert uris == [f"spiffe://one.erxhub.test/{role}/{peer_id}"]


async def test_a_good_certificate_is_heard(box: Box) -> None:
    await box.operator.create_namespace("one")
    failure = await _refusal(box, await box.identity("one", "hospital", HOSPITAL))
    assert isinstance(failure, Refusal)
    assert failure.code == "RX_UNKNOWN"


@pytest.mark.parametrize("defect", [D.IDENTITY_DEFECT_EXPIRED, D.IDENTITY_DEFECT_NOT_YET_VALID])
async def test_a_certificate_out_of_its_dates_ends_in_the_handshake(box: Box, defect: Any) -> None:
    await box.operator.create_namespace("one")
    failure = await _refusal(box, await box.identity("one", "hospital", HOSPITAL, defect))
    assert isinstance(failure, HubUnreachable)


async def test_a_certificate_of_an_unknown_authority_ends_in_the_handshake(box: Box) -> None:
    await box.operator.create_namespace("one")
    identity = await box.identity("one", "hospital", HOSPITAL, D.IDENTITY_DEFECT_UNKNOWN_AUTHORITY)
    assert identity.ca_pem == box.sandbox.trust.ca_pem
    assert isinstance(await _refusal(box, identity), HubUnreachable)


@pytest.mark.parametrize(
    ("defect", "reason"),
    [
        (D.IDENTITY_DEFECT_NO_URI, "MALFORMED"),
        (D.IDENTITY_DEFECT_FOREIGN_TRUST_DOMAIN, "FOREIGN_TRUST_DOMAIN"),
    ],
)
async def test_a_certificate_that_names_no_peer_is_a_stranger(box: Box, defect: Any, reason: str) -> None:
    await box.operator.create_namespace("one")
    failure = await _refusal(box, await box.identity("one", "hospital", HOSPITAL, defect))
    assert isinstance(failure, Refusal)
    assert (failure.code, failure.metadata["reason"]) == ("PEER_IDENTITY", reason)


async def test_a_certificate_may_be_revoked_from_the_start(box: Box) -> None:
    await box.operator.create_namespace("one")
    failure = await _refusal(box, await box.identity("one", "hospital", HOSPITAL, D.IDENTITY_DEFECT_REVOKED))
    assert isinstance(failure, Refusal)
    assert failure.code == "CERT_REVOKED"
    # The institution itself is not: its next certificate is good.
    again = await _refusal(box, await box.identity("one", "hospital", HOSPITAL))
    assert isinstance(again, Refusal)
    assert again.code == "RX_UNKNOWN"


async def test_a_private_key_may_be_another_certificates(box: Box) -> None:
    await box.operator.create_namespace("one")
    identity = await box.identity("one", "hospital", HOSPITAL, D.IDENTITY_DEFECT_WRONG_KEY)
    assert not key_matches(identity.cert_pem or b"", identity.key_pem or b"")


async def test_certificates_stay_good_when_the_clock_moves_for_months(box: Box) -> None:
    place = await box.new("one")
    await box.operator.advance_clock(by_ms=200 * 86_400_000, namespace="one")
    assert (await place.chain().uploaded()).rx_no
