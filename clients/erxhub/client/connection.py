"""One mutual-TLS connection to a hub, shared by every client of a process.

Owns: channel, deadlines, the retry policy, the check of receipts, and the turning of a broken call into one of the
`failures`. Must never: know a single method; repeat a call itself (gRPC repeats it, message and request id unchanged).
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Final, NamedTuple, Self, TypeVar

import grpc
from cryptography import x509
from google.protobuf.message import Message

from erxhub.client.environment import Environment, SystemEnvironment
from erxhub.client.failures import (
    CallFailed,
    ClientFailure,
    HubUnreachable,
    ReceiptInvalid,
    Refusal,
    call_failed,
    hub_unreachable,
    refusal_of,
)
from erxhub.client.receipts import check_receipt
from erxhub.crypto import certs
from erxhub.v1 import (
    audit_pb2,
    common_pb2,
    dispensing_pb2,
    encounter_pb2,
    patient_pb2,
    prescribing_pb2,
    registry_pb2,
    voucher_pb2,
)

Request = TypeVar("Request", bound=Message)
Reply = TypeVar("Reply", bound=Message)

UNARY_TIMEOUT_S: Final = 10.0
RECEIVE_BYTES_MAX: Final = 64 * 1024 * 1024
"""A long trace is larger than gRPC's 4 MiB; this is what a hub sends at most."""
RETRY_BUFFER_BYTES: Final = 4 * 1024 * 1024
"""gRPC repeats only what fits here; its own 256 KiB are less than one upload with a file of 1 MiB."""
METADATA_BYTES_MAX: Final = 16 * 1024
"""A refusal has up to 6 KiB of details, base64 on the wire, beside a percent-encoded message."""
ATTEMPTS_MAX: Final = 5
BACKOFF_MIN_MS: Final = 10
"""gRPC takes 20 % off by chance, and a wait that it rounds to nothing leaves the call hanging until its deadline."""
KEEPALIVE_MS: Final = 330_000
"""Finds a dead watch; a server that is not told otherwise takes more than one ping in five minutes for abuse."""

SERVICE_MODULES: Final[tuple[ModuleType, ...]] = (
    audit_pb2,
    dispensing_pb2,
    encounter_pb2,
    patient_pb2,
    prescribing_pb2,
    registry_pb2,
    voucher_pb2,
)


PROBE_TIMEOUT_S: Final = 2.0
_ONE_ADDRESS: Final = "failed to connect to all addresses; last error"
"""gRPC's own words when it tells of one address only: of `localhost` often the one at which nobody listens."""
_NOT_TRUSTED: Final = "CERTIFICATE_VERIFY_FAILED"
_WRONG_NAME: Final = "Hostname Verification"
_HOSTNAME_MISMATCH: Final = 62
"""X509_V_ERR_HOSTNAME_MISMATCH (OpenSSL)."""
REACHED_TRAILER: Final = "erxhub-reached"
"""Where a reply that waited says what it reached."""


