"""The saga engine: definitions, instances, and the one function that decides. Pure.

Two rules carry everything below:

1. `decide()` sees an instance and an input, and returns the next instance with what to
   send. It knows no clock, no dice, no server; an illegal input raises and changes nothing.
2. Forward until the pivot, back before it, only forward after it; and while the pivot's
   outcome is unknown, neither: its fence is a barrier (design.md, section 6, rule 1).

A step's status goes

    sent -> done | refused | unknown      done | unknown -> undoing -> undone
    sent -> fencing -> done | refused | fenced           (the pivot only)
    waiting -> open | refused                            (a gate only, which may be open at once)
    undoing, or sent if retriable -> resolved            (by a person, where no machine can)

A gate is the one step that sends nothing: while it waits for a person the instance is parked,
WAITING, with a deadline in its row and nothing else anywhere. Whether a person is asked at all
comes in as an argument, like everything that takes a clock or a table to know.

Owns: that. Must not know: SQL, the broker, any business process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any
from uuid import UUID

from pydantic import BaseModel

from common.envelope import Command, Direction, Fence, Message, Outcome, Undo
from common.errors import DefinitionError, IllegalTransition
from common.patience import Policy as Policy

FORWARD, COMPENSATING = Direction.FORWARD, Direction.COMPENSATING
_WORD = re.compile("[A-Za-z][A-Za-z0-9_-]{0,49}")  # <participant>.commands.dead fits everywhere


class Kind(StrEnum):
    COMPENSATABLE = "compensatable"
    """Can be undone."""
    GATE = "gate"
    """A person lets the saga through, or not; only when policy asks. Has no effect to undo."""
    PIVOT = "pivot"
    """The go-or-no-go point: after it only forward."""
    RETRIABLE = "retriable"
    """Must eventually succeed, and cannot refuse."""


class State(StrEnum):
    RUNNING = "RUNNING"
    WAITING = "WAITING"  # parked at a gate, for a person
    COMPENSATING = "COMPENSATING"
    COMPLETED = "COMPLETED"
    COMPENSATED = "COMPENSATED"

    @property
    def ended(self) -> bool:
        return self in (State.COMPLETED, State.COMPENSATED)


class Status(StrEnum):
    SENT = "sent"
    DONE = "done"
    REFUSED = "refused"
    UNKNOWN = "unknown"  # silent for all its attempts, or dead: may or may not have happened
    UNDOING = "undoing"
    UNDONE = "undone"
    FENCING = "fencing"
    FENCED = "fenced"
    WAITING = "waiting"
    OPEN = "open"  # nobody had to be asked, or somebody said yes
    RESOLVED = "resolved"  # a named person says that it is seen to


SETTLED_WITHOUT_EFFECT = frozenset(
    {Status.REFUSED, Status.UNDONE, Status.FENCED, Status.OPEN, Status.RESOLVED}
)
_RANK = {Kind.COMPENSATABLE: 0, Kind.GATE: 0, Kind.PIVOT: 1, Kind.RETRIABLE: 2}


@dataclass(frozen=True)
class Step:
    """One command and how to take it back."""

    name: str
    kind: Kind
    participant: str
    command: type[Command] | None = None
    undo: type[Undo] | None = None
    at_the_door: bool = False
    """Done before the saga starts. Its undo tells the customer, so it waits for all others."""
    policy: Policy | None = None
    """Overrides the definition's."""
    asks: Callable[[Mapping[str, Any]], str | None] | None = None
    """Of a gate: why these data want a person's approval, in words; None: they do not. Besides
    thresholds and the watch list, which every gate heeds."""


@dataclass(frozen=True)
class Definition:
    """A saga as a table of steps. Raises DefinitionError if the table contradicts itself."""

    name: str
    version: int
    steps: tuple[Step, ...]
    data: type[BaseModel] | None = None
    """What it begins with, and what commands take their fields from; None: whatever comes."""
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
                f"{self.name}: a gate comes first; put it behind a step that sends a command,"
                " whose reply is where it is looked at who is to be asked"
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
                f" common.envelope.{base.__name__}"
            )
        if base is Command and issubclass(command, Undo):
            raise DefinitionError(f"{where}: {command.__name__} is an Undo; it goes to `undo=`")
        if Message.registry[command.__name__, command.version] is not command:
            raise DefinitionError(
                f"{where}: {command.__module__} has two messages called {command.__name__}, and the"
                " wire tells messages by their names; rename one"
            )
        if self.data is None:
            return
        there = set(self.data.model_fields) | (
            {"reason"} if base is Undo else set()
        )  # why it turned
        for name, field_ in command.model_fields.items():
            if field_.is_required() and name not in there:
                raise DefinitionError(
                    f"{where}: {command.__name__} wants `{name}`, which {self.data.__name__} does"
                    " not have; add it there, or give it a default"
                )


