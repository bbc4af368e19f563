"""The protocol against a served witness: every step of the shared vectors, and the answers that they do not show."""

import asyncio
import contextlib
import errno
import http.client
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from erxhub.ports import ManualClock
from erxhub.proof.checkpoints import open_checkpoint
from erxhub.proof.notes import Cosigner, read_vkey
from erxhub.witness.protocol import BODY_BYTES_MAX, monitoring_path, origin_hash, write_add_checkpoint
from erxhub.witness.records import FileRecords, Recorded, RecordsBroken
from erxhub.witness.witness import Witness
from tests.witness.ground import COSIGNER, NOW_S, Log, MemoryRecords, SeedKey, files, key_of, serving, witness_of


def _ask(url: str, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, str], str]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, body)
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read().decode()


async def ask(url: str, method: str, path: str, body: bytes | None = None) -> tuple[int, dict[str, str], str]:
    """With the standard library's client, which is not ours."""
    return await asyncio.to_thread(_ask, url, method, path, body)


async def post(url: str, body: bytes) -> tuple[int, str]:
    status, _, text = await ask(url, "POST", "/add-checkpoint", body)
    return status, text


async def test_every_step_of_the_vectors(shared: Path, tmp_path: Path) -> None:
    vectors = json.loads((shared / "design" / "formats_vectors.json").read_text(encoding="utf-8"))
    steps, held = vectors["witness"]["steps"], vectors["keys"]["witness1"]
    cosigner = Cosigner(held["name"], SeedKey(bytes.fromhex(held["seed"])))
    assert cosigner.key.vkey == vectors["witness"]["witness_vkey"]
    records = FileRecords(tmp_path, cosigner.key)
    clock = ManualClock(NOW_S * 1_000)
    log_key = read_vkey(vectors["witness"]["log_vkey"])
    async with serving(Witness(cosigner, [log_key], records, clock)) as url:
        for step in steps:
            before = records.read_now(log_key.name)
            assert (before.size if before else 0) == step["size_before"], step["name"]
            clock.at_ms = step.get("clock", NOW_S) * 1_000
            status, headers, body = await ask(url, "POST", "/add-checkpoint", step["request"].encode())
            assert (status, body if "body" in step else None) == (step["status"], step.get("body")), step["name"]
            assert headers["content-type"] == step.get("content_type", headers["content-type"])
            after = records.read_now(log_key.name)
            assert (after.size if after else 0) == step["size_after"], step["name"]
        status, _, note = await ask(url, "GET", "/" + vectors["witness"]["monitoring_path"])
        assert status == 200
        assert len(open_checkpoint(note, log_key.name, [log_key, cosigner.key]).note.signers) == 2
    records.close()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"old 0\n",
        b"old 0\nnote\n",
        b"old -1\n\n" + Log().note(1).encode(),
        b"old 0 \n\n" + Log().note(1).encode(),
        b"old\n\n" + Log().note(1).encode(),
        b"OLD 0\n\n" + Log().note(1).encode(),
        b"old 9223372036854775808\n\n" + Log().note(1).encode(),
        b"old 0\r\n\r\n" + Log().note(1).encode(),
        b"old 0\nAAAA\n\n" + Log().note(1).encode(),
        b"old \xff\n\n" + Log().note(1).encode(),
        b"old 0\n\n" + Log().note(1).encode()[:-1],
        b"old 0\n\nno checkpoint\n\n" + Log().note(1).encode().split(b"\n\n")[1],
        b"old 0\n\n\xff" + Log().note(1).encode(),
    ],
)
async def test_a_malformed_body_is_400(body: bytes) -> None:
    answer = await witness_of(Log(), MemoryRecords()).add_checkpoint(body)
    assert answer.status == 400


async def test_the_checks_come_in_their_order() -> None:
    log, foreign = Log(), Log(origin="other.test/log")
    witness = witness_of(log, MemoryRecords())
    assert (await witness.add_checkpoint(log.request(0, 5))).status == 200
    unsigned = log.note(3).replace(log.note(3).split(" ")[-1], foreign.note(3).split(" ")[-1])
    # Each request breaks its own rule and all later ones.
    assert (await witness.add_checkpoint(write_add_checkpoint(9, [], foreign.note(3)))).status == 404
    assert (await witness.add_checkpoint(write_add_checkpoint(9, [], unsigned))).status == 403
    assert (await witness.add_checkpoint(write_add_checkpoint(9, [], log.note(3)))).status == 400
    assert (await witness.add_checkpoint(write_add_checkpoint(1, [bytes(32)], log.note(3)))).status == 409
    assert (await witness.add_checkpoint(write_add_checkpoint(5, [bytes(32)], log.note(9)))).status == 422


async def test_other_lines_are_ignored_and_only_good_ones_are_kept(tmp_path: Path) -> None:
    log = Log()
    note = log.note(4) + "— stranger.test AAAAAAAA\n"
    with files(tmp_path) as records:
        assert (await witness_of(log, records).add_checkpoint(write_add_checkpoint(0, [], note))).status == 200
        kept = records.read_now(log.origin)
    assert kept is not None
    assert "stranger" not in kept.note
    assert len(open_checkpoint(kept.note, log.origin, [log.signer.key, COSIGNER.key]).note.lines) == 2


