"""What a process that serves sets for itself, event loop, gRPC's threads and garbage collector, and how it was built.

Owns these choices alone (docs/decisions/0013 to 0015, figures in docs/performance.md). Nothing may depend on them: most
tests, and the simulation, run on asyncio's own loop, with gRPC and the collector as they are by themselves.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Coroutine, Mapping
from importlib.metadata import version
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, Final, Literal, TypeVar

T = TypeVar("T")

TRANSPORT: Final[Mapping[str, str]] = MappingProxyType(
    {"GRPC_EXPERIMENTS": "-event_engine_callback_cq,-event_engine_listener"}
)
"""The environment in which gRPC reads and writes a server's connections on the thread that waits for them."""

_KNOWS_TRANSPORT: Final = "1.85."
"""The gRPC that these names are of: another one may have others, and complains about those that it has not."""


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


def settle_transport() -> bool:
    """Have gRPC serve connections as `TRANSPORT` says: it looks at its environment once, when it is loaded.

    Returns whether it will: not when it is loaded already, nor when it is another version. What an operator has set
    stands.
    """
    if "grpc" in sys.modules or not version("grpcio").startswith(_KNOWS_TRANSPORT):
        return False
    for name, value in TRANSPORT.items():
        os.environ.setdefault(name, value)
    return True


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
