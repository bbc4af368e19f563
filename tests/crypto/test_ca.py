import json
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from erxhub.crypto import certs
from erxhub.crypto.ca import (
    CLOCK_SKEW_MS,
    DAYS_MAX,
    REVOCATION_REASONS,
    Identity,
    SigningIdentity,
    TrustDomain,
    TrustDomainError,
)
from erxhub.crypto.suites import SUITES

NOW_MS = 1_757_326_792_488
SECOND_MS = NOW_MS // 1000 * 1000
DAY_MS = 86_400_000
HOSPITAL = "H33010000001"

every_suite = pytest.mark.parametrize("suite", SUITES)


@pytest.fixture
def domain(tmp_path: Path) -> TrustDomain:
    return TrustDomain.init(tmp_path / "pki", "erxhub.test", NOW_MS)


@pytest.fixture
def root(domain: TrustDomain, tmp_path: Path) -> Path:
    return tmp_path / "pki"


# --- the files ------------------------------------------------------------------------------------


def test_private_files_are_private_and_so_are_their_directories(domain: TrustDomain, root: Path) -> None:
    domain.issue_tls("hospital", HOSPITAL, NOW_MS, 30)
    domain.issue_signing("D1", HOSPITAL, "SM2-SM3", NOW_MS, 30)
    keys = [path for path in root.rglob("*") if path.name.endswith("key.pem")]
    assert len(keys) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in keys} == {0o600}
    directories = [root, *(path for path in root.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(path.stat().st_mode) for path in directories} == {0o700}


def test_no_unfinished_file_is_left_and_a_stale_one_does_no_harm(domain: TrustDomain, root: Path) -> None:
    stale = root / ".index.json.new"
    stale.write_bytes(b"half an ind")
    domain.issue_tls("hub", "h", NOW_MS, 30)
    assert not list(root.rglob("*.new"))


def test_what_was_made_can_be_opened_again(domain: TrustDomain, root: Path) -> None:
    issued = domain.issue_tls("hub", "h", NOW_MS, 30)
    again = TrustDomain.open(root)
    assert again.trust_domain == "erxhub.test"
    assert again.ca_pem == domain.ca_pem
    assert again.list() == domain.list()
    assert again.list()[0].serial == issued.serial


def test_an_authority_is_never_replaced(domain: TrustDomain, root: Path) -> None:
    before = (root / "ca.key.pem").read_bytes()
    with pytest.raises(TrustDomainError, match="already"):
        TrustDomain.init(root, "erxhub.test", NOW_MS)
    assert (root / "ca.key.pem").read_bytes() == before


def test_an_empty_directory_is_no_trust_domain(tmp_path: Path) -> None:
    with pytest.raises(TrustDomainError, match="erxhub ca init"):
        TrustDomain.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ca.pem", b"junk", "cannot be read"),
        ("ca.key.pem", b"junk", "cannot be read"),
        ("index.json", b"{", "cannot be read"),
        ("index.json", b'{"trust_domain": "x", "format": 2}', "another version"),
    ],
)
def test_damaged_files_are_named(domain: TrustDomain, root: Path, name: str, content: bytes, message: str) -> None:
    (root / name).write_bytes(content)
    with pytest.raises(TrustDomainError, match=message):
        TrustDomain.open(root)


def test_a_key_of_another_authority_is_noticed(domain: TrustDomain, root: Path, tmp_path: Path) -> None:
    TrustDomain.init(tmp_path / "other", "erxhub.test", NOW_MS)
    (root / "ca.key.pem").write_bytes((tmp_path / "other/ca.key.pem").read_bytes())
    with pytest.raises(TrustDomainError, match="not the key"):
        TrustDomain.open(root)


@pytest.mark.parametrize("name", ["", "Erxhub", "a/b", "a b", "a" * 256, "ａ"])
def test_a_bad_trust_domain_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(TrustDomainError, match="not a trust domain"):
        TrustDomain.init(tmp_path / "pki", name, NOW_MS)
    assert not (tmp_path / "pki").exists()


