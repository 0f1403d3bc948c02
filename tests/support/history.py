"""A history of confirmed and refused orders, written straight into the four schemas.

Owns: rows as the services would leave them. Must not know: what reads them.
"""

from __future__ import annotations

from typing import LiteralString

import psycopg

# Of ten orders: seven are confirmed, one was refused its stock, one was undone after the stock was
# held, one after it was charged. `n` numbers them; ids are spread as real ones are.
_ORDERS: LiteralString = """
create temporary table planned on commit drop as
select n, md5('saga ' || n)::uuid as saga_id, n %% 10 as kind,
       now() - interval '1 hour' + n * interval '10 ms' as at
  from generate_series(%s::int, %s::int) as n;
"""

_ROWS: LiteralString = """
insert into order_svc.customer_order (order_id, customer, idempotency_key, currency, lines, total,
                                      status, reason, saga_known, placed_at, settled_at)
select saga_id, 'c-' || n % 100, 'key-' || n, 'EUR', '[{"sku": "tea", "quantity": 1, "price": 5}]',
       5, case when kind < 7 then 'CONFIRMED' else 'REJECTED' end,
       case when kind >= 7 then 'out_of_stock' end, true, at, at + interval '1 second'
  from planned;

insert into orchestrator.saga_instance (saga_id, definition, version, state, data, steps, reason,
                                        pivot_passed, started_at, updated_at, ended_at)
select saga_id, 'order', 1, case when kind < 7 then 'COMPLETED' else 'COMPENSATED' end,
       jsonb_build_object('customer', 'c-' || n % 100, 'currency', 'EUR', 'total', 5, 'lines',
                          '[{"sku": "tea", "quantity": 1}]'::jsonb),
       jsonb_build_object('create_order', jsonb_build_object(
         'status', case when kind < 7 then 'done' else 'undone' end, 'attempt', 1,
         'undo_attempt', 0, 'issued', extract(epoch from at))),
       case when kind >= 7 then 'out_of_stock' end, kind < 7, at, at + interval '1 second',
       at + interval '1 second'
  from planned;

insert into orchestrator.saga_log (saga_id, at, entry, process)
select saga_id, at + entry.n * interval '100 ms', entry.entry, 'orchestrator'
  from planned cross join (values (1, 'started'), (2, 'completed')) as entry (n, entry);

insert into inventory_svc.reservation (saga_id, step, status, lines, at, settled_at)
select saga_id, 'reserve_stock', case when kind < 7 then 'DISPATCHED' else 'RELEASED' end,
       '[{"sku": "tea", "quantity": 1}]', at, at + interval '1 second'
  from planned where kind <> 7;

insert into payment_svc.transfer (transfer_id, kind, saga_id, step, debit, credit, amount, currency,
                                  at)
select md5('charge ' || n)::uuid, 'CHARGE', saga_id, 'charge_payment', 'c-' || n % 100,
       'shop:revenue', 5, 'EUR', at
  from planned where kind < 7 or kind = 9;

insert into payment_svc.transfer (transfer_id, kind, saga_id, step, debit, credit, amount, currency,
                                  refund_of, at)
select md5('refund ' || n)::uuid, 'REFUND', saga_id, 'charge_payment', 'shop:revenue',
       'c-' || n % 100, 5, 'EUR', md5('charge ' || n)::uuid, at
  from planned where kind = 9;
"""


# Every confirmed order of kind 5 is given back; of kind 4 it was tried, and its return undone.
_RETURNS: LiteralString = """
create temporary table planned on commit drop as
select n, md5('saga ' || n)::uuid as order_id, md5('return ' || n)::uuid as saga_id,
       n %% 10 as kind, now() - interval '30 minutes' + n * interval '10 ms' as at
  from generate_series(%s::int, %s::int) as n where n %% 10 in (4, 5);
"""

_RETURN_ROWS: LiteralString = """
insert into order_svc.order_return (return_id, order_id, idempotency_key, status, reason,
                                    saga_known, opened_at, settled_at)
select saga_id, order_id, 'return-' || n, case kind when 5 then 'FINISHED' else 'CLOSED' end,
       case kind when 4 then 'refund_order_timed_out' end, true, at, at + interval '1 second'
  from planned;

update order_svc.customer_order o set status = 'RETURNED', return_id = p.saga_id
  from planned p where o.order_id = p.order_id and p.kind = 5;

insert into orchestrator.saga_instance (saga_id, definition, version, state, data, steps, reason,
                                        pivot_passed, started_at, updated_at, ended_at)
select saga_id, 'return', 1, case kind when 5 then 'COMPLETED' else 'COMPENSATED' end,
       jsonb_build_object('order_id', order_id),
       jsonb_build_object('open_return', jsonb_build_object(
         'status', case kind when 5 then 'done' else 'undone' end, 'attempt', 1,
         'undo_attempt', 0, 'issued', extract(epoch from at))),
       case kind when 4 then 'refund_order_timed_out' end, kind = 5, at, at + interval '1 second',
       at + interval '1 second'
  from planned;

update inventory_svc.reservation r set status = 'RETURNED', settled_at = p.at + interval '1 second'
  from planned p where r.saga_id = p.order_id and p.kind = 5;

insert into payment_svc.transfer (transfer_id, kind, saga_id, step, debit, credit, amount, currency,
                                  refund_of, at)
select md5('refund ' || n)::uuid, 'REFUND', saga_id, 'refund_order', 'shop:revenue',
       'c-' || n % 100, 5, 'EUR', md5('charge ' || n)::uuid, at
  from planned where kind = 5;
"""


def write_returns(dsn: str, first: int, last: int) -> None:
    """Write a return, finished or given up, for one in five of the orders `first` to `last`."""
    _write(dsn, _RETURNS, _RETURN_ROWS, first, last)


def write_history(dsn: str, first: int, last: int) -> None:
    """Write the orders number `first` to `last`; `dsn` is the superuser's."""
    _write(dsn, _ORDERS, _ROWS, first, last)


def _write(dsn: str, plan: LiteralString, rows: LiteralString, first: int, last: int) -> None:
    with psycopg.connect(dsn) as connection:
        psycopg.ClientCursor(connection).execute(plan, (first, last))
        connection.execute(rows)
