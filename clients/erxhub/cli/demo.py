"""`erxhub demo`: one prescription from diagnosis to delivery, traced, proven offline, then tampered with.

Owns the stage: it starts a hub, its witnesses and the actors as processes of their own, passes on what people would
show or say, and prints what they did. It makes no call itself, and says ok only for what it checked.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import click

from erxhub.cli.commands import command
from erxhub.cli.local_errors import Failed

_READY_TRIES: Final = 600
_READY_PAUSE_MS: Final = 50
_WITNESSES: Final = 3
_WITNESSES_PRESENT: Final = 2
"""The third one never starts: a quorum of two is met without it."""
_STAGES: Final = {
    "diagnosis": "诊疗 diagnosis",
    "prescription": "处方 prescription",
    "transaction": "交易 transaction",
    "delivery": "配送 delivery",
}


class DemoFailed(Exception):
    """Something was not as the demonstration claims; the message says what."""


@command("demo", example="erxhub demo\nerxhub demo --keep ./demo-files")
@click.option(
    "--keep",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the ledger, the certificates and the keys in this new folder.",
)
def demo(keep: Path | None) -> None:
    """Carry one prescription through all four stages over mutual-TLS gRPC, then let an auditor look.

    The hub, the hospital, the patient's app, the pharmacy and the auditor are separate processes with certificates of
    their own, and so are two of three witnesses; the third never starts. Needs no network and leaves nothing behind.
    Exit code 0 only if every check held.
    """
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=False)
        _play(keep)
        return
    with tempfile.TemporaryDirectory(prefix="erxhub-demo-") as folder:
        _play(Path(folder))


def _play(folder: Path) -> None:
    try:
        asyncio.run(_Demo(folder.resolve()).run())
    except DemoFailed as failure:
        raise Failed("CLI_DEMO_FAILED", details=str(failure)) from None


@dataclass
class _Demo:
    """One performance in one folder."""

    folder: Path
    actors: dict[str, Process] = field(default_factory=dict)

    @property
    def database(self) -> Path:
        return self.folder / "ledger.db"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def policy(self) -> Path:
        return self.folder / "witness-policy.txt"

    async def run(self) -> None:
        """Everything, in order."""
        from erxhub.seed import SeedWorld

        self._title("Setting the stage")
        address = await self._found()
        async with self._witnesses(), self._hub(address):
            self._say("hub", "own process, SQLite file, mutual TLS; keys and a fictional world made for it")
            async with self._cast():
                rx_no = await self._job(SeedWorld.person_no)
            traced = await self._trace(rx_no)
            entries = await self._verify()
            await self._export(rx_no)
        await self._prove(rx_no)
        place = await self._tamper(rx_no)
        complete = traced["light"] == "GREEN" and traced["complete"] and not traced["gaps"]
        if not complete or traced["verified"] is not True:
            raise DemoFailed(f"the chain is {traced['light']}, gaps {traced['gaps']}, verified {traced['verified']}")
        click.echo("")
        click.echo(f"demo: ok rx={rx_no} entries={entries} verified=yes tamper=detected at {place}")

    # ---- the four stages ----

    async def _job(self, person_no: str) -> str:
        self._title(f"1 {_STAGES['diagnosis']}")
        await self._ask("channel", "activate", person_no=person_no)
        shown = await self._ask(
            "channel", "show", person_no=person_no, business_type="01201", purpose="问诊, at the hospital"
        )
        await self._ask("hospital", "visit", code=shown["code"])
        self._title(f"2 {_STAGES['prescription']}")
        prescribed = await self._ask("hospital", "prescribe", person_no=person_no)
        rx_no = str(prescribed["rx_no"])
        self._title(f"3 {_STAGES['transaction']}")
        shown = await self._ask(
            "channel", "show", person_no=person_no, business_type="02122", purpose="下载外购处方, at the pharmacy"
        )
        await self._ask("pharmacy", "hold", code=shown["code"], rx_no=rx_no)
        await self._ask("pharmacy", "review")
        shown = await self._ask(
            "channel", "show", person_no=person_no, business_type="02121", purpose="药店购药, to pay"
        )
        await self._ask("pharmacy", "settle", code=shown["code"])
        asked = await self._ask("channel", "deliver", person_no=person_no, rx_no=rx_no)
        await self._ask("pharmacy", "dispense")
        self._title(f"4 {_STAGES['delivery']}")
        await self._ask("pharmacy", "bring", delivery_no=asked["delivery_no"])
        await self._ask("pharmacy", "sign", delivery_no=asked["delivery_no"], sign_code=asked["sign_code"])
        await self._ask("channel", "accesses", person_no=person_no, rx_no=rx_no)
        return rx_no

    # ---- the auditor ----

    async def _trace(self, rx_no: str) -> dict[str, Any]:
        from erxhub.cli.trace_view import render_trace

        self._title("The auditor traces the chain")
        traced = await self._verb("trace", rx_no, "--reason", "demonstration", "--verify", "-o", "json")
        click.echo(render_trace(traced))
        return traced

    async def _verify(self) -> int:
        self._title("The auditor verifies the ledger")
        verified = await self._verb("audit", "verify", "--reason", "demonstration", "-o", "json")
        counted = f"{verified['entries']} entries in {verified['streams']} streams"
        self._say("auditor", f"{counted}: every hash and link holds")
        if verified["verified"] is not True:
            raise DemoFailed(f"the ledger does not verify: {verified['findings']}")
        return int(verified["entries"])

    async def _export(self, rx_no: str) -> None:
        self._title("The auditor takes a bundle away")
        code, output = await self._told("audit", "export", rx_no, "-o", str(self._bundle), "--reason", "demonstration")
        if code:
            raise DemoFailed(f"no bundle: {output}")
        self._say("auditor", f"{self._bundle.name}, {self._bundle.stat().st_size} bytes: all that proves {rx_no}")

    @property
    def _bundle(self) -> Path:
        return self.folder / "prescription.bundle"

    async def _prove(self, rx_no: str) -> None:
        self._title("Hub and witnesses have ended; the bundle is verified offline")
        trusted = ("--policy", str(self.policy), "--ca", str(self.home / "pki" / "ca.pem"))
        verdict = await self._verb("audit", "verify", str(self._bundle), *trusted, "-o", "json")
        if verdict["verified"] is not True or len(verdict["witnesses"]) < _WITNESSES_PRESENT:
            raise DemoFailed(f"the bundle does not verify: {verdict['failures']}, witnesses {verdict['witnesses']}")
        if verdict["subject"] != {"kind": "prescription", "name": rx_no}:
            raise DemoFailed(f"the bundle is of {verdict['subject']}")
        size, witnesses = verdict["checkpoint"]["size"], " and ".join(verdict["witnesses"])
        self._say("auditor", f"{len(verdict['checks'])} checks hold over {verdict['entries']} entries, with no network")
        self._say("auditor", f"the log of {size} leaves is signed by the hub and cosigned by {witnesses}")

    async def _tamper(self, rx_no: str) -> str:
        from erxhub.core import events
        from erxhub.core.keys import prescription_key
        from erxhub.ledger.entry import Header
        from erxhub.ledger.sqlite import copy_sqlite, open_sqlite
        from erxhub.ledger.tampering import change_payload
        from erxhub.ledger.verify import verify_ledger
        from erxhub.v1 import events_pb2

        self._title("Somebody changes one quantity in a copy of the database")
        copy = self.folder / "tampered.db"
        copy_sqlite(self.database, copy)
        key = prescription_key(rx_no)
        outbound = events.BY_NAME["dispense.outbound"].number
        store = await open_sqlite(copy)
        stored = await store.entries(key, 0, 1000)
        version = next(entry.version for entry in stored if Header.decode(entry.header).type == outbound)
        await store.close()
        told = ""

        def one_more(payload: bytes) -> bytes:
            nonlocal told
            changed = events_pb2.DispenseOutbound.FromString(payload)
            before = changed.lots[0].quantity
            changed.lots[0].quantity = str(int(before) + 1)
            told = f"{before} packs become {changed.lots[0].quantity} in dispense.outbound of {rx_no}"
            return changed.SerializeToString(deterministic=True)

        change_payload(copy, key, version, one_more)
        self._say("intruder", f"dropped the database's guard; {told}")
        store = await open_sqlite(copy)
        verification = await verify_ledger(store)
        await store.close()
        found = [(finding.stream_key, finding.version, str(finding.reason)) for finding in verification.findings]
        if found != [(key, version, "COMMITMENT")]:
            raise DemoFailed(f"the change of version {version} was not found as it should be: {found}")
        place = f"prescription/{key.hex()[:16]}/{version}"
        self._say("auditor", f"found at {place}: the content is not what the entry committed to")
        return place

    # ---- processes ----

    async def _found(self) -> str:
        """Make certificates, keys and the fictional world; where the hub is to listen."""
        words = ("dev", "--db", str(self.database), "--home", str(self.home))
        async with self._process("founding", *words) as ready:
            address = f"127.0.0.1:{ready['target'].rpartition(':')[2]}"
        self._leave_sandbox()
        return address

    def _leave_sandbox(self) -> None:
        """The contexts are those of a hub of its own from here on: their time is the machine's."""
        from erxhub.cli.context import Contexts

        contexts = Contexts.load(self.home)
        contexts.by_name = {
            name: replace(one, sandbox="", namespace="") for name, one in contexts.by_name.items() if one.sandbox
        }
        contexts.save()

    @asynccontextmanager
    async def _witnesses(self) -> AsyncIterator[None]:
        """Two witnesses that answer, and a policy that names three."""
        from erxhub.config import Config
        from erxhub.keys import HubKeys
        from erxhub.proof.notes import ED25519, NoteKey
        from erxhub.witness.keyfiles import make_witness

        log = NoteKey(Config().origin, ED25519, HubKeys.load(self.home / "keys").log.public_key).vkey
        lines, names = [f"log {log}"], []
        async with AsyncExitStack() as stack:
            for number in range(1, _WITNESSES + 1):
                folder, name = self.folder / f"witness-{number}", f"W{number}"
                key = make_witness(folder, f"witness-{number}.test").key
                url = ""
                if number <= _WITNESSES_PRESENT:
                    words = ("witness", "serve", "--folder", str(folder), "--log", log, "--address", "127.0.0.1:0")
                    ready = await stack.enter_async_context(self._process(f"witness-{number}", *words))
                    url = ready["url"]
                lines.append(f"witness {name} {key.vkey} {url}".rstrip())
                names.append(name)
            lines += [f"group two {_WITNESSES_PRESENT} {' '.join(names)}", "quorum two", ""]
            self.policy.write_text("\n".join(lines), encoding="ascii")
            self._say(
                "witnesses",
                f"{_WITNESSES_PRESENT} of {_WITNESSES} run, own processes with own keys; {names[-1]} never starts,"
                f" and the policy asks for {_WITNESSES_PRESENT}",
            )
            yield

    @asynccontextmanager
    async def _hub(self, address: str) -> AsyncIterator[None]:
        pki = self.home / "pki"
        own = pki / "tls" / "hub" / "hub-1"
        words = ["serve", "--db", str(self.database), "--keys", str(self.home / "keys"), "--address", address]
        words += ["--cert", str(own / "cert.pem"), "--key", str(own / "key.pem"), "--ca", str(pki / "ca.pem")]
        words += ["--trust-domain", "erxhub.test", "--witness-policy", str(self.policy)]
        async with self._process("hub", *words):
            yield

    @asynccontextmanager
    async def _process(self, name: str, *words: str) -> AsyncIterator[dict[str, Any]]:
        """A verb that serves, from when it is ready, which is what it said then, until it has ended."""
        from erxhub.ports import system_pause

        ready, messages = self.folder / f"{name}.ready.json", self.folder / f"{name}.log"
        with messages.open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "erxhub.cli",
                *words,
                "--ready-file",
                str(ready),
                stdout=log,
                stderr=log,
            )
            try:
                for _ in range(_READY_TRIES):
                    if ready.exists():
                        break
                    if process.returncode is not None:
                        raise DemoFailed(f"{name} ended at its start:\n{messages.read_text()}")
                    await system_pause(_READY_PAUSE_MS)
                else:
                    raise DemoFailed(f"{name} was not ready in time")
                yield json.loads(ready.read_text("utf-8"))
            finally:
                if process.returncode is None:
                    process.send_signal(signal.SIGTERM)
                await process.wait()

    @asynccontextmanager
    async def _cast(self) -> AsyncIterator[None]:
        try:
            for role in ("hospital", "channel", "pharmacy"):
                self.actors[role] = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    "erxhub.cli.demo_actor",
                    role,
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.PIPE,
                    env=self._environment(),
                )
            yield
        finally:
            for actor in self.actors.values():
                assert actor.stdin is not None
                actor.stdin.close()
                await actor.wait()

    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if name != "ERXHUB_CONTEXT"}
        return kept | {"ERXHUB_HOME": str(self.home)}

    async def _ask(self, role: str, do: str, **arguments: str) -> dict[str, Any]:
        actor = self.actors[role]
        assert actor.stdin is not None
        assert actor.stdout is not None
        assert actor.stderr is not None
        actor.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        await actor.stdin.drain()
        line = await actor.stdout.readline()
        if not line:
            raise DemoFailed(f"the {role} process ended: {(await actor.stderr.read()).decode()}")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise DemoFailed(f"{role}, {do}: {answer['failed']}")
        self._say({"channel": "patient"}.get(role, role), str(answer["said"]))
        return answer

    async def _verb(self, *arguments: str) -> dict[str, Any]:
        _, output = await self._told(*arguments)
        try:
            answer: dict[str, Any] = json.loads(output)
        except ValueError:
            raise DemoFailed(f"erxhub {' '.join(arguments)}: {output}") from None
        return answer

    async def _told(self, *arguments: str) -> tuple[int, str]:
        """The exit code of a verb, and what it printed; its messages when it printed nothing."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "erxhub.cli",
            *arguments,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment(),
        )
        output, messages = await process.communicate()
        return await process.wait(), (output or messages).decode()

    # ---- what a person reads ----

    @staticmethod
    def _title(text: str) -> None:
        click.echo(f"\n── {text} " + "─" * max(4, 72 - len(text)))

    @staticmethod
    def _say(who: str, text: str) -> None:
        indent = " " * 11
        width = 100 - len(indent)
        words, line = text.split(" "), ""
        lines = []
        for word in words:
            if line and len(line) + 1 + len(word) > width:
                lines.append(line)
                line = word
            else:
                line = f"{line} {word}" if line else word
        lines.append(line)
        click.echo(f"{who:<9}  " + f"\n{indent}".join(lines))
