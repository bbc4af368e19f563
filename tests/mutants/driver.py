"""The reference driver with one thing broken: `python -m tests.mutants.driver NAME`.

Owns: nothing but the order, first broken, then started. Must never: know what is broken.
"""

from __future__ import annotations

import sys

from erxhub.conform.drivers.hospital import HospitalAdapter
from erxhub.conform.drivers.pharmacy import PharmacyAdapter
from erxhub.conform.drivers.wire import run
from tests.mutants.clients import CLIENTS
from tests.mutants.patching import Patches


def main() -> None:
    """Takes the mutant's name from the command line."""
    mutant = CLIENTS[sys.argv.pop(1)]
    mutant.apply(Patches())
    run({"hospital": HospitalAdapter, "pharmacy": PharmacyAdapter}[mutant.role], mutant.broken)


if __name__ == "__main__":
    main()
