-- Customers' accounts and a double-entry ledger. A transfer is one row with a debit and a
-- credit side, so it balances by construction; ledger_entry shows it as two signed entries.
-- The other side of a customer is 'world:deposits' or 'shop:revenue': these have no account
-- row, since every transaction would wait for it; their balance is the sum of their entries.
create table account (
  customer text    not null constraint account_of_a_customer
           check (customer not in ('world:deposits', 'shop:revenue')),
  currency text    not null,
  card     text    not null constraint card_known check (card in ('good', 'declined')),
  balance  bigint  not null constraint balance_not_negative check (balance >= 0),
  constraint account_pk primary key (customer, currency)
) with (fillfactor = 60);

create table transfer (
  transfer_id uuid        not null constraint transfer_pk primary key,
  kind        text        not null constraint transfer_kind_known check (kind in ('DEPOSIT', 'CHARGE', 'REFUND')),
  saga_id     uuid        not null,
  step        text        not null,
  debit       text        not null,  -- the account that gives
  credit      text        not null,  -- the account that takes
  amount      bigint      not null constraint amount_not_negative check (amount >= 0),
  currency    text        not null,
  refund_of   uuid        constraint refund_of_a_transfer references transfer,
  at          timestamptz not null default now(),
  constraint effect_once unique (saga_id, step, kind),
  constraint one_refund_per_charge unique (refund_of),
  constraint refund_names_its_charge check ((kind = 'REFUND') = (refund_of is not null)),
  constraint two_sides check (debit <> credit)
);
create unique index one_charge_per_saga on transfer (saga_id) where kind = 'CHARGE';

create view ledger_entry as
  select transfer_id, kind, saga_id, step, debit as account, -amount as amount, currency, at from transfer
  union all
  select transfer_id, kind, saga_id, step, credit, amount, currency, at from transfer;
