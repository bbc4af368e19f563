"""A product that an operator works by hand: step cards in Chinese and English, judged from the hub's side.

Owns: what the cards say. Must never: take the operator's word for what came of a step; what only he can see is left for
review.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
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
_END: Final = Text("End the product's process at once (as a power cut would).", "立即强制结束产品进程（模拟断电）。")
_AGAIN: Final = Text("End the product in order and start it again.", "正常退出产品并重新启动。")


class Operator(Protocol):
    """The person at the product, as the harness reaches him."""

    async def do(self, card: Text) -> bool:
        """Shows a card and waits; False when the operator cannot do it."""


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
            lines = "\n".join(
                f"  {name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
                for name, value in self._arguments.items()
                if name != "trusted_signers"
            )
            signers = folder / "files" / "trusted_signers.json"
            signers.write_text(json.dumps(self._arguments["trusted_signers"], ensure_ascii=False, indent=1))
            lines += f"\n  trusted_signers: {signers}"
            await self._ask(Text(f"Configure the product:\n{lines}", f"请配置产品：\n{lines}"))
        await self._ask(CARDS["reset"])
        await self._changed(changes)

    async def operate(
        self, op: str, args: Mapping[str, Any], at_ms: int, *, deadline_ms: int, card: Text | None
    ) -> Any:
        """Shows what to do. Raises Skipped when the operator cannot."""
        shown = card or CARDS[op]
        with_what = "; ".join(f"{name} = {value}" for name, value in args.items())
        more = f" [{with_what}]" if with_what else ""
        await self._ask(Text(shown.en + more, shown.zh + more))
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
            what = ", ".join(f"{name} = {value}" for name, value in changes.items())
            await self._ask(Text(f"Change the product's configuration: {what}.", f"更改产品配置：{what}。"))

    async def _ask(self, card: Text) -> None:
        if not await self._operator.do(card):
            raise Skipped(Text("The operator could not do a step.", "操作员无法完成某一步骤。"))


def _snake(name: str) -> str:
    """A JSON name in the form of cases: rxNo → rx_no."""
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
