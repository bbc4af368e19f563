"""The small parts of a sandbox, each alone: clocks, draws, copies of a ledger, certificates, the life of the ports."""

import asyncio

import pytest
from cryptography import x509

from erxhub.client import ClientIdentity, HubUnreachable, Refusal
from erxhub.crypto.ca import TrustDomain
from erxhub.crypto.certs import is_issued_by
from erxhub.ledger.memory import MemoryStore
from erxhub.ports import ManualClock, RunningClock, SeededIds
from erxhub.sandbox.clocks import SandboxClock
from erxhub.testing import running_sandbox
from tests.live import HOSPITAL
from tests.sandbox.ground import START_MS, UNKNOWN_RX, Box, entries_of, opened


def test_a_running_clock_goes_with_another_and_never_back() -> None:
    machine = ManualClock(1_000)
    clock = RunningClock(50_000, machine)
    machine.advance(10)
    clock.advance(5)
    assert clock.now_ms() == 50_015
    with pytest.raises(ValueError, match="never goes back"):
        clock.advance(-1)


@pytest.mark.parametrize("standing", [True, False])
def test_a_sandbox_clock_moves_to_an_instant_that_is_not_over(standing: bool) -> None:
    clock = SandboxClock(START_MS, standing=standing, machine=ManualClock(0))
    clock.forward_to(START_MS + 7)
    clock.forward_to(START_MS)
    assert clock.now_ms() == START_MS + 7
    clock.set_back(START_MS)
    assert clock.now_ms() == START_MS


def test_seeded_draws_go_on_elsewhere_from_a_count() -> None:
    first = SeededIds(3)
    drawn = [first.draw().bytes(8) for _ in range(4)]
    assert first.count == 4
    second = SeededIds(3, 2)
    assert [second.draw().bytes(8) for _ in range(2)] == drawn[2:]


async def test_a_copy_of_a_ledger_and_its_original_part_ways(box: Box) -> None:
    template = (await box.sandbox.sandbox.namespaces.templates.of("EdDSA", START_MS)).store
    before = await entries_of(template)
    place = await box.new("one")
    await place.chain().delivered()
    assert await entries_of(template) == before
    assert (await box.ledger("one"))[: len(before)] == before
    copy = template.copy()
    await template.copy().close()
    assert isinstance(copy, MemoryStore)
    assert await copy.last_position() == len(before)


def test_a_branch_of_an_authority_issues_for_it_and_keeps_its_list_apart() -> None:
    trust = TrustDomain.in_memory("erxhub.test", START_MS)
    branch = trust.branch()
    issued = branch.issue_tls("hospital", HOSPITAL, START_MS, 30)
    assert is_issued_by(issued.cert_pem, trust.ca_pem)
    assert (len(trust.list()), len(branch.list())) == (0, 1)


def test_an_unlisted_certificate_has_the_dates_and_the_name_that_it_is_given() -> None:
    trust = TrustDomain.in_memory("erxhub.test", START_MS)
    cert_pem, _ = trust.issue_unlisted("spiffe://elsewhere/hospital/x", "x", START_MS, START_MS + 60_000)
    certificate = x509.load_pem_x509_certificate(cert_pem)
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).total_seconds() == 60
    assert is_issued_by(cert_pem, trust.ca_pem)
    assert trust.list() == ()


async def test_a_stopped_sandbox_answers_nobody() -> None:
    async with opened() as box:
        place = await box.new("one")
        hospital = await place.hospital()
        watch = hospital.watch(from_start=True)
        waiting = asyncio.ensure_future(anext(watch))
        with pytest.raises(Refusal):
            await hospital.get(rx_no=UNKNOWN_RX)
        await box.sandbox.stop()
        with pytest.raises(HubUnreachable):
            await hospital.get(rx_no=UNKNOWN_RX)
        with pytest.raises(HubUnreachable):
            await box.operator.list_namespaces()
        waiting.cancel()


async def test_a_follower_of_traffic_learns_of_the_end_of_the_namespace(box: Box) -> None:
    place = await box.new("one")
    traffic = box.operator.traffic(follow=True, namespace="one")
    assert (await anext(traffic)).method == "Voucher/ActivateVoucher"
    with pytest.raises(Refusal):
        await (await place.hospital()).get(rx_no=UNKNOWN_RX)
    assert (await anext(traffic)).method == "Prescribing/GetPrescription"
    await box.operator.delete_namespace(namespace="one")
    assert [exchange async for exchange in traffic] == []


async def test_a_home_is_used_again(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("home")
    async with running_sandbox(home=home) as first:
        operator, keys = first.operator, first.keys
    async with running_sandbox(home=home) as second:
        assert isinstance(second.operator, ClientIdentity)
        assert second.operator == operator
        assert second.keys.receipt.key_id == keys.receipt.key_id
        assert (home / "pki" / "ca.pem").read_bytes() == second.trust.ca_pem


async def test_a_ledger_in_a_file_goes_by_the_machines_clock(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ValueError, match="now_ms"):
        async with running_sandbox(database=tmp_path_factory.mktemp("db") / "a.db", now_ms=START_MS):
            raise AssertionError("it began")
