"""The inspector in a real browser: it opens from a file, asks for nothing, and shows what was recorded."""

from pathlib import Path

import pytest

from erxhub.sandbox.inspector import inspector_page
from erxhub.v1 import sandbox_pb2
from tests.chain import Chain
from tests.chromium import opened_page
from tests.sandbox.exchange_ground import ground
from tests.sandbox.test_faults import pharmacy_stub, release, status_of

WHAT = "the traffic inspector"
NASTY = "</script><script>window.broken=1</script><!-- <b>\u2028"


async def _recorded() -> list[sandbox_pb2.Exchange]:
    """A prescription up to its hold, and a lost ack."""
    async with ground() as live:
        chain = await Chain(live).held()
        live.rule(rule_id="lost", method="Dispensing/ReleaseOrder", action=sandbox_pb2.FAULT_ACTION_LOSE_ACK, nth=1)
        stub = await pharmacy_stub(live)
        await status_of(stub.ReleaseOrder(release(chain.rx_no)))
        await stub.ReleaseOrder(release(chain.rx_no))
        return await live.traffic()


async def test_the_page_opens_from_a_file_without_an_error_or_a_request(tmp_path: Path) -> None:
    exchanges = await _recorded()
    path = tmp_path / "traffic.html"
    path.write_text(inspector_page(exchanges, "vendor-1", now_ms=exchanges[0].received_at_ms), encoding="utf-8")
    with opened_page(path, WHAT) as page:
        assert page.run("document.querySelectorAll('#rows tr').length") == len(exchanges)
        assert "vendor-1" in page.run("document.body.innerText")

        page.run("document.getElementById('filter').value = 'lose_ack'")
        page.run("document.getElementById('filter').dispatchEvent(new Event('input'))")
        assert page.run("document.querySelectorAll('#rows tr').length") == 1
        page.run("document.querySelector('#rows tr').click()")
        shown = page.run("document.getElementById('detail').innerText")
        assert "lost lose_ack" in shown
        assert "order.released" in shown
        assert "release-00001" in shown

        page.run("document.getElementById('filter').value = 'UploadPrescription'")
        page.run("document.getElementById('filter').dispatchEvent(new Event('input'))")
        page.run("document.querySelector('#rows tr').click()")
        shown = page.run("document.getElementById('detail').innerText")
        assert shown.count("有效") >= 3
        assert "payload_json" in shown

        page.run("document.getElementById('language').click()")
        assert page.run("document.documentElement.lang") == "en"
        assert "Traffic of the sandbox" in page.run("document.body.innerText")
        seen = page.settle()
    assert (seen.errors, seen.requests) == ([], [])


def test_what_a_caller_sent_is_never_markup(tmp_path: Path) -> None:
    exchange = sandbox_pb2.Exchange(
        number=1,
        method=NASTY,
        actor=NASTY,
        requests_json=[NASTY],
        replies_json=['{"a": "<img src=x onerror=alert(1)>"}'],
    )
    path = tmp_path / "nasty.html"
    path.write_text(inspector_page([exchange], NASTY, language="en"), encoding="utf-8")
    with opened_page(path, WHAT) as page:
        page.run("document.querySelector('#rows tr').click()")
        assert page.run("typeof window.broken") == "undefined"
        assert page.run("document.querySelectorAll('img, b').length") == 0
        assert page.run("document.querySelector('#rows td:nth-child(4)').textContent") == NASTY
        seen = page.settle()
    assert (seen.errors, seen.requests) == ([], [])


def test_an_empty_page_opens_too(tmp_path: Path) -> None:
    path = tmp_path / "empty.html"
    path.write_text(inspector_page([], "nobody", language="en"), encoding="utf-8")
    with opened_page(path, WHAT) as page:
        assert "Nothing matches." in page.run("document.body.innerText")
        seen = page.settle()
    assert (seen.errors, seen.requests) == ([], [])


@pytest.mark.parametrize(
    ("body", "errors", "requests"),
    [
        ("<script>console.error('no')</script>", 1, 0),
        ("<script>throw new Error('no')</script>", 1, 0),
        ("<script>setTimeout(() => missing(), 20)</script>", 1, 0),
        ("<img src='http://localhost:9/x.png'>", 1, 1),
        ("<link rel=stylesheet href='other.css'>", 1, 1),
        ("<script>fetch('http://localhost:9/').catch(() => 0)</script>", 1, 1),
    ],
)
def test_the_check_sees_what_it_is_meant_to_see(tmp_path: Path, body: str, errors: int, requests: int) -> None:
    path = tmp_path / "bad.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><link rel=icon href='data:,'>{body}", encoding="utf-8")
    with opened_page(path, WHAT) as page:
        seen = page.settle()
    assert len(seen.errors) >= errors
    assert len(seen.requests) == requests


def test_it_speaks_two_languages_and_no_third() -> None:
    with pytest.raises(ValueError, match="zh and en"):
        inspector_page([], "x", language="fr")
