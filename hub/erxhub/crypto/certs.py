"""Who a TLS peer is, what a signing certificate says, and why a handshake will fail.

A peer's identity is the one URI among its subject alternative names, `spiffe://<trust domain>/<role>/<id>`.
The common name is never read: it is free text that any certificate authority fills in as it likes.

Owns: reading X.509 and the grammar of identities.
Must never: check a chain that TLS has checked already, or ask whether a certificate is revoked; revocation
changes over time and is read from the ledger.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CERTIFICATES_KEPT: Final = 4096  # parsed peer certificates; a peer opens few connections and sends many calls
CHAIN_LENGTH_MAX: Final = 4
URI_BYTES_MAX: Final = 2048  # SPIFFE ID §2.3

_NAME = r"(?!\.{1,2}\Z)[A-Za-z0-9._-]{1,64}"
_ROLE_IDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "hospital": r"H[0-9]{11}",
        "pharmacy": r"P[0-9]{11}",
        "agency": r"[0-9]{6}",
        "supervisor": r"[0-9]{6}",
        "channel": _NAME,
        "auditor": _NAME,
        "mirror": _NAME,
        "hub": _NAME,
        "witness": _NAME,
        "sandbox": _NAME,
    }
)
ROLES: Final = frozenset(_ROLE_IDS)

DOCUMENT_SIGNING: Final = x509.ObjectIdentifier("1.3.6.1.5.5.7.3.36")
"""RFC 9336. A certificate with this extended key usage alone is refused by every TLS stack."""

_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]{1,255}", re.ASCII)
_SPIFFE_ID = re.compile(r"spiffe://([^/]*)/([^/]*)/([^/]*)")
_SIGNER_CODE = re.compile(_NAME, re.ASCII)


def epoch_ms(instant: datetime) -> int:
    """An aware instant as UTC milliseconds, without the rounding of a float."""
    since = instant - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


def iso_time(at_ms: int) -> str:
    """UTC milliseconds as people read them, to the second."""
    return datetime.fromtimestamp(at_ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def is_trust_domain(name: str) -> bool:
    """Whether this can be the name of a trust domain: lower-case letters, digits, dot, hyphen, underscore."""
    return _TRUST_DOMAIN.fullmatch(name) is not None


def is_identity(role: str, peer_id: str) -> bool:
    """Whether a certificate may say role/peer_id: a known role, and the form of id that the role has."""
    pattern = _ROLE_IDS.get(role)
    return pattern is not None and re.fullmatch(pattern, peer_id, re.ASCII) is not None


def is_signer_code(code: str) -> bool:
    """Whether this can name a person or an institution in a signing certificate."""
    return _SIGNER_CODE.fullmatch(code) is not None


def identity_uri(trust_domain: str, role: str, peer_id: str) -> str:
    """`spiffe://<trust domain>/<role>/<peer_id>`. Raises ValueError for what `peer_identity` would refuse."""
    if not is_trust_domain(trust_domain) or not is_identity(role, peer_id):
        raise ValueError(f"not an identity of a trust domain: {trust_domain!r}, {role!r}, {peer_id!r}")
    return f"spiffe://{trust_domain}/{role}/{peer_id}"


# --- peers ----------------------------------------------------------------------------------------


class PeerIdentityError(Exception):
    """A certificate that TLS accepted and that still names nobody (refusal PEER_IDENTITY).

    `reason` is one of UNREADABLE, NO_URI, SEVERAL_URIS, FOREIGN_TRUST_DOMAIN, MALFORMED, CA_CERTIFICATE; and EXPIRED or
    NOT_YET_VALID from whoever holds it against a clock.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """Who is calling.

    `fingerprint` is the SHA-256 of the DER, `serial` lower-case hexadecimal without leading zeros.
    """

    role: str
    id: str
    fingerprint: bytes
    not_before_ms: int
    not_after_ms: int
    serial: str

    @property
    def path(self) -> str:
        """role/id, as entries name an actor."""
        return f"{self.role}/{self.id}"


def serial_text(certificate: x509.Certificate) -> str:
    """The serial number as records carry it: lower-case hexadecimal without leading zeros."""
    return f"{certificate.serial_number:x}"


def certificate_fingerprint(certificate: x509.Certificate) -> bytes:
    """SHA-256 of the DER."""
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()


