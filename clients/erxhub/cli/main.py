"""The `erxhub` command: the table of its verbs.

Owns the names. Must never: import a verb before it is used; `erxhub --help` answers at once.
"""

from __future__ import annotations

import os
from typing import Final

import click

from erxhub.cli.commands import LazyGroup

VERBS: Final = {
    "demo": ("erxhub.cli.demo:demo", "One prescription from diagnosis to delivery, traced and verified."),
    "dev": ("erxhub.cli.dev:dev", "A sandbox in one process: a seeded hub to try things on."),
    "sandbox": ("erxhub.cli.sandbox:sandbox", "The sandbox of `dev`: namespaces, traffic, magic values, certificates."),
    "clock": ("erxhub.cli.clock:clock", "A sandbox's clock: show it, move it forward."),
    "fault": ("erxhub.cli.fault:fault", "What goes wrong in a sandbox, and when."),
    "trigger": ("erxhub.cli.trigger:trigger", "Make something happen in a sandbox: cancel, freeze, suspend, expire."),
    "snapshot": ("erxhub.cli.snapshot:snapshot", "States of a sandbox to come back to."),
    "reset": ("erxhub.cli.reset:reset", "A sandbox as it was when it was created."),
    "serve": ("erxhub.cli.serve:serve", "A hub for good: keys, certificates and a database of your own."),
    "status": ("erxhub.cli.status:status", "How a running hub of this machine does."),
    "db": ("erxhub.cli.db:db", "The ledger's database: migrate, check, backup, restore, scrub."),
    "ca": ("erxhub.cli.ca:ca", "The trust domain: certificates and signing keys."),
    "keys": ("erxhub.cli.keys:keys", "The hub's own keys."),
    "seed": ("erxhub.cli.seeding:seed", "Register the fictional world with a running hub."),
    "catalog": ("erxhub.cli.catalog:catalog", "Code lists: check, import, list."),
    "registry": ("erxhub.cli.registry:registry", "Institutions, practitioners, persons, signing keys."),
    "agreement": ("erxhub.cli.agreement:agreement", "Agreements with institutions."),
    "voucher": ("erxhub.cli.voucher:voucher", "The e-voucher: activate, issue, verify, revoke."),
    "encounter": ("erxhub.cli.encounter:encounter", "A visit, from registration to its end."),
    "rx": ("erxhub.cli.rx:rx", "Prescriptions, as a hospital."),
    "patient": ("erxhub.cli.patient:patient", "Prescriptions, as the patient's channel."),
    "pharmacy": ("erxhub.cli.pharmacy:pharmacy", "Prescriptions, as a pharmacy."),
    "delivery": ("erxhub.cli.delivery:delivery", "Deliveries, as a pharmacy."),
    "trace": ("erxhub.cli.trace:trace", "One prescription's whole chain, as an auditor."),
    "audit": ("erxhub.cli.audit:audit", "Bundles and proofs to take away, monitor, mirror, daily report."),
    "witness": ("erxhub.cli.witness:witness", "A witness of logs: cosigns their checkpoints while they only grow."),
    "proof": ("erxhub.cli.proof:proof", "Proofs, notes and maps of any log: check them line by line."),
    "conform": ("erxhub.cli.conform:conform", "Test a product or a hub against the published interface."),
    "errors": ("erxhub.cli.errors:errors", "Every refusal and every error of this command, explained."),
    "doctor": ("erxhub.cli.doctor:doctor", "Look for what is wrong on this machine."),
    "context": ("erxhub.cli.contexts:context", "Which hub to speak to, and as whom."),
}
"""Verb → (module:attribute, one line of help)."""


@click.group(cls=LazyGroup, verbs=VERBS, example="erxhub dev")
@click.version_option(package_name="erxhub", prog_name="erxhub")
@click.option(
    "--wait-for",
    type=click.Choice(("durable", "integrated", "witnessed")),
    default="durable",
    show_default=True,
    help="What the reply to a command waits for: the commit, a signed checkpoint, or the witnesses' signatures.",
)
@click.pass_context
def main(ctx: click.Context, wait_for: str) -> None:
    """A simulator of China's national e-prescription centre (医保电子处方中心): stateful, offline, provable.

    Data goes to stdout, messages to stderr. Exit codes: 0 ok, 1 negative verdict, 2 usage, 3 not found, 4 denied,
    5 conflict or precondition, 6 unavailable.
    """
    ctx.obj = wait_for
    # gRPC's own lines would stand between the messages, and between the JSON lines of a hub's log.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
