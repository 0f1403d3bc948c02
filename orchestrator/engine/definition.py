"""A saga as a table of steps, and the checks that the table makes sense.

A step sends one command to one participant, and is compensatable, the pivot, or retriable. Only a
gate sends nothing: while it waits for a person the instance is parked, with a deadline in its row
and nothing else anywhere.

Must not know: how far any instance is, SQL, the broker, any business process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import BaseModel

from common.kit.settings import Policy
from common.messages.envelope import Command, Direction, Message, Undo
from common.messages.errors import SagaproofError

FORWARD, COMPENSATING = Direction.FORWARD, Direction.COMPENSATING
_WORD = re.compile("[A-Za-z][A-Za-z0-9_-]{0,49}")  # <participant>.commands.dead fits everywhere


class DefinitionError(SagaproofError):
    """A saga definition contradicts itself; the message says what to change."""


class Kind(StrEnum):
    COMPENSATABLE = "compensatable"
    """Can be undone."""
    GATE = "gate"
    """A person approves the saga or rejects it; only when policy asks. Has no effect to undo."""
    PIVOT = "pivot"
    """The go-or-no-go point: after it only forward."""
    RETRIABLE = "retriable"
    """Must eventually succeed, and cannot refuse."""


_RANK = {Kind.COMPENSATABLE: 0, Kind.GATE: 0, Kind.PIVOT: 1, Kind.RETRIABLE: 2}


@dataclass(frozen=True)
class Step:
    """One command, and the command that undoes it."""

    name: str
    kind: Kind
    participant: str
    command: type[Command] | None = None
    undo: type[Undo] | None = None
    at_the_door: bool = False
    """Done before the saga starts. Its undo informs the customer, so it waits for all others."""
    policy: Policy | None = None
    """Overrides the orchestrator's."""
    asks: Callable[[Mapping[str, Any]], str | None] | None = None
    """For a gate: returns why these data need a person's approval, or None if they do not. The
    thresholds and the watch list, which hold at every gate, come on top."""

    def is_capped(self, direction: Direction) -> bool:
        """Return whether attempts are capped; undo, fence and retriable are resent without end."""
        return direction is FORWARD and self.kind is not Kind.RETRIABLE


@dataclass(frozen=True)
class Definition:
    """A saga as a table of steps. Raises DefinitionError if the table contradicts itself."""

    name: str
    version: int
    steps: tuple[Step, ...]
    data: type[BaseModel] | None = None
    """The model of its data, from which commands take their fields; None: any data."""
    by_name: Mapping[str, Step] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {step.name: step for step in self.steps})
        self._check()

    def _check(self) -> None:
        if not self.steps:
            raise DefinitionError(f"{self.name}: no steps; a saga has at least one")
        if len(self.by_name) != len(self.steps):
            raise DefinitionError(f"{self.name}: a step name is used twice; give each step its own")
        if [step.kind for step in self.steps].count(Kind.PIVOT) > 1:
            raise DefinitionError(
                f"{self.name}: two pivots; only one step can be the point of no return"
            )
        kinds = {step.kind for step in self.steps}
        if Kind.RETRIABLE in kinds and Kind.PIVOT not in kinds:
            raise DefinitionError(
                f"{self.name}: retriable steps without a pivot; a step that cannot be undone comes"
                " after the point of no return, so say which step that is"
            )
        order = [_RANK[step.kind] for step in self.steps]
        if order != sorted(order):
            raise DefinitionError(
                f"{self.name}: order the steps compensatable and gates, pivot, retriable"
            )
        if Kind.GATE in [step.kind for step in self.steps if not step.at_the_door][:1]:
            raise DefinitionError(
                f"{self.name}: a gate comes first; put it behind a step that sends a command:"
                " that step's reply is when policy decides whether a person is asked"
            )
        for step in self.steps:
            where = f"{self.name}.{step.name}"
            self._check_step(where, step)
            self._check_names(where, step)
            for command, base in ((step.command, Command), (step.undo, Undo)):
                if command is not None:
                    self._check_command(where, command, base)

    def _check_step(self, where: str, step: Step) -> None:
        if (step.undo is None) == (step.kind is Kind.COMPENSATABLE):
            raise DefinitionError(
                f"{where}: a compensatable step needs an undo, any other must have none"
            )
        gate = step.kind is Kind.GATE
        if (step.command is None) != (step.at_the_door or gate):
            raise DefinitionError(
                f"{where}: a gate has no command"
                if gate
                else f"{where}: a step needs a command unless it is done at the door"
            )
        if step.asks is not None and not gate:
            raise DefinitionError(f"{where}: only a gate asks for approval")
        first = step is self.steps[0]
        if step.at_the_door and not (first and step.kind is Kind.COMPENSATABLE):
            raise DefinitionError(
                f"{where}: only the first step can be done at the door, and must have an undo"
            )

    def _check_names(self, where: str, step: Step) -> None:
        for name in (step.name, step.participant):
            if not _WORD.fullmatch(name):
                raise DefinitionError(
                    f"{where}: {name!r} names a row or a queue; begin with a letter, go on with"
                    " letters, digits, _ or -, at most 50 in all"
                )
        if (step.command or step.undo) and step.participant == "orchestrator":
            raise DefinitionError(
                f"{where}: the orchestrator itself takes no commands; name the participant that"
                " consumes them, from the queue <participant>.commands"
            )

    def _check_command(self, where: str, command: object, base: type[Command]) -> None:
        if not isinstance(command, type) or not issubclass(command, base):
            raise DefinitionError(
                f"{where}: {command!r} is no {base.__name__}; name a class that inherits from"
                f" common.messages.envelope.{base.__name__}"
            )
        if base is Command and issubclass(command, Undo):
            raise DefinitionError(f"{where}: {command.__name__} is an Undo; it goes to `undo=`")
        if Message.registry[command.__name__, command.version] is not command:
            raise DefinitionError(
                f"{where}: {command.__module__} has two messages called {command.__name__}, and the"
                " wire tells messages apart by their names; rename one"
            )
        if self.data is None:
            return
        given = {name for name, info in self.data.model_fields.items() if info.is_required()}
        if base is Undo:
            given.add("reason")  # why the saga turned back
        for name, info in command.model_fields.items():
            if info.is_required() and name not in given:
                raise DefinitionError(
                    f"{where}: {command.__name__} requires `{name}`, which {self.data.__name__}"
                    " may lack; require it there, or give it a default"
                )
