"""The hub under test: how it is opened, and a place in it for every case.

Owns: our own hub as a process of its own, another one by address, with or without its sandbox. Must never: know what a
case does there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

from erxhub.client import (
    ClientFailure,
    ClientIdentity,
    SandboxClient,
    SystemEnvironment,
)
from erxhub.client.environment import Environment
from erxhub.conform.checks import Checks, Unsupported
from erxhub.conform.hub.places import BarePlace, IdentityFolder, Place, SandboxPlace
from erxhub.conform.hub.proxy import FaultProxy
from erxhub.conform.hub.run import HubRun
from erxhub.conform.model import Text
from erxhub.conform.plan import Planned
from erxhub.crypto.ca import TrustDomainError

START_AT_MS: Final = 1_795_140_000_000
"""2026-11-20 10:00 in Beijing: where a namespace's clock begins, so that a run repeats on any day."""
READY_SECONDS: Final = 60.0
STOP_SECONDS: Final = 20.0
OWN_CHECK_INTERVAL_MS: Final = 500
"""How often our own hub looks whether the caller of an open watch was revoked: the promise is 30 seconds."""


class Unusable(Exception):
    """The hub cannot be opened at all. `text` says why."""

    def __init__(self, en: str, zh: str) -> None:
        super().__init__(en)
        self.text = Text(en, zh)


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """One hub under test.

    Without `address` our own hub is started as a process. With `sandbox` (host:port of its SandboxService)
    `identity_dir` is the operator's: ca.pem, cert.pem, key.pem. Without it `identity_dir` holds everybody's
    certificates and signing keys (see IdentityFolder), and calls go through the fault proxy.
    """

    address: str | None = None
    identity_dir: Path | None = None
    seed: int = 1
    profile: str = "dev"
    work: Path = Path()
    sandbox: str | None = None
    server_name: str = "localhost"
    start_at_ms: int = START_AT_MS
    environment: Environment = field(default_factory=SystemEnvironment)


@asynccontextmanager
async def open(settings: TargetSettings) -> AsyncIterator[HubTarget]:  # noqa: A001 — reads as target.open
    """Opens the hub and closes it again. Raises Unusable."""
    async with AsyncExitStack() as undo:
        if settings.address is None:
            facts = await start_own_hub(settings.work, undo)
            operator = ClientIdentity.from_directory(facts["operator"])
            yield await _with_sandbox(settings, facts["target"], facts["control_target"], operator, undo)
        elif settings.sandbox is not None:
            yield await _with_sandbox(settings, settings.address, settings.sandbox, _operator(settings), undo)
        else:
            yield await _bare(settings, settings.address, undo)


class HubTarget:
    """An opened hub."""

    def __init__(
        self, make_place: Callable[[Planned], Any], settings: TargetSettings, described: dict[str, Any]
    ) -> None:
        self._make_place = make_place
        self._settings = settings
        self._described = described

    def describe(self) -> dict[str, Any]:
        """Name, features and suites, for the plan and the report."""
        return dict(self._described)

    @asynccontextmanager
    async def run(self, planned: Planned, checks: Checks) -> AsyncIterator[HubRun]:
        """Everything that a case needs, and at its end the checks that are made of every case.

        A call that ought to succeed and does not is a failed check. Raises CaseEnded, Unsupported and what else the
        case raises.
        """
        if missing := sorted(set(planned.case.needs) - set(self._described["features"])):
            # A case may leave a hub that has no namespaces in a state that no other case can use.
            names = ", ".join(missing)
            raise Unsupported(Text(f"The hub does not have: {names}.", f"被测中心没有：{names}。"))
        place: Place | None = None
        run: HubRun | None = None
        try:
            place = await self._make_place(planned)
            run = await HubRun.begin(place, planned, checks, self._settings.environment)
            yield run
            await run.finish()
        except ClientFailure as failure:
            checks.that(
                False,
                point="sut",
                en="a call that keeps every rule succeeds",
                zh="符合规则的调用应当成功",
                actual=f"{type(failure.request).__name__}: {failure}",
            )
        finally:
            if run is not None:
                await run.keep_traffic()
                await run.close()
            if place is not None:
                await place.close()


# ---- opening ----


