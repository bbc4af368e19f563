"""A product that an operator works by hand: step cards in Chinese and English, judged from the hub's side.

Owns: what the cards say. Must never: take the operator's word for what came of a step; what only he can see is left for
review.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, Protocol

from erxhub.conform.checks import Skipped
from erxhub.conform.model import Text
from erxhub.conform.sut import write_files
from erxhub.conform.world import INSTITUTIONS, World
from erxhub.v1 import sandbox_pb2

CARDS: Final[Mapping[str, Text]] = {
    "verify_voucher": Text("Scan the patient's e-voucher code.", "扫描患者医保电子凭证。"),
    "issue_prescription": Text(
        "Register the visit, diagnose, and issue the prescription.", "登记就诊、诊断并开具处方。"
    ),
    "revoke": Text("Withdraw the prescription.", "撤销处方。"),
    "query": Text("Look the prescription up.", "查询处方。"),
    "list_available": Text("Scan the code and list the prescriptions.", "扫码并列出可用处方。"),
    "download": Text("Download the prescription.", "下载处方。"),
    "release": Text("Give the prescription back.", "释放处方。"),
    "review": Text("Let the pharmacist review the prescription.", "由药师审方。"),
    "settle": Text("Settle the prescription.", "结算处方。"),
    "dispense": Text("Dispense the drugs.", "调配出库。"),
    "hand_over": Text("Hand the drugs over.", "交付药品。"),
    "undo": Text("Undo the settlement.", "撤销结算。"),
    "reverse": Text("Reverse the settlement whose outcome is unknown.", "对结果未知的结算进行冲正。"),
    "start_delivery": Text("Give the drugs to the courier.", "交配送员配送。"),
    "delivery_step": Text("Report the delivery's next step.", "上报配送进度。"),
    "sign_delivery": Text("Record that the patient has signed for the drugs.", "登记患者签收。"),
    "pull_events": Text("Wait until the product has taken in all news.", "等待产品接收全部消息。"),
    "resume": Text("Let the product finish what was left unfinished.", "让产品完成未决操作。"),
    "reset": Text("Clear the product's local data.", "清空产品本地数据。"),
}
LABELS: Final[Mapping[str, Text]] = {
    "voucher_code": Text("e-voucher code, good for a minute", "凭证码，一分钟内有效"),
    "rx_qr": Text("prescription QR value", "处方二维码"),
    "rx_no": Text("prescription number", "医保处方编号"),
    "person_no": Text("insured person", "参保人编号"),
    "business_type": Text("business type of the code", "凭证业务类型"),
    "decision": Text(
        "decision: pass, reject or return to the doctor", "审方结论：pass 通过、reject 不通过、return 退回医师"
    ),
    "opinion": Text("opinion", "审方意见"),
    "pay": Text("who pays: insured or self", "支付方式：insured 医保、self 自费"),
    "use_account": Text("from the personal account too", "使用个人账户"),
    "reason": Text("reason", "原因"),
    "sign_code": Text("code that the patient tells the courier", "患者告知的签收码"),
    "step": Text("step of the delivery", "配送步骤"),
    "doctor_code": Text("doctor", "医师编号"),
    "encounter_id": Text("visit", "就诊编号"),
    "hospital_rx_no": Text("the hospital's own number", "医院处方编号"),
    "valid_days": Text("days of validity", "有效天数"),
    "diagnoses": Text("diagnoses", "诊断"),
    "lines": Text("drugs: how many, or which", "药品：数量或明细"),
    "lots": Text("packs", "药品批次"),
    "prescription": Text("fields that differ from the usual", "与常规不同的处方字段"),
}
"""What a card calls the arguments of operations, in the order in which it shows them."""
_RESET: Final = Text(
    "A case begins: clear the product's local data (not its configuration).", "用例开始：清空产品本地数据（保留配置）。"
)
_CONFIGURE: Final = Text(
    "Configure the product with the following. The folder is there until the run ends; all of it is in the first file.",
    "请按下列内容配置产品。文件夹保留至本次运行结束，首个文件含全部内容。",
)
_END: Final = Text("End the product's process at once (as a power cut would).", "立即强制结束产品进程（模拟断电）。")
_AGAIN: Final = Text("End the product in order and start it again.", "正常退出产品并重新启动。")


class Operator(Protocol):
    """The person at the product, as the harness reaches him."""

    async def do(self, card: Text, details: Sequence[str]) -> bool:
        """Shows a card, with what it is about line by line, and waits; False when the operator cannot do it."""


class AttachedSut:
    """A product worked by hand. Its certificate and its namespace stay the same for the whole run."""

    tells = False
    wait_scale = 1.0

    def __init__(self, operator: Operator, suite: str) -> None:
        self.suite = suite
        self._operator = operator
        self._arguments: dict[str, Any] = {}

    async def prepare(self, world: World, folder: Path, changes: Mapping[str, Any]) -> None:
        """The first time: where to connect, and with which files. Then: forget what was."""
        if not self._arguments:
            identity = await world.identity(world.sut_role, INSTITUTIONS[world.sut_role])
            self._arguments = write_files(world, identity, folder / "files")
            everything = folder / "files" / "configuration.json"
            everything.write_text(json.dumps(self._arguments, ensure_ascii=False, indent=1), encoding="utf-8")
            shown = {name: value for name, value in self._arguments.items() if name != "trusted_signers"}
            await self._ask(_CONFIGURE, {"configuration": str(everything), **shown})
        await self._ask(_RESET)
        await self._changed(changes)

    async def operate(
        self, op: str, args: Mapping[str, Any], at_ms: int, *, deadline_ms: int, card: Text | None
    ) -> Any:
        """Shows what to do. Raises Skipped when the operator cannot."""
        known = {name: args[name] for name in LABELS if name in args}
        await self._ask(card or CARDS[op], {**known, **args})
        return {}

    async def observed(self, result: Mapping[str, Any], during: list[sandbox_pb2.Exchange]) -> Mapping[str, Any]:
        """What the replies that the product got say: numbers that later steps refer to."""
        found: dict[str, Any] = {}
        for exchange in during:
            for text in exchange.replies_json if exchange.status == "OK" else ():
                for name, value in json.loads(text).items():
                    if isinstance(value, str | int | float):
                        found[_snake(name)] = value
        return found | dict(result)

    async def kill(self, at_ms: int) -> None:
        """Asks for it."""
        await self._ask(_END)
        await self._ask(Text("Start the product again.", "重新启动产品。"))

    async def restart(self, at_ms: int, changes: Mapping[str, Any]) -> None:
        """Asks for it."""
        await self._ask(_AGAIN)
        await self._changed(changes)

    async def _changed(self, changes: Mapping[str, Any]) -> None:
        if changes:
            await self._ask(Text("Change the product's configuration.", "更改产品配置。"), changes)

    async def _ask(self, card: Text, details: Mapping[str, Any] = MappingProxyType({})) -> None:
        if not await self._operator.do(card, [_detail(name, value) for name, value in details.items()]):
            raise Skipped(Text("The operator could not do a step.", "操作员无法完成某一步骤。"))


def _detail(name: str, value: Any) -> str:
    """One line: what it is in both languages, its name in driver-protocol.md, and the value."""
    told = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    label = LABELS.get(name)
    return f"{name}: {told}" if label is None else f"{label.zh} / {label.en} ({name}): {told}"


def _snake(name: str) -> str:
    """A JSON name in the form of cases: rxNo → rx_no."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
