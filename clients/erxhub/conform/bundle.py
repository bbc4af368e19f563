"""The bundle of a run: its files, a manifest with their digests, and a signature over the manifest.

Owns: the names of the files and what `verify` holds them to. Must never: trust a name or a size that a manifest gives,
or take the key in a manifest for proof of who signed; it proves that nothing was altered since.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from google.protobuf import json_format

from erxhub.conform.badge import badge_svg
from erxhub.conform.coverage import coverage_csv
from erxhub.conform.junit import junit_xml
from erxhub.conform.model import Text
from erxhub.conform.report_html import report_html
from erxhub.conform.result import RunResult
from erxhub.crypto.suites import SUITES, KeyFormatError, SigningKey

FORMAT: Final = 1
SUITE: Final = "EdDSA"
MANIFEST: Final = "manifest.json"
SIGNATURE: Final = "manifest.sig"
SIGNED_PREFIX: Final = b"erxhub conform bundle v1\n"
"""Before the manifest's bytes, so that the signature means nothing else."""
FILES: Final = ("results.json", "junit.xml", "report.html", "badge.svg", "coverage.csv", "traffic.ndjson")
FILE_BYTES_MAX: Final = 512 * 1024 * 1024
_MANIFEST_BYTES_MAX: Final = 16 * 1024 * 1024


class BundleProblem(NamedTuple):
    """One thing that is wrong with a bundle."""

    file: str
    code: str
    text: Text

    def __str__(self) -> str:
        return f"{self.file}: {self.code}: {self.text.en} {self.text.zh}"


def maker_key(path: Path) -> SigningKey:
    """The key of whoever makes bundles: the one in the file (Ed25519, PEM), or a new one that is put there for its
    owner alone. Raises OSError, KeyFormatError.
    """
    if path.exists():
        kept = SigningKey.from_pem(path.read_bytes())
        if kept.suite.name != SUITE:
            raise KeyFormatError(f"a bundle is signed with {SUITE}, and this key is {kept.suite.name}")
        return kept
    key = SigningKey.generate(SUITE)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(key.to_pem())
    return key


def named_key(folder: Path) -> str:
    """The public key that a bundle names as its maker's, hexadecimal; read it once `verify_bundle` found nothing."""
    manifest = json.loads((folder / MANIFEST).read_bytes())
    return str(manifest["public_key"]["key"])


def write_bundle(run: RunResult, folder: Path, key: SigningKey | None = None) -> None:
    """Writes every file of a run into a folder, over an earlier bundle there. Raises OSError."""
    key = key or SigningKey.generate(SUITE)
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "results.json": _json(run.record()),
        "junit.xml": junit_xml(run),
        "report.html": report_html(run).encode(),
        "badge.svg": badge_svg(run).encode(),
        "coverage.csv": coverage_csv(run).encode(),
        "traffic.ndjson": b"".join(_traffic(run)),
    }
    manifest = _json(_manifest(run, contents, key))
    for name, data in contents.items():
        (folder / name).write_bytes(data)
    (folder / MANIFEST).write_bytes(manifest)
    (folder / SIGNATURE).write_text(key.sign(SIGNED_PREFIX + manifest).hex() + "\n", encoding="ascii")


def _manifest(run: RunResult, contents: Mapping[str, bytes], key: SigningKey) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "suite_version": run.suite_version,
        "role": run.role,
        "profile": run.profile,
        "seed": run.seed,
        "start_at_ms": run.start_at_ms,
        "under_test": dict(run.under_test),
        "command": run.command,
        "made_at_ms": run.began_at_ms + run.took_ms,
        "cases": {one.key: one.case.get("digest", "") for one in run.results},
        "faults": {one.key: list(one.faults) for one in run.results if one.faults},
        "files": {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in contents.items()
        },
        "public_key": {"suite": SUITE, "key_id": key.key_id, "key": key.public_key.hex()},
    }


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n"


