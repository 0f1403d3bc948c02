-- Looked for in the log of whatever stands still, which may be long.
create index saga_log_discarded on saga_log (saga_id, id) where entry = 'discarded';
