"""What a process that serves sets for itself, its event loop and its garbage collector, and how its code was built.

Owns these choices alone (docs/decisions/0013 and 0014, figures in docs/performance.md). Nothing may depend on them:
most tests, and the simulation, run on asyncio's own loop with the collector as Python sets it.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Coroutine
from importlib.util import find_spec
from typing import Any, Literal, TypeVar

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, on uvloop, and on asyncio's own loop where there is none."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(main)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        from uvloop import new_event_loop
    except ImportError:  # not made for this system
        return None
    return new_event_loop


def code() -> Literal["compiled", "interpreted"]:
    """Which build of the hub runs here."""
    module = find_spec("erxhub.core.decide")
    return "interpreted" if module is None or str(module.origin).endswith(".py") else "compiled"


def settle_memory() -> None:
    """Tell the garbage collector that what is loaded now stays; for a process that is a hub and nothing else.

    A call's objects die with it. By default the collector would look at all that live after every 700 new ones, and
    now and then at the thousands of the loaded modules: 5 % of a hub's CPU under load.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)