def test_a_trust_domain_in_memory_leaves_no_path() -> None:
    memory = TrustDomain.in_memory("erxhub.test", NOW_MS)
    assert memory.issue_tls("hub", "h", NOW_MS, 1, ("localhost",)).path is None
    assert memory.issue_signing("D1", HOSPITAL, "EdDSA", NOW_MS, 1).path is None
    assert len(memory.list()) == 2


# --- TLS identities -------------------------------------------------------------------------------


def test_a_tls_identity_is_who_it_was_issued_to(domain: TrustDomain, root: Path) -> None:
    issued = domain.issue_tls("hospital", HOSPITAL, NOW_MS, 30)
    peer = certs.peer_identity(issued.cert_pem, "erxhub.test")
    assert peer.path == f"hospital/{HOSPITAL}"
    assert (peer.serial, peer.fingerprint) == (issued.serial, issued.fingerprint)
    assert issued.path == root / f"tls/hospital/{HOSPITAL}"
    assert Identity.load(issued.path) == issued


def test_a_tls_certificate_begins_a_little_early_and_lasts_the_days_asked_for(domain: TrustDomain) -> None:
    issued = domain.issue_tls("hub", "h", NOW_MS, 30)
    assert issued.not_before_ms == (NOW_MS - CLOCK_SKEW_MS) // 1000 * 1000
    assert issued.not_after_ms == SECOND_MS + 30 * DAY_MS


def test_hosts_make_an_identity_a_servers(domain: TrustDomain) -> None:
    pem = domain.issue_tls("hub", "h", NOW_MS, 30, ("localhost", "127.0.0.1", "::1")).cert_pem
    certificate = x509.load_pem_x509_certificate(pem)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {usage._name for usage in usages} == {"clientAuth", "serverAuth"}


@pytest.mark.parametrize("host", ["", "a b", "a/b", "*", "ｈ", "a" * 254])
def test_a_bad_host_is_refused(domain: TrustDomain, host: str) -> None:
    with pytest.raises(TrustDomainError, match="host name"):
        domain.issue_tls("hub", "h", NOW_MS, 30, (host,))
    assert domain.list() == ()


def test_limits_hold(domain: TrustDomain) -> None:
    with pytest.raises(TrustDomainError, match="host names"):
        domain.issue_tls("hub", "h", NOW_MS, 30, ["localhost"] * 33)
    for days in (0, -1, DAYS_MAX + 1):
        with pytest.raises(TrustDomainError, match="days"):
            domain.issue_tls("hub", "h", NOW_MS, days)
        with pytest.raises(TrustDomainError, match="days"):
            domain.issue_signing("D1", HOSPITAL, "SM2-SM3", NOW_MS, days)


def test_no_certificate_outlives_its_authority(domain: TrustDomain) -> None:
    with pytest.raises(TrustDomainError, match="expires before"):
        domain.issue_tls("hub", "h", NOW_MS + 3640 * DAY_MS, 30)


@pytest.mark.parametrize(("role", "peer_id"), [("hospital", "H1"), ("doctor", "D1"), ("channel", "../../x")])
def test_what_peer_identity_would_refuse_is_not_issued(domain: TrustDomain, role: str, peer_id: str) -> None:
    with pytest.raises(TrustDomainError, match="not a role"):
        domain.issue_tls(role, peer_id, NOW_MS, 30)


def test_issuing_again_replaces_the_files_and_keeps_both_records(domain: TrustDomain) -> None:
    first = domain.issue_tls("hub", "h", NOW_MS, 30)
    second = domain.issue_tls("hub", "h", NOW_MS, 30)
    assert first.path is not None
    assert Identity.load(first.path) == second
    assert [issued.serial for issued in domain.list()] == [first.serial, second.serial]


def test_a_torn_pair_of_files_is_noticed(domain: TrustDomain) -> None:
    first = domain.issue_tls("hub", "h", NOW_MS, 30)
    assert first.path is not None
    domain.issue_tls("hub", "h", NOW_MS, 30)
    (first.path / "cert.pem").write_bytes(first.cert_pem)
    with pytest.raises(TrustDomainError, match="do not belong together"):
        Identity.load(first.path)


