"""Certificates as no trust domain issues them: under its authority, with no usable identity in their names."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from erxhub.client import ClientIdentity
from erxhub.crypto.ca import TrustDomain


def odd_certificate(trust: TrustDomain, name: str, *uris: str) -> ClientIdentity:
    """A client certificate that the trust domain's authority signed, with this common name and these URI names."""
    # The authority signs nothing without an identity, so the test takes its key.
    key_pem = trust._files.read("ca.key.pem")
    authority_key = serialization.load_pem_private_key(key_pem or b"", password=None)
    assert isinstance(authority_key, ec.EllipticCurvePrivateKey)
    authority = x509.load_pem_x509_certificate(trust.ca_pem)
    key = ec.generate_private_key(ec.SECP256R1())
    begins = authority.not_valid_before_utc
    builder = (
        x509.CertificateBuilder()
        .issuer_name(authority.subject)
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(max(begins, datetime.now(UTC)) + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
    )
    if uris:
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri) for uri in uris])
        builder = builder.add_extension(names, critical=False)
    certificate = builder.sign(authority_key, hashes.SHA256())
    return ClientIdentity(
        trust.ca_pem,
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
