"""One hub for all provoking cases of a module."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.refusals.bench import Bench, open_bench


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def bench() -> AsyncIterator[Bench]:
    """A seeded hub whose store can fail; every test makes its own prescription."""
    async with open_bench() as opened:
        yield opened