async def test_a_conflict_is_kept_as_evidence_that_names_both_notes() -> None:
    log, forked, records = Log(), Log("other", same=3), MemoryRecords()
    witness = witness_of(log, records)
    assert (await witness.add_checkpoint(log.request(0, 5))).status == 200
    assert (await witness.add_checkpoint(forked.request(5, 5))).status == 422
    assert (await witness.add_checkpoint(forked.request(5, 8))).status == 422
    assert (await witness.add_checkpoint(forked.request(0, 5))).status == 409
    assert [one["reason"] for one in records.evidence] == ["ROOT_MISMATCH", "OLD_ROOT_MISMATCH", "ROOT_MISMATCH"]
    for one in records.evidence:
        assert "— log.test/ledger" in one["offered"]
        assert "— witness.test/w1" in one["recorded"]
    recorded = await records.read(log.origin)
    assert recorded is not None
    assert recorded.root == log.root(5)


async def test_a_slow_request_never_overwrites_a_faster_one(tmp_path: Path) -> None:
    """The slow one is held between its check and its write; a larger tree passes in between."""
    log = Log()
    held, go = asyncio.Event(), asyncio.Event()

    class Held:
        def __init__(self, inner: FileRecords) -> None:
            self._inner = inner
            self.read, self.keep_evidence = inner.read, inner.keep_evidence

        async def replace(self, origin: str, old_size: int, note: str) -> bool:
            if "\n5\n" in note:
                held.set()
                await go.wait()
            return await self._inner.replace(origin, old_size, note)

    with files(tmp_path) as records:
        witness = witness_of(log, Held(records))
        assert (await witness.add_checkpoint(log.request(0, 3))).status == 200
        slow = asyncio.create_task(witness.add_checkpoint(log.request(3, 5)))
        await held.wait()
        assert (await witness.add_checkpoint(log.request(3, 9))).status == 200
        go.set()
        answer = await slow
        assert (answer.status, answer.content_type, answer.body) == (409, "text/x.tlog.size", b"9\n")
        recorded = records.read_now(log.origin)
        assert recorded is not None
        assert recorded.size == 9


async def test_a_hundred_requests_at_once_give_one_history(tmp_path: Path) -> None:
    log, forked = Log(), Log("other")
    with files(tmp_path) as records:
        witness = witness_of(log, records)
        requests = [(one, size) for size in range(1, 51) for one in (log, forked)]
        answers = await asyncio.gather(*(witness.add_checkpoint(one.request(0, size)) for one, size in requests))
        accepted = [request for request, answer in zip(requests, answers, strict=True) if answer.status == 200]
        recorded = records.read_now(log.origin)
    assert recorded is not None
    assert [(one.root(size), size) for one, size in accepted] == [(recorded.root, recorded.size)]


class BrokenRecords(MemoryRecords):
    async def replace(self, origin: str, old_size: int, note: str) -> bool:
        raise RecordsBroken("the disk is full")


async def test_storage_trouble_is_503() -> None:
    answer = await witness_of(Log(), BrokenRecords()).add_checkpoint(Log().request(0, 5))
    assert answer.status == 503
    assert b"witness.test" not in answer.body


async def test_a_damaged_record_is_503_and_stays_as_it_is(tmp_path: Path) -> None:
    log = Log()
    with files(tmp_path) as records:
        witness = witness_of(log, records)
        assert (await witness.add_checkpoint(log.request(0, 5))).status == 200
        path = tmp_path / origin_hash(log.origin)
        damaged = path.read_text().replace("\n5\n", "\n1\n")
        path.write_text(damaged)
        assert (await witness.add_checkpoint(log.request(1, 6))).status == 503
        assert (await witness.newest(path.name)).status == 503
        assert path.read_text() == damaged


async def test_two_witnesses_never_share_a_folder(tmp_path: Path) -> None:
    with files(tmp_path) as _, pytest.raises(RecordsBroken):
        FileRecords(tmp_path, COSIGNER.key)
    FileRecords(tmp_path, COSIGNER.key).close()


async def test_a_record_outlives_the_process(tmp_path: Path) -> None:
    log = Log()
    with files(tmp_path) as records:
        assert (await witness_of(log, records).add_checkpoint(log.request(0, 5))).status == 200
    (tmp_path / "half.new").write_text("what a crash left")
    with files(tmp_path) as records:
        witness = witness_of(log, records)
        assert (await witness.add_checkpoint(log.request(0, 6))).body == b"5\n"
        assert (await witness.add_checkpoint(log.request(5, 6))).status == 200
        recorded = await records.read(log.origin)
    assert isinstance(recorded, Recorded)
    assert recorded.size == 6


