from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from erxhub.crypto import certs
from erxhub.crypto.ca import TrustDomain
from erxhub.crypto.certs import PeerIdentityError, SigningCertificateError

NOW_MS = 1_757_326_792_488
DAY_MS = 86_400_000
HOSPITAL = "H33010000001"

DOMAIN = TrustDomain.in_memory("erxhub.test", NOW_MS)
FOREIGN = TrustDomain.in_memory("elsewhere.test", NOW_MS)
KEY = ec.generate_private_key(ec.SECP256R1())


def self_made(
    names: Sequence[x509.GeneralName] = (),
    *,
    authority: bool = False,
    common_name: str = HOSPITAL,
) -> bytes:
    """A certificate with exactly these alternative names, signed by its own key."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    start = datetime.fromtimestamp(NOW_MS // 1000, UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(KEY.public_key())
        .serial_number(0x0ABC)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def reason_of(pem: bytes) -> str:
    with pytest.raises(PeerIdentityError) as refused:
        certs.peer_identity(pem, "erxhub.test")
    return refused.value.reason


# --- peers ----------------------------------------------------------------------------------------


def test_the_uri_name_says_who_the_peer_is() -> None:
    pem = self_made([uri(f"spiffe://erxhub.test/hospital/{HOSPITAL}"), x509.DNSName("his.example")])
    peer = certs.peer_identity(pem, "erxhub.test")
    assert (peer.role, peer.id, peer.path) == ("hospital", HOSPITAL, f"hospital/{HOSPITAL}")
    certificate = x509.load_pem_x509_certificate(pem)
    assert peer.fingerprint == certificate.fingerprint(hashes.SHA256())
    assert peer.serial == "abc"
    assert peer.not_before_ms == NOW_MS // 1000 * 1000
    assert peer.not_after_ms == peer.not_before_ms + DAY_MS


def test_a_common_name_alone_identifies_nobody() -> None:
    assert reason_of(self_made()) == "NO_URI"
    assert reason_of(self_made([x509.DNSName("his.example")])) == "NO_URI"


def test_two_uri_names_identify_nobody() -> None:
    names = [uri(f"spiffe://erxhub.test/hospital/{HOSPITAL}"), uri("https://his.example")]
    assert reason_of(self_made(names)) == "SEVERAL_URIS"


def test_a_foreign_trust_domain_is_named_so() -> None:
    assert reason_of(self_made([uri("spiffe://elsewhere.test/hub/one")])) == "FOREIGN_TRUST_DOMAIN"
    assert reason_of(self_made([uri("spiffe://erxhub.test.evil/hub/one")])) == "FOREIGN_TRUST_DOMAIN"
    assert reason_of(self_made([uri("spiffe://ERXHUB.test/hub/one")])) == "FOREIGN_TRUST_DOMAIN"


@pytest.mark.parametrize(
    ("role", "peer_id"),
    [
        ("hospital", HOSPITAL),
        ("pharmacy", "P33010000001"),
        ("agency", "330100"),
        ("supervisor", "330000"),
        ("channel", "city-app_1.0"),
        ("auditor", "a"),
        ("mirror", "m" * 64),
        ("hub", "hub-1"),
        ("witness", "w.1"),
        ("sandbox", "..."),
    ],
)
def test_every_role_has_an_id_that_is_accepted(role: str, peer_id: str) -> None:
    pem = self_made([uri(certs.identity_uri("erxhub.test", role, peer_id))])
    assert certs.peer_identity(pem, "erxhub.test").path == f"{role}/{peer_id}"


def test_the_roles_are_those_of_the_table() -> None:
    expected = "agency auditor channel hospital hub mirror pharmacy sandbox supervisor witness"
    assert " ".join(sorted(certs.ROLES)) == expected


MALFORMED = [
    "hospital/H3301000000",
    "hospital/H330100000011",
    "hospital/P33010000001",
    "hospital/h33010000001",
    f"hospital/{HOSPITAL}/",
    f"hospital/{HOSPITAL}/extra",
    f"hospital/{HOSPITAL}?x=1",
    f"hospital/{HOSPITAL}#x",
    f"hospital/{HOSPITAL}%00",
    f"hospital/{HOSPITAL}\n",
    f"Hospital/{HOSPITAL}",
    f"/hospital/{HOSPITAL}",
    "pharmacy/H33010000001",
    "agency/33010",
    "agency/3301000",
    "channel/",
    "channel/.",
    "channel/..",
    "channel/a b",
    "channel/" + "a" * 65,
    "doctor/D1",
    "hub",
    "",
]


@pytest.mark.parametrize("path", MALFORMED)
def test_a_malformed_identity_is_refused(path: str) -> None:
    assert reason_of(self_made([uri(f"spiffe://erxhub.test/{path}")])) == "MALFORMED"


@pytest.mark.parametrize(
    "text",
    [
        "https://erxhub.test/hub/one",
        "spiffe:erxhub.test/hub/one",
        "SPIFFE://erxhub.test/hub/one",
        " spiffe://erxhub.test/hub/one",
        "spiffe://erxhub.test/hub/" + "a" * 4096,
        "",
    ],
)
def test_a_uri_that_is_no_spiffe_id_is_refused(text: str) -> None:
    assert reason_of(self_made([uri(text)])) == "MALFORMED"


@pytest.mark.parametrize("text", ["spiffe://erxhub.test:443/hub/one", "spiffe://user@erxhub.test/hub/one"])
def test_port_and_user_are_no_part_of_a_trust_domain(text: str) -> None:
    assert reason_of(self_made([uri(text)])) == "FOREIGN_TRUST_DOMAIN"


def test_a_certificate_authority_speaks_for_nobody() -> None:
    pem = self_made([uri(f"spiffe://erxhub.test/hospital/{HOSPITAL}")], authority=True)
    assert reason_of(pem) == "CA_CERTIFICATE"
    assert reason_of(DOMAIN.ca_pem) == "CA_CERTIFICATE"


@pytest.mark.parametrize(
    "pem",
    [b"", b"no certificate", DOMAIN.ca_pem[:200], DOMAIN.issue_tls("hub", "k", NOW_MS, 1).key_pem],
    ids=["nothing", "text", "half a certificate", "a key"],
)
def test_what_is_no_certificate_is_unreadable(pem: bytes) -> None:
    assert reason_of(pem) == "UNREADABLE"


def test_identities_are_kept_but_never_across_trust_domains() -> None:
    pem = DOMAIN.issue_tls("hub", "cached", NOW_MS, 1).cert_pem
    assert certs.peer_identity(pem, "erxhub.test") is certs.peer_identity(pem, "erxhub.test")
    with pytest.raises(PeerIdentityError):
        certs.peer_identity(pem, "elsewhere.test")
    assert certs.peer_identity.cache_info().maxsize == certs.CERTIFICATES_KEPT


def test_digits_are_ascii_digits() -> None:
    assert not certs.is_identity("agency", "３３０１００")
    assert not certs.is_identity("agency", "330100\n")
    with pytest.raises(ValueError, match="not an identity"):
        certs.identity_uri("erxhub.test", "agency", "x")
    with pytest.raises(ValueError, match="not an identity"):
        certs.identity_uri("Erxhub.test", "agency", "330100")


def test_a_key_matches_its_own_certificate_only() -> None:
    one, other = (DOMAIN.issue_tls("hub", name, NOW_MS, 1) for name in ("one", "two"))
    assert certs.key_matches(one.cert_pem, one.key_pem)
    assert not certs.key_matches(one.cert_pem, other.key_pem)
    assert not certs.key_matches(one.cert_pem, b"half a fi")
    assert not certs.key_matches(b"half a fi", one.key_pem)


# --- signing certificates -------------------------------------------------------------------------


@pytest.mark.parametrize("suite", ["ES256", "EdDSA"])
def test_a_signing_certificate_gives_the_registry_record(suite: str) -> None:
    issued = DOMAIN.issue_signing("D330100000001", HOSPITAL, suite, NOW_MS, 30)
    record = certs.signing_certificate(issued.cert_pem, DOMAIN.ca_pem)
    assert (record.subject_code, record.institution_code) == ("D330100000001", HOSPITAL)
    assert (record.suite, record.public_key) == (suite, issued.key.public_key)
    assert (record.not_before_ms, record.not_after_ms) == (issued.not_before_ms, issued.not_after_ms)
    assert record.serial == issued.serial


def test_a_signing_certificate_of_another_authority_is_refused() -> None:
    issued = FOREIGN.issue_signing("D1", HOSPITAL, "ES256", NOW_MS, 30)
    with pytest.raises(SigningCertificateError, match="not issued by this trust domain"):
        certs.signing_certificate(issued.cert_pem, DOMAIN.ca_pem)


def test_a_tls_certificate_signs_no_documents() -> None:
    pem = DOMAIN.issue_tls("hospital", HOSPITAL, NOW_MS, 30).cert_pem
    with pytest.raises(SigningCertificateError, match="document signing"):
        certs.signing_certificate(pem, DOMAIN.ca_pem)
    with pytest.raises(SigningCertificateError, match="document signing"):
        certs.signing_certificate(self_made(), DOMAIN.ca_pem)


def test_an_unreadable_signing_certificate_is_refused() -> None:
    with pytest.raises(SigningCertificateError, match="cannot be read"):
        certs.signing_certificate(b"", DOMAIN.ca_pem)


# The authority of the hand-made signing certificates below.
AUTHORITY_PEM = self_made(authority=True, common_name="authority")


def signing(subject: Sequence[tuple[x509.ObjectIdentifier, str]], key: rsa.RSAPrivateKey | None) -> bytes:
    start = datetime.fromtimestamp(NOW_MS // 1000, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(oid, value) for oid, value in subject]))
        .issuer_name(x509.load_pem_x509_certificate(AUTHORITY_PEM).subject)
        .public_key((key or KEY).public_key())
        .serial_number(7)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=1))
        .add_extension(x509.ExtendedKeyUsage([certs.DOCUMENT_SIGNING]), critical=True)
        .sign(KEY, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


CN, ORGANIZATION = NameOID.COMMON_NAME, NameOID.ORGANIZATION_IDENTIFIER


def test_a_hand_made_signing_certificate_is_read() -> None:
    pem = signing([(CN, "D1"), (ORGANIZATION, HOSPITAL)], None)
    assert certs.signing_certificate(pem, AUTHORITY_PEM).subject_code == "D1"


@pytest.mark.parametrize(
    "subject",
    [
        [(CN, "D1")],
        [(ORGANIZATION, HOSPITAL)],
        [(CN, "D1"), (CN, "D2"), (ORGANIZATION, HOSPITAL)],
        [(CN, "D 1"), (ORGANIZATION, HOSPITAL)],
        [(CN, "D1"), (ORGANIZATION, "../x")],
    ],
)
def test_a_signing_certificate_names_one_signer_and_one_institution(
    subject: list[tuple[x509.ObjectIdentifier, str]],
) -> None:
    with pytest.raises(SigningCertificateError, match="common name"):
        certs.signing_certificate(signing(subject, None), AUTHORITY_PEM)


def test_a_signing_certificate_with_a_key_of_no_suite_is_refused() -> None:
    pem = signing([(CN, "D1"), (ORGANIZATION, HOSPITAL)], rsa.generate_private_key(65537, 2048))
    with pytest.raises(SigningCertificateError, match="neither P-256 nor Ed25519"):
        certs.signing_certificate(pem, AUTHORITY_PEM)


# --- why a handshake fails ------------------------------------------------------------------------

CLIENT = DOMAIN.issue_tls("hospital", HOSPITAL, NOW_MS, 30)


def code(pem: bytes | None, ca_pem: bytes = DOMAIN.ca_pem, now_ms: int = NOW_MS) -> str | None:
    fault = certs.explain_tls(pem, ca_pem, now_ms)
    if fault is None:
        return None
    assert fault.en.isascii()
    assert any("一" <= character <= "鿿" for character in fault.zh)
    return fault.code


def test_a_good_certificate_has_no_fault() -> None:
    assert code(CLIENT.cert_pem) is None


def test_a_bundle_of_authorities_is_searched() -> None:
    assert code(CLIENT.cert_pem, FOREIGN.ca_pem + DOMAIN.ca_pem) is None


@pytest.mark.parametrize("pem", [None, b"", b" \n"])
def test_a_missing_certificate_is_named(pem: bytes | None) -> None:
    assert code(pem) == "TLS_CERTIFICATE_MISSING"


@pytest.mark.parametrize(
    "pem", [b"junk", CLIENT.key_pem, CLIENT.cert_pem[:100]], ids=["junk", "a key", "half a certificate"]
)
def test_an_unreadable_certificate_is_named(pem: bytes) -> None:
    assert code(pem) == "TLS_CERTIFICATE_UNREADABLE"
    assert code(CLIENT.cert_pem, pem) == "TLS_CA_UNREADABLE"


def test_a_foreign_certificate_is_named() -> None:
    assert code(FOREIGN.issue_tls("hub", "h", NOW_MS, 30).cert_pem) == "TLS_FOREIGN_CA"
    # The same issuer name is not enough: the signature decides.
    namesake = TrustDomain.in_memory("erxhub.test", NOW_MS)
    assert code(namesake.issue_tls("hub", "h", NOW_MS, 30).cert_pem) == "TLS_FOREIGN_CA"


def test_validity_is_told_to_the_second() -> None:
    begins, ends = CLIENT.not_before_ms, CLIENT.not_after_ms
    assert code(CLIENT.cert_pem, now_ms=begins - 1) == "TLS_NOT_YET_VALID"
    assert code(CLIENT.cert_pem, now_ms=begins) is None
    assert code(CLIENT.cert_pem, now_ms=ends + 999) is None
    assert code(CLIENT.cert_pem, now_ms=ends + 1000) == "TLS_EXPIRED"


def test_an_expired_authority_is_named_where_the_certificate_outlives_it() -> None:
    leaf = self_made_leaf(days=20_000)
    assert code(leaf, AUTHORITY_PEM, NOW_MS + 2 * DAY_MS) == "TLS_CA_EXPIRED"


def self_made_leaf(days: int) -> bytes:
    start = datetime.fromtimestamp(NOW_MS // 1000, UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.load_pem_x509_certificate(AUTHORITY_PEM).subject)
        .public_key(KEY.public_key())
        .serial_number(8)
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .sign(KEY, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )


def test_a_certificate_without_an_identity_is_named() -> None:
    assert code(self_made_leaf(days=1), AUTHORITY_PEM) == "TLS_NO_IDENTITY"


def test_a_signing_certificate_used_for_tls_is_named() -> None:
    signing_pem = DOMAIN.issue_signing("D1", HOSPITAL, "ES256", NOW_MS, 30).cert_pem
    assert code(signing_pem) == "TLS_NOT_FOR_CLIENTS"
