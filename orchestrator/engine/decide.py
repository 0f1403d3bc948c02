"""The pure function that decides what an input does to an instance.

Two rules carry everything below:

1. `decide()` takes an instance and an input, and returns the next instance, what to send and what
   to log. It uses no clock, no randomness and no server; an illegal input raises and changes
   nothing.
2. Before the pivot a saga may turn back; after it, it may not. While the pivot's outcome is unknown
   it does neither (rule 1 of docs/rules.md: the fence is a barrier).

Must not know: SQL, the broker, any business process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from common.kit.settings import Policy
from common.messages.envelope import Command, Direction, Fence, Outcome, Undo, brief
from common.messages.errors import IllegalTransition, Poison
from orchestrator.engine.definition import COMPENSATING, FORWARD, Definition, Kind, Step
from orchestrator.engine.inputs import (
    NO_APPROVALS,
    Approvals,
    CompensateAsked,
    DeadLettered,
    GateDecided,
    Input,
    ReplyArrived,
    Resolved,
    RetryAsked,
    StartDeadLettered,
    Started,
    TimedOut,
)
from orchestrator.engine.instance import SETTLED_WITHOUT_EFFECT, Instance, Progress, State, Status
from orchestrator.engine.saga_log import Entry, EntryKind


@dataclass(frozen=True, slots=True)
class Send:
    """A command to send; `command_for()` makes its body."""

    step: str
    direction: Direction
    attempt: int


@dataclass(frozen=True, slots=True)
class Decision:
    """The instance after an input, what to send and what to log."""

    instance: Instance
    sends: tuple[Send, ...]
    log: tuple[Entry, ...]


def decide(
    definition: Definition,
    policy: Policy,
    instance: Instance | None,
    input_: Input,
    approvals: Approvals = NO_APPROVALS,
) -> Decision:
    """Decide what one input does to an instance; None is a saga without an instance yet.

    Raises IllegalTransition, with nothing changed, for an input that is impossible in this state.
    """
    before = instance or _first_instance(definition, input_)
    move = Move(definition, policy, before, approvals)
    match input_:
        case Started():
            move.start(input_)
        case StartDeadLettered():
            move.record_dead_start(input_, is_new=instance is None)
        case ReplyArrived():
            move.take_reply(input_)
        case TimedOut():
            move.time_out(input_)
        case DeadLettered():
            move.take_dead_letter(input_)
        case CompensateAsked():
            move.begin_compensation(input_)
        case GateDecided():
            move.open_or_close_gate(input_)
        case RetryAsked():
            move.send_again(input_)
        case Resolved():
            move.resolve(input_)
    return move.decision()


def _first_instance(definition: Definition, input_: Input) -> Instance:
    if not isinstance(input_, Started | StartDeadLettered):
        raise IllegalTransition(f"{type(input_).__name__} for a saga that was never started")
    first = definition.steps[0]
    done = {first.name: Progress(Status.DONE)} if first.at_the_door else {}
    return Instance(input_.saga_id, definition.name, definition.version, input_.data, steps=done)


class Move:
    """One input applied to one instance: first a method per input, then the moves these make.

    What an input may do depends on `_before`, the instance as the input finds it. The other fields
    hold the next one, which the moves read and write.
    """

    def __init__(
        self, definition: Definition, policy: Policy, instance: Instance, approvals: Approvals
    ) -> None:
        self._definition = definition
        self._policy = policy
        self._approvals = approvals
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

    # --- the start ---

    def start(self, input_: Started) -> None:
        first = self._definition.steps[0]
        if any(name != first.name or not first.at_the_door for name in self._before.steps):
            raise IllegalTransition(
                "a saga starts once; a repeated start is answered from the inbox"
            )
        if self._before.state is not State.RUNNING:  # compensated before it began
            self._note(EntryKind.IGNORED, detail="a start, after it was turned back")
            return
        self._stuck = False
        self._note(EntryKind.STARTED, detail=input_.asked_at)
        self._advance()

    def record_dead_start(self, input_: StartDeadLettered, *, is_new: bool) -> None:
        """Record that the start is dead; a saga it leaves without a beginning is stuck."""
        self._note(EntryKind.DEAD_LETTERED, detail=input_.reason)
        if is_new:
            self._stuck = True
            self._note(EntryKind.STUCK, detail=input_.reason)

    # --- replies, timeouts, dead letters ---

    def take_reply(self, input_: ReplyArrived) -> None:
        """Settle the step that was awaited; a reply to anything else is only logged (rule 3)."""
        step, progress = self._find(input_.step)
        detail = input_.reason or input_.type
        if input_.said:
            detail = f"{detail} ({input_.said})"
        awaited = (input_.step, input_.direction) in self._before.awaited()
        kind = EntryKind(input_.outcome.value) if awaited else EntryKind.IGNORED
        self._note(kind, input_.step, input_.direction, detail=detail, answered_by=input_.process)
        if not awaited:
            return
        self._stuck = False
        if input_.direction is COMPENSATING and step.kind is not Kind.PIVOT:
            if input_.outcome is not Outcome.DONE:
                raise IllegalTransition(f"the undo of {step.name} cannot be refused")
            self._steps[step.name] = replace(progress, status=Status.UNDONE)
            self._compensate()
        elif input_.outcome is Outcome.DONE:
            self._step_done(step, progress)
        else:
            self._step_refused(step, progress, input_)

    def _step_done(self, step: Step, progress: Progress) -> None:
        self._steps[step.name] = replace(progress, status=Status.DONE)
        if step.kind is Kind.PIVOT:
            self._pivot_passed = True
            self._reason = None  # whatever led to a fence came too late
        self._advance()

    def _step_refused(self, step: Step, progress: Progress, input_: ReplyArrived) -> None:
        """Turn back: the step was refused or fenced, which is final and without effect."""
        refused = input_.outcome is Outcome.REFUSED
        if step.kind is Kind.RETRIABLE:
            raise IllegalTransition(f"{step.name} is retriable and cannot be refused")
        if step.kind is Kind.PIVOT and input_.direction is COMPENSATING and refused:
            raise IllegalTransition(f"the fence of {step.name} cannot be refused")
        status = Status.REFUSED if refused else Status.FENCED
        self._steps[step.name] = replace(progress, status=status)
        why = input_.reason if refused else None
        self._turn_back(why or self._reason or f"{step.name}_{status.value}")

    def time_out(self, input_: TimedOut) -> None:
        """Send again, or give the step up once its attempts are used up."""
        step, progress = self._find(input_.step)
        attempt = (input_.step, input_.direction, input_.attempt)
        if self._before.timed_legs().get((input_.step, input_.direction)) != input_.attempt:
            self._note(EntryKind.IGNORED, *attempt, "deadline of an older attempt")
            return
        if step.kind is Kind.GATE:
            self._note(EntryKind.EXPIRED, step.name)
            self._close_gate(step.name, "expired")
            return
        self._note(EntryKind.TIMED_OUT, *attempt)
        capped = step.is_capped(input_.direction)
        if input_.past_sla and not capped and not self._before.stuck:
            self._stuck = True
            self._note(EntryKind.STUCK, *attempt)
        if capped and input_.attempt >= (step.policy or self._policy).attempts:
            self._give_up(step, progress, f"{step.name}_timed_out")
            return
        self._send(step, input_.direction)
        if self._before.state is State.COMPENSATING:
            self._compensate()  # an undo past its first deadline does not hold up the next

    def take_dead_letter(self, input_: DeadLettered) -> None:
        """Give up a dead forward command; anything else dead is stuck and resent (rule 8)."""
        step, progress = self._find(input_.step)
        by, why = input_.discarded_by, input_.reason
        detail = f"{by}: {why}" if by else why
        kind = EntryKind.DISCARDED if by else EntryKind.DEAD_LETTERED
        self._note(kind, input_.step, input_.direction, detail=detail)
        if step.kind is Kind.GATE:
            return  # no message of ours names a gate
        if (input_.step, input_.direction) not in self._before.timed_legs():
            return
        if step.is_capped(input_.direction) and not input_.reply:
            self._give_up(step, progress, f"{step.name}_dead_lettered")
        elif by or not self._before.stuck:  # its deadline stays, and sends it again
            self._stuck = True
            self._note(EntryKind.STUCK, input_.step, input_.direction, detail=detail)

    # --- what people ask for ---

    def begin_compensation(self, input_: CompensateAsked) -> None:
        if self._before.pivot_passed:
            raise IllegalTransition(
                "the pivot is passed: from here the saga only goes forward; `retry` sends again"
                " what it waits for"
            )
        if self._before.state.ended:
            raise IllegalTransition(f"the saga has ended as {self._before.state}")
        self._note(EntryKind.COMPENSATE_ASKED, detail=f"{input_.actor}: {input_.reason}")
        if self._before.compensate_asked or self._before.state is State.COMPENSATING:
            return
        self._compensate_asked = True
        if gate := self._before.waiting_at():
            self._close_gate(gate, input_.reason)
            return
        for name, progress in self._before.steps.items():
            if progress.status is Status.SENT:
                self._give_up(self._definition.by_name[name], progress, input_.reason)
                return
            if progress.status is Status.FENCING:
                return  # the fence's answer decides
        self._turn_back(input_.reason)  # it has not begun

    def open_or_close_gate(self, input_: GateDecided) -> None:
        """Go on or turn back. The first decision counts; any later one is illegal."""
        _, progress = self._find(input_.step)
        if progress.status is not Status.WAITING:
            raise IllegalTransition(f"{input_.step} waits for no decision")
        detail = f"{input_.actor}: {input_.reason}"
        if input_.approved:
            self._note(EntryKind.APPROVED, input_.step, detail=detail)
            self._steps[input_.step] = replace(progress, status=Status.OPEN)
            self._state = State.RUNNING
            self._advance()
        else:
            self._note(EntryKind.REJECTED, input_.step, detail=detail)
            self._close_gate(input_.step, "rejected")

    def send_again(self, input_: RetryAsked) -> None:
        """Send every awaited command again, as the same attempt with a new deadline."""
        if self._before.state.ended:
            raise IllegalTransition(
                f"the saga has ended as {self._before.state}: nothing is awaited"
            )
        if gate := self._before.waiting_at():
            raise IllegalTransition(f"it waits for a person at {gate}: approve or reject it")
        legs = self._before.timed_legs()
        if not legs:
            raise IllegalTransition(
                "it has not begun: the dead letter that was to start it may be redriven"
            )
        self._note(EntryKind.RETRY_ASKED, detail=f"{input_.actor}: {input_.reason}")
        for (name, direction), attempt in legs.items():
            self._send_attempt(name, direction, attempt)

    def resolve(self, input_: Resolved) -> None:
        """Settle an undo or a retriable step by hand, and never the pivot: that is not guessed."""
        step, progress = self._find(input_.step)
        if step.kind is Kind.PIVOT:
            raise IllegalTransition(
                f"{step.name} is the pivot: only {step.participant} can say whether it happened, so"
                " it cannot be resolved by hand; it is resent until it answers"
            )
        retriable = step.kind is Kind.RETRIABLE and progress.status is Status.SENT
        if not retriable and progress.status is not Status.UNDOING:
            may_turn = self._before.state is State.RUNNING and progress.status is Status.SENT
            hint = "; compensate the saga, then its undo may be" if may_turn else ""
            raise IllegalTransition(
                f"{step.name} is {progress.status}: only an undo that was sent, or a step after"
                f" the pivot, is resolved by hand{hint}"
            )
        direction = FORWARD if retriable else COMPENSATING
        self._note(
            EntryKind.RESOLVED, step.name, direction, detail=f"{input_.actor}: {input_.reason}"
        )
        self._steps[step.name] = replace(progress, status=Status.RESOLVED)
        self._stuck = False
        if retriable:
            self._advance()
        else:
            self._compensate()

    # --- the moves ---

    def _advance(self) -> None:
        """Send the next step, park at a gate, or complete."""
        for step in self._definition.steps:
            if step.name in self._steps:
                continue
            if step.kind is not Kind.GATE:
                self._send(step, FORWARD)
                return
            if why := self._approvals.get(step.name):
                self._steps[step.name] = Progress(Status.WAITING, attempt=0)
                self._state = State.WAITING
                self._note(EntryKind.PARKED, step.name, detail=why)
                return
            self._steps[step.name] = Progress(Status.OPEN, attempt=0)
        self._state = State.COMPLETED
        self._note(EntryKind.COMPLETED)

    def _give_up(self, step: Step, progress: Progress, reason: str) -> None:
        """Undo a step whose outcome is unknown; fence it if it is the pivot, never guessed."""
        if step.kind is Kind.PIVOT:
            self._reason = reason
            self._send(step, COMPENSATING)  # the barrier: no compensation before its answer
        else:
            self._steps[step.name] = replace(progress, status=Status.UNKNOWN)
            self._turn_back(reason)

    def _close_gate(self, gate: str, reason: str) -> None:
        self._steps[gate] = replace(self._steps[gate], status=Status.REFUSED)
        self._turn_back(reason)

    def _turn_back(self, reason: str) -> None:
        self._state = State.COMPENSATING
        self._reason = reason
        self._note(EntryKind.TURNED, detail=reason)
        self._compensate()

    def _compensate(self) -> None:
        """Send the next undo, in reverse order, once none holds it up; or end compensated.

        An undo holds up the next until it is answered or its first deadline has passed.
        """
        for step in reversed(self._definition.steps):
            progress = self._steps.get(step.name)
            if progress is None or progress.status in SETTLED_WITHOUT_EFFECT:
                continue
            if progress.status is Status.UNDOING:
                if progress.is_first_undo:
                    return
                continue
            if not step.at_the_door or self._all_settled(but=step.name):
                self._send(step, COMPENSATING)
            return
        if self._all_settled():
            self._state = State.COMPENSATED
            self._note(EntryKind.COMPENSATED, detail=self._reason)

    def _all_settled(self, but: str | None = None) -> bool:
        return all(
            p.status in SETTLED_WITHOUT_EFFECT for name, p in self._steps.items() if name != but
        )

    def _send(self, step: Step, direction: Direction) -> None:
        """Send a new attempt of a step: its command, its undo or its fence."""
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
        self._send_attempt(step.name, direction, attempt)

    def _send_attempt(self, step: str, direction: Direction, attempt: int) -> None:
        self._sends.append(Send(step, direction, attempt))
        self._note(EntryKind.SENT, step, direction, attempt)

    def _note(
        self,
        kind: EntryKind,
        step: str | None = None,
        direction: Direction | None = None,
        attempt: int | None = None,
        detail: str | None = None,
        answered_by: str | None = None,
    ) -> None:
        self._log.append(Entry(kind, step, direction, attempt, detail, answered_by))

    def _find(self, name: str) -> tuple[Step, Progress]:
        step, progress = self._definition.by_name.get(name), self._before.steps.get(name)
        if step is None or progress is None:
            raise IllegalTransition(f"{name} was never sent in this saga")
        return step, progress


class NeedsAnotherRelease(Poison):
    """An instance that this release cannot decide, while another release can."""

    def __init__(self, reason: str, detail: str, refusal: str) -> None:
        super().__init__(reason, detail)
        self.refusal = refusal  # the text for a person who asks for it


class CommandNotMade(NeedsAnotherRelease):
    """The data a saga began with lacks a field that this release's command requires."""

    def __init__(self, step: Step, error: ValidationError) -> None:
        why = f"{step.name}: no {error.title} can be made of its data ({brief(error)})"
        super().__init__("invalid_data", why, f"{why}; it goes on once a release can")


def command_for(definition: Definition, instance: Instance, send: Send) -> Command:
    """Make the body of a command. Raises CommandNotMade.

    Its fields are taken by name from the instance's data; an undo also gets the reason.
    """
    step = definition.by_name[send.step]
    if send.direction is FORWARD:
        command = step.command
    else:
        command = Fence if step.kind is Kind.PIVOT else step.undo
    if command is None:
        raise IllegalTransition(f"{step.name} has nothing to send {send.direction}")
    return make_command(step, command, instance.data, instance.reason)


def make_command(
    step: Step, command: type[Command], data: Mapping[str, Any], reason: str | None
) -> Command:
    why_undone = {"reason": reason} if issubclass(command, Undo) else {}
    try:
        return command.model_validate({**data, **why_undone})
    except ValidationError as error:
        raise CommandNotMade(step, error) from error
