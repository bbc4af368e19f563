"""Certificates that change while the hub runs: the server's own, and a caller's that is revoked."""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from erxhub.app import start_hub
from erxhub.client import Refusal
from erxhub.crypto.ca import TrustDomain
from erxhub.keys import HubKeys
from erxhub.ledger.memory import MemoryStore
from erxhub.ports import SeededIds, SystemClock
from erxhub.rpc.server import IdentityFiles
from tests.chain import Chain
from tests.live import HOSPITAL, live_hub

pytestmark = pytest.mark.campaign


def _fingerprint(pem: bytes) -> bytes:
    return hashlib.sha256(x509.load_pem_x509_certificate(pem).public_bytes(Encoding.DER)).digest()


# ---- the server's own ----


class _Served:
    """A hub whose identity lies in files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now_ms = SystemClock().now_ms()
        self.trust = TrustDomain.in_memory("erxhub.test", self.now_ms)
        self.caller = self.trust.issue_tls("channel", "demo-app", self.now_ms, 30)
        (folder / "client-cert.pem").write_bytes(self.caller.cert_pem)
        (folder / "client-key.pem").write_bytes(self.caller.key_pem)
        (folder / "ca.pem").write_bytes(self.trust.ca_pem)
        self.port = 0

    def issue(self) -> Any:
        return self.trust.issue_tls("hub", "hub-1", self.now_ms, 30, hosts=("localhost", "127.0.0.1"))

    def write(self, issued: Any, *, cert: bool = True, key: bool = True) -> None:
        if cert:
            (self.folder / "cert.pem").write_bytes(issued.cert_pem)
        if key:
            (self.folder / "key.pem").write_bytes(issued.key_pem)

    def files(self) -> IdentityFiles:
        return IdentityFiles(self.folder / "cert.pem", self.folder / "key.pem", self.folder / "ca.pem")

    async def shown(self) -> bytes:
        """Fingerprint of the certificate that a new handshake shows."""
        context = ssl.create_default_context(cafile=str(self.folder / "client-ca.pem"))
        context.load_cert_chain(self.folder / "client-cert.pem", self.folder / "client-key.pem")
        context.set_alpn_protocols(["h2"])
        _, writer = await asyncio.open_connection("localhost", self.port, ssl=context)
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        return hashlib.sha256(der).digest()


async def test_replaced_certificate_files_show_in_the_next_handshake_and_broken_ones_do_not(tmp_path: Path) -> None:
    served = _Served(tmp_path)
    (tmp_path / "client-ca.pem").write_bytes(served.trust.ca_pem)
    first, second, third = served.issue(), served.issue(), served.issue()
    served.write(first)
    hub = await start_hub(MemoryStore(), served.files(), HubKeys.generate(SeededIds(97)), clock=SystemClock())
    served.port = hub.port
    try:
        assert await served.shown() == _fingerprint(first.cert_pem)
        served.write(second)
        assert await served.shown() == _fingerprint(second.cert_pem)
        # The certificate is there and its key is not yet: the old pair stays until both belong together.
        served.write(third, key=False)
        assert await served.shown() == _fingerprint(second.cert_pem)
        served.write(third)
        assert await served.shown() == _fingerprint(third.cert_pem)
        (tmp_path / "cert.pem").write_bytes(b"no certificate at all")
        assert await served.shown() == _fingerprint(third.cert_pem)
        (tmp_path / "cert.pem").unlink()
        assert await served.shown() == _fingerprint(third.cert_pem)
        served.write(first)
        (tmp_path / "ca.pem").write_bytes(b"no authority at all")
        assert await served.shown() == _fingerprint(third.cert_pem)
        (tmp_path / "ca.pem").write_bytes(served.trust.ca_pem)
        assert await served.shown() == _fingerprint(first.cert_pem)
    finally:
        await hub.stop()


# ---- a caller's ----


class _Pauses:
    """The hub's waiting, under the test's control."""

    def __init__(self) -> None:
        self._over = asyncio.Event()

    async def __call__(self, ms: int) -> None:
        await self._over.wait()

    def end(self) -> None:
        """Every pause of now is over; later ones wait again."""
        over, self._over = self._over, asyncio.Event()
        over.set()


async def _to_its_end(watching: Any) -> None:
    async for _ in watching:
        pass


async def test_revoked_certificate_ends_an_open_watch_and_the_next_call() -> None:
    pauses = _Pauses()
    async with live_hub(pause=pauses) as live:
        await Chain(live).uploaded()
        identity = live.identity("hospital", HOSPITAL)
        revoked = await live.connect("hospital", HOSPITAL, identity)
        kept = await live.hospital()
        watching, staying = revoked.watch(from_start=True), kept.watch(from_start=True)
        told = [await anext(watching), await anext(staying)]
        assert told[0].rx_no == told[1].rx_no
        pauses.end()
        # A look at a certificate that is still good ends nothing.
        chain = await Chain(live).uploaded()
        for watch in (watching, staying):
            while (await anext(watch)).rx_no != chain.rx_no:
                pass
        agency = await live.agency()
        assert identity.cert_pem is not None
        await agency.revoke_certificate(certificate_pem=identity.cert_pem, reason="key lost")
        with pytest.raises(Refusal) as refused:
            await revoked.get(rx_no=chain.rx_no)
        assert refused.value.code == "CERT_REVOKED"
        with pytest.raises(Refusal) as refused:
            await revoked.close_encounter(encounter_id=chain.encounter_id)
        assert refused.value.code == "CERT_REVOKED"
        pauses.end()
        with pytest.raises(Refusal) as refused:
            await _to_its_end(watching)
        assert refused.value.code == "CERT_REVOKED"
        # The same institution with another certificate goes on.
        following = await Chain(live).uploaded()
        while (await anext(staying)).rx_no != following.rx_no:
            pass
        await staying.aclose()
