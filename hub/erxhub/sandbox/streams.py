"""Faults of streams: messages that come twice, in another order, altered, or no more.

Owns the order and number of messages. A watch whose messages are shuffled stays one that a careful client can follow:
every message of a shuffled window but the last carries the cursor from before the window, so that whoever resumes from
it gets again what it may have missed. The steps of one prescription keep their order, or, where the rule says so, are
to be put in order by their version.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

import grpc

from erxhub.rpc.methods import Method
from erxhub.sandbox import alterations, faults
from erxhub.sandbox.answers import lost_connection
from erxhub.sandbox.faults import Call, Faults, Plan, Rule

_LINGER_MS: Final = 50
"""How long a window that is not full waits for the next message."""


class StreamCut(Exception):
    """The stream ends here, with `status` of answers.lost_connection."""

    status = lost_connection()


def altered(plan: Plan, call: Call, method: Method, raw: bytes, number: int, rules: Faults) -> bytes:
    """A reply with the alterations that its plan has; `number` is its place in the stream, from 1."""
    for action, alter in (
        (faults.CORRUPT_SIGNATURE, alterations.with_corrupt_signature),
        (faults.UNKNOWN_ENUM, alterations.with_unknown_enum),
        (faults.UNKNOWN_FIELDS, alterations.with_unknown_fields),
    ):
        rule = plan.others.get(action)
        if rule is not None and rules.fires_on_message(rule, call, number):
            raw = alter(method.response, raw)
    return raw


async def disturbed(
    messages: AsyncIterator[bytes],
    plan: Plan,
    call: Call,
    method: Method,
    request: Any,
    rules: Faults,
    pause: Callable[[int], Awaitable[None]],
) -> AsyncIterator[bytes]:
    """The messages of a stream as its plan has it. Raises StreamCut where the plan ends it."""
    reorder = plan.others.get(faults.REORDER)
    if reorder is not None:
        messages = _shuffled(messages, reorder, call, method, request, rules, pause)
    truncate = plan.others.get(faults.TRUNCATE_STREAM)
    duplicate = plan.others.get(faults.DUPLICATE)
    delivered = number = 0
    if truncate is not None and not truncate.arguments.after_messages:
        raise StreamCut
    async for raw in messages:
        number += 1
        raw = altered(plan, call, method, raw, number, rules)
        twice = duplicate is not None and rules.fires_on_message(duplicate, call, number)
        for copy in (raw, raw) if twice else (raw,):
            yield copy
            delivered += 1
            if truncate is not None and delivered >= truncate.arguments.after_messages:
                raise StreamCut


async def _shuffled(
    messages: AsyncIterator[bytes],
    rule: Rule,
    call: Call,
    method: Method,
    request: Any,
    rules: Faults,
    pause: Callable[[int], Awaitable[None]],
) -> AsyncIterator[bytes]:
    cursor = str(request.cursor)
    number = 0
    async for window in _windows(messages, rule.arguments.window, pause):
        parsed = [method.response.FromString(raw) for raw in window]
        if not cursor:
            # Before the first message there is no cursor to resume from, so that one comes first as it is.
            yield window[0]
            parsed = parsed[1:]
            cursor = method.response.FromString(window[0]).cursor
            if not parsed:
                continue
        places = [rules.order_of(rule, call, number + place) for place in range(len(parsed))]
        number += len(parsed)
        shuffled = _in_other_order(parsed, places, any_order=rule.arguments.any_order)
        last_cursor = parsed[-1].cursor
        for place, message in enumerate(shuffled):
            message.cursor = last_cursor if place == len(shuffled) - 1 else cursor
        cursor = last_cursor
        for message in shuffled:
            yield message.SerializeToString()


def _in_other_order(messages: list[Any], places: list[float], *, any_order: bool) -> list[Any]:
    """The messages by their places. Those of one prescription come in the order in which they came, or with
    `any_order` in another one: the newest is never the last.
    """
    order = sorted(range(len(messages)), key=places.__getitem__)
    of_each: dict[str, deque[int]] = {}
    for number in order if any_order else range(len(messages)):
        of_each.setdefault(messages[number].rx_no, deque()).append(number)
    for numbers in of_each.values():
        if any_order and numbers[-1] == max(numbers):
            numbers.rotate()
    copies = []
    for number in order:
        copy = type(messages[number])()
        copy.CopyFrom(messages[of_each[messages[number].rx_no].popleft()])
        copies.append(copy)
    return copies


async def _windows(
    messages: AsyncIterator[bytes], size: int, pause: Callable[[int], Awaitable[None]]
) -> AsyncIterator[list[bytes]]:
    """The messages in groups of at most `size`; a group ends early when the next message does not come at once."""
    window: list[bytes] = []
    coming: asyncio.Future[bytes] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(messages))
            if window and not await _comes_soon(coming, pause):
                yield window
                window = []
                continue
            try:
                window.append(await coming)
            except StopAsyncIteration:
                if window:
                    yield window
                return
            except grpc.aio.AbortError:
                if window:
                    yield window
                raise
            coming = None
            if len(window) >= size:
                yield window
                window = []
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


async def _comes_soon(coming: asyncio.Future[bytes], pause: Callable[[int], Awaitable[None]]) -> bool:
    timer: asyncio.Future[None] = asyncio.ensure_future(pause(_LINGER_MS))
    waiting: set[asyncio.Future[Any]] = {coming, timer}
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        timer.cancel()
        await asyncio.gather(timer, return_exceptions=True)
    return coming.done()
