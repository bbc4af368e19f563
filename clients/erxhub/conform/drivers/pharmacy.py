"""The reference driver of a pharmacy: `python -m erxhub.conform.drivers.pharmacy`.

Owns: which operation is which act of the product. Must never: hold a rule; the product does.
"""

from __future__ import annotations

from typing import Any, Final

from erxhub.conform.drivers.base_adapter import BaseAdapter
from erxhub.conform.drivers.configure import configuration, signing_keys, trusted_signers
from erxhub.conform.drivers.pharmacy_product import Pharmacy
from erxhub.conform.drivers.wire import run

ACTS: Final = (
    *("list_available", "download", "release", "review", "settle", "dispense", "hand_over", "undo", "reverse"),
    *("start_delivery", "delivery_step", "sign_delivery"),
)


class PharmacyAdapter(BaseAdapter):
    """The operations of a pharmacy; each is an act of the product with the same name."""

    role = "pharmacy"
    options = ("settle.lines", "dispense.lots")

    def __init__(self) -> None:
        super().__init__()
        self.operations |= {verb: self.act(verb) for verb in ACTS}

    def make(self, arguments: dict[str, Any]) -> Pharmacy:
        return Pharmacy(
            configuration(arguments),
            self.clock,
            arguments["staff"],
            signing_keys(arguments),
            trusted_signers(arguments),
        )


if __name__ == "__main__":
    run(PharmacyAdapter, __doc__.splitlines()[0])
