"""The log's side: what it makes of each answer, of witnesses that are right and of some that are not."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest

from erxhub.ports import ManualClock
from erxhub.proof.checkpoints import write_checkpoint
from erxhub.proof.notes import Cosigner, LogSigner, add_line
from erxhub.proof.policy import read_policy
from erxhub.witness.client import (
    ForkSuspected,
    RollbackSuspected,
    WitnessClient,
    WitnessRefused,
    WitnessUnavailable,
    WitnessUnproven,
    clients_of,
)
from erxhub.witness.protocol import ADD_CHECKPOINT
from erxhub.witness.witness import Answer, Witness
from tests.witness.ground import COSIGNER, NOW_S, ORIGIN, Log, MemoryRecords, key_of, serving, witness_of


def client_of(url: str, log: Log, **more: int) -> WitnessClient:
    return WitnessClient(url, COSIGNER.key, ManualClock(NOW_S * 1_000), log_keys=(log.signer.key,), **more)


async def cosign(client: WitnessClient, log: Log, size: int) -> str:
    return await client.cosign(log.note(size), log.prove(size))


async def test_a_growing_log_is_cosigned_also_by_a_client_that_knows_nothing() -> None:
    log = Log()
    async with serving(witness_of(log, MemoryRecords())) as url:
        first = client_of(url, log)
        for size in (0, 1, 2, 7, 7, 8):
            line = await cosign(first, log, size)
            assert COSIGNER.key.name in add_line(log.note(size), line)
        restarted = client_of(url, log)
        await cosign(restarted, log, 13)
        await cosign(first, log, 16)  # it believes 8, and learns 13


async def test_a_smaller_tree_than_the_witness_knows_is_a_rollback() -> None:
    log = Log()
    async with serving(witness_of(log, MemoryRecords())) as url:
        client = client_of(url, log)
        await cosign(client, log, 9)
        for one in (client, client_of(url, log)):
            with pytest.raises(RollbackSuspected) as found:
                await cosign(one, log, 5)
            assert (found.value.our_size, found.value.witness_size) == (5, 9)


@pytest.mark.parametrize("size", [9, 12])
async def test_another_history_is_a_fork_and_both_notes_are_at_hand(size: int) -> None:
    log, forked = Log(), Log("other", same=3)
    async with serving(witness_of(log, MemoryRecords())) as url:
        await cosign(client_of(url, log), log, 9)
        with pytest.raises(ForkSuspected) as found:
            await cosign(client_of(url, log), forked, size)
        assert found.value.ours == forked.note(size)
        assert found.value.theirs is not None
        assert found.value.theirs.startswith(log.note(9).partition("\n\n")[0])


class Scripted(Witness):
    """A witness that answers as it is told."""

    def __init__(self, answers: Callable[[bytes], Answer]) -> None:
        super().__init__(COSIGNER, [Log().signer.key], MemoryRecords(), ManualClock(NOW_S * 1_000))
        self._answers = answers
        self.asked = 0

    async def add_checkpoint(self, body: bytes) -> Answer:
        self.asked += 1
        return self._answers(body)


def _line(size: int, cosigner: Cosigner = COSIGNER, at_s: int = NOW_S) -> bytes:
    return cosigner.line(Log().note(size).partition("\n\n")[0] + "\n", at_s).encode() + b"\n"


STRANGER = Cosigner("stranger.test", key_of("stranger"))
SIZE, TEXT = "text/x.tlog.size", "text/plain"


@pytest.mark.parametrize(
    ("answer", "failure"),
    [
        (Answer(200, TEXT, b""), WitnessRefused),
        (Answer(200, TEXT, b"\xff"), WitnessRefused),
        (Answer(200, TEXT, _line(5)[:-9]), WitnessRefused),
        (Answer(200, TEXT, _line(6)), WitnessRefused),
        (Answer(200, TEXT, _line(5, STRANGER)), WitnessRefused),
        (Answer(200, TEXT, _line(5, at_s=0)), WitnessRefused),
        (Answer(200, TEXT, _line(5, at_s=NOW_S + 301)), WitnessRefused),
        (Answer(200, TEXT, _line(5) + _line(6)), WitnessRefused),
        (Answer(400, TEXT, b"\xff what"), WitnessRefused),
        (Answer(403, TEXT, b""), WitnessRefused),
        (Answer(404, TEXT, b""), WitnessRefused),
        (Answer(409, TEXT, b"3\n"), WitnessRefused),
        (Answer(409, SIZE, b"03\n"), WitnessRefused),
        (Answer(409, SIZE, b"3"), WitnessRefused),
        (Answer(409, SIZE, b"3\n"), WitnessUnavailable),  # again and again
        (Answer(409, SIZE, b"0\n"), WitnessUnproven),  # the size that was sent: an older witness's root conflict
        (Answer(409, SIZE, b"6\n"), WitnessUnproven),
        (Answer(422, TEXT, b""), WitnessUnproven),
        (Answer(429, TEXT, b""), WitnessUnavailable),
        (Answer(500, TEXT, b""), WitnessUnavailable),
        (Answer(503, TEXT, b""), WitnessUnavailable),
        (Answer(200, TEXT, b"x" * 600_000), WitnessUnavailable),
    ],
)
async def test_every_answer_has_its_meaning(answer: Answer, failure: type[Exception]) -> None:
    sizes = iter([answer, Answer(409, SIZE, b"4\n")])
    # A size below ours is answered twice, with two sizes: the client tries once more and then leaves it.
    scripted = Scripted(lambda _: next(sizes) if failure is WitnessUnavailable and answer.status == 409 else answer)
    async with serving(scripted) as url:
        with pytest.raises(failure):
            await cosign(client_of(url, Log()), Log(), 5)
    assert scripted.asked <= 2


async def test_unknown_lines_beside_the_witness_own_are_dropped() -> None:
    async with serving(Scripted(lambda _: Answer(200, TEXT, _line(5, STRANGER) + _line(5)))) as url:
        assert await cosign(client_of(url, Log()), Log(), 5) == _line(5).decode().strip()


class Showing(Scripted):
    """Refuses by its script, and shows what it is told."""

    def __init__(self, answer: Answer, shown: Answer) -> None:
        super().__init__(lambda _: answer)
        self._shown = shown

    async def newest(self, hashed_origin: str) -> Answer:
        return self._shown


def _forged(size: int) -> str:
    """A note of the log that its key has not signed."""
    return LogSigner(ORIGIN, key_of("rogue")).note(write_checkpoint(ORIGIN, size, Log().root(size)))


@pytest.mark.parametrize("claim", [Answer(409, SIZE, b"999999999\n"), Answer(422, TEXT, b"no\n")])
@pytest.mark.parametrize(
    ("shown", "kept"),
    [
        (Answer(404, TEXT, b""), ""),
        (Answer(500, TEXT, b""), "answers 500"),
        (Answer(200, TEXT, b"\xff"), "\ufffd"),
        (Answer(200, TEXT, _forged(9).encode()), _forged(9)),
        (Answer(200, TEXT, _forged(9).encode() * 9), _forged(9)),
        (Answer(200, TEXT, Log(origin="other.test").note(9).encode()), "other.test"),
        (Answer(200, TEXT, Log().note(3).encode()), ""),  # leads to ours
        (Answer(200, TEXT, Log().note(5).encode()), ""),
    ],
)
async def test_a_claim_that_our_key_has_not_signed_is_the_witness_failure(
    claim: Answer, shown: Answer, kept: str
) -> None:
    log = Log()
    async with serving(Showing(claim, shown)) as url:
        with pytest.raises(WitnessUnproven) as found:
            await cosign(client_of(url, log), log, 5)
    assert found.value.kind == str(claim.status)
    assert found.value.claim.startswith(f"{claim.status} {claim.body.decode().strip()}")
    assert kept in found.value.claim
    assert len(found.value.claim) <= 4_096


@pytest.mark.parametrize("claim", [Answer(409, SIZE, b"999999999\n"), Answer(422, TEXT, b"no\n")])
@pytest.mark.parametrize(
    ("theirs", "alarm"),
    [
        (Log().note(9), RollbackSuspected),
        (Log("other").note(9), RollbackSuspected),
        (Log("other").note(5), ForkSuspected),
        (Log("other").note(3), ForkSuspected),
        # A line of the witness that is none takes nothing from the log's.
        (add_line(Log("other").note(5), _line(9).decode().strip()), ForkSuspected),
    ],
)
async def test_what_our_key_has_signed_is_evidence_whatever_else_the_witness_says(
    claim: Answer, theirs: str, alarm: type[Exception]
) -> None:
    log = Log()
    async with serving(Showing(claim, Answer(200, TEXT, theirs.encode()))) as url:
        with pytest.raises(alarm):
            await cosign(client_of(url, log), log, 5)


@contextlib.asynccontextmanager
async def _speaking(data: bytes) -> AsyncIterator[str]:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65_536)
        writer.write(data)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/prefix/"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00\x01",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 999 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\nabc",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"SSH-2.0-other\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_an_unavailable_witness(data: bytes) -> None:
    async with _speaking(data) as url:
        with pytest.raises(WitnessUnavailable):
            await cosign(client_of(url, Log()), Log(), 5)


async def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    async with _speaking(b"HTTP/1.0 200 OK\r\n\r\n" + _line(5)) as url:
        assert await cosign(client_of(url, Log()), Log(), 5)


async def test_a_silent_or_missing_witness_is_unavailable() -> None:
    async with serving(Scripted(lambda _: Answer(200, TEXT, _line(5)))) as url:
        pass
    with pytest.raises(WitnessUnavailable):
        await cosign(client_of(url, Log()), Log(), 5)
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(WitnessUnavailable):
            await cosign(client_of(url, Log(), timeout_ms=50), Log(), 5)


@pytest.mark.parametrize("url", ["ftp://x", "http://", "x", "http://x/?q", "http://x/#f"])
def test_what_is_no_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError):
        client_of(url, Log())


async def test_a_policy_names_the_witnesses_to_ask() -> None:
    log = Log()
    async with serving(witness_of(log, MemoryRecords())) as url:
        lines = [
            f"log {log.signer.key.vkey}",
            f"witness one {COSIGNER.key.vkey} {url}/",
            f"witness two {STRANGER.key.vkey}",
            "group both any one two",
            "quorum both",
        ]
        policy = read_policy("".join(f"{line}\n" for line in lines).encode())
        clients = clients_of(policy, ManualClock(NOW_S * 1_000), (log.signer.key,))
        assert list(clients) == ["one"]
        note = log.note(5)
        met = policy.check(add_line(note, await cosign(clients["one"], log, 5)))
    assert (met.said.size, met.witnesses) == (5, ("one",))
    assert ADD_CHECKPOINT.startswith("/")
