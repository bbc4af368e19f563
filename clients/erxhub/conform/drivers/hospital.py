"""The reference driver of a hospital: `python -m erxhub.conform.drivers.hospital`.

Owns: which operation is which act of the product. Must never: hold a rule; the product does.
"""

from __future__ import annotations

from typing import Any

from erxhub.conform.drivers.base_adapter import BaseAdapter, answered
from erxhub.conform.drivers.configure import configuration, signing_keys
from erxhub.conform.drivers.hospital_product import Hospital
from erxhub.conform.drivers.wire import run


class HospitalAdapter(BaseAdapter):
    """The operations of a hospital."""

    role = "hospital"
    options = ("issue.encounter_id", "issue.lines", "issue.prescription")

    def __init__(self) -> None:
        super().__init__()
        acts = ("verify_voucher", "issue_prescription", "revoke")
        self.operations |= {verb: self.act(verb) for verb in acts} | {"query": self._query}

    def make(self, arguments: dict[str, Any]) -> Hospital:
        return Hospital(configuration(arguments), self.clock, arguments["staff"], signing_keys(arguments))

    async def _query(self, arguments: dict[str, Any]) -> dict[str, Any]:
        product = self.product
        assert isinstance(product, Hospital)
        return await answered(product.query(arguments["rx_no"]))


if __name__ == "__main__":
    run(HospitalAdapter, __doc__.splitlines()[0])
