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
from erxhub.core.model import Ahead, Command, Draft, Handler, LookAhead, Outcome

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


LOOK_AHEADS: Final[Mapping[str, LookAhead]] = MappingProxyType(
    {
        **voucher.LOOK_AHEADS,
        **encounter.LOOK_AHEADS,
        **prescription.LOOK_AHEADS,
        **hold.LOOK_AHEADS,
        **settlement.LOOK_AHEADS,
        **goods.LOOK_AHEADS,
    }
)


def ahead(command: Command) -> Ahead | None:
    """What the decision will look up first; None for a command that has to be decided for it to be found out."""
    told = LOOK_AHEADS.get(command.method)
    return None if told is None else told(command)


def decide(tx: Draft, command: Command) -> Outcome:
    """Decide one command. Raises Missing while look-ups are wanted, KeyError for a method without a handler."""
    return HANDLERS[command.method](tx, command)
