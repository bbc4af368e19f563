"""What an operator may know of a running hub: Prometheus metrics and a status, over a small HTTP port of this machine.

Owns that port, and what it shows. It listens on loopback addresses only and answers two paths; it changes nothing, and
never shows a number, name or code of a person, prescription or caller.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, NamedTuple

from erxhub import process
from erxhub.app import Hub
from erxhub.core import lifecycle
from erxhub.core.lifecycle import Machine
from erxhub.core.statuses import state_name
from erxhub.ledger.log import Checkpoint
from erxhub.ledger.migrations import newest
from erxhub.ledger.store import Store, StoreUnavailable, Wanted
from erxhub.metrics import CONTENT_TYPE, Family, Histogram, counter, counters, exposition, gauge, histogram
from erxhub.ports import give_way, machine_us
from erxhub.rpc.meter import RpcMeter
from erxhub.v1 import state_pb2

_log = logging.getLogger("erxhub.operating")

DEFAULT_ADDRESS: Final = "127.0.0.1:7480"

_REQUEST_BYTES_MAX: Final = 8 * 1024
_REQUEST_TIMEOUT_S: Final = 5.0
_CONNECTIONS_MAX: Final = 16
"""A scraper and an operator need two."""

_HOLDS_KEPT_US: Final = 60_000_000
"""How old a count of holds may be: it reads every prescription in force."""
_HOLDS_STREAMS_MAX: Final = 10_000
_STREAMS_AT_ONCE: Final = 200
_FAR_FUTURE_MS: Final = 2**53


class _Holds(NamedTuple):
    """Prescriptions held by a pharmacy. `is_whole` is false when there were more deadlines than are looked at."""

    open: int
    is_whole: bool


class Operations:
    """What is told about one hub."""

    def __init__(self, hub: Hub, meter: RpcMeter, *, hub_id: str) -> None:
        self._hub = hub
        self._meter = meter
        self._hub_id = hub_id
        self._holds: _Holds | None = None
        self._holds_at_us = 0

    async def metrics(self) -> str:
        """The Prometheus text. What the store does not answer now is left out, and `erxhub_store_up` is 0."""
        facts = await self._asked()
        return exposition([*self._meter.families(), *self._of_lane(), *self._of_ledger(facts)])

    async def status(self) -> dict[str, Any]:
        """The same in a few words, for `erxhub status`."""
        engine, told = self._hub.engine, self._hub.engine.counters
        facts = await self._asked()
        checkpoint = self._hub.core.publisher.newest
        return {
            "version": _version(),
            "code": process.code(),
            "hub_id": self._hub_id,
            "health": "SERVING" if engine.serving else "NOT_SERVING",
            "store": _kind(self._hub.store),
            "store_up": facts is not None and engine.can_write,
            "schema": _schema(self._hub.store),
            "log_position": facts.position if facts else None,
            "queue_depth": engine.queue_depth,
            "open_watches": len(engine.watches),
            "longest_watch_lag_ms": round(told.lag.longest_s * 1000),
            "holds_open": facts.holds.open if facts else None,
            "holds_counted_whole": facts.holds.is_whole if facts else None,
            "checkpoint": None
            if checkpoint is None
            else {
                "no": checkpoint.no,
                "size": checkpoint.size,
                "covered_position": checkpoint.covered_position,
                "age_ms": self._age_ms(checkpoint),
            },
            "witnessed": self._witnessed(),
            "holds_sequencer_lease": _leads(self._hub.store),
            "commits": _times(told.commit_seconds),
            "conflicts": told.conflicts,
            "busy": told.busy,
        }

    def _witnessed(self) -> dict[str, Any] | None:
        """How far the witnesses are; None for a hub without any."""
        witnessing = self._hub.core.publisher.witnessing
        if witnessing is None:
            return None
        newest = witnessing.newest
        return {
            "no": newest.no if newest else None,
            "size": newest.size if newest else None,
            "overdue_ms": witnessing.overdue_ms,
            "publishing_halted": witnessing.halted,
        }

    async def _asked(self) -> _Facts | None:
        try:
            return _Facts(await self._hub.store.last_position(), await self._open_holds())
        except StoreUnavailable:
            return None

    async def _open_holds(self) -> _Holds:
        """The count, made anew when the last one is a minute old."""
        now_us = machine_us()
        if self._holds is None or now_us - self._holds_at_us > _HOLDS_KEPT_US:
            self._holds_at_us = now_us
            self._holds = await _count_holds(self._hub.store)
        return self._holds

    def _of_lane(self) -> Iterator[Family]:
        engine, told = self._hub.engine, self._hub.engine.counters
        yield gauge("erxhub_serving", "1 while commands are taken and can be written.", int(engine.serving))
        yield gauge("erxhub_queue_depth", "Commands that wait for the lane.", engine.queue_depth)
        yield histogram("erxhub_batch_size", "Commands and accesses in one commit.", told.batch_jobs)
        yield histogram("erxhub_commit_seconds", "Seconds of one commit of the store.", told.commit_seconds)
        yield counter("erxhub_accepted_total", "Commands answered with their reply, repeats included.", told.commands)
        yield counter("erxhub_conflicts_total", "Writes that another hub's came before.", told.conflicts)
        yield counter("erxhub_busy_total", "Writes put off because another hub was extending a stream.", told.busy)
        yield counters("erxhub_refusals_total", "Recorded refusals, by code.", "code", told.refusals)
        yield counters(
            "erxhub_refusals_counted_only_total", "Refusals that leave no entry, by code.", "code", told.counted_only
        )
        yield gauge("erxhub_open_watches", "Watches that are open.", len(engine.watches))
        yield gauge("erxhub_stream_lag_seconds", "How long the watch furthest behind has been so.", told.lag.longest_s)
        yield histogram(
            "erxhub_stream_delivery_seconds", "Seconds from a commit until a watch told it.", told.lag.seconds
        )

    def _of_ledger(self, facts: _Facts | None) -> Iterator[Family]:
        up = facts is not None and self._hub.engine.can_write
        yield gauge("erxhub_store_up", "1 while the store can be read and written.", int(up))
        if facts is not None:
            yield gauge("erxhub_log_position", "The newest position of the log.", facts.position)
            yield gauge("erxhub_holds_open", "Prescriptions held by a pharmacy, in the whole ledger.", facts.holds.open)
            yield gauge(
                "erxhub_holds_open_is_partial",
                "1 when there are more deadlines than were looked at for erxhub_holds_open.",
                int(not facts.holds.is_whole),
            )
        leads = _leads(self._hub.store)
        if leads is not None:
            yield gauge("erxhub_sequencer_lease", "1 while this hub gives log positions.", int(leads))
        checkpoint = self._hub.core.publisher.newest
        if checkpoint is not None:
            age_s = self._age_ms(checkpoint) / 1000
            yield gauge("erxhub_checkpoint_size", "Leaves under the newest signed checkpoint.", checkpoint.size)
            yield gauge("erxhub_checkpoint_covered_position", "The newest entry under it.", checkpoint.covered_position)
            yield gauge("erxhub_checkpoint_age_seconds", "Age of the newest signed checkpoint.", age_s)

        yield from self._of_witnesses()

    def _of_witnesses(self) -> Iterator[Family]:
        witnessing = self._hub.core.publisher.witnessing
        if witnessing is None:
            return
        size = witnessing.newest.size if witnessing.newest else 0
        yield gauge("erxhub_witness_checkpoint_size", "Leaves under the newest witnessed checkpoint.", size)
        yield gauge(
            "erxhub_witness_overdue_seconds",
            "How long a checkpoint has been without its cosignatures, beyond the merge delay.",
            witnessing.overdue_ms / 1000,
        )
        yield gauge(
            "erxhub_witness_halted",
            "1 when a witness knows another history and nothing is published any more.",
            int(witnessing.halted is not None),
        )
        yield counters(
            "erxhub_witness_failures_total",
            "Requests for a cosignature that brought none, by the witness's name in the policy.",
            "witness",
            witnessing.failures,
        )
        yield counters(
            "erxhub_witness_unproven_total",
            "Claims of another history for which a witness shows nothing that our log signed, by name in the policy.",
            "witness",
            witnessing.unproven,
        )

    def _age_ms(self, checkpoint: Checkpoint) -> int:
        return max(0, self._hub.engine.clock.now_ms() - checkpoint.made_at_ms)


class _Facts(NamedTuple):
    """What the store was asked."""

    position: int
    holds: _Holds


async def _count_holds(store: Store) -> _Holds:
    """Every held prescription has a deadline, so those with one are looked at, some at a time."""
    keys = await store.due(_FAR_FUTURE_MS, _HOLDS_STREAMS_MAX)
    held = 0
    for begin in range(0, len(keys), _STREAMS_AT_ONCE):
        read = await store.read(Wanted(streams=frozenset(keys[begin : begin + _STREAMS_AT_ONCE])))
        for head in read.heads.values():
            if head.stream_kind == "prescription":
                orders: Sequence[state_pb2.Order] = state_pb2.PrescriptionState.FromString(head.body).orders
                held += any(state_name(Machine.ORDER, order.status) in lifecycle.HOLDING for order in orders)
        await give_way()
    return _Holds(held, len(keys) < _HOLDS_STREAMS_MAX)


def _kind(store: Store) -> str:
    return type(store).__name__.removesuffix("Store").lower()


def _schema(store: Store) -> int | None:
    # A store refuses any other schema than its release's, so an open one has that.
    kind = _kind(store)
    return newest("postgres") if kind == "postgres" else newest("sqlite") if kind == "sqlite" else None


def _leads(store: Store) -> bool | None:
    leads: bool | None = getattr(store, "gives_positions", None)
    return leads


def _times(observed: Histogram) -> dict[str, Any]:
    count = observed.count
    median, high = observed.quantile(0.5), observed.quantile(0.99)
    return {
        "count": count,
        "mean_ms": round(observed.total / count * 1000, 3) if count else None,
        "p50_at_most_ms": median and median * 1000,
        "p99_at_most_ms": high and high * 1000,
    }


def _version() -> str:
    try:
        return version("erxhub")
    except PackageNotFoundError:
        return "unknown"


# ---- the port ----


class NotLoopback(ValueError):
    """The address is none of this machine's own."""


