-- What operators did, each in the transaction of the deed, and what they were refused. For ever, and
-- as it was written: the database lets nobody change it, not even whoever owns the table.
create table operator_action (
  id      bigint      not null generated always as identity constraint operator_action_pk primary key,
  at      timestamptz not null default clock_timestamp(),
  actor   text        not null,
  action  text        not null,  -- compensate, retry, resolve, approve, redrive, ...
  saga_id uuid,                  -- null: about no saga, or about many
  about   text,                  -- what else it was about: a step, a dead letter, a customer
  reason  text        not null,
  outcome text        not null constraint operator_action_outcome_known
          check (outcome in ('done', 'refused')),
  detail  text,                  -- why it was refused; what came of it
  process text        not null,
  constraint operator_action_has_actor_and_reason
    check (actor <> '' and reason <> '' and (outcome <> 'refused' or detail is not null))
);
create index operator_action_of_saga on operator_action (saga_id, id) where saga_id is not null;

create function refuse_to_rewrite() returns trigger language plpgsql as $$
begin
  raise exception '% only grows: % is refused', tg_table_name, lower(tg_op)
    using errcode = 'integrity_constraint_violation', constraint = tg_table_name || '_only_grows';
end $$;
create trigger operator_action_only_grows before update or delete or truncate on operator_action
  for each statement execute function refuse_to_rewrite();
