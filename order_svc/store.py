"""The order service's SQL: load what a batch is about, save what it changed.

Every transaction locks rows in the same order, so that replicas wait for each other and never
deadlock:

1. orders, by order_id. A transaction that changes a return locks its order, not the return;
2. products put on the price list, by SKU. They are written last before the commit without being
   read: the last one to list a SKU sets its price.

Prices are read without a lock: an order is sold at the price that was committed when it came.

Arrays are sent in binary (%b): in text form psycopg escapes every element in Python.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from common.messages.contracts import SagaStarted
from common.messages.shop.order import (
    CancelOrder,
    CloseReturn,
    FinishReturn,
    ListProduct,
    OpenReturn,
    PlaceOrder,
)
from common.participant.participant import Work
from common.storage.db import Tx
from order_svc.domain import (
    OpenedReturn,
    OrderBook,
    OrderState,
    OrderStatus,
    PlacedOrder,
    PricedLine,
    Product,
    ReturnState,
    ReturnStatus,
)

START_BACKOFF_CAP_SECONDS = 60

_NOW_AND_CURRENCIES = """
select now(), array(select c from unnest(%b::text[]) as c
                     where exists (select from product where currency = c))"""

_PRODUCTS = "select sku, price, currency from product where sku = any(%b::text[])"

_ORDERS = """
select order_id, status, reason, saga_known, return_id, customer, currency, total
  from customer_order
 where order_id = any(%b::uuid[]) order by order_id for update"""

# The order of a return never changes; the rest of the return is read once its order is locked.
_ORDERS_OF = "select order_id from order_return where return_id = any(%b::uuid[])"
_RETURNS = """
select return_id, order_id, status, reason, saga_known from order_return
 where return_id = any(%b::uuid[])"""
# For orders to cancel, and for repeats of PlaceOrder whose inbox row may be forgotten.
_AS_PLACED = """
select order_id, customer, currency, lines, total, placed_at from customer_order
 where order_id = any(%b::uuid[])"""

_PLACE = """
insert into customer_order
       (order_id, customer, idempotency_key, currency, lines, total, status, reason,
        saga_known, settled_at, next_start_at)
select order_id, customer, idempotency_key, currency, lines, total, status, reason, saga_known,
       case when status <> 'PENDING' then now() end, now() + make_interval(secs => %s)
  from unnest(%b::uuid[], %b::text[], %b::text[], %b::text[], %b::jsonb[], %b::bigint[],
              %b::text[], %b::text[], %b::boolean[])
    as n (order_id, customer, idempotency_key, currency, lines, total, status, reason,
          saga_known)"""

_CHANGE = """
update customer_order o
   set status = n.status, reason = n.reason, saga_known = n.saga_known, return_id = n.return_id,
       settled_at = case when n.status <> 'PENDING' then coalesce(o.settled_at, now()) end
  from unnest(%b::uuid[], %b::text[], %b::text[], %b::boolean[], %b::uuid[])
    as n (order_id, status, reason, saga_known, return_id)
 where o.order_id = n.order_id and o.order_id = any(%b::uuid[])"""

_OPEN_RETURN = """
insert into order_return
       (return_id, order_id, idempotency_key, status, reason, saga_known, settled_at, next_start_at)
select return_id, order_id, idempotency_key, status, reason, saga_known,
       case when status <> 'OPEN' then now() end, now() + make_interval(secs => %s)
  from unnest(%b::uuid[], %b::uuid[], %b::text[], %b::text[], %b::text[], %b::boolean[])
    as n (return_id, order_id, idempotency_key, status, reason, saga_known)"""

_CHANGE_RETURN = """
update order_return r
   set status = n.status, reason = n.reason, saga_known = n.saga_known,
       settled_at = case when n.status <> 'OPEN' then coalesce(r.settled_at, now()) end
  from unnest(%b::uuid[], %b::text[], %b::text[], %b::boolean[])
    as n (return_id, status, reason, saga_known)
 where r.return_id = n.return_id and r.return_id = any(%b::uuid[])"""

_LIST = """
insert into product (sku, price, currency)
select sku, price, currency from unnest(%b::text[], %b::bigint[], %b::text[])
    as n (sku, price, currency)
 order by sku
