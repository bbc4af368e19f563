"""Which function decides which command: the handlers of all modules in one table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from erxhub.core import delivery, encounter, goods, hold, patient, prescription, registry, reversal, settlement, voucher
from erxhub.core.model import Command, Draft, Handler, Outcome

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
    }
)


def decide(tx: Draft, command: Command) -> Outcome:
    """Decide one command. Raises Missing while look-ups are wanted, KeyError for a method without a handler."""
    return HANDLERS[command.method](tx, command)
