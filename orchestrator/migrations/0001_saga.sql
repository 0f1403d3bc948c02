-- One row per saga instance. steps is {step: {status, attempt, undo_attempt, issued, undo_issued,
-- deadline}}, times in seconds of the epoch by this database's clock;
-- status goes  sent -> done | refused | unknown,  done|unknown -> undoing -> undone,
-- and for the pivot  sent -> fencing -> done | fenced.  A step not yet sent has no entry.
create table saga_instance (
  saga_id       uuid        not null constraint saga_instance_pk primary key,
  definition    text        not null,
  version       int         not null,
  state         text        not null constraint saga_state_known
                check (state in ('RUNNING', 'COMPENSATING', 'COMPLETED', 'COMPENSATED')),
  data          jsonb       not null,
  steps         jsonb       not null,
  reason        text,
  compensate_asked boolean  not null default false,
  pivot_passed  boolean     not null default false,
  stuck_since   timestamptz,
  next_deadline timestamptz,
  started_at    timestamptz not null default now(),
  updated_at    timestamptz not null default now(),
  ended_at      timestamptz,
  constraint passed_pivot_excludes_compensation
    check (not (pivot_passed and state in ('COMPENSATING', 'COMPENSATED'))),
  constraint completed_means_every_step_done check (state <> 'COMPLETED' or not
    jsonb_path_exists(steps, '$.* ? (@.status != "done" && @.status != "resolved")')),
  constraint compensated_means_every_step_settled check (state <> 'COMPENSATED' or not
    jsonb_path_exists(steps, '$.* ? (@.status != "refused" && @.status != "undone" && @.status != "fenced" && @.status != "resolved")')),
  constraint ended_awaits_nothing check ((ended_at is null) = (state not in ('COMPLETED', 'COMPENSATED'))
    and (ended_at is null or next_deadline is null))
) with (fillfactor = 60);
create index saga_instance_overdue on saga_instance (next_deadline) where next_deadline is not null;
create index saga_instance_alive on saga_instance (state, started_at, stuck_since)
  where ended_at is null;

-- The saga log: every input and what was made of it, in order. Shown as the timeline.
create table saga_log (
  id        bigint      not null generated always as identity,
  saga_id   uuid        not null,
  at        timestamptz not null default clock_timestamp(),
  entry     text        not null,  -- started, sent, reply, ignored, timed_out, refused, ended, ...
  step      text,
  direction text,
  attempt   int,
  detail    text,
  process   text        not null,
  constraint saga_log_pk primary key (saga_id, id)
);
