"""Parsing what arrives in the orchestrator's queues: starts, cancels, replies.

What can never be an input is Poison. Must not know: any instance.
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
    """An envelope from one of the orchestrator's queues, with its typed message."""

    envelope: Envelope
    message: StartSaga | CancelSaga | ReplyArrived

    @property
    def claims(self) -> tuple[Key, ...]:
        """Return the inbox rows it needs: none for a reply, which is safe to repeat (rule 3)."""
        match self.message:
            case StartSaga():
                return (self.envelope.key,)
            case CancelSaga():
                return (self.envelope.key, Key(self.envelope.saga_id, START, FORWARD))
        return ()


def parse(envelope: Envelope, newest: Mapping[str, Definition]) -> Received:
    """Parse a reply, or a start or cancel of a deployed saga. Raises Poison for anything else."""
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
    """Raise Poison if some command of the saga would lack a field, before it begins.

    Where the definition names a model of its data, it was checked that all commands can be made of
    it; otherwise each command is tried.
    """
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
    """Put a reply's fields but its reason in words: the missing SKU, `nothing_to_undo`."""
    words = [
        name if value is True else f"{name} {value}"
        for name, value in body.items()
        if name != "reason" and value is not None and value is not False
    ]
    return ", ".join(words)[:DETAIL_LENGTH] or None
