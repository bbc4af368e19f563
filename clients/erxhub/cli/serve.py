"""`erxhub serve`: a hub with keys, certificates and a database of its operator.

Must never: make a key, a certificate or anybody's registration; `erxhub ca`, `keys` and `registry` do.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from erxhub.cli.commands import command
from erxhub.cli.stores import database_option

if TYPE_CHECKING:
    from erxhub.app import Hub
    from erxhub.config import Config
    from erxhub.keys import HubKeys
    from erxhub.proof.policy import Policy
    from erxhub.rpc.meter import RpcMeter
    from erxhub.rpc.server import IdentityFiles
    from erxhub.tracing import Tracing

_File = click.Path(path_type=Path, dir_okay=False, exists=True)


@command(
    "serve",
    example="erxhub serve --db hub.db --keys keys --cert pki/tls/hub/hub-1/cert.pem --key pki/tls/hub/hub-1/key.pem "
    "--ca pki/ca.pem --address 0.0.0.0:7443 --trust-domain example.org",
)
@database_option
@click.option(
    "--keys",
    "keys_folder",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="The hub's own keys, as `erxhub keys init` makes them.",
)
@click.option("--cert", required=True, type=_File, help="The server's certificate (PEM).")
@click.option("--key", required=True, type=_File, help="Its private key (PEM).")
@click.option("--ca", required=True, type=_File, help="The authority whose certificates are callers (PEM).")
@click.option("--address", default="127.0.0.1:7443", show_default=True, metavar="HOST:PORT")
@click.option("--trust-domain", required=True, metavar="NAME", help="Callers are spiffe://NAME/<role>/<id>.")
@click.option("--hub-id", default="hub-1", show_default=True, metavar="ID", help="This process among the hubs.")
@click.option("--origin", metavar="NAME", help="The ledger's name in receipts; by default <trust domain>/ledger.")
@click.option(
    "--metrics",
    metavar="HOST:PORT",
    help="Prometheus metrics and `erxhub status`, over HTTP on a loopback address; off by default.",
)
@click.option(
    "--traces",
    metavar="URL",
    help="OpenTelemetry traces to this collector (OTLP over HTTP), e.g. http://127.0.0.1:4318/v1/traces; needs the "
    "extra erxhub[otel].",
)
@click.option(
    "--high-water",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file that says what was published last, so that an older database is noticed; not in the database's "
    "folder. By default high-water.json in the folder of --keys.",
)
@click.option(
    "--witness-policy",
    type=_File,
    help="A policy file: the witnesses that checkpoints are shown to, and how many of them make one witnessed.",
)
@click.option("--config", "settings", multiple=True, metavar="KEY=VALUE", help="A setting of the hub; repeatable.")
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"]),
    default="INFO",
    show_default=True,
)
@click.option(
    "--ready-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help='Written when the hub takes calls: {"target": …, "pid": …}, with --metrics also where that listens.',
)
def serve(
    db: str,
    keys_folder: Path,
    cert: Path,
    key: Path,
    ca: Path,
    address: str,
    trust_domain: str,
    hub_id: str,
    origin: str | None,
    metrics: str | None,
    traces: str | None,
    high_water: Path | None,
    witness_policy: Path | None,
    settings: tuple[str, ...],
    log_level: str,
    ready_file: Path | None,
) -> None:
    """Run a hub until SIGTERM, which lets calls in flight end.

    Logs are JSON lines on stderr and hold no personal data. Certificate files that change are read again by themselves,
    at the next handshake.
    """
    from erxhub import process

    process.settle_transport()  # before anything below loads gRPC

    from erxhub.cli.hosting import configured, log_to_stderr
    from erxhub.cli.local_errors import Failed, failing_as
    from erxhub.config import Config
    from erxhub.crypto.certs import holds_certificates
    from erxhub.high_water import FILE_NAME
    from erxhub.keys import HubKeys, HubKeysError
    from erxhub.rpc.server import IdentityFiles

    log_to_stderr(log_level)
    with failing_as("CLI_HUB_KEYS", HubKeysError, field="--keys", path=keys_folder):
        keys = HubKeys.load(keys_folder)
    with failing_as("CLI_SERVER_CERTIFICATE", ValueError, field="--cert, --key, --ca"):
        identity = IdentityFiles(cert, key, ca)
    if not holds_certificates(ca.read_bytes()):
        raise Failed("CLI_FILE_NO_CERTIFICATE", field="--ca", path=ca)
    config = Config(trust_domain=trust_domain, hub_id=hub_id, origin=origin or f"{trust_domain}/ledger")
    if metrics is not None:
        _check_loopback(metrics)
    config = configured(config, settings)
    witnesses = _witnesses(witness_policy) if witness_policy is not None else None
    tracing = _traced(traces, config) if traces is not None else None
    mark = high_water or keys_folder / FILE_NAME
    process.run(_serve(db, keys, identity, address, config, metrics, tracing, ready_file, mark, witnesses))


async def _serve(
    db: str,
    keys: HubKeys,
    identity: IdentityFiles,
    address: str,
    config: Config,
    metrics: str | None,
    tracing: Tracing | None,
    ready_file: Path | None,
    high_water: Path,
    witnesses: Policy | None,
) -> None:
    import os

    from erxhub.cli.hosting import started, stop_signal, until_stopped, write_ready
    from erxhub.cli.stores import open_store
    from erxhub.rpc.meter import RpcMeter
    from erxhub.rpc.methods import METHODS

    stopping = stop_signal()
    meter = RpcMeter(METHODS) if metrics is not None else None
    layers = [meter.metered] if meter is not None else []
    layers += [tracing.traced] if tracing is not None else []
    hub = await started(await open_store(db), identity, keys, address, config, layers, high_water, witnesses)
    facts: dict[str, object] = {"target": f"{address.rpartition(':')[0]}:{hub.port}", "pid": os.getpid()}
    async with AsyncExitStack() as stack:
        if tracing is not None:
            stack.push_async_callback(tracing.close)
        if metrics is not None and meter is not None:
            facts["metrics"] = await _operated(hub, meter, config, metrics, stack)
        write_ready(ready_file, **facts)
        await until_stopped(hub, stopping)


def _witnesses(path: Path) -> Policy:
    from erxhub.cli.local_errors import Failed, unusable
    from erxhub.proof.merkle import ProofInvalid
    from erxhub.proof.policy import read_policy
    from erxhub.witnessing import PolicyUnusable, check_policy

    try:
        policy = read_policy(path.read_bytes())
        check_policy(policy)
    except OSError as error:
        raise unusable(error, path, field="--witness-policy") from None
    except ProofInvalid as error:
        details = f"{error.reason}: {error}"
        raise Failed("CLI_POLICY", field="--witness-policy", details=details, path=path) from None
    except PolicyUnusable as error:
        raise Failed("CLI_POLICY", field="--witness-policy", details=str(error), path=path) from None
    return policy


def _traced(endpoint: str, config: Config) -> Tracing:
    from erxhub.cli.local_errors import Failed
    from erxhub.tracing import TracingMissing, otlp_tracing

    try:
        return otlp_tracing(endpoint, config.hub_id)
    except TracingMissing:
        raise Failed("CLI_EXTRA_MISSING", field="--traces", extra="otel") from None


def _check_loopback(address: str) -> None:
    from erxhub.cli.local_errors import failing_as
    from erxhub.operating import loopback

    with failing_as("CLI_ADDRESS_NOT_LOOPBACK", ValueError, field="--metrics", address=address):
        loopback(address)


async def _operated(hub: Hub, meter: RpcMeter, config: Config, address: str, stack: AsyncExitStack) -> str:
    """Open the operator's port until the stack is closed; where it listens."""
    from erxhub.cli.local_errors import Failed
    from erxhub.operating import Operations, OperatorPort

    port = OperatorPort(Operations(hub, meter, hub_id=config.hub_id))
    try:
        bound = await port.start(address)
    except OSError as error:
        await hub.stop()
        raise Failed("CLI_ADDRESS_TAKEN", field="--metrics", details=str(error), address=address) from None
    stack.push_async_callback(port.stop)
    return f"{address.rpartition(':')[0]}:{bound}"
