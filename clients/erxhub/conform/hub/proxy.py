"""A transparent gRPC proxy that disturbs the line to a hub which cannot disturb itself.

Callers show it certificates of its own authority; behind each stands the certificate that the hub knows, and the call
goes on over that one's channel, so the hub sees who really calls. Bytes, metadata, deadlines, cancellation, statuses
and trailers pass unchanged in both directions, for every method, also for those that nobody here has heard of.

Owns: what fault rules do to a call on its way, and a record of every call. The rules themselves, their counting and
their seeded chance are the sandbox's (`erxhub.sandbox.faults`). Must never: read a request for anything but its id and
its prescription, or make a call of its own, but for the second one of `duplicate`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from erxhub.client import ClientIdentity
from erxhub.client.environment import Environment
from erxhub.client.failures import refusal_of
from erxhub.crypto.ca import TrustDomain
from erxhub.rpc.methods import METHODS, Method
from erxhub.sandbox import facts, faults, streams
from erxhub.sandbox.answers import Status, answer_named, lost_connection
from erxhub.sandbox.faults import Call, Faults, Plan
from erxhub.v1 import sandbox_pb2

HOST: Final = "localhost"
DAYS: Final = 30
KEPT: Final = 50_000
LINGER_MS: Final = 50
"""How long a call of an unknown method is looked at for a second request."""
METADATA_BYTES_MAX: Final = 1024 * 1024
_BY_PATH: Final = {f"/{method.service}/{method.rpc}": method for method in METHODS.values()}
_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", METADATA_BYTES_MAX),
)
_CHANNEL_OPTIONS: Final[tuple[tuple[str, int], ...]] = (
    *_OPTIONS,
    # A repeat that the caller did not ask for would hide what the hub said.
    ("grpc.enable_retries", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
)

_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class _Upstream:
    """A caller as the hub knows it."""

    actor: str
    channel: grpc.aio.Channel


class _Ended(Exception):
    """The call ends with `status` and these trailers."""

    def __init__(self, code: grpc.StatusCode, details: str, trailers: Any) -> None:
        super().__init__(details)
        self.code, self.details, self.trailers = code, details, trailers

    @classmethod
    def with_status(cls, status: Status) -> _Ended:
        """As the sandbox would end it."""
        return cls(status.code, status.message, status.trailing)


class FaultProxy(grpc.GenericRpcHandler):
    """One proxy before one hub. Make it with `start` and end it with `stop`."""

    ACTIONS: Final = frozenset(
        {
            faults.DELAY,
            faults.ERROR,
            faults.DROP_REQUEST,
            faults.LOSE_ACK,
            faults.DUPLICATE,
            faults.REORDER,
            faults.TRUNCATE_STREAM,
            faults.GOAWAY,
        }
    )
    """What can go wrong on a line."""

    def __init__(
        self,
        upstream: str,
        *,
        server_name: str,
        environment: Environment,
        seed: int = 0,
        trust_domain: str = "proxy.test",
    ) -> None:
        self._upstream_target = upstream
        self._server_name = server_name
        self._environment = environment
        self._trust = TrustDomain.in_memory(trust_domain, environment.now_ms())
        self._served = self._trust.issue_tls("hub", "proxy", environment.now_ms(), DAYS, (HOST, "127.0.0.1"))
        self._by_fingerprint: dict[str, _Upstream] = {}
        self._shown: dict[bytes, ClientIdentity] = {}
        self._faults = Faults(seed)
        self._server: grpc.aio.Server | None = None
        self._restarts: set[asyncio.Task[None]] = set()
        self._port = 0
        self.exchanges: deque[sandbox_pb2.Exchange] = deque(maxlen=KEPT)
        self.exchanges_begun = 0

    @property
    def target(self) -> str:
        """Where callers call."""
        return f"{HOST}:{self._port}"

    async def start(self) -> None:
        """Listens on a free port of this machine."""
        await self._listen()

    async def stop(self) -> None:
        """Ends every call and channel."""
        if self._restarts:
            await asyncio.gather(*self._restarts, return_exceptions=True)
        if self._server is not None:
            await self._server.stop(None)
        for upstream in self._by_fingerprint.values():
            await upstream.channel.close()

    def identity_for(self, identity: ClientIdentity) -> ClientIdentity:
        """What a caller shows here; the hub is shown `identity`."""
        certificate = identity.cert_pem or b""
        if certificate not in self._shown:
            peer = identity.peer_name()
            role, peer_id = (peer.role, peer.id) if peer is not None else ("mirror", "nobody")
            near = self._trust.issue_tls(role, peer_id, self._environment.now_ms(), DAYS)
            credentials = grpc.ssl_channel_credentials(identity.ca_pem, identity.key_pem, identity.cert_pem)
            options = (*_CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", self._server_name))
            channel = grpc.aio.secure_channel(self._upstream_target, credentials, options)
            self._by_fingerprint[_fingerprint(near.cert_pem)] = _Upstream(f"{role}/{peer_id}", channel)
            self._shown[certificate] = ClientIdentity(near.ca_pem, near.cert_pem, near.key_pem)
        return self._shown[certificate]

    def set_faults(self, rules: Sequence[sandbox_pb2.FaultRule]) -> None:
        """These rules and no others. Raises SandboxRefused for one that can match nothing, ValueError for one that a
        line cannot do."""
        for rule in rules:
            if rule.action not in self.ACTIONS or rule.WhichOneof("on") != "method":
                name = sandbox_pb2.FaultAction.Name(rule.action)
                raise ValueError(f"{name} on {rule.method or rule.event!r} cannot happen on a line")
        self._faults.set(rules, replace=True)

    def list_faults(self) -> Sequence[sandbox_pb2.FaultRule]:
        """The rules, with what they matched and how often they fired."""
        return self._faults.list()

    # ---- the server ----

    async def _listen(self) -> None:
        server = grpc.aio.server(options=(*_OPTIONS, ("grpc.so_reuseport", 0)))
        server.add_generic_rpc_handlers((self,))
        credentials = grpc.ssl_server_credentials(
            [(self._served.key_pem, self._served.cert_pem)], self._trust.ca_pem, require_client_auth=True
        )
        self._port = server.add_secure_port(f"127.0.0.1:{self._port}", credentials)
        await server.start()
        self._server = server

    async def _go_away(self) -> None:
        """Every connection is told to go away, and new ones are taken at once."""
        assert self._server is not None
        await self._server.stop(None)
        await self._listen()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any]:
        """Every method is served as a stream of bytes: on the wire a unary call is one of one message."""
        path = handler_call_details.method

        async def relay(requests: AsyncIterator[bytes], context: _Context) -> AsyncIterator[bytes]:
            async for message in self._relay(path, requests, context):
                yield message

        return grpc.stream_stream_rpc_method_handler(relay)

    # ---- one call ----

    async def _relay(self, path: str, requests: AsyncIterator[bytes], context: _Context) -> AsyncIterator[bytes]:
        upstream = self._caller(context)
        method = _BY_PATH.get(path)
        record = self._begin(facts.short_name(method) if method is not None else path.lstrip("/"), upstream.actor)
        record.status = "CANCELLED"
        try:
            if method is None or method.streams_in:
                messages = self._pumped(upstream, path, requests, context)
            else:
                messages = self._disturbed(upstream, method, path, requests, context, record)
            async with aclosing(messages):
                async for message in messages:
                    record.reply_bytes += len(message)
                    yield message
            record.status = "OK"
        except _Ended as ended:
            record.status = ended.code.name
            record.refusal_code = _refusal_code(ended)
            await context.abort(ended.code, ended.details, ended.trailers)
        finally:
            self._end(record)

    async def _disturbed(
        self,
        upstream: _Upstream,
        method: Method,
        path: str,
        requests: AsyncIterator[bytes],
        context: _Context,
        record: sandbox_pb2.Exchange,
    ) -> AsyncGenerator[bytes, None]:
        """A call with one request, as the rules have it."""
        raw = await anext(aiter(requests), None)
        if raw is None:
            return
        request, call = self._seen(method, upstream.actor, raw, record)
        plan = self._faults.plan(call)
        record.faults.extend(rule.label for rule in plan.rules)
        await self._before(plan)
        if faults.DUPLICATE in plan.others and not method.streams_out:
            await self._swallowed(self._passed(upstream, path, raw, context, early=False))
        # Whatever comes of the messages, the hub's call ends with this one.
        async with aclosing(self._passed(upstream, path, raw, context, early=method.streams_out)) as messages:
            if plan.taken is not None:
                await self._swallowed(messages)
                if plan.taken.arguments.hang:
                    await asyncio.get_running_loop().create_future()
                raise _Ended.with_status(lost_connection())
            if method.streams_out and plan.others and request is not None:
                async for message in self._shaped(messages, plan, call, method, request):
                    yield message
                return
            async for message in messages:
                yield message

    def _seen(self, method: Method, actor: str, raw: bytes, record: sandbox_pb2.Exchange) -> tuple[Any, Call]:
        request = facts.parsed(method.request, raw)
        record.request_bytes = len(raw)
        if request is not None:
            record.request_id, record.rx_no = facts.request_id_of(request), facts.rx_no_of(request)
        operation = facts.operation_of(method, raw, record.request_id)
        return request, Call(method.name, actor, operation, record.rx_no, method.streams_out)

    async def _before(self, plan: Plan) -> None:
        """Delays, and the end of a call that the hub never sees."""
        for rule in plan.delays:
            await self._environment.sleep_ms(rule.arguments.delay_ms)
        if plan.fate is None:
            return
        arguments = plan.fate.arguments
        if plan.fate.action == faults.ERROR:
            raise _Ended.with_status(answer_named(arguments.code, retry_after_ms=arguments.retry_after_ms))
        if plan.fate.action == faults.GOAWAY:
            # Beside this call, which the stop ends like every other.
            task = asyncio.create_task(self._go_away())
            self._restarts.add(task)
            task.add_done_callback(self._restarts.discard)
            await asyncio.shield(task)
        elif arguments.hang:
            await asyncio.get_running_loop().create_future()
        raise _Ended.with_status(lost_connection())

    async def _shaped(
        self, messages: AsyncIterator[bytes], plan: Plan, call: Call, method: Method, request: Any
    ) -> AsyncIterator[bytes]:
        """A stream whose messages come twice, in another order, or no more."""
        ended: list[_Ended] = []

        async def abortable() -> AsyncIterator[bytes]:
            # What shuffles a window gives out the rest of it before an end, and knows ends of this kind.
            try:
                async for message in messages:
                    yield message
            except _Ended as error:
                ended.append(error)
                raise grpc.aio.AbortError from None

        try:
            shaped = streams.disturbed(
                abortable(), plan, call, method, request, self._faults, self._environment.sleep_ms
            )
            async for message in shaped:
                yield message
        except streams.StreamCut as cut:
            raise _Ended.with_status(cut.status) from None
        except grpc.aio.AbortError:
            raise ended[0] from None

    async def _swallowed(self, messages: AsyncIterator[bytes]) -> None:
        """A call that is made to its end, and whose answer nobody sees."""
        try:
            async for _ in messages:
                pass
        except _Ended:
            return

    async def _passed(
        self, upstream: _Upstream, path: str, request: bytes, context: _Context, *, early: bool
    ) -> AsyncGenerator[bytes, None]:
        """A call with one request at the hub. With `early` its first metadata goes on before its first message."""
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = upstream.channel.unary_stream(path)
        call = method(request, timeout=context.time_remaining(), metadata=_metadata(context))
        async with aclosing(_answered(call, context, early=early)) as messages:
            async for message in messages:
                yield message

    async def _pumped(
        self, upstream: _Upstream, path: str, requests: AsyncIterator[bytes], context: _Context
    ) -> AsyncGenerator[bytes, None]:
        """A call of which nobody here knows how many requests it has: as one where it has one, as a stream else."""
        coming: AsyncIterator[bytes] = aiter(requests)
        first = await anext(coming, None)
        following = asyncio.ensure_future(anext(coming, None))
        timer = asyncio.ensure_future(self._environment.sleep_ms(LINGER_MS))
        try:
            await asyncio.wait({following, timer}, return_when=asyncio.FIRST_COMPLETED)
            if first is not None and following.done() and following.result() is None:
                async with aclosing(self._passed(upstream, path, first, context, early=False)) as messages:
                    async for message in messages:
                        yield message
                return
            method: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = upstream.channel.stream_stream(path)
            call = method(timeout=context.time_remaining(), metadata=_metadata(context))
            writing = asyncio.ensure_future(_write_all(call, first, following, coming))
            try:
                async with aclosing(_answered(call, context, early=False)) as answered:
                    async for message in answered:
                        yield message
            finally:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)
        finally:
            timer.cancel()
            following.cancel()

    # ---- records ----

    def _caller(self, context: _Context) -> _Upstream:
        certificate = bytes(next(iter(context.auth_context().get("x509_pem_cert", ()))))
        return self._by_fingerprint[_fingerprint(certificate)]

    def _begin(self, method: str, actor: str) -> sandbox_pb2.Exchange:
        self.exchanges_begun += 1
        record = sandbox_pb2.Exchange(
            number=self.exchanges_begun, method=method, actor=actor, received_at_ms=self._environment.now_ms()
        )
        self.exchanges.append(record)
        return record

    def _end(self, record: sandbox_pb2.Exchange) -> None:
        record.answered_us = self._environment.now_ms() * 1000


async def _answered(call: Any, context: _Context, *, early: bool) -> AsyncGenerator[bytes, None]:
    """The messages of a call, and its end: trailers of a good one, _Ended of another."""
    try:
        if early:
            # A watch stands from here on, whether a message comes or not.
            await context.send_initial_metadata(tuple(await call.initial_metadata()))
        async for message in call:
            yield message
        context.set_trailing_metadata(tuple(await call.trailing_metadata() or ()))
    except grpc.aio.AioRpcError as error:
        raise _Ended(error.code(), error.details() or "", tuple(error.trailing_metadata() or ())) from None
    finally:
        call.cancel()


async def _write_all(
    call: grpc.aio.StreamStreamCall[bytes, bytes],
    first: bytes | None,
    second: asyncio.Future[bytes | None],
    others: AsyncIterator[bytes],
) -> None:
    """Every request as it comes, until there are no more or the hub has answered."""
    message = first
    while message is not None and not call.done():
        await call.write(message)
        message = await second if message is first else await anext(others, None)
    if not call.done():
        await call.done_writing()


def _fingerprint(certificate_pem: bytes) -> str:
    """Of the certificate itself: its text may come back with other line ends."""
    return hashlib.sha256(x509.load_pem_x509_certificate(certificate_pem).public_bytes(Encoding.DER)).hexdigest()


def _metadata(context: _Context) -> tuple[tuple[str, str | bytes], ...]:
    """What the caller sent along, without what belongs to its connection."""
    own: Iterable[tuple[str, str | bytes]] = context.invocation_metadata() or ()
    return tuple((key, value) for key, value in own if key != "user-agent" and not key.startswith("grpc-"))


def _refusal_code(ended: _Ended) -> str:
    """The code in the details that an answer carries; empty where it carries none."""
    error = grpc.aio.AioRpcError(
        ended.code, grpc.aio.Metadata(), grpc.aio.Metadata(*ended.trailers), details=ended.details
    )
    refusal = refusal_of(error)
    return refusal.code if refusal is not None else ""
