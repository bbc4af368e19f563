"""`erxhub demo`, as whoever tries the product first runs it."""

import re
import subprocess
import sys


def test_the_demonstration_holds_what_it_claims() -> None:
    run = subprocess.run([sys.executable, "-m", "erxhub.cli", "demo"], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr
    lines = run.stdout.splitlines()
    assert "2 of 3 run, own processes with own keys; W3 never starts" in " ".join(run.stdout.split())
    assert any(re.search(r"[0-9]+ checks hold over [0-9]+ entries, with no network", line) for line in lines)
    assert any(line.endswith("signed by the hub and cosigned by W1 and W2") for line in lines)
    last = r"demo: ok rx=[0-9]{27} entries=[0-9]+ verified=yes tamper=detected at prescription/[0-9a-f]{16}/[0-9]+"
    assert re.fullmatch(last, lines[-1])
