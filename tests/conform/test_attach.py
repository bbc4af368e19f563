"""`conform run --attach` at a terminal, with an operator process that has nothing but the cards."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

from erxhub.conform.attach import CARDS, LABELS
from erxhub.conform.load import load_suite
from erxhub.conform.values import plain
from tests.conform.attendant import read_card

ROOT = Path(__file__).parents[2]
RUN_S = 60


def _attached(folder: Path, *cases: str) -> subprocess.CompletedProcess[bytes]:
    """The run at one end of a terminal, the operator with his product at the other."""
    hand, terminal = pty.openpty()
    bundle = folder / "bundle"
    words = [word for case in cases for word in ("--run", case)]
    command = ["-m", "erxhub.cli", "conform", "run", "--role", "pharmacy", "--attach", *words, "-o", str(bundle)]
    state = folder / "disk"
    state.mkdir()
    with (folder / "screen.txt").open("wb") as screen:
        operator = subprocess.Popen(
            [sys.executable, "-m", "tests.conform.attendant", str(state)],
            stdin=hand,
            stdout=hand,
            stderr=screen,
            cwd=ROOT,
        )
        os.close(hand)
        try:
            return subprocess.run(
                [sys.executable, *command], stdin=terminal, stdout=terminal, stderr=subprocess.PIPE, timeout=RUN_S
            )
        finally:
            os.close(terminal)
            operator.wait(RUN_S)


def test_an_operator_with_nothing_but_the_cards_brings_his_product_through(tmp_path: Path) -> None:
    run = _attached(tmp_path, "CLM-001", "DSP-012", "DSP-001@ES256")
    pressed = (tmp_path / "screen.txt").read_text(encoding="utf-8").split("\n")
    assert run.returncode == 0, (run.stderr.decode(), pressed)
    results = json.loads((tmp_path / "bundle" / "results.json").read_bytes())["results"]
    assert {one["key"]: one["verdict"] for one in results} == {
        "CLM-001": "REVIEW",
        "DSP-001@ES256": "REVIEW",
        "DSP-012": "REVIEW",
    }, "what the product shows, only the operator sees"
    assert pressed[0] == "configure ok"
    assert "undo ok" in pressed
    assert "dispense rejected" in pressed, "the fault of DSP-012"


def test_a_card_is_read_back_as_it_was_meant() -> None:
    screen = (
        "PASS CLM-001\n\n── 结算处方。\n   Settle the prescription.\n"
        "     凭证码 / e-voucher code (voucher_code): 330\r\n     支付方式 / who pays (pay): self\n   "
    )
    assert read_card(screen) == ("settle", {"voucher_code": "330", "pay": "self"})


def test_every_operation_has_a_card_and_every_argument_a_label() -> None:
    steps = [
        step.sut
        for case in load_suite().cases
        for play in case.plays.values()
        for step in play.steps
        if step.WhichOneof("verb") == "sut"
    ]
    assert {step.op for step in steps} <= CARDS.keys()
    assert {name for step in steps for name in plain(step.args)} <= LABELS.keys()
