-- One row. Sagas whose commands were all first issued until then may have been forgotten: their
-- inbox rows are gone. A command as old without an inbox row is set aside, not run (ADR 24).
create table forgotten (
  here  boolean     not null default true constraint forgotten_pk primary key
        constraint forgotten_is_one_row check (here),
  until timestamptz not null default '-infinity'
) with (fillfactor = 10);
insert into forgotten default values;
