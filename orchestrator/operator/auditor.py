"""Reads what the audit compares, a page at a time: instances here, effects from the services.

The order of the reads is what makes the comparison true while sagas run; see audit.py. Each page
stands for itself, so an audit of any size needs the memory of one page.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Protocol, TypeVar
from uuid import UUID

from common.messages.contracts import (
    FIRST_ID,
    MAX_PAGE,
    Effect,
    Effects,
    EffectsQuery,
    TouchedPage,
    TouchedQuery,
)
from common.messages.envelope import Answer, Query
from orchestrator.operator.audit import (
    CREATE_ORDER,
    RESERVE,
    RESTOCK,
    RETURNED,
    AuditedInstance,
    Comparison,
    Discrepancy,
    compare,
)
from orchestrator.operator.queries import Queries

A = TypeVar("A", bound=Answer)


class AskService(Protocol):
    """Sends a query to a service. Raises NoAnswer."""

    def __call__(self, service: str, query: Query, expected: type[A], /) -> Awaitable[A]: ...


@dataclass(frozen=True)
class Window:
    """The sagas to compare: those running, or ended, between `since` and `until`."""

    since: datetime | None = None
    until: datetime | None = None
    grace_seconds: float = 0.0
    after: UUID = FIRST_ID
    limit: int = MAX_PAGE


@dataclass(frozen=True)
class AuditPage:
    compared: Comparison
    looked_to: UUID | None  # the last id compared; None: that was the last page


class Auditor:
    """Compares page by page. `services` are those that the audited sagas have steps at."""

    def __init__(self, queries: Queries, ask: AskService, services: Sequence[str]) -> None:
        self._queries = queries
        self._ask = ask
        self._services = services

    async def page(self, window: Window) -> AuditPage:
        """Compare the next sagas in the order of ids. Raises NoAnswer if a service is silent."""
        query = TouchedQuery(
            after=window.after, since=window.since, until=window.until, limit=window.limit
        )
        pages = [await self._queries.touched(query), *await self._of_all(query, TouchedPage)]
        ends = [page.looked_to for page in pages if page.looked_to is not None]
        looked_to = min(ends, default=None)
        saga_ids = sorted(
            {
                saga_id
                for page in pages
                for saga_id in page.saga_ids
                if looked_to is None or saga_id <= looked_to
            }
        )
        compared, skipped = 0, 0
        findings: list[Discrepancy] = []
        for batch in _batches(saga_ids):
            one = await self._compare(batch, window)
            compared, skipped = compared + one.compared, skipped + one.skipped
            findings += one.findings
        return AuditPage(Comparison(compared, skipped, tuple(findings)), looked_to)

    async def _compare(self, saga_ids: Sequence[UUID], window: Window) -> Comparison:
        before = await self._queries.audited(saga_ids)
        *answers, restocked = await asyncio.gather(
            *(self._effects(name, saga_ids) for name in self._services),
            self._restocked(before),
        )
        effects = [effect for answer in answers for effect in answer] + restocked
        effects = await self._orders_again(effects)
        after = await self._queries.audited(
            [saga_id for saga_id in saga_ids if saga_id not in before]
        )
        grace = timedelta(seconds=window.grace_seconds)
        return compare(saga_ids, before, effects, after, now=datetime.now(UTC), grace=grace)

    async def _effects(self, service: str, saga_ids: Sequence[UUID]) -> list[Effect]:
        if not saga_ids:
            return []
        return list(
            (await self._ask(service, EffectsQuery(saga_ids=tuple(saga_ids)), Effects)).rows
        )

    async def _restocked(self, known: Mapping[UUID, AuditedInstance]) -> list[Effect]:
        """Read what returns have left in the inventory, which keeps it by the order's id."""
        returns = {
            saga.restocked: saga_id for saga_id, saga in known.items() if saga.restocked is not None
        }
        return [
            effect.model_copy(update={"saga_id": returns[effect.saga_id], "step": RESTOCK})
            for effect in await self._effects("inventory", list(returns))
        ]

    async def _orders_again(self, effects: Sequence[Effect]) -> list[Effect]:
        """Read orders again whose goods were seen back on the shelf (see audit.py, 3)."""
        back = {e.saga_id for e in effects if (e.step, e.standing) == (RESERVE, RETURNED)}
        kept = [e for e in effects if not (e.step == CREATE_ORDER and e.saga_id in back)]
        return [*kept, *await self._effects("order", sorted(back))]

    async def _of_all(self, query: Query, expected: type[A]) -> list[A]:
        return await asyncio.gather(*(self._ask(name, query, expected) for name in self._services))


def _batches(saga_ids: Sequence[UUID]) -> list[list[UUID]]:
    rest = iter(saga_ids)
    return list(iter(lambda: list(islice(rest, MAX_PAGE)), []))