class PeerName(NamedTuple):
    """Who a certificate speaks for, e.g. ("pharmacy", "P33010600001")."""

    role: str
    id: str


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """The certificate, its key, and the authority that the hub's certificate must come from; all PEM bytes.

    Without certificate and key the object can be made, and every call ends in HubUnreachable TLS_CERTIFICATE_MISSING.
    """

    ca_pem: bytes
    cert_pem: bytes | None = None
    key_pem: bytes | None = dataclasses.field(default=None, repr=False)

    @classmethod
    def from_directory(cls, directory: str | Path) -> Self:
        """Reads cert.pem, key.pem and ca.pem, as `erxhub ca issue` writes them. Raises OSError naming the file."""
        folder = Path(directory)
        return cls.from_files(ca=folder / "ca.pem", cert=folder / "cert.pem", key=folder / "key.pem")

    @classmethod
    def from_files(cls, *, ca: str | Path, cert: str | Path, key: str | Path) -> Self:
        """Raises OSError naming the file that cannot be read."""
        return cls(Path(ca).read_bytes(), Path(cert).read_bytes(), Path(key).read_bytes())

    def peer_name(self) -> PeerName | None:
        """Who the certificate speaks for; None when it names nobody that a hub would know."""
        try:
            certificate = x509.load_pem_x509_certificate(self.cert_pem or b"")
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
            uri = names.get_values_for_type(x509.UniformResourceIdentifier)[0]
            peer = certs.peer_identity(self.cert_pem or b"", uri.removeprefix("spiffe://").split("/")[0])
        except (ValueError, IndexError, x509.ExtensionNotFound, certs.PeerIdentityError):
            return None
        return PeerName(peer.role, peer.id)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often UNAVAILABLE is met before a call fails.

    `attempts` (1–5, gRPC's own limit) counts the first one too; the wait doubles from `backoff_ms` (at least 10) to
    `backoff_max_ms`. A stream is opened again up to `stream_resumes` times in a row without a message between.
    Raises ValueError for numbers outside these limits.
    """

    attempts: int = 5
    backoff_ms: int = 200
    backoff_max_ms: int = 2_000
    stream_resumes: int = 8

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= ATTEMPTS_MAX or self.stream_resumes < 0:
            raise ValueError(f"attempts are 1 to {ATTEMPTS_MAX}, and resumes not negative")
        if not BACKOFF_MIN_MS <= self.backoff_ms <= self.backoff_max_ms:
            raise ValueError(f"the wait begins at {BACKOFF_MIN_MS} ms or later, and does not end before it begins")


def _server_streams() -> list[dict[str, str]]:
    return [
        {"service": service.full_name, "method": method.name}
        for module in SERVICE_MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.server_streaming
    ]


def service_config(policy: RetryPolicy) -> str:
    """gRPC's service config (JSON): every call is repeated on UNAVAILABLE and on nothing else.

    Streams are named without a policy, because they are not repeated but resumed, at their last cursor.
    """
    retry = {
        "maxAttempts": policy.attempts,
        "initialBackoff": f"{policy.backoff_ms / 1000:.3f}s",
        "maxBackoff": f"{policy.backoff_max_ms / 1000:.3f}s",
        "backoffMultiplier": 2,
        "retryableStatusCodes": ["UNAVAILABLE"],
    }
    every: dict[str, object] = {"name": [{}]}
    if policy.attempts > 1:
        every["retryPolicy"] = retry
    return json.dumps({"methodConfig": [every, {"name": _server_streams()}]})


async def _written(call: grpc.aio.StreamUnaryCall[Request, Reply], request: Request | None) -> bool:
    """Writes a message, or the end. False when the hub has answered before the end; awaiting the call says what."""
    try:
        await (call.done_writing() if request is None else call.write(request))
    except (asyncio.InvalidStateError, grpc.aio.AioRpcError):
        return False
    return True


class Connection:
    """A channel to one hub. Make it inside a running event loop, and close it (`async with`)."""

    def __init__(
        self,
        target: str,
        identity: ClientIdentity,
        *,
        server_name: str | None = None,
        receipt_keys: Mapping[str, bytes] | None = None,
        verify_receipts: bool | None = None,
        timeout_s: float = UNARY_TIMEOUT_S,
        retry: RetryPolicy | None = None,
        environment: Environment | None = None,
        wait_for: common_pb2.WaitFor.ValueType = common_pb2.WAIT_FOR_UNSPECIFIED,
        on_reached: Callable[[Message, str], None] | None = None,
    ) -> None:
        """
        Args:
            target: host:port of the hub.
            server_name: the name in the hub's certificate, where it is not the host of `target`.
            receipt_keys: the hub's receipt keys, key id to 32 raw bytes (Ed25519).
            verify_receipts: whether every accepted command must bring a receipt of a pinned key; by default exactly
                when keys are pinned.
            timeout_s: deadline of a unary call, its repeats included, where the call itself names none.
            retry: see RetryPolicy.
            environment: clock, chance and waiting; the machine's by default.
            wait_for: what the reply to a command waits for, where the command itself does not say it.
            on_reached: hears, for every reply that waited, the request and DURABLE, INTEGRATED or WITNESSED.
        """
        self.target = target
        self.identity = identity
        self.peer_name = identity.peer_name()
        self.environment: Environment = environment or SystemEnvironment()
        self.timeout_s = timeout_s
        self.retry = retry or RetryPolicy()
        self.wait_for = wait_for
        self.on_reached = on_reached
        self._receipt_keys = dict(receipt_keys or {})
        self._verify_receipts = bool(receipt_keys) if verify_receipts is None else verify_receipts
        options: list[tuple[str, str | int]] = [
            ("grpc.enable_retries", 1),
            ("grpc.service_config", service_config(self.retry)),
            ("grpc.per_rpc_retry_buffer_size", RETRY_BUFFER_BYTES),
            ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
            ("grpc.max_metadata_size", METADATA_BYTES_MAX),
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            # A hub that restarts is back before gRPC's own first wait of a second is over.
            ("grpc.initial_reconnect_backoff_ms", self.retry.backoff_ms),
            ("grpc.max_reconnect_backoff_ms", self.retry.backoff_max_ms),
        ]
        self.server_name = server_name
        if server_name:
            options.append(("grpc.ssl_target_name_override", server_name))
        # A pair that does not fit is left out: gRPC has no error of its own for it, and `_tls_fault` names it.
        pair_fits = self._pair_fits()
        credentials = grpc.ssl_channel_credentials(
            root_certificates=identity.ca_pem,
            private_key=identity.key_pem if pair_fits else None,
            certificate_chain=identity.cert_pem if pair_fits else None,
        )
        self.channel = grpc.aio.secure_channel(target, credentials, options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every call that is under way."""
        await self.channel.close()

    async def unary(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Reply],
        request: Request,
        timeout_s: float | None = None,
    ) -> Reply:
        """One call. Raises Refusal, HubUnreachable, CallFailed or ReceiptInvalid, each with the request."""
        try:
            call = method(self.waiting(request), timeout=self._timeout(timeout_s))
            reply = await call
        except grpc.aio.AioRpcError as error:
            raise await self.failure(error, request) from error
        self.check_reply(reply, request)
        if self.on_reached is not None:
            reached = [value for key, value in await call.trailing_metadata() or () if key == REACHED_TRAILER]
            self.tell_reached(request, str(reached[0]) if reached else "DURABLE")
        return reply

    def tell_reached(self, request: Message, reached: str) -> None:
        """Let who wants to know hear what the answer to a request waited for."""
        if self.on_reached is not None and getattr(request, "wait_for", 0) > common_pb2.WAIT_FOR_DURABLE:
            self.on_reached(request, reached)

    def waiting(self, request: Request) -> Request:
        """The request, waiting for what the connection says where it says nothing itself."""
        if self.wait_for and "wait_for" in request.DESCRIPTOR.fields_by_name and not getattr(request, "wait_for"):  # noqa: B009
            setattr(request, "wait_for", self.wait_for)  # noqa: B010
        return request

    async def client_stream(
        self,
        method: grpc.aio.StreamUnaryMultiCallable[Request, Reply],
        requests: AsyncIterator[Request],
        timeout_s: float,
    ) -> Reply:
        """Sends every message of `requests` and returns the reply.

        An error of `requests` cancels the call and is raised. Otherwise raises what `unary` raises, without a
        request: a stream is begun anew by its caller.
        """
        call = method(timeout=timeout_s)
        try:
            async for request in requests:
                if not await _written(call, request):
                    break
            else:
                await _written(call, None)
        except BaseException:
            call.cancel()
            raise
        try:
            reply = await call
        except grpc.aio.AioRpcError as error:
            raise await self.failure(error, None) from error
        self.check_reply(reply, None)
        return reply

    async def resuming_stream(
        self,
        method: grpc.aio.UnaryStreamMultiCallable[Request, Reply],
        request_after: Callable[[Reply | None], Request],
        timeout_s: float | None,
    ) -> AsyncIterator[Reply]:
        """The messages of a stream that is opened again, after the last message, when the connection is lost.

        `request_after` gives the request that goes on after a message (None: the first request). Ends when the hub
        ends the stream; raises what `unary` raises when it refuses, or when opening fails too often.
        """
        last: Reply | None = None
        failed = 0
        while True:
            request = request_after(last)
            call = method(request, timeout=timeout_s)
            try:
                async for message in call:
                    last, failed = message, 0
                    yield message
                return
            except grpc.aio.AioRpcError as error:
                failed += 1
                await self.before_resuming(error, failed, request)
            finally:
                call.cancel()

    async def before_resuming(self, error: grpc.aio.AioRpcError, failed: int, request: Message | None = None) -> None:
        """Waits before a lost stream is opened again; `failed` counts the times without an answer in between, from 1.

        Raises the failure when opening it again is no use: it was refused, or lost too often.
        """
        failure = await self.failure(error, request)
        # A certificate that fails the handshake once fails it every time.
        hopeless = isinstance(failure, HubUnreachable) and failure.code.startswith("TLS_")
        if error.code() is not grpc.StatusCode.UNAVAILABLE or hopeless or failed > self.retry.stream_resumes:
            raise failure from error
        named_ms = failure.retry_after_ms if isinstance(failure, Refusal) else 0
        await self.environment.sleep_ms(max(named_ms, self._backoff_ms(failed)))

    def _timeout(self, timeout_s: float | None) -> float:
        return self.timeout_s if timeout_s is None else timeout_s

    def _backoff_ms(self, failed: int) -> int:
        """Doubles, up to the limit; half of it is chance, so that the clients of a hub do not come back all at once."""
        longest = min(self.retry.backoff_max_ms, self.retry.backoff_ms << (failed - 1))
        return longest // 2 + self.environment.below(longest // 2 + 1)

    def check_reply(self, reply: Message, request: Message | None) -> None:
        """Raises ReceiptInvalid for a reply without the receipt that it should have."""
        if not self._verify_receipts or "receipt" not in reply.DESCRIPTOR.fields_by_name:
            return
        try:
            if not reply.HasField("receipt"):
                raise ReceiptInvalid("MISSING", "the hub accepted the request and gave no receipt")
            check_receipt(getattr(reply, "receipt"), self._receipt_keys)  # noqa: B009
        except ReceiptInvalid as invalid:
            invalid.reply, invalid.request = reply, request
            raise

    async def failure(self, error: grpc.aio.AioRpcError, request: Message | None = None) -> ClientFailure:
        """What a broken call is told as: the hub's refusal, or why there was none."""
        failure: ClientFailure | None = refusal_of(error)
        if failure is None and error.code() is grpc.StatusCode.UNAVAILABLE:
            details = error.details() or ""
            if _ONE_ADDRESS in details and _NOT_TRUSTED not in details:
                details = await self._handshake() or details
            failure = self._tls_fault(details) or hub_unreachable(self.target, details)
        failure = failure or call_failed(error)
        failure.request = request
        return failure

    async def _handshake(self) -> str:
        """Why the hub's certificate is not trusted, by a handshake of our own; empty when that is not the reason."""
        host, _, port = self.target.rpartition(":")
        name = self.server_name or host.strip("[]")
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=self.identity.ca_pem.decode())
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                _, writer = await asyncio.open_connection(
                    host.strip("[]"), int(port), ssl=context, server_hostname=name
                )
            writer.close()
        except ssl.SSLCertVerificationError as error:
            return f"{_WRONG_NAME if error.verify_code == _HOSTNAME_MISMATCH else _NOT_TRUSTED}: {error.verify_message}"
        except (OSError, ValueError):
            pass
        return ""

    def _pair_fits(self) -> bool:
        identity = self.identity
        return bool(identity.cert_pem and identity.key_pem) and certs.key_matches(
            identity.cert_pem or b"", identity.key_pem or b""
        )

    def _tls_fault(self, details: str) -> CallFailed | None:
        """Why the handshake failed, from what lies here: a hub that refuses a certificate only closes the socket."""
        identity = self.identity
        fault = certs.explain_tls(identity.cert_pem, identity.ca_pem, self.environment.now_ms())
        if fault is None and not self._pair_fits():
            fault = certs.TlsFault(
                "TLS_KEY_MISMATCH",
                "The private key is missing, unreadable, or not that of the client certificate.",
                "私钥缺失、无法读取，或与客户端证书不匹配。",
            )
        if fault is None and _NOT_TRUSTED in details:
            fault = certs.TlsFault(
                "TLS_HUB_NOT_TRUSTED",
                f"The certificate of the hub at {self.target} was not issued by the authority in ca.pem, "
                "or is not valid now.",
                f"中心 {self.target} 的证书不是由 ca.pem 中的机构签发，或当前不在有效期内。",
            )
        if fault is None and _WRONG_NAME in details:
            fault = certs.TlsFault(
                "TLS_HUB_NAME",
                f"The certificate of the hub at {self.target} is for another name; give it as the server name.",
                f"中心 {self.target} 的证书对应其他名称；请用 server_name 指定该名称。",
            )
        if fault is None:
            return None
        return HubUnreachable(fault.code, "UNAVAILABLE", text_en=fault.en, text_zh=fault.zh, details=details)
