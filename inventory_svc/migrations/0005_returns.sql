-- Goods come back: HELD -> RELEASED or HELD -> DISPATCHED -> RETURNED.
alter table reservation drop constraint reservation_status_known;
alter table reservation add constraint reservation_status_known
  check (status in ('HELD', 'RELEASED', 'DISPATCHED', 'RETURNED'));
