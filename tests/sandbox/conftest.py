"""One sandbox for all tests that ask for `box`: namespaces are cheap, and what a test leaves behind is taken away."""

import inspect
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest
import pytest_asyncio

from erxhub.client import SandboxClient
from tests.sandbox.ground import Box, opened


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The sandbox lives on one event loop, and so do the tests that use it."""
    for item in items:
        if isinstance(item, pytest.Function) and "box" in item.fixturenames and inspect.iscoroutinefunction(item.obj):
            item.add_marker(pytest.mark.asyncio(loop_scope="package"), append=False)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def shared_box() -> AsyncIterator[Box]:
    async with opened() as running:
        yield running


@pytest_asyncio.fixture(loop_scope="package")
async def box(shared_box: Box) -> AsyncIterator[Box]:
    """A sandbox with nothing but the default namespace, as it was when it was created."""
    async with AsyncExitStack() as stack:
        yield Box(shared_box.sandbox, SandboxClient(shared_box.operator.connection), stack)
    namespaces = shared_box.sandbox.sandbox.namespaces
    default, *others = namespaces.all()
    for namespace in others:
        await namespaces.delete(namespace)
    await default.reset()
