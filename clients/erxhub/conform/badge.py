"""badge.svg: one line about a run.

Owns: its words and colours. Must never: be green when anything failed or nothing was judged.
"""

from __future__ import annotations

from html import escape
from typing import Final

from erxhub.conform.model import FAILING, Verdict
from erxhub.conform.result import Exit, RunResult

GREEN: Final = "#2e7d32"
YELLOW: Final = "#b26a00"
RED: Final = "#c62828"
_CHARACTER_WIDTH: Final = 6.6
_PADDING: Final = 10


def badge_svg(run: RunResult) -> str:
    """The image."""
    passed = sum(one.verdict is Verdict.PASS for one in run.results)
    judged = sum(one.verdict not in (Verdict.SKIP, Verdict.UNSUPPORTED) for one in run.results)
    label = f"erxhub {run.role} {run.profile}"
    if run.exit_code() is Exit.UNUSABLE:
        text, colour = "unusable", RED
    elif any(one.verdict in FAILING or one.verdict is Verdict.ERROR for one in run.results):
        text, colour = f"{passed}/{judged} passed", RED
    else:
        text, colour = f"{passed}/{judged} passed", GREEN if passed and passed == judged else YELLOW
    left, right = (len(one) * _CHARACTER_WIDTH + 2 * _PADDING for one in (label, text))
    label, text = escape(label), escape(text)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right:.0f}" height="20" role="img"'
        f' aria-label="{label}: {text}">\n'
        f"<title>{label}: {text}</title>\n"
        f'<rect width="{left:.0f}" height="20" fill="#424242"/>\n'
        f'<rect x="{left:.0f}" width="{right:.0f}" height="20" fill="{colour}"/>\n'
        '<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11" text-anchor="middle">\n'
        f'<text x="{left / 2:.0f}" y="14">{label}</text>\n'
        f'<text x="{left + right / 2:.0f}" y="14">{text}</text>\n'
        "</g>\n</svg>\n"
    )
