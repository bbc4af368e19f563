"""From bytes to a command: what can be proven about a call before anything that may change is looked at.

In order: the certificate's identity, the caller's kind against the method's rule, the field rules (of the request and
of every signed content in it), and each signature over the exact bytes received. What is proven becomes Evidence.
Whether a key may still sign, a registration stands or a thing exists is never asked here; that is loaded and decided in
the lane.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final, NamedTuple

import protovalidate
from google.protobuf.message import DecodeError, Message

from erxhub.config import Config
from erxhub.core.model import Caller, CertifiedKey, CertifiedPeer, Evidence, SignatureFact
from erxhub.crypto.certs import (
    CERTIFICATES_KEPT,
    PeerIdentity,
    PeerIdentityError,
    SigningCertificateError,
    is_issued_by,
    peer_identity,
    signing_certificate,
)
from erxhub.crypto.envelope import pae
from erxhub.crypto.suites import SUITES, Verifier
from erxhub.ledger.store import Store, Wanted
from erxhub.texts import HIDES, Texts
from erxhub.v1 import common_pb2, registry_pb2, state_pb2

_KEYS_KEPT: Final = 50_000
_FIELD_REQUEST_ID: Final = 1
_FIELD_WAIT_FOR: Final = 2


class Violation(NamedTuple):
    """One broken field rule: path, rule id, text. Never the value: it may be personal."""

    field: str
    rule: str
    text: str


class _Key(NamedTuple):
    suite: str
    public_key: bytes


def caller_of(certificate_pem: bytes, config: Config, at_ms: int) -> Caller:
    """Who the connection certificate speaks for at an instant; the handshake that checked its dates may be long ago.

    Raises PeerIdentityError when it names no identity of the trust domain in a URI, and with the reason EXPIRED or
    NOT_YET_VALID when it is not valid then.
    """
    caller, not_before_ms, not_after_ms = _named(certificate_pem, config.trust_domain, config.national_agencies)
    if at_ms > not_after_ms:
        raise PeerIdentityError("EXPIRED", "the certificate has expired")
    if at_ms < not_before_ms:
        raise PeerIdentityError("NOT_YET_VALID", "the certificate is not valid yet")
    return caller


@lru_cache(maxsize=CERTIFICATES_KEPT)
def _named(certificate_pem: bytes, trust_domain: str, national_agencies: tuple[str, ...]) -> tuple[Caller, int, int]:
    """Whom the certificate names, and from when to when."""
    identity = peer_identity(certificate_pem, trust_domain)
    national = identity.role == "agency" and identity.id in (national_agencies or (identity.id,))
    caller = Caller(identity.role, identity.id, _area_of(identity), identity.fingerprint, national)
    return caller, identity.not_before_ms, identity.not_after_ms


def _area_of(identity: PeerIdentity) -> str:
    if identity.role in {"hospital", "pharmacy"}:
        return identity.id[1:7]
    return identity.id if identity.role in {"agency", "supervisor"} else ""


class FieldRules:
    """The field rules of the .proto files, compiled once, and the one rule for every text (texts.py)."""

    def __init__(self, statements: Mapping[str, type[Any]]) -> None:
        self._validator = protovalidate.Validator()
        self._texts = Texts()
        self._statements = statements

    def warm(self, messages: Sequence[type[Message]]) -> None:
        """Compile the rules of these messages now, so that no caller waits for it."""
        for kind in messages:
            self._validator.collect_violations(kind(), fail_fast=True)
            self._texts.warm(kind.DESCRIPTOR)

    def check(self, request: Message, signed_fields: Sequence[str]) -> tuple[list[Violation], dict[str, Any]]:
        """Every broken rule of the request and of the signed contents in it, and these contents, read, by field."""
        found = self._of(request, "")
        statements: dict[str, Any] = {}
        for name in signed_fields:
            if not request.HasField(name):
                continue
            signed: common_pb2.Signed = getattr(request, name)
            kind = self._statements.get(signed.payload_type)
            if kind is None:
                continue
            try:
                statement = kind.FromString(signed.payload)
            except DecodeError:
                found.append(Violation(f"{name}.payload", "payload", "cannot be read as its payload_type says"))
                continue
            found += self._of(statement, f"{name}.payload.")
            statements[name] = statement
        return found, statements

    def rows(self, entries: Sequence[Any]) -> tuple[list[Any], list[tuple[int, str]]]:
        """The rows of an import that keep the rules, and (line, path of the first broken rule) of the others."""
        good, bad = [], []
        for entry in entries:
            found = self._of(entry, "")
            if found:
                bad.append((entry.line, found[0].field))
            else:
                good.append(entry)
        return good, bad

    def _of(self, message: Message, prefix: str) -> list[Violation]:
        found = [
            Violation(prefix + _path(violation.proto), violation.proto.rule_id, violation.proto.message)
            for violation in self._validator.collect_violations(message)
        ]
        hiding = self._texts.hiding(message)
        if hiding:
            found += [Violation(prefix + path, "string.hides", HIDES) for path in hiding]
        return found


def _path(violation: Any) -> str:
    path = ""
    for element in violation.field.elements if violation.field else ():
        path += ("." if path else "") + element.field_name
        if element.subscript is not None:
            path += f"[{element.subscript.value}]"
    return path


class SignatureProof:
    """Verifies the signatures of a request over the received bytes."""

    def __init__(
        self, store: Store, verifier: Verifier, ca_certificates: Callable[[], bytes], trust_domain: str
    ) -> None:
        self._store = store
        self._verifier = verifier
        self._ca_certificates = ca_certificates
        self._trust_domain = trust_domain
        # What is kept cannot change: a key id is the hash of suite and public key.
        self._keys: OrderedDict[str, _Key] = OrderedDict()

    async def evidence(self, request: Any, signed: SignedParts, statements: Mapping[str, Any]) -> Evidence:
        """Signature facts and digests of every signed content, and the digest of a file.

        `signed` is what `signed_parts` found, `statements` are the contents as `FieldRules.check` read them.
        """
        payloads, signatures = signed
        if not payloads:
            return self._unsigned(request)
        keys = await self._registered({key_id for _, key_id, _, _ in signatures})
        verdicts = await self._verifier.verify_all(_checks(signatures, keys))
        return _proven(request, payloads, _facts(payloads, signatures, keys, verdicts), statements)

    def evidence_now(self, request: Any, signed: SignedParts, statements: Mapping[str, Any]) -> Evidence | None:
        """The same at once; None when a key has to be looked up, or a signature is verified off the loop."""
        payloads, signatures = signed
        if not payloads:
            return self._unsigned(request)
        keys = self._keys
        for _, key_id, _, _ in signatures:
            if key_id not in keys:
                return None
        verdicts = self._verifier.verify_now(_checks(signatures, keys))
        if verdicts is None:
            return None
        return _proven(request, payloads, _facts(payloads, signatures, keys, verdicts), statements)

    def _unsigned(self, request: Any) -> Evidence:
        """What the certificate in a request without signed contents says, where it has one."""
        fields = request.DESCRIPTOR.fields_by_name
        if "public_key" in fields:
            return self._key_evidence(request)
        if "certificate_pem" in fields and request.certificate_pem:
            return self._connection_evidence(request.certificate_pem)
        return _proven(request, {}, {}, {})

    def _connection_evidence(self, pem: bytes) -> Evidence:
        """Whom a connection certificate of the trust domain speaks for; it need not be valid any more."""
        try:
            identity = peer_identity(pem, self._trust_domain)
        except PeerIdentityError as error:
            return Evidence(certificate_fault=error.reason)
        if not is_issued_by(pem, self._ca_certificates()):
            return Evidence(certificate_fault="FOREIGN_AUTHORITY")
        return Evidence(connection=CertifiedPeer(identity.role, identity.id, _area_of(identity), identity.fingerprint))

    def _key_evidence(self, request: registry_pb2.RegisterSigningKeyRequest) -> Evidence:
        """Whether a key to be registered is one, and what its certificate says."""
        suite = SUITES.get(request.suite)
        sound = suite is None or suite.is_public_key(request.public_key)
        if not request.certificate_pem:
            return Evidence(key_is_sound=sound)
        try:
            certificate = signing_certificate(request.certificate_pem, self._ca_certificates())
        except SigningCertificateError as error:
            return Evidence(certificate_fault=str(error), key_is_sound=sound)
        certified = CertifiedKey(
            certificate.subject_code,
            certificate.institution_code,
            certificate.suite,
            certificate.public_key,
            certificate.not_before_ms,
            certificate.not_after_ms,
        )
        return Evidence(certificate=certified, key_is_sound=sound)

    async def _registered(self, ids: set[str]) -> Mapping[str, _Key]:
        unknown = [key_id for key_id in ids if key_id not in self._keys]
        if unknown:
            names = {("signing_key", key_id.encode()): key_id for key_id in unknown}
            loaded = await self._store.read(Wanted(names=frozenset(names)))
            for name, stream in loaded.names.items():
                head = loaded.heads[stream]
                self._keep(names[name], head.stream_kind, head.body)
        return {key_id: self._keys[key_id] for key_id in ids if key_id in self._keys}

    def _keep(self, key_id: str, stream_kind: str, body: bytes) -> None:
        keys: Sequence[registry_pb2.SigningKeyRecord]
        if stream_kind == "institution":
            keys = state_pb2.InstitutionState.FromString(body).keys
        else:
            keys = state_pb2.PractitionerState.FromString(body).keys
        for record in keys:
            if record.key_id == key_id:
                self._keys[key_id] = _Key(record.suite, record.public_key)
                if len(self._keys) > _KEYS_KEPT:
                    self._keys.popitem(last=False)


_Signatures = Sequence[tuple[str, str, bytes, bytes]]
"""(field, key id, what was signed, signature) of every signature of a request."""


SignedParts = tuple[Mapping[str, bytes], _Signatures]
"""The signed contents of a request by field, and the signatures over them."""


def signed_parts(request: Any, signed_fields: Sequence[str]) -> SignedParts:
    """What of a request is signed, and by whom."""
    payloads: dict[str, bytes] = {}
    signatures: list[tuple[str, str, bytes, bytes]] = []
    for name in signed_fields:
        if request.HasField(name):
            signed: common_pb2.Signed = getattr(request, name)
            payloads[name] = payload = signed.payload
            message = pae(signed.payload_type, payload)
            signatures += [(name, each.key_id, message, each.signature) for each in signed.signatures]
    return payloads, signatures


def _proven(
    request: Any,
    payloads: Mapping[str, bytes],
    facts: Mapping[str, Sequence[SignatureFact]],
    statements: Mapping[str, Any],
) -> Evidence:
    """The facts, with the digests of the signed contents, and of the file where the request has one."""
    digests = {name: hashlib.sha256(payload).digest() for name, payload in payloads.items()}
    if "file" not in request.DESCRIPTOR.fields_by_name:
        return Evidence(facts, digests, statements)
    file = request.file.data
    digests["file"] = hashlib.sha256(file).digest()
    return Evidence(facts, digests, statements, file=file)


def _checks(signatures: _Signatures, keys: Mapping[str, _Key]) -> list[tuple[str, bytes, bytes, bytes]]:
    """What is to be verified: the signatures by known keys."""
    checks = []
    for _, key_id, message, signature in signatures:
        key = keys.get(key_id)
        if key is not None:
            checks.append((key.suite, key.public_key, message, signature))
    return checks


def _facts(
    fields: Iterable[str], signatures: _Signatures, keys: Mapping[str, _Key], verdicts: Iterable[bool]
) -> dict[str, list[SignatureFact]]:
    """The verdicts over `_checks`, by field. A signature by an unknown key was not verified, and is not valid."""
    left = iter(verdicts)
    facts: dict[str, list[SignatureFact]] = {name: [] for name in fields}
    for name, key_id, _, _ in signatures:
        key = keys.get(key_id)
        fact = SignatureFact(key_id, key.suite, next(left)) if key else SignatureFact(key_id, "", False)
        facts[name].append(fact)
    return facts


def content_of(raw: bytes, known: Mapping[int, bytes] | None = None) -> bytes:
    """What makes a repeated request the same: its bytes without request_id and wait_for, ordered by field number.

    Works on the wire form, so nothing is written again: top-level fields 1 and 2 are left out and the rest is put in
    the order of field numbers, because a client may write fields in any order. `known` stands in for fields whose
    content is hashed already, by number. Raises ValueError for bytes that are no protobuf message; the message was
    parsed before, so that is a bug.
    """
    known = known or {}
    parts: list[tuple[int, bytes]] = []
    position = 0
    while position < len(raw):
        start = position
        tag, position = _varint(raw, position)
        position = _skip(raw, position, tag & 7)
        number = tag >> 3
        if number != _FIELD_REQUEST_ID and number != _FIELD_WAIT_FOR:
            parts.append((number, known[number] if number in known else raw[start:position]))
    parts.sort(key=itemgetter(0))
    return b"".join([data for _, data in parts])


def _skip(raw: bytes, position: int, wire: int) -> int:
    """Where the value of a field of this wire type ends."""
    if wire == 0:
        return _varint(raw, position)[1]
    if wire == 1:
        return position + 8
    if wire == 2:
        size, position = _varint(raw, position)
        return position + size
    if wire == 5:
        return position + 4
    if wire != 3:
        raise ValueError(f"wire type {wire}")
    # No message of ours has a group, but the parser keeps unknown fields, and bounds how deep they lie.
    while True:
        tag, position = _varint(raw, position)
        if tag & 7 == 4:
            return position
        position = _skip(raw, position, tag & 7)


def _varint(raw: bytes, position: int) -> tuple[int, int]:
    if position < len(raw) and raw[position] < 0x80:  # as nearly all are
        return raw[position], position + 1
    value = shift = 0
    while True:
        if position >= len(raw) or shift > 63:
            raise ValueError("a varint without end")
        byte = raw[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


__all__ = [
    "FieldRules",
    "PeerIdentityError",
    "SignatureProof",
    "SignedParts",
    "Violation",
    "caller_of",
    "content_of",
    "signed_parts",
]
