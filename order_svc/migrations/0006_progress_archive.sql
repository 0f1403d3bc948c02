-- Choreographed style only: what was heard of sagas that ended long ago, each a row of saga_progress.
-- It is read as a row of that table again, so a column that is added there later is null here.
create table progress_archive (
  saga_id     uuid        not null constraint progress_archive_pk primary key,
  progress    jsonb       not null,
  archived_at timestamptz not null default now()
);
create index saga_progress_ended on saga_progress (started_at) where ended_at is not null;
