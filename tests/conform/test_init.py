"""`erxhub conform init`: every skeleton is built and brought to its first green case, and nothing is overwritten."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner

from erxhub.cli.main import main
from erxhub.client import ClientIdentity, HospitalClient, PharmacyClient
from erxhub.conform.init import LANGUAGES, ROLES, FolderTaken, write_skeleton
from erxhub.conform.load import load_suite
from erxhub.conform.model import Verdict
from erxhub.conform.runner import run_suite
from erxhub.conform.settings import Settings
from erxhub.testing import running_sandbox
from tests.conform.ending import ends_with_its_input
from tests.conform.node import left_out, node_or_skip

ROOT = Path(__file__).parents[2]

# What a skeleton has to do beyond the first case: say a refusal with its code, and "unknown" without an answer.
OUTCOMES = """
cases:
  - id: INIT-001
    revision: 1
    since: "0.2"
    status: provisional
    title: {{zh: 拒绝与未知, en: A refusal and an unknown outcome}}
    roles: [{role}]
    level: MUST
    verifies: [ERR-VCH_EXPIRED]
    given:
      vouchers: [{{name: old, business_type: {business}}}]
    steps:
      - advance: {{by_ms: 61000}}
      - sut: {{op: {op}, args: {{voucher_code: $old{more}}}, expect: {{outcome: rejected, code: VCH_EXPIRED}}}}
      - voucher: {{name: fresh, business_type: {business}}}
      - faults: {{set: [{{id: lost, method: Voucher/VerifyVoucher, actor: sut, do: lose_ack}}]}}
      - sut: {{op: {op}, args: {{voucher_code: $fresh{more}}}, expect: {{outcome: unknown}}}}
    expect:
      hub: [{{events: {{voucher.verified: 1}}}}]
