-- Those that are stuck are counted every two seconds, without a look at what is parked at a gate.
create index saga_instance_stuck on saga_instance (stuck_since)
  where ended_at is null and stuck_since is not null;
