"""Which function decides which command: the handlers of all modules in one table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from erxhub.core import (
    delivery,
    encounter,
    goods,
    hold,
    patient,
    prescription,
    registry,
    retention,
    reversal,
    settlement,
    voucher,
)
from erxhub.core.model import Command, Draft, Handler, LookAhead, Outcome

HANDLERS: Final[Mapping[str, Handler]] = MappingProxyType(
    {
        **registry.HANDLERS,
        **voucher.HANDLERS,
        **encounter.HANDLERS,
        **prescription.HANDLERS,
        **patient.HANDLERS,
        **hold.HANDLERS,
        **settlement.HANDLERS,
        **reversal.HANDLERS,
        **goods.HANDLERS,
        **delivery.HANDLERS,
        **retention.HANDLERS,
    }
)


LOOK_AHEADS: Final[Mapping[str, LookAhead]] = MappingProxyType({**prescription.LOOK_AHEADS})


def look_ahead(tx: Draft, command: Command) -> None:
    """Ask for what the decision will look up first; raises Missing while any of it is not loaded.

    Cheap for the commands that say it themselves. Any other is decided, and its outcome is thrown away.
    """
    asked = LOOK_AHEADS.get(command.method)
    if asked is None:
        decide(tx, command)
    else:
        asked(tx, command)


def decide(tx: Draft, command: Command) -> Outcome:
    """Decide one command. Raises Missing while look-ups are wanted, KeyError for a method without a handler."""
    return HANDLERS[command.method](tx, command)
