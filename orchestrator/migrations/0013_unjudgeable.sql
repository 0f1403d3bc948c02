-- Why an instance could not be judged by a release that does know its version: no command can be
-- made of its data, say. Marked `undeployed` as well, which is what unmarks it, in an older release too.
alter table saga_instance add column unjudgeable text;
