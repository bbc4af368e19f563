"""Reading the argument of `configure`, the same for every reference driver.

Owns: the names of its fields. Must never: connect.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from erxhub.client import ClientIdentity
from erxhub.conform.drivers.product import Configuration
from erxhub.crypto.suites import SigningKey
from erxhub.v1 import registry_pb2


def configuration(arguments: Mapping[str, Any]) -> Configuration:
    """Raises KeyError for what is missing, OSError for a file that cannot be read."""
    keys = arguments.get("receipt_keys") or {}
    return Configuration(
        target=arguments["target"],
        identity=ClientIdentity.from_files(
            ca=arguments["ca_pem_path"], cert=arguments["cert_pem_path"], key=arguments["key_pem_path"]
        ),
        institution_code=arguments["institution_code"],
        state_dir=Path(arguments["state_dir"]),
        server_name=arguments.get("server_name") or None,
        receipt_keys={key_id: bytes.fromhex(key) for key_id, key in keys.items()} or None,
        timeout_ms=int(arguments.get("timeout_ms") or 5_000),
        wait_scale=float(arguments.get("wait_scale") or 1.0),
    )


def signing_keys(arguments: Mapping[str, Any]) -> dict[str, SigningKey]:
    """Private keys by the code of whom they belong to."""
    return {
        subject: SigningKey.from_pem(Path(held["pem_path"]).read_bytes())
        for subject, held in arguments["signing_keys"].items()
    }


def trusted_signers(arguments: Mapping[str, Any]) -> list[registry_pb2.SigningKeyRecord]:
    """The public keys of hospitals and their staff, as an agency registers them."""
    return [
        registry_pb2.SigningKeyRecord(
            key_id=one["key_id"],
            subject_code=one["subject_code"],
            institution_code=one["institution_code"],
            suite=one["suite"],
            public_key=bytes.fromhex(one["public_key"]),
            valid_from_ms=int(one["valid_from_ms"]),
            valid_until_ms=int(one["valid_until_ms"]),
        )
        for one in arguments.get("trusted_signers") or ()
    ]
