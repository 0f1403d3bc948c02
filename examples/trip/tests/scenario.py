"""A scenario: trips run beside orders while a participant and the orchestrator are killed.

.venv/bin/chaos run examples.trip.tests.scenario:KILLS

Holds the play and its one invariant: every trip has all its places, or none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple
from uuid import UUID

from chaos.faults.nemesis import Kill
from chaos.scenarios.scene import UNDER_WAY, Scenario, Scene
from chaos.stack.database import CONFIRMED
from chaos.stack.system import System
from chaos.waiting import ExperimentError, until
from common import ORCHESTRATOR_COMMANDS
from examples.trip.door import start
from examples.trip.saga import TRIP, Trip

BOOKINGS = """
select i.state, i.reason, f.status, h.status, c.status
  from orchestrator.saga_instance i
  left join flight.booking f using (saga_id)
  left join hotel.booking h using (saga_id)
  left join car.booking c using (saga_id)
 where i.definition = 'trip' and i.saga_id = any(%s)"""


class Seen(NamedTuple):
    """A trip's state at the orchestrator and its booking at each participant."""

    state: str
    reason: str | None
    flight: str | None
    hotel: str | None
    car: str | None


def offences(asked: int, trips: Sequence[Seen]) -> Iterator[str]:
    """Yield a sentence for each trip that has some of its places but not all."""
    if len(trips) != asked:
        yield f"{asked} trips were asked for, {len(trips)} are there"
    for trip in trips:
        places = {trip.flight, trip.hotel, trip.car}
        whole = trip.state == "COMPLETED" and places == {"CONFIRMED"}
        nothing = trip.state == "COMPENSATED" and places <= {None, "CANCELLED"}
        if not (whole or nothing):
            yield f"neither all nor nothing: {trip}"


def play(scene: Scene) -> None:
    system = scene.system
    starts = [start(TRIP, trip) for trip in wanted(scene.name, scene.count)]
    trips = [envelope.saga_id for envelope in starts]
    with system.door.placing(scene.good()) as placed, system.db.session("hotel") as hotel:
        hotel.execute("select from offer for update")  # until rollback no room can be booked
        system.broker.send(ORCHESTRATOR_COMMANDS, starts)
        enough = max(1, round(UNDER_WAY * scene.count))
        until(lambda: asked_hotel(system, trips) >= enough, f"{enough} trips want a room")
        with scene.struck(Kill("hotel"), Kill("orchestrator")):
            hotel.rollback()
    scene.expect(placed.result(), CONFIRMED)
    until(lambda: not set(trips) & set(system.db.alive()), "every trip has ended")
    seen = [Seen(*row) for row in system.db.rows(BOOKINGS, trips)]
    scene.others = Counter(f"trip {trip.reason or 'completed'}" for trip in seen)
    if found := list(offences(len(trips), seen)):
        raise ExperimentError("\n".join(found))


def wanted(name: str, count: int) -> list[Trip]:
    """Return the trips to book; every fifth goes to Oslo, where there are no cars."""
    places = ("lisbon", "lisbon", "lisbon", "lisbon", "oslo")
    return [
        Trip(traveller=f"{name}-{number}", destination=places[number % len(places)])
        for number in range(count)
    ]


def asked_hotel(system: System, trips: list[UUID]) -> int:
    return sum("book_hotel" in steps for steps in system.db.steps(trips))


KILLS = Scenario(
    "trip-kills",
    "Trips flow beside orders; one of their participants and the orchestrator die in mid-flow.",
    "SIGKILL to hotel; SIGKILL to orchestrator",
    "a trip with all its places or, sold_out, with none; an order confirmed",
    play,
    "examples/trip/plan.json",
)
