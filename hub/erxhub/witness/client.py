"""The log's side of the witness protocol: ask for a cosignature, and understand every answer.

Owns what a log concludes from an answer: go on, try again later, or stop publishing. It must never take a line for a
cosignature that does not verify over our own note, never stop because of what our own log key has not signed, and never
try its luck a third time.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from erxhub.ports import Clock
from erxhub.proof.checkpoints import CheckpointText, open_checkpoint, read_checkpoint
from erxhub.proof.merkle import ProofInvalid, verify_consistency
from erxhub.proof.notes import COSIGNATURE, NoteKey, read_line, read_note
from erxhub.proof.policy import Policy
from erxhub.proof.text import read_decimal
from erxhub.witness import http
from erxhub.witness.protocol import (
    ADD_CHECKPOINT,
    BODY_BYTES_MAX,
    SIZE_TYPE,
    TEXT_TYPE,
    monitoring_path,
    write_add_checkpoint,
)

AHEAD_SECONDS_MAX: Final = 300
"""A cosignature from further in the future than this is not taken."""
TIMEOUT_MS: Final = 5_000
"""For one request and its answer."""
_ATTEMPTS: Final = 2
_CLAIM_CHARACTERS_MAX: Final = 4_096

Prove = Callable[[int], Awaitable[list[bytes]]]
"""size → the consistency proof from there to the note's size. Asked only for sizes above 0 and below the note's."""


class WitnessFailure(Exception):
    """No cosignature. The message names the witness."""


class WitnessUnavailable(WitnessFailure):
    """The witness does not answer, or cannot at the moment: try again with the next checkpoint."""


class WitnessRefused(WitnessFailure):
    """The witness answers what it should not, or does not know the log: an operator has to look."""


class WitnessUnproven(WitnessRefused):
    """The witness speaks of another history and shows no note of it that our log's key has signed.

    That is no evidence against our ledger, and says something of the witness only. `kind` is what it claims with, 409,
    422 or SHOWN; `claim` is what it sent, cut off; `size` is the size above ours that it says it knows, if any.
    """

    def __init__(self, words: str, kind: str, claim: str, size: int | None = None) -> None:
        super().__init__(words)
        self.kind = kind
        self.claim = claim[:_CLAIM_CHARACTERS_MAX]
        self.size = size


class Shown(NamedTuple):
    """The newest checkpoint that a witness has cosigned of a log: what it says, and the note that the log signed."""

    said: CheckpointText
    note: str


class RollbackSuspected(WitnessFailure):
    """The witness shows a larger tree than ours under our log's signature: our store is older than what the world has
    seen. Stop.
    """

    def __init__(self, words: str, our_size: int, theirs: Shown) -> None:
        super().__init__(words)
        self.our_size = our_size
        self.witness_size = theirs.said.size
        self.theirs = theirs


class ForkSuspected(WitnessFailure):
    """The witness shows a tree under our log's signature that does not lead to ours. Stop publishing, keep both notes.

    `theirs` is the note that the witness shows.
    """

    def __init__(self, words: str, ours: str, theirs: str) -> None:
        super().__init__(words)
        self.ours = ours
        self.theirs = theirs


class _Response(NamedTuple):
    status: int
    content_type: str
    body: bytes


class WitnessClient:
    """Asks one witness to cosign one log's checkpoints. Not for use by two tasks at once.

    `url` is the submission prefix, and the monitoring prefix as well; `log_keys` are the log's own, by which the note
    that the witness shows is recognised.
    """

    def __init__(
        self,
        url: str,
        key: NoteKey,
        clock: Clock,
        *,
        log_keys: tuple[NoteKey, ...] = (),
        timeout_ms: int = TIMEOUT_MS,
        confirmed: int = 0,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{url} is no URL of a witness")
        if key.type != COSIGNATURE:
            raise ValueError(f"{key.name} is no key of a witness")
        self._host, self._port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
        self._authority = parts.netloc.rpartition("@")[2]
        self._prefix = parts.path.rstrip("/")
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._key = key
        self._log_keys = log_keys
        self._clock = clock
        self._timeout_ms = timeout_ms
        self._confirmed = confirmed
        self.follows_claim = False
        """Whether it is looking for the proof of what the witness claims; whoever asked should hear the end of that."""

    @property
    def name(self) -> str:
        """The name of the witness's key."""
        return self._key.name

    async def cosign(self, checkpoint_note: str, prove: Prove) -> str:
        """The witness's signature line (without LF) over the note's text.

        Raises WitnessUnavailable, WitnessRefused and its kind WitnessUnproven, RollbackSuspected, ForkSuspected.
        """
        ours = read_checkpoint(read_note(checkpoint_note).text)
        # After a restart of the hub the first attempt asks with what it does not know, and learns the size by the 409.
        old = self._confirmed if self._confirmed <= ours.size else 0
        for _ in range(_ATTEMPTS):
            proof = await prove(old) if 0 < old < ours.size else []
            body = write_add_checkpoint(old, proof, checkpoint_note)
            answer = await self._ask("POST", ADD_CHECKPOINT, body)
            if answer.status == 200:
                line = self._line(answer.body, checkpoint_note)
                self._confirmed = ours.size
                return line
            if answer.status != 409:
                break
            recorded = self._recorded_size(answer)
            # The size that was sent is how witnesses of the older release say that the roots of one size differ.
            if recorded > ours.size or recorded == old:
                size = recorded if recorded > ours.size else None
                raise await self._followed(answer, checkpoint_note, ours, prove, size)
            self._confirmed = old = recorded
        if answer.status == 422:
            raise await self._followed(answer, checkpoint_note, ours, prove)
        if answer.status in (400, 403, 404, 405, 413):
            words = answer.body[:200].decode("utf-8", "replace").strip()
            raise WitnessRefused(f"{self.name} refuses the checkpoint: {answer.status} {words}")
        raise WitnessUnavailable(f"{self.name} answers {answer.status}")

    async def shown(self, origin: str) -> Shown | None:
        """What the witness has cosigned last of a log; None if nothing. The log's signature is verified, and no other.

        Raises WitnessUnavailable, WitnessUnproven.
        """
        answer = await self._ask("GET", monitoring_path(origin), b"")
        if answer.status == 404:
            return None
        if answer.status != 200:
            raise WitnessUnavailable(f"{self.name} answers {answer.status}")
        try:
            opened = open_checkpoint(answer.body, origin, self._log_keys)
        except ProofInvalid as invalid:
            words = f"{self.name} shows a checkpoint that our log never signed: {invalid}"
            raise WitnessUnproven(words, "SHOWN", _text(answer.body)) from None
        return Shown(opened.said, answer.body.decode())

    def _recorded_size(self, answer: _Response) -> int:
        try:
            if answer.content_type != SIZE_TYPE or not answer.body.endswith(b"\n"):
                raise ProofInvalid("SIZE_FORM")
            return read_decimal(answer.body[:-1].decode("ascii"))
        except (ProofInvalid, UnicodeDecodeError):
            raise WitnessRefused(f"{self.name} answers 409 without a size") from None

    def _line(self, body: bytes, note: str) -> str:
        """The line of the witness's key among those that it answered; lines of other keys are dropped."""
        text = read_note(note).text.encode()
        found = None
        try:
            lines = body.decode().removesuffix("\n").split("\n")
            for line in map(read_line, lines):
                if (line.name, line.key_id) == (self._key.name, self._key.key_id):
                    timestamp = self._key.verify(text, line.signature)
                    assert timestamp is not None, "the key is a witness's"
                    if not 0 < timestamp <= self._clock.now_ms() // 1_000 + AHEAD_SECONDS_MAX:
                        raise ProofInvalid("TIME", "the time of the cosignature is none or in the future")
                    found = line.line
        except UnicodeDecodeError:
            raise WitnessRefused(f"{self.name} answers what is no cosignature") from None
        except ProofInvalid as invalid:
            raise WitnessRefused(f"{self.name} answers what is no cosignature: {invalid}") from None
        if found is None:
            raise WitnessRefused(f"{self.name} answers without a cosignature of its key")
        return found

    async def _followed(
        self, answer: _Response, note: str, ours: CheckpointText, prove: Prove, size: int | None = None
    ) -> RollbackSuspected | ForkSuspected | WitnessUnproven:
        """What a claim of another history comes to, by the note that the witness shows."""
        claim = f"{answer.status} {_text(answer.body).strip()}"
        self.follows_claim = True
        try:
            shown = await self.shown(ours.origin)
            found = await self._against(shown, note, ours, prove) if shown is not None else None
        except WitnessUnproven as unproven:
            claim += f"\n\n{unproven.claim}"
            found = None
        except WitnessUnavailable as away:
            claim += f"\n\n{away}"
            found = None
        finally:
            self.follows_claim = False
        if found is not None:
            return found
        words = (
            f"{self.name} answers {answer.status} as if it knew another history of the log, and shows no note of it"
            " that our log has signed"
        )
        return WitnessUnproven(words, str(answer.status), claim, size)

    async def _against(
        self, shown: Shown, note: str, ours: CheckpointText, prove: Prove
    ) -> RollbackSuspected | ForkSuspected | None:
        """How a note that our log has signed speaks against ours; None if it leads to ours."""
        theirs = shown.said
        if theirs.size > ours.size:
            words = (
                f"{self.name} has cosigned size {theirs.size}, ours is {ours.size}: this ledger is older than what was"
                " published"
            )
            return RollbackSuspected(words, ours.size, shown)
        proof = await prove(theirs.size) if 0 < theirs.size < ours.size else []
        try:
            if theirs.size:
                verify_consistency(theirs.size, ours.size, proof, theirs.root, ours.root)
        except ProofInvalid:
            words = f"{self.name} has cosigned a tree of {ours.origin} that does not lead to ours"
            return ForkSuspected(words, note, shown.note)
        return None

    async def _ask(self, method: str, path: str, body: bytes) -> _Response:
        try:
            async with asyncio.timeout(self._timeout_ms / 1_000):
                return await self._exchange(method, path, body)
        except (OSError, TimeoutError, http.BadMessage) as error:
            words = str(error) or type(error).__name__
            raise WitnessUnavailable(f"{self.name} does not answer: {words}") from None

    async def _exchange(self, method: str, path: str, body: bytes) -> _Response:
        reader, writer = await asyncio.open_connection(self._host, self._port, ssl=self._tls, limit=http.stream_limit())
        try:
            headers = {"Host": self._authority, "Connection": "close"}
            if body:
                headers["Content-Type"] = TEXT_TYPE
            writer.write(http.write_message(f"{method} {self._prefix}{path} HTTP/1.1", headers, body))
            await writer.drain()
            head = await http.read_response_head(reader)
            answer = await http.read_body(reader, head, BODY_BYTES_MAX, to_end=True)
        finally:
            writer.close()
        content_type = head.headers.get("content-type", "")
        return _Response(int(head.line[0]), content_type.partition(";")[0].strip(), answer)


def _text(body: bytes) -> str:
    return body[:_CLAIM_CHARACTERS_MAX].decode("utf-8", "replace")


def clients_of(
    policy: Policy,
    clock: Clock,
    log_keys: tuple[NoteKey, ...],
    confirmed: Mapping[str, int] | None = None,
    *,
    timeout_ms: int = TIMEOUT_MS,
) -> dict[str, WitnessClient]:
    """A client for each witness of a policy that has a URL and a key we can verify, by its name in the policy.

    `confirmed`: name of a witness's key → the size that it cosigned last (`Store.witness_sizes`). Raises ValueError for
    a URL that is none.
    """
    sizes = confirmed or {}
    return {
        name: WitnessClient(
            witness.url,
            witness.key,
            clock,
            log_keys=log_keys,
            timeout_ms=timeout_ms,
            confirmed=sizes.get(witness.key.name, 0),
        )
        for name, witness in policy.witnesses.items()
        if witness.url is not None and witness.key.type == COSIGNATURE
    }
