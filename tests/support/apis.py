"""Both HTTP APIs as they are, over things in memory, for tests of the `saga` command.

Owns: what stands behind the two apps, and a transport that reaches them without a socket.
Must not know: the command.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from uuid import UUID

import httpx
from fastapi import FastAPI

from common.http.access import CUSTOMERS, OPERATORS, Keyring, Role
from common.http.app import Entrance
from common.kit.health import Health
from common.messages.contracts import (
    AccountRow,
    AccountsPage,
    AccountsQuery,
    KeyReused,
    OrderAccepted,
    OrderInvalid,
    PlaceOrder,
    StockPage,
    StockQuery,
    StockRow,
)
from common.messages.envelope import Reply, saga_id_for
from common.messages.errors import Infrastructure, NoAnswer
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
from orchestrator.operator.api import Desk, Sources
from orchestrator.operator.api import make_app as operator_app
from orchestrator.operator.auditor import AuditedPage, Window
from orchestrator.operator.doctor import House, deployed
from orchestrator.operator.interventions import Hands
from orchestrator.operator.queries import Logged, Parked, Stuck, StuckWanted, Wanted
from orchestrator.operator.watch_list import Watched
from orchestrator.runtime.actions import ActionFilter, RecordedAction
from orchestrator.runtime.census import Seen
from orchestrator.runtime.store import InstanceRow
from orchestrator.sagas.order import ORDER_SAGA
from order_svc.door.api import make_app as door_app
from order_svc.door.batcher import Batcher, CustomerCommand
from order_svc.door.queries import CustomerQueries
from order_svc.door.schemas import OrderView, PricedLine
from tests.support.letters import Letters
from tests.support.story import POLICY

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
class Sagas:
    """What the operator's API asks."""

    house: House = field(default_factory=lambda: House(deployed([ORDER_SAGA]), [], [], None))
    stock: list[StockRow] = field(default_factory=list)
    accounts: list[AccountRow] = field(default_factory=list)
    wanted: list[Wanted] = field(default_factory=list)  # as asked for
    letters: Letters = field(default_factory=Letters)
    actions: list[RecordedAction] = field(default_factory=list)  # oldest first
    actions_wanted: list[ActionFilter] = field(default_factory=list)
    stuck_wanted: list[StuckWanted] = field(default_factory=list)
    unread: str | None = None
    asked: Approvals = field(default_factory=dict)  # at which gates a person is asked, and why
    watched: dict[str, Watched] = field(default_factory=dict)
    windows: list[Window] = field(default_factory=list)  # likewise
    audited: list[AuditedPage] = field(default_factory=list)  # the pages there are
    outages: int = 0  # audits that will find nobody
    _seen: dict[UUID, Seen] = field(default_factory=dict)
    _log: dict[UUID, list[Logged]] = field(default_factory=dict)
    _numbers: count[int] = field(default_factory=lambda: count(1))

    def begin(self, saga_id: UUID, *events: Input, customer: str = "ada") -> None:
        """A saga that has seen these events, a tenth of a second apart."""
        data = {
            "customer": customer, "currency": "EUR", "total": 700,
            "lines": [{"sku": "tea", "quantity": 2}],
        }  # fmt: skip
        self._log[saga_id] = []
        instance = self._decide(saga_id, None, Started(saga_id, data))
        for event in events:
            instance = self._decide(saga_id, instance, event)

    def go_on(self, saga_id: UUID, event: Input) -> None:
        self._decide(saga_id, self._seen[saga_id].instance, event)

    def _decide(self, saga_id: UUID, instance: Instance | None, event: Input) -> Instance:
        decision = decide(ORDER_SAGA, POLICY, instance, event, self.asked)
        at = NOON + timedelta(seconds=0.1 * len(self._log[saga_id]))
        self._log[saga_id] += [
            Logged(next(self._numbers), at, entry, "orchestrator-2") for entry in decision.log
        ]
        row = InstanceRow(decision.instance)
        row.apply(decision.instance, decision.sends, ORDER_SAGA, POLICY, at.timestamp())
        for step in decision.instance.steps:
            row.times.setdefault(step, {}).setdefault("deadline", at.timestamp() + 5)
        ended = at if decision.instance.state.ended else None
        self._seen[saga_id] = Seen(
            row, at if decision.instance.stuck else None, None, NOON, at, ended
        )
        return decision.instance

    def timeline(self, saga_id: UUID) -> list[Logged]:
        return self._log[saga_id]

    def app(self, entrance: Entrance | None = None) -> FastAPI:
        sources = Sources(
            self._find, self._ids_between, self._page, self._timeline, self._actions,
            self._stock, self._accounts, self._house, self._audited, self._desk(), self._hands(),
            self.letters.sources,
        )  # fmt: skip
        definitions = {(ORDER_SAGA.name, ORDER_SAGA.version): ORDER_SAGA}
        return operator_app(sources, definitions, Health(), entrance or ENTRANCES["operator"])

    def _hands(self) -> Hands:
        async def stuck(wanted: StuckWanted, after: Seen | None, limit: int) -> list[Stuck]:
            self.stuck_wanted.append(wanted)
            found = [s for s in self._seen.values() if s.stuck_since is not None]
            rest = found[found.index(after) + 1 if after else 0 :][:limit]
            return [Stuck(seen, self._trouble(seen.instance.saga_id)) for seen in rest]

        async def retry(saga_id: UUID, actor: str, reason: str) -> None:
            self.go_on(saga_id, RetryAsked(actor, reason))

        async def compensate(saga_id: UUID, actor: str, reason: str) -> None:
            self.go_on(saga_id, CompensateAsked(actor, reason))

        async def resolve(saga_id: UUID, step: str, actor: str, reason: str) -> None:
            self.go_on(saga_id, Resolved(step, actor, reason))

        async def reconcile(ids: Sequence[UUID], actor: str, reason: str) -> dict[UUID, str]:
            for saga_id in ids:
                self.go_on(saga_id, RetryAsked(actor, reason))
            return dict.fromkeys(ids, "retried")

        async def unread() -> str | None:
            return self.unread

        return Hands(stuck, retry, compensate, resolve, reconcile, unread)

    def _trouble(self, saga_id: UUID) -> Logged | None:
        words = ("timed_out", "dead_lettered", "discarded")
        found = [logged for logged in self._log[saga_id] if logged.entry.entry in words]
        return found[-1] if found else None

    def _desk(self) -> Desk:
        async def waiting(customer: str | None, after: Seen | None, limit: int) -> list[Parked]:
            parked = [s for s in self._seen.values() if s.instance.state is State.WAITING]
            wanted = [s for s in parked if customer in (None, s.instance.data["customer"])]
            rest = wanted[wanted.index(after) + 1 if after else 0 :][:limit]
            return [Parked(seen, "total 700 EUR reaches 500") for seen in rest]

        async def decide_(
            saga_id: UUID, approved: bool, actor: str, reason: str, gate: str | None
        ) -> None:
            gate = gate or self._seen[saga_id].instance.waiting_at() or "approve_order"
            self.go_on(saga_id, GateDecided(gate, approved, actor, reason))

        async def decided(saga_id: UUID) -> Logged | None:
            words = ("approved", "rejected", "expired", "compensate_asked")
            found = [logged for logged in self._log[saga_id] if logged.entry.entry in words]
            return found[-1] if found else None

        async def watched(after: str | None, limit: int) -> list[Watched]:
            names = sorted(name for name in self.watched if name > (after or ""))
            return [self.watched[name] for name in names[:limit]]

        async def watch(customer: str, actor: str, reason: str) -> Watched:
            self.watched[customer] = Watched(customer, actor, reason, NOON)
            return self.watched[customer]

        async def unwatch(customer: str, actor: str, reason: str) -> bool:
            return self.watched.pop(customer, None) is not None

        return Desk(waiting, decide_, decided, watched, watch, unwatch)

    async def _find(self, saga_id: UUID) -> Seen | None:
        return self._seen.get(saga_id)

    async def _ids_between(self, low: UUID, high: UUID, limit: int) -> list[UUID]:
        return sorted(ident for ident in self._seen if low <= ident <= high)[:limit]

    async def _page(self, wanted: Wanted, after: Seen | None, limit: int) -> list[Seen]:
        self.wanted.append(wanted)
        seen = list(self._seen.values())
        return seen[seen.index(after) + 1 if after else 0 :][:limit]

    async def _timeline(self, saga_id: UUID, after: int, limit: int) -> list[Logged]:
        return [logged for logged in self._log[saga_id] if logged.id > after][:limit]

    async def _actions(
        self, wanted: ActionFilter, before: int | None, limit: int
    ) -> list[RecordedAction]:
        self.actions_wanted.append(wanted)
        return [a for a in self.actions[::-1] if before is None or a.id < before][:limit]

    async def _stock(self, query: StockQuery) -> StockPage:
        rows = [row for row in self.stock if row.sku > (query.after or "")]
        return StockPage(rows=tuple(rows[: query.limit]), more=len(rows) > query.limit)

    async def _accounts(self, query: AccountsQuery) -> AccountsPage:
        rows = [r for r in self.accounts if (r.customer, r.currency) > (query.after or ("", ""))]
        return AccountsPage(rows=tuple(rows[: query.limit]), more=len(rows) > query.limit)

    async def _audited(self, window: Window) -> AuditedPage:
        if self.outages:
            self.outages -= 1
            raise NoAnswer
        self.windows.append(window)
        return self.audited[len(self.windows) - 1]

    async def _house(self) -> House:
        return self.house


