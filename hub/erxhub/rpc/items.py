"""A unary command as the items of a stream call it: those of a message together, each decided for itself.

Owns the way of an item through the steps of a single call without a task of its own, as long as nothing is to be waited
for. It refuses nothing: an item that something speaks against goes on as the single call does, which says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError

from erxhub.admission import PeerIdentityError, caller_of, content_of
from erxhub.core.model import Command
from erxhub.engine import Answer, HubBusy, HubStopped, Replied
from erxhub.rpc.bulk import ItemContext, ItemOutcome, ItemRefused, Serve, Waited
from erxhub.rpc.calls import Call, Calls, Checked, Context, hashed, told, wanted_level
from erxhub.rpc.methods import Method
from erxhub.v1 import common_pb2


class _Queued(NamedTuple):
    """A command in the lane."""

    call: Call
    request: Any
    answer: asyncio.Future[Answer]


class Items:
    """Serves the unary commands of one hub to its streams."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._engine = calls.engine
        self._proof = calls.proof
        self._rules = calls.rules
        self._config = calls.config

    def of(self, method: Method) -> Serve:
        """A unary command as the items of a stream call it: through the same steps, those of a message together.

        What an item waits for beside the lane, and whatever is to be refused, goes on as the single call does.
        """
        calls = self._calls
        single, proven, answered = (calls.sealed(method, way) for way in (calls.command, calls.proven, self._answered))

        async def serve(items: Sequence[bytes], context: ItemContext) -> list[ItemOutcome]:
            call = self._entered(method, context)
            begun: list[_Queued | asyncio.Task[bytes | Waited]] = []
            outcomes: list[ItemOutcome] = []
            try:
                for raw in items:
                    checked: Checked | None = None
                    queued: _Queued | None = None
                    if call is not None:
                        # A bug is met again by the single call, which says so and costs no other item its answer.
                        with suppress(Exception):
                            checked = self._checked_now(call, raw)
                            queued = None if checked is None else self._queued_now(checked)
                    if queued is not None:
                        begun.append(queued)
                    elif checked is not None:
                        begun.append(asyncio.create_task(_of_one(proven, checked, context)))
                    else:
                        begun.append(asyncio.create_task(_of_one(single, raw, context)))
                for place, one in enumerate(begun):
                    if not isinstance(one, _Queued):
                        continue
                    # Whoever is asked for the same answer next says what went wrong with it.
                    with suppress(Exception):
                        await one.answer
                    if not _is_plain(one):
                        begun[place] = asyncio.create_task(_of_one(answered, one, context))
                for one in begun:
                    if isinstance(one, _Queued):
                        outcomes.append(_accepted(one))
                        continue
                    try:
                        outcomes.append(await one)
                    except ItemRefused as refused:
                        outcomes.append(refused)
                return outcomes
            finally:
                if len(outcomes) < len(items):
                    _give_up(begun)

        return serve

    def _entered(self, method: Method, context: Any) -> Call | None:
        """The call of items that nothing speaks against yet; None when something does."""
        received_at_ms = self._engine.clock.now_ms()
        certificate = context.auth_context()["x509_pem_cert"][0]
        if self._calls.draining:
            return None
        try:
            caller = caller_of(certificate, self._config, received_at_ms)
        except PeerIdentityError:
            return None
        return Call(method, caller, certificate, received_at_ms) if caller.kind in method.callers else None

    def _checked_now(self, call: Call, raw: bytes) -> Checked | None:
        """An item that can be read and keeps the field rules; None for any other."""
        request = call.method.request()
        try:
            self._engine.check_room(len(raw))
            request.ParseFromString(raw)
        except (HubBusy, DecodeError):
            return None
        found, statements = self._rules.check(request, call.method.signed_fields)
        return None if found else Checked(call, request, statements, raw)

    def _queued_now(self, checked: Checked) -> _Queued | None:
        """An item in the lane; None when its signatures have to be waited for, or the lane takes no more."""
        call, request, statements, raw = checked
        evidence = self._proof.evidence_now(request, call.method.signed_fields, statements)
        if evidence is None:
            return None
        command = Command(call.method.name, request, call.caller, request.request_id, call.received_at_ms, evidence)
        try:
            answer = self._engine.queue(command, content_of(raw, hashed(request, evidence)), len(raw))
        except (HubBusy, HubStopped):
            return None
        return _Queued(call, request, answer)

    async def _answered(self, _: Method, queued: _Queued, context: Context) -> bytes:
        call, request, answer = queued
        return await self._calls.answered(call, request, request.request_id, answer, context)


def _is_plain(queued: _Queued) -> bool:
    """Whether the answer that was waited for is an acceptance that leaves as it is and at once."""
    if queued.answer.exception() is not None:
        return False
    answer = queued.answer.result()
    waits = wanted_level(queued.request) > common_pb2.WAIT_FOR_DURABLE
    return isinstance(answer, Replied) and not (answer.slowed or answer.attach_upload or waits)


async def _of_one(way: Callable[[Any, Any], Awaitable[bytes]], given: Any, context: ItemContext) -> bytes | Waited:
    """One item by itself, with what it reached where it waited for the log."""
    own = context.of_one()
    reply = await way(given, own)
    return Waited(reply, own.reached) if own.reached else reply


def _accepted(queued: _Queued) -> bytes:
    answer = queued.answer.result()
    assert isinstance(answer, Replied)
    told(queued.call, queued.request.request_id, "OK")
    return answer.body


def _give_up(begun: Sequence[_Queued | asyncio.Task[bytes | Waited]]) -> None:
    """Nobody waits any more. Queued commands stay so; an item with a task of its own is cancelled, and what it ends
    with is nobody's. (A hub that stops waits for such tasks too: each is a call that is open until it ends.)
    """
    for one in begun:
        if isinstance(one, _Queued):
            one.answer.cancel()
        else:
            one.cancel()
            one.add_done_callback(_forget)


def _forget(task: asyncio.Task[bytes | Waited]) -> None:
    """Look at what ended a task, so that it is not reported as forgotten."""
    if not task.cancelled():
        task.exception()
