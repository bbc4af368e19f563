"""What is under test, as the steps of a case see it: a product behind a driver.

Owns: the arguments of `configure`, the folders that a product gets, and its being killed and started again. Must never:
judge an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from erxhub.client import ClientIdentity
from erxhub.conform.driving import Driver
from erxhub.conform.model import Text
from erxhub.conform.plan import Described
from erxhub.conform.world import INSTITUTIONS, STAFF, World
from erxhub.crypto.ca import TrustDomain
from erxhub.v1 import sandbox_pb2

SERVER_NAME = "localhost"


class Sut(Protocol):
    """A product under test."""

    wait_scale: float
    """Real milliseconds that it waits for each that the hub asks for."""
    tells: bool
    """Whether it says what came of an operation; an attached product is only watched."""

    async def prepare(self, world: World, folder: Path, changes: Mapping[str, Any]) -> None:
        """Makes it ready for a namespace, without memory of any other. Raises DriverFault, OperationUnsupported.

        `changes`: what differs from the usual arguments of `configure`, in the words of cases.
        """

    async def operate(
        self, op: str, args: Mapping[str, Any], at_ms: int, *, deadline_ms: int, card: Text | None
    ) -> Any:
        """One operation; the members of its result. Raises DriverFault, OperationUnsupported."""

    async def observed(self, result: Mapping[str, Any], during: list[sandbox_pb2.Exchange]) -> Mapping[str, Any]:
        """The result, with what only the wire could tell."""

    async def kill(self, at_ms: int) -> None:
        """Ends it without a warning and starts it again with what it had on disk."""

    async def restart(self, at_ms: int, changes: Mapping[str, Any]) -> None:
        """Ends it in order and starts it again, with such changes."""


async def described_by(driver: Driver, at_ms: int) -> Described:
    """What a driver says about its product. Raises DriverFault, OperationUnsupported."""
    said = await driver.call("describe", {}, at_ms)
    return Described(
        name=str(said.get("name", "")),
        version=str(said.get("version", "")),
        features=frozenset(map(str, said.get("features") or ())),
        suites=frozenset(map(str, said.get("suites") or ())),
        told_clock=said.get("clock", "told") == "told",
        kills=driver.can_be_killed,
        record=dict(said),
    )


def write_files(world: World, identity: ClientIdentity, folder: Path) -> dict[str, Any]:
    """Writes certificates and keys into a folder, and returns the `configure` arguments that name them."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    paths = {"ca": identity.ca_pem, "cert": identity.cert_pem or b"", "key": identity.key_pem or b""}
    for name, pem in paths.items():
        (folder / f"{name}.pem").write_bytes(pem)
    institution = INSTITUTIONS[world.sut_role]
    signing_keys = {}
    for signer in world.signers.values():
        if signer.institution_code == institution:
            path = folder / f"sign-{signer.subject_code}.pem"
            path.write_bytes(signer.private_key_pem)
            signing_keys[signer.subject_code] = {"suite": signer.suite, "pem_path": str(path)}
    return {
        "target": world.target,
        "server_name": SERVER_NAME,
        **{f"{name}_pem_path": str(folder / f"{name}.pem") for name in paths},
        "receipt_keys": {key_id: key.hex() for key_id, key in world.receipt_keys.items()},
        "institution_code": institution,
        "staff": dict(STAFF[world.sut_role]),
        "signing_keys": signing_keys,
        "trusted_signers": [signer.public_record() for signer in world.signers.values()],
    }


def foreign_ca(machine_ms: int) -> bytes:
    """The certificate of an authority that issued nothing here, PEM."""
    return TrustDomain.in_memory("foreign.invalid", machine_ms).ca_pem


class DriverSut:
    """A product behind a driver."""

    tells = True

    def __init__(
        self,
        driver: Driver,
        described: Described,
        *,
        timeout_ms: int,
        wait_scale: float,
        machine_ms: Callable[[], int],
    ) -> None:
        """`timeout_ms` is the real deadline that the product gives its calls."""
        self.driver = driver
        self.wait_scale = wait_scale if "wait_scale" in described.features else 1.0
        self._timeout_ms = timeout_ms
        self._machine_ms = machine_ms
        self._arguments: dict[str, Any] = {}

    async def prepare(self, world: World, folder: Path, changes: Mapping[str, Any]) -> None:
        """Configure with a fresh state folder, then reset."""
        identity = await world.identity(world.sut_role, INSTITUTIONS[world.sut_role])
        state = folder / "state"
        state.mkdir(parents=True, mode=0o700)
        self._arguments = {
            **write_files(world, identity, folder / "files"),
            "state_dir": str(state),
            "timeout_ms": self._timeout_ms,
            "wait_scale": self.wait_scale,
        }
        self._change(changes)
        await self._configure(world.now_ms)
        await self.driver.call("reset", {}, world.now_ms)

    async def operate(
        self, op: str, args: Mapping[str, Any], at_ms: int, *, deadline_ms: int, card: Text | None
    ) -> Any:
        """Asks the driver."""
        return await self.driver.call(op, args, at_ms, deadline_ms=deadline_ms)

    async def observed(self, result: Mapping[str, Any], during: list[sandbox_pb2.Exchange]) -> Mapping[str, Any]:
        """A driver says everything itself."""
        return result

    async def kill(self, at_ms: int) -> None:
        """SIGKILL, then a new process with the same state folder."""
        await self.driver.kill()
        await self._again(at_ms)

    async def restart(self, at_ms: int, changes: Mapping[str, Any]) -> None:
        """Shutdown, then a new process with the same state folder."""
        await self.driver.shut_down(at_ms)
        self._change(changes)
        await self._again(at_ms)

    def _change(self, changes: Mapping[str, Any]) -> None:
        for name, value in changes.items():
            if name == "ca":
                path = Path(self._arguments["ca_pem_path"]).with_name("foreign-ca.pem")
                path.write_bytes(foreign_ca(self._machine_ms()))
                self._arguments["ca_pem_path"] = str(path)
            else:
                self._arguments[name] = value

    async def _again(self, at_ms: int) -> None:
        await self.driver.start()
        await self._configure(at_ms)

    async def _configure(self, at_ms: int) -> None:
        await self.driver.call("configure", self._arguments, at_ms)
