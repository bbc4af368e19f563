"""Whether a driver ends when its input does: its harness may be gone without a word.

Owns: the three ends. Must never: need a hub; a driver that was configured for one that is not there ends all the same.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
from pathlib import Path

from erxhub.crypto.ca import TrustDomain

END_S = 20
NOW_MS = 1_795_140_000_000
_CODES = {"hospital": "H33010099901", "pharmacy": "P33010099101"}
_OPERATIONS = {
    "hospital": ("verify_voucher", {"voucher_code": "1", "business_type": "01201"}),
    "pharmacy": ("list_available", {"voucher_code": "1"}),
}


def _begun(role: str, folder: Path) -> bytes:
    """A configure and an operation, so that there is a connection that is open or being tried."""
    identity = TrustDomain.in_memory("ending.test", NOW_MS).issue_tls(role, _CODES[role], NOW_MS, 30)
    folder.mkdir()
    files = {"ca": identity.ca_pem, "cert": identity.cert_pem, "key": identity.key_pem}
    for name, content in files.items():
        (folder / f"{name}.pem").write_bytes(content)
    configured = {
        "target": "localhost:1",
        "server_name": "localhost",
        **{f"{name}_pem_path": str(folder / f"{name}.pem") for name in files},
        "receipt_keys": {},
        "institution_code": _CODES[role],
        "staff": {},
        "signing_keys": {},
        "trusted_signers": [],
        "state_dir": str(folder),
        "timeout_ms": 300,
        "wait_scale": 0.001,
    }
    requests = [("configure", configured), _OPERATIONS[role]]
    lines = [
        json.dumps({"id": number, "op": operation, "args": arguments, "at_ms": NOW_MS})
        for number, (operation, arguments) in enumerate(requests, start=1)
    ]
    return "".join(line + "\n" for line in lines).encode()


def ends_with_its_input(command: str, role: str, folder: Path, **environment: str) -> None:
    """Asserts that the driver ends by itself: at an empty input, at a file's end, and when a pipe is closed."""
    begun = _begun(role, folder)
    written = folder / "input.jsonl"
    written.write_bytes(begun)
    given = os.environ | environment

    def run(**how: object) -> list[dict[str, object]]:
        command_line = shlex.split(command)
        ended = subprocess.run(command_line, stdout=subprocess.PIPE, env=given, timeout=END_S, check=False, **how)  # type: ignore[call-overload]
        assert ended.returncode == 0
        return [json.loads(line) for line in ended.stdout.splitlines()]

    assert run(stdin=subprocess.DEVNULL) == []
    with written.open("rb") as file:
        answers = run(stdin=file)
    assert [one["id"] for one in answers] == [1, 2]
    assert [one["result"]["outcome"] for one in answers] == ["ok", "unknown"], answers  # type: ignore[index]
    assert [one["id"] for one in run(input=begun)] == [1, 2]
