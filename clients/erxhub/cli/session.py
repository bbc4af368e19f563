"""One command as one call: pick the context, connect the right client, run, and say how it ended.

Owns what every verb that speaks to a hub has in common. Must never: keep anything between two commands, or repeat one.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from erxhub.cli.context import CONTEXT_VARIABLE, Context, Contexts
from erxhub.cli.exits import OK, exit_code_for
from erxhub.cli.local_errors import Failed
from erxhub.cli.output import Output, output_option, say_error

if TYPE_CHECKING:
    from erxhub.client import ClientFailure, Connection, Environment, SandboxClient
    from erxhub.client.base import Client

_Function = TypeVar("_Function", bound=Callable[..., Any])
_CLIENTS: Final = {
    "hospital": "HospitalClient",
    "pharmacy": "PharmacyClient",
    "channel": "PatientClient",
    "agency": "AgencyClient",
    "auditor": "AuditorClient",
    "mirror": "MirrorClient",
}
SANDBOX_ROLE: Final = "sandbox"


def context_option(function: _Function) -> _Function:
    """`--context NAME`; the command gets `context_name`, None when it is not given."""
    return click.option(
        "--context",
        "context_name",
        envvar=CONTEXT_VARIABLE,
        metavar="NAME",
        help="The context to use; by default the current one, or the one named like the role.",
    )(function)


def request_id_option(function: _Function) -> _Function:
    """`--request-id ID`; the command gets `request_id`, None for one that the library makes."""
    return click.option(
        "--request-id",
        metavar="ID",
        help="Repeat an earlier request under its id: the hub gives its first reply.",
    )(function)


def with_client(*roles: str) -> Callable[[Callable[..., Awaitable[int | None]]], Callable[..., None]]:
    """Turns `async def verb(client, ctx, out, **options)` into a command with --context and -o.

    `client` is the typed client of the context's role, which is one of `roles`. The function returns an exit code, or
    None for 0. Refusals and other failures are printed and become the exit code. Place it under the options:

        @voucher.command("issue", example="erxhub voucher issue 33010000000001")
        @click.argument("person_no")
        @with_client("channel")
        async def issue(client: PatientClient, ctx: Context, out: Output, person_no: str) -> None: …
    """

    def decorate(function: Callable[..., Awaitable[int | None]]) -> Callable[..., None]:
        @output_option
        @context_option
        @functools.wraps(function)
        def command(*, context_name: str | None, out: Output, **options: Any) -> None:
            async def call(client: Client | SandboxClient, ctx: Context, out: Output) -> int | None:
                return await function(client, ctx, out, **options)

            run(context_name, roles, call, out)

        return command

    return decorate


def run(
    context_name: str | None,
    roles: str | tuple[str, ...],
    function: Callable[[Any, Context, Output], Awaitable[int | None]],
    out: Output,
) -> None:
    """Connects as one of `roles`, runs `function(client, ctx, out)` and ends the command with its exit code."""
    contexts = Contexts.load()
    context = contexts.pick(context_name, (roles,) if isinstance(roles, str) else roles)
    code = asyncio.run(_run(contexts, context, function, out))
    if code:
        raise click.exceptions.Exit(code)


async def _run(
    contexts: Contexts,
    context: Context,
    function: Callable[[Any, Context, Output], Awaitable[int | None]],
    out: Output,
) -> int:
    from erxhub.client import ClientFailure

    try:
        async with connect(context, await environment_of(contexts, context)) as connection:
            _have_it_wait(connection, out)
            return await function(client_of(context, connection), context, out) or OK
    except ClientFailure as failure:
        say_failure(failure, out)
        return exit_code_for(failure)


def _have_it_wait(connection: Connection, out: Output) -> None:
    """What `erxhub --wait-for LEVEL` asks for; a reply that came before it is told of on stderr."""
    asked = str(click.get_current_context().find_root().obj or "durable").upper()
    if asked == "DURABLE":
        return
    from erxhub.v1 import common_pb2

    def tell(_: object, reached: str) -> None:
        if reached != asked:
            out.say(f"accepted; waited for {asked}, reached {reached}")

    connection.wait_for = common_pb2.WaitFor.Value(f"WAIT_FOR_{asked}")
    connection.on_reached = tell


async def environment_of(contexts: Contexts, context: Context) -> Environment | None:
    """Where the context's time comes from: a sandbox is asked for its namespace's; None stands for this machine.

    Without it a signature would be dated in the past of a hub whose clock was advanced. Raises ClientFailure, and
    Failed when the operator's context is gone.
    """
    if not context.sandbox:
        return None
    from erxhub.client import SandboxClient, SandboxEnvironment
    from erxhub.v1 import sandbox_pb2

    operator = contexts.by_name.get(context.sandbox)
    if operator is None:
        raise Failed("CLI_CONTEXT_SANDBOX_GONE", field="--context", name=context.name, sandbox=context.sandbox)
    async with connect(operator) as connection:
        namespace = await SandboxClient(connection).get_namespace(namespace=context.namespace)
    return SandboxEnvironment(namespace.now_ms, runs=namespace.clock_mode == sandbox_pb2.CLOCK_MODE_RUNNING)


def connect(context: Context, environment: Environment | None = None) -> Connection:
    """A connection as the context says; its receipts are checked when the context pins keys."""
    from erxhub.client import Connection
    from erxhub.client.sandbox import ONCE

    return Connection(
        context.target,
        context.identity(),
        server_name=context.server_name or None,
        receipt_keys=context.receipt_key_bytes() or None,
        retry=ONCE if context.role == SANDBOX_ROLE else None,
        environment=environment,
    )


def client_of(context: Context, connection: Connection) -> Client | SandboxClient:
    """The typed client of the context's role; an auditor's has the context's case reason.

    Its request ids are random. Every verb is a process of its own, and the national shape numbers the requests of one
    process: those of many would meet within a second, and one be taken for a repeat of the other.
    """
    from erxhub import client as library

    if context.role == SANDBOX_ROLE:
        from erxhub.client.sandbox import DEFAULT_NAMESPACE

        return library.SandboxClient(connection, namespace=context.namespace or DEFAULT_NAMESPACE)
    ids = library.RandomRequestIds(connection.environment)
    made: Client = getattr(library, _CLIENTS[context.role])(connection, request_ids=ids)
    if isinstance(made, library.AuditorClient):
        made.case_reason = context.case_reason
    return made


def failure_data(failure: ClientFailure) -> dict[str, Any]:
    """A failure as one JSON object; what it does not have is left out."""
    data: dict[str, Any] = {"code": getattr(failure, "code", "") or f"RECEIPT_{getattr(failure, 'reason', 'INVALID')}"}
    for name in ("grpc_status", "text_en", "text_zh", "field", "rule_ids", "needs", "legal_actions", "retry_after_ms"):
        value = getattr(failure, name, None)
        if value:
            data[name] = list(value) if isinstance(value, tuple) else value
    if hasattr(failure, "retriable"):
        data["retriable"] = failure.retriable
    violations = getattr(failure, "violations", ())
    if violations:
        data["violations"] = [violation._asdict() for violation in violations]
    if getattr(failure, "truncated", False):
        data["truncated"] = True
    metadata = getattr(failure, "metadata", {})
    if metadata:
        data["metadata"] = dict(metadata)
    if getattr(failure, "details", ""):
        data["details"] = getattr(failure, "details", "")
    if failure.request_id:
        data["request_id"] = failure.request_id
    if "text_en" not in data:
        data["text_en"] = str(failure)
    return data


def say_failure(failure: ClientFailure, out: Output) -> None:
    """A failure on stderr: both languages and what to do, or one JSON object when the output is JSON."""
    data = failure_data(failure)
    as_json = out.format != "table"
    say_error(data, data.get("grpc_status", "receipt"), as_json=as_json)
    if as_json:
        return
    for violation in data.get("violations", ()):
        if violation["field"] != data.get("field") or violation["message"] != data["text_en"]:
            out.say(f"  {violation['field']}: {violation['message']}")
    for name, value in data.get("metadata", {}).items():
        out.say(f"  {name}: {value}")
    if data.get("retriable"):
        out.say("  once that is met, the same request can succeed" + (" (--request-id)" if failure.request_id else ""))
