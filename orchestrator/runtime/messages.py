"""What comes in by the orchestrator's queues, typed: starts, cancels, replies.

Owns: telling what can be an input from what never can (Poison). Must not know: any instance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from common.messages.contracts import START, CancelSaga, StartSaga
from common.messages.envelope import Direction, Envelope, Key
from common.messages.errors import Poison
from orchestrator.engine.decide import make_command
from orchestrator.engine.definition import FORWARD, Definition
from orchestrator.engine.inputs import ReplyArrived

DETAIL_LENGTH = 300  # of what a reply said, as kept in the saga log


@dataclass(frozen=True, slots=True)
class Received:
    """An envelope of one of the orchestrator's queues, typed."""

    envelope: Envelope
    message: StartSaga | CancelSaga | ReplyArrived

    @property
    def claims(self) -> tuple[Key, ...]:
        """The inbox rows that it needs: matching makes replies safe to repeat (rule 3)."""
        match self.message:
            case StartSaga():
                return (self.envelope.key,)
            case CancelSaga():
                return (self.envelope.key, Key(self.envelope.saga_id, START, FORWARD))
        return ()


def parse(envelope: Envelope, newest: Mapping[str, Definition]) -> Received:
    """Raises Poison for what is neither a reply nor a start of a saga we know."""
    if envelope.outcome is not None:
        reason = envelope.body.get("reason")
        reply = ReplyArrived(
            envelope.step,
            envelope.direction,
            envelope.outcome,
            envelope.type,
            str(reason) if reason else None,
            _said(envelope.body),
            envelope.process,
        )
        return Received(envelope, reply)
    message = envelope.message()
    if not isinstance(message, StartSaga | CancelSaga):
        raise Poison("unknown_command", f"{envelope.type} is no input of the orchestrator")
    if envelope.direction is not Direction.FORWARD:
        raise Poison("wrong_direction", "a saga is not started backwards")
    if message.definition not in newest:
        raise Poison("unknown_definition", f"no saga is called {message.definition}")
    _check_data(newest[message.definition], message)
    return Received(envelope, message)


def _check_data(definition: Definition, start: StartSaga | CancelSaga) -> None:
    """Before anything is done: no command of the saga will then lack a field. A definition that
    says what it begins with was looked at for that when it was made; of any other all are tried."""
    if definition.data is None:
        for step in definition.steps:
            for command in filter(None, (step.command, step.undo)):
                make_command(step, command, start.data, reason="tried")
        return
    try:
        definition.data.model_validate(start.data)
    except ValidationError as error:
        raise Poison("invalid_data", str(error)) from error


def _said(body: Mapping[str, Any]) -> str | None:
    """What a reply says besides its reason: the SKU that was short, that nothing was to undo."""
    words = [
        name if value is True else f"{name} {value}"
        for name, value in body.items()
        if name != "reason" and value is not None and value is not False
    ]
    return ", ".join(words)[:DETAIL_LENGTH] or None