async def test_paths_and_methods() -> None:
    log = Log()
    async with serving(witness_of(log, MemoryRecords())) as url:
        assert (await ask(url, "GET", monitoring_path(log.origin)))[0] == 404
        assert (await post(url, log.request(0, 2)))[0] == 200
        assert (await ask(url, "GET", monitoring_path(log.origin)))[0] == 200
        assert (await ask(url, "HEAD", monitoring_path(log.origin)))[::2] == (200, "")
        assert (await ask(url, "GET", monitoring_path(log.origin).upper()))[0] == 404
        assert (await ask(url, "GET", monitoring_path("unknown")))[0] == 404
        for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"):
            status, headers, _ = await ask(url, method, "/add-checkpoint")
            assert (status, headers["allow"]) == (405, "POST")
        assert (await ask(url, "POST", monitoring_path(log.origin), b"x"))[0] == 405
        assert (await ask(url, "POST", "/sign-subtree", b"x"))[0] == 404
        assert (await ask(url, "GET", "/"))[0] == 404


async def test_a_body_has_a_limit() -> None:
    async with serving(witness_of(Log(), MemoryRecords())) as url:
        assert (await post(url, b"x" * BODY_BYTES_MAX))[0] == 400
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        writer.write(b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (BODY_BYTES_MAX + 1))
        assert (await reader.readline()).split()[1] == b"413"
        writer.close()


async def _raw(url: str, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
    writer.write(data)
    with contextlib.suppress(ConnectionError):
        await writer.drain()
        writer.write_eof()
    with contextlib.suppress(ConnectionError):
        return await reader.read()
    return b""


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"400"),
        (b"GET\r\n\r\n", b"400"),
        (b"GET / HTTP/2\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nno header\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n folded: x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\xff: x\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: x", b"400"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100 + b"\r\n", b"431"),
        (b"GET / HTTP/1.1\r\na: " + b"b" * 20_000 + b"\r\n\r\n", b"431"),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 5\r\n\r\nabc", b"400"),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", b"400"),
        (b"POST /add-checkpoint HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na", b"400"),
        (b"POST /add-checkpoint HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\na", b"400"),
        (b"POST /add-checkpoint HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"POST /add-checkpoint HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n", b"400"),
        (b"POST /add-checkpoint HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffff\r\n", b"413"),
    ],
)
async def test_garbage_is_answered_once_and_the_witness_goes_on(data: bytes, status: bytes) -> None:
    log = Log()
    async with serving(witness_of(log, MemoryRecords())) as url:
        answer = await _raw(url, data)
        assert answer.split(b" ")[1] == status
        assert answer.count(b"HTTP/1.1 ") == 1
        assert (await post(url, log.request(0, 2)))[0] == 200


async def test_chunks_and_a_connection_that_stays() -> None:
    log = Log()
    body = log.request(0, 2)
    chunked = b"%x\r\n%b\r\n%x;more\r\n%b\r\n0\r\n\r\n" % (10, body[:10], len(body) - 10, body[10:])
    head = b"POST /add-checkpoint HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
    async with serving(witness_of(log, MemoryRecords())) as url:
        answer = await _raw(url, head + chunked + b"GET " + monitoring_path(log.origin).encode() + b" HTTP/1.1\r\n\r\n")
        assert re.findall(rb"HTTP/1.1 (\d+)", answer) == [b"100", b"200", b"200"]


async def test_slow_clients_are_dropped_and_too_many_are_turned_away() -> None:
    log = Log()
    witness = witness_of(log, MemoryRecords())
    async with serving(witness, head_seconds=0.05) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        writer.write(b"POST /add-che")
        assert await reader.read() == b""
        writer.close()
    async with serving(witness, connections_max=1) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.readline()  # the first connection is taken
        assert (await post(url, log.request(0, 2)))[0] == 503
        writer.close()


def test_a_key_of_a_log_is_no_witness() -> None:
    assert Log().signer.key.vkey != Cosigner(Log().origin, key_of("log")).key.vkey


async def test_a_disk_that_does_not_take_it_is_503_and_nothing_is_lost_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log()
    with files(tmp_path) as records:
        witness = witness_of(log, records)
        monkeypatch.setattr("erxhub.witness.records.os.fsync", _failing_from(1))
        assert (await witness.add_checkpoint(log.request(0, 5))).status == 503
        assert records.read_now(log.origin) is None
        monkeypatch.undo()
        monkeypatch.setattr("erxhub.witness.records.os.fsync", _failing_from(2))
        assert (await witness.add_checkpoint(log.request(0, 5))).status == 503
        # It is recorded now, and nobody knows whether for good: it takes another write for a 200.
        monkeypatch.undo()
        assert (await witness.add_checkpoint(log.request(0, 6))).body == b"5\n"
        assert (await witness.add_checkpoint(log.request(5, 6))).status == 200


def _failing_from(number: int) -> Callable[[int], None]:
    """An fsync that fails from its `number`-th call on: the file's is the first, the folder's the second."""
    calls = 0
    real = os.fsync

    def fsync(descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= number:
            raise OSError(errno.EIO, "the disk does not answer")
        real(descriptor)

    return fsync
