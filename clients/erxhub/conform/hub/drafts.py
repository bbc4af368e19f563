"""Requests as a client would send them, without sending them.

Owns: a connection that hands back the message it is given. Must never: reach a hub.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from erxhub.client import Connection


class DraftConnection(Connection):
    """Every unary call of a client on it returns the request instead of a reply."""

    async def unary(self, method: Any, request: Any, timeout_s: float | None = None) -> Any:
        """The request, as it would be sent."""
        assert isinstance(request, Message)
        return request
