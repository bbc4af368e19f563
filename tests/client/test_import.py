"""An import of a code list: cut into messages, cancelled by an error of its source, ended early by a refusal."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from erxhub.client import AgencyClient, Connection, Refusal
from erxhub.v1 import catalog_pb2, registry_pb2
from tests.client.fake_hub import FakeHub, refuse

HEADER = {
    "dataset": catalog_pb2.CATALOG_DATASET_DISEASES,
    "edition": "2025-1",
    "valid_from_on": "2026-01-01",
    "file_sha256": b"\x07" * 32,
    "source": "test",
}


def diseases(count: int, name: str = "高血压") -> Iterator[catalog_pb2.CatalogEntry]:
    for line in range(count):
        yield catalog_pb2.CatalogEntry(line=line, disease=catalog_pb2.Disease(code=f"I{line}", name=name))


@pytest.fixture
def agency(connected: Callable[[str, str], Connection]) -> AgencyClient:
    return AgencyClient(connected("agency", "330100"))


async def test_a_header_comes_first_and_rows_in_chunks_of_two_thousand(hub: FakeHub, agency: AgencyClient) -> None:
    await agency.import_catalog(**HEADER, entries=diseases(4_500))  # type: ignore[arg-type]
    header, *chunks = hub.requests("ImportCatalog")
    assert header.header.edition == "2025-1"
    assert len(header.header.request_id) == 26
    assert [len(chunk.rows.entries) for chunk in chunks] == [2_000, 2_000, 500]
    assert [entry.line for chunk in chunks for entry in chunk.rows.entries] == list(range(4_500))


async def test_long_rows_make_smaller_chunks_and_may_come_from_an_async_source(
    hub: FakeHub, agency: AgencyClient
) -> None:
    async def source() -> AsyncIterator[catalog_pb2.CatalogEntry]:
        for entry in diseases(1_000, "x" * 2_000):
            yield entry

    await agency.import_catalog(**HEADER, entries=source())  # type: ignore[arg-type]
    chunks = hub.requests("ImportCatalog")[1:]
    assert len(chunks) == 4
    assert all(chunk.ByteSize() < 520 * 1024 for chunk in chunks)
    assert sum(len(chunk.rows.entries) for chunk in chunks) == 1_000


async def test_an_import_of_nothing_is_a_header(hub: FakeHub, agency: AgencyClient) -> None:
    await agency.import_catalog(**HEADER, entries=())  # type: ignore[arg-type]
    assert [message.WhichOneof("part") for message in hub.requests("ImportCatalog")] == ["header"]


async def test_an_error_of_the_source_cancels_the_import_and_is_raised(hub: FakeHub, agency: AgencyClient) -> None:
    ended = asyncio.Event()

    async def handler(requests: Any, context: Any) -> registry_pb2.ImportCatalogResponse:
        context.add_done_callback(lambda _: ended.set())
        async for _ in requests:
            pass
        return registry_pb2.ImportCatalogResponse()

    def source() -> Iterator[catalog_pb2.CatalogEntry]:
        yield from diseases(2_500)
        raise UnicodeError("line 2501 cannot be read")

    hub.on["ImportCatalog"] = handler
    with pytest.raises(UnicodeError):
        await agency.import_catalog(**HEADER, entries=source())  # type: ignore[arg-type]
    await asyncio.wait_for(ended.wait(), 5)


async def test_a_refusal_before_the_end_is_raised_as_one(hub: FakeHub, agency: AgencyClient) -> None:
    async def handler(requests: Any, context: Any) -> None:
        info = error_details_pb2.ErrorInfo(reason="AREA_FOREIGN", domain="erxhub")
        await refuse(context, grpc.StatusCode.PERMISSION_DENIED, "Not your area.", info)

    hub.on["ImportCatalog"] = handler
    with pytest.raises(Refusal) as caught:
        await agency.import_catalog(**HEADER, entries=diseases(200_000))  # type: ignore[arg-type]
    assert caught.value.code == "AREA_FOREIGN"
