"""The pytest plugin as its users meet it: their suites run in a process of their own, against a sandbox."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from erxhub.testing.plugin import SETTINGS

pytest_plugins = ["pytester"]

PAGE = Path(__file__).parents[2] / "docs" / "sandbox.md"
WITH_COROUTINES = "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"

SUITE = """
import pytest

from erxhub.client import Refusal

FIRST = []


def test_first(erxhub_namespace):
    ns = erxhub_namespace
    ns.run(ns.patient().activate_voucher(person_no=ns.first("person")))
    ns.clock.advance("3h")
    ns.faults.set("Voucher/IssueVoucher do=error code=OVERLOADED")
    assert ns.faults.list()
    FIRST.append(ns.identity("pharmacy"))


def test_second_finds_nothing_of_the_first(erxhub_namespace):
    ns = erxhub_namespace
    assert not ns.traffic()
    assert not ns.faults.list()
    ns.run(ns.patient().activate_voucher(person_no=ns.first("person")))
    assert [one.method for one in ns.traffic()] == ["Voucher/ActivateVoucher"]
    assert ns.identity("pharmacy") is FIRST[0]
    assert ns.environment.now_ms() == ns.clock.now_ms
    assert not ns.check()


async def test_a_coroutine_awaits_the_same_clients(erxhub_namespace):
    ns = erxhub_namespace
    institutions = await ns.agency().list_institutions()
    assert len(institutions.institutions) == 4
    before = ns.clock.now_ms
    ns.clock.advance_to(before + 5)
    assert ns.clock.now_ms == before + 5
    with pytest.raises(RuntimeError, match="await the coroutine"):
        ns.run(ns.agency().list_institutions())


def test_a_scenario_of_several_calls_runs_as_one(erxhub_namespace):
    ns = erxhub_namespace

    async def scenario():
        await ns.patient().activate_voucher(person_no=ns.first("person"))
        ns.save("active")
        ns.clock.advance("1h")
        ns.load("active")
        with pytest.raises(Refusal):
            await ns.patient().activate_voucher(person_no=ns.first("person"))

    ns.run(scenario())
    ns.run(ns.auditor().verify_ledger())


def test_a_system_that_reads_files_gets_them(erxhub_namespace):
    ns = erxhub_namespace
    folder = ns.folder("pharmacy")
    assert sorted(path.name for path in folder.iterdir()) == ["ca.pem", "cert.pem", "key.pem"]
    assert (folder / "key.pem").stat().st_mode & 0o077 == 0
    assert ns.signing_key(ns.first("doctor")).key_id in {signer.key_id for signer in ns.world.signers}
    with pytest.raises(KeyError, match="no witness"):
        ns.identity("witness")
    with pytest.raises(KeyError, match="signing key"):
        ns.signing_key("nobody")


def test_a_defective_certificate_is_refused(erxhub_namespace):
    from erxhub.client import PharmacyClient
    from erxhub.v1 import catalog_pb2

    ns = erxhub_namespace
    identity = ns.mint("pharmacy", ns.first("pharmacy"), "revoked")

    async def call():
        async with PharmacyClient.connect(ns.target, identity) as pharmacy:
            await pharmacy.list_catalog(dataset=catalog_pb2.CATALOG_DATASET_FREQUENCIES)

    with pytest.raises(Refusal) as refused:
        ns.run(call())
    assert refused.value.code == "CERT_REVOKED"


def test_another_namespace_of_the_hub_is_apart(erxhub_hub, erxhub_namespace, tmp_path):
    other = erxhub_hub.namespace("other", folder=tmp_path, seed=5)
    other.run(other.patient().activate_voucher(person_no=other.first("person")))
    assert not erxhub_namespace.traffic()
    assert (other.seed, other.trust_domain) == (5, "other.erxhub.test")
    other.delete()
"""


@pytest.mark.parametrize("where", ["inprocess", "subprocess"])
def test_a_suite_finds_a_fresh_namespace_in_every_test(pytester: pytest.Pytester, where: str) -> None:
    pytester.makeini(WITH_COROUTINES + f"erxhub_hub = {where}\n")
    pytester.makepyfile(SUITE)
    # Warnings are errors: the plugin leaves no channel, no loop and no process open.
    result = pytester.runpytest_subprocess("-q", "-W", "error")
    result.assert_outcomes(passed=7)


def test_options_choose_suite_profile_and_seed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(erxhub_namespace):
            ns = erxhub_namespace
            assert ns.seed == 42
            assert {signer.suite for signer in ns.world.signers} == {"EdDSA"}
            assert {rule.rule_id.split(".")[0] for rule in ns.faults.list()} == {"strict"}
        """
    )
    words = ("--erxhub-suite", "EdDSA", "--erxhub-profile", "strict", "--erxhub-seed", "42")
    pytester.runpytest_subprocess(*words).assert_outcomes(passed=1)


def test_a_failing_test_shows_its_traffic_and_seed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        def test_it(erxhub_namespace):
            ns = erxhub_namespace
            ns.run(ns.patient().activate_voucher(person_no=ns.first("person")))
            assert False
        """
    )
    result = pytester.runpytest_subprocess()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["*erxhub traffic of pytest, seed 1*", "*channel/demo-app*Voucher/ActivateVoucher*OK*person.voucher_activated*"]
    )


@pytest.mark.parametrize(("setting", "value"), [*((name, "nonsense") for name in SETTINGS), ("erxhub_seed", "-1")])
def test_a_wrong_setting_is_named(pytester: pytest.Pytester, setting: str, value: str) -> None:
    pytester.makeini(f"[pytest]\n{setting} = {value}\n")
    pytester.makepyfile("def test_it(erxhub_namespace): pass")
    result = pytester.runpytest_subprocess()
    assert result.ret != 0
    result.stdout.fnmatch_lines([f"*{setting} = {value}*"])


def test_a_run_that_asks_for_no_hub_imports_nothing_slow(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_it():
            assert "erxhub.testing.plugin" in sys.modules
            assert not {"grpc", "cryptography", "google.protobuf", "erxhub.client"} & sys.modules.keys()
        """
    )
    pytester.runpytest_subprocess().assert_outcomes(passed=1)


def test_a_sandbox_in_a_process_of_its_own_ends_with_a_pytest_that_is_killed(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import json, sys

        def test_it(erxhub_hub):
            print(json.dumps(erxhub_hub.control_target), flush=True)
            sys.stdin.read()
        """
    )
    words = [sys.executable, "-m", "pytest", "-s", "-q", "--erxhub-hub", "subprocess", "-p", "no:cacheprovider"]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=pytester.path
    ) as running:
        assert running.stdout is not None
        target = next(json.loads(line) for line in running.stdout if line.startswith('"'))
        with socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2])), timeout=30) as connected:
            running.kill()
            # Nothing but the end of the sandbox's process closes this; a timeout would fail the test.
            assert connected.recv(1) == b""


def test_the_suite_of_the_page_passes(pytester: pytest.Pytester) -> None:
    [program] = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    pytester.makeini(WITH_COROUTINES)
    pytester.makepyfile(program)
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=2)
