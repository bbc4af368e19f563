"""The event loop of a process that serves: uvloop's, and asyncio's own where there is none.

Owns nothing but that choice (docs/decisions/0013). Nothing in the hub may depend on which of the two it runs on: tests
and the simulation run on asyncio's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        from uvloop import new_event_loop
    except ImportError:  # not made for this system
        return None
    return new_event_loop
