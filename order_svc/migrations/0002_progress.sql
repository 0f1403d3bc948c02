-- Choreographed style only: what this service has heard of each order, in the shape of the
-- orchestrator's saga_instance. `heard` is the truth, {"step:direction": {type, outcome, reason,
-- process, at}}; state, steps, reason and pivot_passed follow from it, and are kept to be queried.
create table saga_progress (
  saga_id       uuid        not null constraint saga_progress_pk primary key,
  definition    text        not null default 'order',
  state         text        not null constraint progress_state_known
                check (state in ('RUNNING', 'COMPENSATING', 'COMPLETED', 'COMPENSATED')),
  heard         jsonb       not null,
  steps         jsonb       not null,
  reason        text,
  asked         text,       -- why the pivot's owner was asked to cancel
  pivot_passed  boolean     not null default false,
  attempt       int         not null default 1,
  stuck_since   timestamptz,
  next_deadline timestamptz,
  started_at    timestamptz not null default now(),
  heard_at      timestamptz not null default now(),  -- the last event that was news
  ended_at      timestamptz,
  constraint heard_pivot_excludes_compensation
    check (not (pivot_passed and state in ('COMPENSATING', 'COMPENSATED'))),
  constraint heard_completed_means_every_step_done check (state <> 'COMPLETED' or not
    jsonb_path_exists(steps, '$.* ? (@.status != "done")')),
  constraint heard_compensated_means_every_step_settled check (state <> 'COMPENSATED' or not
    jsonb_path_exists(steps, '$.* ? (@.status != "refused" && @.status != "undone" && @.status != "fenced")')),
  constraint heard_end_awaits_nothing
    check ((ended_at is null) = (state not in ('COMPLETED', 'COMPENSATED'))
           and (ended_at is null or next_deadline is null))
) with (fillfactor = 60);
create index saga_progress_overdue on saga_progress (next_deadline) where next_deadline is not null;
create index saga_progress_alive on saga_progress (started_at) where ended_at is null;
