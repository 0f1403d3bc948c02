-- A saga may be parked at a gate (state WAITING): its step there is `waiting`, with a deadline in this
-- row and nothing else anywhere; then `open`, or `refused`. A gate has no effect, so an open one is
-- settled on the way back as well. What is in the table satisfied narrower rules: not read again.
alter table saga_instance
  drop constraint saga_state_known,
  add constraint saga_state_known
    check (state in ('RUNNING', 'WAITING', 'COMPENSATING', 'COMPLETED', 'COMPENSATED')) not valid,
  drop constraint completed_means_every_step_done,
  add constraint completed_means_every_step_done check (state <> 'COMPLETED' or not
    jsonb_path_exists(steps, '$.* ? (@.status != "done" && @.status != "open" && @.status != "resolved")')) not valid,
  drop constraint compensated_means_every_step_settled,
  add constraint compensated_means_every_step_settled check (state <> 'COMPENSATED' or not
    jsonb_path_exists(steps, '$.* ? (@.status != "refused" && @.status != "undone" && @.status != "fenced" && @.status != "open" && @.status != "resolved")')) not valid,
  add constraint waiting_has_a_gate_and_a_deadline check (state <> 'WAITING' or
    (next_deadline is not null and jsonb_path_exists(steps, '$.* ? (@.status == "waiting")'))) not valid;

-- Customers whose orders a person wants to see; kept by operators.
create table watched_customer (
  customer text        not null constraint watched_customer_pk primary key,
  actor    text        not null,
  reason   text        not null,
  added_at timestamptz not null default now()
);
