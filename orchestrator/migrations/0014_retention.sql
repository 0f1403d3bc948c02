-- What is archived is looked for per definition: those that nobody knows stay, and are not read.
create index saga_instance_ended_of on saga_instance (definition, version, started_at, saga_id)
  where ended_at is not null;
-- Letters on their way again hold up retention for a while; those of long ago are not read for it.
create index dead_letter_redriven on dead_letter (settled_at) where state = 'redriven';
