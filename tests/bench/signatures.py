"""What one signature verification costs: by the hub's own suites, and by `openssl speed` beside it."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Sequence

from erxhub.crypto.envelope import pae
from erxhub.crypto.suites import SUITES, SigningKey
from erxhub.v1 import prescribing_pb2
from tests.bench.world import Upload, World

_WARM = 30  # verifications before the clock starts: keys are parsed, and those that are seen often have their tables
_SPEED = re.compile(r"^\s*256 bits SM2 .*?([0-9.]+)\s*$", re.MULTILINE)


def verification_cpu_ns(world: World, suite: str, uploads: Sequence[Upload]) -> float:
    """CPU of one verification (nanoseconds, mean), over every signature of these uploads with parsed keys kept."""
    by_id = {key.key_id: key for key in world.keys[suite].values()}
    checks: list[tuple[SigningKey, bytes, bytes]] = []
    for upload in uploads:
        request = prescribing_pb2.UploadPrescriptionRequest.FromString(upload.request)
        for signed in (request.prescription, request.review, request.seal):
            message = pae(signed.payload_type, signed.payload)
            checks += [(by_id[signature.key_id], message, signature.signature) for signature in signed.signatures]
    verify = SUITES[suite].verify
    for key, message, signature in checks[:_WARM]:
        verify(key.public_key, message, signature)
    begun = time.thread_time_ns()
    verdicts = [verify(key.public_key, message, signature) for key, message, signature in checks]
    used = time.thread_time_ns() - begun
    assert all(verdicts), "the benchmark's own signatures verify"
    return used / len(checks)


def openssl_sm2_verification_ns(seconds: int = 1) -> float | None:
    """CPU of one SM2 verification as `openssl speed` shows it (nanoseconds); None without that program or curve."""
    program = shutil.which("openssl")
    if program is None:
        return None
    shown = subprocess.run(
        [program, "speed", "-seconds", str(seconds), "sm2"], capture_output=True, text=True, timeout=60
    )
    found = _SPEED.search(shown.stdout)
    return 1e9 / float(found[1]) if shown.returncode == 0 and found else None


def openssl_version() -> str:
    """What `openssl version` says, or "" without that program."""
    program = shutil.which("openssl")
    if program is None:
        return ""
    return subprocess.run([program, "version"], capture_output=True, text=True, timeout=60).stdout.strip()
