"""The two real HTTP apps over state in memory, and a transport that needs no socket."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

import httpx
from fastapi import FastAPI

from common.http.access import CUSTOMERS, OPERATORS, Keyring, Role
from common.http.app import Entrance
from common.kit.health import Health
from common.messages.contracts import FIRST_ID
from common.messages.envelope import Reply, saga_id_for
from common.messages.errors import Infrastructure, NoAnswer
from common.messages.shop.inventory import StockPage, StockQuery, StockRow
from common.messages.shop.order import KeyReused, OrderAccepted, OrderInvalid, PlaceOrder
from common.messages.shop.payment import AccountRow, AccountsPage, AccountsQuery
from orchestrator.engine.decide import decide
from orchestrator.engine.inputs import (
    Approvals,
    CompensateAsked,
    GateDecided,
    Input,
    Resolved,
    RetryAsked,
    Started,
)
from orchestrator.engine.instance import Instance, State
from orchestrator.operator.api import make_app as operator_app
from orchestrator.operator.auditor import AuditPage, Window
from orchestrator.operator.backend import Backend
from orchestrator.operator.doctor import SystemStatus, expected
from orchestrator.operator.queries import LogEntry, Parked, SagaFilter, Stuck, StuckFilter
from orchestrator.operator.watch_list import Watched
from orchestrator.runtime.actions import ActionFilter, RecordedAction
from orchestrator.runtime.census import Seen
from orchestrator.runtime.store import InstanceRow
from orchestrator.sagas.order import ORDER_SAGA
from order_svc.door.api import make_app as door_app
from order_svc.door.batcher import Batcher, CustomerCommand
from order_svc.door.queries import CustomerQueries
from order_svc.door.schemas import OrderView, OrderViewLine
from tests.support.letters import Letters
from tests.support.story import DATA, POLICY

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
BODY_LIMIT = 3000
TOKENS = {role: f"token-of-the-{role}" for role in Role}
ENTRANCES = {
    name: Entrance(
        Keyring.parse("\n".join(f"{role}-ann:{role}:{TOKENS[role]}" for role in roles), roles),
        BODY_LIMIT,
        requests_per_second=10_000,
    )
    for name, roles in (("door", CUSTOMERS), ("operator", OPERATORS))
}
PRICE = 350


@dataclass
class FakeBackend(Letters):
    """Everything the operator's API calls, in memory. FakeBackend move by the real decide()."""

    status: SystemStatus = field(
        default_factory=lambda: SystemStatus(expected([ORDER_SAGA]), [], [], None)
    )
    stock_rows: list[StockRow] = field(default_factory=list)
    account_rows: list[AccountRow] = field(default_factory=list)
    action_rows: list[RecordedAction] = field(default_factory=list)  # oldest first
    watched_rows: dict[str, Watched] = field(default_factory=dict)
    audit_pages: list[AuditPage] = field(default_factory=list)
    outages: int = 0  # audit requests that will fail
    behind: str | None = None
    filters: list[SagaFilter | StuckFilter | ActionFilter | Window] = field(default_factory=list)
    """As requests gave them."""
    asked: Approvals = field(default_factory=dict)  # at which gates a person is asked, and why
    _seen: dict[UUID, Seen] = field(default_factory=dict)
    log: dict[UUID, list[LogEntry]] = field(default_factory=dict)
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def app(self, entrance: Entrance | None = None) -> FastAPI:
        definitions = {(ORDER_SAGA.name, ORDER_SAGA.version): ORDER_SAGA}
        roles: Any = [self] * 7
        return operator_app(
            Backend(definitions, *roles), Health(), entrance or ENTRANCES["operator"]
        )

    # --- what happens to sagas ---

    def begin(self, saga_id: UUID, *inputs: Input, customer: str = "ada") -> None:
        """Start a saga and give it these inputs, a tenth of a second apart."""
        data = {**DATA, "customer": customer}
        self._decide(saga_id, Started(saga_id, data))
        for input_ in inputs:
            self.go_on(saga_id, input_)

    def go_on(self, saga_id: UUID, input_: Input) -> None:
        self._decide(saga_id, input_, self._seen[saga_id].instance)

    def _decide(self, saga_id: UUID, input_: Input, instance: Instance | None = None) -> None:
        log = self.log.setdefault(saga_id, [])
        at = NOON + timedelta(seconds=0.1 * len(log))
        decision = decide(ORDER_SAGA, POLICY, instance, input_, self.asked)
        instance = decision.instance
        log += [LogEntry(next(self._numbers), at, e, "orchestrator-2") for e in decision.log]
        row = InstanceRow(instance)
        row.apply(instance, decision.sends, ORDER_SAGA, POLICY, at.timestamp())
        for step in instance.steps:
            row.times.setdefault(step, {}).setdefault("deadline", at.timestamp() + 5)
        stuck, ended = at if instance.stuck else None, at if instance.state.ended else None
        self._seen[saga_id] = Seen(row, stuck, None, NOON, at, ended)

    def _last(self, saga_id: UUID, *entries: str) -> LogEntry | None:
        found = [logged for logged in self.log[saga_id] if logged.entry.kind in entries]
        return found[-1] if found else None

    # --- Queries ---

    async def saga(self, saga_id: UUID) -> Seen | None:
        return self._seen.get(saga_id)

    async def saga_ids(self, low: UUID, high: UUID, limit: int) -> list[UUID]:
        return [ident for ident in self._seen if low <= ident <= high]

    async def sagas(self, which: SagaFilter, after: Seen | None, limit: int) -> list[Seen]:
        self.filters.append(which)
        return _page([*self._seen.values()], after, limit)

    async def timeline(self, saga_id: UUID, after: int, limit: int) -> list[LogEntry]:
        return [logged for logged in self.log[saga_id] if logged.id > after][:limit]

    async def waiting(self, customer: str | None, after: Seen | None, limit: int) -> list[Parked]:
        found = [
            seen
            for seen in self._seen.values()
            if seen.instance.state is State.WAITING
            and customer in (None, seen.instance.data["customer"])
        ]
        return [Parked(seen, "total 700 EUR reaches 500") for seen in _page(found, after, limit)]

    async def last_decision(self, saga_id: UUID) -> LogEntry | None:
        return self._last(saga_id, "approved", "rejected", "expired", "compensate_asked")

    async def stuck(self, which: StuckFilter, after: Seen | None, limit: int) -> list[Stuck]:
        self.filters.append(which)
        found = [seen for seen in self._seen.values() if seen.stuck_since is not None]
        return [
            Stuck(seen, self._last(seen.instance.saga_id, "timed_out", "dead_lettered"))
            for seen in _page(found, after, limit)
        ]

    async def actions(
        self, which: ActionFilter, before: int | None, limit: int
    ) -> list[RecordedAction]:
        self.filters.append(which)
        return [a for a in self.action_rows[::-1] if before is None or a.id < before][:limit]

    async def watched(self, after: str | None, limit: int) -> list[Watched]:
        return [self.watched_rows[name] for name in sorted(self.watched_rows)][:limit]

    # --- Services, Doctor and Auditor ---

    async def stock(self, query: StockQuery) -> StockPage:
        rows = [row for row in self.stock_rows if row.sku > (query.after or "")]
        return StockPage(rows=tuple(rows[: query.limit]), more=len(rows) > query.limit)

    async def accounts(self, query: AccountsQuery) -> AccountsPage:
        after = query.after or ("", "")
        rows = [row for row in self.account_rows if (row.customer, row.currency) > after]
        return AccountsPage(rows=tuple(rows[: query.limit]), more=len(rows) > query.limit)

    async def backlog(self) -> str | None:
        return self.behind

    async def look(self) -> SystemStatus:
        return self.status

    async def page(self, window: Window) -> AuditPage:
        if self.outages:
            self.outages -= 1
            raise NoAnswer
        self.filters.append(window)
        return self.audit_pages[window.after != FIRST_ID]

    # --- Service and WatchList ---

    async def retry(self, saga_id: UUID, actor: str, reason: str) -> None:
        self.go_on(saga_id, RetryAsked(actor, reason))

    async def compensate(self, saga_id: UUID, actor: str, reason: str) -> None:
        self.go_on(saga_id, CompensateAsked(actor, reason))

    async def resolve(self, saga_id: UUID, step: str, actor: str, reason: str) -> None:
        self.go_on(saga_id, Resolved(step, actor, reason))

    async def reconcile(self, ids: Sequence[UUID], actor: str, reason: str) -> dict[UUID, str]:
        for saga_id in ids:
            self.go_on(saga_id, RetryAsked(actor, reason))
        return dict.fromkeys(ids, "retried")

    async def decide_gate(
        self, saga_id: UUID, *, approved: bool, actor: str, reason: str, gate: str | None
    ) -> None:
        gate = gate or self._seen[saga_id].instance.waiting_at() or "approve_order"
        self.go_on(saga_id, GateDecided(gate, approved, actor, reason))

    async def add(self, customer: str, actor: str, reason: str) -> Watched:
        self.watched_rows[customer] = Watched(customer, actor, reason, NOON)
        return self.watched_rows[customer]

    async def remove(self, customer: str, actor: str, reason: str) -> bool:
        return self.watched_rows.pop(customer, None) is not None


