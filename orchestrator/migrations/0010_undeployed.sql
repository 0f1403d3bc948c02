-- Versions side by side. An instance whose definition no process knew when its deadline had long
-- passed is marked `undeployed`, and stuck with it, until somebody who knows it touches it.
alter table saga_instance add column undeployed boolean not null default false;

-- A reply that came to a process which does not know its saga's version, kept for one that does.
create table held_reply (
  saga_id    uuid        not null,
  step       text        not null,
  direction  text        not null,
  definition text        not null,  -- with its version: `order v2`
  envelope   text        not null,
  held_at    timestamptz not null default now(),
  constraint held_reply_pk primary key (saga_id, step, direction)
);
