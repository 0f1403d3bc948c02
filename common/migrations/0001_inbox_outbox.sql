-- Applied in every schema. inbox: handled message ids with the reply that was given.
-- A row is born 'claimed' inside the transaction that handles the command and is
-- never committed in that state; 'fenced' on a forward row is a tombstone.
create table inbox (
  saga_id    uuid        not null,
  step       text        not null,
  direction  text        not null constraint inbox_direction_known check (direction in ('forward', 'compensating')),
  outcome    text        not null default 'claimed'
             constraint inbox_outcome_known check (outcome in ('claimed', 'done', 'refused', 'fenced')),
  reply      text,       -- the encoded envelope, given again to every duplicate; null: none was wanted
  handled_at timestamptz not null default now(),
  constraint inbox_once primary key (saga_id, step, direction)
) with (fillfactor = 70);  -- room for the claim's own update on the same page

-- outbox: envelopes committed together with state. Rows go once the broker confirmed them,
-- so the table stays small; claimed with SKIP LOCKED, never by a high-water mark.
create table outbox (
  destination text        not null,  -- a queue
  id          bigint      not null generated always as identity,
  envelope    text        not null,  -- encoded, as it travels
  created_at  timestamptz not null default now(),
  constraint outbox_pk primary key (destination, id)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- How often an envelope was tried alone, committed before each try, so that the one that
-- kills its process can be told from its neighbours (section 6, rule 14).
create table solo_tries (
  saga_id   uuid not null,
  step      text not null,
  direction text not null,
  reply     boolean not null,
  tries     int  not null,
  constraint solo_tries_pk primary key (saga_id, step, direction, reply)
);
