"""The parties that our robots play: for each a typed client, the same client as a writer of drafts, and raw calls.

Owns: who they are and how they are connected. Must never: decide what they do; a case does.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from google.protobuf.message import Message

from erxhub.client import (
    AgencyClient,
    AuditorClient,
    ClientIdentity,
    Connection,
    HospitalClient,
    PatientClient,
    PharmacyClient,
    RetryPolicy,
)
from erxhub.client.base import Client
from erxhub.client.environment import Environment
from erxhub.conform.hub.drafts import DraftConnection
from erxhub.conform.hub.places import Place
from erxhub.conform.hub.raw import Answer, Metadata, RawCaller
from erxhub.conform.world import INSTITUTIONS, STAFF
from erxhub.seed.world import AREA, AUDITOR, CHANNEL

CASE_REASON: Final = "conformance test 一致性测试"
RETRIES: Final = RetryPolicy(attempts=5, backoff_ms=20, backoff_max_ms=100)

PARTIES: Final[Mapping[str, tuple[type[Client], str, str]]] = {
    "hospital": (HospitalClient, "hospital", INSTITUTIONS["hospital"]),
    "hospital_b": (HospitalClient, "hospital", INSTITUTIONS["hospital_b"]),
    "pharmacy": (PharmacyClient, "pharmacy", INSTITUTIONS["pharmacy"]),
    "pharmacy_b": (PharmacyClient, "pharmacy", INSTITUTIONS["pharmacy_b"]),
    "channel": (PatientClient, "channel", CHANNEL),
    "agency": (AgencyClient, "agency", AREA),
    "auditor": (AuditorClient, "auditor", AUDITOR),
}


class HubTime:
    """The robots' clock is the hub's; their waiting is real, and short. No chance: the same seed gives the same run."""

    def __init__(self, place: Place, machine: Environment) -> None:
        self._place = place
        self._machine = machine

    def now_ms(self) -> int:
        """The hub's clock."""
        return self._place.now_ms()

    def below(self, bound: int) -> int:
        """Always the middle."""
        return bound // 2

    async def sleep_ms(self, duration_ms: int) -> None:
        """Waits by the machine's clock."""
        await self._machine.sleep_ms(duration_ms)


class NumberedIds:
    """Request ids that are the same in every run with the same steps."""

    def __init__(self, name: str) -> None:
        self._prefix = hashlib.sha256(name.encode()).hexdigest()[:12]
        self._numbers = itertools.count(1)

    def new(self) -> str:
        """The next one."""
        return f"case-{self._prefix}-{next(self._numbers):06d}"


@dataclass(frozen=True, slots=True)
class Party:
    """One party in one case.

    `client` makes honest calls and raises what it raises; a method of `drafts` returns the request that `client` would
    send; `ask` sends such a request, altered or not, and returns whatever the hub answers.
    """

    name: str
    role: str
    code: str
    client: Any
    drafts: Any
    raw: RawCaller
    identity: ClientIdentity

    @property
    def actor(self) -> str:
        """ "<role>/<id>"."""
        return f"{self.role}/{self.code}"

    @property
    def staff(self) -> Mapping[str, str]:
        """Codes by duty."""
        return STAFF[self.name]

    async def ask(self, request: Message, *, metadata: Metadata = (), once: bool = False) -> Answer:
        """Sends a request as it is; with `once` even where the hub is UNAVAILABLE only once."""
        return await self.raw.ask(request, metadata=metadata, once=once)

    async def close(self) -> None:
        """Ends its connections."""
        await self.client.connection.close()
        await self.drafts.connection.close()
        await self.raw.close()


async def meet(name: str, place: Place, ids: NumberedIds, machine: Environment) -> Party:
    """Connects a party of PARTIES. Raises ClientFailure, Unsupported."""
    kind, role, code = PARTIES[name]
    identity = await place.identity(role, code)
    environment = HubTime(place, machine)
    server_name = place.server_name
    connection = Connection(
        place.target,
        identity,
        server_name=server_name,
        receipt_keys=place.receipt_keys,
        environment=environment,
        retry=RETRIES,
        timeout_s=15,
    )
    drafting = DraftConnection(place.target, identity, server_name=server_name, environment=environment)
    reason: dict[str, Any] = {"case_reason": CASE_REASON} if kind is AuditorClient else {}
    return Party(
        name,
        role,
        code,
        kind(connection, request_ids=ids, **reason),
        kind(drafting, request_ids=ids, **reason),
        RawCaller(place.target, identity, machine, server_name=server_name),
        identity,
    )
