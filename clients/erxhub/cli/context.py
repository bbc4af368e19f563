"""Contexts: which hub a command speaks to, as whom, and with which keys.

Owns `contexts.json` in the folder of ERXHUB_HOME (default ~/.erxhub). It holds paths of keys and never a key itself.
Paths inside the folder are kept relative to it, so that the folder can be moved.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from erxhub.cli.local_errors import Failed, unusable

if TYPE_CHECKING:
    from erxhub.client import ClientIdentity
    from erxhub.crypto.suites import SigningKey

HOME_VARIABLE: Final = "ERXHUB_HOME"
CONTEXT_VARIABLE: Final = "ERXHUB_CONTEXT"
FILE_NAME: Final = "contexts.json"
_FORMAT: Final = 1


def home() -> Path:
    """The folder of this user's contexts."""
    return Path(os.environ.get(HOME_VARIABLE) or Path.home() / ".erxhub")


@dataclass(frozen=True, slots=True)
class Context:
    """One way to speak to a hub.

    `role` and `id` are those of the certificate. `receipt_keys` maps a key id to a raw Ed25519 key in hexadecimal, and
    `signing_keys` a signer's code to the path of its private key (PEM). Of a hub in a sandbox, `sandbox` names the
    context of the sandbox's operator and `namespace` the namespace, so that a command can take the time from there.
    """

    name: str
    target: str
    role: str
    id: str
    ca: Path
    cert: Path
    key: Path
    server_name: str = ""
    receipt_keys: Mapping[str, str] = field(default_factory=dict)
    signing_keys: Mapping[str, Path] = field(default_factory=dict)
    case_reason: str = ""
    sandbox: str = ""
    namespace: str = ""

    def identity(self) -> ClientIdentity:
        """Certificate, key and authority. Raises Failed naming the file that cannot be read."""
        from erxhub.client import ClientIdentity

        try:
            return ClientIdentity.from_files(ca=self.ca, cert=self.cert, key=self.key)
        except OSError as error:
            raise unusable(error, field=f"--context {self.name}") from None

    def signing_key(self, subject_code: str) -> SigningKey:
        """The private key of a person or an institution. Raises Failed when there is none, or it is unreadable."""
        from erxhub.crypto.suites import SigningKey

        path = self.signing_keys.get(subject_code)
        if path is None:
            known = ", ".join(sorted(self.signing_keys)) or "-"
            raise Failed(
                "CLI_CONTEXT_NO_SIGNING_KEY", field="--signing-key", name=self.name, subject=subject_code, known=known
            )
        try:
            return SigningKey.from_pem(path.read_bytes())
        except OSError as error:
            raise unusable(error, path, field=f"--signing-key {subject_code}") from None
        except ValueError:
            raise Failed("CLI_FILE_NO_PRIVATE_KEY", field=f"--signing-key {subject_code}", path=path) from None

    def receipt_key_bytes(self) -> dict[str, bytes]:
        """The pinned receipt keys as the client library takes them."""
        return {key_id: bytes.fromhex(key) for key_id, key in self.receipt_keys.items()}


class Contexts:
    """The contexts of one folder, and which of them is the current one ("" for none)."""

    def __init__(self, folder: Path, by_name: Mapping[str, Context], current: str) -> None:
        self.folder = folder
        self.by_name = dict(by_name)
        self.current = current

    @classmethod
    def load(cls, folder: Path | None = None) -> Self:
        """The folder's contexts; none when it has no file. Raises Failed for a file that cannot be read."""
        folder = folder or home()
        path = folder / FILE_NAME
        try:
            content = json.loads(path.read_bytes())
            if content["format"] != _FORMAT:
                raise Failed("CLI_CONTEXT_FORMAT", field=HOME_VARIABLE, path=path)
            contexts = [_context(folder, name, row) for name, row in content["contexts"].items()]
            return cls(folder, {context.name: context for context in contexts}, str(content["current"]))
        except FileNotFoundError:
            return cls(folder, {}, "")
        except OSError as error:
            raise unusable(error, path, field=HOME_VARIABLE) from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Failed("CLI_CONTEXT_FORMAT", field=HOME_VARIABLE, details=repr(error), path=path) from None

    def save(self) -> None:
        """Writes the file whole or not at all, for the owner's eyes only."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        content = {
            "format": _FORMAT,
            "current": self.current,
            "contexts": {name: _row(self.folder, context) for name, context in sorted(self.by_name.items())},
        }
        unfinished = self.folder / f".{FILE_NAME}.{os.getpid()}"
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(content, file, ensure_ascii=False, indent=1)
            file.write("\n")
        unfinished.replace(self.folder / FILE_NAME)

    def pick(self, name: str | None, roles: tuple[str, ...]) -> Context:
        """The context for a command of these roles.

        The named one, which must fit; otherwise the current one if it fits, then the one named like a role, then the
        only one of such a role. Raises Failed.
        """
        if name:
            if name not in self.by_name:
                known = ", ".join(self.by_name) or "-"
                raise Failed("CLI_CONTEXT_UNKNOWN", field="--context", name=name, folder=self.folder, known=known)
            owner = self.by_name[name].role
            if owner not in roles:
                raise Failed("CLI_CONTEXT_ROLE", field="--context", name=name, role=owner, roles=", ".join(roles))
            return self.by_name[name]
        for candidate in (self.current, *roles):
            found = self.by_name.get(candidate)
            if found is not None and found.role in roles:
                return found
        fitting = [context for context in self.by_name.values() if context.role in roles]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            names = ", ".join(context.name for context in fitting)
            raise Failed("CLI_CONTEXT_AMBIGUOUS", field="--context", names=names)
        raise Failed("CLI_CONTEXT_MISSING", field="--context", roles=", ".join(roles), folder=self.folder)


def _context(folder: Path, name: str, row: Mapping[str, Any]) -> Context:
    return Context(
        name=name,
        target=str(row["target"]),
        role=str(row["role"]),
        id=str(row["id"]),
        # An absolute path stands for itself.
        ca=folder / row["ca"],
        cert=folder / row["cert"],
        key=folder / row["key"],
        server_name=str(row.get("server_name", "")),
        receipt_keys={str(key_id): bytes.fromhex(key).hex() for key_id, key in row.get("receipt_keys", {}).items()},
        signing_keys={str(code): folder / path for code, path in row.get("signing_keys", {}).items()},
        case_reason=str(row.get("case_reason", "")),
        sandbox=str(row.get("sandbox", "")),
        namespace=str(row.get("namespace", "")),
    )


def _row(folder: Path, context: Context) -> dict[str, Any]:
    return {
        "target": context.target,
        "role": context.role,
        "id": context.id,
        "ca": _kept(folder, context.ca),
        "cert": _kept(folder, context.cert),
        "key": _kept(folder, context.key),
        "server_name": context.server_name,
        "receipt_keys": dict(context.receipt_keys),
        "signing_keys": {code: _kept(folder, path) for code, path in context.signing_keys.items()},
        "case_reason": context.case_reason,
        "sandbox": context.sandbox,
        "namespace": context.namespace,
    }


def _kept(folder: Path, path: Path) -> str:
    inside, outside = path.resolve(), folder.resolve()
    return str(inside.relative_to(outside)) if inside.is_relative_to(outside) else str(inside)
