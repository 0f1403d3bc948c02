"""The trip saga: its table of steps and the messages they send. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel

from common import Command, Done, Refusal, Undo
from orchestrator import Definition, Kind, Step


class Trip(BaseModel):
    """The data a trip begins with; each command takes its fields from here, by name."""

    traveller: str
    destination: str


class BookPlace(Command):
    traveller: str
    destination: str


class PlaceBooked(Done):
    pass


class SoldOut(Refusal):
    reason: Literal["sold_out"] = "sold_out"


class CancelPlace(Undo):
    """The undo of BookPlace. The booking says what to cancel, not the message."""


class PlaceCancelled(Done):
    nothing_to_undo: bool = False


class ConfirmPlace(Command):
    """The command that makes a booking final: it is paid for and not refunded."""


class PlaceConfirmed(Done):
    pass


def overseas(data: Mapping[str, Any]) -> str | None:
    """Return why a person must approve this trip, or None."""
    return "a trip overseas" if data["destination"] == "quito" else None


# fmt: off
TRIP = Definition("trip", version=1, data=Trip, steps=(
    Step("book_flight",    Kind.COMPENSATABLE, "flight", command=BookPlace, undo=CancelPlace),
    Step("book_hotel",     Kind.COMPENSATABLE, "hotel",  command=BookPlace, undo=CancelPlace),
    Step("book_car",       Kind.COMPENSATABLE, "car",    command=BookPlace, undo=CancelPlace),
    Step("approve_trip",   Kind.GATE,          "orchestrator", asks=overseas),
    Step("confirm_flight", Kind.PIVOT,         "flight", command=ConfirmPlace),
    Step("confirm_hotel",  Kind.RETRIABLE,     "hotel",  command=ConfirmPlace),
    Step("confirm_car",    Kind.RETRIABLE,     "car",    command=ConfirmPlace),
))
# fmt: on
