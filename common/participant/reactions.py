"""Choreography: an event leads to a command of the service's own, without an orchestrator.

The event is the reply to an earlier command, published to all services. The command it leads to is
handled by the same participant code as if it had been sent. So a repeated event is a repeated
command: the inbox has its row, and the stored reply is published again as the event it is. Which
event leads to which command is in each service's table REACTIONS.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from common.messages.envelope import Command, Direction, Envelope, Key, Outcome, Reply, Undo
from common.messages.errors import Poison
from common.messages.topology import EVENTS
from common.participant.participant import Participant, Work


@dataclass(frozen=True)
class Reaction:
    """The command that an event leads to.

    Its fields are taken by name from `about`, the saga's data, which every event hands on: no
    service can read another's tables.
    """

    step: str
    command: type[Command]
    of: str | None = None
    """The step of the event, where sagas share a type of event."""

    @property
    def direction(self) -> Direction:
        return Direction.COMPENSATING if issubclass(self.command, Undo) else Direction.FORWARD


Reactions = Mapping[type[Reply], Reaction]


def parse_event(event: Envelope) -> Reply:
    """Type an event. Raises Poison for what is no event."""
    message = event.message()
    if not isinstance(message, Reply) or event.outcome is None:
        raise Poison("not_an_event", f"{event.type} is no outcome of anything")
    return message


def react(reactions: Reactions, event: Envelope) -> Envelope | None:
    """Make the command that an event leads to; None if it leads to none here."""
    reaction = reactions.get(type(parse_event(event)))
    if reaction is None or reaction.of not in (None, event.step):
        return None
    if event.outcome is Outcome.FENCED and event.direction is Direction.FORWARD:
        return None  # of an action that came after its undo, and was not done
    about = about_of(event)
    try:
        body = reaction.command.model_validate(about)
    except ValidationError as error:
        raise Poison("invalid_event", f"{event.type} is about too little: {error}") from error
    return Envelope.command(
        Key(event.saga_id, reaction.step, reaction.direction),
        body,
        issued_at=event.first_issued_at,
        reply_to=EVENTS.name,
        about=about,
    )


def about_of(event: Envelope) -> dict[str, Any]:
    """Return the saga's data to hand on: the first event's body; a refusal adds its reason."""
    about = event.body if event.about is None else event.about
    if event.outcome is Outcome.REFUSED:
        about = {**about, "reason": event.body.get("reason")}
    return about


class Listener:
    """Turns events into commands and handles them; for a BatchConsumer."""

    def __init__(self, participant: Participant[Any], reactions: Reactions) -> None:
        self._participant = participant
        self._reactions = reactions

    def parse(self, event: Envelope) -> Work | None:
        command = react(self._reactions, event)
        return self._participant.parse(command) if command is not None else None

    async def handle(self, batch: Sequence[Work | None]) -> bool:
        return await self._participant.handle([work for work in batch if work is not None])
