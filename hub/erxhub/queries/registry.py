"""What an agency reads of its registry, and what everybody reads of the catalogue.

Owns the rule that an agency reads inside its area only: a record outside it gets the answer of one that does not exist.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from erxhub.core import guards
from erxhub.core.catalog import (
    CHRONIC,
    DATASET_NAMES,
    DISEASES,
    DRUGS,
    FREQUENCIES,
    REGIONS,
    edition_in_force,
)
from erxhub.core.model import Accepted, Caller, Refused, Target
from erxhub.ledger.store import Wanted
from erxhub.policy.codes import has_form
from erxhub.queries.base import Paging, Query, ReadContext, View, listed, paging
from erxhub.v1 import catalog_pb2, registry_pb2, state_pb2

_ROW_FIELDS: Final[Mapping[str, str]] = {
    DRUGS: "drug",
    DISEASES: "disease",
    REGIONS: "region",
    FREQUENCIES: "frequency",
    CHRONIC: "chronic",
}
"""Where a row of a dataset stands in a CatalogEntry."""


# ---- records as they are shown ----


async def _load_revocations(
    view: View, holders: Iterable[state_pb2.InstitutionState | state_pb2.PractitionerState]
) -> None:
    """Look up the revocations of all keys of a page in one round."""
    await view.names("revoked_key", (key.key_id.encode() for holder in holders for key in holder.keys))


async def _keys_shown(
    view: View, records: Iterable[registry_pb2.SigningKeyRecord]
) -> list[registry_pb2.SigningKeyRecord]:
    """The keys with what was said about them since: a revocation is an entry of the ledger's stream."""
    keys = list(records)
    revoked = await view.names("revoked_key", (key.key_id.encode() for key in keys))
    shown = []
    for key in keys:
        record = registry_pb2.SigningKeyRecord()
        record.CopyFrom(key)
        record.revoked = key.key_id.encode() in revoked
        shown.append(record)
    return shown


async def _institution_shown(
    view: View, key: bytes, state: state_pb2.InstitutionState
) -> registry_pb2.InstitutionRecord:
    return registry_pb2.InstitutionRecord(
        institution_code=state.institution_code,
        name=state.name,
        area_code=state.area_code,
        level=state.level,
        licences=state.licences,
        agreements=state.agreements,
        keys=await _keys_shown(view, state.keys),
        etag=view.etag(key),
    )


async def _practitioner_shown(
    view: View, key: bytes, state: state_pb2.PractitionerState
) -> registry_pb2.PractitionerRecord:
    return registry_pb2.PractitionerRecord(
        practitioner_code=state.practitioner_code,
        name=state.name,
        kind=state.kind,
        status=state.status,
        practice_years=state.practice_years,
        institution_codes=state.institution_codes,
        dual_channel=state.dual_channel,
        keys=await _keys_shown(view, state.keys),
        case_no=state.case_no,
        etag=view.etag(key),
    )


# ---- institutions ----


async def _institution_in_area(
    view: View, caller: Caller, code: str
) -> tuple[bytes, state_pb2.InstitutionState] | Refused:
    """A registered institution of the agency's area. Refusals: INST_CODE, RECORD_UNKNOWN."""
    if not (has_form("hospital", code) or has_form("pharmacy", code)):
        return Refused("INST_CODE", field="institution_code")
    key = (await view.names("institution", [code.encode()])).get(code.encode())
    state = await view.state(key, state_pb2.InstitutionState) if key else None
    if key is None or state is None:
        return Refused("RECORD_UNKNOWN", field="institution_code")
    if not guards.area_covers(caller.area_code, state.area_code):
        return Refused("RECORD_UNKNOWN", field="institution_code", targets=(Target(key),))
    return key, state


async def get_institution(
    ctx: ReadContext, caller: Caller, request: registry_pb2.GetInstitutionRequest
) -> Accepted | Refused:
    """One institution of the area with its agreements and seal keys. Refusals: INST_CODE, RECORD_UNKNOWN."""
    view = View(ctx, caller)
    found = await _institution_in_area(view, caller, request.institution_code)
    if isinstance(found, Refused):
        return found
    key, state = found
    record = await _institution_shown(view, key, state)
    return Accepted(registry_pb2.GetInstitutionResponse(institution=record), targets=(Target(key),))


async def list_institutions(
    ctx: ReadContext, caller: Caller, request: registry_pb2.ListInstitutionsRequest
) -> Accepted | Refused:
    """The institutions of the agency's area, in the order of registration. Refusals: PAGE_TOKEN_INVALID."""
    page = paging(ctx, caller, "RegistryService/ListInstitutions", request.page)
    if isinstance(page, Refused):
        return page
    keys, next_token = await listed(page, "institutions", caller.area_code.encode())
    view = View(ctx, caller)
    states = await view.states(keys, state_pb2.InstitutionState)
    await _load_revocations(view, states.values())
    reply = registry_pb2.ListInstitutionsResponse(
        institutions=[await _institution_shown(view, key, state) for key, state in states.items()],
        next_page_token=next_token,
    )
    return Accepted(reply, targets=tuple(Target(key) for key in states))


# ---- practitioners ----


async def get_practitioner(
    ctx: ReadContext, caller: Caller, request: registry_pb2.GetPractitionerRequest
) -> Accepted | Refused:
    """One practitioner whom an agency of the area registered, or who works there. Refusals: RECORD_UNKNOWN."""
    view = View(ctx, caller)
    code = request.practitioner_code.encode()
    key = (await view.names("practitioner", [code])).get(code)
    state = await view.state(key, state_pb2.PractitionerState) if key else None
    if key is None or state is None:
        return Refused("RECORD_UNKNOWN", field="practitioner_code")
    areas = [state.area_code, *(institution_code[1:7] for institution_code in state.institution_codes)]
    if not any(guards.area_covers(caller.area_code, area) for area in areas):
        return Refused("RECORD_UNKNOWN", field="practitioner_code", targets=(Target(key),))
    record = await _practitioner_shown(view, key, state)
    return Accepted(registry_pb2.GetPractitionerResponse(practitioner=record), targets=(Target(key),))


