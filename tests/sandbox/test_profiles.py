"""The three profiles: what is in them, and that a client which behaves comes through the two hard ones."""

from contextlib import suppress
from typing import Any

import grpc
import pytest

from erxhub.client import ClientFailure, Refusal
from erxhub.sandbox.faults import GOAWAY, Faults, action_name
from erxhub.sandbox.profiles import profile_rules
from erxhub.v1 import prescribing_pb2, sandbox_pb2
from tests.chain import Chain
from tests.sandbox.exchange_ground import Ground, ground
from tests.sandbox.test_faults import hospital_stub

DEV, STRICT, CHAOS = (
    sandbox_pb2.FAULT_PROFILE_DEV,
    sandbox_pb2.FAULT_PROFILE_STRICT,
    sandbox_pb2.FAULT_PROFILE_CHAOS,
)


def actions(profile: Any) -> set[str]:
    return {action_name(rule.action) for rule in profile_rules(profile)}


def test_dev_has_no_faults_strict_the_everyday_ones_and_chaos_all_that_can_be_borne() -> None:
    assert not profile_rules(DEV)
    strict = {"error", "small_pages", "unknown_fields", "stale_read", "reorder", "duplicate"}
    assert actions(STRICT) == strict
    every = {action_name(number) for number in sandbox_pb2.FaultAction.values() if number}
    assert actions(CHAOS) == every - {"revoke_cert_now"}


def test_chaos_without_its_one_rule_that_reaches_other_namespaces_leaves_them_in_peace() -> None:
    faults = Faults(1)
    faults.set(profile_rules(CHAOS))
    faults.clear(["chaos.goaway"])
    assert GOAWAY not in {rule.action for rule in faults.list()}
    assert len(faults.list()) == len(profile_rules(CHAOS)) - 1


@pytest.mark.parametrize("profile", [DEV, STRICT, CHAOS])
def test_every_rule_of_a_profile_can_match_and_can_be_set(profile: Any) -> None:
    faults = Faults(1)
    faults.set(profile_rules(profile))
    assert len({rule.rule_id for rule in faults.list()}) == len(profile_rules(profile))


def test_strict_says_what_the_design_says() -> None:
    rules = {action_name(rule.action): rule for rule in profile_rules(STRICT)}
    assert (rules["error"].probability, rules["error"].max_consecutive) == (0.05, 2)
    assert rules["small_pages"].arguments.page_size == 3
    assert rules["stale_read"].arguments.lag == 1
    assert rules["duplicate"].probability == 0.1
    assert not rules["unknown_fields"].probability


async def _insistent(live: Ground) -> None:
    """Every client of the ground tries until it gets an answer, as the hub asks; nothing waits."""

    async def connect(role: str, peer_id: str, identity: Any = None) -> Any:
        return await live.patient(attempts=5, role=role, code=peer_id)

    live.connect = connect  # type: ignore[method-assign]
    live._clients.clear()


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_client_that_tries_again_comes_through_strict(seed: int) -> None:
    async with ground() as live:
        await _insistent(live)
        live.faults._seed = seed
        live.faults.set(profile_rules(STRICT))
        chain = await Chain(live).handed_over()
        shown = await (await hospital_stub(live)).GetPrescription(
            prescribing_pb2.GetPrescriptionRequest(rx_no=chain.rx_no)
        )
        assert shown.statuses.use
        traffic = await live.traffic()
        assert {name for exchange in traffic for name in exchange.faults} >= {"strict.unknown-fields unknown_fields"}


async def test_the_same_seed_and_calls_meet_the_same_faults() -> None:
    met = []
    for _ in range(2):
        async with ground() as live:
            live.faults.set(profile_rules(STRICT))
            stub = await hospital_stub(live)
            for page in range(60):
                request = prescribing_pb2.ListPrescriptionsRequest()
                request.page.page_size = 1 + page
                # How it ended stands in the traffic.
                with suppress(grpc.aio.AioRpcError):
                    await stub.ListPrescriptions(request)
            met.append([(exchange.status, list(exchange.faults)) for exchange in await live.traffic()])
    assert met[0] == met[1]
    assert {"OK", "UNAVAILABLE"} == {status for status, _ in met[0]}


async def _until_through(step: Any) -> Any:
    """What a careful product does: a step that may be tried again, or whose outcome is unknown, is; others are not."""
    for _ in range(20):
        try:
            return await step()
        except Refusal as refusal:
            if not refusal.retriable:
                raise
        except ClientFailure:
            continue
    raise AssertionError("never came through")


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_prescription_gets_into_force_in_chaos(seed: int) -> None:
    async with ground() as live:
        await _insistent(live)
        live.faults._seed = seed
        live.faults.set(profile_rules(CHAOS))
        chain = Chain(live)
        await _until_through(chain.diagnosed)
        await _until_through(chain.prechecked)
        await _until_through(chain.uploaded)
        live.faults.clear()
        shown = await (await live.hospital()).get(rx_no=chain.rx_no)
        assert shown.statuses.rx
        assert any(exchange.faults for exchange in await live.traffic())
