-- Stock per SKU; the sum of where the pieces are only changes by a delivery.
create table stock (
  sku        text   not null constraint stock_pk primary key,
  on_hand    bigint not null constraint on_hand_not_negative check (on_hand >= 0),
  held       bigint not null constraint held_not_negative check (held >= 0),
  dispatched bigint not null constraint dispatched_not_negative check (dispatched >= 0),
  received   bigint not null,
  constraint stock_conserved check (on_hand + held + dispatched = received)
) with (fillfactor = 60);

-- A delivery of new goods.
create table delivery (
  saga_id  uuid        not null,
  step     text        not null,
  sku      text        not null,
  quantity bigint      not null constraint delivery_positive check (quantity > 0),
  at       timestamptz not null default now(),
  constraint delivery_once primary key (saga_id, step)
);

-- HELD is the semantic lock; HELD -> RELEASED or HELD -> DISPATCHED, both final.
create table reservation (
  saga_id    uuid        not null,
  step       text        not null,
  status     text        not null constraint reservation_status_known
             check (status in ('HELD', 'RELEASED', 'DISPATCHED')),
  lines      jsonb       not null,  -- [{"sku", "quantity"}]
  at         timestamptz not null default now(),
  settled_at timestamptz,
  constraint reservation_once primary key (saga_id, step)
) with (fillfactor = 80);
create unique index one_reservation_per_saga on reservation (saga_id);