async def list_practitioners(
    ctx: ReadContext, caller: Caller, request: registry_pb2.ListPractitionersRequest
) -> Accepted | Refused:
    """The practitioners of an institution of the area, in the order of registration.

    Refusals: INST_CODE, RECORD_UNKNOWN, PAGE_TOKEN_INVALID.
    """
    view = View(ctx, caller)
    found = await _institution_in_area(view, caller, request.institution_code)
    if isinstance(found, Refused):
        return found
    page = paging(ctx, caller, "RegistryService/ListPractitioners", request.page, [request.institution_code])
    if isinstance(page, Refused):
        return page
    keys, next_token = await listed(page, "practitioners", request.institution_code.encode())
    states = await view.states(keys, state_pb2.PractitionerState)
    await _load_revocations(view, states.values())
    reply = registry_pb2.ListPractitionersResponse(
        practitioners=[await _practitioner_shown(view, key, state) for key, state in states.items()],
        next_page_token=next_token,
    )
    return Accepted(reply, targets=tuple(Target(key) for key in states))


# ---- persons ----


async def get_person(ctx: ReadContext, caller: Caller, request: registry_pb2.GetPersonRequest) -> Accepted | Refused:
    """One person insured in the area. The identity number is never shown. Refusals: RECORD_UNKNOWN."""
    view = View(ctx, caller)
    key = await view.ask(lambda tx: tx.find_secret("person", request.person_no))
    state = await view.state(key, state_pb2.PersonState) if key else None
    if key is None or state is None:
        return Refused("RECORD_UNKNOWN", field="person_no")
    target = Target(key, key)
    if not guards.area_covers(caller.area_code, state.insured_area_code):
        return Refused("RECORD_UNKNOWN", field="person_no", targets=(target,))
    account = await view.state(state.account_key, state_pb2.AccountState)
    record = registry_pb2.PersonRecord(
        person_no=state.person_no,
        name=state.name,
        status=state.status,
        sex=state.sex,
        born_on=state.born_on,
        insured_area_code=state.insured_area_code,
        insurance_type=state.insurance_type,
        person_type=state.person_type,
        account_balance_fen=account.balance_fen if account else 0,
        activated_channels=[held.channel_id for held in state.activations if held.active],
        chronic_codes=state.chronic_codes,
        etag=view.etag(key),
    )
    return Accepted(registry_pb2.GetPersonResponse(person=record), targets=(target,))


# ---- catalogue ----


async def list_catalog(
    ctx: ReadContext, caller: Caller, request: registry_pb2.ListCatalogRequest
) -> Accepted | Refused:
    """The editions of a code list, and the rows of the one in force by code. Everybody may; no area.

    Later pages show the edition of the first one, even when another comes into force meanwhile.
    Refusals: PAGE_TOKEN_INVALID.
    """
    dataset = DATASET_NAMES[request.dataset]
    page = paging(ctx, caller, "RegistryService/ListCatalog", request.page, [dataset, request.code_prefix])
    if isinstance(page, Refused):
        return page
    view = View(ctx, caller)
    ledger = await view.state(ctx.ledger_key, state_pb2.LedgerState)
    edition, _, after_code = page.place.decode().partition("/")
    if not page.place:
        edition, after_code = edition_in_force(ledger, dataset, view.now_ms) or "", ""
    rows = await _rows(page, dataset, edition, after_code, request.code_prefix) if edition else []
    shown = rows[: page.size]
    reply = registry_pb2.ListCatalogResponse(
        editions=[held for held in (ledger.editions if ledger else ()) if held.dataset == request.dataset],
        entries=[_entry(dataset, body) for _, body in shown],
        next_page_token=page.token(f"{edition}/{shown[-1][0]}".encode()) if len(rows) > page.size else "",
    )
    return Accepted(reply)


async def _rows(page: Paging, dataset: str, edition: str, after_code: str, prefix: str) -> list[tuple[str, bytes]]:
    """Rows with the prefix after a code, one more than the page shows if there are so many."""
    store = page.ctx.store
    rows: list[tuple[str, bytes]] = []
    if prefix and not after_code:
        # The page below begins after the prefix, so a code that is the prefix is looked up by itself.
        exact = (dataset, edition, prefix)
        body = (await store.read(Wanted(catalog=frozenset({exact})))).catalog.get(exact)
        rows = [] if body is None else [(prefix, body)]
    rows += await store.catalog_page(dataset, edition, after_code or prefix, page.size + 1)
    return [(code, body) for code, body in rows if code.startswith(prefix)]


def _entry(dataset: str, body: bytes) -> catalog_pb2.CatalogEntry:
    entry = catalog_pb2.CatalogEntry()
    getattr(entry, _ROW_FIELDS[dataset]).ParseFromString(body)
    return entry


QUERIES: Final[Mapping[str, Query]] = {
    "RegistryService/GetInstitution": get_institution,
    "RegistryService/ListInstitutions": list_institutions,
    "RegistryService/GetPractitioner": get_practitioner,
    "RegistryService/ListPractitioners": list_practitioners,
    "RegistryService/GetPerson": get_person,
    "RegistryService/ListCatalog": list_catalog,
}
