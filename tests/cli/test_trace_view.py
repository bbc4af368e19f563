"""The timeline of a trace: its width, its words, and that nothing of the chain is left out."""

import re
from typing import Any

import pytest

from erxhub.audit.gaps import GAPS as GAPS_OF_THE_HUB
from erxhub.cli.trace_view import GAPS, STAGES, columns, fit, plain, render_trace, wrap

RX_NO = "330100000000000000000000001"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def entry(number: int, event: str, flow: str = "information", **changes: Any) -> dict[str, Any]:
    return {
        "stream": "prescription/0123456789abcdef",
        "version": number,
        "type": event,
        "at": f"2026-11-22T10:00:{number:02d}.123+08:00",
        "actor": "hospital/H33010099901/D330100990001",
        "flow": flow,
        "leaf_hash": f"{number:064x}",
        "summary": "",
    } | changes


def trace(**changes: Any) -> dict[str, Any]:
    stages: dict[str, list[dict[str, Any]]] = {
        "diagnosis": [
            entry(1, "encounter.registered", stream="encounter/fedcba9876543210", actor="hospital/H33010099901"),
            entry(2, "diagnosis.recorded", summary="main I10.x00x002, 1 diagnosis"),
        ],
        "prescription": [entry(3, "prescription.uploaded", summary="2 lines " + "高血压" * 40)],
        "transaction": [entry(4, "settlement.committed", "fund", summary="total 32.61, fund 22.83")],
        "delivery": [entry(5, "dispense.handed_over", "goods")],
    }
    return {
        "rx_no": RX_NO,
        "light": "GREEN",
        "complete": True,
        "gaps": [],
        "verified": True,
        "as_of": 42,
        "stages": [{"stage": stage, "entries": entries} for stage, entries in stages.items()],
        "flows": {
            "information": {"agrees": True, "summary": "prescribed, reviewed, received"},
            "fund": {"agrees": True, "summary": "32.61 = 22.83 + 9.78"},
            "goods": {"agrees": True, "summary": "line 1: 1 of 1, line 2: 1 of 1"},
        },
        "accesses": [
            {
                "at": "2026-11-22T10:00:09.000+08:00",
                "actor": "pharmacy/P33010099102",
                "kind": "refusal",
                "method": "DispensingService/DownloadPrescription",
                "outcome": "ORDER_ALREADY_HELD",
            },
            {
                "at": "2026-11-22T10:00:10.000+08:00",
                "actor": "auditor/auditor-1",
                "kind": "access",
                "method": "AuditService/TraceChain",
                "outcome": "OK",
            },
        ],
    } | changes


@pytest.mark.parametrize("width", [80, 100, 140])
@pytest.mark.parametrize("colour", [False, True])
def test_no_line_is_wider_than_asked(width: int, colour: bool) -> None:
    long = trace(gaps=list(GAPS), light="RED", complete=False, verified=None)
    long["stages"][0]["entries"].append(entry(6, "x" * 90, actor="甲" * 70, summary="乙" * 300))
    long["accesses"].append(long["accesses"][0] | {"actor": "丙" * 80, "outcome": "Q" * 60, "method": "m" * 90})
    for line in render_trace(long, width, colour).splitlines():
        assert columns(COLOUR.sub("", line)) <= width, line


def test_the_prescription_and_its_light_come_first() -> None:
    assert render_trace(trace()).splitlines()[:2] == [f"处方编号 rx_no {RX_NO}", "● GREEN 绿灯 链条完整"]


def test_four_stages_stand_in_order_with_their_chinese_names() -> None:
    text = render_trace(trace())
    places = [text.index(f"{chinese} {stage}") for stage, chinese in STAGES.items()]
    assert places == sorted(places)


def test_every_entry_shows_time_flow_type_actor_and_version() -> None:
    line = next(one for one in render_trace(trace()).splitlines() if "settlement.committed" in one)
    assert line.startswith("│ 10:00:04.123 资 settlement.committed")
    assert "hospital/H33010099901/D330100990001" in line
    assert line.endswith(" 012345#4")


def test_a_long_summary_is_wrapped_and_kept_whole() -> None:
    shown = "".join(line.lstrip("│ ") for line in render_trace(trace()).splitlines())
    assert "高血压" * 40 in shown


def test_an_empty_stage_is_drawn_all_the_same() -> None:
    empty = trace()
    empty["stages"][3]["entries"] = []
    assert "配送 delivery" in render_trace(empty)
    assert "无记录 nothing recorded" in render_trace(empty)


def test_gaps_are_explained_in_both_languages() -> None:
    text = render_trace(trace(light="RED", complete=False, gaps=["GAP_NO_REVIEW", "GAP_OF_TOMORROW"]))
    assert "✗ GAP_NO_REVIEW" in text
    assert "无药师审核 · a settlement or a sale without a passed review" in text
    assert "✗ GAP_OF_TOMORROW" in text


def test_every_gap_of_the_hub_has_a_meaning() -> None:
    assert list(GAPS) == list(GAPS_OF_THE_HUB)


def test_accesses_and_refused_attempts_are_both_listed() -> None:
    text = render_trace(trace())
    assert re.search(r"✗ 2026-11-22 10:00:09 pharmacy/P33010099102 +DownloadPrescription +ORDER_ALREADY_HELD", text)
    assert re.search(r"· 2026-11-22 10:00:10 auditor/auditor-1 +TraceChain +OK", text)


def test_streams_are_named_in_full_below() -> None:
    text = render_trace(trace())
    assert "encounter/fedcba9876543210  1" in text
    assert "prescription/0123456789abcdef  4" in text


def test_a_disagreeing_flow_says_so() -> None:
    odd = trace()
    odd["flows"]["fund"]["agrees"] = False
    assert "资金流 fund: 不一致 DISAGREES" in render_trace(odd)


@pytest.mark.parametrize(("verified", "words"), [(True, "是 yes"), (False, "校验失败 NO"), (None, "--verify")])
def test_the_verification_is_said_in_words(verified: bool | None, words: str) -> None:
    assert words in render_trace(trace(verified=verified))


def test_without_colour_there_is_no_escape_and_with_it_only_colour_is_added() -> None:
    bare, painted = render_trace(trace()), render_trace(trace(), colour=True)
    assert "\x1b" not in bare
    assert COLOUR.sub("", painted) == bare
    assert painted != bare


def test_a_record_cannot_steer_the_terminal() -> None:
    nasty = trace()
    nasty["stages"][1]["entries"] = [entry(3, "prescription.uploaded", actor="a\x1b[2J\nb", summary="c\rd\x07")]
    text = render_trace(nasty)
    assert "\x1b" not in text
    assert "\r" not in text
    assert "\x07" not in text


def test_a_timeline_needs_some_width() -> None:
    with pytest.raises(ValueError):
        render_trace(trace(), width=40)


def test_chinese_characters_take_two_columns_and_combining_ones_none() -> None:
    assert columns("处方 a") == 6
    assert columns("é") == 1
    assert fit("处方笺", 5) == "处方…"
    assert fit("处方笺", 4) == "处… "
    assert fit("ab", 4) == "ab  "
    assert wrap("处方 处方处方", 5) == ["处方", "处方", "处方"]
    assert wrap("", 5) == []
    assert plain("a\tb") == "a�b"
