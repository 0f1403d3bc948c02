"""The operator's API: where a saga is, why it stands still, what is wrong with the house; and
what a person decides at a gate.

Owns: what an operator may ask; of dead letters letters_api.py. Must not know: SQL, the broker's
driver, what a decision leads to.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import FastAPI, Query
from pydantic import AwareDatetime, Field

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
from common.messages.contracts import (
    FIRST_ID,
    MAX_PAGE,
    AccountsPage,
    AccountsQuery,
    Name,
    Sku,
    SkuPrefix,
    StockPage,
    StockQuery,
)
from common.messages.errors import IllegalTransition, Infrastructure, NoAnswer
from orchestrator.engine.instance import State
from orchestrator.operator.auditor import AuditedPage, Window
from orchestrator.operator.dead_letters import LetterSources, letters
from orchestrator.operator.doctor import House
from orchestrator.operator.house_views import (
    Accounts,
    ActionRow,
    Actions,
    Audit,
    Diagnosis,
    Stock,
    WatchedRow,
    WatchList,
)
from orchestrator.operator.interventions import Hands, hands
from orchestrator.operator.naming import whole_id
from orchestrator.operator.queries import Logged, Parked, Wanted
from orchestrator.operator.requests import LONGEST, Limit, Reasoned, SagaId, Seconds
from orchestrator.operator.schemas import (
    Definitions,
    SagaDetail,
    SagaPage,
    SagaRow,
    Timeline,
    TimelineEntry,
    WaitingPage,
    WaitingRow,
    definition_of,
)
from orchestrator.operator.timeline import tell
from orchestrator.operator.watch_list import Watched
from orchestrator.runtime.actions import ActionFilter, RecordedAction
from orchestrator.runtime.census import Seen

GRACE_SECONDS = 300.0
ACCOUNT_KEY = r"^[^\x00-\x1f\x7f]{1,128}/[A-Z]{3}$"


class GateDecision(Reasoned):
    gate: Name | None = Field(
        None, description="the gate that was looked at; left out: at which it waits"
    )


class WatchedCustomer(Reasoned):
    customer: Name


@dataclass(frozen=True)
class Desk:
    """Where people decide about what is parked at a gate."""

    waiting: Callable[[str | None, Seen | None, int], Awaitable[list[Parked]]]
    decide: Callable[[UUID, bool, str, str, str | None], Awaitable[object]]
    """Of whom, approved or not, by whom, why, at which gate. Raises IllegalTransition."""
    decided: Callable[[UUID], Awaitable[Logged | None]]
    watched: Callable[[str | None, int], Awaitable[list[Watched]]]
    watch: Callable[[str, str, str], Awaitable[Watched]]
    unwatch: Callable[[str, str, str], Awaitable[bool]]


@dataclass(frozen=True)
class Sources:
    """Whom the API asks; given by the composition root."""

    find: Callable[[UUID], Awaitable[Seen | None]]
    ids_between: Callable[[UUID, UUID, int], Awaitable[list[UUID]]]
    page: Callable[[Wanted, Seen | None, int], Awaitable[list[Seen]]]
    timeline: Callable[[UUID, int, int], Awaitable[list[Logged]]]
    actions: Callable[[ActionFilter, int | None, int], Awaitable[list[RecordedAction]]]
    stock: Callable[[StockQuery], Awaitable[StockPage]]
    accounts: Callable[[AccountsQuery], Awaitable[AccountsPage]]
    house: Callable[[], Awaitable[House]]
    audited: Callable[[Window], Awaitable[AuditedPage]]
    desk: Desk
    hands: Hands
    letters: LetterSources


def make_app(
    sources: Sources, definitions: Definitions, health: Health, entrance: Entrance
) -> FastAPI:
    """The whole HTTP surface; also served as /openapi.json and /docs."""
    app = new_app(
        "Sagaproof: operator",
        __doc__ or "",
        health,
        entrance,
        explain=_explain,
        remedies=REMEDIES,
    )
    _sagas(app, sources, definitions)
    _gates(app, sources, definitions)
    _watch_list(app, sources.desk)
    hands(app, sources.hands, definitions, lambda text: _named(sources, text))
    _actions(app, sources)
    _services(app, sources)
    letters(app, sources.letters)
    return app


def _sagas(app: FastAPI, sources: Sources, definitions: Definitions) -> None:
    @app.get("/sagas", responses=problems(404, 422, 503))
    async def sagas(
        state: State | None = None,
        step: Annotated[Name | None, Query(description="whose answer is awaited")] = None,
        older_than: Seconds = None,
        customer: Name | None = None,
        reason: Annotated[Name | None, Query(description="why it was turned back")] = None,
        stuck: Annotated[bool, Query(description="only those that are stuck")] = False,
        limit: Limit = 100,
        after: UUID | None = None,
    ) -> SagaPage:
        """Instances, newest first."""
        wanted = Wanted(state, step, older_than, customer, reason, stuck)
        last = None if after is None else await _existing(sources, after)
        found = await sources.page(wanted, last, limit)
        return SagaPage(
            sagas=[SagaRow.of(definitions, seen) for seen in found],
            next=found[-1].instance.saga_id if len(found) == limit else None,
        )

    @app.get("/sagas/{saga_id}", responses=problems(404, 409, 422, 503))
    async def saga(saga_id: SagaId) -> SagaDetail:
        """One instance: its steps, attempts, deadlines, and what it waits for."""
        return SagaDetail.of(definitions, await _named(sources, saga_id))

    @app.get("/sagas/{saga_id}/timeline", responses=problems(404, 409, 422, 503))
    async def timeline(
        saga_id: SagaId,
        after: Annotated[int, Query(ge=0, lt=2**63, description="the last entry you have")] = 0,
        limit: Limit = MAX_PAGE,
    ) -> Timeline:
        """What happened to it, in order. To follow it, ask again with `after`."""
        seen = await _named(sources, saga_id)  # before the log: then `ended` is not ahead of it
        ident, definition = seen.instance.saga_id, definition_of(definitions, seen.instance)
        entries = await sources.timeline(ident, after, limit)
        return Timeline(
            saga_id=ident,
            ended=seen.ended_at is not None and len(entries) < limit,
            entries=[TimelineEntry.of(definition, logged) for logged in entries],
            next=entries[-1].id if entries else after,
        )


def _actions(app: FastAPI, sources: Sources) -> None:
    @app.get("/actions", responses=problems(404, 409, 422, 503))
    async def actions(
        saga: Annotated[str | None, Query(description="an id, or how it begins")] = None,
        actor: Name | None = None,
        action: Annotated[Name | None, Query(description="compensate, retry, resolve ...")] = None,
        outcome: Literal["done", "refused"] | None = None,
        limit: Limit = 100,
        after: Annotated[int | None, Query(ge=0, lt=2**63)] = None,
    ) -> Actions:
        """What operators did and what they were refused, newest first."""
        saga_id = None if saga is None else (await _named(sources, saga)).instance.saga_id
        wanted = ActionFilter(saga_id, actor, action, outcome)
        found = await sources.actions(wanted, after, limit)
        return Actions(
            actions=[ActionRow.of(recorded) for recorded in found],
            next=found[-1].id if len(found) == limit else None,
        )


def _gates(app: FastAPI, sources: Sources, definitions: Definitions) -> None:
    @app.get("/waiting", responses=problems(404, 422, 503))
    async def waiting(
        customer: Name | None = None, limit: Limit = 100, after: UUID | None = None
    ) -> WaitingPage:
        """What is parked at a gate, for a person to decide; those that wait longest first."""
        last = None if after is None else await _existing(sources, after)
        found = await sources.desk.waiting(customer, last, limit)
        return WaitingPage(
            waiting=[WaitingRow.of(parked) for parked in found],
            next=found[-1].seen.instance.saga_id if len(found) == limit else None,
        )

    @app.post("/sagas/{saga_id}/approve", responses=problems(403, 404, 409, 422, 503))
    async def approve(saga_id: SagaId, decision: GateDecision, caller: Caller) -> SagaDetail:
        """Let a parked saga through its gate. 409: it waits at none, or somebody was before you."""
        return await _decide(saga_id, decision, caller.name, approved=True)

    @app.post("/sagas/{saga_id}/reject", responses=problems(403, 404, 409, 422, 503))
    async def reject(saga_id: SagaId, decision: GateDecision, caller: Caller) -> SagaDetail:
        """Turn a parked saga back: what was done is undone, and the customer is told."""
        return await _decide(saga_id, decision, caller.name, approved=False)

    async def _decide(
        saga_id: str, decision: GateDecision, actor: str, *, approved: bool
    ) -> SagaDetail:
        seen = await _named(sources, saga_id)
        ident = seen.instance.saga_id
        try:
            await sources.desk.decide(ident, approved, actor, decision.reason, decision.gate)
        except IllegalTransition as error:
            raise await _not_waiting(sources, definitions, ident, str(error)) from error
        return SagaDetail.of(definitions, await _existing(sources, ident))


async def _not_waiting(
    sources: Sources, definitions: Definitions, saga_id: UUID, why: str
) -> Refused:
    """Nobody is asked there: who decided what, and when; or that it has not come to its gate."""
    seen, decided = await _existing(sources, saga_id), await sources.desk.decided(saga_id)
    if decided is None:
        remedy = f"{why}: it is {seen.instance.state}. GET /waiting lists what waits"
        return Refused(409, Problem(error="not_waiting", field="saga_id", remedy=remedy))
    told = tell(definition_of(definitions, seen.instance), decided.entry, decided.at)
    remedy = f"{told}, at {decided.at:%Y-%m-%d %H:%M:%S %Z}. That stands; GET /sagas/{saga_id}"
    return Refused(409, Problem(error="already_decided", field="saga_id", remedy=remedy))


def _watch_list(app: FastAPI, desk: Desk) -> None:
    @app.get("/watch-list", responses=problems(422, 503))
    async def watched(limit: Limit = 100, after: Name | None = None) -> WatchList:
        """Customers whose orders a person wants to see, by name."""
        found = await desk.watched(after, limit)
        return WatchList(
            customers=[WatchedRow.model_validate(row) for row in found],
            next=found[-1].customer if len(found) == limit else None,
        )

    @app.post("/watch-list", responses=problems(403, 422, 503))
    async def watch(wanted: WatchedCustomer, caller: Caller) -> WatchedRow:
        """Park the orders of this customer that come to their gate from now on."""
        row = await desk.watch(wanted.customer, caller.name, wanted.reason)
        return WatchedRow.model_validate(row)

    @app.post("/watch-list/remove", responses=problems(403, 404, 422, 503))
    async def unwatch(wanted: WatchedCustomer, caller: Caller) -> WatchList:
        """No longer. What is parked already waits for its decision all the same."""
        if not await desk.unwatch(wanted.customer, caller.name, wanted.reason):
            remedy = "GET /watch-list says who is on it"
            raise Refused(404, Problem(error="not_watched", field="customer", remedy=remedy))
        return await watched()


async def _existing(sources: Sources, saga_id: UUID) -> Seen:
    seen = await sources.find(saga_id)
    if seen is None:
        remedy = f"no saga {saga_id}: GET /sagas lists them; an order that has just been placed"
        remedy += " may wait for its saga to begin"
        raise Refused(404, Problem(error="not_found", field="saga_id", remedy=remedy))
    return seen


async def _named(sources: Sources, text: str) -> Seen:
    return await _existing(sources, await whole_id(text, "saga_id", sources.ids_between))


def _services(app: FastAPI, sources: Sources) -> None:
    @app.get("/stock", responses=problems(422, 503))
    async def stock(
        sku: Annotated[SkuPrefix, Query(description="how it begins")] = "",
        limit: Limit = 100,
        after: Sku | None = None,
    ) -> Stock:
        """Where the pieces are, by SKU, as the inventory answers."""
        page = await sources.stock(StockQuery(prefix=sku, after=after, limit=limit))
        rows = list(page.rows)
        return Stock(stock=rows, next=rows[-1].sku if page.more else None)

    @app.get("/accounts", responses=problems(422, 503))
    async def accounts(
        customer: Name | None = None,
        limit: Limit = 100,
        after: Annotated[str | None, Query(pattern=ACCOUNT_KEY)] = None,
    ) -> Accounts:
        """Customers' accounts, as the payment service answers."""
        name, _, currency = (after or "").rpartition("/")
        place = (name, currency) if after else None
        page = await sources.accounts(AccountsQuery(customer=customer, after=place, limit=limit))
        rows = list(page.rows)
        last = f"{rows[-1].customer}/{rows[-1].currency}" if page.more else None
        return Accounts(accounts=rows, next=last)

    @app.get("/doctor")
    async def doctor() -> Diagnosis:
        """What is wrong with every process, queue and schema, and what to do about it."""
        return Diagnosis.of(await sources.house())

    @app.get("/audit", responses=problems(422, 503))
    async def audit(
        since: Annotated[AwareDatetime | None, Query(description="what was settled before")] = None,
        until: Annotated[
            AwareDatetime | None, Query(description="what began then or later")
        ] = None,
        grace: Annotated[
            float, Query(ge=0, le=LONGEST, description="seconds an order may wait for its saga")
        ] = GRACE_SECONDS,
        limit: Limit = MAX_PAGE,
        after: UUID = FIRST_ID,
    ) -> Audit:
        """A page of the audit: instances that have ended compared with what each service holds.

        Left out is what was settled before `since` and what began at `until` or later.
        """
        return Audit.of(await sources.audited(Window(since, until, grace, after, limit)))


REMEDIES = {
    Infrastructure: "the operator's database did not answer: see GET /doctor (saga doctor)",
    NoAnswer: "the service that knows did not answer in time: see GET /doctor (saga doctor)",
}


def _explain(errors: Sequence[Any]) -> Problem:
    return invalid_field(errors, "invalid_request")
