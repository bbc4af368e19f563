"""A private PostgreSQL server for tests: made from nothing, on a free loopback port, gone at the end of the run.

Never one that happens to run. A machine without PostgreSQL fails the tests that need it, unless
ERXHUB_WITHOUT_POSTGRES=1 says that it is known; then they are left out, and the run ends with a list of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import pytest

from erxhub.ledger.migrations import migrate_postgres

VARIABLE = "ERXHUB_WITHOUT_POSTGRES"
ABSENT = f"left out knowingly: {VARIABLE} is set"
MISSING = (
    "this machine has no PostgreSQL server programs (Debian, Ubuntu: apt-get install postgresql; that server need not "
    f"run). {VARIABLE}=1 leaves these tests out knowingly"
)
_START_S = 30.0
_PARENT_DEATH_SIGNAL = 1  # prctl's PR_SET_PDEATHSIG
_USERS = ("postgres", "nobody")  # initdb refuses to run as root


def binaries() -> Path | None:
    """The folder with initdb, postgres and pg_dump; the newest where there are several."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    found.sort(key=lambda folder: int(folder.parent.name) if folder.parent.name.isdigit() else 0)
    on_path = shutil.which("initdb")
    if found:
        return found[-1]
    return Path(on_path).resolve().parent if on_path else None


@dataclass
class PostgresServer:
    """A running server. Templates are made once; each test gets a database of its own, copied from one."""

    folder: Path
    port: int
    password: str
    bin: Path
    user: str | None
    process: subprocess.Popen[bytes] | None = None
    settings: dict[str, str] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _templates: set[str] = field(default_factory=set)

    @property
    def sockets(self) -> Path:
        """The folder of the unix socket."""
        return self.folder / "s"

    def url(self, database: str = "postgres", role: str = "postgres", *, tcp: bool = False) -> str:
        """A database as a role of the server: the superuser `postgres`, or a login made by `login`."""
        secret = f"{role}:{self.password}"
        if tcp:
            return f"postgresql://{secret}@127.0.0.1:{self.port}/{database}"
        return f"postgresql://{secret}@/{database}?host={quote(str(self.sockets), safe='')}&port={self.port}"

    def sql(self, text: str, database: str = "postgres") -> str:
        """Run SQL as the superuser; what it prints, unaligned."""
        done = subprocess.run(
            [str(self.bin / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", "-d", self.url(database), "-c", text],
            check=True,
            capture_output=True,
            text=True,
            cwd="/",
        )
        return done.stdout.strip()

    def login(self, role: str, granted: str = "") -> None:
        """Make a login that is granted another role; again does nothing."""
        if self.sql(f"SELECT count(*) FROM pg_roles WHERE rolname = '{role}'") == "0":
            self.sql(f"CREATE ROLE {role} LOGIN PASSWORD '{self.password}' {f'IN ROLE {granted}' if granted else ''}")

    def database(self, template: str = "template0") -> str:
        """A new database; its name."""
        name = f"t{next(self._numbers)}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY wal_log")
        return name

    def ledger_template(self) -> str:
        """A database with an empty ledger, to copy; with it the logins `hub` and `eraser`."""
        name = "ledger"
        if name not in self._templates:
            self.sql(f"CREATE DATABASE {name}")
            # On a thread of its own, since a test may ask from inside its event loop.
            with ThreadPoolExecutor(1) as thread:
                thread.submit(asyncio.run, migrate_postgres(self.url(name))).result()
            self.login("hub", "erxhub_hub")
            self.login("eraser", "erxhub_eraser")
            self._templates.add(name)
        return name

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.sockets),
            "max_connections": "120",
            "shared_buffers": "64MB",
            "max_prepared_transactions": "8",
            "checkpoint_timeout": "30min",
            **self.settings,
        }
        arguments = [f"-c{name}={value}" for name, value in settings.items()]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(self.bin / "postgres"), "-D", str(self.folder / "data"), *arguments],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                preexec_fn=_end_with_parent,  # noqa: PLW1509 one system call, on a library loaded before
                **_as_user(self.user),
            )
        deadline = time.monotonic() + _START_S
        ready = [str(self.bin / "pg_isready"), "-q", "-h", str(self.sockets), "-p", str(self.port)]
        while subprocess.run(ready, cwd="/", check=False).returncode:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: SIGINT ends sessions in order, SIGQUIT drops everything as a crash does."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(_START_S)
            self.process = None


_libc = ctypes.CDLL(None)


def _end_with_parent() -> None:
    with contextlib.suppress(AttributeError):  # only Linux has it; elsewhere a killed run leaves a server behind
        _libc.prctl(_PARENT_DEATH_SIGNAL, signal.SIGQUIT)


def _user() -> str | None:
    if os.geteuid():
        return None
    for name in _USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise RuntimeError("initdb does not run as root, and there is no other user to run it")


def _as_user(user: str | None) -> dict[str, object]:
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_server(**settings: str) -> PostgresServer:
    """A new server in a temporary folder. `stop_server` ends it and removes the folder."""
    programs = binaries()
    if programs is None:
        if os.environ.get(VARIABLE) == "1":
            pytest.skip(ABSENT)
        pytest.fail(MISSING, pytrace=False)
    user = _user()
    folder = Path(tempfile.mkdtemp(prefix="erxhub-pg-"))
    server = PostgresServer(folder, _free_port(), secrets.token_hex(16), programs, user, settings=settings)
    try:
        server.sockets.mkdir()
        secret = folder / "password"
        secret.write_text(server.password)
        if user is not None:
            for path in (folder, server.sockets, secret):
                shutil.chown(path, user)
        subprocess.run(
            [
                *(str(programs / "initdb"), "-D", str(folder / "data"), "-U", "postgres", "-E", "UTF8"),
                *("--locale=C", "--no-sync", "-A", "scram-sha-256", f"--pwfile={secret}"),
            ],
            check=True,
            capture_output=True,
            cwd=folder,
            **_as_user(user),
        )
        server.start()
    except BaseException:
        stop_server(server)
        raise
    return server


def stop_server(server: PostgresServer) -> None:
    """End the server, whatever state it is in, and remove its folder."""
    try:
        server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One private server for the whole run, durable as a real one."""
    if os.environ.get(VARIABLE) == "1":
        pytest.skip(ABSENT)
    server = start_server()
    try:
        yield server
    finally:
        stop_server(server)