def _page(found: list[Seen], after: Seen | None, limit: int) -> list[Seen]:
    return found[found.index(after) + 1 if after else 0 :][:limit]


class Shop(Batcher, CustomerQueries):
    """Everything the customers' API calls, in memory. The customer's name decides the outcome.

    An order of `broke` is rejected, one of `slow` stays PENDING for ever, all others are confirmed
    the second time they are read.
    """

    def __init__(self) -> None:
        self.placed: dict[UUID, tuple[PlaceOrder, datetime]] = {}
        self.read: set[UUID] = set()
        self.outages = 0  # requests that will fail
        self.requests = 0

    async def ask(self, orders: Sequence[CustomerCommand]) -> list[Reply]:
        self.requests += 1
        if self.outages:
            self.outages -= 1
            raise Infrastructure("postgres is away")
        return [self._place(order) for order in orders if isinstance(order, PlaceOrder)]

    def _place(self, order: PlaceOrder) -> Reply:
        if order.currency != "EUR":
            return OrderInvalid(field="currency", remedy=f"nothing is sold in {order.currency}")
        order_id = saga_id_for(order.customer, order.idempotency_key)
        known, _ = self.placed.setdefault(order_id, (order, NOON))
        if known != order:
            return KeyReused(order_id=order_id)
        return OrderAccepted(
            order_id=order_id, customer=order.customer, currency=order.currency,
            lines=order.lines, total=sum(PRICE * line.quantity for line in order.lines),
        )  # fmt: skip

    def app(self) -> FastAPI:
        return door_app(self, self, Health(), ENTRANCES["door"])

    async def order(self, order_id: UUID) -> OrderView | None:
        return self._view(order_id) if order_id in self.placed else None

    def _view(self, order_id: UUID) -> OrderView:
        order, placed_at = self.placed[order_id]
        status = {"broke": "REJECTED", "slow": "PENDING"}.get(order.customer, "CONFIRMED")
        if order_id not in self.read:
            status = "PENDING"
        self.read.add(order_id)
        lines = [OrderViewLine(sku=o.sku, quantity=o.quantity, price=PRICE) for o in order.lines]
        return OrderView(
            order_id=order_id, customer=order.customer, currency=order.currency, lines=lines,
            total=sum(line.quantity * PRICE for line in lines), status=status,
            reason="insufficient_funds" if status == "REJECTED" else None,
            placed_at=placed_at,
            settled_at=None if status == "PENDING" else placed_at + timedelta(seconds=0.3),
        )  # fmt: skip


def bearer(role: Role) -> dict[str, str]:
    """Return the header that a caller with this role sends."""
    return {"Authorization": f"Bearer {TOKENS[role]}"}


class InMemory(httpx.BaseTransport):
    """Sends requests to an app without a socket."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return asyncio.run(self._ask(request))

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport) as client:
            answer = await client.request(
                request.method, request.url, content=request.read(), headers=request.headers
            )
            return httpx.Response(
                answer.status_code, headers=answer.headers, content=answer.content
            )