def loopback(address: str) -> tuple[str, int]:
    """Host and port of "HOST:PORT". Raises NotLoopback for a host that others can reach, ValueError for no address."""
    host, separator, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not separator or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{address} is no HOST:PORT")
    if not _is_loopback(host):
        raise NotLoopback(f"{host} is no loopback address: the operator's port has no callers to tell apart")
    return host, int(port)


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


class OperatorPort:
    """GET /metrics and GET /status, each connection one request."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._server: asyncio.Server | None = None
        self._open = 0

    async def start(self, address: str) -> int:
        """Listen; the port, chosen when it is 0. Raises ValueError for an address, OSError when it is taken."""
        host, port = loopback(address)
        self._server = await asyncio.start_server(self._serve, host, port, limit=_REQUEST_BYTES_MAX)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    async def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        try:
            if self._open <= _CONNECTIONS_MAX:
                async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                writer.write(await self._answer(head.decode("latin-1")))
                async with asyncio.timeout(_REQUEST_TIMEOUT_S):
                    await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, head: str) -> bytes:
        line, *lines = head.split("\r\n")
        method, _, rest = line.partition(" ")
        path = rest.partition(" ")[0].partition("?")[0]
        # A page in a browser of this machine may call any port of it, but not under one of its names.
        if not _is_loopback(_host(lines)):
            return _response("403 Forbidden", "text/plain", "only for this machine\n")
        if method != "GET":
            return _response("405 Method Not Allowed", "text/plain", "GET only\n")
        try:
            if path == "/metrics":
                return _response("200 OK", CONTENT_TYPE, await self._operations.metrics())
            if path == "/status":
                return _response("200 OK", "application/json", json.dumps(await self._operations.status()) + "\n")
        except Exception:  # noqa: BLE001 a scrape that fails must not end the port
            _log.exception("the operator's port failed")
            return _response("500 Internal Server Error", "text/plain", "the hub's log says why\n")
        return _response("404 Not Found", "text/plain", "/metrics and /status\n")


def _host(lines: Sequence[str]) -> str:
    headers: Mapping[str, str] = {
        name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    host = headers.get("host", "")
    if host.startswith("["):
        return host[1 : host.find("]")]
    return host.partition(":")[0]


def _response(status: str, content_type: str, body: str) -> bytes:
    data = body.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(data)}\r\n"
        "Cache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + data
