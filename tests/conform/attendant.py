"""A person at a pharmacy's product, as a process: reads the cards of `conform run --attach` and does what they say.

Owns: the reading of a terminal, and a product with buttons (the reference pharmacy's driver, which is not told that
anybody tests it). Must never: know more of the run than what the terminal showed.

`python -m tests.conform.attendant STATE_DIR` with the terminal on standard input and output.
"""

from __future__ import annotations

import codecs
import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROMPT = "[Enter: 完成 done; s: 无法执行 cannot]"
DETAIL = re.compile(r"^ {5}(?:.*\((\w+)\)|(\w+)): (.*)$")
BUTTONS = {
    "A case begins": "reset",
    "Configure the product": "configure",
    "Scan the code": "list_available",
    "Download": "download",
    "Let the pharmacist review": "review",
    "Settle": "settle",
    "Dispense": "dispense",
    "Undo the settlement": "undo",
    "Hand the drugs over": "hand_over",
    "Give the prescription back": "release",
    "Let the product finish": "resume",
}
"""The buttons of this product, by what an instruction begins with."""


class Product:
    """The product's process, with its own disk and its own clock: the machine's."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._process = subprocess.Popen(
            [sys.executable, "-m", "erxhub.conform.drivers.pharmacy"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def press(self, button: str, arguments: dict[str, Any]) -> dict[str, Any]:
        """What the product shows after that."""
        if button == "configure":
            written = json.loads(Path(arguments["configuration"]).read_text(encoding="utf-8"))
            arguments = {**written, "state_dir": str(self._state_dir), "timeout_ms": 5_000}
        request = {"id": 1, "op": button, "args": arguments, "at_ms": time.time_ns() // 1_000_000}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def switch_off(self) -> None:
        """Ends it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def read_card(shown: str) -> tuple[str, dict[str, Any]]:
    """The button to press and what to type, from the last card on the screen; no button for one not understood."""
    lines = shown.replace("\r", "").rpartition("── ")[2].splitlines()
    instruction = lines[1].strip()
    typed = {}
    for line in lines[2:]:
        found = DETAIL.match(line)
        if found:
            typed[found[1] or found[2]] = found[3]
    button = next((button for begins, button in BUTTONS.items() if instruction.startswith(begins)), "")
    return button, typed


def main() -> None:
    """Until the terminal is closed."""
    product = Product(Path(sys.argv[1]))
    screen, reading = "", codecs.getincrementaldecoder("utf-8")()
    try:
        while data := sys.stdin.buffer.raw.read(4096):  # type: ignore[attr-defined]
            screen += reading.decode(data)
            if PROMPT not in screen:
                continue
            button, typed = read_card(screen.partition(PROMPT)[0])
            screen = screen.partition(PROMPT)[2]
            shown = product.press(button, typed) if button else {}
            print(button, shown.get("result", {}).get("outcome"), file=sys.stderr)
            sys.stdout.write("\n" if button else "s\n")
            sys.stdout.flush()
    except OSError:
        pass  # how a terminal ends
    product.switch_off()


if __name__ == "__main__":
    main()
