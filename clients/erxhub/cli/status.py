"""`erxhub status`: how a hub of this machine does, from its operator's port.

Must never: ask the hub for anything that a caller's certificate would be needed for.
"""

from __future__ import annotations

from typing import Any, Final

import click

from erxhub.cli.commands import command
from erxhub.cli.output import Output, output_option

_TIMEOUT_S: Final = 10.0


@command("status", example="erxhub status\nerxhub status --metrics 127.0.0.1:7480 -o json")
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    envvar="ERXHUB_METRICS",
    default="127.0.0.1:7480",
    show_default=True,
    help="Where the hub's --metrics listens; also from ERXHUB_METRICS.",
)
@output_option
def status(metrics: str, out: Output) -> None:
    """Health, version, store, log, queue, watches, holds, checkpoint, lease and commit times of a running hub.

    The hub has to be started with `erxhub serve --metrics HOST:PORT`. Exit code 1 when it does not take calls now, 6
    when nothing answers.
    """
    from erxhub.cli.exits import NEGATIVE

    told = _asked(metrics)
    out.object(told)
    if told.get("health") != "SERVING":
        raise click.exceptions.Exit(NEGATIVE)


def _asked(address: str) -> dict[str, Any]:
    import json
    from http.client import HTTPConnection, HTTPException

    from erxhub.cli.local_errors import Failed, failing_as
    from erxhub.operating import loopback

    with failing_as("CLI_ADDRESS_NOT_LOOPBACK", ValueError, field="--metrics", address=address):
        host, port = loopback(address)
    connection = HTTPConnection(host, port, timeout=_TIMEOUT_S)
    try:
        connection.request("GET", "/status")
        reply = connection.getresponse()
        body = reply.read()
    except (OSError, HTTPException) as error:
        details = str(error) or type(error).__name__
        raise Failed("CLI_OPERATOR_PORT_SILENT", field="--metrics", details=details, address=address) from None
    finally:
        connection.close()
    try:
        told = json.loads(body)
    except ValueError:
        told = None
    if reply.status != 200 or not isinstance(told, dict):
        raise Failed("CLI_OPERATOR_PORT_FAILED", field="--metrics", address=address, status=reply.status)
    return told
