"""A history of orders that went well or were refused, written straight into the four schemas.

Owns: rows as the services leave them, without their work. Must not know: who looks at them.
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


def write_history(dsn: str, first: int, last: int) -> None:
    """Orders number `first` to `last`; `dsn` is the superuser's."""
    with psycopg.connect(dsn) as connection:
        psycopg.ClientCursor(connection).execute(_ORDERS, (first, last))
        connection.execute(_ROWS)
