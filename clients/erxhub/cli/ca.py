"""`erxhub ca`: the trust domain of a test or a demonstration.

Owns the words. The authority and its files belong to `erxhub.crypto.ca`; a hub learns of a revocation from an agency.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from erxhub.cli.commands import group
from erxhub.cli.output import Output, output_option
from erxhub.cli.session import request_id_option

if TYPE_CHECKING:
    from erxhub.crypto.ca import Issued, TrustDomain

_Function = TypeVar("_Function", bound=Callable[..., Any])
REASONS: Final = (
    "unspecified",
    "keyCompromise",
    "cACompromise",
    "affiliationChanged",
    "superseded",
    "cessationOfOperation",
    "privilegeWithdrawn",
    "aACompromise",
)
_COLUMNS: Final = ("kind", "subject", "institution_code", "suite", "serial", "key_id", "valid_until", "revoked")


@group("ca", example="erxhub ca init --trust-domain example.org\nerxhub ca issue hospital/H33010099901")
def ca() -> None:
    """The trust domain: an authority, TLS certificates, signing keys, revocations.

    TLS keys and signing keys are different keys. A real deployment brings certificates of its own authority; the hub
    needs only the authority's certificate and the URI names spiffe://<trust domain>/<role>/<id>.
    """


def _pki_option(function: _Function) -> _Function:
    return click.option(
        "--pki",
        type=click.Path(path_type=Path, file_okay=False),
        help="The trust domain's folder. Default: pki in ERXHUB_HOME.",
        callback=lambda _context, _parameter, value: value or _default_folder(),
    )(function)


def _default_folder() -> Path:
    from erxhub.cli.context import home

    return home() / "pki"


def _opened(pki: Path) -> TrustDomain:
    from erxhub.cli.local_errors import failing_as
    from erxhub.crypto.ca import TrustDomain, TrustDomainError

    with failing_as("CLI_TRUST_DOMAIN", TrustDomainError, field="--pki", path=pki):
        return TrustDomain.open(pki)


@ca.command("init", example="erxhub ca init --trust-domain example.org --pki pki")
@click.option("--trust-domain", default="erxhub.test", show_default=True, metavar="NAME")
@_pki_option
@output_option
def init(trust_domain: str, pki: Path, out: Output) -> None:
    """Make an authority in an empty folder."""
    from erxhub.cli.local_errors import failing_as
    from erxhub.crypto.ca import TrustDomain, TrustDomainError
    from erxhub.ports import SystemClock

    with failing_as("CLI_TRUST_DOMAIN_NOT_MADE", TrustDomainError, field="--pki", path=pki, name=trust_domain):
        TrustDomain.init(pki, trust_domain, SystemClock().now_ms())
    out.object(
        {"trust_domain": trust_domain, "folder": str(pki), "ca": str(pki / "ca.pem"), "crl": str(pki / "crl.pem")}
    )


@ca.command(
    "issue",
    example="erxhub ca issue hospital/H33010099901 --pki pki\n"
    "erxhub ca issue hub/hub-1 --host hub.example.org --host 10.0.0.5 --pki pki\n"
    "erxhub ca issue D330100990001 --signing --institution H33010099901 --suite SM2-SM3 --pki pki",
)
@click.argument("subject")
@click.option("--signing", is_flag=True, help="A signing key for a person, or for an institution's seal.")
@click.option("--institution", metavar="CODE", help="With --signing: where the person signs. Default: the subject.")
@click.option(
    "--suite",
    type=click.Choice(["ES256", "EdDSA", "SM2-SM3"]),
    default="ES256",
    show_default=True,
    help="With --signing: of the key.",
)
@click.option("--host", "hosts", multiple=True, metavar="NAME", help="A server's host name or address; repeatable.")
@click.option("--days", type=click.IntRange(1, 825), default=365, show_default=True)
@_pki_option
@output_option
def issue(
    subject: str,
    signing: bool,
    institution: str | None,
    suite: str,
    hosts: tuple[str, ...],
    days: int,
    pki: Path,
    out: Output,
) -> None:
    """Issue a TLS certificate for SUBJECT, written role/id, or with --signing a signing key for its code.

    Roles: hospital, pharmacy, channel, agency, auditor, supervisor, mirror, hub, witness, sandbox.
    """
    from erxhub.cli.local_errors import Failed, failing_as
    from erxhub.crypto.ca import TrustDomainError
    from erxhub.ports import SystemClock

    now_ms = SystemClock().now_ms()
    trust = _opened(pki)
    with failing_as("CLI_CERTIFICATE_REFUSED", TrustDomainError, field="SUBJECT", subject=subject):
        if signing:
            if hosts:
                raise Failed("CLI_OPTION_ALONE", field="--host", options="--host", other="--signing")
            trust.issue_signing(subject, institution or subject, suite, now_ms, days)
        else:
            role, separator, peer_id = subject.partition("/")
            if not separator or institution:
                form = "ROLE/ID (hospital/H33010099901)"
                raise Failed("CLI_VALUE_FORM", field="SUBJECT", value=subject, form=form)
            trust.issue_tls(role, peer_id, now_ms, days, hosts)
        issued = trust.list()[-1]
    out.object(_row(issued) | {"folder": str(pki / issued.path)})


@ca.command("list", example="erxhub ca list --pki pki -o json")
@_pki_option
@output_option
def list_(pki: Path, out: Output) -> None:
    """Everything that was issued, oldest first, revoked or not."""
    out.rows([_row(issued) for issued in _opened(pki).list()], _COLUMNS)


@ca.command(
    "revoke",
    example="erxhub ca revoke 4f9c… --reason keyCompromise --context agency --pki pki",
)
@click.argument("identifier")
@click.option("--reason", type=click.Choice(REASONS), default="unspecified", show_default=True)
@click.option("--context", "context_name", metavar="NAME", help="Tell the hub too, as this context's agency.")
@request_id_option
@_pki_option
@output_option
def revoke(
    identifier: str, reason: str, context_name: str | None, request_id: str | None, pki: Path, out: Output
) -> None:
    """Revoke a certificate or signing key by its serial, fingerprint or key id.

    The revocation list (crl.pem) is written. The hub reads no such list: with --context it is told, and from then on
    it refuses the certificate, or signatures of the key that claim a later time.
    """
    from erxhub.cli.local_errors import failing_as
    from erxhub.cli.session import run
    from erxhub.crypto.ca import TrustDomainError
    from erxhub.ports import SystemClock

    known = functools.partial(
        failing_as, "CLI_CERTIFICATE_UNKNOWN", TrustDomainError, field="IDENTIFIER", identifier=identifier
    )
    trust = _opened(pki)
    with known():
        issued = trust.revoke(identifier, reason, SystemClock().now_ms())
    row = _row(issued) | {"crl": str(pki / "crl.pem"), "hub_told": False}
    if context_name is None:
        out.say("the hub was not told; name an agency's context with --context")
        out.object(row)
        return

    async def tell(client: Any, _ctx: Any, out: Output) -> None:
        if issued.kind == "signing":
            await client.revoke_certificate(reason=reason, key_id=issued.key_id, request_id=request_id)
        else:
            with known():
                certificate = trust.certificate_pem(issued)
            await client.revoke_certificate(reason=reason, certificate_pem=certificate, request_id=request_id)
        out.object(row | {"hub_told": True})

    run(context_name, "agency", tell, out)


def _row(issued: Issued) -> dict[str, Any]:
    from erxhub.crypto.certs import iso_time

    return {
        "kind": issued.kind,
        "subject": issued.subject,
        "institution_code": issued.institution_code,
        "suite": issued.suite,
        "serial": issued.serial,
        "fingerprint": issued.fingerprint,
        "key_id": issued.key_id,
        "valid_from": iso_time(issued.not_before_ms),
        "valid_until": iso_time(issued.not_after_ms),
        "revoked": None if issued.revoked_at_ms is None else f"{iso_time(issued.revoked_at_ms)} {issued.reason}",
    }
