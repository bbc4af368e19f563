"""Every report is read back by its own consumer: JUnit by a schema, HTML by a browser, CSV and SVG by parsers."""

import csv
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest

from erxhub.conform.badge import GREEN, RED, YELLOW, badge_svg
from erxhub.conform.coverage import COLUMNS, coverage_csv
from erxhub.conform.junit import junit_xml
from erxhub.conform.model import Text, Verdict
from erxhub.conform.report_html import report_html
from erxhub.conform.result import RunResult
from erxhub.v1 import sandbox_pb2
from tests.chromium import opened_page
from tests.conform.ground import a_result, a_run

NASTY = "<script>alert(1)</script> {{rows}} \x00\x1b[31m ]]> & \"'"

# The common subset of the JUnit schemas that build servers read (Jenkins' junit-10.xsd, windyroad's JUnit.xsd):
# element → (attributes that must be there, attributes that may be, children in order with how often, text allowed).
COUNT, SECONDS, ANY = r"\d+", r"\d+\.\d{3}", r"(?s).*"
TOTALS = {"name": ANY, "tests": COUNT, "failures": COUNT, "errors": COUNT, "skipped": COUNT, "time": SECONDS}
SCHEMA = {
    "testsuites": (TOTALS, {}, [("testsuite", "+")], False),
    "testsuite": (TOTALS, {}, [("properties", "?"), ("testcase", "*")], False),
    "properties": ({}, {}, [("property", "*")], False),
    "property": ({"name": ANY, "value": ANY}, {}, [], False),
    "testcase": (
        {"name": ANY, "classname": ANY, "time": SECONDS},
        {},
        [("skipped", "?"), ("error", "?"), ("failure", "?"), ("system-out", "?"), ("system-err", "?")],
        False,
    ),
    "failure": ({"message": ANY, "type": ANY}, {}, [], True),
    "error": ({"message": ANY, "type": ANY}, {}, [], True),
    "skipped": ({"message": ANY}, {}, [], False),
    "system-out": ({}, {}, [], True),
    "system-err": ({}, {}, [], True),
}


def against_schema(element: Xml.Element) -> None:
    """Fails unless the element and all below it are as SCHEMA says."""
    required, optional, children, text = SCHEMA[element.tag]
    assert required.keys() <= set(element.keys()) <= required.keys() | optional.keys(), element.tag
    for name, value in element.items():
        assert re.fullmatch((required | optional)[name], value), (element.tag, name, value)
    pattern = "".join(f"(?:{name} ){often}" for name, often in children)
    assert re.fullmatch(pattern or "", "".join(f"{child.tag} " for child in element)), element.tag
    assert text or not (element.text or "").strip(), element.tag
    for child in element:
        against_schema(child)


def every_verdict() -> RunResult:
    """A run with each verdict, and hostile text everywhere that a product or a driver can put some."""
    results = [a_result(verdict, id=f"DSP-{number:03d}") for number, verdict in enumerate(Verdict, start=1)]
    for result in results:
        result.stderr, result.took_ms = NASTY, 5
        result.steps = [{"where": "steps[0]", "verb": "sut", "did": NASTY, "came": NASTY}]
        result.notes, result.to_review = [Text(NASTY, NASTY)], [Text("look", "看")]
        result.reason = Text(NASTY, "原因")
        result.repeat = "erxhub conform run --run X"
        result.traffic = [sandbox_pb2.Exchange(number=1, method="DispensingService/Settle", actor=NASTY, status="OK")]
    run = a_run(*results)
    run.under_test = {"name": NASTY, "version": NASTY}
    return run


def test_junit_follows_its_schema_and_counts_right() -> None:
    root = Xml.fromstring(junit_xml(every_verdict()))
    against_schema(root)
    suite = root[0]
    assert int(suite.get("tests", "")) == len(suite.findall("testcase")) == len(Verdict)
    for name, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.get(name, "")) == len(suite.findall(f"testcase/{tag}")) > 0
    failed = {case.get("name") for case in suite if case.find("failure") is not None}
    assert len(failed) == 3


def test_the_schema_check_sees_what_is_wrong() -> None:
    root = Xml.fromstring(junit_xml(every_verdict()))
    root[0].append(Xml.Element("testcase", {"name": "x"}))
    with pytest.raises(AssertionError):
        against_schema(root)


