"""The SQL that only reads: orders and returns for their customers, effects for the audit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import UUID

from common.messages.contracts import Effects, EffectsQuery, SagaView, TouchedPage, TouchedQuery
from common.storage.db import Database, Tx
from order_svc.domain import CREATE_ORDER, OPEN_RETURN
from order_svc.door.schemas import OrderView, ReturnView

ReadSaga = Callable[[UUID], Awaitable[SagaView]]

_READ = """
select order_id, customer, currency, lines, total, status, reason, placed_at, settled_at
  from customer_order"""
_ONE = _READ + " where order_id = %s"
_ONE_RETURN = """
select return_id, order_id, status, reason, opened_at, settled_at
  from order_return where return_id = %s"""
_OLDER = """
   and (placed_at, order_id) <
       (select placed_at, order_id from customer_order where order_id = %s)"""
_NEWEST_FIRST = " order by placed_at desc, order_id desc limit %s"
_PAGE = _READ + " where customer = %s" + _NEWEST_FIRST
_PAGE_AFTER = _READ + " where customer = %s" + _OLDER + _NEWEST_FIRST

# Orders and returns, merged by id, each with whether it was alive between `since` and `until`.
_TOUCHED = """
(select order_id as saga_id,
        coalesce(settled_at, 'infinity') >= coalesce(%(since)s, '-infinity'::timestamptz)
        and placed_at < coalesce(%(until)s, 'infinity'::timestamptz)
   from customer_order where order_id > %(after)s order by order_id limit %(limit)s)
union all
(select return_id, coalesce(settled_at, 'infinity') >= coalesce(%(since)s, '-infinity'::timestamptz)
        and opened_at < coalesce(%(until)s, 'infinity'::timestamptz)
   from order_return where return_id > %(after)s order by return_id limit %(limit)s)
 order by saga_id limit %(limit)s"""

# A return and its order are one record in two rows; where they disagree, the status says so.
_EFFECTS = """
select o.order_id, %(create_order)s,
       o.status || case when o.return_id is not null and r.return_id is null
                        then ' by no return' else '' end, o.placed_at
  from customer_order o left join order_return r using (return_id, order_id)
 where o.order_id = any(%(ids)b::uuid[])
 union all
select r.return_id, %(open_return)s,
       case when r.status = 'CLOSED' and o.return_id is distinct from r.return_id then 'CLOSED'
            when o.return_id = r.return_id
             and (r.status, o.status) in (('OPEN', 'RETURN_PENDING'), ('FINISHED', 'RETURNED'))
            then o.status
            else r.status || ' with its order ' || coalesce(o.status, 'gone') end, r.opened_at
  from order_return r left join customer_order o on o.order_id = r.order_id
 where r.return_id = any(%(ids)b::uuid[])"""


class CustomerQueries:
    """The reads of the customer API; `saga` reads the state of an order's or a return's saga."""

    def __init__(self, db: Database, saga: ReadSaga) -> None:
        self._db = db
        self.saga = saga

    async def order(self, order_id: UUID) -> OrderView | None:
        async with self._db.reading() as tx:
            rows = await tx.fetch(_ONE, (order_id,))
        return _order(rows[0]) if rows else None

    async def orders(self, customer: str, limit: int, after: UUID | None) -> list[OrderView]:
        """Return a page, newest first; `after` is the last order of the page before."""
        async with self._db.reading() as tx:
            if after is None:
                rows = await tx.fetch(_PAGE, (customer, limit))
            else:
                rows = await tx.fetch(_PAGE_AFTER, (customer, after, limit))
        return [_order(row) for row in rows]

    async def return_(self, return_id: UUID) -> ReturnView | None:
        async with self._db.reading() as tx:
            rows = await tx.fetch(_ONE_RETURN, (return_id,))
        if not rows:
            return None
        return ReturnView(**dict(zip(ReturnView.model_fields, rows[0], strict=True)))


async def touched(tx: Tx, query: TouchedQuery) -> TouchedPage:
    found = await tx.fetch(_TOUCHED, query.model_dump())
    return TouchedPage.of(found, query.limit)


async def effects(tx: Tx, query: EffectsQuery) -> Effects:
    steps = {"create_order": CREATE_ORDER, "open_return": OPEN_RETURN}
    return Effects.of(await tx.fetch(_EFFECTS, {**steps, "ids": list(query.saga_ids)}))


def _order(row: Sequence[Any]) -> OrderView:
    return OrderView(**dict(zip(OrderView.model_fields, row, strict=True)))
