"""The trust domain of a demonstration or a test: one authority, TLS identities, signing keys, revocations.

    ca.pem  ca.key.pem  crl.pem  index.json
    tls/<role>/<id>/              cert.pem key.pem ca.pem          replaced when issued again
    issued/<fingerprint>.pem                                       every TLS certificate, for its revocation
    signing/<institution>/<subject>/<key id>/  key.pem cert.pem record.json          kept

A real deployment brings certificates of its own authority; the hub needs only `ca.pem` and the URI names.

Owns: private key files (0600 in directories of 0700), the index of what was issued, and the CRL.
Must never: reuse a key for both TLS and signing, or tell the hub about a revocation. The CRL serves TLS
stacks that read one; the hub learns from Registry.RevokeCertificate.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ipaddress
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from erxhub.crypto import certs
from erxhub.crypto.ca_files import Directory, Files, Memory
from erxhub.crypto.suites import DEFAULT_SUITE, SUITES, SigningKey

AUTHORITY_DAYS: Final = 3650
DAYS_MAX: Final = 825  # the longest that TLS clients of this decade accept
HOSTS_MAX: Final = 32
CRL_DAYS: Final = 30
CLOCK_SKEW_MS: Final = 5 * 60 * 1000
"""TLS certificates begin this much earlier: a peer whose clock is a little behind takes them at once."""

REVOCATION_REASONS: Final[Mapping[str, x509.ReasonFlags]] = {
    flag.value: flag
    for flag in x509.ReasonFlags
    if flag not in (x509.ReasonFlags.remove_from_crl, x509.ReasonFlags.certificate_hold)
}
"""RFC 5280 §5.3.1 by name, without the two of a hold: a revocation here is final."""

_INDEX_FORMAT = 1

_CertifiedKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


class TrustDomainError(Exception):
    """The request cannot be met; the message says why and what would."""


@dataclass(frozen=True, slots=True)
class Issued:
    """One line of the index. Times are UTC milliseconds.

    `kind` is "tls" or "signing"; `subject` is role/id, or the signer's code. `fingerprint` is the
    hexadecimal SHA-256 of the certificate's DER, and `serial` its number in hexadecimal; an SM2 key has no
    certificate, an empty serial, and the SHA-256 of its 65-byte public key as fingerprint. `key_id` is
    empty for TLS. `path` is relative to the trust domain.
    """

    kind: str
    subject: str
    institution_code: str
    suite: str
    key_id: str
    serial: str
    fingerprint: str
    not_before_ms: int
    not_after_ms: int
    path: str
    revoked_at_ms: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """A TLS identity: what a gRPC channel or server needs. `path` is its directory, None in memory."""

    role: str
    id: str
    cert_pem: bytes
    key_pem: bytes = dataclasses.field(repr=False)
    ca_pem: bytes
    serial: str
    fingerprint: bytes
    not_before_ms: int
    not_after_ms: int
    path: Path | None

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Reads cert.pem, key.pem and ca.pem. Raises TrustDomainError, also for a key of another certificate."""
        try:
            cert_pem, key_pem, ca_pem = ((directory / name).read_bytes() for name in ("cert.pem", "key.pem", "ca.pem"))
        except OSError as error:
            raise TrustDomainError(f"no TLS identity in {directory}: {error.strerror}") from error
        if not certs.key_matches(cert_pem, key_pem):
            raise TrustDomainError(f"cert.pem and key.pem in {directory} do not belong together; issue them again")
        try:
            return cls._of(cert_pem, key_pem, ca_pem, directory)
        except certs.PeerIdentityError as error:
            raise TrustDomainError(f"{directory} holds no TLS identity: {error}") from error

    @classmethod
    def _of(cls, cert_pem: bytes, key_pem: bytes, ca_pem: bytes, path: Path | None) -> Self:
        peer = certs.peer_identity(cert_pem, certs.trust_domain_of(cert_pem))
        return cls(
            role=peer.role,
            id=peer.id,
            cert_pem=cert_pem,
            key_pem=key_pem,
            ca_pem=ca_pem,
            serial=peer.serial,
            fingerprint=peer.fingerprint,
            not_before_ms=peer.not_before_ms,
            not_after_ms=peer.not_after_ms,
            path=path,
        )


