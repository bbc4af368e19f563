"""The operator's port: what it counts agrees with the calls made, in a text that a strict reader takes."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest

from erxhub.client import Refusal
from erxhub.config import Config
from erxhub.metrics import Family, Histogram, Lag, Sample, exposition, histogram
from erxhub.operating import NotLoopback, Operations, OperatorPort, loopback
from erxhub.rpc.meter import RpcMeter
from erxhub.rpc.methods import METHODS
from tests.chain import Chain
from tests.live import PERSON, Live, live_hub

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"')
_VALUE = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]+)?|\+Inf")
Labels = frozenset[tuple[str, str]]


class Parsed(NamedTuple):
    kinds: dict[str, str]
    values: dict[tuple[str, Labels], float]

    def value(self, name: str, **labels: str) -> float:
        return self.values[name, frozenset(labels.items())]

    def total(self, name: str, **labels: str) -> float:
        """The sum of all lines of a name that have these labels, whatever else they have."""
        wanted = frozenset(labels.items())
        return sum(value for (line, found), value in self.values.items() if line == name and wanted <= found)


def parse(text: str) -> Parsed:
    """Reads the text format 0.0.4 and takes nothing that it does not allow."""
    assert text.endswith("\n")
    kinds: dict[str, str] = {}
    values: dict[tuple[str, Labels], float] = {}
    family, helped = "", ""
    for line in text.splitlines():
        if line.startswith("# HELP "):
            helped = line.split(" ", 3)[2]
            assert helped not in kinds, f"{helped} comes twice"
            continue
        if line.startswith("# TYPE "):
            _, _, family, kind = line.split(" ")
            assert family == helped
            assert _NAME.fullmatch(family)
            assert kind in ("counter", "gauge", "histogram")
            kinds[family] = kind
            continue
        name, labels, value = _line(line)
        suffix = name.removeprefix(family)
        assert name.startswith(family), f"{name} stands under {family}"
        assert suffix in (("_bucket", "_sum", "_count") if kinds[family] == "histogram" else ("",))
        assert (name, labels) not in values, f"{line} comes twice"
        values[name, labels] = value
    _check_histograms(kinds, values)
    return Parsed(kinds, values)


def _line(line: str) -> tuple[str, Labels, float]:
    found = _NAME.match(line)
    assert found, line
    rest, labels = line[found.end() :], frozenset[tuple[str, str]]()
    if rest.startswith("{"):
        inside, closing, rest = rest[1:].rpartition("}")
        assert closing
        parts = [match.groups() for match in _LABEL.finditer(inside)]
        assert ",".join(f'{name}="{value}"' for name, value in parts) == inside, line
        labels = frozenset((str(name), str(value)) for name, value in parts)
        assert len(dict(labels)) == len(parts)
    assert rest.startswith(" ")
    assert _VALUE.fullmatch(rest[1:]), line
    return found.group(), labels, float(rest[1:])


def _check_histograms(kinds: dict[str, str], values: dict[tuple[str, Labels], float]) -> None:
    for name in (name for name, kind in kinds.items() if kind == "histogram"):
        series: dict[Labels, list[tuple[float, float]]] = {}
        for (line, labels), value in values.items():
            if line == f"{name}_bucket":
                bound = float(dict(labels)["le"])
                series.setdefault(frozenset(x for x in labels if x[0] != "le"), []).append((bound, value))
        assert series
        for labels, buckets in series.items():
            counts = [count for _, count in sorted(buckets)]
            assert counts == sorted(counts), f"{name} falls"
            assert max(buckets) == (float("inf"), values[f"{name}_count", labels])
            assert (f"{name}_sum", labels) in values


class Operated(NamedTuple):
    live: Live
    port: int

    async def get(self, path: str, host: str = "localhost", method: str = "GET") -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        answer = (await reader.read()).decode()
        writer.close()
        head, _, body = answer.partition("\r\n\r\n")
        assert f"Content-Length: {len(body.encode())}" in head
        return int(head.split(" ")[1]), body

    async def metrics(self) -> Parsed:
        status, body = await self.get("/metrics")
        assert status == 200
        return parse(body)


@asynccontextmanager
async def operated(**settings: Any) -> AsyncIterator[Operated]:
    meter = RpcMeter(METHODS)
    async with live_hub(layers=[meter.metered], **settings) as live:
        port = OperatorPort(Operations(live.hub, meter, hub_id=Config().hub_id))
        bound = await port.start("127.0.0.1:0")
        try:
            yield Operated(live, bound)
        finally:
            await port.stop()


async def test_counters_agree_with_the_calls_made() -> None:
    async with operated() as it:
        agency, before = await it.live.agency(), await it.metrics()
        await agency.get_person(person_no=PERSON)
        for _ in range(2):
            with pytest.raises(Refusal):
                await agency.get_person(person_no="nobody00001")
        with pytest.raises(Refusal):
            await agency.get_person(person_no="")
        call = {"grpc_type": "unary", "grpc_service": "erxhub.v1.RegistryService", "grpc_method": "GetPerson"}
        handled = before.total("grpc_server_handled_total", **call) + 4
        async with asyncio.timeout(10):
            # A caller may have its answer a moment before the call is counted as handled.
            while (after := await it.metrics()).total("grpc_server_handled_total", **call) < handled:
                pass

        def rose(name: str, **labels: str) -> float:
            return after.total(name, **labels) - before.total(name, **labels)

        assert rose("grpc_server_started_total", **call) == 4
        assert rose("grpc_server_started_total") == 4, "nothing else was called"
        assert rose("grpc_server_msg_received_total", **call) == 4
        assert rose("grpc_server_msg_sent_total", **call) == 1
        codes = {code: rose("grpc_server_handled_total", **call, grpc_code=code) for code in ("OK", "NotFound")}
        assert codes == {"OK": 1, "NotFound": 2}
        assert rose("grpc_server_handled_total", **call, grpc_code="InvalidArgument") == 1
        assert rose("grpc_server_handling_seconds_count", **call) == 4
        assert rose("erxhub_refusals_total", code="RECORD_UNKNOWN") == 2
        assert rose("erxhub_refusals_total", code="INPUT_MALFORMED") == 1
        assert rose("erxhub_commit_seconds_count") == rose("erxhub_batch_size_count") == 4
        assert rose("erxhub_batch_size_sum") == 4
        assert rose("erxhub_log_position") == 4
        assert after.value("erxhub_store_up") == after.value("erxhub_serving") == 1
        assert after.value("erxhub_queue_depth") == 0


async def test_a_watch_and_a_hold_are_counted_while_they_last() -> None:
    async with operated() as it:
        chain = await Chain(it.live).uploaded()
        assert (await it.metrics()).value("erxhub_open_watches") == 0
        watch = (await it.live.pharmacy()).watch(from_start=True)
        coming = asyncio.ensure_future(anext(watch))
        await chain.held()
        await coming
        during = await it.metrics()
        assert during.value("erxhub_open_watches") == 1
        assert during.total("grpc_server_msg_sent_total", grpc_method="WatchOrders") >= 1
        assert during.total("grpc_server_handled_total", grpc_method="WatchOrders") == 0
        await watch.aclose()
        # The count of holds is at most a minute old: this hub was not asked before the hold began.
        _, body = await it.get("/status")
        assert json.loads(body)["holds_open"] == 0


async def test_the_count_of_holds_is_of_the_whole_ledger() -> None:
    async with operated() as it:
        await Chain(it.live).held()
        measured = await it.metrics()
        assert (measured.value("erxhub_holds_open"), measured.value("erxhub_holds_open_is_partial")) == (1, 0)


async def test_status_says_the_same_in_words() -> None:
    async with operated() as it:
        await it.live.hub.core.publisher.publish_all()
        code, body = await it.get("/status")
        told = json.loads(body)
        position = await it.live.hub.store.last_position()
    assert code == 200
    assert (told["health"], told["store"], told["store_up"], told["hub_id"]) == ("SERVING", "memory", True, "hub-1")
    assert (told["log_position"], told["queue_depth"], told["open_watches"]) == (position, 0, 0)
    assert told["commits"]["count"] > 0
    assert told["checkpoint"]["covered_position"] == position
    assert told["checkpoint"]["age_ms"] == 0


async def test_nothing_personal_is_shown() -> None:
    async with operated() as it:
        chain = await Chain(it.live).held()
        texts = [(await it.get(path))[1] for path in ("/metrics", "/status")]
    for text in texts:
        for secret in (PERSON, chain.rx_no, chain.encounter_id, chain.pharmacist, chain.pharmacy_code):
            assert secret not in text


@pytest.mark.parametrize(
    ("path", "host", "method", "status"),
    [
        ("/", "localhost", "GET", 404),
        ("/metrics", "localhost", "POST", 405),
        ("/metrics", "example.org", "GET", 403),
        ("/status", "", "GET", 403),
        ("/metrics?x=1", "127.0.0.1:9", "GET", 200),
        ("/status", "[::1]:9", "GET", 200),
    ],
)
async def test_the_port_answers_two_paths_under_names_of_this_machine(
    path: str, host: str, method: str, status: int
) -> None:
    async with operated(seed=False) as it:
        assert (await it.get(path, host, method))[0] == status


@pytest.mark.parametrize("address", ["0.0.0.0:1", "192.0.2.1:1", "example.org:1", "[::]:1"])
def test_the_port_listens_on_loopback_addresses_only(address: str) -> None:
    with pytest.raises(NotLoopback):
        loopback(address)


@pytest.mark.parametrize("address", ["localhost", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:70000"])
def test_no_address_is_named(address: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        loopback(address)


def test_label_values_are_escaped() -> None:
    family = Family("a", "gauge", "with \\ and\nline", [Sample({"b": 'quote " back \\ line \n'}, 1)])
    parsed = parse(exposition([family]))
    assert parsed.values == {("a", frozenset({("b", 'quote \\" back \\\\ line \\n')})): 1}


def test_a_histogram_counts_a_value_on_a_bound_below_it() -> None:
    observed = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 2.0, 2.5):
        observed.observe(value)
    parsed = parse(exposition([histogram("h", "text", observed)]))
    assert [parsed.value("h_bucket", le=bound) for bound in ("1", "2", "+Inf")] == [2, 3, 4]
    assert (observed.quantile(0.5), observed.quantile(0.75), observed.quantile(1.0)) == (1.0, 2.0, None)


def test_a_watch_is_behind_from_the_first_commit_that_it_has_not_told() -> None:
    lag = Lag()
    assert lag.longest_s == 0
    lag.begins(1)
    lag.begins(1)
    assert lag.longest_s > 0
    lag.ends(1)
    assert (lag.longest_s, lag.seconds.count) == (0, 1)
    lag.begins(2)
    lag.forget(2)
    lag.ends(2)
    assert (lag.longest_s, lag.seconds.count) == (0, 1)
