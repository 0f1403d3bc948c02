-- The same two tables for flight, hotel and car, in a schema of its own each.
create table offer (
    destination text primary key,
    free        integer not null constraint offer_free check (free >= 0)
);

create table booking (
    saga_id     uuid primary key,  -- one of each trip
    traveller   text not null,
    destination text not null,
    -- BOOKED is the semantic lock: a place is taken, and may still be given back.
    status      text not null
                constraint booking_status check (status in ('BOOKED', 'CONFIRMED', 'CANCELLED'))
);

-- What there is to sell: fewer cars than seats, and in Oslo none.
insert into offer
select destination, case current_user when 'car' then cars else places end
  from (values ('lisbon', 40, 60), ('oslo', 0, 60), ('quito', 5, 5)) as o (destination, cars, places);
