"""A unary command as the items of a stream call it: those of a message together, each decided for itself.

Owns the way of an item through the steps of a single call without a task of its own, as long as nothing is to be waited
for. It refuses nothing: what ends an item is said as for the single call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

from erxhub.jobs import Replied
from erxhub.rpc.bulk import ItemContext, ItemOutcome, ItemRefused, Serve, Waited
from erxhub.rpc.calls import Calls, Context, told, wanted_level
from erxhub.rpc.methods import Method
from erxhub.rpc.steps import Call, Checked, Ended, Queued
from erxhub.v1 import common_pb2


class Items:
    """Serves the unary commands of one hub to its streams."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls

    def of(self, method: Method) -> Serve:
        """A unary command as the items of a stream call it: through the same steps, those of a message together.

        What an item waits for beside the lane, and whatever is to be refused, goes on as the single call does.
        """
        calls, steps = self._calls, self._calls.steps
        ended, proven = calls.sealed(method, self._ended), calls.sealed(method, calls.proven)
        answered, failed = calls.sealed(method, self._answered), calls.sealed(method, _failed)

        def begin(call: Call | Ended, raw: bytes, context: ItemContext) -> Queued | asyncio.Task[bytes | Waited]:
            """An item that is in the lane, or what it waits for."""
            found: Checked | Queued | Ended | None
            try:
                found = call if isinstance(call, Ended) else steps.full(len(raw)) or steps.checked(call, raw, context)
                if isinstance(found, Checked):
                    found = steps.queued_now(found) or found
            except Exception as error:  # noqa: BLE001 a bug costs no other item its answer
                return asyncio.create_task(_of_one(failed, error, context))
            if isinstance(found, Queued):
                return found
            return asyncio.create_task(_of_one(ended if isinstance(found, Ended) else proven, found, context))

        async def serve(items: Sequence[bytes], context: ItemContext) -> list[ItemOutcome]:
            call = steps.entered(method, context, 0)
            begun: list[Queued | asyncio.Task[bytes | Waited]] = []
            outcomes: list[ItemOutcome] = []
            try:
                for raw in items:
                    begun.append(begin(call, raw, context))  # noqa: PERF401 what has begun is given up if one fails
                for place, one in enumerate(begun):
                    if not isinstance(one, Queued):
                        continue
                    # Whoever is asked for the same answer next says what went wrong with it.
                    with suppress(Exception):
                        await one.answer
                    if not _is_plain(one):
                        begun[place] = asyncio.create_task(_of_one(answered, one, context))
                for one in begun:
                    if isinstance(one, Queued):
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

    async def _ended(self, _: Method, ended: Ended, context: Context) -> bytes:
        await self._calls.ended(ended, context)

    async def _answered(self, _: Method, queued: Queued, context: Context) -> bytes:
        return await self._calls.answered(queued, context)


async def _failed(_: Method, error: Exception, __: Context) -> bytes:
    """Meets the bug again where it is logged and answered for."""
    raise error


def _is_plain(queued: Queued) -> bool:
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


def _accepted(queued: Queued) -> bytes:
    answer = queued.answer.result()
    assert isinstance(answer, Replied)
    told(queued.call, queued.request.request_id, "OK")
    return answer.body


def _give_up(begun: Sequence[Queued | asyncio.Task[bytes | Waited]]) -> None:
    """Nobody waits any more. Queued commands stay so; an item with a task of its own is cancelled, and what it ends
    with is nobody's. (A hub that stops waits for such tasks too: each is a call that is open until it ends.)
    """
    for one in begun:
        if isinstance(one, Queued):
            one.answer.cancel()
        else:
            one.cancel()
            one.add_done_callback(_forget)


def _forget(task: asyncio.Task[bytes | Waited]) -> None:
    """Look at what ended a task, so that it is not reported as forgotten."""
    if not task.cancelled():
        task.exception()
