"""The inspector: recorded traffic as one HTML file that opens anywhere, offline.

Owns the file. It fetches nothing and sends nothing, says so to the browser, and shows everything as text: what a caller
sent is never markup here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from importlib import resources
from typing import Any, Final

from google.protobuf import json_format

from erxhub.v1 import sandbox_pb2

_MARK: Final = "@DATA@"
LANGUAGES: Final = ("zh", "en")


def inspector_page(
    exchanges: Iterable[sandbox_pb2.Exchange], namespace: str, *, now_ms: int = 0, language: str = "zh"
) -> str:
    """One HTML page with all of these exchanges, oldest first. `now_ms`: the namespace's clock, 0 to leave it out;
    `language`: the one that it opens in, "zh" or "en". Raises ValueError for another.
    """
    if language not in LANGUAGES:
        raise ValueError(f"the inspector speaks {' and '.join(LANGUAGES)}, not {language}")
    data = {
        "namespace": namespace,
        "now_ms": now_ms,
        "language": language,
        "exchanges": [_shown(exchange) for exchange in exchanges],
    }
    template = resources.files("erxhub.sandbox").joinpath("inspector.html").read_text(encoding="utf-8")
    before, _, after = template.partition(_MARK)
    return before + _as_script(data) + after


def _shown(exchange: sandbox_pb2.Exchange) -> dict[str, Any]:
    shown: dict[str, Any] = json_format.MessageToDict(exchange, preserving_proto_field_name=True)
    for told, entry in zip(shown.get("entries", ()), exchange.entries, strict=True):
        told["stream_key"] = entry.stream_key.hex()
    return shown


def _as_script(data: Any) -> str:
    """JSON that cannot end the script element that it stands in, whatever its texts hold."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
