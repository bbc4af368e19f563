"""The longest refusals that can be said: past 8 KiB of trailers a gRPC client would see another error instead."""

from __future__ import annotations

import grpc
import pytest

from erxhub.admission import Violation
from erxhub.config import Config
from erxhub.core.model import Refused
from erxhub.core.refusals import CATALOGUE
from erxhub.rpc.errors import DETAILS_BYTES_MAX, wire_status

LONG_PATH = "prescription.payload.prescription.acknowledgements[49]." + "字" * 100


@pytest.mark.parametrize("code", CATALOGUE)
def test_worst_refusal_that_can_be_said_fits_into_the_trailers(code: str) -> None:
    worst = Refused(
        code,
        field=LONG_PATH,
        detail={f"detail_{number}": "值" * 2_000 for number in range(4)},
        legal=tuple(f"pre-settle again {number}" for number in range(12)),
    )
    violations = [Violation(LONG_PATH, "string.pattern.of.the.longest.name", "字" * 2_000)] * 300
    status = wire_status(worst, Config(), violations)
    assert len(status.details) <= DETAILS_BYTES_MAX
    assert status.code is grpc.StatusCode[CATALOGUE[code].grpc_status]
