import json
from pathlib import Path

import pytest

from erxhub.conform.bundle import FILES, MANIFEST, SIGNATURE, verify_bundle, write_bundle
from erxhub.conform.model import Verdict
from erxhub.crypto.suites import SigningKey
from erxhub.v1 import sandbox_pb2
from tests.conform.ground import a_result, a_run


@pytest.fixture
def key() -> SigningKey:
    return SigningKey.generate("EdDSA")


@pytest.fixture
def bundle(tmp_path: Path, key: SigningKey) -> Path:
    calls = [sandbox_pb2.Exchange(number=number, method="DispensingService/Settle") for number in (1, 2)]
    run = a_run(a_result(Verdict.PASS, traffic=calls), a_result(Verdict.FAIL, id="DSP-002"))
    write_bundle(run, tmp_path / "bundle", key)
    return tmp_path / "bundle"


def problem_codes(bundle: Path, pinned: bytes | None = None) -> list[tuple[str, str]]:
    return [(problem.file, problem.code) for problem in verify_bundle(bundle, pinned)]


def test_a_bundle_is_as_it_was_signed(bundle: Path, key: SigningKey) -> None:
    assert {path.name for path in bundle.iterdir()} == {*FILES, MANIFEST, SIGNATURE}
    assert not verify_bundle(bundle)
    assert not verify_bundle(bundle, key.public_key)


def test_the_truth_is_read_back(bundle: Path) -> None:
    results = json.loads((bundle / "results.json").read_text(encoding="utf-8"))
    assert results["counts"] == {"PASS": 1, "FAIL": 1}
    assert results["exit_code"] == 1
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    assert manifest["cases"].keys() == {"DSP-001", "DSP-002"}
    assert all(len(digest) == 64 for digest in manifest["cases"].values())
    calls = [json.loads(line) for line in (bundle / "traffic.ndjson").read_text(encoding="utf-8").splitlines()]
    assert [(call["case"], call["method"]) for call in calls] == [("DSP-001", "DispensingService/Settle")] * 2


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["one byte", "one more byte", "gone"])
def test_a_file_that_was_altered_is_named(bundle: Path, name: str, how: str) -> None:
    path = bundle / name
    data = path.read_bytes()
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(bytes([data[0] ^ 1]) + data[1:] if how == "one byte" else data + b"\n")
    assert problem_codes(bundle) == [(name, "BUNDLE_MISSING" if how == "gone" else "BUNDLE_ALTERED")]


def test_an_altered_manifest_loses_its_signature(bundle: Path) -> None:
    manifest = bundle / MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b'"seed": 7', b'"seed": 8'))
    assert problem_codes(bundle) == [(SIGNATURE, "BUNDLE_SIGNATURE")]


@pytest.mark.parametrize("text", ["", "zz", "00" * 64, "00"])
def test_a_signature_that_is_none_does_not_hold(bundle: Path, text: str) -> None:
    (bundle / SIGNATURE).write_text(text, encoding="ascii")
    assert problem_codes(bundle) == [(SIGNATURE, "BUNDLE_SIGNATURE")]


def test_a_bundle_signed_anew_after_an_alteration_is_not_the_pinned_keys(
    bundle: Path, key: SigningKey, tmp_path: Path
) -> None:
    write_bundle(a_run(a_result(Verdict.PASS)), bundle)
    assert not verify_bundle(bundle)
    codes = problem_codes(bundle, key.public_key)
    assert codes == [(MANIFEST, "BUNDLE_KEY"), (SIGNATURE, "BUNDLE_SIGNATURE")]


def test_a_file_that_does_not_belong_is_named(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("x", encoding="utf-8")
    assert problem_codes(bundle) == [("notes.txt", "BUNDLE_EXTRA")]


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "more.txt"])
def test_a_manifest_reaches_no_file_outside_the_bundle(bundle: Path, key: SigningKey, name: str) -> None:
    manifest = json.loads((bundle / MANIFEST).read_bytes())
    manifest["files"][name] = {"sha256": "00", "bytes": 1}
    data = json.dumps(manifest).encode()
    (bundle / MANIFEST).write_bytes(data)
    (bundle / SIGNATURE).write_text(key.sign(b"erxhub conform bundle v1\n" + data).hex(), encoding="ascii")
    assert problem_codes(bundle) == [(MANIFEST, "BUNDLE_FILE_UNKNOWN")]


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 1}', "[" * 100_000, '{"files": 7, "public_key": {"key": ""}}']
)
def test_a_manifest_that_is_none_is_said_so(bundle: Path, text: str) -> None:
    (bundle / MANIFEST).write_text(text, encoding="utf-8")
    assert problem_codes(bundle) == [(MANIFEST, "BUNDLE_MANIFEST")]


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    assert problem_codes(tmp_path) == [(MANIFEST, "BUNDLE_MISSING")]