def _uris(certificate: x509.Certificate) -> list[str]:
    """The URI names of a certificate. Raises ValueError when the extensions cannot be read."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return []
    except x509.DuplicateExtension as error:
        raise ValueError("an extension occurs twice") from error
    return names.value.get_values_for_type(x509.UniformResourceIdentifier)


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _extended_usages(certificate: x509.Certificate) -> list[x509.ObjectIdentifier] | None:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        return None


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return _is_authority(authority)


@functools.lru_cache(maxsize=CERTIFICATES_KEPT)
def peer_identity(pem: bytes, trust_domain: str) -> PeerIdentity:
    """Who the certificate speaks for. Raises PeerIdentityError.

    1. It can be read, and is no certificate authority.
    2. Exactly one of its names is a URI; other names (a server's DNS names) do not matter, nor does the
    subject.
    3. The URI is `spiffe://<trust_domain>/<role>/<id>` and nothing more: no port, query, fragment or
    escape.
    4. The role is known and the id has the form of that role.

    Validity and issuer are TLS's to check; the dates are returned because a connection outlives them.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        uris = _uris(certificate)
        authority = _is_authority(certificate)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PeerIdentityError("UNREADABLE", "the certificate cannot be read") from error
    if authority:
        raise PeerIdentityError("CA_CERTIFICATE", "a certificate authority's own certificate speaks for nobody")

    if not uris:
        raise PeerIdentityError(
            "NO_URI",
            f"the certificate has no URI name spiffe://{trust_domain}/<role>/<id>; a common name is not read",
        )
    if len(uris) > 1:
        raise PeerIdentityError(
            "SEVERAL_URIS", "the certificate has several URI names; exactly one may identify a peer"
        )

    match = _SPIFFE_ID.fullmatch(uris[0]) if len(uris[0]) <= URI_BYTES_MAX else None
    if match is None:
        raise PeerIdentityError("MALFORMED", f"the URI name is not of the form spiffe://{trust_domain}/<role>/<id>")
    domain, role, peer_id = match.groups()
    if domain != trust_domain:
        raise PeerIdentityError("FOREIGN_TRUST_DOMAIN", f"the certificate is not of the trust domain {trust_domain}")
    if not is_identity(role, peer_id):
        raise PeerIdentityError("MALFORMED", "the URI name has an unknown role, or an id not of the role's form")
    return PeerIdentity(
        role=role,
        id=peer_id,
        fingerprint=certificate_fingerprint(certificate),
        not_before_ms=epoch_ms(certificate.not_valid_before_utc),
        not_after_ms=epoch_ms(certificate.not_valid_after_utc),
        serial=serial_text(certificate),
    )


def is_issued_by(pem: bytes, ca_pem: bytes) -> bool:
    """Whether the certificate, with the issuers that follow it in `pem`, ends under an authority of `ca_pem`.

    Validity is not looked at. False as well when anything cannot be read.
    """
    try:
        chain = x509.load_pem_x509_certificates(pem)
        authorities = x509.load_pem_x509_certificates(ca_pem)
        return _anchor(chain, authorities) is not None
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        return False


def trust_domain_of(pem: bytes) -> str:
    """The trust domain that a certificate's one URI name claims. Raises PeerIdentityError."""
    try:
        uris = _uris(x509.load_pem_x509_certificate(pem))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PeerIdentityError("UNREADABLE", "the certificate cannot be read") from error
    match = _SPIFFE_ID.fullmatch(uris[0]) if len(uris) == 1 else None
    if match is None:
        raise PeerIdentityError("MALFORMED", "the certificate has no URI name spiffe://<trust domain>/<role>/<id>")
    return str(match.group(1))


def holds_certificates(pem: bytes) -> bool:
    """Whether this is a PEM of certificates and nothing that cannot be read."""
    try:
        return bool(x509.load_pem_x509_certificates(pem))
    except (ValueError, UnsupportedAlgorithm):
        return False


def key_matches(certificate_pem: bytes, key_pem: bytes) -> bool:
    """Whether key and certificate belong together; between two file writes of a renewal they do not."""
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        key = serialization.load_pem_private_key(key_pem, password=None)
        return certificate.public_key() == key.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False


# --- signing certificates -------------------------------------------------------------------------


class SigningCertificateError(Exception):
    """A certificate that cannot become a signing key of the registry; the message says why and what would."""


@dataclass(frozen=True, slots=True)
class SigningCertificate:
    """What a registry record of a signing key is made from. `suite` is a name of `suites.SUITES`."""

    subject_code: str
    institution_code: str
    suite: str
    public_key: bytes
    not_before_ms: int
    not_after_ms: int
    serial: str
    fingerprint: bytes


def x509_public_key(suite: str, public_key: bytes) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
    """The key that a certificate of the suite carries. Raises ValueError for SM2-SM3."""
    if suite == "EdDSA":
        return ed25519.Ed25519PublicKey.from_public_bytes(public_key)
    if suite == "ES256":
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), public_key)
    raise ValueError(f"no certificates are made for {suite}")