on conflict (sku) do update set price = excluded.price, currency = excluded.currency"""

# The first delay, plus a backoff that doubles, with full jitter. The exponent is bounded well past
# the cap, since 2 ^ 1024 is out of range.
_OVERDUE = """
with overdue as (
  select order_id from customer_order
   where status = 'PENDING' and not saga_known and next_start_at <= now()
   order by next_start_at limit %(limit)s for update skip locked
)
update customer_order o
   set start_attempts = o.start_attempts + 1,
       next_start_at = now() + make_interval(secs => %(first)s::float8 + random()
         * least(%(cap)s::float8, %(first)s::float8 * 2 ^ least(o.start_attempts - 1, 30)))
  from overdue where o.order_id = overdue.order_id
returning o.order_id, o.customer, o.currency, o.lines, o.total, o.placed_at, o.start_attempts"""

_OVERDUE_RETURNS = """
with overdue as (
  select return_id from order_return
   where status = 'OPEN' and not saga_known and next_start_at <= now()
   order by next_start_at limit %(limit)s for update skip locked
), asked as (
  update order_return r
     set start_attempts = r.start_attempts + 1,
         next_start_at = now() + make_interval(secs => %(first)s::float8 + random()
           * least(%(cap)s::float8, %(first)s::float8 * 2 ^ least(r.start_attempts - 1, 30)))
    from overdue where r.return_id = overdue.return_id
  returning r.return_id, r.order_id, r.opened_at, r.start_attempts
)
select a.return_id, a.order_id, o.customer, o.currency, o.total, a.opened_at, a.start_attempts
  from asked a join customer_order o using (order_id)"""


class OrderStore:
    def __init__(self, first_delay_seconds: float = 5) -> None:
        self._first_delay_seconds = first_delay_seconds

    async def load(self, tx: Tx, batch: Sequence[Work]) -> OrderBook:
        currencies: set[str] = set()
        skus: set[str] = set()
        order_ids: set[UUID] = set()
        return_ids: set[UUID] = set()
        as_placed: list[UUID] = []
        for work in batch:
            match work.command:
                case PlaceOrder() as order:
                    currencies.add(order.currency)
                    skus.update(line.sku for line in order.lines)
                    as_placed.append(work.saga_id)
                case ListProduct():
                    pass
                case CancelOrder():
                    order_ids.add(work.saga_id)
                    as_placed.append(work.saga_id)
                case OpenReturn(order_id=order_id):
                    order_ids.add(order_id)
                    return_ids.add(work.saga_id)  # it may be a repeat whose inbox row is forgotten
                case CloseReturn() | FinishReturn():
                    return_ids.add(work.saga_id)
                case SagaStarted():  # of an order or of a return
                    order_ids.add(work.saga_id)
                    return_ids.add(work.saga_id)
                case _:
                    order_ids.add(work.saga_id)
        if return_ids:
            order_ids.update(row[0] for row in await tx.fetch(_ORDERS_OF, (list(return_ids),)))
        basics = tx.queue_query(_NOW_AND_CURRENCIES, (list(currencies),))
        products = tx.queue_query(_PRODUCTS, (list(skus),))
        orders = tx.queue_query(_ORDERS, (list(order_ids),))
        returns = tx.queue_query(_RETURNS, (list(return_ids),)) if return_ids else None
        placed = tx.queue_query(_AS_PLACED, (as_placed,)) if as_placed else None
        await tx.sync()
        [(now, known)] = basics.rows
        return OrderBook(
            now,
            currencies=set(known),
            products={sku: Product(price, currency) for sku, price, currency in products.rows},
            orders={row[0]: OrderState(OrderStatus(row[1]), *row[2:]) for row in orders.rows},
            returns={
                row[0]: ReturnState(row[1], ReturnStatus(row[2]), *row[3:])
                for row in (returns.rows if returns else ())
            },
            placed_before={row[0]: _placed(row) for row in (placed.rows if placed else ())},
        )

    async def save(self, tx: Tx, state: OrderBook) -> None:
        if state.placed:
            await self._place(tx, state)
        changed = [order_id for order_id in state.changed if order_id not in state.placed]
        if changed:
            orders = [state.orders[order_id] for order_id in changed]
            tx.queue_write(
                _CHANGE,
                (
                    changed,
                    [o.status.value for o in orders],
                    [o.reason for o in orders],
                    [o.saga_known for o in orders],
                    [o.return_id for o in orders],
                    changed,
                ),
                other_rows="orders placed in this batch are not among the changed",
            )
        await self._save_returns(tx, state)
        if state.listed:
            products = [(sku, *state.products[sku]) for sku in state.listed]
            tx.queue_write(_LIST, [list(column) for column in zip(*products, strict=True)])

    async def _place(self, tx: Tx, state: OrderBook) -> None:
        orders = [order for order, _ in state.placed.values()]
        states = [state.orders[order.order_id] for order in orders]
        tx.queue_write(
            _PLACE,
            (
                self._first_delay_seconds,
                [o.order_id for o in orders],
                [o.customer for o in orders],
                [key for _, key in state.placed.values()],
                [o.currency for o in orders],
                [json.dumps([line._asdict() for line in o.lines]) for o in orders],
                [o.total for o in orders],
                [s.status.value for s in states],
                [s.reason for s in states],
                [s.saga_known for s in states],
            ),
        )

    async def _save_returns(self, tx: Tx, state: OrderBook) -> None:
        if state.opened:
            opened = [(r, key, state.returns[r.return_id]) for r, key in state.opened.values()]
            tx.queue_write(
                _OPEN_RETURN,
                (
                    self._first_delay_seconds,
                    [r.return_id for r, _, _ in opened],
                    [r.order_id for r, _, _ in opened],
                    [key for _, key, _ in opened],
                    [s.status.value for _, _, s in opened],
                    [s.reason for _, _, s in opened],
                    [s.saga_known for _, _, s in opened],
                ),
            )
        changed = [r for r in state.changed_returns if r not in state.opened]
        if changed:
            found = [state.returns[return_id] for return_id in changed]
            tx.queue_write(
                _CHANGE_RETURN,
                (
                    changed,
                    [r.status.value for r in found],
                    [r.reason for r in found],
                    [r.saga_known for r in found],
                    changed,
                ),
                other_rows="returns opened in this batch are not among the changed",
            )

    async def overdue_starts(self, tx: Tx, limit: int) -> list[PlacedOrder | OpenedReturn]:
        """Return orders and returns whose SagaStarted is overdue, each taken by one process.

        Each is due again after the first delay and a backoff with full jitter.
        """
        backoff = {
            "limit": limit,
            "first": self._first_delay_seconds,
            "cap": START_BACKOFF_CAP_SECONDS,
        }
        orders = tx.queue_query(_OVERDUE, backoff)
        returns = tx.queue_query(_OVERDUE_RETURNS, backoff)
        await tx.sync()
        return [*map(_placed, orders.rows), *(OpenedReturn(*row) for row in returns.rows)]


def _placed(row: tuple[Any, ...]) -> PlacedOrder:
    order_id, customer, currency, lines, *rest = row
    return PlacedOrder(order_id, customer, currency, _lines(lines), *rest)


def _lines(stored: Sequence[dict[str, Any]]) -> tuple[PricedLine, ...]:
    return tuple(PricedLine(**line) for line in stored)
