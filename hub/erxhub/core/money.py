"""Being written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from erxhub.core.model import Handler

HANDLERS: Final[Mapping[str, Handler]] = {}
