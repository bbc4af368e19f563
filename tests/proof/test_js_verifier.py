"""A verifier in another language comes to the same verdict, for the same reason and at the same entry."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from erxhub.core.events import BY_NUMBER
from erxhub.core.keys import prescription_key
from erxhub.crypto.envelope import pae
from erxhub.crypto.suites import SigningKey
from erxhub.ledger.entry import Header
from erxhub.ledger.store import Store
from erxhub.proof.bundle import read_bundle, write_bundle
from erxhub.proof.bundle_verify import verify_bundle
from erxhub.proof.notes import Cosigner, LogSigner
from erxhub.queries.proofs import chain_bundle
from erxhub.v1 import common_pb2, signed_pb2
from tests.chain import Chain
from tests.live import MINUTE_MS, PERSON, Live, live_hub
from tests.proof.bundle_story import Closing
from tests.proof.dishonest import Lie, Told, lied
from tests.proof.golden import kept
from tests.proof.js_tables import held, tables
from tests.proof.js_verifier import Brought, Said, javascript_says, python_says, run
from tests.proof.tampering import bare_stream
from tests.proof.test_bundle import WAYS
from tests.proof.test_bundle_dishonest import two_sales

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOLDEN = kept()
LIES_CHECKED = 40
LIES_CAMPAIGN = 2_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def live() -> AsyncIterator[Live]:
    """One hub for all: a lie is told of a copy of its ledger."""
    async with live_hub() as running:
        yield running


def new_key() -> SigningKey:
    """A key that nobody knows."""
    return SigningKey.generate("EdDSA")


def known_of(closing: Closing) -> Brought:
    """What an auditor of this hub brings."""
    return Brought((closing.signer.key.vkey,), ca_pem=closing.live.trust.ca_pem)


# ---- the file ----


async def test_the_verifier_holds_the_tables_of_the_program() -> None:
    assert held() == tables(), "write them with: python -m tests.proof.js_tables"


# ---- bundles that are kept for ever ----


@pytest.mark.parametrize("log", sorted({golden.log for golden in GOLDEN}))
async def test_the_bundles_of_an_earlier_release_verify_with_both_verifiers(log: str, tmp_path: Path) -> None:
    bundles = [golden for golden in GOLDEN if golden.log == log]
    for number, brought in enumerate(bundles[0].brought):
        for golden in bundles:
            verdict = verify_bundle(golden.data, golden.brought[number].trust)
            assert (verdict.holds, verdict.entries) == (True, golden.entries), golden.name
        everything = [golden.data for golden in bundles]
        assert javascript_says(everything, brought, tmp_path) == [Said("")] * len(bundles)


# ---- the command ----


async def test_the_command_prints_numbered_checks_and_its_verdict(tmp_path: Path) -> None:
    golden = GOLDEN[0]
    sound = tmp_path / "sound.bundle"
    sound.write_bytes(golden.data)
    options = golden.brought[-1].options(tmp_path)
    done = run([str(sound), *options], tmp_path)
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[-1], done.stderr) == (0, "VERIFIED", "")
    assert [line.partition(".")[0] for line in lines[:-1]] == [str(number) for number in range(1, len(lines))]

    bundle = read_bundle(golden.data)
    stream = dataclasses.replace(bundle.streams[0], entries=bundle.streams[0].entries[:-1])
    short = tmp_path / "short.bundle"
    short.write_text(write_bundle(dataclasses.replace(bundle, streams=(stream, *bundle.streams[1:]))))
    done = run([str(short), *options], tmp_path)
    lines = done.stdout.splitlines()
    assert (done.returncode, lines[-1]) == (1, "REFUSED MAP")
    assert lines[-2].endswith(f"at prescription/{stream.key.hex()} version {len(stream.entries)}")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["sound.bundle"],
        ["sound.bundle", "--log-key", "no+key"],
        ["sound.bundle", "--log-key", "VKEY", "--about", "person 1"],
        ["absent.bundle", "--log-key", "VKEY"],
        ["sound.bundle", "--batch", "--log-key", "VKEY"],
        ["sound.bundle", "--log-key", "VKEY", "--policy", "sound.bundle"],
    ],
)
async def test_a_wrong_call_is_no_verdict(arguments: list[str], tmp_path: Path) -> None:
    golden = GOLDEN[0]
    (tmp_path / "sound.bundle").write_bytes(golden.data)
    done = run([golden.log_key if word == "VKEY" else word for word in arguments], tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr


async def test_another_logs_key_another_subject_and_a_missing_quorum_are_refused(tmp_path: Path) -> None:
    golden = GOLDEN[0]
    file = tmp_path / "sound.bundle"
    file.write_bytes(golden.data)
    about = f"prescription {'9' * 27}"
    third, stranger = Cosigner("witness.three", new_key()), LogSigner("erxhub.test/ledger", new_key())
    demanding = f"witness three {third.key.vkey}\ngroup more all both three\nquorum more".encode()
    (tmp_path / "demanding").write_bytes(golden.policy.replace(b"quorum both", demanding))
    for arguments, reason in (
        (["--log-key", stranger.key.vkey], "CHECKPOINT"),
        (["--log-key", golden.log_key, "--about", about], "SUBJECT"),
        (["--policy", "demanding"], "QUORUM"),
    ):
        done = run([str(file), *arguments], tmp_path)
        assert (done.returncode, done.stdout.splitlines()[-1]) == (1, f"REFUSED {reason}"), done.stderr


# ---- chains of every way, and lies ----


async def test_the_chains_of_every_way_and_suite_verify_in_javascript(live: Live, tmp_path: Path) -> None:
    closing = Closing(live)
    chains = []
    for step in WAYS.values():
        chain = Chain(live, PERSON)
        await step(chain)
        live.advance(4 * 24 * 60 * MINUTE_MS)
        chains.append(await closing.chain(chain.rx_no))
    assert javascript_says(chains, known_of(closing), tmp_path) == [Said("")] * len(WAYS)
    for suite in ("EdDSA", "SM2-SM3"):
        async with live_hub(suite=suite) as other:
            chain = await Chain(other, PERSON).handed_over()
            closing = Closing(other)
            forged = await lied(other.hub.store, forging)
            lying = Closing(other, store=forged)
            context = dataclasses.replace(lying.context, store=forged)
            found = await chain_bundle(context, chain.rx_no)
            assert found is not None
            both = [await closing.chain(chain.rx_no), found[0].encode()]
            said = [python_says(data, known_of(closing)) for data in both]
            assert [one.reason for one in said] == ["", "SIGNATURE"]
            assert javascript_says(both, known_of(closing), tmp_path) == said


def forging(told: Told) -> Iterable[Told]:
    """One bit of the last signature of a chain is another."""
    if told.name == "dispense.handed_over":
        signature = told.payload.statement.signatures[0]
        signature.signature = signature.signature[:-1] + bytes([signature.signature[-1] ^ 1])
    return (told,)


async def test_a_foreign_authority_and_content_that_was_never_erased_are_found_alike(
    live: Live, tmp_path: Path
) -> None:
    chain = await Chain(live, PERSON).uploaded()
    closing = Closing(live)
    data = await closing.chain(chain.rx_no)
    foreign = dataclasses.replace(known_of(closing), ca_pem=GOLDEN[0].ca_pem)
    assert python_says(data, foreign).reason == "CERTIFICATE"
    assert javascript_says([data], foreign, tmp_path) == [python_says(data, foreign)]
    bundle = read_bundle(data)
    for at in range(3):
        streams = [bare_stream(stream) if at == place else stream for place, stream in enumerate(bundle.streams)]
        bare = write_bundle(dataclasses.replace(bundle, streams=tuple(streams))).encode()
        expected = python_says(bare, known_of(closing))
        assert expected.reason == "CONTENT_MISSING"
        assert javascript_says([bare], known_of(closing), tmp_path) == [expected]


async def test_a_statement_that_stands_for_two_steps_is_found_alike(live: Live, tmp_path: Path) -> None:
    chain = await two_sales(live)
    statements: list[bytes] = []

    def again(told: Told) -> Iterable[Told]:
        if told.name == "dispense.handed_over" and told.header.stream_key == prescription_key(chain.rx_no):
            statements.append(told.payload.statement.SerializeToString())
            told.payload.statement.ParseFromString(statements[0])
        return (told,)

    said = []
    for lie in (lambda told: (told,), again):
        store = await lied(live.hub.store, lie)
        closing = Closing(live, store=store)
        found = await chain_bundle(dataclasses.replace(closing.context, store=store), chain.rx_no)
        assert found is not None
        said.append(python_says(found[0].encode(), known_of(closing)))
        assert javascript_says([found[0].encode()], known_of(closing), tmp_path) == said[-1:]
    assert [one.reason for one in said] == ["", "REUSED"]


def changed_by(random: Random, names: set[str], keys: Mapping[str, SigningKey]) -> Lie:
    """A lie by chance: an entry is left out, told twice, moved in time, or says something else.

    With the signers' keys: what they signed is another, and they signed it.
    """
    name = random.choice(sorted(names))
    way = random.choice(["left out", "twice", "earlier", "later", "no causes", *["field"] * 5, *["signed"] * 5])
    every = random.random() < 0.3

    def lie(told: Told) -> Iterable[Told]:
        if told.name != name or not (every or random.random() < 0.7):
            return (told,)
        if way == "left out":
            return ()
        if way == "twice":
            return (told, dataclasses.replace(told))
        if way in ("earlier", "later"):
            told.header.recorded_at_ms += random.choice([1, 60_000]) * (1 if way == "later" else -1)
        elif way == "no causes":
            told.header.causes = ()
        elif way == "field" or not change_signed(told.payload, random, keys):
            change_field(told.payload, random)
        return (told,)

    return lie


def change_field(message: Message, random: Random) -> None:
    """Something in the message, however deep, is another."""
    fields = [field for field, _ in message.ListFields()] or list(message.DESCRIPTOR.fields)
    if not fields:
        return
    field = random.choice(fields)
    held: Any = getattr(message, field.name)
    if field.is_repeated:
        if not held or random.random() < 0.3:
            message.ClearField(field.name)
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            change_field(random.choice(held), random)
        else:
            held[random.randrange(len(held))] = _other(held[0], random)
    elif field.type == FieldDescriptor.TYPE_MESSAGE:
        if message.HasField(field.name) and random.random() < 0.85:
            change_field(held, random)
        else:
            message.ClearField(field.name)
    else:
        setattr(message, field.name, _other(held, random))


def change_signed(payload: Message, random: Random, keys: Mapping[str, SigningKey]) -> bool:
    """A statement in the payload says something else, with a good signature; False when there is no statement."""
    signed = [held for _, held in payload.ListFields() if isinstance(held, common_pb2.Signed)]
    if not signed:
        return False
    content = random.choice(signed)
    statement: Any = getattr(signed_pb2, content.payload_type.rpartition(".")[2]).FromString(content.payload)
    change_field(statement, random)
    # What the entry says beside it follows, half the time.
    for field, said in statement.ListFields() if random.random() < 0.5 else ():
        beside: Any = getattr(payload, field.name, None)
        if field.is_repeated and beside is not None:
            payload.ClearField(field.name)
            beside.extend(said)
        elif isinstance(beside, str | int):
            setattr(payload, field.name, said)
    content.payload = statement.SerializeToString(deterministic=True)
    for signature in content.signatures:
        signature.signature = keys[signature.key_id].sign(pae(content.payload_type, content.payload))
    return True


def _other(value: Any, random: Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return max(0, value + random.choice([-1, 1, 2]))
    if isinstance(value, bytes):
        return random.choice([b"", bytes(32), value[::-1], value + b"\x00"])
    return random.choice(["", value + "1", value[::-1], "1.00001", "医"])


@pytest.mark.campaign
async def test_lies_of_a_hub_that_has_every_key_are_judged_alike(
    tmp_path: Path, rounds: Callable[[int, int], int]
) -> None:
    random, count = Random(41), rounds(LIES_CHECKED, LIES_CAMPAIGN)
    async with live_hub() as live:
        chains = await _chains_of_many_ways(live)
        given, names = known_of(Closing(live)), await _told(live.hub.store)
        keys = {key.key_id: key for key in live.world.signing_keys.values()}
        bundles = []
        for number in range(count):
            try:
                store = await lied(live.hub.store, changed_by(random, names, keys))
                context = dataclasses.replace(Closing(live, store=store).context, store=store)
                found = await chain_bundle(context, chains[number % len(chains)].rx_no)
            except Exception:  # noqa: BLE001 a ledger so wrong that the hub itself cannot make a bundle of it
                continue
            if found is not None:
                bundles.append(found[0].encode())
    expected = [python_says(data, given) for data in bundles]
    assert javascript_says(bundles, given, tmp_path) == expected
    assert len(bundles) >= count / 2
    assert len({one.reason for one in expected}) >= 5


async def _chains_of_many_ways(live: Live) -> list[Chain]:
    """Handed over; delivered; settled, undone and settled again; renewed."""
    chains = [Chain(live, PERSON) for _ in range(4)]
    await chains[0].handed_over()
    live.advance(MINUTE_MS)
    await chains[1].delivered()
    live.advance(MINUTE_MS)
    await WAYS["undo reversed"](chains[2])
    live.advance(MINUTE_MS)
    await chains[3].diagnosed()
    chains[3].prescription.renews_rx_no = chains[0].rx_no
    await chains[3].uploaded()
    return chains


async def _told(store: Store) -> set[str]:
    """The names of the events that were told, but for accesses."""
    numbers = {Header.decode(entry.header).type for entry in await store.log(0, 100_000)}
    return {BY_NUMBER[number].name for number in numbers if BY_NUMBER[number].stream_kinds != ("access",)}
