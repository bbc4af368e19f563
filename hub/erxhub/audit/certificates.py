"""The certificates from which signing keys were registered, held against the trust domain's root.

Owns what a key's certificate has to be. It must never say anything about a signature.
"""

from __future__ import annotations

from typing import Final

from erxhub.audit.chain import Record
from erxhub.crypto.certs import SigningCertificateError, signing_certificate

_CERTIFIED_SUITES: Final = frozenset({"ES256", "EdDSA"})
"""Suites whose keys are registered from an X.509 certificate."""


def certificate_fault(registered: Record, ca_pem: bytes) -> str:
    """What is wrong with the certificate of a `signing_key.registered`; "" when it is this authority's for this key.

    An SM2 key has none and was entered directly: that it is the signer's, the ledger alone says. A key of another
    suite is made from its certificate, so one without is at fault.
    """
    key, pem = registered.payload.key, registered.payload.certificate_pem
    if not pem:
        must = key.suite in _CERTIFIED_SUITES
        return f"the key of {key.subject_code} has no certificate, as one for {key.suite} must" if must else ""
    try:
        held = signing_certificate(pem, ca_pem)
    except SigningCertificateError as error:
        return str(error)
    bound = (held.subject_code, held.institution_code, held.suite, held.public_key)
    if bound != (key.subject_code, key.institution_code, key.suite, key.public_key):
        return "the certificate is another signer's or another key's"
    if key.valid_from_ms < held.not_before_ms or key.valid_until_ms > held.not_after_ms:
        return "the key outlives its certificate"
    return ""