def test_a_missing_identity_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrustDomainError, match="no TLS identity"):
        Identity.load(tmp_path)
    with pytest.raises(TrustDomainError, match="no signing key"):
        SigningIdentity.load(tmp_path)


@every_suite
def test_reprs_hold_no_private_key(domain: TrustDomain, suite: str) -> None:
    assert "PRIVATE" not in repr(domain.issue_tls("hub", "h", NOW_MS, 30))
    assert "PRIVATE" not in repr(domain.issue_signing("D1", HOSPITAL, suite, NOW_MS, 30))


def _handshake(server: Identity, client: Identity | SigningIdentity, tmp_path: Path) -> None:
    """A TLS handshake in memory that ignores dates (the certificates are of a fixed day). Raises SSLError."""

    def context(side: int, cert_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
        chain = tmp_path / f"chain{side}.pem"
        chain.write_bytes(cert_pem + key_pem)
        made = ssl.SSLContext(side)
        made.load_verify_locations(cadata=server.ca_pem.decode())
        made.load_cert_chain(chain)
        made.verify_mode = ssl.CERT_REQUIRED
        made.verify_flags |= 0x200000  # X509_V_FLAG_NO_CHECK_TIME
        return made

    key_pem = client.key_pem if isinstance(client, Identity) else client.key.to_pem()
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    servers = context(ssl.PROTOCOL_TLS_SERVER, server.cert_pem, server.key_pem).wrap_bio(
        to_server, to_client, server_side=True
    )
    clients = context(ssl.PROTOCOL_TLS_CLIENT, client.cert_pem, key_pem).wrap_bio(
        to_client, to_server, server_hostname="localhost"
    )
    for side in (clients, servers, clients, servers):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue


def test_issued_identities_shake_hands(domain: TrustDomain, tmp_path: Path) -> None:
    server = domain.issue_tls("hub", "h", NOW_MS, 30, ("localhost",))
    _handshake(server, domain.issue_tls("hospital", HOSPITAL, NOW_MS, 30), tmp_path)


def test_a_signing_certificate_is_no_tls_identity(domain: TrustDomain, tmp_path: Path) -> None:
    server = domain.issue_tls("hub", "h", NOW_MS, 30, ("localhost",))
    signing = domain.issue_signing("D1", HOSPITAL, "ES256", NOW_MS, 30)
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(server, signing, tmp_path)


def test_a_foreign_identity_is_refused_in_the_handshake(domain: TrustDomain, tmp_path: Path) -> None:
    server = domain.issue_tls("hub", "h", NOW_MS, 30, ("localhost",))
    foreign = TrustDomain.in_memory("erxhub.test", NOW_MS).issue_tls("hospital", HOSPITAL, NOW_MS, 30)
    with pytest.raises(ssl.SSLCertVerificationError):
        _handshake(server, foreign, tmp_path)


# --- signing keys ---------------------------------------------------------------------------------


@every_suite
def test_a_signing_identity_signs_and_can_be_loaded(domain: TrustDomain, suite: str) -> None:
    issued = domain.issue_signing("D330100000001", HOSPITAL, suite, NOW_MS, 30)
    assert (issued.suite, issued.not_before_ms) == (suite, SECOND_MS)
    assert issued.not_after_ms == SECOND_MS + 30 * DAY_MS
    assert issued.path is not None
    loaded = SigningIdentity.load(issued.path)
    assert loaded.record() == issued.record()
    assert SUITES[suite].verify(issued.key.public_key, b"m", loaded.key.sign(b"m"))


def test_sm2_keys_come_as_a_bare_record(domain: TrustDomain) -> None:
    issued = domain.issue_signing("D1", HOSPITAL, "SM2-SM3", NOW_MS, 30)
    assert (issued.cert_pem, issued.serial) == (b"", "")
    assert issued.path is not None
    record = json.loads((issued.path / "record.json").read_bytes())
    assert record == {
        "subject_code": "D1",
        "institution_code": HOSPITAL,
        "suite": "SM2-SM3",
        "public_key": issued.key.public_key.hex(),
        "key_id": issued.key.key_id,
        "not_before_ms": SECOND_MS,
        "not_after_ms": SECOND_MS + 30 * DAY_MS,
        "serial": "",
    }
    assert not (issued.path / "cert.pem").exists()


def test_a_new_signing_key_leaves_the_old_one_in_place(domain: TrustDomain) -> None:
    old, new = (domain.issue_signing("D1", HOSPITAL, "EdDSA", NOW_MS, 30) for _ in range(2))
    assert old.path is not None
    assert old.path != new.path
    assert SigningIdentity.load(old.path).key.key_id == old.key.key_id


def test_tls_and_signing_keys_are_different_keys(domain: TrustDomain) -> None:
    tls = domain.issue_tls("hospital", HOSPITAL, NOW_MS, 30)
    seal = domain.issue_signing(HOSPITAL, HOSPITAL, "ES256", NOW_MS, 30)
    key = x509.load_pem_x509_certificate(tls.cert_pem).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key != x509.load_pem_x509_certificate(seal.cert_pem).public_key()


def test_an_unknown_suite_or_a_bad_code_is_refused(domain: TrustDomain) -> None:
    with pytest.raises(TrustDomainError, match="unknown suite"):
        domain.issue_signing("D1", HOSPITAL, "RS256", NOW_MS, 30)
    for subject, institution in (("", HOSPITAL), ("D1", ".."), ("a/b", HOSPITAL), ("名", HOSPITAL)):
        with pytest.raises(TrustDomainError, match="codes"):
            domain.issue_signing(subject, institution, "ES256", NOW_MS, 30)


def test_a_record_of_another_key_is_noticed(domain: TrustDomain) -> None:
    one, other = (domain.issue_signing("D1", HOSPITAL, "SM2-SM3", NOW_MS, 30) for _ in range(2))
    assert one.path is not None
    assert other.path is not None
    (one.path / "record.json").write_bytes((other.path / "record.json").read_bytes())
    with pytest.raises(TrustDomainError, match="do not belong together"):
        SigningIdentity.load(one.path)
    (one.path / "record.json").write_bytes(b"[]")
    with pytest.raises(TrustDomainError, match="cannot be read"):
        SigningIdentity.load(one.path)


# --- revocation -----------------------------------------------------------------------------------


def _crl(domain: TrustDomain) -> x509.CertificateRevocationList:
    crl = x509.load_pem_x509_crl(domain.crl_pem())
    key = x509.load_pem_x509_certificate(domain.ca_pem).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert crl.is_signature_valid(key)
    return crl


def _crl_number(domain: TrustDomain) -> int:
    return _crl(domain).extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def test_a_new_trust_domain_has_an_empty_crl(domain: TrustDomain, root: Path) -> None:
    assert len(_crl(domain)) == 0
    assert _crl_number(domain) == 1
    assert (root / "crl.pem").read_bytes() == domain.crl_pem()


def test_a_replaced_certificate_is_kept_for_its_revocation(domain: TrustDomain) -> None:
    first, second = domain.issue_tls("hub", "h", NOW_MS, 30), domain.issue_tls("hub", "h", NOW_MS, 30)
    assert domain.certificate_pem(domain.revoke(first.serial, "keyCompromise", NOW_MS)) == first.cert_pem
    assert certs.is_issued_by(second.cert_pem, domain.ca_pem)
    assert not certs.is_issued_by(second.cert_pem, TrustDomain.in_memory("example.org", NOW_MS).ca_pem)
    assert not certs.is_issued_by(b"noise", domain.ca_pem)


def test_a_signing_key_has_no_connection_certificate(domain: TrustDomain) -> None:
    domain.issue_signing("D330100990001", "H33010099901", "ES256", NOW_MS, 30)
    with pytest.raises(TrustDomainError, match="not kept"):
        domain.certificate_pem(domain.list()[0])


def test_a_revoked_certificate_is_in_the_crl_with_its_reason(domain: TrustDomain) -> None:
    kept, issued = domain.issue_tls("hub", "kept", NOW_MS, 30), domain.issue_tls("hub", "h", NOW_MS, 30)
    record = domain.revoke(issued.serial, "keyCompromise", NOW_MS + 5000)
    assert (record.revoked_at_ms, record.reason) == (NOW_MS + 5000, "keyCompromise")
    crl = _crl(domain)
    entry = crl.get_revoked_certificate_by_serial_number(int(issued.serial, 16))
    assert entry is not None
    assert certs.epoch_ms(entry.revocation_date_utc) == SECOND_MS + 5000
    reason = entry.extensions.get_extension_for_class(x509.CRLReason).value.reason
    assert reason is x509.ReasonFlags.key_compromise
    assert crl.get_revoked_certificate_by_serial_number(int(kept.serial, 16)) is None
    assert _crl_number(domain) == 2
    assert domain.list() == (domain.list()[0], record)


@every_suite
def test_serial_fingerprint_and_key_id_all_name_a_key(domain: TrustDomain, suite: str) -> None:
    domain.issue_signing("D1", HOSPITAL, suite, NOW_MS, 30)
    (issued,) = domain.list()
    upper = ":".join(issued.fingerprint[at : at + 2] for at in range(0, 64, 2)).upper()
    for identifier in filter(None, (issued.serial, upper, issued.key_id)):
        assert domain.revoke(identifier, "superseded", NOW_MS).key_id == issued.key_id


def test_a_revoked_sm2_key_is_in_the_index_and_not_in_the_crl(domain: TrustDomain) -> None:
    issued = domain.issue_signing("D1", HOSPITAL, "SM2-SM3", NOW_MS, 30)
    domain.revoke(issued.key.key_id, "cessationOfOperation", NOW_MS)
    assert domain.list()[0].revoked_at_ms == NOW_MS
    assert len(_crl(domain)) == 0


def test_revoking_twice_answers_the_first_revocation_and_renews_the_crl(domain: TrustDomain) -> None:
    issued = domain.issue_tls("hub", "h", NOW_MS, 30)
    first = domain.revoke(issued.serial, "keyCompromise", NOW_MS)
    assert domain.revoke(issued.serial, "superseded", NOW_MS + DAY_MS) == first
    crl = _crl(domain)
    assert len(crl) == 1
    assert certs.epoch_ms(crl.last_update_utc) == SECOND_MS + DAY_MS


def test_a_revocation_outlives_the_process(domain: TrustDomain, root: Path) -> None:
    issued = domain.issue_tls("hub", "h", NOW_MS, 30)
    record = domain.revoke(issued.serial, "keyCompromise", NOW_MS)
    assert TrustDomain.open(root).list() == (record,)
    TrustDomain.open(root).issue_tls("hub", "h", NOW_MS, 30)
    assert [one.revoked_at_ms for one in domain.list()] == [NOW_MS, None]


@pytest.mark.parametrize("identifier", ["", ":", "00", "ff" * 32])
def test_an_unknown_identifier_revokes_nothing(domain: TrustDomain, identifier: str) -> None:
    domain.issue_signing("D1", HOSPITAL, "SM2-SM3", NOW_MS, 30)
    with pytest.raises(TrustDomainError, match="nothing was issued"):
        domain.revoke(identifier, "keyCompromise", NOW_MS)
    assert _crl_number(domain) == 1


def test_reasons_are_those_of_the_standard_without_the_temporary_ones(domain: TrustDomain) -> None:
    issued = domain.issue_tls("hub", "h", NOW_MS, 30)
    assert "keyCompromise" in REVOCATION_REASONS
    for reason in ("certificateHold", "removeFromCRL", "because"):
        with pytest.raises(TrustDomainError, match="unknown reason"):
            domain.revoke(issued.serial, reason, NOW_MS)


@pytest.mark.parametrize("reason", sorted(REVOCATION_REASONS))
def test_every_reason_makes_a_readable_crl(domain: TrustDomain, reason: str) -> None:
    domain.revoke(domain.issue_tls("hub", "h", NOW_MS, 30).serial, reason, NOW_MS)
    assert len(_crl(domain)) == 1
