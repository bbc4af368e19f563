"""A headless Chromium for pages that have to open offline, driven over the DevTools protocol through a pipe.

What a page did is told by the browser itself: every console message, every exception, every request. Where there is no
Chromium, the tests that need one say loudly that they were left out.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--disable-sync",
    "--remote-debugging-pipe",
)
_LAUNCH = """
import os, sys
reads, writes = os.dup(int(sys.argv[1])), os.dup(int(sys.argv[2]))
reads, writes = os.dup(reads), os.dup(writes)
os.dup2(reads, 3)
os.dup2(writes, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""The browser takes commands on descriptor 3 and answers on 4. Copies first: the pipes may lie on these numbers."""


def chromium_or_skip(what: str) -> str:
    """The browser's path; without one the calling test is skipped, with a warning that names what was not checked."""
    for name in NAMES:
        found = shutil.which(name)
        if found:
            return found
    text = f"LEFT OUT: {what} was not opened in a browser, because there is no Chromium here (apt-get install chromium)"
    warnings.warn(text, stacklevel=2)
    pytest.skip(text)


@dataclass
class Seen:
    """What a page did since it was opened. `requests` are URLs other than the page's own; `errors` are console errors,
    exceptions and what the browser itself complained of.
    """

    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


class Page:
    """One opened page."""

    def __init__(self, process: subprocess.Popen[bytes], reading: int, writing: int) -> None:
        self.seen = Seen()
        self._process = process
        self._reading = os.fdopen(reading, "rb")
        self._writing = os.fdopen(writing, "wb")
        self._number = 0
        self._session = ""
        self._url = ""
        self._loaded = False

    def open(self, path: Path) -> None:
        """Load a local file and wait until it is loaded."""
        target = self._command("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self._command("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._command(f"{domain}.enable")
        self._url = path.as_uri()
        self._command("Page.navigate", {"url": self._url})
        while not self._loaded:
            self._event(self._receive())

    def run(self, script: str) -> Any:
        """The value of an expression in the page; an exception of it fails the test."""
        reply = self._command("Runtime.evaluate", {"expression": script, "returnByValue": True, "awaitPromise": True})
        assert "exceptionDetails" not in reply, reply["exceptionDetails"]
        return reply["result"].get("value")

    def settle(self) -> Seen:
        """What the page did, once it had a quiet moment."""
        self.run("new Promise(done => setTimeout(done, 150))")
        return self.seen

    def close(self) -> None:
        self._writing.close()
        self._reading.close()

    def _command(self, method: str, params: dict[str, Any] | None = None) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params or {}}
        if self._session:
            message["sessionId"] = self._session
        self._writing.write(json.dumps(message).encode() + b"\0")
        self._writing.flush()
        while True:
            received = self._receive()
            if received.get("id") == self._number:
                assert "error" not in received, received["error"]
                return received["result"]
            self._event(received)

    def _receive(self) -> dict[str, Any]:
        data = bytearray()
        while (byte := self._reading.read(1)) != b"\0":
            if not byte:
                raise AssertionError("the browser ended")
            data += byte
        received: dict[str, Any] = json.loads(data)
        return received

    def _event(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.exceptionThrown":
                self.seen.errors.append(json.dumps(params["exceptionDetails"], ensure_ascii=False))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "assert", "warning"):
                self.seen.errors.append(json.dumps(params["args"], ensure_ascii=False))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.seen.errors.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                url = params["request"]["url"]
                if url != self._url and not url.startswith("data:"):
                    self.seen.requests.append(url)


@contextmanager
def opened_page(path: Path, what: str) -> Iterator[Page]:
    """The page in a fresh browser of its own."""
    browser = chromium_or_skip(what)
    to_browser_reads, to_browser_writes = os.pipe()
    from_browser_reads, from_browser_writes = os.pipe()
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as home:
        launch = [sys.executable, "-c", _LAUNCH, str(to_browser_reads), str(from_browser_writes)]
        process = subprocess.Popen(
            [*launch, browser, *_FLAGS, f"--user-data-dir={home}"],
            pass_fds=(to_browser_reads, from_browser_writes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": home},
        )
        os.close(to_browser_reads)
        os.close(from_browser_writes)
        page = Page(process, from_browser_reads, to_browser_writes)
        try:
            page.open(path)
            yield page
        finally:
            page.close()
            process.terminate()
            process.wait(timeout=20)
