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

from erxhub.proof.bundle_verify import verify_bundle
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


async def make(suite: str) -> dict[str, bytes]:
    """The files of one log whose participants sign under `suite`."""
    from tests.chain import Chain
    from tests.hub.test_erasure import erased
    from tests.live import CHILD, EMPLOYEE, MINUTE_MS, PERSON, live_hub
    from tests.proof.bundle_story import Closing

    async with live_hub(suite=suite) as live:
        closing = Closing(live, witnessed=True)
        uploaded, delivered, quoted = Chain(live, EMPLOYEE), Chain(live, PERSON), Chain(live, CHILD)
        renewed = Chain(live, PERSON)
        made: dict[str, bytes] = {}
        # Each under a checkpoint of its own, so that parts of one prove nothing in another.
        await uploaded.uploaded()
        made["uploaded"] = await closing.chain(uploaded.rx_no)
        live.advance(MINUTE_MS)
        await delivered.delivered()
        made["delivered"] = await closing.chain(delivered.rx_no)
        live.advance(MINUTE_MS)
        await renewed.diagnosed()
        renewed.prescription.renews_rx_no = delivered.rx_no
        await renewed.uploaded()
        made["renewed"] = await closing.chain(renewed.rx_no)
        await quoted.quoted()
        made["not_dispensed"] = await closing.absence("prescription", quoted.rx_no)
        made["never_prescribed"] = await closing.absence("prescription", "330100" + "1" * 21)
        made["never_sold"] = await closing.absence("trace_code", "8" * 20)
        await erased(live, uploaded)
        made["erased"] = await closing.chain(uploaded.rx_no)
        known: dict[str, Any] = {"log": closing.signer.key.vkey, "entries": {}}
        for name, data in made.items():
            verdict = verify_bundle(data, closing.trust)
            assert verdict.holds, (name, verdict.faults)
            known["entries"][name] = verdict.entries
        files = {f"{name}.bundle": data for name, data in made.items()}
        files["known.json"] = (json.dumps(known, indent=1) + "\n").encode()
        return files | {"policy": closing.policy, "ca.pem": live.trust.ca_pem}


async def main(folder: Path) -> None:
    """One log for each suite."""
    for suite in ("ES256", "EdDSA", "SM2-SM3"):
        write(folder / suite.lower(), await make(suite))


def write(folder: Path, files: dict[str, bytes]) -> None:
    """The files in a new folder."""
    folder.mkdir(parents=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
