"""`running_sandbox`: a sandbox in this process, on free ports of this machine, with its own authority and world.

Owns the folder that it may live in: `pki/` (trust domain) and `keys/` (the hub's own). Must never: take an authority
that is not a test's, or open its control to other machines without being told to.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from erxhub.client import ClientIdentity
from erxhub.config import Config
from erxhub.crypto.ca import TrustDomain
from erxhub.keys import HubKeys
from erxhub.ports import Clock, Pause, SystemClock, SystemIds, system_pause
from erxhub.rpc.server import ServerIdentity
from erxhub.sandbox.ledgers import FileLedger
from erxhub.sandbox.serving import Sandbox, Setting, start_sandbox
from erxhub.seed import identity
from erxhub.testing.worlds import WorldFounder
from erxhub.v1 import sandbox_pb2

TRUST_DOMAIN: Final = "erxhub.test"
HUB_ID: Final = "hub-1"
HOSTS: Final = ("localhost", "127.0.0.1")
OPERATOR: Final = "operator"

RUNNING: Final = sandbox_pb2.CLOCK_MODE_RUNNING
STANDING: Final = sandbox_pb2.CLOCK_MODE_STANDING


@dataclass(slots=True)
class RunningSandbox:
    """A sandbox that takes calls. `operator` controls it and owns the namespace `default`."""

    target: str
    control_target: str
    trust: TrustDomain
    operator: ClientIdentity
    home: Path | None
    keys: HubKeys
    sandbox: Sandbox

    async def stop(self) -> None:
        """End it; everything in memory is gone."""
        await self.sandbox.stop()


@asynccontextmanager
async def running_sandbox(
    *,
    home: Path | None = None,
    data_address: str = "127.0.0.1:0",
    control_address: str = "127.0.0.1:0",
    control_from_anywhere: bool = False,
    suite: str = "ES256",
    database: Path | None = None,
    default_clock: sandbox_pb2.ClockMode.ValueType = RUNNING,
    default_profile: sandbox_pb2.FaultProfile.ValueType = sandbox_pb2.FAULT_PROFILE_DEV,
    default_seed: int = 0,
    now_ms: int = 0,
    config: Config | None = None,
    keys: HubKeys | None = None,
    machine: Clock | None = None,
    pause: Pause = system_pause,
) -> AsyncIterator[RunningSandbox]:
    """Start a sandbox and stop it at the end.

    Args:
        home: folder for the trust domain and the hub's keys, used again when they are there; None: in memory.
        data_address: where hospitals and pharmacies call, "host:port"; port 0: any that is free.
        control_address: where operators call; on this machine only, unless `control_from_anywhere`.
        suite: of the default namespace's signing keys: "ES256", "EdDSA" or "SM2-SM3".
        database: SQLite file of the default namespace's ledger; None: in memory, like every other namespace.
        default_clock: RUNNING or STANDING, of the default namespace.
        default_profile: faults that the default namespace begins with.
        default_seed: of the default namespace, 0 to 2^64 - 1.
        now_ms: where the default namespace's clock begins, UTC milliseconds; 0: now. Not with `database`.
        config: the hub's limits; its trust domain is the sandbox's whatever it says.
        keys: the hub's keys; by default those of `home`, or fresh ones.
        machine: the clock that certificates and RUNNING clocks go by.
        pause: how it waits, for faults and sweeps.

    Raises ValueError for addresses and times that are not allowed, TrustDomainError, HubKeysError, LedgerRefused,
    StoreUnavailable, StoreFormatError, FileNotFoundError, RuntimeError for an address that cannot be listened on.
    """
    if not control_from_anywhere and not _is_loopback(control_address):
        raise ValueError(f"control_address {control_address!r} is not on this machine; say control_from_anywhere")
    if database is not None and now_ms:
        raise ValueError("a ledger in a file goes by the machine's clock: no now_ms with database")
    machine = machine or SystemClock()
    machine_ms = machine.now_ms()
    pki = home / "pki" if home is not None else None
    trust = _trust_domain(pki, machine_ms)
    keys = keys or _hub_keys(home)
    config = config or default_config()
    served = identity(trust, "hub", HUB_ID, machine_ms, hosts=HOSTS, directory=pki)
    operator = identity(trust, "sandbox", OPERATOR, machine_ms, directory=pki)
    server = ServerIdentity(served.cert_pem, served.key_pem, served.ca_pem)
    founder = WorldFounder(trust, keys, server, config, machine, pki)
    sandbox = await start_sandbox(
        Setting(
            trust=trust,
            keys=keys,
            identity=server,
            founder=founder,
            machine=machine,
            pause=pause,
            config=config,
            owner=f"sandbox/{OPERATOR}",
            suite=suite,
            default_standing=default_clock == STANDING,
            default_start_ms=now_ms,
            default_profile=default_profile,
            default_seed=default_seed,
            data_address=data_address,
            control_address=control_address,
            host=HOSTS[0],
            world=await founder.found_file(database, suite) if database is not None else None,
            ledger=FileLedger(database) if database is not None else None,
        )
    )
    running = RunningSandbox(
        target=f"{HOSTS[0]}:{sandbox.data.port}",
        control_target=f"{HOSTS[0]}:{sandbox.control_port}",
        trust=trust,
        operator=ClientIdentity(operator.ca_pem, operator.cert_pem, operator.key_pem),
        home=home,
        keys=keys,
        sandbox=sandbox,
    )
    try:
        yield running
    finally:
        await running.stop()


def default_config() -> Config:
    """A hub's limits, but that it ends at once: nobody waits for calls that a test left open."""
    return Config(hub_id=HUB_ID, drain_ms=1_000, drain_quiet_ms=0)


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _trust_domain(folder: Path | None, now_ms: int) -> TrustDomain:
    if folder is None:
        return TrustDomain.in_memory(TRUST_DOMAIN, now_ms)
    return TrustDomain.open(folder) if (folder / "ca.pem").exists() else TrustDomain.init(folder, TRUST_DOMAIN, now_ms)


def _hub_keys(home: Path | None) -> HubKeys:
    if home is None:
        return HubKeys.generate(SystemIds())
    folder = home / "keys"
    return HubKeys.load(folder) if folder.exists() else HubKeys.init(folder, SystemIds())
