"""The measurement of what a sandbox costs works: it calls a hub and a sandbox alike, and tells both apart."""

import asyncio
from pathlib import Path

from tests.bench import sandbox_cost
from tests.bench.sandbox_cost import Case


def test_a_hub_and_a_sandbox_are_measured_with_the_same_calls(tmp_path: Path) -> None:
    cases = (Case("upload", False, 1, 2), Case("read", True, 2, 4))
    targets = asyncio.run(sandbox_cost.measure(2, tmp_path, cases))
    assert [target.kind for target in targets] == ["hub", "sandbox"]
    found = sandbox_cost.costs(targets)
    assert list(found) == ["upload", "read"]
    for cost in found.values():
        assert cost.hub_us > 0
        assert cost.sandbox_us > 0
        assert cost.spread_us[0] <= cost.more_us <= cost.spread_us[1]
    text = sandbox_cost.report(found)
    assert "goal: at most 5.0 %" in text
    assert all(name in text for name in found)
