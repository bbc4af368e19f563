"""Progress, told on standard error so that the table stays alone."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """One line."""
    print(text, file=sys.stderr, flush=True)
