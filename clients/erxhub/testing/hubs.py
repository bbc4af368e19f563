"""A sandbox and its namespaces as a test uses them: from plain functions and from coroutines alike.

Owns: the event loop in a thread beside the test's own that the sandbox (or the connection to its process) lives on.
Must never: import pytest; the plugin does, and other runners may use what is here.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from erxhub.client import ClientIdentity, SandboxClient
from erxhub.testing.namespaces import ErxhubNamespace
from erxhub.v1 import sandbox_pb2

READY: Final = "Try in another terminal"
"""The line of `erxhub dev` that comes when everything is there."""
STOP_SECONDS: Final = 20

Result = TypeVar("Result")


class Background:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="erxhub", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Runs a coroutine there and waits for its result."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> Future[None]:
        """Runs a coroutine there without waiting."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def close(self) -> None:
        """Ends the thread."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


class ErxhubHub:
    """A running sandbox: `target` is where hospitals and pharmacies call, `control_target` its control port.

    `operator` is the certificate that controls it. Make one with `in_process` or `as_process`; close it (`with`).
    """

    def __init__(
        self, target: str, control_target: str, operator: ClientIdentity, background: Background, undo: ExitStack
    ) -> None:
        self.target = target
        self.control_target = control_target
        self.operator = operator
        self.background = background
        self._undo = undo
        connecting = SandboxClient.connect(control_target, operator)
        self.sandbox: SandboxClient = background.run(connecting.__aenter__())
        undo.callback(lambda: background.run(connecting.__aexit__(None, None, None)))

    @classmethod
    def in_process(cls, folder: Path) -> Self:
        """A sandbox on a thread of this process, on free ports; `folder` is for its certificates."""
        from erxhub.testing.sandbox import RunningSandbox, running_sandbox

        with ExitStack() as undo:
            background = Background()
            undo.callback(background.close)
            stopping, started = background.run(_event()), Future[RunningSandbox]()

            async def serve() -> None:
                try:
                    async with running_sandbox(home=folder) as running:
                        started.set_result(running)
                        await stopping.wait()
                except BaseException as error:
                    if started.done():
                        raise
                    started.set_exception(error)

            serving = background.start(serve())
            running = started.result()

            def stop() -> None:
                background.loop.call_soon_threadsafe(stopping.set)
                serving.result()

            undo.callback(stop)
            operator = running.operator
            identity = ClientIdentity(operator.ca_pem, operator.cert_pem, operator.key_pem)
            return cls(running.target, running.control_target, identity, background, undo.pop_all())

    @classmethod
    def as_process(cls, folder: Path) -> Self:
        """A sandbox as a process of its own (`erxhub dev`), on free ports; `folder` is for its certificates and log.

        Raises RuntimeError with what it printed when it does not come up.
        """
        with ExitStack() as undo:
            ready = folder / "ready.json"
            log = undo.enter_context((folder / "dev.log").open("w", encoding="utf-8"))
            # Its standard input ends with this process, even when that is killed; so does the sandbox.
            words = ("dev", "--home", str(folder / "home"), "--ready-file", str(ready), "--until-eof")
            process = subprocess.Popen(
                [sys.executable, "-m", "erxhub.cli", *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
            undo.callback(lambda: _stop(process))
            assert process.stdout is not None
            if not any(READY in line for line in process.stdout):
                said = (folder / "dev.log").read_text(encoding="utf-8")
                raise RuntimeError(f"erxhub dev ended with {process.wait()}:\n{said}")
            facts = json.loads(ready.read_bytes())
            background = Background()
            undo.callback(background.close)
            operator = ClientIdentity.from_directory(facts["operator"])
            return cls(facts["target"], facts["control_target"], operator, background, undo.pop_all())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the sandbox; everything in it is gone."""
        self._undo.close()

    def namespace(
        self,
        name: str = "",
        *,
        folder: Path,
        seed: int = 1,
        start_at_ms: int = 0,
        profile: str = "dev",
        suite: str = "",
        running_clock: bool = False,
    ) -> ErxhubNamespace:
        """A new namespace with the fictional world in it; delete it with `delete()`.

        Args:
            name: made by the sandbox when empty.
            folder: for the certificates of its callers.
            seed: the same seed and the same calls give the same ledger, with deterministic signatures.
            start_at_ms: UTC milliseconds where its clock begins; 0 for now.
            profile: "dev", "strict" or "chaos".
            suite: of the signing keys; ES256 when empty.
            running_clock: whether its clock runs; otherwise it stands until it is advanced.

        Raises Refusal (SBX_NAMESPACE_EXISTS, SBX_LIMIT, SBX_ARGUMENT), ValueError for a profile that does not exist.
        """
        made = self.background.run(
            self.sandbox.create_namespace(
                name,
                seed=seed,
                start_at_ms=start_at_ms,
                clock_mode=sandbox_pb2.CLOCK_MODE_RUNNING if running_clock else sandbox_pb2.CLOCK_MODE_STANDING,
                profile=sandbox_pb2.FaultProfile.Value(f"FAULT_PROFILE_{profile.upper()}"),
                suite=suite,
            )
        )
        client = SandboxClient(self.sandbox.connection, namespace=made.name)
        run: Callable[[Coroutine[Any, Any, Any]], Any] = self.background.run
        return ErxhubNamespace(client, made, run, folder)


async def _event() -> asyncio.Event:
    return asyncio.Event()


def _stop(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        # What it still prints is read, so that it cannot wait for a full pipe.
        process.communicate(timeout=STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
