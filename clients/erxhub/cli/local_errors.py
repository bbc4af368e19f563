"""Errors that the command finds itself, before or without a hub's answer: code, exit code and two sentences.

Owns their catalogue, the exception that carries one, and the codes of click's own exceptions. Must never: print, or
say what a hub refuses; those sentences stand in `erxhub.core.refusals`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import click

from erxhub.cli.exits import CONFLICT, NEGATIVE, NOT_FOUND, UNAVAILABLE, USAGE


@dataclass(frozen=True, slots=True)
class LocalError:
    """One row. Both sentences have the same places for values, such as `{path}`."""

    exit_code: int
    en: str
    zh: str


CATALOGUE: Final[Mapping[str, LocalError]] = MappingProxyType(
    {
        # The words of the command line; of these the English sentence that is shown is click's own.
        "CLI_ARGUMENT_MISSING": LocalError(USAGE, "The argument {name} is missing.", "缺少参数 {name}。"),
        "CLI_COMMAND_UNKNOWN": LocalError(USAGE, "There is no command {name}.", "没有命令 {name}。"),
        "CLI_COMMAND_LINE": LocalError(
            USAGE, "A command is missing, or there are too many words.", "缺少子命令，或多出参数。"
        ),
        "CLI_INTERRUPTED": LocalError(NEGATIVE, "The command was interrupted.", "命令已中断。"),
        "CLI_OPTION_MISSING": LocalError(USAGE, "The option {name} is missing.", "缺少选项 {name}。"),
        "CLI_OPTION_UNKNOWN": LocalError(USAGE, "There is no option {name}.", "没有选项 {name}。"),
        "CLI_OPTION_USE": LocalError(
            USAGE, "The option {name} takes another number of values.", "选项 {name} 所带值的个数不对。"
        ),
        "CLI_VALUE": LocalError(USAGE, "The value of {name} is not allowed; {rule}.", "{name} 的值不可用：{rule}。"),
        # What options and arguments mean together.
        "CLI_CLOCK_BACK": LocalError(
            USAGE,
            "A clock never goes back; `erxhub reset` and `erxhub snapshot load` do.",
            "时钟不能回拨；可用 `erxhub reset` 或 `erxhub snapshot load` 回到以前的状态。",
        ),
        "CLI_OPTION_ALONE": LocalError(
            USAGE, "{options} and {other} do not go together.", "{options} 与 {other} 不能同时使用。"
        ),
        "CLI_OPTION_NEEDS": LocalError(USAGE, "{options} needs {other}.", "{options} 须与 {other} 一起给出。"),
        "CLI_OPTION_ONE_OF": LocalError(USAGE, "Name exactly one of {options}.", "须且只须给出其中一项：{options}。"),
        "CLI_OPTION_SOME_OF": LocalError(USAGE, "Name at least one of {options}.", "至少给出其中一项：{options}。"),
        "CLI_VALUE_FORM": LocalError(
            USAGE, "'{value}' is not of the form {form}.", "“{value}”的写法不对：须写作 {form}。"
        ),
        "CLI_ORIGIN": LocalError(
            USAGE,
            "The origin '{origin}' is no name: a name is not empty and has no space and no +.",
            "来源名“{origin}”不可用：名称不得为空，不含空格和 +。",
        ),
        "CLI_SUBJECT": LocalError(USAGE, "'{value}' cannot be asked about.", "“{value}”不是可查询的对象。"),
        # Files and folders.
        "CLI_DISK_FULL": LocalError(USAGE, "There is no space left on the device.", "设备上没有剩余空间。"),
        "CLI_FILE_ABSENT": LocalError(USAGE, "There is no file or folder {path}.", "文件或文件夹 {path} 不存在。"),
        "CLI_FILE_DENIED": LocalError(USAGE, "This user may not use {path}.", "当前用户无权使用 {path}。"),
        "CLI_FILE_EXISTS": LocalError(
            CONFLICT, "{path} exists already, and is never replaced.", "{path} 已存在，不会被覆盖。"
        ),
        "CLI_FILE_IS_FOLDER": LocalError(
            USAGE, "{path} is a folder; a file is needed.", "{path} 是文件夹，此处须为文件。"
        ),
        "CLI_FILE_NO_CERTIFICATE": LocalError(
            USAGE, "{path} holds no certificate in PEM.", "{path} 中没有 PEM 格式的证书。"
        ),
        "CLI_FILE_NO_PRIVATE_KEY": LocalError(
            USAGE, "{path} is no private key in PEM.", "{path} 不是可用的 PEM 格式私钥。"
        ),
        "CLI_FILE_NOT_JSON": LocalError(USAGE, "{path} is not JSON in UTF-8.", "{path} 不是 UTF-8 编码的 JSON。"),
        "CLI_FILE_NOT_OBJECT": LocalError(USAGE, "{path} holds no JSON object.", "{path} 的内容不是 JSON 对象。"),
        "CLI_FILE_NOT_LIST": LocalError(
            USAGE, "{path} holds no JSON array of objects.", "{path} 的内容不是由对象组成的 JSON 数组。"
        ),
        "CLI_FILE_NOT_MESSAGE": LocalError(USAGE, "{path} is no {kind}.", "{path} 的内容不是 {kind}。"),
        "CLI_FILE_UNUSABLE": LocalError(USAGE, "{path} cannot be used.", "无法使用 {path}。"),
        "CLI_FILE_UNWRITABLE": LocalError(NEGATIVE, "{path} cannot be written.", "无法写入 {path}。"),
        "CLI_FOLDER_IS_FILE": LocalError(
            USAGE, "{path} is no folder, or lies below what is none.", "{path} 不是文件夹，或其上级不是文件夹。"
        ),
        "CLI_FOLDER_NOT_EMPTY": LocalError(USAGE, "The folder {path} is not empty.", "文件夹 {path} 不是空的。"),
        "CLI_FOLDER_TAKEN": LocalError(
            USAGE,
            "These files are there already, so nothing was written: {names}.",
            "未写入任何内容，文件已存在：{names}。",
        ),
        # Contexts.
        "CLI_CONTEXT_AMBIGUOUS": LocalError(
            USAGE,
            "There are several contexts that fit ({names}); choose one with --context.",
            "有多个可用的上下文（{names}）；请用 --context 选定一个。",
        ),
        "CLI_CONTEXT_FORMAT": LocalError(
            USAGE,
            "{path} holds no contexts, or another version of erxhub wrote it.",
            "{path} 中没有可读的上下文，或由其他版本的 erxhub 写成。",
        ),
        "CLI_CONTEXT_MISSING": LocalError(
            USAGE,
            "There is no context of the role {roles} in {folder}; add one with `erxhub context add`, or point "
            "ERXHUB_HOME at the folder that `erxhub dev` printed.",
            "{folder} 中没有角色为 {roles} 的上下文；请用 `erxhub context add` 添加，"
            "或将 ERXHUB_HOME 设为 `erxhub dev` 所示的文件夹。",
        ),
        "CLI_CONTEXT_NO_CALLER": LocalError(
            USAGE,
            "{path} names no caller (spiffe://<trust domain>/<role>/<id>).",
            "证书 {path} 未写明调用方（spiffe://<信任域>/<角色>/<编号>）。",
        ),
        "CLI_CONTEXT_NO_SIGNING_KEY": LocalError(
            USAGE,
            "Context {name} has no signing key of {subject} (it has: {known}); add it with "
            "`erxhub context add {name} … --signing-key {subject}=FILE`.",
            "上下文 {name} 没有 {subject} 的签名密钥（现有：{known}）；请用 "
            "`erxhub context add {name} … --signing-key {subject}=FILE` 添加。",
        ),
        "CLI_CONTEXT_NOT_FOUND": LocalError(
            NOT_FOUND,
            "There is no context '{name}' in {folder} (there are: {known}).",
            "{folder} 中没有上下文“{name}”（现有：{known}）。",
        ),
        "CLI_CONTEXT_ROLE": LocalError(
            USAGE,
            "Context {name} is of the role {role}; this command is for {roles}.",
            "上下文 {name} 的角色为 {role}；此命令供 {roles} 使用。",
        ),
        "CLI_CONTEXT_SANDBOX_GONE": LocalError(
            USAGE,
            "Context {name} takes its time from context {sandbox}, which is gone.",
            "上下文 {name} 的时间取自上下文 {sandbox}，而后者已不存在。",
        ),
        "CLI_CONTEXT_UNKNOWN": LocalError(
            USAGE,
            "There is no context '{name}' in {folder}; --context or ERXHUB_CONTEXT may name: {known}.",
            "{folder} 中没有上下文“{name}”；--context 或 ERXHUB_CONTEXT 可指定：{known}。",
        ),
        "CLI_SEED_AREA": LocalError(
            USAGE,
            "Context {name} is agency/{agency}; the seeded world lies in {area}.",
            "上下文 {name} 为 agency/{agency}；示例数据属于统筹区 {area}。",
        ),
        # Keys, certificates and trust.
        "CLI_FOREIGN_KEYS": LocalError(
            USAGE,
            "The keys are not those of this ledger; copy the hmac-*.key files of a hub of this ledger into the folder "
            "of --keys.",
            "密钥与本账本不符；请将本账本某个中心的 hmac-*.key 文件复制到 --keys 所指的文件夹。",
        ),
        "CLI_HUB_KEYS": LocalError(
            USAGE, "The keys of a hub in {path} cannot be used.", "{path} 中的中心密钥无法使用。"
        ),
        "CLI_LOG_KEY": LocalError(USAGE, "The key of the log cannot be used.", "日志公钥不可用。"),
        "CLI_POLICY": LocalError(USAGE, "{path} is no usable policy of witnesses.", "见证策略 {path} 不可用。"),
        "CLI_CERTIFICATE_REFUSED": LocalError(
            USAGE,
            "Nothing is issued for '{subject}': role, id, host names, suite or days are not allowed.",
            "不能为“{subject}”签发：角色、编号、主机名、算法或天数不合要求。",
        ),
        "CLI_CERTIFICATE_UNKNOWN": LocalError(
            USAGE,
            "'{identifier}' cannot be revoked: nothing was issued here under it, or it is not kept.",
            "不能吊销“{identifier}”：此处未曾签发，或未保存。",
        ),
        "CLI_SIGNING_FOLDER": LocalError(
            USAGE,
            "{path} is no folder of a signing key, as `erxhub ca issue --signing` writes it.",
            "{path} 不是 `erxhub ca issue --signing` 所写的签名密钥文件夹。",
        ),
        "CLI_TRUST_DOMAIN": LocalError(
            USAGE,
            "{path} holds no usable trust domain; name its folder with --pki, or make one with `erxhub ca init`.",
            "{path} 中没有可用的信任域；请用 --pki 指定其文件夹，或用 `erxhub ca init` 新建。",
        ),
        "CLI_TRUST_DOMAIN_NOT_MADE": LocalError(
            USAGE,
            "No trust domain '{name}' is made in {path}: there is one already, or the name is none (lower-case "
            "letters, digits, '.', '-', '_').",
            "不能在 {path} 中新建信任域“{name}”：已有信任域，或名称不合要求（小写字母、数字、'.'、'-'、'_'）。",
        ),
        "CLI_TRUST_MISSING": LocalError(
            USAGE,
            "Name whose signature you trust: --log-key (`erxhub keys list` at the hub shows it) or --policy.",
            "请写明信任谁的签名：--log-key（在中心运行 `erxhub keys list` 可见）或 --policy。",
        ),
        "CLI_SERVER_CERTIFICATE": LocalError(USAGE, "The server's certificate cannot be used.", "服务器证书不可用。"),
        "CLI_WITNESS": LocalError(
            USAGE,
            "{path} holds no usable witness; `erxhub witness keygen` makes one.",
            "{path} 中没有可用的见证人；可用 `erxhub witness keygen` 新建。",
        ),
        "CLI_WITNESS_RECORDS": LocalError(
            USAGE, "The records of the witness in {path} cannot be used.", "{path} 中的见证记录无法使用。"
        ),
        "CLI_WITNESS_NOT_MADE": LocalError(
            USAGE,
            "No witness '{name}' is made in {path}: there is one already, or the name is none (no white space, no +).",
            "不能在 {path} 中新建见证人“{name}”：已有见证人，或名称不合要求（不含空白和 +）。",
        ),
        "CLI_MONITOR_STATE": LocalError(
            USAGE,
            "{path} holds no checkpoint of this log; remove it only if you know why.",
            "{path} 中没有本日志的检查点；弄清原因之前请勿删除。",
        ),
        # The hub of this machine, its database and its ports.
        "CLI_ADDRESS_TAKEN": LocalError(
            USAGE,
            "{address} cannot be listened on: it is in use, or not this machine's.",
            "无法监听 {address}：已被占用，或不是本机地址。",
        ),
        "CLI_ADDRESS_NOT_LOOPBACK": LocalError(
            USAGE,
            "{address} is no HOST:PORT with a loopback address.",
            "{address} 不是写作 HOST:PORT 的本机回环地址（loopback）。",
        ),
        "CLI_DATABASE_FORMAT": LocalError(
            USAGE,
            "{name} is no ledger of this release, or its settings or rights do not fit.",
            "{name} 不是本版本的账本数据库，或其设置、权限不合要求。",
        ),
        "CLI_DATABASE_IN_USE": LocalError(CONFLICT, "The database {name} is in use.", "数据库 {name} 正被占用。"),
        "CLI_DATABASE_UNAVAILABLE": LocalError(
            UNAVAILABLE, "The database {name} does not answer.", "数据库 {name} 没有应答。"
        ),
        "CLI_EXTRA_MISSING": LocalError(
            USAGE,
            "This needs more than is installed: pip install 'erxhub[{extra}]'.",
            "缺少所需组件，请安装：pip install 'erxhub[{extra}]'。",
        ),
        "CLI_HOME": LocalError(
            USAGE,
            "The keys or the trust domain in {path} cannot be used; name another folder with --home.",
            "{path} 中的密钥或信任域不可用；请用 --home 另选一个文件夹。",
        ),
        "CLI_HOME_IN_USE": LocalError(
            CONFLICT,
            "Another `erxhub dev` runs in the folder {path}; name one with --home.",
            "另一个 `erxhub dev` 正在文件夹 {path} 中运行；请用 --home 另选一个。",
        ),
        "CLI_HUB_ID": LocalError(USAGE, "The id of a hub is not empty.", "中心编号不能为空。"),
        "CLI_LEDGER_REFUSED": LocalError(NEGATIVE, "The hub does not start on this ledger.", "中心拒绝以此账本启动。"),
        "CLI_DEMO_FAILED": LocalError(NEGATIVE, "The demonstration did not end as it should.", "演示未按预期完成。"),
        "CLI_NOT_STARTED": LocalError(USAGE, "The hub cannot be started.", "中心无法启动。"),
        "CLI_OPERATOR_PORT_FAILED": LocalError(
            UNAVAILABLE,
            "{address} answered {status}, and is no hub's operator port or has failed.",
            "{address} 应答 {status}：不是中心的运维端口，或已故障。",
        ),
        "CLI_OPERATOR_PORT_SILENT": LocalError(
            UNAVAILABLE,
            "{address} does not answer; is the hub running, and was it started with `erxhub serve --metrics "
            "HOST:PORT`?",
            "{address} 没有应答；中心是否在运行，启动时是否带有 `erxhub serve --metrics HOST:PORT`？",
        ),
        "CLI_PROGRAM_MISSING": LocalError(
            USAGE, "A program of PostgreSQL is missing on this machine.", "本机缺少 PostgreSQL 的程序。"
        ),
        "CLI_SETTING_BOUNDS": LocalError(
            USAGE, "A setting of --config is out of its bounds.", "--config 的设置超出允许的范围。"
        ),
        "CLI_SETTING_EMPTY": LocalError(
            USAGE, "--config {setting}: the value is empty.", "--config {setting}：值不能为空。"
        ),
        "CLI_SETTING_LIST": LocalError(
            USAGE,
            "--config {setting}: the value is a list with commas, and nothing in it is empty.",
            "--config {setting}：值须为逗号分隔的列表，各项均不为空。",
        ),
        "CLI_SETTING_NUMBER": LocalError(
            USAGE,
            "--config {setting}: the value is a whole number, not negative.",
            "--config {setting}：值须为非负整数。",
        ),
        "CLI_SETTING_TRUTH": LocalError(
            USAGE, "--config {setting}: the value is true or false.", "--config {setting}：值须为 true 或 false。"
        ),
        "CLI_SETTING_UNKNOWN": LocalError(
            USAGE,
            "--config {setting}: write KEY=VALUE, with a key of {keys}.",
            "--config {setting}：须写作 KEY=VALUE，其中 KEY 为 {keys} 之一。",
        ),
        # Documents of the business verbs.
        "CLI_DOWNLOAD_ALTERED": LocalError(
            USAGE, "{path} is not what was downloaded: download it again.", "{path} 与下载时不符，请重新下载。"
        ),
        "CLI_DOWNLOAD_OTHER": LocalError(
            USAGE, "{folder} does not hold the download of {rx_no}.", "{folder} 中不是处方 {rx_no} 的下载文件。"
        ),
        "CLI_DRUG_MISSING": LocalError(
            USAGE,
            "Line {line} needs its drug, LINE_NO:DRUG=…, or --from with the download's folder.",
            "第 {line} 行须写明药品，即 LINE_NO:DRUG=…，或用 --from 指定下载文件夹。",
        ),
        "CLI_LINE_UNKNOWN": LocalError(USAGE, "The prescription has no line {line}.", "处方没有第 {line} 行。"),
        "CLI_LINES_INVALID": LocalError(USAGE, "The sold lines cannot be settled.", "所售明细无法结算。"),
        "CLI_LINES_MISSING": LocalError(
            USAGE,
            "Name the sold lines: --line LINE_NO:DRUG=QTY@PRICE.",
            "请写明所售明细：--line LINE_NO:DRUG=QTY@PRICE。",
        ),
        "CLI_LOT_MISSING": LocalError(USAGE, "No lot of line {line} is given.", "没有给出第 {line} 行的批次。"),
        "CLI_PERSON_NOT_SEEDED": LocalError(
            USAGE,
            "{person_no} is nobody of the fictional world: write a --file for him.",
            "{person_no} 不在虚构人员之列：请改用 --file 提供处方。",
        ),
        "CLI_PRECHECK_MISSING": LocalError(
            USAGE,
            "{path} lacks {fields}, which the pre-check filled in: name the file that `erxhub rx precheck --save` "
            "wrote.",
            "{path} 缺少预核验时填入的 {fields}：请给出 `erxhub rx precheck --save` 所写的文件。",
        ),
        "CLI_PRICE_MISSING": LocalError(
            USAGE,
            "The prescription states no price for line {lines}: --line LINE_NO=QTY@PRICE.",
            "处方未写明第 {lines} 行的价格：请用 --line LINE_NO=QTY@PRICE 给出。",
        ),
        "CLI_QUOTE": LocalError(
            USAGE,
            "{path} is no quote: keep what `erxhub pharmacy quote -o json` prints.",
            "{path} 不是预结算结果：请保存 `erxhub pharmacy quote -o json` 的输出。",
        ),
        # Code lists.
        "CLI_CATALOG_COLUMN": LocalError(
            USAGE, "{path} has no column {columns} in its first line.", "{path} 的首行缺少列 {columns}。"
        ),
        "CLI_CATALOG_CSV": LocalError(USAGE, "{path}, line {line}, is no CSV.", "{path} 第 {line} 行不是 CSV。"),
        "CLI_CATALOG_DATASET": LocalError(
            USAGE,
            "{path} is no known code list ({known}); say which with --dataset.",
            "{path} 不是已知的编码表（{known}）；请用 --dataset 写明。",
        ),
        "CLI_CATALOG_ENCODING": LocalError(
            USAGE, "{path} is not UTF-8 (byte {byte}).", "{path} 不是 UTF-8 编码（第 {byte} 字节）。"
        ),
        "CLI_CATALOG_LARGE": LocalError(
            USAGE, "{path} is larger than {limit_mib} MiB.", "{path} 超过 {limit_mib} MiB。"
        ),
        "CLI_CATALOG_NONE": LocalError(
            USAGE, "{path} holds no code list (looked for {known}).", "{path} 中没有编码表（查找过 {known}）。"
        ),
        "CLI_REQUEST_ID_OF_FILES": LocalError(
            USAGE,
            "--request-id is for the import of one file; there are {count}.",
            "--request-id 仅用于导入一个文件；现有 {count} 个。",
        ),
        "CLI_CATALOG_SHARED": LocalError(
            USAGE,
            "Name a file or folder; there is no {path} (set ERXHUB_SHARED).",
            "请给出文件或文件夹；{path} 不存在（可设置 ERXHUB_SHARED）。",
        ),
        # Conformance, faults and codes.
        "CLI_CASE_UNKNOWN": LocalError(
            USAGE,
            "In this suite there is no case {case}; `erxhub conform list` has them all.",
            "没有用例 {case}；`erxhub conform list` 列出全部用例。",
        ),
        "CLI_KNOWN_FAILING": LocalError(
            USAGE, "{path} is no list of cases that are known to fail.", "{path} 不是可用的已知失败用例清单。"
        ),
        "CLI_SUITE": LocalError(USAGE, "The conformance suite cannot be loaded.", "无法加载一致性测试用例集。"),
        "CLI_FAULT_RULE": LocalError(USAGE, "A fault rule is wrong.", "故障规则有误。"),
        "CLI_FAULT_UNKNOWN": LocalError(
            NOT_FOUND, "There is no rule {rule} (there are: {known}).", "没有故障规则 {rule}（现有：{known}）。"
        ),
        "CLI_TRIGGER_OF": LocalError(
            USAGE, "{kind} needs {option}, and only that.", "{kind} 须带 {option}，且只带此项。"
        ),
        "CLI_CODE_OF_CONNECTION": LocalError(
            NOT_FOUND,
            "{wanted} is about this machine's connection or a certificate on it; `erxhub doctor` looks at both.",
            "{wanted} 涉及本机的连接或证书，由 `erxhub doctor` 检查。",
        ),
        "CLI_CODE_PREFIX": LocalError(NOT_FOUND, "No code begins with '{prefix}'.", "没有以“{prefix}”开头的代码。"),
        "CLI_CODE_UNKNOWN": LocalError(
            NOT_FOUND,
            "There is no code {wanted}; near it: {near}. `erxhub errors list` has them all.",
            "没有代码 {wanted}；相近的有：{near}。`erxhub errors list` 列出全部代码。",
        ),
    }
)


class Failed(click.ClickException):
    """A command cannot go on, by its own finding: a code of the catalogue with its values.

    `field` is the option, argument or file at fault, or "". `details` is what a library or the system says of it, in
    English, or "".
    """

    def __init__(self, code: str, *, field: str = "", details: str = "", **values: object) -> None:
        kind = CATALOGUE[code]
        self.code = code
        self.field = field
        self.details = details
        self.en = kind.en.format_map(values)
        self.zh = kind.zh.format_map(values)
        super().__init__(f"{self.en} {details}".rstrip())
        # click reads it from the exception, and types it as the class's.
        self.exit_code = kind.exit_code  # type: ignore[misc]


_BY_ERRNO: Final = {
    errno.ENOENT: "CLI_FILE_ABSENT",
    errno.EACCES: "CLI_FILE_DENIED",
    errno.EPERM: "CLI_FILE_DENIED",
    errno.EISDIR: "CLI_FILE_IS_FOLDER",
    errno.ENOTDIR: "CLI_FOLDER_IS_FILE",
    errno.ENOSPC: "CLI_DISK_FULL",
}


def unusable(error: OSError, path: object = None, *, field: str = "", details: str = "") -> Failed:
    """A file or folder that cannot be used; `path` is its name where the caller knows a better one than the system."""
    code = _BY_ERRNO.get(error.errno or 0, "CLI_FILE_UNUSABLE")
    path = path or error.filename
    return Failed(code, field=field or str(path or ""), details=details or error.strerror or str(error), path=path)


@contextmanager
def failing_as(code: str, *kinds: type[Exception], field: str = "", **values: object) -> Iterator[None]:
    """What a library raises becomes this error, or that of the file behind it, and its words the details."""
    try:
        yield
    except kinds as error:
        behind, words = error.__context__, str(error)
        if isinstance(behind, OSError) and behind.filename and behind.errno in _BY_ERRNO:
            raise unusable(behind, field=field, details=words) from None
        raise Failed(code, field=field, details=words, **values) from None


def error_data(error: click.ClickException) -> dict[str, Any]:
    """An error as one JSON object, in the form of a refusal; of click's own the English text is click's."""
    if not isinstance(error, Failed):
        code, values = _of_click(error)
        zh = CATALOGUE[code].zh.format_map(values)
        return {"code": code, "text_en": error.format_message(), "text_zh": zh, **_named(field=values.get("name"))}
    return {
        "code": error.code,
        "text_en": error.en,
        "text_zh": error.zh,
        **_named(field=error.field, details=error.details),
    }


def _named(**values: str | None) -> dict[str, str]:
    return {name: value for name, value in values.items() if value}


def _of_click(error: click.ClickException) -> tuple[str, dict[str, str]]:
    match error:
        case click.NoSuchCommand():
            return "CLI_COMMAND_UNKNOWN", {"name": error.command_name}
        case click.NoSuchOption():
            return "CLI_OPTION_UNKNOWN", {"name": error.option_name}
        case click.BadOptionUsage():
            return "CLI_OPTION_USE", {"name": error.option_name}
        case click.MissingParameter(param=click.Argument()):
            return "CLI_ARGUMENT_MISSING", {"name": _name(error)}
        case click.MissingParameter():
            return "CLI_OPTION_MISSING", {"name": _name(error)}
        case click.BadParameter():
            return "CLI_VALUE", {"name": _name(error), "rule": _rule(error.param)}
        case _:
            return "CLI_COMMAND_LINE", {}


def _name(error: click.BadParameter) -> str:
    if isinstance(error.param, click.Option):
        return " / ".join(error.param.opts)
    return error.param.human_readable_name.strip("[].") if error.param is not None else ""


def _rule(param: click.Parameter | None) -> str:
    """What a value has to be, in Chinese."""
    kind = param.type if param is not None else None
    if isinstance(kind, click.Choice):
        return "须为 " + "、".join(map(str, kind.choices)) + " 之一"
    if isinstance(kind, click.IntRange | click.FloatRange):
        bounds = (("不小于", kind.min), ("不大于", kind.max))
        return "须为" + "、".join(f"{word} {bound}" for word, bound in bounds if bound is not None) + " 的数值"
    if isinstance(kind, click.Path):
        place = "文件或文件夹" if kind.file_okay and kind.dir_okay else "文件" if kind.file_okay else "文件夹"
        return f"须为{'已存在的' if kind.exists else '可用的'}{place}"
    if kind in (click.INT, click.FLOAT):
        return "须为数值"
    return f"须写作 {getattr(kind, 'zh', kind.name)}" if kind is not None else "与要求不符"
