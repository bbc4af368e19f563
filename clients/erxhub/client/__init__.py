"""Typed asynchronous clients of a hub, one for each kind of caller. See docs/clients.md.

Owns: what users of the library import. Must never: be imported by the hub.
"""

from erxhub.client.agency import AgencyClient
from erxhub.client.auditor import AuditorClient
from erxhub.client.connection import ClientIdentity, Connection, RetryPolicy
from erxhub.client.downloads import CheckedDownload, DownloadInvalid, check_download
from erxhub.client.environment import Environment, SandboxEnvironment, SystemEnvironment
from erxhub.client.failures import (
    CallFailed,
    ClientFailure,
    HubUnreachable,
    ReceiptInvalid,
    Refusal,
    Violation,
)
from erxhub.client.fault_rules import fault_rule
from erxhub.client.hospital import HospitalClient
from erxhub.client.mirror import MirrorClient
from erxhub.client.patient import PatientClient
from erxhub.client.pharmacy import PharmacyClient
from erxhub.client.receipts import check_receipt
from erxhub.client.request_ids import NationalRequestIds, RandomRequestIds, RequestIds
from erxhub.client.sandbox import SandboxClient
from erxhub.client.signing import payload_type, sign, sign_bytes

__all__ = [
    "AgencyClient",
    "AuditorClient",
    "CallFailed",
    "CheckedDownload",
    "ClientFailure",
    "ClientIdentity",
    "Connection",
    "DownloadInvalid",
    "Environment",
    "HospitalClient",
    "HubUnreachable",
    "MirrorClient",
    "NationalRequestIds",
    "PatientClient",
    "PharmacyClient",
    "RandomRequestIds",
    "ReceiptInvalid",
    "Refusal",
    "RequestIds",
    "RetryPolicy",
    "SandboxClient",
    "SandboxEnvironment",
    "SystemEnvironment",
    "Violation",
    "check_download",
    "check_receipt",
    "fault_rule",
    "payload_type",
    "sign",
    "sign_bytes",
]
