"""Sending one message from a program without a database, such as a command line.

A service never sends like this: its messages leave by the outbox, with the state they belong to.
"""

from __future__ import annotations

from pydantic import SecretStr

from common.kit import log
from common.kit.settings import Settings
from common.messages.envelope import Envelope, pack
from common.messages.errors import BrokerGone
from common.transport.broker import Broker, Fate, Publication

CONFIRM_WITHIN_SECONDS = 5


async def send(queue: str, envelope: Envelope) -> None:
    """Publish one message and wait for the broker's confirm.

    Raises BrokerGone if the message may not have arrived; sending it again is safe, since its id
    is the same.
    """
    log.configure("send", "warning")
    broker = Broker(Settings(postgres_dsn=SecretStr("postgresql://none")))
    publication = Publication(queue, pack([envelope.encode()]))
    try:
        channel = await broker.channel()
        (fate,) = await channel.publish([publication], CONFIRM_WITHIN_SECONDS)
    finally:
        await broker.close()
    if fate is not Fate.CONFIRMED:
        raise BrokerGone(f"the message was {fate.value}")
