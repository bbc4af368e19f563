"""A sandbox inside a program, for tests of one's own and for `erxhub dev`.

Owns what it takes to start one: a test authority, keys, the fictional world. Must never: be a hub that counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from erxhub.testing.sandbox import RunningSandbox, running_sandbox

__all__ = ["RunningSandbox", "running_sandbox"]


def __getattr__(name: str) -> Any:
    """The two names above, once they are asked for: pytest imports the plugin beside them at every start."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from erxhub.testing import sandbox

    return getattr(sandbox, name)
