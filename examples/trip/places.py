"""A participant that sells places, be it a flight, a hotel or a car hire: handlers and SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from common import Command, Handler, Tx, Work
from examples.trip import saga

SAVE = """
insert into booking select * from unnest(%b::uuid[], %b::text[], %b::text[], %b::text[])
on conflict (saga_id) do update set status = excluded.status"""
SELL = """
update offer o set free = n.free from unnest(%b::text[], %b::int[]) as n (destination, free)
 where o.destination = n.destination"""


@dataclass
class Places:
    """The state one batch works on: free places by destination, bookings by trip."""

    free: dict[str, int]
    bookings: dict[UUID, tuple[str, str, str]]


def book(places: Places, work: Work[saga.BookPlace]) -> saga.PlaceBooked | saga.SoldOut:
    command = work.command
    if not places.free.get(command.destination):
        return saga.SoldOut()
    places.free[command.destination] -= 1
    places.bookings[work.saga_id] = (command.traveller, command.destination, "BOOKED")
    return saga.PlaceBooked()


def cancel(places: Places, work: Work[saga.CancelPlace]) -> saga.PlaceCancelled:
    traveller, destination, status = places.bookings.get(work.saga_id, ("", "", "CANCELLED"))
    if status == "CANCELLED":
        return saga.PlaceCancelled(nothing_to_undo=True)
    places.free[destination] += 1
    places.bookings[work.saga_id] = (traveller, destination, "CANCELLED")
    return saga.PlaceCancelled()


def confirm(places: Places, work: Work[saga.ConfirmPlace]) -> saga.PlaceConfirmed:
    traveller, destination, _ = places.bookings[work.saga_id]
    places.bookings[work.saga_id] = (traveller, destination, "CONFIRMED")
    return saga.PlaceConfirmed()


HANDLERS: dict[type[Command], Handler] = {
    saga.BookPlace: book,
    saga.CancelPlace: cancel,
    saga.ConfirmPlace: confirm,
}


class PlacesStore:
    async def load(self, tx: Tx, batch: Sequence[Work]) -> Places:
        """Read offers and bookings; all offers are locked in one order, against deadlocks."""
        free = tx.queue_query("select destination, free from offer order by destination for update")
        rows = tx.queue_query(
            "select saga_id, traveller, destination, status from booking"
            " where saga_id = any(%b::uuid[])",
            ([work.saga_id for work in batch],),
        )
        await tx.sync()
        return Places(dict(free.rows), {row[0]: (row[1], row[2], row[3]) for row in rows.rows})

    async def save(self, tx: Tx, state: Places) -> None:
        tx.queue_write(SELL, (list(state.free), list(state.free.values())))
        bookings = [(saga_id, *row) for saga_id, row in state.bookings.items()]
        tx.queue_write(SAVE, [list(column) for column in zip(*bookings, strict=True)] or [[]] * 4)
