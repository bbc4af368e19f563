"""The hub's limits and settings, each with its reason. Policy (what the law or a region says) is not here but in packs.

Owns defaults and bounds. It reads no file and no environment; the composition root does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Final

KIB: Final = 1024

_DAY_MS: Final = 24 * 3_600_000
_INT32_MAX: Final = 2**31 - 1
_UPLOAD_BYTES: Final = (1024 + 256) * KIB
"""One prescription: a file of 1 MiB, three signed contents of 64 KiB, and their signatures (field rules)."""

_LEAST: Final[Mapping[str, int]] = MappingProxyType(
    {
        # Those that 0 switches off; each says what it does then.
        "queue_commands_max": 0,
        "queue_bytes_max": 0,
        "batch_linger_ms": 0,
        "slowed_reply_ms": 0,
        "checkpoint_interval_ms": 0,
        "drain_ms": 0,
        "drain_quiet_ms": 0,
        "start_verify_entries": 0,
        "message_bytes_max": _UPLOAD_BYTES,
        "reply_bytes_max": _UPLOAD_BYTES,
        "import_bytes_max": 64 * KIB,
        "clock_skew_ms": 1_000,
        "violation_bytes_max": 40,
    }
)
"""The least useful value of a number, where it is not 1."""

_MOST: Final[Mapping[str, int]] = MappingProxyType({"page_size_default": 200, "page_size_max": 200})
"""Where it is not a day for times, and what 32 bits hold for the others."""


@dataclass(frozen=True, slots=True)
class Config:
    """Settings of one hub process. Times in milliseconds, sizes in bytes.

    Raises ValueError, with setting, value and bound, for a number out of its bounds.
    """

    trust_domain: str = "erxhub.test"
    """Only certificates under spiffe://<trust domain> are callers."""

    origin: str = "erxhub.test/ledger"
    """The ledger's name in receipts and checkpoints; fixed when the ledger is opened first."""

    national_agencies: tuple[str, ...] = ()
    """Agencies that act for the whole ledger (catalogue imports, certificates of callers without an area), by their
    ids. Empty means every agency, as a sandbox has one."""

    hub_id: str = "hub-1"
    """This process among the hubs of the ledger."""

    message_bytes_max: int = 2 * 1024 * KIB
    """A prescription file is at most 1 MiB (field rule); the rest is room for the prescription and for imports."""

    reply_bytes_max: int = 64 * 1024 * KIB
    """A larger one is REPLY_TOO_LARGE. Nothing bounds a bundle: it carries the ledger's own stream, some 500 bytes a
    revocation, and 1.5 KB a drug trace code. So this is what a verifier and a client take (`BUNDLE_BYTES_MAX`)."""

    queue_commands_max: int = 4096
    """Commands waiting for the lane. At some 2,000 a second the last one waits two seconds, a caller's patience. 0
    turns every call away."""

    queue_bytes_max: int = 256 * 1024 * KIB
    """Bytes of waiting requests: what a small machine can spare. 0 turns every call away."""

    calls_pending_max: int = 16384
    """Calls that grpc may hold before our own admission sees them. Its default of about 1,000 makes calls CANCELLED."""

    batch_commands_max: int = 128
    """Commands in one commit: above it the commit's cost per command falls no further."""

    batch_linger_ms: int = 20
    """How long a batch waits for the callers that were here a moment ago. A caller who is alone never waits. 0: nobody
    does."""

    batch_linger_max_ms: int = 60
    """How long it goes on waiting for them while they keep coming: some 110 calls are admitted in this time. A commit
    beside calls that are being admitted costs more than one that has the machine to itself."""

    contended_ms: int = 5_000
    """How long a command is decided again whose write met another hub's; then the caller is asked to come again."""

    streams_per_peer_max: int = 16
    """Open watches and imports of one caller. An institution needs one or two."""

    watch_page: int = 200
    """Steps that a watch reads at once: bounds its memory, not its speed."""

    bulk_items_max: int = 128
    """Items of one bulk upload that are being decided; more are not read. One commit: to admit the next ones while it
    is written costs both of them more than it saves."""

    import_rows_max: int = 200_000
    """Rows of one catalogue import; the national drug list has some 200,000."""

    import_bytes_max: int = 128 * 1024 * KIB
    """Bytes of one catalogue import as they arrive; 200,000 drugs of some 300 bytes are half of it."""

    import_idle_ms: int = 60_000
    """How long an import may send nothing, before what it sent so far is dropped."""

    page_size_default: int = 50
    """Rows of a list when the caller names no number (AIP-158)."""

    page_size_max: int = 200
    """Rows of a list at most; the field rule says the same."""

    access_targets_max: int = 256
    """Targets of one access entry."""

    access_budget_per_minute: int = 6000
    """Access and refusal entries of one caller in a minute; above it one counting entry stands for the rest."""

    slowed_reply_ms: int = 250
    """How long the reply of a caller above its budget is kept back; 0: not at all."""

    sweep_interval_ms: int = 20_000
    """How often deadlines that nobody asked about are written down; the promise is 60 seconds."""

    sweep_streams_max: int = 200
    """Streams in one step of the sweep, so that it never holds the lane for long."""

    erases_after_retention: bool = False
    """Whether the sweep erases by itself what no retention class keeps any longer, on the legal basis of the pack."""

    erasure_entries_max: int = 5_000
    """Entries of the log that one step of that looks through: some 50 ms of CPU, every `sweep_interval_ms`."""

    stream_check_interval_ms: int = 10_000
    """How often an open stream looks whether its certificate was revoked; the promise is 30 seconds."""

    revoked_report_interval_ms: int = 3_600_000
    """A revoked certificate's attempts are recorded once in this time; the rest are counted only."""

    checkpoint_interval_ms: int = 1_000
    """How often a checkpoint of the log is made while there are new entries; 0 makes them only when somebody asks."""

    checkpoint_leaves_max: int = 512
    """Entries in one step of the log: some 20 ms of hashing beside the calls, and 10 ms of the writer."""

    max_merge_delay_ms: int = 60_000
    """The promise in receipts: entries are in the public log within this time."""

    witness_timeout_ms: int = 3_000
    """How long a witness may take to answer, and a bundle waits for cosignatures before it goes out unwitnessed."""

    clock_skew_ms: int = 300_000
    """How far the clock that a caller sends with a call may differ from the hub's; more is TIME_SKEW."""

    retry_after_ms: int = 1_000
    """The delay in RetryInfo when the hub is at a limit or cannot reach its store."""

    drain_ms: int = 10_000
    """How long calls in flight may take after SIGTERM; 0 cuts them at once."""

    drain_quiet_ms: int = 100
    """After SIGTERM the server closes when no call has come for this long: those on their way still get an answer.
    0: it does not wait for any."""

    start_verify_entries: int = 2_000
    """Newest entries that are verified at a start, besides the database's own integrity check; 0: only
    those after the newest checkpoint."""

    violations_max: int = 16
    """Field violations in one refusal; a gRPC client loses trailers above 8 KiB."""

    violation_bytes_max: int = 120
    """Bytes of one field violation's text."""

    reflection: bool = True
    """Whether the server describes its services."""

    def __post_init__(self) -> None:
        for field in fields(self):
            # Not isinstance: a bool is an int too.
            if type(field.default) is int:
                _check(field.name, getattr(self, field.name))
        if self.page_size_default > self.page_size_max:
            most = f"page_size_max, which is {self.page_size_max}"
            raise ValueError(f"page_size_default={self.page_size_default}: the value is at most {most}")


def _check(name: str, value: int) -> None:
    least, most = _LEAST.get(name, 1), _MOST.get(name, _DAY_MS if name.endswith("_ms") else _INT32_MAX)
    if not least <= value <= most:
        raise ValueError(f"{name}={value}: the value is from {least} to {most}")
