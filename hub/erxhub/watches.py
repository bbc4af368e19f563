"""Who watches which institution, and is woken when something that concerns it was committed, here or by another hub.

Owns which watches are open. It shows nobody anything: a watch that is woken looks for itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Literal

from erxhub.core import index
from erxhub.ledger.store import Others, StoreUnavailable
from erxhub.metrics import Lag

_log = logging.getLogger("erxhub.watches")


class _News(asyncio.Event):
    """What a watch waits for. It tells how long the watch took to tell everything."""

    def __init__(self, lag: Lag) -> None:
        super().__init__()
        self._lag = lag

    def set(self) -> None:
        self._lag.begins(id(self))
        super().set()

    async def wait(self) -> Literal[True]:
        if not self.is_set():
            self._lag.ends(id(self))
        return await super().wait()


class Watches:
    """The open watches of one hub."""

    def __init__(self, lag: Lag) -> None:
        self.ended = False
        """Whether all of them were told to end."""
        self._lag = lag
        self._watching: dict[str, set[asyncio.Event]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._watching.values()))

    def subscribe(self, institution_code: str) -> asyncio.Event:
        """An event that is set after each commit that concerns the institution, and when watches have to end."""
        event = _News(self._lag)
        self._watching.setdefault(institution_code, set()).add(event)
        return event

    def unsubscribe(self, institution_code: str, event: asyncio.Event) -> None:
        """End a subscription."""
        watching = self._watching.get(institution_code, set())
        watching.discard(event)
        self._lag.forget(id(event))
        if not watching:
            self._watching.pop(institution_code, None)

    def wake(self, institution_codes: Iterable[str]) -> None:
        """Something that concerns these institutions was committed."""
        for code in institution_codes:
            for event in self._watching.get(code, ()):
                event.set()

    def end(self) -> None:
        """Tell every open watch to end."""
        self.ended = True
        self.wake(list(self._watching))

    async def listen(self, others: Others, handled: int) -> None:
        """Wake the watches of institutions that another hub wrote about, from one position of the log to the next.

        Nothing is skipped while the store is away: it goes on from what was handled.
        """
        while True:
            try:
                position = await others.changed(handled)
                watched = [code.encode() for code in self._watching]
                grown = await others.grown(index.FEED, watched, handled) if watched else frozenset()
            except StoreUnavailable as error:
                # It begins to hear again from what it handled last, once the store has been asked again.
                _log.warning("what other hubs write is not heard of now: %s", error)
                continue
            except Exception:  # noqa: BLE001 a hub that went deaf would leave its watches waiting for ever
                _log.exception("hearing of other hubs failed and goes on")
                continue
            handled = max(handled, position)
            self.wake([code.decode() for code in grown])