@dataclass(frozen=True, slots=True)
class Progress:
    """Where one step of an instance stands, and how often it was asked in each direction."""

    status: Status
    attempt: int = 1
    undo_attempt: int = 0


@dataclass(frozen=True, slots=True)
class Instance:
    """One run of a definition. A step not yet sent has no progress."""

    saga_id: UUID
    definition: str
    version: int
    data: Mapping[str, Any]
    state: State = State.RUNNING
    steps: Mapping[str, Progress] = field(default_factory=dict)
    reason: str | None = None
    compensate_asked: bool = False
    pivot_passed: bool = False
    stuck: bool = False


# --- inputs --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Started:
    saga_id: UUID
    data: Mapping[str, Any]
    asked_at: str | None = None  # when whoever asked for it did, for the saga log


@dataclass(frozen=True, slots=True)
class StartDeadLettered:
    """What was to start the saga cannot be handled: it is there, stuck, and has not begun."""

    saga_id: UUID
    data: Mapping[str, Any]
    reason: str


@dataclass(frozen=True, slots=True)
class ReplyArrived:
    step: str
    direction: Direction
    outcome: Outcome
    type: str = ""
    reason: str | None = None
    said: str | None = None  # what else it says, in words, for the saga log
    process: str | None = None  # who handled the command, likewise


@dataclass(frozen=True, slots=True)
class TimedOut:
    """Silence past a deadline: *unknown*, never *failed*."""

    step: str
    direction: Direction
    attempt: int
    past_sla: bool = False


@dataclass(frozen=True, slots=True)
class DeadLettered:
    """A command or, if `reply`, what a participant answered to it; or such a dead letter was
    discarded, for a reason of somebody's own."""

    step: str
    direction: Direction
    reason: str
    reply: bool = False
    discarded_by: str | None = None


@dataclass(frozen=True, slots=True)
class CompensateAsked:
    """By an operator or the customer."""

    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class GateDecided:
    """A person has looked at what is parked there."""

    step: str
    approved: bool
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class RetryAsked:
    """By a person: what is awaited is sent again now. No attempt is used up for it."""

    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """By a person, who has seen to what this step was still asked for, where no machine can."""

    step: str
    actor: str
    reason: str


ByHand = CompensateAsked | GateDecided | RetryAsked | Resolved
Input = Started | StartDeadLettered | ReplyArrived | TimedOut | DeadLettered | ByHand
Asked = Mapping[str, str]
"""Gates at which a person is asked, should the saga come there now, and why, in words."""
NOBODY: Asked = {}


# --- decisions -----------------------------------------------------------------------------


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


def awaited(instance: Instance) -> dict[tuple[str, Direction], int]:
    """The set of (step, direction) whose reply counts, each with its attempt (rule 3)."""
    legs: dict[tuple[str, Direction], int] = {}
    for name, progress in instance.steps.items():
        if progress.status in (Status.SENT, Status.FENCING):
            legs[name, FORWARD] = progress.attempt
        if progress.status in (Status.UNDOING, Status.FENCING):
            legs[name, COMPENSATING] = progress.undo_attempt
    return legs


def timed_legs(instance: Instance) -> dict[tuple[str, Direction], int]:
    """What has a deadline: a pivot under its fence waits for the fence, a gate for a person."""
    fenced = {name for name, p in instance.steps.items() if p.status is Status.FENCING}
    legs = {
        leg: n
        for leg, n in awaited(instance).items()
        if leg[0] not in fenced or leg[1] is COMPENSATING
    }
    if gate := waiting_at(instance):
        legs[gate, FORWARD] = instance.steps[gate].attempt
    return legs


def waiting_at(instance: Instance) -> str | None:
    """The gate it is parked at."""
    waiting = (name for name, p in instance.steps.items() if p.status is Status.WAITING)
    return next(waiting, None)


def is_capped(step: Step, direction: Direction) -> bool:
    """Undo, fence and retriable are asked without end; what may still be given up is capped."""
    return direction is FORWARD and step.kind is not Kind.RETRIABLE