def _only_name(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str:
    values = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(oid)]
    if len(values) != 1 or not isinstance(values[0], str) or not is_signer_code(values[0]):
        raise SigningCertificateError(
            "the subject must hold the signer's code as its one common name "
            "and the institution's code as its one organization identifier (2.5.4.97)"
        )
    return values[0]


def signing_certificate(pem: bytes, ca_pem: bytes) -> SigningCertificate:
    """Reads a signing certificate that `ca_pem` must have issued. Raises SigningCertificateError.

    1. It can be read and an authority of `ca_pem` signed it.
    2. Its only extended key usage is document signing: a TLS certificate never signs documents.
    3. Its subject names signer and institution, and its key is of a suite that X.509 carries here (ES256,
    EdDSA).
    """
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        usages = _extended_usages(certificate)
        authorities = x509.load_pem_x509_certificates(ca_pem)
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise SigningCertificateError("the certificate, or the authority's, cannot be read") from error
    if usages != [DOCUMENT_SIGNING]:
        raise SigningCertificateError("the certificate is not for document signing alone; issue one for signing")
    if not any(_issued_by(certificate, authority) for authority in authorities):
        raise SigningCertificateError("the certificate was not issued by this trust domain")

    if isinstance(key, ed25519.Ed25519PublicKey):
        suite, public_key = "EdDSA", key.public_bytes_raw()
    elif isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        suite = "ES256"
        public_key = key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    else:
        raise SigningCertificateError(
            "the key is neither P-256 nor Ed25519; SM2 keys are registered without a certificate"
        )
    return SigningCertificate(
        subject_code=_only_name(certificate, NameOID.COMMON_NAME),
        institution_code=_only_name(certificate, NameOID.ORGANIZATION_IDENTIFIER),
        suite=suite,
        public_key=public_key,
        not_before_ms=epoch_ms(certificate.not_valid_before_utc),
        not_after_ms=epoch_ms(certificate.not_valid_after_utc),
        serial=serial_text(certificate),
        fingerprint=certificate_fingerprint(certificate),
    )


# --- why a handshake fails ------------------------------------------------------------------------


class TlsFault(NamedTuple):
    """What is wrong with a local certificate, and what to do about it, in both languages."""

    code: str
    en: str
    zh: str


def _anchor(chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate]) -> x509.Certificate | None:
    """The authority under which `chain` (leaf first, issuers in any order) ends, or None."""
    current = chain[0]
    for _ in range(CHAIN_LENGTH_MAX):
        for authority in authorities:
            if _issued_by(current, authority):
                return authority
        issuer = next((other for other in chain[1:] if other != current and _issued_by(current, other)), None)
        if issuer is None:
            return None
        current = issuer
    return None


