"""The inventory's SQL: load what a batch is about, save what it changed, read the stock.

Every transaction locks rows in the same order, so that replicas wait for each other and never
deadlock:

1. reservations, by saga_id;
2. SKUs received for the first time, inserted in SKU order. A transaction that already holds a stock
   row never waits for one of these, since it is invisible until its insert commits;
3. stock, by SKU.

Arrays are sent in binary (%b): in text form psycopg escapes every element in Python.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import UUID

from common.messages.contracts import Effects, EffectsQuery, TouchedPage, TouchedQuery
from common.messages.shop.inventory import (
    DispatchStock,
    ReceiveStock,
    ReleaseStock,
    ReserveStock,
    Restock,
    StockPage,
    StockQuery,
    StockRow,
)
from common.participant.participant import Work
from common.storage.db import Tx
from inventory_svc.domain import Pieces, Reservation, ReservationStatus, Stock

_RESERVATIONS = """
select saga_id, step, lines, status from reservation
 where saga_id = any(%b::uuid[]) order by saga_id for update"""

_FIRST_RECEIVED = """
insert into stock (sku, on_hand, held, dispatched, received)
select sku, 0, 0, 0, 0 from unnest(%b::text[]) as k (sku) order by sku
on conflict do nothing
returning sku"""

_STOCK = """
select sku, on_hand, held, dispatched, received from stock
 where sku = any(%b::text[]) order by sku for update"""

_MOVE = """
update stock s set on_hand = n.on_hand, held = n.held, dispatched = n.dispatched,
       received = n.received
  from unnest(%b::text[], %b::bigint[], %b::bigint[], %b::bigint[], %b::bigint[])
    as n (sku, on_hand, held, dispatched, received)
 where s.sku = n.sku and s.sku = any(%b::text[])"""

_RESERVE = """
insert into reservation (saga_id, step, lines, status, settled_at)
select saga_id, step, lines, status, case when status <> 'HELD' then now() end
  from unnest(%b::uuid[], %b::text[], %b::jsonb[], %b::text[])
    as n (saga_id, step, lines, status)"""

_SETTLE = """
update reservation r set status = n.status, settled_at = now()
  from unnest(%b::uuid[], %b::text[]) as n (saga_id, status)
 where r.saga_id = n.saga_id and r.saga_id = any(%b::uuid[])"""

_DELIVER = """
insert into delivery (saga_id, step, sku, quantity)
select * from unnest(%b::uuid[], %b::text[], %b::text[], %b::bigint[])"""

_PAGE = """
select sku, on_hand, held, dispatched, received from stock
 where (%(after)s::text is null or sku > %(after)s) and starts_with(sku, %(prefix)s)
 order by sku limit %(limit)s"""

_TOUCHED = """
select saga_id, coalesce(settled_at, 'infinity') >= coalesce(%s, '-infinity'::timestamptz)
       and at < coalesce(%s, 'infinity'::timestamptz)
  from reservation
 where saga_id > %s order by saga_id limit %s"""

_EFFECTS = "select saga_id, step, status, at from reservation where saga_id = any(%b::uuid[])"


class InventoryStore:
    async def load(self, tx: Tx, batch: Sequence[Work]) -> Stock:
        stock = Stock()
        named: set[str] = set()
        received: set[str] = set()
        settling: set[UUID] = set()
        for work in batch:
            match work.command:
                case ReserveStock(lines=lines):
                    named.update(line.sku for line in lines)
                case ReceiveStock(sku=sku):
                    received.add(sku)
                case ReleaseStock() | DispatchStock():
                    settling.add(work.saga_id)
                case Restock(order_id=order_id):
                    settling.add(order_id)
        if settling:
            for saga_id, step, lines, status in await tx.fetch(_RESERVATIONS, (list(settling),)):
                held = {line["sku"]: line["quantity"] for line in lines}
                stock.reservations[saga_id] = Reservation(
                    saga_id, step, held, ReservationStatus(status)
                )
                named.update(held)
        new: set[str] = set()
        if received:
            new = {sku for (sku,) in await tx.fetch(_FIRST_RECEIVED, (list(received),))}
        for sku, *pieces in await tx.fetch(_STOCK, (list(named | received),)):
            if sku not in new:  # a command before its first delivery must not see the SKU
                stock.pieces[sku] = Pieces(*pieces)
        return stock

    async def save(self, tx: Tx, state: Stock) -> None:
        if state.moved:
            rows = [(sku, state.pieces[sku]) for sku in state.moved]
            tx.queue_write(
                _MOVE,
                (
                    [sku for sku, _ in rows],
                    [p.on_hand for _, p in rows],
                    [p.held for _, p in rows],
                    [p.dispatched for _, p in rows],
                    [p.received for _, p in rows],
                    [sku for sku, _ in rows],
                ),
            )
        if state.made:
            made = list(state.made.values())
            tx.queue_write(
                _RESERVE,
                (
                    [r.saga_id for r in made],
                    [r.step for r in made],
                    [_lines(r) for r in made],
                    [r.status.value for r in made],
                ),
            )
        if state.settled:
            settled = list(state.settled.values())
            saga_ids = [r.saga_id for r in settled]
            tx.queue_write(
                _SETTLE,
                (saga_ids, [r.status.value for r in settled], saga_ids),
                other_rows="what this batch made is saved with its last status",
            )
        if state.deliveries:
            tx.queue_write(
                _DELIVER,
                (
                    [d.saga_id for d in state.deliveries],
                    [d.step for d in state.deliveries],
                    [d.sku for d in state.deliveries],
                    [d.quantity for d in state.deliveries],
                ),
            )

    async def stock_page(self, tx: Tx, query: StockQuery) -> StockPage:
        await tx.plan_by_values()
        found = await tx.fetch(
            _PAGE, {"after": query.after, "prefix": query.prefix, "limit": query.limit + 1}
        )
        rows = tuple(
            StockRow(sku=sku, on_hand=on_hand, held=held, dispatched=dispatched, received=received)
            for sku, on_hand, held, dispatched, received in found[: query.limit]
        )
        return StockPage(rows=rows, more=len(found) > query.limit)

    async def touched(self, tx: Tx, query: TouchedQuery) -> TouchedPage:
        found = await tx.fetch(_TOUCHED, (query.since, query.until, query.after, query.limit))
        return TouchedPage.of(found, query.limit)

    async def effects(self, tx: Tx, query: EffectsQuery) -> Effects:
        return Effects.of(await tx.fetch(_EFFECTS, (list(query.saga_ids),)))


def _lines(reservation: Reservation) -> str:
    return json.dumps([{"sku": s, "quantity": q} for s, q in reservation.lines.items()])