def decide(
    definition: Definition,
    policy: Policy,
    instance: Instance | None,
    event: Input,
    asked: Asked = NOBODY,
) -> Decision:
    """What becomes of the instance, what to send, what to log.

    Raises IllegalTransition, with nothing changed, for what cannot be in this state.
    """
    if isinstance(event, Started):
        return _started(definition, policy, instance, event, asked)
    if isinstance(event, StartDeadLettered):
        return _start_dead_lettered(definition, policy, instance, event)
    if instance is None:
        raise IllegalTransition(f"{type(event).__name__} for a saga that was never started")
    move = _Move(definition, policy, instance, asked)
    match event:
        case ReplyArrived():
            move.reply(event)
        case TimedOut():
            move.timed_out(event)
        case DeadLettered():
            move.dead_lettered(event)
        case CompensateAsked():
            move.compensate_asked(event)
        case GateDecided():
            move.gate_decided(event)
        case RetryAsked():
            move.retry_asked(event)
        case Resolved():
            move.resolved(event)
    return move.decision()


def command_for(definition: Definition, instance: Instance, send: Send) -> Command:
    """The body of a command: its fields are taken by name from the instance's data."""
    step = definition.by_name[send.step]
    if send.direction is FORWARD:
        command = step.command
    else:
        command = Fence if step.kind is Kind.PIVOT else step.undo
    if command is None:
        raise IllegalTransition(f"{step.name} has nothing to send {send.direction}")
    return command.model_validate({**instance.data, "reason": instance.reason})


def _started(
    definition: Definition,
    policy: Policy,
    instance: Instance | None,
    event: Started,
    asked: Asked,
) -> Decision:
    if instance is not None and has_begun(instance, definition):
        raise IllegalTransition("a saga starts once; a repeated start is answered from the inbox")
    move = _Move(definition, policy, instance or _fresh(definition, event), asked)
    move.started(event)
    return move.decision()


def _start_dead_lettered(
    definition: Definition, policy: Policy, instance: Instance | None, event: StartDeadLettered
) -> Decision:
    move = _Move(definition, policy, instance or _fresh(definition, event), NOBODY)
    move.start_dead_lettered(event, known=instance is not None)
    return move.decision()


def _fresh(definition: Definition, event: Started | StartDeadLettered) -> Instance:
    first = definition.steps[0]
    done = {first.name: Progress(Status.DONE)} if first.at_the_door else {}
    return Instance(event.saga_id, definition.name, definition.version, event.data, steps=done)


def has_begun(instance: Instance, definition: Definition) -> bool:
    """Whether anything was ever sent for it; not for one whose start was a dead letter."""
    first = definition.steps[0]
    return any(name != first.name or not first.at_the_door for name in instance.steps)


