"""The process that verifies for a hub under load: `python -P -m erxhub.crypto.verify_worker`.

Reads batches from its standard input and writes one byte per check to its standard output: 1 valid, 0 not. A batch
is four bytes with its length (big-endian) and then that many of `marshal`, a list of (suite, public key, message,
signature). It says READY once everything is loaded, and ends when its input does. An error that is not the input's
ends it too; the hub then asks its own thread, which meets the same error where somebody waits for it.

Owns: nothing that lasts.
Must never: be given input from anybody but the hub that started it (`marshal` trusts it), or hold a private key.
"""

from __future__ import annotations

import marshal
import signal
import sys
from typing import BinaryIO

from erxhub.crypto import sm2
from erxhub.crypto.suites import SUITES
from erxhub.crypto.verify_process import LENGTH_SIZE, READY


def serve(batches: BinaryIO, verdicts: BinaryIO) -> None:
    """Answers batches until there are no more."""
    sm2.backend()  # loads it
    verdicts.write(READY)
    verdicts.flush()
    while len(length := batches.read(LENGTH_SIZE)) == LENGTH_SIZE:
        checks = marshal.loads(batches.read(int.from_bytes(length, "big")))
        verdicts.write(bytes(SUITES[suite].verify(key, message, made) for suite, key, message, made in checks))
        verdicts.flush()


if __name__ == "__main__":
    # A terminal's Ctrl-C goes to the hub and to this process; the hub still has calls to finish.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.stdin.buffer, sys.stdout.buffer)
