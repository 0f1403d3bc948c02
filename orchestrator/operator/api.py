"""The operator's API: where sagas are, why they are stuck, what is wrong, and how to intervene."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import FastAPI, Query
from pydantic import AwareDatetime

from common.http.app import (
    Caller,
    Entrance,
    Problem,
    Refused,
    invalid_field,
    new_app,
    problems,
)
from common.kit.health import Health
from common.messages.contracts import FIRST_ID, MAX_PAGE
from common.messages.errors import Infrastructure, NoAnswer
from common.messages.shop.inventory import StockQuery
from common.messages.shop.payment import AccountsQuery
from common.messages.shop.values import Name, Sku, SkuPrefix
from orchestrator.engine.instance import State
from orchestrator.operator.auditor import Window
from orchestrator.operator.backend import Backend
from orchestrator.operator.dead_letters import add_dead_letters
from orchestrator.operator.interventions import add_interventions
from orchestrator.operator.queries import SagaFilter
from orchestrator.operator.requests import (
    LONGEST,
    Limit,
    Reasoned,
    SagaId,
    Seconds,
    existing_saga,
    named_saga,
)
from orchestrator.operator.schemas import (
    AccountRows,
    ActionPage,
    ActionRow,
    Audit,
    Diagnosis,
    SagaDetail,
    SagaPage,
    SagaRow,
    StockRows,
    Timeline,
    TimelineEntry,
    WatchedRow,
    WatchListPage,
    definition_of,
)
from orchestrator.runtime.actions import ActionFilter

GRACE_SECONDS = 300.0
ACCOUNT_KEY = r"^[^\x00-\x1f\x7f]{1,128}/[A-Z]{3}$"


class WatchedCustomer(Reasoned):
    customer: Name


def make_app(backend: Backend, health: Health, entrance: Entrance) -> FastAPI:
    """Return the whole HTTP surface. It describes itself as /openapi.json and /docs."""
    app = new_app(
        "Sagaproof: operator",
        __doc__ or "",
        health,
        entrance,
        explain=_explain,
        remedies=REMEDIES,
    )
    _sagas(app, backend)
    add_interventions(app, backend)
    _watch_list(app, backend)
    _actions(app, backend)
    _services(app, backend)
    _health(app, backend)
    add_dead_letters(app, backend)
    return app


def _sagas(app: FastAPI, backend: Backend) -> None:
    queries, definitions = backend.queries, backend.definitions

    @app.get("/sagas", responses=problems(404, 422, 503))
    async def sagas(
        state: State | None = None,
        step: Annotated[Name | None, Query(description="the step whose reply is awaited")] = None,
        older_than: Seconds = None,
        customer: Name | None = None,
        reason: Annotated[Name | None, Query(description="why it was compensated")] = None,
        stuck: Annotated[bool, Query(description="only those that are stuck")] = False,
        limit: Limit = 100,
        after: UUID | None = None,
    ) -> SagaPage:
        """List sagas, newest first."""
        which = SagaFilter(state, step, older_than, customer, reason, stuck)
        last = None if after is None else await existing_saga(queries, after)
        found = await queries.sagas(which, last, limit)
        return SagaPage(
            sagas=[SagaRow.of(definitions, seen) for seen in found],
            next=found[-1].instance.saga_id if len(found) == limit else None,
        )

    @app.get("/sagas/{saga_id}", responses=problems(404, 409, 422, 503))
    async def saga(saga_id: SagaId) -> SagaDetail:
        """Show one saga: its steps, attempts and deadlines, and what it waits for."""
        return SagaDetail.of(definitions, await named_saga(queries, saga_id))

    @app.get("/sagas/{saga_id}/timeline", responses=problems(404, 409, 422, 503))
    async def timeline(
        saga_id: SagaId,
        after: Annotated[int, Query(ge=0, lt=2**63, description="the last entry you have")] = 0,
        limit: Limit = MAX_PAGE,
    ) -> Timeline:
        """List what happened to a saga, in order. To follow it, ask again with `after`."""
        seen = await named_saga(
            queries, saga_id
        )  # read first: an end seen here is in the log that is read next
        ident, definition = seen.instance.saga_id, definition_of(definitions, seen.instance)
        entries = await queries.timeline(ident, after, limit)
        return Timeline(
            saga_id=ident,
            ended=seen.ended_at is not None and len(entries) < limit,
            entries=[TimelineEntry.of(definition, logged) for logged in entries],
            next=entries[-1].id if entries else after,
        )


def _actions(app: FastAPI, backend: Backend) -> None:
    queries = backend.queries

    @app.get("/actions", responses=problems(404, 409, 422, 503))
    async def actions(
        saga: Annotated[str | None, Query(description="an id, or its first digits")] = None,
        actor: Name | None = None,
        action: Annotated[Name | None, Query(description="compensate, retry, resolve ...")] = None,
        outcome: Literal["done", "refused"] | None = None,
        limit: Limit = 100,
        after: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    ) -> ActionPage:
        """List the audit log: what operators did and were refused, newest first."""
        saga_id = None if saga is None else (await named_saga(queries, saga)).instance.saga_id
        which = ActionFilter(saga_id, actor, action, outcome)
        found = await queries.actions(which, after, limit)
        return ActionPage(
            actions=[ActionRow.of(recorded) for recorded in found],
            next=found[-1].id if len(found) == limit else None,
        )


def _watch_list(app: FastAPI, backend: Backend) -> None:
    @app.get("/watch-list", responses=problems(422, 503))
    async def watched(limit: Limit = 100, after: Name | None = None) -> WatchListPage:
        """List the customers whose orders are parked at the gate, by name."""
        found = await backend.queries.watched(after, limit)
        return WatchListPage(
            customers=[WatchedRow.model_validate(row) for row in found],
            next=found[-1].customer if len(found) == limit else None,
        )

    @app.post("/watch-list", responses=problems(403, 422, 503))
    async def watch(wanted: WatchedCustomer, caller: Caller) -> WatchedRow:
        """Park this customer's orders that reach their gate from now on."""
        row = await backend.watch_list.add(wanted.customer, caller.name, wanted.reason)
        return WatchedRow.model_validate(row)

    @app.post("/watch-list/remove", responses=problems(403, 404, 422, 503))
    async def unwatch(wanted: WatchedCustomer, caller: Caller) -> WatchListPage:
        """Take a customer off the list. Orders already parked still wait for a decision."""
        if not await backend.watch_list.remove(wanted.customer, caller.name, wanted.reason):
            remedy = "GET /watch-list shows who is on it"
            raise Refused(404, Problem(error="not_watched", field="customer", remedy=remedy))
        return await watched()


