"""Work without an end, to strike a hub at: whoever starts it waits for it to break."""

from __future__ import annotations

import itertools
from typing import Any

from erxhub.client import ClientFailure
from tests.chain import CONSULT, Chain
from tests.live import PERSON

_NUMBERS = itertools.count(1)


async def prescribe(live: Any, encounter_id: str) -> None:
    """Pre-checks and uploads, all at one encounter."""
    while True:
        chain = Chain(live, encounter_id=encounter_id, hospital_rx_no=f"LOAD-{next(_NUMBERS):08d}")
        chain.prescription = chain.written()
        await chain.uploaded()


async def issue(live: Any) -> None:
    """Shows vouchers."""
    channel = await live.channel()
    while True:
        await channel.issue_voucher(person_no=PERSON, business_type=CONSULT)


async def until_broken(work: Any) -> ClientFailure:
    """How it ended."""
    try:
        await work
    except ClientFailure as failure:
        return failure
    raise AssertionError("the work has no end of its own")
