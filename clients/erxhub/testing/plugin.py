"""The pytest plugin: a sandbox for the session, and a namespace of it that every test finds as it was created.

    def test_a_lost_reply_is_met_by_a_repeat(erxhub_namespace):
        erxhub_namespace.faults.set("Dispensing/Settle nth=1 do=lose_ack")
        my_pharmacy_system.settle(target=erxhub_namespace.target, certificates=erxhub_namespace.folder("pharmacy"))
        assert not erxhub_namespace.check()

Owns the fixtures `erxhub_hub` and `erxhub_namespace`, and their options. Must never: import what is slow before a test
asks for a hub; pytest loads this in every run.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from erxhub.testing.hubs import ErxhubHub
    from erxhub.testing.namespaces import ErxhubNamespace

SETTINGS: Final = {
    "erxhub_hub": ("inprocess", ("inprocess", "subprocess"), "where the sandbox runs"),
    "erxhub_profile": ("dev", ("dev", "strict", "chaos"), "the faults that a namespace begins with"),
    "erxhub_suite": ("ES256", ("ES256", "EdDSA", "SM2-SM3"), "of the signing keys"),
}
"""Ini setting and, with hyphens, option: (default, values, what it is)."""
SEED: Final = "erxhub_seed"
TRAFFIC_LINES_MAX: Final = 40
_USED = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("erxhub", "erxhub: a sandbox of the e-prescription centre")
    for name, (default, values, text) in SETTINGS.items():
        group.addoption(_option(name), default=None, choices=values, help=f"{text} (ini: {name}, default: {default})")
        parser.addini(name, f"{text}: {', '.join(values)}", default=default)
    group.addoption(_option(SEED), default=None, type=int, help=f"seed of the namespaces (ini: {SEED}, default: 1)")
    parser.addini(SEED, "seed of the namespaces", default="1")


@pytest.fixture(scope="session")
def erxhub_hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ErxhubHub]:
    """A running sandbox on free ports of this machine, until the end of the session."""
    from erxhub.testing.hubs import ErxhubHub

    folder = tmp_path_factory.mktemp("erxhub")
    start = ErxhubHub.as_process if setting(request.config, "erxhub_hub") == "subprocess" else ErxhubHub.in_process
    with start(folder) as hub:
        yield hub


@pytest.fixture(scope="session")
def _erxhub_session_namespace(
    erxhub_hub: ErxhubHub, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ErxhubNamespace]:
    # One for all tests: a system under test can be set up once, with certificates that stay good.
    namespace = erxhub_hub.namespace(
        "pytest",
        folder=tmp_path_factory.mktemp("erxhub-certificates"),
        seed=int(setting(request.config, SEED)),
        profile=setting(request.config, "erxhub_profile"),
        suite=setting(request.config, "erxhub_suite"),
    )
    yield namespace
    namespace.delete()


@pytest.fixture
def erxhub_namespace(
    _erxhub_session_namespace: ErxhubNamespace, request: pytest.FixtureRequest
) -> Iterator[ErxhubNamespace]:
    """A namespace with the fictional world in it, for every test as if it were just created.

    Its name, its certificates and its signing keys are the same in all tests of the session.
    """
    namespace = _erxhub_session_namespace
    if request.session.stash.get(_USED, False):
        namespace.reset()
    request.session.stash[_USED] = True
    yield namespace
    namespace.close_clients()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that fails shows what went over the wire."""
    report = yield
    namespace = getattr(item, "funcargs", {}).get("erxhub_namespace")
    if report.failed and report.when == "call" and namespace is not None:
        report.sections.append((f"erxhub traffic of {namespace.name}, seed {namespace.seed}", _traffic(namespace)))
    return report


def setting(config: pytest.Config, name: str) -> str:
    """The option of this name, else the ini setting. Raises UsageError for a value that the setting cannot have."""
    value = str(config.getini(name) if config.getoption(name) is None else config.getoption(name))
    values = SETTINGS[name][1] if name in SETTINGS else ()
    if values and value not in values:
        raise pytest.UsageError(f"{name} = {value}: it is one of {', '.join(values)}")
    if name == SEED and not value.isdecimal():
        raise pytest.UsageError(f"{name} = {value}: it is a whole number, not negative")
    return value


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _traffic(namespace: Any) -> str:
    from erxhub.cli.traffic_view import exchange_line
    from erxhub.client import ClientFailure

    try:
        lines = [exchange_line(exchange) for exchange in namespace.traffic()]
    except ClientFailure as failure:
        return f"cannot be read: {failure}"
    left_out = [f"… {len(lines) - TRAFFIC_LINES_MAX} earlier calls"] if len(lines) > TRAFFIC_LINES_MAX else []
    return "\n".join([*left_out, *lines[-TRAFFIC_LINES_MAX:]]) or "no calls"
