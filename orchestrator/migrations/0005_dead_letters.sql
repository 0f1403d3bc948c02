-- What was set aside, from every dead-letter queue: one row for the same message, set aside from
-- the same queue for the same reason. It goes  open -> redriven | discarded,  and back to open
-- should the same letter come again. `body` holds the first mebibyte of `size` bytes; `readable`
-- means that it is a whole envelope, which can be redriven. `set_aside` tells the redelivery of a
-- letter from its next coming.
create table dead_letter (
  letter_id   uuid        not null constraint dead_letter_pk primary key,
  queue       text        not null,  -- where it came from
  reason      text        not null,
  detail      text,
  saga_id     uuid,
  step        text,
  direction   text,
  reply       boolean     not null,
  message_id  uuid,
  type        text,
  body        bytea       not null,
  size        int         not null,
  readable    boolean     not null,
  headers     jsonb       not null,
  set_aside   text        not null,
  count       int         not null constraint came_at_least_once check (count > 0),
  first_seen  timestamptz not null default now(),
  last_seen   timestamptz not null default now(),
  state       text        not null default 'open' constraint dead_letter_state_known
              check (state in ('open', 'redriven', 'discarded')),
  settled_at  timestamptz,
  settled_by  text,
  settled_why text,
  constraint settled_by_somebody check
    ((state = 'open') = (settled_by is null) and (state = 'open') = (settled_at is null)),
  constraint discarded_for_a_reason check (state <> 'discarded' or settled_why is not null)
);
-- Whatever an operator asks for by queue, reason or both comes in one of these orders.
create index dead_letter_by_queue on dead_letter (state, queue, reason, first_seen, letter_id);
create index dead_letter_by_reason on dead_letter (state, reason, queue, first_seen, letter_id);
create index dead_letter_of_saga on dead_letter (saga_id) where saga_id is not null;
