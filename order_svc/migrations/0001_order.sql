-- The price list and the orders. An order goes PENDING -> CONFIRMED or PENDING -> REJECTED;
-- PENDING is its semantic lock: a saga is at work on it.
create table product (
  sku      text   not null constraint product_pk primary key,
  price    bigint not null constraint price_not_negative check (price >= 0),
  currency text   not null
);
create index product_by_currency on product (currency);

create table customer_order (
  order_id        uuid        not null constraint order_once primary key,  -- = saga_id
  customer        text        not null,
  idempotency_key text        not null,
  currency        text        not null,
  lines           jsonb       not null,  -- [{"sku", "quantity", "price"}]: the price it was sold at
  total           bigint      not null constraint total_not_negative check (total >= 0),
  status          text        not null constraint order_status_known
                  check (status in ('PENDING', 'CONFIRMED', 'REJECTED')),
  reason          text,
  saga_known      boolean     not null default false,  -- SagaStarted was seen: no need to ask again
  start_attempts  int         not null default 1,
  next_start_at   timestamptz,
  placed_at       timestamptz not null default now(),
  settled_at      timestamptz,
  constraint order_key_once unique (customer, idempotency_key),
  constraint rejected_has_a_reason check ((status = 'REJECTED') = (reason is not null))
) with (fillfactor = 80);
create index order_by_customer on customer_order (customer, placed_at, order_id);  -- read backwards
create index order_start_overdue on customer_order (next_start_at)
  where status = 'PENDING' and not saga_known;