def explain_tls(client_cert_pem: bytes | None, ca_pem: bytes, now_ms: int) -> TlsFault | None:
    """Why a server that trusts `ca_pem` would refuse this certificate at `now_ms`; None if it would not.

    A failed TLS 1.3 handshake reaches a gRPC client as "Socket closed" and no more, so that client library
    and doctor look at the local files instead. The codes: TLS_CERTIFICATE_MISSING,
    TLS_CERTIFICATE_UNREADABLE, TLS_CA_UNREADABLE, TLS_FOREIGN_CA, TLS_NOT_YET_VALID, TLS_EXPIRED,
    TLS_CA_EXPIRED, TLS_NOT_FOR_CLIENTS, TLS_NO_IDENTITY; the first that applies is reported. A revoked
    certificate cannot be told from here: the hub answers CERT_REVOKED.
    """
    if not client_cert_pem or not client_cert_pem.strip():
        return TlsFault(
            "TLS_CERTIFICATE_MISSING",
            "No client certificate was given, and the hub requires one. Name the files made by 'erxhub ca issue'.",
            "未提供客户端证书，中心要求双向 TLS。请指定由 erxhub ca issue 签发的证书文件。",
        )
    try:
        chain = x509.load_pem_x509_certificates(client_cert_pem)
        leaf_usages = _extended_usages(chain[0])
        uris = _uris(chain[0])
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension):
        return TlsFault(
            "TLS_CERTIFICATE_UNREADABLE",
            "The client certificate file is not a readable PEM certificate. Check that it is not the key or cut short.",
            "客户端证书文件不是可读取的 PEM 证书。请检查是否误用了私钥文件或文件不完整。",
        )
    try:
        authorities = x509.load_pem_x509_certificates(ca_pem)
    except (ValueError, UnsupportedAlgorithm):
        return TlsFault(
            "TLS_CA_UNREADABLE",
            "The authority file (ca.pem) is not a readable PEM certificate.",
            "根证书文件（ca.pem）不是可读取的 PEM 证书。",
        )
    return _validity_fault(chain, authorities, now_ms) or _usage_fault(leaf_usages, uris)


def _validity_fault(
    chain: Sequence[x509.Certificate], authorities: Sequence[x509.Certificate], now_ms: int
) -> TlsFault | None:
    anchor = _anchor(chain, authorities)
    if anchor is None:
        return TlsFault(
            "TLS_FOREIGN_CA",
            "The client certificate was not issued by the authority in ca.pem. "
            "Certificate and ca.pem must come from the same trust domain.",
            "客户端证书不是由 ca.pem 中的机构签发。证书与 ca.pem 必须属于同一信任域。",
        )
    begins, ends = epoch_ms(chain[0].not_valid_before_utc), epoch_ms(chain[0].not_valid_after_utc)
    if now_ms < begins:
        return TlsFault(
            "TLS_NOT_YET_VALID",
            f"The client certificate is valid from {iso_time(begins)} and it is {iso_time(now_ms)} here. "
            "Check the clock.",
            f"客户端证书自 {iso_time(begins)} 起有效，而本机时间为 {iso_time(now_ms)}。请检查时钟。",
        )
    if now_ms >= ends + 1000:  # the last second is part of the validity (RFC 5280 §4.1.2.5)
        return TlsFault(
            "TLS_EXPIRED",
            f"The client certificate expired at {iso_time(ends)}. Issue a new one with 'erxhub ca issue'.",
            f"客户端证书已于 {iso_time(ends)} 过期。请用 erxhub ca issue 重新签发。",
        )
    anchor_ends = epoch_ms(anchor.not_valid_after_utc)
    if now_ms >= anchor_ends + 1000:
        return TlsFault(
            "TLS_CA_EXPIRED",
            f"The authority in ca.pem expired at {iso_time(anchor_ends)}. The trust domain needs a new one.",
            f"ca.pem 中的根证书已于 {iso_time(anchor_ends)} 过期。信任域需要新的根证书。",
        )
    return None


def _usage_fault(usages: Sequence[x509.ObjectIdentifier] | None, uris: Sequence[str]) -> TlsFault | None:
    if usages is not None and ExtendedKeyUsageOID.CLIENT_AUTH not in usages:
        return TlsFault(
            "TLS_NOT_FOR_CLIENTS",
            "The certificate is not for TLS clients (a signing certificate signs documents only). "
            "Use the TLS certificate.",
            "该证书不能用于 TLS 客户端（签名证书仅用于签署文件）。请使用 TLS 证书。",
        )
    if not any(_SPIFFE_ID.fullmatch(uri) for uri in uris):
        return TlsFault(
            "TLS_NO_IDENTITY",
            "The client certificate has no URI name spiffe://<trust domain>/<role>/<id>; a common name is not read.",
            "客户端证书没有 spiffe://<信任域>/<角色>/<编号> 形式的 URI 名称；通用名（CN）不作为身份。",
        )
    return None
