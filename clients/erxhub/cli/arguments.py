"""Arguments as a person types them: diagnoses, sold lines, lots, instants, business types.

Owns their written forms. Each converts to a plain value, so that `--help` loads neither gRPC nor protobuf. It must
never judge a code or an amount; the hub does, with a reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any, Final, NamedTuple

import click

BEIJING: Final = timezone(timedelta(hours=8))

BUSINESS_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "visit": "01201",
        "online-identity": "03131",
        "download": "02122",
        "purchase": "02121",
        "online-purchase": "03132",
        "pickup": "01302",
    }
)
"""Names for the business types that the national rule pack asks for (用码业务类型); any five digits serve too."""

_QUANTITY: Final = r"(?P<quantity>[0-9]{1,10}(?:\.[0-9]{1,4})?)"
_PRICE: Final = r"(?P<price>[0-9]{1,10}(?:\.[0-9]{1,6})?)"
_LINE: Final = r"(?P<line>[0-9]{1,3})(?::(?P<drug>[^=@:]+))?"


class DiagnosisArgument(NamedTuple):
    """`CODE[:NAME[:TYPE]]`; without a name the hub's disease list gives it. `kind` is 1 western, 2 or 3 Chinese."""

    code: str
    name: str
    kind: str


class SaleArgument(NamedTuple):
    """`LINE_NO[:DRUG]=QTY@PRICE`, price in yuan; without a drug the downloaded prescription names it."""

    line_no: int
    drug_code: str
    quantity: str
    unit_price: str


class LotArgument(NamedTuple):
    """`LINE_NO[:DRUG]=QTY@LOT/EXPIRES[/CODE,CODE…]`; the codes are drug trace codes."""

    line_no: int
    drug_code: str
    quantity: str
    lot_no: str
    expires_on: str
    trace_codes: tuple[str, ...]


class DiagnosisType(click.ParamType[DiagnosisArgument]):
    """The first diagnosis of a command is the main one."""

    name = "CODE[:NAME[:TYPE]]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> DiagnosisArgument:
        if isinstance(value, DiagnosisArgument):
            return value
        code, _, rest = str(value).partition(":")
        name, separator, kind = rest.rpartition(":")
        if not separator or kind not in ("1", "2", "3"):
            name, kind = rest, "1"
        if not code:
            self.fail(f"{value!r} has no code; write CODE, CODE:NAME or CODE:NAME:TYPE (1, 2 or 3)", param, ctx)
        return DiagnosisArgument(code, name, kind)


class SaleType(click.ParamType[SaleArgument]):
    """A sold line."""

    name = "LINE_NO[:DRUG]=QTY@PRICE"
    _form = re.compile(rf"{_LINE}={_QUANTITY}@{_PRICE}")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> SaleArgument:
        if isinstance(value, SaleArgument):
            return value
        found = self._form.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is not LINE_NO=QTY@PRICE, e.g. 1=2@12.50 (price in yuan)", param, ctx)
        return SaleArgument(int(found["line"]), found["drug"] or "", found["quantity"], found["price"])


class LotType(click.ParamType[LotArgument]):
    """A lot of a line."""

    name = "LINE_NO[:DRUG]=QTY@LOT/EXPIRES[/CODE,…]"
    _form = re.compile(
        rf"{_LINE}={_QUANTITY}@(?P<lot>[^/]+)/(?P<expires>[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}})(?:/(?P<codes>.*))?"
    )

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> LotArgument:
        if isinstance(value, LotArgument):
            return value
        found = self._form.fullmatch(str(value))
        if found is None:
            hint = "e.g. 1=2@L2601/2027-12-31/83000000000000000001,83000000000000000002"
            self.fail(f"{value!r} is not LINE_NO=QTY@LOT/EXPIRES[/CODE,CODE], {hint}", param, ctx)
        codes = tuple(code.strip() for code in (found["codes"] or "").split(",") if code.strip())
        return LotArgument(
            int(found["line"]), found["drug"] or "", found["quantity"], found["lot"], found["expires"], codes
        )


class BusinessType(click.ParamType[str]):
    """A name of `BUSINESS_TYPES`, or five digits."""

    name = "BUSINESS"
    zh = "业务类型的代码或名称"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text in BUSINESS_TYPES:
            return BUSINESS_TYPES[text]
        if not re.fullmatch(r"[0-9]{5}", text):
            self.fail(f"{text!r} is neither {', '.join(BUSINESS_TYPES)} nor five digits", param, ctx)
        return text


class InstantType(click.ParamType[int]):
    """An ISO 8601 time, Beijing's where it names no offset; converts to milliseconds since 1970."""

    name = "TIME"
    zh = "2026-03-01T08:00:00 这样的时刻"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            at = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a time like 2026-03-01T09:30:00+08:00", param, ctx)
        return int((at if at.tzinfo else at.replace(tzinfo=BEIJING)).timestamp() * 1000)


class DurationType(click.ParamType[int]):
    """A duration with its unit; converts to milliseconds."""

    name = "DURATION"
    zh = "2h、90m、1d12h 或 300ms 这样的时长"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        from erxhub.client.fault_rules import duration_ms

        if isinstance(value, int):
            return value
        try:
            return duration_ms(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class PositionType(click.ParamType[tuple[int, int]]):
    """Latitude and longitude in degrees, WGS-84; converts to millionths."""

    name = "LAT,LON"
    zh = "纬度,经度，如 30.25,120.17"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        found = re.fullmatch(r"(-?[0-9]{1,2}(?:\.[0-9]+)?),(-?[0-9]{1,3}(?:\.[0-9]+)?)", str(value))
        if found is None:
            self.fail(f"{value!r} is not LATITUDE,LONGITUDE, e.g. 30.2741,120.1551", param, ctx)
        return round(float(found[1]) * 1_000_000), round(float(found[2]) * 1_000_000)


def iso_beijing(at_ms: int) -> str:
    """Milliseconds since 1970 as ISO 8601 with milliseconds and +08:00."""
    whole = datetime.fromtimestamp(at_ms // 1000, BEIJING) + timedelta(milliseconds=at_ms % 1000)
    return whole.isoformat(timespec="milliseconds")
