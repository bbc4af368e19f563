"""Whether the answers were true: each OK reply by itself, then all of them against the ledger's file.

The ledger is read by plain SQL after the hub has ended, not by the code that wrote it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

from erxhub.client.failures import ReceiptInvalid
from erxhub.client.receipts import check_receipt
from erxhub.core import events
from erxhub.core.keys import prescription_key
from erxhub.ledger.entry import Header
from erxhub.ledger.sqlite import open_sqlite
from erxhub.ledger.verify import verify_ledger
from erxhub.v1 import common_pb2, prescribing_pb2

EFFECTIVE = events.BY_NAME["prescription.effective"].number
UPLOADED = events.BY_NAME["prescription.uploaded"].number


class AnswerWrong(Exception):
    """A reply or the ledger says something that did not happen."""


def check_reply(rx_no: str, raw: bytes, receipt_keys: Mapping[str, bytes]) -> None:
    """Raises AnswerWrong unless the reply says that this prescription is in force, with a receipt for its entries."""
    reply = prescribing_pb2.UploadPrescriptionResponse.FromString(raw)
    if reply.rx_no != rx_no or reply.statuses.rx != common_pb2.RX_STATUS_EFFECTIVE:
        raise AnswerWrong(f"the reply for {rx_no} is for {reply.rx_no!r}, status {reply.statuses.rx}")
    try:
        check_receipt(reply.receipt, receipt_keys)
    except ReceiptInvalid as error:
        raise AnswerWrong(f"the receipt for {rx_no}: {error}") from error
    if {entry.stream_key for entry in reply.receipt.entries} != {prescription_key(rx_no)}:
        raise AnswerWrong(f"the receipt for {rx_no} names other streams")


async def check_ledger(path: Path, accepted: Iterable[str], file_sha256: bytes) -> int:
    """Raises AnswerWrong unless exactly the accepted prescriptions are in force, with file, and everything verifies.

    Returns how many entries were verified.
    """
    expected = sorted(prescription_key(rx_no) for rx_no in accepted)
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        headers = [Header.decode(row[0]) for row in connection.execute("SELECT header FROM entry")]
        files = [
            row[0]
            for row in connection.execute(
                "SELECT s.key FROM blob b JOIN stream s ON s.no = b.stream WHERE b.digest = ? ORDER BY s.key",
                (file_sha256,),
            )
        ]
    for number, name in ((EFFECTIVE, "in force"), (UPLOADED, "uploaded")):
        found = sorted(header.stream_key for header in headers if header.type == number)
        if found != expected:
            raise AnswerWrong(f"{len(expected)} replies were OK, and {len(found)} prescriptions are {name}")
    if files != expected:
        raise AnswerWrong(f"{len(expected)} replies were OK, and {len(files)} files are kept")
    store = await open_sqlite(path, create=False)
    try:
        verification = await verify_ledger(store)
    finally:
        await store.close()
    if verification.findings:
        raise AnswerWrong(f"the ledger does not verify: {verification.findings[:5]}")
    if verification.entries != len(headers):
        raise AnswerWrong(f"{verification.entries} entries were verified, and the file has {len(headers)}")
    return verification.entries
