"""What the command finds wrong itself: a stable code, both languages, the field and the rule, as a refusal has them."""

import ast
import json
import string
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import erxhub.cli.local_errors
from erxhub.cli.local_errors import CATALOGUE, Failed, error_data
from erxhub.cli.main import main
from erxhub.core import refusals
from erxhub.sandbox.errors import ERRORS
from tests.cli.conftest import Erxhub

SOURCES = Path(erxhub.cli.local_errors.__file__).parent


def names_in(sentence: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(sentence) if name is not None}


def is_chinese(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)


def uses() -> Iterator[tuple[str, str, set[str]]]:
    """(place, code, names of the values) of every error that the sources raise with its code in words."""
    for path in sorted(SOURCES.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id in ("Failed", "failing_as") and isinstance(node.args[0], ast.Constant):
                values = {keyword.arg for keyword in node.keywords if keyword.arg} - {"field", "details"}
                yield f"{path.name}:{node.lineno}", node.args[0].value, values


def test_a_code_says_the_same_in_both_languages() -> None:
    assert CATALOGUE
    for code, error in CATALOGUE.items():
        assert code.startswith("CLI_"), code
        assert error.en.endswith((".", "?")), code
        assert error.zh.endswith(("。", "？")), code
        assert is_chinese(error.zh), code
        assert not is_chinese(error.en), code
        assert names_in(error.en) == names_in(error.zh), code
        assert error.exit_code in range(1, 7), code
    assert not CATALOGUE.keys() & {*refusals.CATALOGUE, *ERRORS}


def test_every_code_is_raised_with_its_values_and_none_is_left_over() -> None:
    for place, code, values in uses():
        assert code in CATALOGUE, (place, code)
        assert values == names_in(CATALOGUE[code].en) | names_in(CATALOGUE[code].zh), (place, code)
    text = "\n".join(path.read_text(encoding="utf-8") for path in SOURCES.glob("*.py"))
    assert [code for code in CATALOGUE if text.count(f'"{code}"') < 2] == []


def test_nothing_is_said_in_english_alone() -> None:
    """Every failure comes from the catalogue; click's exceptions come from click, or from a type of arguments.py."""
    for path in sorted(SOURCES.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                raised = ast.unparse(node.exc.func)
                assert raised not in ("click.UsageError", "click.ClickException", "click.BadParameter"), path.name


def test_it_is_told_as_a_refusal_is(erxhub: Erxhub, tmp_path: Path) -> None:
    result = erxhub("catalog", "import", "--context", "x")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines() == [
        "CLI_CONTEXT_UNKNOWN (local)",
        f"  There is no context 'x' in {tmp_path}/home; --context or ERXHUB_CONTEXT may name: -.",
        f"  {tmp_path}/home 中没有上下文“x”；--context 或 ERXHUB_CONTEXT 可指定：-。",
        "  field: --context",
    ]


@pytest.mark.parametrize("words", [("-o", "json"), ("-ojson",), ("--output", "jsonl"), ("--output=json",)])
def test_it_is_one_json_object_where_the_output_is_json(erxhub: Erxhub, words: tuple[str, ...]) -> None:
    result = erxhub("catalog", "import", "--context", "x", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    error = json.loads(result.stderr)["error"]
    assert error.keys() == {"code", "text_en", "text_zh", "field"}
    assert error["code"] == "CLI_CONTEXT_UNKNOWN"


def test_keys_that_are_not_there_and_a_folder_that_is_not_empty(erxhub: Erxhub, tmp_path: Path) -> None:
    absent = erxhub("keys", "list", "--keys", str(tmp_path / "none"), "-o", "json")
    assert absent.exit_code == 2
    error = json.loads(absent.stderr)["error"]
    assert (error["code"], error["field"]) == ("CLI_FILE_ABSENT", "--keys")
    assert str(tmp_path / "none") in error["text_zh"]
    assert "`erxhub keys init` makes the keys" in error["details"]
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    taken = erxhub("keys", "init", "--keys", str(tmp_path / "full"), "-o", "json")
    assert taken.exit_code == 2
    assert json.loads(taken.stderr)["error"]["code"] == "CLI_FOLDER_NOT_EMPTY"


@pytest.mark.parametrize(
    ("words", "code", "field"),
    [
        (("ca", "list", "--pki", "{}"), "CLI_TRUST_DOMAIN", "--pki"),
        (("ca", "init", "--pki", "{}", "--trust-domain", "A B"), "CLI_TRUST_DOMAIN_NOT_MADE", "--pki"),
        (("registry", "add", "key", "{}", "--context", "agency"), "CLI_CONTEXT_UNKNOWN", "--context"),
        (("witness", "show", "--folder", "{}"), "CLI_FILE_ABSENT", "--folder"),
        (("witness", "keygen", "a b", "--folder", "{}"), "CLI_WITNESS_NOT_MADE", "--folder"),
        (("witness", "serve", "--folder", "{}", "--log", "x"), "CLI_LOG_KEY", "--log"),
        (("witness", "serve", "--folder", "{}", "--log", "x", "--address", "y"), "CLI_VALUE_FORM", "--address"),
        (("status", "--metrics", "203.0.113.1:1"), "CLI_ADDRESS_NOT_LOOPBACK", "--metrics"),
        (("status", "--metrics", "127.0.0.1:1"), "CLI_OPERATOR_PORT_SILENT", "--metrics"),
        (("catalog", "check", "{}"), "CLI_CATALOG_NONE", "{}"),
        (("audit", "verify", "/dev/null"), "CLI_TRUST_MISSING", "--log-key, --policy"),
        (("audit", "verify", "--ca", "/dev/null"), "CLI_OPTION_NEEDS", "FILE"),
        (("conform", "run", "--role", "pharmacy"), "CLI_OPTION_ONE_OF", "--driver, --attach"),
        (("errors", "list", "XYZ"), "CLI_CODE_PREFIX", "PREFIX"),
        (("db", "check", "--db", "{}/none.db"), "CLI_FILE_ABSENT", "{}/none.db"),
    ],
)
def test_what_is_wrong_has_its_own_code_and_names_the_field(
    erxhub: Erxhub, tmp_path: Path, words: tuple[str, ...], code: str, field: str
) -> None:
    (tmp_path / "empty").mkdir()
    result = erxhub(*(word.format(tmp_path / "empty") for word in words))
    assert result.exit_code == CATALOGUE[code].exit_code
    told = result.stderr.splitlines()
    assert told[0] == f"{code} (local)"
    assert is_chinese(told[2])
    assert f"  field: {field.format(tmp_path / 'empty')}" in told


def test_what_the_system_says_is_a_detail(erxhub: Erxhub) -> None:
    result = erxhub("keys", "init", "--keys", "/dev/null/x", "-o", "json")
    assert result.exit_code == 2
    error = json.loads(result.stderr)["error"]
    assert error["code"] == "CLI_FOLDER_IS_FILE"
    assert error["field"] == "/dev/null/x"
    assert error["details"] == "Not a directory"


@pytest.mark.parametrize(
    ("words", "code", "en", "zh", "field"),
    [
        (("context", "add", "x"), "CLI_OPTION_MISSING", "Missing option '--target'", "缺少选项 --target。", "--target"),
        (("context", "use"), "CLI_ARGUMENT_MISSING", "Missing argument 'NAME'", "缺少参数 NAME。", "NAME"),
        (("context", "list", "--nope"), "CLI_OPTION_UNKNOWN", "No such option", "没有选项 --nope。", "--nope"),
        (("--nope",), "CLI_OPTION_UNKNOWN", "No such option", "没有选项 --nope。", "--nope"),
        (("contxt",), "CLI_COMMAND_UNKNOWN", "Did you mean 'context'?", "没有命令 contxt。", "contxt"),
        (("context", "lst"), "CLI_COMMAND_UNKNOWN", "No such command 'lst'", "没有命令 lst。", "lst"),
        (("context", "list", "-o"), "CLI_OPTION_USE", "requires an argument", "-o 所带值的个数不对", "-o"),
        (("context", "list", "more"), "CLI_COMMAND_LINE", "unexpected extra argument", "多出参数", None),
        (
            ("context", "list", "-o", "xml"),
            "CLI_VALUE",
            "'xml' is not one of",
            "-o / --output 的值不可用：须为 table、json、jsonl 之一。",
            "-o / --output",
        ),
        (
            ("patient", "list", "1", "--limit", "-1"),
            "CLI_VALUE",
            "-1 is not in the range",
            "--limit 的值不可用：须为不小于 0 的数值。",
            "--limit",
        ),
        (("clock", "advance", "soon"), "CLI_VALUE", "is not a duration", "须写作 2h、90m、1d12h", "DURATION"),
        (
            ("audit", "verify", "none"),
            "CLI_VALUE",
            "File 'none' does not exist.",
            "FILE 的值不可用：须为已存在的文件。",
            "FILE",
        ),
        (("dev", "--port", "x"), "CLI_VALUE", "is not a valid", "须为", "--port"),
    ],
)
def test_a_wrong_command_line_has_a_code_and_clicks_own_words(
    erxhub: Erxhub, words: tuple[str, ...], code: str, en: str, zh: str, field: str | None
) -> None:
    result = erxhub(*words)
    assert (result.exit_code, result.stdout) == (2, "")
    told = result.stderr.splitlines()
    first = told.index(f"{code} (local)")
    if code != "CLI_OPTION_USE":
        assert told[0].startswith("Usage: "), "click's hint at the help stays where click gives one"
    assert en in told[first + 1]
    assert zh in told[first + 2]
    assert told[first + 3 :] == ([f"  field: {field}"] if field else [])


def test_a_wrong_command_line_is_json_where_json_was_asked_for(erxhub: Erxhub) -> None:
    result = erxhub("context", "add", "x", "-o", "json")
    assert result.exit_code == 2
    error = json.loads(result.stderr)["error"]
    assert (error["code"], error["field"]) == ("CLI_OPTION_MISSING", "--target")
    assert error["text_en"].startswith("Missing option '--target'")


def test_a_group_alone_shows_its_help(erxhub: Erxhub) -> None:
    result = erxhub("context")
    assert result.exit_code == 2
    assert result.stderr.startswith("Example:\n")
    assert "CLI_" not in result.stderr


def test_whoever_calls_main_himself_gets_the_exception() -> None:
    with pytest.raises(click.NoSuchCommand):
        main(["nonsense"], standalone_mode=False)
    with pytest.raises(Failed) as failed:
        main(["errors", "explain", "CLI_NOTHING"], standalone_mode=False)
    assert error_data(failed.value)["code"] == "CLI_CODE_UNKNOWN"


def test_an_interrupted_command_says_so() -> None:
    code = (
        "import erxhub.cli.main as cli\n"
        "def interrupt(*_): raise KeyboardInterrupt\n"
        "cli.main.invoke = interrupt\n"
        "cli.main(['errors', 'list'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-3:-1] == ["CLI_INTERRUPTED (local)", "  The command was interrupted."]


def test_local_codes_are_listed_and_explained_as_such(erxhub: Erxhub) -> None:
    listed = json.loads(erxhub("errors", "list", "CLI_", "-o", "json").stdout)
    assert [row["code"] for row in listed] == list(CATALOGUE)
    one = json.loads(erxhub("errors", "explain", "cli_file_absent", "-o", "json").stdout)
    assert one["source"] == "local"
    assert (one["grpc_status"], one["exit_code"], one["retriable"]) == ("", 2, False)
    assert one["en"] == CATALOGUE["CLI_FILE_ABSENT"].en
    of_hub = json.loads(erxhub("errors", "explain", "RX_UNKNOWN", "-o", "json").stdout)
    of_sandbox = json.loads(erxhub("errors", "explain", "SBX_CLOCK_BACK", "-o", "json").stdout)
    assert (of_hub["source"], of_sandbox["source"]) == ("hub", "sandbox")
    assert one.keys() == of_hub.keys()
    assert "local" in erxhub("errors", "explain", "CLI_FILE_ABSENT").stdout
