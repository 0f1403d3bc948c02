"""The SQL that only reads: orders and returns as their customers see them, effects for the audit.

Owns: those queries. Must not know: HTTP, what an order goes through.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from common.contracts import Effects, EffectsQuery, TouchedPage, TouchedQuery
from common.db import Tx
from order_svc.domain import CREATE_ORDER
from order_svc.views import OrderView, ReturnView

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

_TOUCHED = """
select order_id, coalesce(settled_at, 'infinity') >= coalesce(%s, '-infinity'::timestamptz)
       and placed_at < coalesce(%s, 'infinity'::timestamptz)
  from customer_order
 where order_id > %s order by order_id limit %s"""

_EFFECTS = """
select order_id, %s, status, placed_at from customer_order where order_id = any(%b::uuid[])"""


async def order(tx: Tx, order_id: UUID) -> OrderView | None:
    rows = await tx.fetch(_ONE, (order_id,))
    return _order(rows[0]) if rows else None


async def orders(tx: Tx, customer: str, limit: int, after: UUID | None = None) -> list[OrderView]:
    """Newest first; `after` is the last order of the page before."""
    if after is None:
        rows = await tx.fetch(_PAGE, (customer, limit))
    else:
        rows = await tx.fetch(_PAGE_AFTER, (customer, after, limit))
    return [_order(row) for row in rows]


async def return_(tx: Tx, return_id: UUID) -> ReturnView | None:
    rows = await tx.fetch(_ONE_RETURN, (return_id,))
    return ReturnView(**dict(zip(ReturnView.model_fields, rows[0], strict=True))) if rows else None


async def touched(tx: Tx, query: TouchedQuery) -> TouchedPage:
    found = await tx.fetch(_TOUCHED, (query.since, query.until, query.after, query.limit))
    return TouchedPage.of(found, query.limit)


async def effects(tx: Tx, query: EffectsQuery) -> Effects:
    return Effects.of(await tx.fetch(_EFFECTS, (CREATE_ORDER, list(query.saga_ids))))


def _order(row: Sequence[Any]) -> OrderView:
    return OrderView(**dict(zip(OrderView.model_fields, row, strict=True)))