async def start_own_hub(work: Path, undo: AsyncExitStack) -> dict[str, str]:
    """Starts `erxhub dev` and waits until it takes calls; what it wrote into its ready file."""
    ready, log = _prepared(work, undo)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "erxhub.cli", "dev", "--home", str(work / "home"), "--ready-file", str(ready)),
        *("--port", "0", "--control-port", "0", "--config", f"stream_check_interval_ms={OWN_CHECK_INTERVAL_MS}"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
    )
    undo.push_async_callback(_stopped, process)
    environment = SystemEnvironment()
    ended = asyncio.ensure_future(process.wait())
    try:
        async with asyncio.timeout(READY_SECONDS):
            while not ready.exists() and not ended.done():
                await environment.sleep_ms(20)
    except TimeoutError:
        pass
    if not ready.exists():
        said = (work / "hub.log").read_text(encoding="utf-8", errors="replace")[-2000:]
        raise Unusable(f"our own hub did not start: {said}", f"内置中心未能启动：{said}")
    facts: dict[str, str] = json.loads(ready.read_bytes())
    return facts


def _prepared(work: Path, undo: AsyncExitStack) -> tuple[Path, BinaryIO]:
    """Where the hub says that it is ready, and the file that takes what it prints."""
    work.mkdir(parents=True, exist_ok=True)
    return work / "ready.json", undo.enter_context((work / "hub.log").open("wb"))


async def _stopped(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


def _operator(settings: TargetSettings) -> ClientIdentity:
    try:
        if settings.identity_dir is None:
            raise FileNotFoundError("no folder")
        return ClientIdentity.from_directory(settings.identity_dir)
    except OSError as error:
        raise Unusable(
            f"the sandbox needs its operator's certificate in --identity (ca.pem, cert.pem, key.pem): {error}",
            f"沙箱须在 --identity 提供操作员证书（ca.pem、cert.pem、key.pem）：{error}",
        ) from None


async def _with_sandbox(
    settings: TargetSettings, target: str, control: str, operator: ClientIdentity, undo: AsyncExitStack
) -> HubTarget:
    connecting = SandboxClient.connect(control, operator, server_name=settings.server_name)
    sandbox = await undo.enter_async_context(connecting)
    try:
        namespaces = await sandbox.list_namespaces()
    except ClientFailure as failure:
        raise Unusable(
            f"the sandbox at {control} does not answer: {failure}", f"沙箱 {control} 无应答：{failure}"
        ) from None
    described = {
        "name": f"hub at {target}",
        "role": "hub",
        "features": ["sandbox", "clock", "faults", "snapshots", "defects"],
        "suites": ["ES256", "EdDSA", "SM2-SM3"],
        "namespaces": len(namespaces),
    }

    async def place(planned: Planned) -> SandboxPlace:
        digest = hashlib.sha256(f"{planned.run_seed}/{planned.profile}/{planned.key}".encode()).hexdigest()[:10]
        name = f"{planned.key.lower().replace('@', '-')}-{digest}"
        return await SandboxPlace.create(
            sandbox,
            name=name[:40].strip("-"),
            seed=planned.seed,
            start_at_ms=settings.start_at_ms,
            suite=planned.suite,
            profile=planned.profile,
            server_name=settings.server_name,
        )

    return HubTarget(place, settings, described)


async def _bare(settings: TargetSettings, target: str, undo: AsyncExitStack) -> HubTarget:
    try:
        if settings.identity_dir is None:
            raise FileNotFoundError("no folder")
        folder = IdentityFolder(settings.identity_dir, settings.environment.now_ms())
    except (OSError, TrustDomainError) as error:
        raise Unusable(
            f"a hub without a sandbox needs everybody's certificates in --identity: {error}",
            f"被测中心无沙箱时，须在 --identity 提供各方证书：{error}",
        ) from None
    proxy = FaultProxy(target, server_name=settings.server_name, environment=settings.environment, seed=settings.seed)
    await proxy.start()
    undo.push_async_callback(proxy.stop)
    described = {
        "name": f"hub at {target}",
        "role": "hub",
        "features": ["faults"],
        "suites": sorted(folder.suites),
    }
    begun_ms = settings.environment.now_ms()

    async def place(planned: Planned) -> BarePlace:
        if planned.profile != "dev":
            raise Unsupported(
                Text("A hub without a sandbox is tested under dev only.", "无沙箱的中心仅按 dev 档测试。")
            )
        digest = hashlib.sha256(f"{begun_ms}/{planned.run_seed}/{planned.key}".encode()).hexdigest()
        made = BarePlace(
            folder,
            target,
            proxy,
            name=f"bare-{digest[:16]}",
            server_name=settings.server_name,
            environment=settings.environment,
            receipt_keys={},
        )
        await made.register_persons(int(digest, 16) % 10**15)
        return made

    return HubTarget(place, settings, described)
