"""The door of trips: a command line that has a saga begin with one StartSaga."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid5

from pydantic import BaseModel

from common import ORCHESTRATOR_COMMANDS, Direction, Envelope, Key, StartSaga, send
from orchestrator import Definition

STARTS = UUID("0d9a3f0e-5b1f-5c3e-8b7a-2f6d1c9e4a10")  # namespace of sagas that begin here


def start(definition: Definition, data: BaseModel) -> Envelope:
    """Make the StartSaga. The same data give the same saga id, so a repeat starts nothing."""
    saga_id = uuid5(STARTS, f"{definition.name} {data.model_dump_json()}")
    key = Key(saga_id, "start", Direction.FORWARD)
    body = StartSaga(definition=definition.name, data=data.model_dump(mode="json"))
    return Envelope.command(key, body, issued_at=datetime.now(UTC), reply_to=None)


async def begin(definition: Definition, data: BaseModel) -> UUID:
    """Start a saga and return its id. Raises BrokerGone if the broker did not confirm."""
    envelope = start(definition, data)
    await send(ORCHESTRATOR_COMMANDS, envelope)
    return envelope.saga_id