def test_what_xml_cannot_hold_is_replaced() -> None:
    assert b"\x00" not in junit_xml(every_verdict())
    assert b"\x1b" not in junit_xml(every_verdict())


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.targets: set[str] = set()
        self.loaded: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        if "id" in found:
            self.ids.append(found["id"])
        if tag == "a":
            self.targets.add(found["href"])
        self.loaded |= {found[name] for name in ("src", "srcset", "data", "action") if name in found}
        if tag == "link":
            self.loaded.add(found["href"])


def test_every_link_of_the_page_resolves_inside_it() -> None:
    links = Links()
    links.feed(report_html(every_verdict()))
    assert len(links.ids) == len(set(links.ids))
    assert links.targets
    assert {target for target in links.targets if not target.startswith("#")} == set()
    assert {target[1:] for target in links.targets} <= set(links.ids)
    assert links.loaded == {"data:,"}


def test_the_page_opens_offline_in_a_browser_without_an_error_or_a_request(tmp_path: Path) -> None:
    page_file = tmp_path / "report.html"
    page_file.write_text(report_html(every_verdict()), encoding="utf-8")
    with opened_page(page_file, "the conformance report") as page:
        shown = "[...document.querySelectorAll('#cases tbody tr')].filter(row => row.offsetParent !== null).length"
        assert page.run(shown) == len(Verdict)
        assert page.run("document.querySelector('h1').innerText") == "互操作一致性测试报告"
        page.run("document.getElementById('language').click()")
        assert page.run("document.querySelector('h1').innerText") == "Conformance report"
        assert page.run("document.documentElement.lang") == "en"
        page.run("verdicts.value = 'FAIL'; verdicts.dispatchEvent(new Event('change'))")
        assert page.run(shown) == 1
        links = "[...document.querySelectorAll('a')].map(link => decodeURIComponent(link.hash.slice(1)))"
        assert page.run(f"{links}.length") > len(Verdict)
        assert page.run(f"{links}.filter(name => !document.getElementById(name))") == []
        assert page.run("document.body.innerText.includes('<script>alert(1)</script> {{rows}}')")
        seen = page.settle()
    assert not seen.errors
    assert not seen.requests


@pytest.mark.parametrize(
    ("found", "colour", "text"),
    [
        ([Verdict.PASS, Verdict.SKIP], GREEN, "1/1 passed"),
        ([Verdict.PASS, Verdict.WARN], YELLOW, "1/2 passed"),
        ([Verdict.PASS, Verdict.FAIL], RED, "1/2 passed"),
        ([Verdict.PASS, Verdict.ERROR], RED, "1/2 passed"),
        ([Verdict.SKIP], YELLOW, "0/0 passed"),
        ([], YELLOW, "0/0 passed"),
    ],
)
def test_the_badge_is_green_only_when_everything_passed(found: list[Verdict], colour: str, text: str) -> None:
    run = a_run(*map(a_result, found))
    image = Xml.fromstring(badge_svg(run))
    assert image.tag == "{http://www.w3.org/2000/svg}svg"
    assert colour in badge_svg(run)
    assert text in "".join(image.itertext())


def test_coverage_says_what_came_of_each_requirement() -> None:
    run = a_run(a_result(Verdict.PASS), a_result(Verdict.FAIL, id="DSP-002"), a_result(Verdict.SKIP, id="DSP-003"))
    run.results[1].case = {**run.results[1].case, "verifies": ["R-1", "R-2"]}
    run.results[2].case = {**run.results[2].case, "verifies": ["R-3"]}
    reader = csv.DictReader(io.StringIO(coverage_csv(run)))
    rows = {row["id"]: row for row in reader}
    assert tuple(reader.fieldnames or ()) == COLUMNS
    assert {name: row["result"] for name, row in rows.items()} == {
        "R-1": "failed",
        "R-2": "failed",
        "R-3": "not judged",
    }
    assert (rows["R-1"]["passed"], rows["R-1"]["failed"]) == ("1", "1")
    assert "DSP-002=FAIL" in rows["R-2"]["cases"]
