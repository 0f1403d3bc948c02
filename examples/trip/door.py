"""How a saga begins: by a StartSaga that the broker has confirmed."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID, uuid5

from pydantic import BaseModel, SecretStr

from common.kit import log
from common.kit.settings import Settings
from common.messages.contracts import StartSaga
from common.messages.envelope import Direction, Envelope, Key, pack
from common.messages.errors import BrokerGone
from common.messages.topology import ORCHESTRATOR_COMMANDS
from common.transport.broker import Broker, Fate, Publication
from orchestrator.engine.definition import Definition

STARTS = UUID("0d9a3f0e-5b1f-5c3e-8b7a-2f6d1c9e4a10")  # namespace of sagas that begin here


def start(definition: Definition, data: BaseModel) -> Envelope:
    """However often somebody asks for the same, it is one saga."""
    saga_id = uuid5(STARTS, f"{definition.name} {data.model_dump_json()}")
    key = Key(saga_id, "start", Direction.FORWARD)
    body = StartSaga(definition=definition.name, data=data.model_dump(mode="json"))
    return Envelope.command(key, body, issued_at=datetime.now(UTC), reply_to=None)


async def send(envelope: Envelope) -> UUID:
    """The saga's id. Raises BrokerGone."""
    log.configure("door", "warning")
    broker = Broker(Settings(postgres_dsn=SecretStr("postgresql://none")))  # it has no database
    publication = Publication(ORCHESTRATOR_COMMANDS, pack([envelope.encode()]))
    (fate,) = await (await broker.channel()).publish([publication], timeout_seconds=5)
    await broker.close()
    if fate is not Fate.CONFIRMED:
        raise BrokerGone(f"the start was {fate.value}")
    return envelope.saga_id
