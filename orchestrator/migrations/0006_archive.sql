-- Sagas that ended long ago, each with its log in one row: {saga_instance's row} and
-- [{saga_log's rows, in order}]. They are read as rows of those tables again, so a column that is
-- added there later is null here. The inbox keeps the start of every saga for ever: it is the
-- permanent table of saga ids (section 6, rule 9).
create table saga_archive (
  saga_id     uuid        not null constraint saga_archive_pk primary key,
  instance    jsonb       not null,
  log         jsonb       not null,
  archived_at timestamptz not null default now()
);
