-- Who handled the command that a reply answers; `process` is the orchestrator that wrote the entry.
alter table saga_log add column answered_by text;

-- Instances are listed newest first. Those alive are few; one that has ended enters this index
-- once, with its last update, so that the updates before cost nothing.
create index saga_instance_ended on saga_instance (started_at, saga_id) where ended_at is not null;