def _traffic(run: RunResult) -> Iterator[bytes]:
    for result in run.results:
        for exchange in result.traffic:
            told = json_format.MessageToDict(exchange, preserving_proto_field_name=True)
            yield json.dumps({"case": result.key, **told}, ensure_ascii=False).encode() + b"\n"


def verify_bundle(folder: Path, pinned_key: bytes | None = None) -> list[BundleProblem]:
    """What is wrong with a bundle; nothing when it is as it was signed.

    Args:
        folder: the bundle.
        pinned_key: the raw Ed25519 key that must have signed; None: the one that the manifest names.
    """
    manifest_bytes = _read(folder / MANIFEST, _MANIFEST_BYTES_MAX)
    if manifest_bytes is None:
        return [_problem(MANIFEST, "BUNDLE_MISSING", "The file is missing or too large.", "文件缺失或过大。")]
    try:
        manifest = json.loads(manifest_bytes)
        files: dict[str, dict[str, Any]] = manifest["files"]
        named = bytes.fromhex(manifest["public_key"]["key"])
        digests = {str(name): (str(one["sha256"]), int(one["bytes"])) for name, one in files.items()}
        if manifest["format"] != FORMAT:
            raise ValueError("another format")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return [_problem(MANIFEST, "BUNDLE_MANIFEST", "The manifest cannot be read.", "清单无法读取。")]
    return [
        *_signature_problems(folder, manifest_bytes, named, pinned_key),
        *_file_problems(folder, digests),
    ]


def _signature_problems(folder: Path, manifest: bytes, named: bytes, pinned: bytes | None) -> Iterator[BundleProblem]:
    if pinned is not None and pinned != named:
        yield _problem(MANIFEST, "BUNDLE_KEY", "Another key has signed it.", "签名密钥不是指定的密钥。")
    written = _read(folder / SIGNATURE, 1_000)
    try:
        signature = bytes.fromhex((written or b"").decode("ascii").strip())
        holds = SUITES[SUITE].verify(pinned or named, SIGNED_PREFIX + manifest, signature)
    except ValueError:
        holds = False
    if not holds:
        yield _problem(SIGNATURE, "BUNDLE_SIGNATURE", "The manifest's signature does not hold.", "清单签名无效。")


def _file_problems(folder: Path, digests: Mapping[str, tuple[str, int]]) -> Iterator[BundleProblem]:
    for name in FILES:
        if name not in digests:
            yield _problem(MANIFEST, "BUNDLE_FILE_UNNAMED", f"It does not name {name}.", f"清单未列出 {name}。")
    for name, (digest, size) in digests.items():
        if name not in FILES:
            yield _problem(MANIFEST, "BUNDLE_FILE_UNKNOWN", f"It names {name!r}.", f"清单列出了未知文件 {name!r}。")
            continue
        data = _read(folder / name, FILE_BYTES_MAX)
        if data is None:
            yield _problem(name, "BUNDLE_MISSING", "The file is missing or too large.", "文件缺失或过大。")
        elif len(data) != size or hashlib.sha256(data).hexdigest() != digest:
            yield _problem(name, "BUNDLE_ALTERED", "The file is not the one that was signed.", "文件与签名时不一致。")
    for path in sorted(folder.iterdir()):
        if path.name not in (*FILES, MANIFEST, SIGNATURE):
            yield _problem(path.name, "BUNDLE_EXTRA", "The file is not of the bundle.", "文件不属于该报告包。")


def _problem(file: str, code: str, en: str, zh: str) -> BundleProblem:
    return BundleProblem(file, code, Text(en, zh))


def _read(path: Path, bytes_max: int) -> bytes | None:
    """The file's bytes; None when there is no such plain file, or it is too large."""
    try:
        if not path.is_file() or path.stat().st_size > bytes_max:
            return None
        return path.read_bytes()
    except OSError:
        return None