class _Move:
    """One decision in the making."""

    def __init__(
        self, definition: Definition, policy: Policy, instance: Instance, asked: Asked
    ) -> None:
        self._definition = definition
        self._policy = policy
        self._asked = asked
        self._before = instance
        self._steps = dict(instance.steps)
        self._state = instance.state
        self._reason = instance.reason
        self._compensate_asked = instance.compensate_asked
        self._pivot_passed = instance.pivot_passed
        self._stuck = instance.stuck
        self._sends: list[Send] = []
        self._log: list[Entry] = []

    def decision(self) -> Decision:
        after = replace(
            self._before,
            state=self._state,
            steps=self._steps,
            reason=self._reason,
            compensate_asked=self._compensate_asked,
            pivot_passed=self._pivot_passed,
            stuck=self._stuck,
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

    # --- the inputs that may be the first ---

    def started(self, event: Started) -> None:
        if self._state is not State.RUNNING:  # it was compensated before it could begin
            self.note("ignored", detail="a start, after it was turned back")
            return
        self._stuck = False
        self.note("started", detail=event.asked_at)
        self.advance()

    def start_dead_lettered(self, event: StartDeadLettered, *, known: bool) -> None:
        self.note("dead_lettered", detail=event.reason)
        if not known:
            self._stuck = True
            self.note("stuck", detail=event.reason)

    # --- the inputs of a saga under way ---

    def reply(self, event: ReplyArrived) -> None:
        step, progress = self._of(event.step)
        detail = event.reason or event.type
        if event.said:
            detail = f"{detail} ({event.said})"
        counts = (event.step, event.direction) in awaited(self._before)
        entry = event.outcome.value if counts else "ignored"
        self.note(entry, event.step, event.direction, detail=detail, answered_by=event.process)
        if not counts:
            return
        self._stuck = False
        if event.direction is COMPENSATING and step.kind is not Kind.PIVOT:
            if event.outcome is not Outcome.DONE:
                raise IllegalTransition(f"the undo of {step.name} cannot be refused")
            self._steps[step.name] = replace(progress, status=Status.UNDONE)
            self._compensate()
        elif event.outcome is Outcome.DONE:
            self._done(step, progress)
        else:
            self._not_done(step, progress, event)

    def _done(self, step: Step, progress: Progress) -> None:
        self._steps[step.name] = replace(progress, status=Status.DONE)
        if step.kind is Kind.PIVOT:
            self._pivot_passed = True
            self._reason = None  # whatever made us fence it came too late
        self.advance()

    def _not_done(self, step: Step, progress: Progress, event: ReplyArrived) -> None:
        """Refused, or fenced: final, and without effect."""
        if step.kind is Kind.RETRIABLE:
            raise IllegalTransition(f"{step.name} is retriable and cannot be refused")
        if (
            step.kind is Kind.PIVOT
            and event.direction is COMPENSATING
            and event.outcome is Outcome.REFUSED
        ):
            raise IllegalTransition(f"the fence of {step.name} cannot be refused")
        status = Status.FENCED if event.outcome is Outcome.FENCED else Status.REFUSED
        self._steps[step.name] = replace(progress, status=status)
        refused = event.reason if status is Status.REFUSED else None
        self._turn(refused or self._reason or f"{step.name}_{status.value}")

    def timed_out(self, event: TimedOut) -> None:
        step, progress = self._of(event.step)
        if timed_legs(self._before).get((event.step, event.direction)) != event.attempt:
            self.note(
                "ignored",
                event.step,
                event.direction,
                event.attempt,
                "deadline of an older attempt",
            )
            return
        if step.kind is Kind.GATE:
            self.note("expired", step.name)
            self._close(step.name, "expired")
            return
        self.note("timed_out", event.step, event.direction, event.attempt)
        if event.past_sla and not is_capped(step, event.direction) and not self._stuck:
            self._stuck = True
            self.note("stuck", event.step, event.direction, event.attempt)
        policy = step.policy or self._policy
        if is_capped(step, event.direction) and event.attempt >= policy.attempts:
            self._give_up(step, progress, f"{step.name}_timed_out")
            return
        self._send(step, event.direction)
        if self._state is State.COMPENSATING:
            self._compensate()  # an undo past its first deadline holds up nobody

    def dead_lettered(self, event: DeadLettered) -> None:
        step, progress = self._of(event.step)
        by, why = event.discarded_by, event.reason
        detail = f"{by}: {why}" if by else why
        self.note("discarded" if by else "dead_lettered", event.step, event.direction, None, detail)
        if step.kind is Kind.GATE:
            return  # nothing of it travels
        if (event.step, event.direction) not in timed_legs(self._before):
            return
        if is_capped(step, event.direction) and not event.reply:
            self._give_up(step, progress, f"{step.name}_dead_lettered")
        elif by or not self._stuck:  # its deadline goes on running and sends it again
            self._stuck = True
            self.note("stuck", event.step, event.direction, detail=detail)

    def compensate_asked(self, event: CompensateAsked) -> None:
        if self._pivot_passed:
            raise IllegalTransition(
                "the pivot is passed: from here the saga only goes forward; `retry` asks again for"
                " what it waits for"
            )
        if self._state.ended:
            raise IllegalTransition(f"the saga has ended as {self._state}")
        self.note("compensate_asked", detail=f"{event.actor}: {event.reason}")
        if self._compensate_asked or self._state is State.COMPENSATING:
            return
        self._compensate_asked = True
        if gate := waiting_at(self._before):
            self._close(gate, event.reason)
            return
        for name, progress in self._before.steps.items():
            if progress.status is Status.SENT:
                self._give_up(self._definition.by_name[name], progress, event.reason)
                return
            if progress.status is Status.FENCING:
                return  # the fence's answer decides
        self._turn(event.reason)  # it has not begun

    def gate_decided(self, event: GateDecided) -> None:
        """One decides; whoever comes later, for whatever reason, is told that it is decided."""
        _, progress = self._of(event.step)
        if progress.status is not Status.WAITING:
            raise IllegalTransition(f"{event.step} waits for nobody")
        said = f"{event.actor}: {event.reason}"
        if event.approved:
            self.note("approved", event.step, detail=said)
            self._steps[event.step] = replace(progress, status=Status.OPEN)
            self._state = State.RUNNING
            self.advance()
        else:
            self.note("rejected", event.step, detail=said)
            self._close(event.step, "rejected")

    def retry_asked(self, event: RetryAsked) -> None:
        """The same messages again, under the same attempts; each gets a new deadline."""
        if self._state.ended:
            raise IllegalTransition(f"the saga has ended as {self._state}: nothing is awaited")
        if gate := waiting_at(self._before):
            raise IllegalTransition(f"it waits for a person at {gate}: approve or reject it")
        legs = timed_legs(self._before)
        if not legs:
            raise IllegalTransition(
                "it has not begun: the dead letter that was to start it may be redriven"
            )
        self.note("retry_asked", detail=f"{event.actor}: {event.reason}")
        for (name, direction), attempt in legs.items():
            self._sends.append(Send(name, direction, attempt))
            self.note("sent", name, direction, attempt)

    def resolved(self, event: Resolved) -> None:
        """Only what is asked for without end, and never the pivot: that is not for guessing."""
        step, progress = self._of(event.step)
        if step.kind is Kind.PIVOT:
            raise IllegalTransition(
                f"{step.name} is the pivot: whether it happened only {step.participant} can say,"
                " and nobody may say it for them; it is asked without end"
            )
        retriable = step.kind is Kind.RETRIABLE and progress.status is Status.SENT
        if not retriable and progress.status is not Status.UNDOING:
            hint = "; compensate the saga, then its undo may be" if self._may_turn(progress) else ""
            raise IllegalTransition(
                f"{step.name} is {progress.status}: only an undo that is asked for, or a step after"
                f" the pivot, is resolved by hand{hint}"
            )
        direction = FORWARD if retriable else COMPENSATING
        self.note("resolved", step.name, direction, detail=f"{event.actor}: {event.reason}")
        self._steps[step.name] = replace(progress, status=Status.RESOLVED)
        self._stuck = False
        if retriable:
            self.advance()
        else:
            self._compensate()

    def _may_turn(self, progress: Progress) -> bool:
        return self._state is State.RUNNING and progress.status is Status.SENT

    # --- what they have in common ---

    def advance(self) -> None:
        """Forward: the next step, or the end. Nothing lies ahead of a gate that waits."""
        for step in self._definition.steps:
            if step.name in self._steps:
                continue
            if step.kind is not Kind.GATE:
                self._send(step, FORWARD)
                return
            if why := self._asked.get(step.name):
                self._steps[step.name] = Progress(Status.WAITING, attempt=0)
                self._state = State.WAITING
                self.note("parked", step.name, detail=why)
                return
            self._steps[step.name] = Progress(Status.OPEN, attempt=0)
        self._state = State.COMPLETED
        self.note("completed")

    def _close(self, gate: str, reason: str) -> None:
        """Nobody goes through it any more: back."""
        self._steps[gate] = replace(self._steps[gate], status=Status.REFUSED)
        self._turn(reason)

    def _give_up(self, step: Step, progress: Progress, reason: str) -> None:
        """Its outcome is unknown: undo it like a step that was done; the pivot is never guessed."""
        if step.kind is Kind.PIVOT:
            self._reason = reason
            self._send(step, COMPENSATING)  # the barrier: nothing turns until it is answered
        else:
            self._steps[step.name] = replace(progress, status=Status.UNKNOWN)
            self._turn(reason)

    def _turn(self, reason: str) -> None:
        self._state = State.COMPENSATING
        self._reason = reason
        self.note("turned", detail=reason)
        self._compensate()

    def _compensate(self) -> None:
        """Backward, in reverse order: the next undo that nothing holds up, or the end."""
        for step in reversed(self._definition.steps):
            progress = self._steps.get(step.name)
            if progress is None or progress.status in SETTLED_WITHOUT_EFFECT:
                continue
            if progress.status is Status.UNDOING:
                if progress.undo_attempt == 1:
                    return  # its first deadline has not passed
                continue
            if not step.at_the_door or self._all_settled(but=step.name):
                self._send(step, COMPENSATING)
            return
        if self._all_settled():
            self._state = State.COMPENSATED
            self.note("compensated", detail=self._reason)

    def _all_settled(self, but: str | None = None) -> bool:
        return all(
            p.status in SETTLED_WITHOUT_EFFECT for name, p in self._steps.items() if name != but
        )

    def _send(self, step: Step, direction: Direction) -> None:
        progress = self._steps.get(step.name)
        if direction is FORWARD:
            progress = Progress(Status.SENT, attempt=progress.attempt + 1 if progress else 1)
            attempt = progress.attempt
        else:
            assert progress is not None  # noqa: S101 - only what was sent is undone
            status = Status.FENCING if step.kind is Kind.PIVOT else Status.UNDOING
            progress = replace(progress, status=status, undo_attempt=progress.undo_attempt + 1)
            attempt = progress.undo_attempt
        self._steps[step.name] = progress
        self._sends.append(Send(step.name, direction, attempt))
        self.note("sent", step.name, direction, attempt)

    def _of(self, name: str) -> tuple[Step, Progress]:
        step, progress = self._definition.by_name.get(name), self._before.steps.get(name)
        if step is None or progress is None:
            raise IllegalTransition(f"{name} was never sent in this saga")
        return step, progress
