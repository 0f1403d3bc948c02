"""The operator's API: where a saga is, why it stands still, what is wrong with the house.

It only reads. Owns: what an operator may ask. Must not know: SQL, the broker's driver, how
anything is decided.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import FastAPI, Path, Query

from common.contracts import (
    MAX_PAGE,
    AccountsPage,
    AccountsQuery,
    Name,
    Sku,
    SkuPrefix,
    StockPage,
    StockQuery,
)
from common.errors import Infrastructure, NoAnswer
from common.health import Health
from common.http import Entrance, Problem, Refused, invalid_field, new_app, problems
from orchestrator.actions import ActionsWanted, Recorded
from orchestrator.doctor import House
from orchestrator.reader import Logged, Seen, Wanted
from orchestrator.saga import State
from orchestrator.views import (
    Accounts,
    ActionRow,
    Actions,
    Definitions,
    Diagnosis,
    SagaDetail,
    SagaPage,
    SagaRow,
    Stock,
    Timeline,
    TimelineEntry,
    definition_of,
)

SHORTEST_PREFIX = 4  # hexadecimal digits of an id
NAMED = 5  # ids named when a prefix fits several
LONGEST = 1e9  # seconds, some thirty years
ACCOUNT_KEY = r"^[^\x00-\x1f\x7f]{1,128}/[A-Z]{3}$"

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE, description="how many at most")]
SagaId = Annotated[str, Path(description="an id, or enough of its beginning to be the only one")]


@dataclass(frozen=True)
class Sources:
    """Whom the API asks; given by the composition root."""

    find: Callable[[UUID], Awaitable[Seen | None]]
    ids_between: Callable[[UUID, UUID, int], Awaitable[list[UUID]]]
    page: Callable[[Wanted, Seen | None, int], Awaitable[list[Seen]]]
    timeline: Callable[[UUID, int, int], Awaitable[list[Logged]]]
    actions: Callable[[ActionsWanted, int | None, int], Awaitable[list[Recorded]]]
    stock: Callable[[StockQuery], Awaitable[StockPage]]
    accounts: Callable[[AccountsQuery], Awaitable[AccountsPage]]
    house: Callable[[], Awaitable[House]]


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
    _actions(app, sources)
    _services(app, sources)
    return app


def _sagas(app: FastAPI, sources: Sources, definitions: Definitions) -> None:
    @app.get("/sagas", responses=problems(404, 422, 503))
    async def sagas(
        state: State | None = None,
        step: Annotated[Name | None, Query(description="whose answer is awaited")] = None,
        older_than: Annotated[float | None, Query(ge=0, le=LONGEST, description="seconds")] = None,
        customer: Name | None = None,
        reason: Annotated[Name | None, Query(description="why it was turned back")] = None,
        stuck: Annotated[bool, Query(description="only those past their SLA")] = False,
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
        wanted = ActionsWanted(saga_id, actor, action, outcome)
        found = await sources.actions(wanted, after, limit)
        return Actions(
            actions=[ActionRow.of(recorded) for recorded in found],
            next=found[-1].id if len(found) == limit else None,
        )


async def _existing(sources: Sources, saga_id: UUID) -> Seen:
    seen = await sources.find(saga_id)
    if seen is None:
        remedy = f"no saga {saga_id}: GET /sagas lists them; an order that has just been placed"
        remedy += " may wait for its saga to begin"
        raise Refused(404, Problem(error="not_found", field="saga_id", remedy=remedy))
    return seen


async def _named(sources: Sources, text: str) -> Seen:
    """By a whole id, or by the beginning of one."""
    try:
        return await _existing(sources, UUID(text))
    except ValueError:
        pass
    digits = text.replace("-", "").lower()
    if not re.fullmatch(rf"[0-9a-f]{{{SHORTEST_PREFIX},31}}", digits):
        remedy = f"give an id, or at least the first {SHORTEST_PREFIX} of its digits"
        raise Refused(422, Problem(error="invalid_request", field="saga_id", remedy=remedy))
    low, high = UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
    found = await sources.ids_between(low, high, NAMED)
    if len(found) > 1:
        remedy = f"give more of it: {', '.join(map(str, found))} all begin so"
        raise Refused(409, Problem(error="ambiguous", field="saga_id", remedy=remedy))
    return await _existing(sources, found[0] if found else low)


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


REMEDIES = {
    Infrastructure: "the operator's database did not answer: see GET /doctor (saga doctor)",
    NoAnswer: "the service that knows did not answer in time: see GET /doctor (saga doctor)",
}


def _explain(errors: Sequence[Any]) -> Problem:
    return invalid_field(errors, "invalid_request")
