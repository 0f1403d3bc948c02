-- A confirmed order may be given back: CONFIRMED -> RETURN_PENDING -> RETURNED, or back to CONFIRMED.
-- RETURN_PENDING is the semantic lock of one return, return_id says whose.
alter table customer_order add column return_id uuid;
alter table customer_order drop constraint order_status_known;
alter table customer_order add constraint order_status_known
  check (status in ('PENDING', 'CONFIRMED', 'REJECTED', 'RETURN_PENDING', 'RETURNED'));
alter table customer_order add constraint returned_by_one_return
  check ((status in ('RETURN_PENDING', 'RETURNED')) = (return_id is not null));

-- Every attempt at it: OPEN -> FINISHED or OPEN -> CLOSED, both final.
create table order_return (
  return_id       uuid        not null constraint order_return_once primary key,  -- = saga_id
  order_id        uuid        not null,
  idempotency_key text        not null,
  status          text        not null constraint return_status_known
                  check (status in ('OPEN', 'CLOSED', 'FINISHED')),
  reason          text,
  saga_known      boolean     not null default false,  -- SagaStarted was seen: no need to ask again
  start_attempts  int         not null default 1,
  next_start_at   timestamptz,
  opened_at       timestamptz not null default now(),
  settled_at      timestamptz,
  constraint return_key_once unique (order_id, idempotency_key),
  constraint closed_has_a_reason check ((status = 'CLOSED') = (reason is not null))
);
create unique index one_return_per_order on order_return (order_id) where status <> 'CLOSED';
create index return_start_overdue on order_return (next_start_at)
  where status = 'OPEN' and not saga_known;