class Shop(Batcher, CustomerQueries):
    """What the customers' API asks. Customers' names decide: `broke` is rejected, `slow` stays
    PENDING for ever, all others are confirmed the second time they are looked at."""

    def __init__(self) -> None:
        self.placed: dict[UUID, tuple[PlaceOrder, datetime]] = {}
        self.looked: set[UUID] = set()
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
        if order_id not in self.looked:
            status = "PENDING"
        self.looked.add(order_id)
        lines = [PricedLine(sku=o.sku, quantity=o.quantity, price=PRICE) for o in order.lines]
        return OrderView(
            order_id=order_id, customer=order.customer, currency=order.currency, lines=lines,
            total=sum(line.quantity * PRICE for line in lines), status=status,
            reason="insufficient_funds" if status == "REJECTED" else None,
            placed_at=placed_at,
            settled_at=None if status == "PENDING" else placed_at + timedelta(seconds=0.3),
        )  # fmt: skip


def bearer(role: Role) -> dict[str, str]:
    """As somebody with this role asks."""
    return {"Authorization": f"Bearer {TOKENS[role]}"}


class InMemory(httpx.BaseTransport):
    """To an app, without a socket."""

    def __init__(self, app: FastAPI) -> None:
        self._app = app

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        return asyncio.run(self._ask(request))

    async def _ask(self, request: httpx.Request) -> httpx.Response:
        transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport) as client:
            heard = await client.request(
                request.method, request.url, content=request.read(), headers=request.headers
            )
            return httpx.Response(heard.status_code, headers=heard.headers, content=heard.content)
