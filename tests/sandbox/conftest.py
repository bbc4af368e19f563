"""A sandbox of its own for each test: starting one takes less than the test."""

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.sandbox.ground import Box, opened


@pytest_asyncio.fixture
async def box() -> AsyncIterator[Box]:
    async with opened() as running:
        yield running
