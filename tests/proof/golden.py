"""The golden bundles in tests/data/bundles: what is kept there, and how it was made.

`python -m tests.proof.golden FOLDER` makes such bundles anew, in an empty folder. Those that are kept are never made
again: a bundle that somebody keeps must verify for as long as there is this program.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.proof.js_verifier import Brought

FOLDER = Path(__file__).parent.parent / "data" / "bundles"


@dataclass(frozen=True)
class Golden:
    """A bundle that is kept, what its verifier brings, and how many entries it proves to be everything."""

    log: str
    name: str
    data: bytes
    log_key: str
    policy: bytes
    ca_pem: bytes
    entries: int

    @property
    def brought(self) -> tuple[Brought, ...]:
        """Every way to come: with the log's key alone, with the policy, with everything."""
        return (
            Brought((self.log_key,)),
            Brought(policy=self.policy),
            Brought((self.log_key,), self.policy, self.ca_pem),
        )


def kept(folder: Path = FOLDER) -> list[Golden]:
    """The golden bundles. Each sub-folder holds those of one log."""
    found = []
    for each in sorted(folder.rglob("known.json")):
        known = json.loads(each.read_text())
        policy, ca_pem = ((each.parent / name).read_bytes() for name in ("policy", "ca.pem"))
        for name, entries in known["entries"].items():
            data = (each.parent / f"{name}.bundle").read_bytes()
            log = str(each.parent.relative_to(folder))
            found.append(Golden(log, name, data, known["log"], policy, ca_pem, entries))
    return found


async def make(folder: Path, suite: str) -> None:
    """The bundles of one log whose participants sign under `suite`."""
    from erxhub.proof.bundle_verify import verify_bundle
    from tests.chain import Chain
    from tests.live import CHILD, EMPLOYEE, MINUTE_MS, PERSON, live_hub
    from tests.proof.bundle_story import Closing

    async with live_hub(suite=suite) as live:
        closing = Closing(live, witnessed=True)
        chains = {"uploaded": Chain(live, EMPLOYEE), "delivered": Chain(live, PERSON), "quoted": Chain(live, CHILD)}
        for name, chain in chains.items():
            step: Any = getattr(chain, name)
            await step()
            live.advance(MINUTE_MS)
        made = {name: await closing.chain(chain.rx_no) for name, chain in chains.items() if name != "quoted"}
        made["not_dispensed"] = await closing.absence("prescription", chains["quoted"].rx_no)
        made["never_prescribed"] = await closing.absence("prescription", "330100" + "1" * 21)
        made["never_sold"] = await closing.absence("trace_code", "8" * 20)
        folder.mkdir(parents=True)
        known: dict[str, Any] = {"log": closing.signer.key.vkey, "entries": {}}
        for name, data in made.items():
            verdict = verify_bundle(data, closing.trust)
            assert verdict.holds, (name, verdict.faults)
            known["entries"][name] = verdict.entries
            (folder / f"{name}.bundle").write_bytes(data)
        (folder / "known.json").write_text(json.dumps(known, indent=1) + "\n")
        (folder / "policy").write_bytes(closing.policy)
        (folder / "ca.pem").write_bytes(live.trust.ca_pem)


async def main(folder: Path) -> None:
    """One log for each suite."""
    for suite in ("ES256", "EdDSA", "SM2-SM3"):
        await make(folder / suite.lower(), suite)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
