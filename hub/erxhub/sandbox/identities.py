"""Client certificates of namespaces, good ones and, on request, ones that are wrong in a known way.

Owns which defect looks how. Must never: issue a role that controls a sandbox or serves as a hub.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from erxhub.crypto.ca import CLOCK_SKEW_MS, TrustDomain
from erxhub.crypto.certs import identity_uri, is_identity
from erxhub.sandbox.errors import argument_refused
from erxhub.v1 import sandbox_pb2

ROLES: Final = ("hospital", "pharmacy", "channel", "agency", "auditor", "supervisor", "mirror")
DAY_MS: Final = 86_400_000
VALID_MS: Final = 800 * DAY_MS
"""From the later of the machine's and the namespace's instant; both judge a certificate."""
FOREIGN_DOMAIN: Final = "not-a-namespace.invalid"

_D = sandbox_pb2.IdentityDefect
_DATES: Final = frozenset({_D.IDENTITY_DEFECT_EXPIRED, _D.IDENTITY_DEFECT_NOT_YET_VALID})
_NAMES: Final = frozenset({_D.IDENTITY_DEFECT_NO_URI, _D.IDENTITY_DEFECT_FOREIGN_TRUST_DOMAIN})


@dataclass(frozen=True, slots=True)
class Minted:
    """A certificate and its private key, PEM (PKCS #8)."""

    cert_pem: bytes
    key_pem: bytes


@dataclass(frozen=True, slots=True)
class Mint:
    """Issues for one namespace. Instants are UTC milliseconds, of the machine and of the namespace."""

    trust: TrustDomain
    trust_domain: str

    def issue(
        self,
        role: str,
        peer_id: str,
        machine_ms: int,
        hub_ms: int,
        defects: Sequence[sandbox_pb2.IdentityDefect.ValueType] = (),
    ) -> Minted:
        """A certificate of role/peer_id with these defects; IDENTITY_DEFECT_REVOKED is for the ledger to make true.

        Raises SandboxRefused (SBX_ARGUMENT) for a role or an id that no certificate may have, and for two defects that
        exclude each other.
        """
        wanted = frozenset(defects)
        if role not in ROLES:
            raise argument_refused("role", "role", f"one of {', '.join(ROLES)}")
        if not is_identity(role, peer_id):
            raise argument_refused("id", "id", f"no id of the form that {role} has")
        for excluding in (_DATES, _NAMES):
            if excluding <= wanted:
                raise argument_refused("defects", "defects", "two of these defects exclude each other")
        first_ms, last_ms = self._validity(wanted, machine_ms, hub_ms)
        trust = self.trust
        if _D.IDENTITY_DEFECT_UNKNOWN_AUTHORITY in wanted:
            trust = TrustDomain.in_memory(self.trust.trust_domain, machine_ms)
        cert_pem, key_pem = trust.issue_unlisted(self._uri(wanted, role, peer_id), peer_id, first_ms, last_ms)
        if _D.IDENTITY_DEFECT_WRONG_KEY in wanted:
            _, key_pem = trust.issue_unlisted(None, peer_id, first_ms, last_ms)
        return Minted(cert_pem, key_pem)

    def _uri(self, defects: frozenset[int], role: str, peer_id: str) -> str | None:
        if _D.IDENTITY_DEFECT_NO_URI in defects:
            return None
        foreign = _D.IDENTITY_DEFECT_FOREIGN_TRUST_DOMAIN in defects
        return identity_uri(FOREIGN_DOMAIN if foreign else self.trust_domain, role, peer_id)

    @staticmethod
    def _validity(defects: frozenset[int], machine_ms: int, hub_ms: int) -> tuple[int, int]:
        early_ms, late_ms = min(machine_ms, hub_ms), max(machine_ms, hub_ms)
        if _D.IDENTITY_DEFECT_EXPIRED in defects:
            return early_ms - 2 * DAY_MS, early_ms - DAY_MS
        if _D.IDENTITY_DEFECT_NOT_YET_VALID in defects:
            return late_ms + DAY_MS, late_ms + VALID_MS
        return early_ms - CLOCK_SKEW_MS, late_ms + VALID_MS
