"""VOU: the e-voucher, its code and the reference that steps quote."""

from __future__ import annotations

from erxhub.conform.hub.journey import CONSULT, DOWNLOAD, PICK_UP
from erxhub.conform.hub.run import HubRun
from erxhub.conform.registry import case
from erxhub.v1 import registry_pb2

PROFILES = ("dev", "strict")
LIFE_MS = 60_000


@case(
    id="VOU-002",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="凭证码过期",
    title_en="An expired voucher code",
    level="MUST",
    verifies=("ERR-VCH_EXPIRED", "LC-2.1-voucher.expired"),
    needs=("clock",),
    profiles=PROFILES,
)
async def expired_code(run: HubRun) -> None:
    """V-01, V-02: a code lives 60 seconds by the hub's clock; its last millisecond is good, the next is VCH_EXPIRED."""
    good = await run.show_code(run.place.person_no, CONSULT)
    late = await run.show_code(run.place.person_no, CONSULT)
    verify = run.hospital.drafts.verify_voucher
    await run.advance(by_ms=LIFE_MS)
    run.accepted(
        await run.hospital.ask(await verify(voucher_code=good, business_type=CONSULT)),
        "the code is good until its end",
        "有效期最后时刻仍应有效",
    )
    await run.advance(by_ms=1)
    position = await run.entries()
    answer = await run.hospital.ask(await verify(voucher_code=late, business_type=CONSULT))
    run.refused(answer, "VCH_EXPIRED")
    found = await run.written(position)
    run.checks.that(
        not found["encounter.registered"] and not found["voucher.verified"],
        en="no visit and no verification was written",
        zh="不得写入就诊或核验",
        actual=dict(found),
    )


@case(
    id="VOU-003",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="他人的凭证",
    title_en="A voucher of another person",
    level="MUST",
    verifies=("ERR-VCH_SUBJECT_MISMATCH", "ERR-VCH_REVOKED", "LC-2.1-voucher.try_counted", "LC-2.1-voucher.revoked"),
    profiles=PROFILES,
)
async def code_of_another_person(run: HubRun) -> None:
    """V-12: a code of another person is refused; the third refused decode ends the code, for its own person too."""
    mine, other = run.place.person_no, run.place.second_person_no
    code = await run.show_code(mine, CONSULT)
    verify = run.hospital.drafts.verify_voucher
    position = await run.entries()
    for _ in range(3):
        answer = await run.hospital.ask(await verify(voucher_code=code, business_type=CONSULT, person_no=other))
        run.refused(answer, "VCH_SUBJECT_MISMATCH")
    answer = await run.hospital.ask(await verify(voucher_code=code, business_type=CONSULT, person_no=mine))
    run.refused(answer, "VCH_REVOKED")
    found = await run.written(position)
    run.checks.equal(
        (found["voucher.try_counted"], found["voucher.revoked"], found["voucher.verified"]),
        (3, 1, 0),
        en="three tries are counted and the code is revoked",
        zh="应记录三次尝试并作废该码",
    )
    twice = await run.show_code(mine, CONSULT)
    for _ in range(2):
        await run.hospital.ask(await verify(voucher_code=twice, business_type=CONSULT, person_no=other))
    right = await run.hospital.ask(await verify(voucher_code=twice, business_type=CONSULT, person_no=mine))
    reference = run.must_accept(
        right, "after two refused decodes the code is good", "两次拒绝后该码仍应有效"
    ).voucher_ref
    position = await run.entries()
    visit = await run.journey(person_no=other).visit_request(voucher_ref=reference)
    run.refused(await run.hospital.ask(visit), "VCH_SUBJECT_MISMATCH")
    await run.no_effect(position)


@case(
    id="VOU-004",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="同一凭证码核验两次",
    title_en="The same code verified twice",
    level="MUST",
    verifies=("ERR-VCH_REPLAYED", "INV-I18", "LC-2.1-voucher.verified"),
    profiles=PROFILES,
)
async def code_used_twice(run: HubRun) -> None:
    """V-02, I18: a code is consumed once, by whoever comes first; the first verification stands."""
    code = await run.show_code(run.place.person_no, CONSULT)
    first = await run.hospital.ask(await run.hospital.drafts.verify_voucher(voucher_code=code, business_type=CONSULT))
    reference = run.must_accept(first).voucher_ref
    position = await run.entries()
    for party in (run.hospital, run.hospital_b, run.pharmacy):
        again = await party.drafts.verify_voucher(voucher_code=code, business_type=CONSULT)
        run.refused(await party.ask(again), "VCH_REPLAYED", where=party.name)
    found = await run.written(position)
    run.checks.equal(found["voucher.verified"], 0, en="it is verified once", zh="仅应核验一次")
    visit = await run.journey().visit_request(voucher_ref=reference)
    run.accepted(await run.hospital.ask(visit), "the first reference is good", "首次核验凭据应有效")