"""
OPERATIONS = {
    "hospital": {"op": "verify_voucher", "business": "consult", "more": ', business_type: "01201"'},
    "pharmacy": {"op": "list_available", "business": "download", "more": ""},
}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _tool(name: str, what: str, *places: str) -> str:
    found = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *places]))
    if found is None:
        left_out(what, f"needs {name}, which is not installed")
    assert found is not None
    return found


def _built(folder: Path, language: str, *, thoroughly: bool) -> str:
    """Builds a skeleton as its README says, and returns the command that runs it."""
    what = f"the skeleton of `conform init --lang {language}`"
    if language == "python":
        return shlex.join([sys.executable, str(folder / "driver.py")])
    if language == "node":
        return shlex.join([node_or_skip(what), str(folder / "driver.js")])
    if language == "java":
        java, javac = _tool("java", what), _tool("javac", what)
        subprocess.run([javac, "-Xlint:all", "-Werror", "Driver.java"], cwd=folder, check=True)
        return shlex.join([java, "-cp", str(folder), "Driver"])
    go = _tool("go", what, "/usr/local/go/bin")
    # Go's standard library is compiled once for a checkout, and without a C compiler.
    fixed = {"GOCACHE": str(ROOT / "build" / "go-cache"), "CGO_ENABLED": "0"}
    environment = os.environ | fixed | {"GOFLAGS": "", "GOTOOLCHAIN": "local", "GOPROXY": "off"}
    if thoroughly:  # vet looks at the whole standard library too: half a minute
        subprocess.run([go, "vet", "driver.go"], cwd=folder, check=True, env=environment)
    subprocess.run([go, "build", "-o", "driver", "driver.go"], cwd=folder, check=True, env=environment)
    return str(folder / "driver")


@pytest.mark.campaign
@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("language", LANGUAGES)
async def test_a_skeleton_gets_to_its_first_green_case(
    role: str, language: str, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    folder = tmp_path / "driver"
    write_skeleton(folder, role=role, language=language, now_ms=_now_ms())
    own = tmp_path / "own.yaml"
    own.write_text(OUTCOMES.format(role=role, **OPERATIONS[role]), encoding="utf-8")
    suite = load_suite([resources.files("erxhub.conform").joinpath("cases", "conn.yaml"), own], in_code=())
    assert suite.problems == ()
    work = tmp_path / "work"
    work.mkdir()
    driver = _built(folder, language, thoroughly=bool(pytestconfig.getoption("--campaign")))
    # A driver that was just built may take long on a busy machine, to start and for its first call over TLS.
    patient = {"case_ms": 120_000, "operation_ms": 60_000, "call_timeout_ms": 60_000}
    settings = Settings(role=role, folder=work, driver=driver, patterns=("CONN-001", "INIT-001"), workers=1, **patient)
    result = await run_suite(suite, settings)
    assert {one.key: one.failed_checks for one in result.results if one.verdict is not Verdict.PASS} == {}
    assert {one.key for one in result.results} == {"CONN-001", "INIT-001"}
    ends_with_its_input(driver, role, tmp_path / "ending")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("role", ROLES)
def test_nothing_of_the_template_or_of_the_other_role_is_left(role: str, language: str, tmp_path: Path) -> None:
    write_skeleton(tmp_path / "new", role=role, language=language, now_ms=_now_ms())
    other = OPERATIONS["pharmacy" if role == "hospital" else "hospital"]["op"]
    for name in ("README.md", LANGUAGES[language].file):
        text = (tmp_path / "new" / name).read_text(encoding="utf-8")
        assert not {"[[", "]]"} & set(text.split()), name
        assert "{{" not in text, name
        assert other not in text, name
    assert f"conform run --role {role}" in (tmp_path / "new" / "README.md").read_text(encoding="utf-8")


def test_the_written_protos_are_complete(tmp_path: Path) -> None:
    write_skeleton(tmp_path / "new", role="pharmacy", language="go", now_ms=_now_ms())
    protos = tmp_path / "new" / "protos"
    names = [str(path.relative_to(protos)) for path in protos.rglob("*.proto")]
    out = tmp_path / "all.binpb"
    run = subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{protos}", f"--descriptor_set_out={out}", *names],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    assert "erxhub/v1/dispensing.proto" in names


@pytest.mark.parametrize("role", ROLES)
async def test_a_hub_on_the_written_home_accepts_the_written_certificate(role: str, tmp_path: Path) -> None:
    written = write_skeleton(tmp_path / "new", role=role, language="python", now_ms=_now_ms())
    folder = next(path.parent for path in written if path.name == "cert.pem")
    async with running_sandbox(home=tmp_path / "new" / "home") as sandbox:
        identity = ClientIdentity.from_directory(folder)
        client = {"hospital": HospitalClient, "pharmacy": PharmacyClient}[role]
        async with client.connect(sandbox.target, identity) as connected:
            assert (await connected.list_catalog(dataset=1)).ByteSize() > 0


@pytest.mark.parametrize("there", ["README.md", "driver.py", "protos/erxhub/v1/common.proto", "home"])
def test_nothing_is_overwritten_and_nothing_is_written_beside(there: str, tmp_path: Path) -> None:
    kept = tmp_path / there
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text("mine")
    with pytest.raises(FolderTaken) as taken:
        write_skeleton(tmp_path, role="hospital", language="python", now_ms=_now_ms())
    assert taken.value.paths == [kept]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [kept]
    assert kept.read_text() == "mine"


def test_the_verb_says_what_it_wrote_and_what_stands_in_the_way(tmp_path: Path) -> None:
    line = ["conform", "init", "--role", "pharmacy", "--lang", "node", str(tmp_path / "new")]
    first, second = CliRunner().invoke(main, line), CliRunner().invoke(main, line)
    assert first.exit_code == 0
    assert "README.md" in first.output
    assert second.exit_code == 2
    assert "nothing was written" in second.output
    assert "未写入" in second.output
    (tmp_path / "file").write_text("")
    blocked = CliRunner().invoke(main, [*line[:-1], str(tmp_path / "file" / "below")])
    assert blocked.exit_code == 2
