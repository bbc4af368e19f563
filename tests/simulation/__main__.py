"""`python -m tests.simulation --seeds A-B --commands N [--signatures]`, and `--speed`."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter

from tests.simulation.checker import Seen
from tests.simulation.simulation import COMMANDS, Failed, Simulation


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation", description="Runs the hub with simulated callers."
    )
    parser.add_argument("--seeds", default="0-199", help="one seed, or the first and the last: 0-199")
    parser.add_argument("--commands", type=int, default=COMMANDS, help="submissions in a run at most")
    parser.add_argument("--signatures", action="store_true", help="sign for real, and check every signature")
    parser.add_argument("--trace", action="store_true", help="print every step")
    parser.add_argument("--speed", action="store_true", help="measure full chains per CPU second instead")
    given = parser.parse_args()
    # A hub that is killed on purpose says so in its log.
    logging.getLogger("erxhub").addHandler(logging.NullHandler())
    logging.getLogger("erxhub").propagate = False
    if given.speed:
        from tests.simulation import speed

        return speed.main()
    first, _, last = given.seeds.partition("-")
    began, seen, faults, failed = time.process_time(), Seen(), Counter[str](), 0
    for seed in range(int(first), int(last or first) + 1):
        simulation = Simulation(seed, given.commands, given.signatures)
        try:
            result = simulation.run()
        except Failed as failure:
            failed += 1
            print(failure)
            continue
        finally:
            if given.trace:
                print("\n".join(simulation.trace))
        add(seen, result.seen)
        faults += result.faults
        if first == (last or first):
            print(f"seed {seed}: {result.entries} entries, ledger {result.ledger}, steps {result.trace}")
    spent = time.process_time() - began
    print(
        f"{sum(seen.commands.values())} commands accepted of {len(seen.commands)} kinds, "
        f"{sum(seen.refusals.values())} refused with {len(seen.refusals)} codes, {len(seen.events)} event types, "
        f"{sum(faults.values())} faults, {failed} runs failed, {spent:.1f} s of CPU"
    )
    return 1 if failed else 0


def add(total: Seen, more: Seen) -> None:
    """Add what one run met to what all did."""
    total.events += more.events
    total.refusals += more.refusals
    total.commands += more.commands


if __name__ == "__main__":
    sys.exit(main())
