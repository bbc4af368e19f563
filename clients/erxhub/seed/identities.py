"""Identities of the seeded world: taken from the trust domain's folder where it has them, issued where it has not.

Owns the choice between the two. Must never: take a certificate or key that was revoked or is about to end.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from erxhub.crypto.ca import Identity, Issued, SigningIdentity, TrustDomain

DAYS: Final = 365
RENEW_BEFORE_MS: Final = 7 * 86_400_000
"""A certificate that ends sooner is replaced: a hub that is started is to run for a while."""


def identity(
    trust: TrustDomain,
    role: str,
    peer_id: str,
    now_ms: int,
    *,
    hosts: Sequence[str] = (),
    directory: Path | None = None,
) -> Identity:
    """The newest TLS identity of role/peer_id in `directory`, if it is good, otherwise a fresh one.

    `directory` is the trust domain's folder; None for one in memory. Raises TrustDomainError.
    """
    newest = next(
        (issued for issued in reversed(trust.list()) if (issued.kind, issued.subject) == ("tls", f"{role}/{peer_id}")),
        None,
    )
    if directory is not None and newest is not None and _is_good(newest, now_ms):
        return Identity.load(directory / newest.path)
    return trust.issue_tls(role, peer_id, now_ms, DAYS, hosts)


def signing_identity(
    trust: TrustDomain,
    subject_code: str,
    institution_code: str,
    suite: str,
    now_ms: int,
    *,
    directory: Path | None = None,
) -> SigningIdentity:
    """The newest good signing key of a person or seal in this suite, otherwise a fresh one; arguments as above."""
    wanted = ("signing", subject_code, institution_code, suite)
    if directory is not None:
        for issued in reversed(trust.list()):
            who = (issued.kind, issued.subject, issued.institution_code, issued.suite)
            if who == wanted and _is_good(issued, now_ms):
                return SigningIdentity.load(directory / issued.path)
    return trust.issue_signing(subject_code, institution_code, suite, now_ms, DAYS)


def founded_at_ms(trust: TrustDomain) -> int:
    """When the trust domain issued its first certificate: the same at every start, and in the past."""
    return min(issued.not_before_ms for issued in trust.list())


def _is_good(issued: Issued, now_ms: int) -> bool:
    return issued.revoked_at_ms is None and issued.not_before_ms <= now_ms < issued.not_after_ms - RENEW_BEFORE_MS
