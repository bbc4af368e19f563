"""What a monitor takes for the same log going on, and what for another one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from erxhub.cli.audit_monitor import Contradiction, Prove, Seen, follow
from tests.proof.naive import mth, proof

ORIGIN = "example.org/ledger"
LEAVES = [bytes([number]) for number in range(9)]


def seen(size: int, leaves: Sequence[bytes] = LEAVES, origin: str = ORIGIN) -> Seen:
    """A checkpoint over the first leaves, as it would be once its note was verified."""
    return Seen(f"{origin}\n{size}\n", origin, size, mth(leaves[:size]))


def proving(leaves: Sequence[bytes] = LEAVES) -> Prove:
    async def prove(size1: int, size2: int) -> Sequence[bytes] | None:
        return proof(size1, leaves[:size2])

    return prove


async def nothing(size1: int, size2: int) -> Sequence[bytes] | None:
    return None


async def test_the_first_checkpoint_is_believed_and_a_longer_one_has_to_be_proven() -> None:
    assert await follow(None, seen(3), nothing) == seen(3)
    for size in range(3, 10):
        assert await follow(seen(3), seen(size), proving()) == seen(size)


@pytest.mark.parametrize(
    ("shown", "prove", "reason"),
    [
        (seen(4), proving(), "SHORTER"),
        (seen(5, origin="example.org/other"), proving(), "FORKED"),
        (seen(5, [b"x", *LEAVES[1:]]), proving(), "FORKED"),
        (seen(8, [b"x", *LEAVES[1:]]), proving([b"x", *LEAVES[1:]]), "FORKED"),
        (seen(8, [b"x", *LEAVES[1:]]), proving(), "FORKED"),
        (seen(8), nothing, "UNPROVEN"),
    ],
)
async def test_another_history_is_refused_with_both_notes(shown: Seen, prove: Prove, reason: str) -> None:
    with pytest.raises(Contradiction) as caught:
        await follow(seen(5), shown, prove)
    assert caught.value.reason == reason
    told = caught.value.evidence()
    assert (told["reason"], told["seen"], told["shown"]) == (reason, seen(5).note, shown.note)