def _services(app: FastAPI, backend: Backend) -> None:
    @app.get("/stock", responses=problems(422, 503))
    async def stock(
        sku: Annotated[SkuPrefix, Query(description="its first characters")] = "",
        limit: Limit = 100,
        after: Sku | None = None,
    ) -> StockRows:
        """Show how many pieces of each SKU are on hand, held and dispatched."""
        page = await backend.services.stock(StockQuery(prefix=sku, after=after, limit=limit))
        rows = list(page.rows)
        return StockRows(stock=rows, next=rows[-1].sku if page.more else None)

    @app.get("/accounts", responses=problems(422, 503))
    async def accounts(
        customer: Name | None = None,
        limit: Limit = 100,
        after: Annotated[str | None, Query(pattern=ACCOUNT_KEY)] = None,
    ) -> AccountRows:
        """List customers' accounts and their balances."""
        name, _, currency = (after or "").rpartition("/")
        place = (name, currency) if after else None
        query = AccountsQuery(customer=customer, after=place, limit=limit)
        page = await backend.services.accounts(query)
        rows = list(page.rows)
        last = f"{rows[-1].customer}/{rows[-1].currency}" if page.more else None
        return AccountRows(accounts=rows, next=last)


def _health(app: FastAPI, backend: Backend) -> None:
    @app.get("/doctor")
    async def doctor() -> Diagnosis:
        """Check every process, queue and schema; return what is wrong and what to do about it."""
        return Diagnosis.of(await backend.doctor.look())

    @app.get("/audit", responses=problems(422, 503))
    async def audit(
        since: Annotated[
            AwareDatetime | None, Query(description="leave out what was settled earlier")
        ] = None,
        until: Annotated[
            AwareDatetime | None, Query(description="leave out what began then or later")
        ] = None,
        grace: Annotated[
            float, Query(ge=0, le=LONGEST, description="seconds an order may wait for its saga")
        ] = GRACE_SECONDS,
        limit: Limit = MAX_PAGE,
        after: UUID = FIRST_ID,
    ) -> Audit:
        """Compare ended sagas with what each service holds; return a page of what disagrees."""
        window = Window(since, until, grace, after, limit)
        return Audit.of(await backend.auditor.page(window))


REMEDIES = {
    Infrastructure: "the operator's database did not answer: see GET /doctor (saga doctor)",
    NoAnswer: "the service that holds this did not answer in time: see GET /doctor (saga doctor)",
}


def _explain(errors: Sequence[Any]) -> Problem:
    return invalid_field(errors, "invalid_request")
