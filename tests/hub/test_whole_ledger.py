"""What belongs to no area: imports of code lists with their limits, and the revocation of certificates."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
import pytest
import pytest_asyncio

from erxhub.client import Refusal
from erxhub.client.failures import refusal_of
from erxhub.config import Config
from erxhub.core.catalog import rows_digest
from erxhub.crypto.ca import TrustDomain
from erxhub.v1 import catalog_pb2, registry_pb2
from tests.live import AGENCY, CHANNEL, HOSPITAL, PHARMACY, Live, live_hub
from tests.races.ground import until_so

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONFIG = Config(
    drain_ms=200,
    national_agencies=(AGENCY,),
    streams_per_peer_max=2,
    import_rows_max=4_100,
    import_bytes_max=1024 * 1024,
    import_idle_ms=77,
)


class _Pauses:
    """Nothing is ever waited for, but for an idle import when the test says so."""

    def __init__(self) -> None:
        self.waiting = 0
        self._idle = asyncio.Event()

    async def __call__(self, ms: int) -> None:
        if ms != CONFIG.import_idle_ms:
            await asyncio.Event().wait()
        self.waiting += 1
        try:
            await self._idle.wait()
        finally:
            self.waiting -= 1

    def end(self) -> None:
        """The idle imports of now have waited long enough."""
        idle, self._idle = self._idle, asyncio.Event()
        idle.set()


PAUSES = _Pauses()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live() -> AsyncIterator[Live]:
    async with live_hub(config=CONFIG, pause=PAUSES) as running:
        yield running


def diseases(count: int, name: str = "高血压") -> list[catalog_pb2.CatalogEntry]:
    return [
        catalog_pb2.CatalogEntry(
            line=line, disease=catalog_pb2.Disease(code=f"I{10 + line // 1000}.x00x{line % 1000:03d}", name=name)
        )
        for line in range(2, count + 2)
    ]


def header(edition: str, request_id: str = "import-0001") -> registry_pb2.ImportCatalogRequest:
    return registry_pb2.ImportCatalogRequest(
        header=registry_pb2.CatalogHeader(
            request_id=request_id,
            dataset=catalog_pb2.CATALOG_DATASET_DISEASES,
            edition=edition,
            valid_from_on="2099-01-01",
            file_sha256=bytes(32),
        )
    )


def rows(entries: Iterable[catalog_pb2.CatalogEntry]) -> registry_pb2.ImportCatalogRequest:
    return registry_pb2.ImportCatalogRequest(rows=registry_pb2.CatalogRows(entries=entries))


async def sent(agency: Any, *messages: registry_pb2.ImportCatalogRequest) -> Any:
    """The reply to an import that is cut into these messages."""

    async def stream() -> AsyncIterator[registry_pb2.ImportCatalogRequest]:
        for message in messages:
            yield message

    return await agency.connection.client_stream(agency._registry.ImportCatalog, stream(), 20)


async def refusal(call: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        await call
    return caught.value


# ---- imports ----


async def test_an_agency_of_an_area_imports_nothing(live: Live) -> None:
    other = await live.agency("330200")
    refused = await refusal(sent(other, header("foreign"), rows(diseases(1))))
    assert (refused.code, refused.grpc_status) == ("ROLE_NOT_ALLOWED", "PERMISSION_DENIED")


async def test_the_listed_edition_commits_to_its_rows(live: Live) -> None:
    agency = await live.agency()
    entries = diseases(3)
    await sent(agency, header("bound", "import-bound"), rows(entries))
    listed = await agency.list_catalog(dataset=catalog_pb2.CATALOG_DATASET_DISEASES)
    edition = next(edition for edition in listed.editions if edition.edition == "bound")
    stored = [(entry.disease.code, entry.disease.SerializeToString(deterministic=True)) for entry in entries]
    assert edition.rows_sha256 == rows_digest(stored)
    assert await live.hub.store.catalog_page("diseases", "bound", "", 10) == sorted(stored)
    entries[1].disease.name = "另一名称"
    assert (await refusal(sent(agency, header("bound", "import-other"), rows(entries)))).code == "RECORD_EXISTS"


async def test_a_repeated_import_may_be_cut_otherwise(live: Live) -> None:
    agency = await live.agency()
    entries = diseases(5)
    first = await sent(agency, header("cut", "import-cut"), rows(entries))
    again = await sent(agency, header("cut", "import-cut"), rows(entries[:2]), rows(entries[2:]))
    assert again == first
    refused = await refusal(sent(agency, header("cut", "import-cut"), rows(entries[:4])))
    assert refused.code == "IDEMPOTENCY_CONFLICT"


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ([2_001], "rows.entries"),
        ([2_000, 2_000, 101], "rows"),
        ([-900, -900], "rows"),
    ],
    ids=["rows of a message", "rows", "bytes"],
)
async def test_an_import_has_limits(live: Live, parts: list[int], field: str) -> None:
    agency = await live.agency()
    # A negative number is of long rows, some 600 bytes each.
    messages = [rows(diseases(abs(count), "x" * (600 if count < 0 else 1))) for count in parts]
    refused = await refusal(sent(agency, header("large"), *messages))
    assert (refused.code, refused.field) == ("INPUT_MALFORMED", field)


async def test_two_thousand_rows_in_a_message_are_taken(live: Live) -> None:
    agency = await live.agency()
    reply = await sent(agency, header("exact", "import-exact"), rows(diseases(2_000)))
    assert (reply.rows_taken, reply.rows_refused) == (2_000, 0)


async def test_open_imports_of_one_caller_are_few_and_idle_ones_are_dropped(live: Live) -> None:
    agency = await live.agency()
    waiting = [agency._registry.ImportCatalog(timeout=20) for _ in range(CONFIG.streams_per_peer_max)]
    for call in waiting:
        await call.write(header("idle"))
    await until_so(lambda: PAUSES.waiting == len(waiting))
    refused = await refusal(sent(agency, header("third")))
    assert (refused.code, refused.retriable) == ("OVERLOADED", True)
    PAUSES.end()
    for call in waiting:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        dropped = refusal_of(caught.value)
        assert dropped is not None
        assert (dropped.code, dropped.field) == ("INPUT_MALFORMED", "rows")
    await sent(agency, header("after", "import-after"), rows(diseases(1)))


# ---- certificates ----


async def test_an_agency_locks_out_nobody_but_its_own(live: Live) -> None:
    other, agency = await live.agency("330200"), await live.agency()
    pharmacy = live.identity("pharmacy", PHARMACY)
    client = await live.connect("pharmacy", PHARMACY, pharmacy)
    refused = await refusal(other.revoke_certificate(certificate_pem=pharmacy.cert_pem, reason="越权"))
    assert (refused.code, refused.field) == ("RECORD_UNKNOWN", "certificate_pem")
    await client.list_catalog(dataset=catalog_pb2.CATALOG_DATASET_DRUGS)
    await agency.revoke_certificate(certificate_pem=pharmacy.cert_pem, reason="私钥泄露")
    call = client.list_catalog(dataset=catalog_pb2.CATALOG_DATASET_DRUGS)
    assert (await refusal(call)).code == "CERT_REVOKED"


async def test_a_channel_is_revoked_by_an_agency_that_acts_nationally(live: Live) -> None:
    other, agency = await live.agency("330200"), await live.agency()
    channel = live.identity("channel", CHANNEL)
    refused = await refusal(other.revoke_certificate(certificate_pem=channel.cert_pem, reason="越权"))
    assert refused.code == "RECORD_UNKNOWN"
    await agency.revoke_certificate(certificate_pem=channel.cert_pem, reason="私钥泄露")


@pytest.mark.parametrize("what", ["noise", "another authority", "another trust domain", "an authority", "a signer"])
async def test_a_certificate_that_is_no_caller_of_the_hub_is_not_revoked(live: Live, what: str) -> None:
    agency, now_ms = await live.agency(), live.clock.now_ms()
    if what == "noise":
        pem = b"-----BEGIN CERTIFICATE-----"
    elif what == "an authority":
        pem = live.trust.ca_pem
    elif what == "a signer":
        pem = next(iter(live.world.signing_identities.values())).cert_pem
    else:
        domain = "erxhub.test" if what == "another authority" else "example.org"
        pem = TrustDomain.in_memory(domain, now_ms).issue_tls("hospital", HOSPITAL, now_ms, 30).cert_pem
    refused = await refusal(agency.revoke_certificate(certificate_pem=pem, reason="示例"))
    assert (refused.code, refused.field) == ("INPUT_MALFORMED", "certificate_pem")