@dataclass(frozen=True, slots=True)
class SigningIdentity:
    """A signing key and what the registry must know of it. `cert_pem` and `serial` are empty for SM2."""

    subject_code: str
    institution_code: str
    key: SigningKey
    cert_pem: bytes
    serial: str
    not_before_ms: int
    not_after_ms: int
    path: Path | None

    @property
    def suite(self) -> str:
        """The suite's name."""
        return self.key.suite.name

    def record(self) -> dict[str, str | int]:
        """The public record: what `record.json` holds, and what is registered for SM2."""
        return {
            "subject_code": self.subject_code,
            "institution_code": self.institution_code,
            "suite": self.suite,
            "public_key": self.key.public_key.hex(),
            "key_id": self.key.key_id,
            "not_before_ms": self.not_before_ms,
            "not_after_ms": self.not_after_ms,
            "serial": self.serial,
        }

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Reads key.pem, record.json and, where there is one, cert.pem. Raises TrustDomainError."""
        try:
            key = SigningKey.from_pem((directory / "key.pem").read_bytes())
            record = json.loads((directory / "record.json").read_bytes())
            certificate = directory / "cert.pem"
            identity = cls(
                subject_code=str(record["subject_code"]),
                institution_code=str(record["institution_code"]),
                key=key,
                cert_pem=certificate.read_bytes() if certificate.exists() else b"",
                serial=str(record["serial"]),
                not_before_ms=int(record["not_before_ms"]),
                not_after_ms=int(record["not_after_ms"]),
                path=directory,
            )
        except OSError as error:
            raise TrustDomainError(f"no signing key in {directory}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise TrustDomainError(f"the signing key in {directory} cannot be read") from error
        if record != identity.record():
            raise TrustDomainError(f"key.pem and record.json in {directory} do not belong together")
        return identity


# --- the trust domain -----------------------------------------------------------------------------


def _instant(at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms // 1000, UTC)  # certificates count whole seconds


def _general_names(uri: str, hosts: Sequence[str]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            if not _is_host_name(host):
                raise TrustDomainError(f"neither a host name nor an IP address: {host!r}") from None
            names.append(x509.DNSName(host))
    return names


def _is_host_name(host: str) -> bool:
    return 0 < len(host) <= 253 and host.isascii() and host.replace("-", "").replace(".", "").isalnum()


class TrustDomain:
    """One certificate authority and everything it issued. Make one with `init`, `open` or `in_memory`."""

    def __init__(self, files: Files) -> None:
        """For the three constructors below; raises TrustDomainError when `files` hold no trust domain."""
        ca_pem, key_pem, index = files.read("ca.pem"), files.read("ca.key.pem"), files.read("index.json")
        if ca_pem is None or key_pem is None or index is None:
            where = files.path("") or "memory"
            raise TrustDomainError(f"no trust domain in {where}; name its folder (--pki), or make one: erxhub ca init")
        try:
            self._certificate = x509.load_pem_x509_certificate(ca_pem)
            key = serialization.load_pem_private_key(key_pem, password=None)
            content = json.loads(index)
            self.trust_domain = str(content["trust_domain"])
            known_format = content["format"] == _INDEX_FORMAT
        except (ValueError, KeyError, TypeError, UnsupportedAlgorithm) as error:
            raise TrustDomainError("the files of the trust domain cannot be read") from error
        if not known_format:
            raise TrustDomainError("index.json was written by another version of erxhub")
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self._certificate.public_key():
            raise TrustDomainError("ca.key.pem is not the key of ca.pem")
        self._files = files
        self._key = key
        self.ca_pem = ca_pem

    @classmethod
    def init(cls, directory: Path, trust_domain: str, now_ms: int) -> Self:
        """Makes an authority in `directory`. Raises TrustDomainError for a bad name, or if there is one."""
        return cls._found(Directory(directory), trust_domain, now_ms)

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Opens what `init` made. Raises TrustDomainError."""
        return cls(Directory(directory))

    @classmethod
    def in_memory(cls, trust_domain: str, now_ms: int) -> Self:
        """A trust domain that leaves no file behind; its identities have no path."""
        return cls._found(Memory(), trust_domain, now_ms)

    @classmethod
    def _found(cls, files: Files, trust_domain: str, now_ms: int) -> Self:
        if not certs.is_trust_domain(trust_domain):
            raise TrustDomainError(f"not a trust domain (lower-case letters, digits, '.', '-', '_'): {trust_domain!r}")
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"erxhub authority {trust_domain}"[:64])])
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        certificate = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_instant(now_ms - CLOCK_SKEW_MS))
            .not_valid_after(_instant(now_ms) + timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(identifier, critical=False)
            .add_extension(
                x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]),
                critical=False,
            )
            .sign(key, hashes.SHA256())
        )
        with files.locked():
            if files.read("ca.pem") is not None:
                raise TrustDomainError(f"there is a trust domain in {files.path('')} already, and it is never replaced")
            files.write("ca.key.pem", _private_pem(key), private=True)
            index = {"format": _INDEX_FORMAT, "trust_domain": trust_domain, "crl_number": 1, "issued": []}
            files.write("index.json", _json(index))
            # Last, because its presence says that the trust domain is complete.
            files.write("ca.pem", certificate.public_bytes(serialization.Encoding.PEM))
            domain = cls(files)
            domain._write_crl([], 1, now_ms)
        return domain

    def branch(self) -> TrustDomain:
        """The same authority with an index of its own in memory: what it issues is known to nobody else's list."""
        files = Memory()
        index = {"format": _INDEX_FORMAT, "trust_domain": self.trust_domain, "crl_number": 1, "issued": []}
        files.write("ca.key.pem", _private_pem(self._key), private=True)
        files.write("index.json", _json(index))
        files.write("ca.pem", self.ca_pem)
        return TrustDomain(files)

    def issue_unlisted(
        self, uri: str | None, common_name: str, not_before_ms: int, not_after_ms: int
    ) -> tuple[bytes, bytes]:
        """A client's certificate and key (PEM) that no index keeps, for sandboxes: any URI name or none, any dates.

        Good for a test authority only, which is what every one made here is.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)] if uri else [x509.DNSName("localhost")]
        builder = (
            self._bare_builder(key.public_key(), not_before_ms, not_after_ms)
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
        )
        return self._sign(builder), _private_pem(key)

    def issue_tls(self, role: str, peer_id: str, now_ms: int, days: int, hosts: Sequence[str] = ()) -> Identity:
        """A TLS certificate for role/peer_id, valid for `days` (1–825), and its own P-256 key.

        Every identity can be a client; `hosts` (DNS names and IP addresses, at most 32) makes it a server's
        too. Issuing again replaces the files; what was issued before stays valid until it expires or is
        revoked. Raises TrustDomainError.
        """
        if not certs.is_identity(role, peer_id):
            raise TrustDomainError(f"not a role and an id of its form: {role!r}, {peer_id!r}")
        if len(hosts) > HOSTS_MAX:
            raise TrustDomainError(f"at most {HOSTS_MAX} host names in one certificate")
        uri = certs.identity_uri(self.trust_domain, role, peer_id)
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH, *([ExtendedKeyUsageOID.SERVER_AUTH] if hosts else [])]
        key = ec.generate_private_key(ec.SECP256R1())
        builder = (
            self._builder(key.public_key(), now_ms - CLOCK_SKEW_MS, now_ms, days)
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, peer_id)]))
            .add_extension(_key_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(_general_names(uri, hosts)), critical=False)
        )
        cert_pem, key_pem = self._sign(builder), _private_pem(key)
        folder = f"tls/{role}/{peer_id}"
        identity = Identity._of(cert_pem, key_pem, self.ca_pem, self._files.path(folder))
        issued = Issued(
            kind="tls",
            subject=f"{role}/{peer_id}",
            institution_code="",
            suite=DEFAULT_SUITE,
            key_id="",
            serial=identity.serial,
            fingerprint=identity.fingerprint.hex(),
            not_before_ms=identity.not_before_ms,
            not_after_ms=identity.not_after_ms,
            path=folder,
        )
        # Beside the identity's own files, which the next issue replaces: a hub asks for the certificate to revoke.
        self._files.write(f"issued/{issued.fingerprint}.pem", cert_pem)
        self._keep(issued, {"ca.pem": self.ca_pem, "key.pem": key_pem, "cert.pem": cert_pem})
        return identity

    def issue_signing(
        self, subject_code: str, institution_code: str, suite: str, now_ms: int, days: int
    ) -> SigningIdentity:
        """A new signing key, valid for `days`, for a person or an institution's seal (its code as subject).

        ES256 and EdDSA come with a certificate for document signing; SM2-SM3 with the bare record, because
        the X.509 library here cannot sign such keys. Raises TrustDomainError, also for an unknown suite.
        """
        if suite not in SUITES:
            raise TrustDomainError(f"unknown suite {suite!r}; there are {', '.join(SUITES)}")
        if not certs.is_signer_code(subject_code) or not certs.is_signer_code(institution_code):
            raise TrustDomainError("codes of signers and institutions are 1-64 letters, digits, '.', '-', '_'")
        key = SigningKey.generate(suite)
        begins_ms, ends_ms = self._validity(now_ms, now_ms, days)
        cert_pem, serial = b"", ""
        fingerprint = hashlib.sha256(key.public_key).hexdigest()
        if suite != "SM2-SM3":
            cert_pem = self._signing_certificate(subject_code, institution_code, key, now_ms, days)
            certificate = x509.load_pem_x509_certificate(cert_pem)
            serial = certs.serial_text(certificate)
            fingerprint = certs.certificate_fingerprint(certificate).hex()
        folder = f"signing/{institution_code}/{subject_code}/{key.key_id}"
        identity = SigningIdentity(
            subject_code,
            institution_code,
            key,
            cert_pem,
            serial,
            begins_ms,
            ends_ms,
            self._files.path(folder),
        )
        issued = Issued(
            kind="signing",
            subject=subject_code,
            institution_code=institution_code,
            suite=suite,
            key_id=key.key_id,
            serial=serial,
            fingerprint=fingerprint,
            not_before_ms=begins_ms,
            not_after_ms=ends_ms,
            path=folder,
        )
        files = {"key.pem": key.to_pem(), "record.json": _json(identity.record())}
        self._keep(issued, files | ({"cert.pem": cert_pem} if cert_pem else {}))
        return identity

    def revoke(self, identifier: str, reason: str, now_ms: int) -> Issued:
        """Revokes by serial, fingerprint or key id (hexadecimal; case and colons do not matter).

        `reason` is a name of REVOCATION_REASONS. Revoking again answers the first revocation. Both
        times the CRL is written, for another 30 days. Raises TrustDomainError for an unknown identifier or reason.
        """
        if reason not in REVOCATION_REASONS:
            raise TrustDomainError(f"unknown reason {reason!r}; there are {', '.join(sorted(REVOCATION_REASONS))}")
        wanted = identifier.replace(":", "").lower()
        with self._files.locked():
            index = self._index()
            records = _records(index)
            found = [
                position
                for position, issued in enumerate(records)
                if wanted and wanted in (issued.serial, issued.fingerprint, issued.key_id)
            ]
            if not found:
                raise TrustDomainError(f"nothing was issued here with the serial, fingerprint or key id {identifier!r}")
            issued = records[found[0]]
            if issued.revoked_at_ms is None:
                issued = dataclasses.replace(issued, revoked_at_ms=now_ms, reason=reason)
                records[found[0]] = issued
            number = int(index["crl_number"]) + 1
            rows = [dataclasses.asdict(one) for one in records]
            self._files.write("index.json", _json(index | {"crl_number": number, "issued": rows}))
            self._write_crl(records, number, now_ms)
            return issued

    def list(self) -> tuple[Issued, ...]:
        """Everything issued, oldest first, revoked or not."""
        return tuple(_records(self._index()))

    def certificate_pem(self, issued: Issued) -> bytes:
        """A TLS certificate that was issued here, also one that was replaced since.

        Raises TrustDomainError when there is none.
        """
        pem = self._files.read(f"issued/{issued.fingerprint}.pem")
        if pem is None:
            raise TrustDomainError(f"the certificate {issued.serial or issued.key_id} is not kept here")
        return pem

    def crl_pem(self) -> bytes:
        """The current revocation list, PEM; it says when it was made and is to be renewed within 30 days."""
        return self._files.read("crl.pem") or b""

    def _validity(self, begins_ms: int, now_ms: int, days: int) -> tuple[int, int]:
        """First and last instant of a certificate, UTC ms of whole seconds. Raises TrustDomainError."""
        if not 1 <= days <= DAYS_MAX:
            raise TrustDomainError(f"a certificate is valid for 1 to {DAYS_MAX} days, not {days}")
        ends = _instant(now_ms) + timedelta(days=days)
        if ends > self._certificate.not_valid_after_utc:
            raise TrustDomainError("the authority itself expires before that; make a new trust domain")
        return certs.epoch_ms(_instant(begins_ms)), certs.epoch_ms(ends)

    def _builder(self, public_key: _CertifiedKey, begins_ms: int, now_ms: int, days: int) -> x509.CertificateBuilder:
        first_ms, last_ms = self._validity(begins_ms, now_ms, days)
        return self._bare_builder(public_key, first_ms, last_ms)

    def _bare_builder(self, public_key: _CertifiedKey, first_ms: int, last_ms: int) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .issuer_name(self._certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_instant(first_ms))
            .not_valid_after(_instant(last_ms))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(self._authority_key_identifier(), critical=False)
        )

    def _authority_key_identifier(self) -> x509.AuthorityKeyIdentifier:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())

    def _sign(self, builder: x509.CertificateBuilder) -> bytes:
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _signing_certificate(
        self, subject_code: str, institution_code: str, key: SigningKey, now_ms: int, days: int
    ) -> bytes:
        public_key = certs.x509_public_key(key.suite.name, key.public_key)
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_IDENTIFIER, institution_code),
                x509.NameAttribute(NameOID.COMMON_NAME, subject_code),
            ]
        )
        return self._sign(
            self._builder(public_key, now_ms, now_ms, days)
            .subject_name(subject)
            .add_extension(_key_usage(digital_signature=True, content_commitment=True), critical=True)
            # Critical and alone: with it no TLS stack takes the certificate for a peer's.
            .add_extension(x509.ExtendedKeyUsage([certs.DOCUMENT_SIGNING]), critical=True)
        )

    def _index(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self._files.read("index.json") or b"{}")
        return content

    def _keep(self, issued: Issued, files: Mapping[str, bytes]) -> None:
        """The index first: what is not in it could never be revoked."""
        with self._files.locked():
            index = self._index()
            index["issued"].append(dataclasses.asdict(issued))
            self._files.write("index.json", _json(index))
            for name, data in files.items():
                self._files.write(f"{issued.path}/{name}", data, private=name == "key.pem")

    def _write_crl(self, records: Sequence[Issued], number: int, now_ms: int) -> None:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(_instant(now_ms))
            .next_update(_instant(now_ms) + timedelta(days=CRL_DAYS))
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(self._authority_key_identifier(), critical=False)
        )
        for issued in records:
            if issued.revoked_at_ms is not None and issued.reason is not None and issued.serial:
                builder = builder.add_revoked_certificate(
                    x509.RevokedCertificateBuilder()
                    .serial_number(int(issued.serial, 16))
                    .revocation_date(_instant(issued.revoked_at_ms))
                    .add_extension(x509.CRLReason(REVOCATION_REASONS[issued.reason]), critical=False)
                    .build()
                )
        crl = builder.sign(self._key, hashes.SHA256())
        self._files.write("crl.pem", crl.public_bytes(serialization.Encoding.PEM))


def _records(index: Mapping[str, Any]) -> list[Issued]:
    return [Issued(**row) for row in index["issued"]]


def _json(content: object) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True).encode("ascii") + b"\n"


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _key_usage(
    *,
    digital_signature: bool = False,
    content_commitment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=content_commitment,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