@case(
    id="VOU-005",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="伪造的凭证码、未知渠道",
    title_en="A forged code, an unknown channel",
    level="MUST",
    verifies=("ERR-VCH_INVALID", "ERR-VCH_WRONG_BUSINESS"),
    profiles=PROFILES,
)
async def forged_code(run: HubRun) -> None:
    """V-03, V-04, V-14: codes and references that nobody issued, or for another channel or step, open nothing."""
    code = await run.show_code(run.place.person_no, CONSULT)
    verify = run.hospital.drafts.verify_voucher
    forged = code[:-1] + str((int(code[-1]) + 1) % 10)
    position = await run.entries()
    run.refused(await run.hospital.ask(await verify(voucher_code=forged, business_type=CONSULT)), "VCH_INVALID")
    foreign = await verify(voucher_code=code, business_type=CONSULT, channel_id="no-such-channel")
    run.refused(await run.hospital.ask(foreign), "VCH_INVALID", where="unknown channel")
    visit = await run.journey().visit_request(voucher_ref="A" * 64)
    run.refused(await run.hospital.ask(visit), "VCH_INVALID", where="forged reference")
    other = await verify(voucher_code=code, business_type=PICK_UP)
    run.refused(await run.hospital.ask(other), "VCH_WRONG_BUSINESS")
    found = await run.written(position)
    run.checks.that(
        not found["voucher.verified"] and not found["encounter.registered"],
        en="nothing is verified and no visit registered",
        zh="不得核验或登记就诊",
        actual=dict(found),
    )
    fresh = await run.show_code(run.place.person_no, DOWNLOAD)
    mine = await run.pharmacy.ask(await run.pharmacy.drafts.verify_voucher(voucher_code=fresh, business_type=DOWNLOAD))
    borrowed = await run.pharmacy_b.drafts.list_by_voucher(voucher_ref=run.must_accept(mine).voucher_ref)
    run.refused(await run.pharmacy_b.ask(borrowed), "VCH_INVALID", where="a reference that another pharmacy verified")


@case(
    id="VOU-006",
    revision=1,
    since="0.2",
    status="stable",
    first_release=True,
    title_zh="凭证中心不可用",
    title_en="The issuer of vouchers is down",
    level="MUST",
    verifies=("ERR-HUB_UNAVAILABLE", "INV-I18", "INV-I19"),
    needs=("sandbox",),
    profiles=PROFILES,
)
async def voucher_issuer_down(run: HubRun) -> None:
    """MUST-2: what cannot be done now is UNAVAILABLE with RetryInfo and leaves nothing; the same succeeds later.

    Both where the issuer is out of reach and where the consumed code cannot be written: it is not consumed then.
    """
    for fault in (
        "Voucher/VerifyVoucher do=voucher_issuer_down retry_after=1s",
        "voucher.verified do=disk_full",
    ):
        code = await run.show_code(run.place.person_no, CONSULT)
        request = await run.hospital.drafts.verify_voucher(voucher_code=code, business_type=CONSULT)
        position = await run.entries()
        await run.place.set_faults(f"{fault} id=down")
        down = await run.hospital.ask(request, once=True)
        run.refused(down, "HUB_UNAVAILABLE", where=fault)
        delay_ms = down.refusal.retry_after_ms if down.refusal is not None else 0
        run.checks.that(
            delay_ms > 0, point="sut", en="RetryInfo names a delay", zh="应给出重试时间", actual=delay_ms, where=fault
        )
        await run.place.clear_faults()
        found = await run.written(position)
        run.checks.equal(found["voucher.verified"], 0, en="nothing was verified", zh="不得写入核验")
        first = await run.hospital.ask(request)
        reply = run.must_accept(first, "the same request succeeds afterwards", "恢复后同一请求应被受理")
        run.same_reply(first, await run.hospital.ask(request))
        visit = await run.journey().visit_request(voucher_ref=reply.voucher_ref)
        run.accepted(await run.hospital.ask(visit))
        found = await run.written(position)
        run.checks.equal(found["voucher.verified"], 1, en="it is verified once", zh="仅应核验一次")


@case(
    id="VOU-010",
    revision=1,
    since="0.2",
    status="provisional",
    title_zh="参保人停保",
    title_en="The person's insurance is paused",
    level="MUST",
    verifies=("ERR-PSN_INACTIVE", "LC-3.9-person.status_changed.PAUSED", "LC-3.9-person.status_changed.ACTIVE"),
    needs=("sandbox",),
    profiles=PROFILES,
)
async def paused_person(run: HubRun) -> None:
    """M22: the insured status is read at each insured step; each works again once the insurance is resumed."""
    quoted = await run.journey().to("reviewed")
    first = await run.journey().to("listed")
    visit = await run.journey().visit_request()
    download = await first.hold_request()
    quote = await quoted.quote_request()
    shown = await run.show_code(run.place.person_no, CONSULT)
    verify = await run.hospital.drafts.verify_voucher(voucher_code=shown, business_type=CONSULT)
    agency = run.agency.client
    paused, active = registry_pb2.PERSON_STATUS_PAUSED, registry_pb2.PERSON_STATUS_ACTIVE
    await agency.change_person_status(person_no=run.place.person_no, status=paused, reason="停保")
    steps = (
        (run.hospital, verify),
        (run.hospital, visit),
        (run.pharmacy, download),
        (run.pharmacy, quote),
    )
    for party, request in steps:
        run.refused(await party.ask(request), "PSN_INACTIVE")
    issue = await run.channel.drafts.issue_voucher(person_no=run.place.person_no, business_type=CONSULT)
    run.refused(await run.channel.ask(issue), "PSN_INACTIVE")
    await run.chain(first.rx_no, events={"order.held": 0}, refusals={"PSN_INACTIVE": 1})
    await run.chain(quoted.rx_no, events={"settlement.quoted": 0}, refusals={"PSN_INACTIVE": 1})
    await agency.change_person_status(person_no=run.place.person_no, status=active, reason="恢复参保")
    for party, request in steps[1:]:
        run.accepted(
            await party.ask(request), "the same request succeeds once insured again", "恢复参保后同一请求应被受理"
        )
