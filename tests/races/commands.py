"""One command of each kind, made up to the moment before it is sent, so that a test decides how and how often it goes.

Must never: send the command itself.
"""

from __future__ import annotations

from typing import Any

from tests.chain import DOWNLOAD, PURCHASE, Chain
from tests.live import PERSON, Live


async def first_request(live: Live, kind: str) -> tuple[Any, Any]:
    """(client, message) of a command that was not sent yet: caught on its way out."""
    chain = Chain(live)
    hospital, pharmacy, channel = await live.hospital(), await live.pharmacy(), await live.channel()
    if kind == "issue":
        client, call = channel, lambda: channel.issue_voucher(person_no=PERSON, business_type=DOWNLOAD)
    elif kind == "verify":
        code = await chain.code(DOWNLOAD)
        client, call = pharmacy, lambda: pharmacy.verify_voucher(voucher_code=code, business_type=DOWNLOAD)
    elif kind == "list":
        await chain.uploaded()
        reference = await chain.reference(DOWNLOAD)
        client, call = pharmacy, lambda: pharmacy.list_by_voucher(voucher_ref=reference)
    elif kind == "precheck":
        await chain.diagnosed()
        client, call = hospital, lambda: hospital.precheck(prescription=chain.prescription)
    elif kind == "upload":
        await chain.prechecked()
        client, call = hospital, lambda: hospital.upload(**chain.upload_arguments())
    elif kind == "qr":
        await chain.uploaded()
        client, call = channel, lambda: channel.make_qr(person_no=PERSON, rx_no=chain.rx_no)
    elif kind == "download":
        await (await chain.uploaded()).listed()
        client, call = pharmacy, lambda: pharmacy.download(authorization_no=chain.authorization_no)
    elif kind == "settle":
        await chain.quoted()
        reference = await chain.reference(PURCHASE)
        client, call = pharmacy, lambda: chain.settle(voucher_ref=reference)
    elif kind == "delivery":
        await chain.settled()
        client, call = channel, chain.delivery_requested
    else:
        await chain.settled()
        client, call = pharmacy, lambda: pharmacy.dispense(**chain.dispense_arguments())
    return client, await _caught(client, call)


class _Caught(Exception):
    pass


async def _caught(client: Any, call: Any) -> Any:
    connection = client.connection
    plain = connection.unary
    caught = []

    async def catch(method: Any, request: Any, timeout_s: float | None = None) -> Any:
        caught.append(request)
        raise _Caught

    connection.unary = catch
    try:
        await call()
    except _Caught:
        return caught[-1]
    finally:
        connection.unary = plain
    raise AssertionError("the call sent nothing")
