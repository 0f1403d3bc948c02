"""How a trip begins: by a StartSaga that the broker has confirmed."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid5

from pydantic import SecretStr

from common.broker import Broker, Fate, Publication
from common.contracts import StartSaga
from common.envelope import Direction, Envelope, Key, pack
from common.errors import BrokerGone
from common.settings import Settings
from common.topology import ORCHESTRATOR_COMMANDS
from examples.trip.saga import TRIP, Trip

TRIPS = UUID("0d9a3f0e-5b1f-5c3e-8b7a-2f6d1c9e4a10")  # namespace of their ids


def start(trip: Trip) -> Envelope:
    """However often somebody asks for the same trip, it is one saga."""
    key = Key(uuid5(TRIPS, trip.model_dump_json()), "start", Direction.FORWARD)
    body = StartSaga(definition=TRIP.name, data=trip.model_dump())
    return Envelope.command(key, body, issued_at=datetime.now(UTC), reply_to=None)


async def book(trip: Trip) -> UUID:
    """Its id. Raises BrokerGone."""
    broker = Broker(Settings(postgres_dsn=SecretStr("")))  # the rest is from the environment
    envelope = start(trip)
    publication = Publication(ORCHESTRATOR_COMMANDS, pack([envelope.encode()]))
    (fate,) = await (await broker.channel()).publish([publication], timeout_seconds=5)
    await broker.close()
    if fate is not Fate.CONFIRMED:
        raise BrokerGone(f"the start was {fate.value}")
    return envelope.saga_id
