"""The form of a bundle: bundles of earlier releases verify for ever, and what has not the form is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from erxhub.proof.bundle import BundleMalformed, read_bundle, write_bundle
from erxhub.proof.bundle_checkpoint import Trust
from erxhub.proof.bundle_verify import verify_bundle
from erxhub.proof.notes import read_vkey
from erxhub.proof.policy import read_policy
from erxhub.proof.reasons import Reason

GOLDEN = Path(__file__).parent.parent / "data" / "bundles"
"""Never written again: a bundle that somebody keeps must verify for as long as there is this program."""


@pytest.mark.parametrize("name", ["delivered", "never_prescribed", "never_sold", "not_dispensed"])
def test_a_bundle_of_the_first_release_verifies(name: str) -> None:
    known = json.loads((GOLDEN / "known.json").read_text())
    data = (GOLDEN / f"{name}.bundle").read_bytes()
    policy = read_policy((GOLDEN / "policy").read_bytes())
    for trust in (
        Trust((read_vkey(known["log"]),)),
        Trust(policy=policy),
        Trust(policy=policy, ca_pem=(GOLDEN / "ca.pem").read_bytes()),
    ):
        verdict = verify_bundle(data, trust)
        assert verdict.faults == []
        assert [check.words for check in verdict.checks if not check.held] == []
    assert verdict.entries == known["entries"][name]
    assert write_bundle(read_bundle(data)).encode() == data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"\xff\xfe",
        b"erxhub/bundle@v2\ncheckpoint\n",
        b"erxhub/bundle@v1\ncheckpoint\n",
        b"erxhub/bundle@v1\nchain trace_code 1\ncheckpoint\n",
        b"erxhub/bundle@v1\nabsence stream 12\ncheckpoint\n",
        b"erxhub/bundle@v1\nabsence prescription 1\npolicy x\nmaproot AAAA\ncheckpoint\n",
    ],
)
def test_what_is_no_bundle_is_refused_and_never_raises(data: bytes) -> None:
    with pytest.raises(BundleMalformed):
        read_bundle(data)
    assert {fault.reason for fault in verify_bundle(data, Trust()).faults} == {Reason.FORMAT}
