"""What comes of one input: the next instance, what to send, what to log. Pure.

Owns: the moves that decisions are made of: the next step, turning, undoing in reverse order, and
the fence, which is a barrier: while the pivot's outcome is unknown nothing turns (design.md,
section 6, rule 1). Must not know: which input leads to which move (decide.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from common.messages.envelope import Command, Direction, Fence, Undo, brief
from common.messages.errors import IllegalTransition, Poison
from orchestrator.engine.definition import COMPENSATING, FORWARD, Definition, Kind, Step
from orchestrator.engine.inputs import Asked
from orchestrator.engine.instance import SETTLED_WITHOUT_EFFECT, Instance, Progress, State, Status


class Undecidable(Poison):
    """Another release can decide this about an instance; this one cannot."""

    def __init__(self, reason: str, detail: str, refusal: str) -> None:
        super().__init__(reason, detail)
        self.refusal = refusal  # what a person is told who asks for it


class CommandNotMade(Undecidable):
    """What a saga began with lacks what this release's command wants."""

    def __init__(self, step: Step, error: ValidationError) -> None:
        why = f"{step.name}: no {error.title} can be made of its data ({brief(error)})"
        super().__init__("invalid_data", why, f"{why}; it goes on once a release can")


@dataclass(frozen=True, slots=True)
class Send:
    step: str
    direction: Direction
    attempt: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the saga log."""

    entry: str
    step: str | None = None
    direction: Direction | None = None
    attempt: int | None = None
    detail: str | None = None
    answered_by: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    instance: Instance
    sends: tuple[Send, ...]
    log: tuple[Entry, ...]


def command_for(definition: Definition, instance: Instance, send: Send) -> Command:
    """The body of a command: its fields are taken by name from the instance's data, those of an
    undo also from why it turned. Raises CommandNotMade."""
    step = definition.by_name[send.step]
    if send.direction is FORWARD:
        command = step.command
    else:
        command = Fence if step.kind is Kind.PIVOT else step.undo
    if command is None:
        raise IllegalTransition(f"{step.name} has nothing to send {send.direction}")
    return made(step, command, instance.data, instance.reason)


def made(
    step: Step, command: type[Command], data: Mapping[str, Any], reason: str | None
) -> Command:
    """Raises CommandNotMade."""
    turned = {"reason": reason} if issubclass(command, Undo) else {}
    try:
        return command.model_validate({**data, **turned})
    except ValidationError as error:
        raise CommandNotMade(step, error) from error


class Move:
    """One decision in the making."""

    def __init__(self, definition: Definition, instance: Instance, asked: Asked) -> None:
        self.definition = definition
        self._asked = asked
        self.before = instance
        self.steps = dict(instance.steps)
        self.state = instance.state
        self.reason = instance.reason
        self.compensate_asked = instance.compensate_asked
        self.pivot_passed = instance.pivot_passed
        self.stuck = instance.stuck
        self._sends: list[Send] = []
        self._log: list[Entry] = []

    def decision(self) -> Decision:
        after = replace(
            self.before,
            state=self.state,
            steps=self.steps,
            reason=self.reason,
            compensate_asked=self.compensate_asked,
            pivot_passed=self.pivot_passed,
            stuck=self.stuck,
        )
        return Decision(after, tuple(self._sends), tuple(self._log))

    def note(
        self,
        entry: str,
        step: str | None = None,
        direction: Direction | None = None,
        attempt: int | None = None,
        detail: str | None = None,
        answered_by: str | None = None,
    ) -> None:
        self._log.append(Entry(entry, step, direction, attempt, detail, answered_by))

    def advance(self) -> None:
        """Forward: the next step, or the end. Nothing lies ahead of a gate that waits."""
        for step in self.definition.steps:
            if step.name in self.steps:
                continue
            if step.kind is not Kind.GATE:
                self.send(step, FORWARD)
                return
            if why := self._asked.get(step.name):
                self.steps[step.name] = Progress(Status.WAITING, attempt=0)
                self.state = State.WAITING
                self.note("parked", step.name, detail=why)
                return
            self.steps[step.name] = Progress(Status.OPEN, attempt=0)
        self.state = State.COMPLETED
        self.note("completed")

    def close(self, gate: str, reason: str) -> None:
        """Nobody goes through it any more: back."""
        self.steps[gate] = replace(self.steps[gate], status=Status.REFUSED)
        self.turn(reason)

    def give_up(self, step: Step, progress: Progress, reason: str) -> None:
        """Its outcome is unknown: undo it like a step that was done; the pivot is never guessed."""
        if step.kind is Kind.PIVOT:
            self.reason = reason
            self.send(step, COMPENSATING)  # the barrier: nothing turns until it is answered
        else:
            self.steps[step.name] = replace(progress, status=Status.UNKNOWN)
            self.turn(reason)

    def turn(self, reason: str) -> None:
        self.state = State.COMPENSATING
        self.reason = reason
        self.note("turned", detail=reason)
        self.compensate()

    def compensate(self) -> None:
        """Backward, in reverse order: the next undo that nothing holds up, or the end."""
        for step in reversed(self.definition.steps):
            progress = self.steps.get(step.name)
            if progress is None or progress.status in SETTLED_WITHOUT_EFFECT:
                continue
            if progress.status is Status.UNDOING:
                if progress.undo_attempt == 1:
                    return  # its first deadline has not passed
                continue
            if not step.at_the_door or self._all_settled(but=step.name):
                self.send(step, COMPENSATING)
            return
        if self._all_settled():
            self.state = State.COMPENSATED
            self.note("compensated", detail=self.reason)

    def _all_settled(self, but: str | None = None) -> bool:
        return all(
            p.status in SETTLED_WITHOUT_EFFECT for name, p in self.steps.items() if name != but
        )

    def send(self, step: Step, direction: Direction) -> None:
        progress = self.steps.get(step.name)
        if direction is FORWARD:
            progress = Progress(Status.SENT, attempt=progress.attempt + 1 if progress else 1)
            attempt = progress.attempt
        else:
            assert progress is not None  # noqa: S101 - only what was sent is undone
            status = Status.FENCING if step.kind is Kind.PIVOT else Status.UNDOING
            progress = replace(progress, status=status, undo_attempt=progress.undo_attempt + 1)
            attempt = progress.undo_attempt
        self.steps[step.name] = progress
        self.ask(step.name, direction, attempt)

    def ask(self, step: str, direction: Direction, attempt: int) -> None:
        self._sends.append(Send(step, direction, attempt))
        self.note("sent", step, direction, attempt)

    def of(self, name: str) -> tuple[Step, Progress]:
        step, progress = self.definition.by_name.get(name), self.before.steps.get(name)
        if step is None or progress is None:
            raise IllegalTransition(f"{name} was never sent in this saga")
        return step, progress
