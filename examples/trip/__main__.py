"""`python -m examples.trip flight` (hotel, car) runs that participant; `book` starts a trip."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from common import BrokerGone, run_participant
from examples.trip.door import begin
from examples.trip.places import HANDLERS, PlacesStore
from examples.trip.saga import TRIP, Trip

match sys.argv[1:]:
    case ["flight" | "hotel" | "car" as participant]:
        run_participant(participant, Path(__file__).parent, PlacesStore(), HANDLERS)
    case ["book", who, where]:
        try:
            print(asyncio.run(begin(TRIP, Trip(traveller=who, destination=where))))
        except (BrokerGone, ValueError) as error:  # a setting is missing or wrong
            sys.exit(f'{error}\nnothing was booked: eval "$(chaos env)", and try again')
    case _:
        sys.exit("usage: python -m examples.trip flight|hotel|car, or: book TRAVELLER DESTINATION")
