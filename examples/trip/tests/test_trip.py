"""Tests of the trip's rules, without a server."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import pytest

from common import Command, Direction, Envelope, Key, StartSaga, Work
from examples.trip.door import start
from examples.trip.places import HANDLERS, Places
from examples.trip.saga import TRIP, BookPlace, CancelPlace, ConfirmPlace, SoldOut, Trip
from examples.trip.tests.scenario import Seen, offences

ONE = UUID(int=1)
BOOK = BookPlace(traveller="ann", destination="lisbon")
EVE = {"traveller": "eve", "destination": "lisbon"}


def do(places: Places, command: Command) -> object:
    key = Key(ONE, "book_hotel", Direction.FORWARD)
    envelope = Envelope.command(key, command, issued_at=datetime.now(UTC), reply_to=None)
    return HANDLERS[type(command)](places, Work(envelope, command))


def test_a_place_is_taken_confirmed_and_given_back_once() -> None:
    places = Places({"lisbon": 1}, {})
    do(places, BOOK)
    assert places == Places({"lisbon": 0}, {ONE: ("ann", "lisbon", "BOOKED")})
    do(places, CancelPlace())
    do(places, CancelPlace())
    assert places == Places({"lisbon": 1}, {ONE: ("ann", "lisbon", "CANCELLED")})
    places = Places({"lisbon": 1}, {})
    do(places, BOOK)
    do(places, ConfirmPlace())
    assert places.bookings[ONE][2] == "CONFIRMED"


@pytest.mark.parametrize("free", [{}, {"lisbon": 0}])
def test_where_nothing_is_free_nothing_is_sold(free: dict[str, int]) -> None:
    places = Places(dict(free), {})
    assert do(places, BOOK) == SoldOut()
    assert places == Places(free, {})


def test_undoing_what_was_never_done_changes_nothing() -> None:
    places = Places({"lisbon": 3}, {})
    assert getattr(do(places, CancelPlace()), "nothing_to_undo") is True  # noqa: B009
    assert places == Places({"lisbon": 3}, {})


def test_the_same_trip_is_the_same_saga() -> None:
    trip = Trip(traveller="ann", destination="lisbon")
    assert start(TRIP, trip).saga_id == start(TRIP, trip).saga_id
    assert start(TRIP, trip).saga_id != start(TRIP, Trip(**EVE)).saga_id


def test_a_trip_begins_with_the_fields_its_commands_take() -> None:
    message = start(TRIP, Trip(traveller="ann", destination="lisbon")).message()
    assert isinstance(message, StartSaga)
    assert BookPlace.model_validate(message.data) == BOOK


@pytest.mark.parametrize(
    "trip",
    [
        Seen("COMPLETED", None, "CONFIRMED", "CONFIRMED", "BOOKED"),
        Seen("COMPLETED", None, "CONFIRMED", "CONFIRMED", None),
        Seen("COMPENSATED", "sold_out", "CANCELLED", "BOOKED", None),
        Seen("COMPENSATED", "sold_out", "CONFIRMED", "CANCELLED", None),
        Seen("RUNNING", None, "BOOKED", "BOOKED", None),
    ],
)
def test_a_trip_by_halves_is_an_offence(trip: Seen) -> None:
    assert list(offences(1, [trip]))


def test_all_or_nothing_is_none() -> None:
    whole = Seen("COMPLETED", None, "CONFIRMED", "CONFIRMED", "CONFIRMED")
    assert not list(offences(2, [whole, Seen("COMPENSATED", "sold_out", "CANCELLED", None, None)]))
    assert list(offences(2, [whole]))


def test_it_is_small() -> None:
    """A saga of one's own takes at most 150 lines, its tests not counted."""
    files = Path(__file__).parents[1].glob("*.py")
    lines = [line for file in files for line in file.read_text().splitlines() if line.strip()]
    assert len(lines) <= 150
