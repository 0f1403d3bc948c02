"""The one function that decides. Pure.

Two rules carry everything below:

1. `decide()` sees an instance and an input, and returns the next instance with what to
   send. It knows no clock, no dice, no server; an illegal input raises and changes nothing.
2. Forward until the pivot, back before it, only forward after it; and while the pivot's
   outcome is unknown, neither.

Owns: what each input leads to. Must not know: SQL, the broker, any business process.
"""

from __future__ import annotations

from dataclasses import replace

from common.kit.patience import Policy
from common.messages.envelope import Outcome
from common.messages.errors import IllegalTransition
from orchestrator.engine.decision import Decision, Move
from orchestrator.engine.definition import COMPENSATING, FORWARD, Definition, Kind, Step
from orchestrator.engine.inputs import (
    NOBODY,
    Asked,
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
from orchestrator.engine.instance import Instance, Progress, State, Status


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
    known = instance is not None
    move = Move(definition, instance or _fresh(definition, event), asked)
    match event:
        case Started():
            _started(move, event)
        case StartDeadLettered():
            _start_dead_lettered(move, event, known=known)
        case ReplyArrived():
            _reply(move, event)
        case TimedOut():
            _timed_out(move, policy, event)
        case DeadLettered():
            _dead_lettered(move, event)
        case CompensateAsked():
            _compensate_asked(move, event)
        case GateDecided():
            _gate_decided(move, event)
        case RetryAsked():
            _retry_asked(move, event)
        case Resolved():
            _resolved(move, event)
    return move.decision()


# --- the inputs that may be the first ---


def _fresh(definition: Definition, event: Input) -> Instance:
    if not isinstance(event, Started | StartDeadLettered):
        raise IllegalTransition(f"{type(event).__name__} for a saga that was never started")
    first = definition.steps[0]
    done = {first.name: Progress(Status.DONE)} if first.at_the_door else {}
    return Instance(event.saga_id, definition.name, definition.version, event.data, steps=done)


def _started(move: Move, event: Started) -> None:
    first = move.definition.steps[0]
    has_begun = any(name != first.name or not first.at_the_door for name in move.before.steps)
    if has_begun:
        raise IllegalTransition("a saga starts once; a repeated start is answered from the inbox")
    if move.state is not State.RUNNING:  # it was compensated before it could begin
        move.note("ignored", detail="a start, after it was turned back")
        return
    move.stuck = False
    move.note("started", detail=event.asked_at)
    move.advance()


def _start_dead_lettered(move: Move, event: StartDeadLettered, *, known: bool) -> None:
    move.note("dead_lettered", detail=event.reason)
    if not known:
        move.stuck = True
        move.note("stuck", detail=event.reason)


# --- the inputs of a saga under way ---


def _reply(move: Move, event: ReplyArrived) -> None:
    step, progress = move.of(event.step)
    detail = event.reason or event.type
    if event.said:
        detail = f"{detail} ({event.said})"
    counts = (event.step, event.direction) in move.before.awaited()
    entry = event.outcome.value if counts else "ignored"
    move.note(entry, event.step, event.direction, detail=detail, answered_by=event.process)
    if not counts:
        return
    move.stuck = False
    if event.direction is COMPENSATING and step.kind is not Kind.PIVOT:
        if event.outcome is not Outcome.DONE:
            raise IllegalTransition(f"the undo of {step.name} cannot be refused")
        move.steps[step.name] = replace(progress, status=Status.UNDONE)
        move.compensate()
    elif event.outcome is Outcome.DONE:
        _done(move, step, progress)
    else:
        _not_done(move, step, progress, event)


def _done(move: Move, step: Step, progress: Progress) -> None:
    move.steps[step.name] = replace(progress, status=Status.DONE)
    if step.kind is Kind.PIVOT:
        move.pivot_passed = True
        move.reason = None  # whatever made us fence it came too late
    move.advance()


def _not_done(move: Move, step: Step, progress: Progress, event: ReplyArrived) -> None:
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
    move.steps[step.name] = replace(progress, status=status)
    refused = event.reason if status is Status.REFUSED else None
    move.turn(refused or move.reason or f"{step.name}_{status.value}")


def _timed_out(move: Move, policy: Policy, event: TimedOut) -> None:
    step, progress = move.of(event.step)
    if move.before.timed_legs().get((event.step, event.direction)) != event.attempt:
        move.note(
            "ignored",
            event.step,
            event.direction,
            event.attempt,
            "deadline of an older attempt",
        )
        return
    if step.kind is Kind.GATE:
        move.note("expired", step.name)
        move.close(step.name, "expired")
        return
    move.note("timed_out", event.step, event.direction, event.attempt)
    if event.past_sla and not step.is_capped(event.direction) and not move.stuck:
        move.stuck = True
        move.note("stuck", event.step, event.direction, event.attempt)
    if step.is_capped(event.direction) and event.attempt >= (step.policy or policy).attempts:
        move.give_up(step, progress, f"{step.name}_timed_out")
        return
    move.send(step, event.direction)
    if move.state is State.COMPENSATING:
        move.compensate()  # an undo past its first deadline holds up nobody


def _dead_lettered(move: Move, event: DeadLettered) -> None:
    step, progress = move.of(event.step)
    by, why = event.discarded_by, event.reason
    detail = f"{by}: {why}" if by else why
    move.note("discarded" if by else "dead_lettered", event.step, event.direction, None, detail)
    if step.kind is Kind.GATE:
        return  # nothing of it travels
    if (event.step, event.direction) not in move.before.timed_legs():
        return
    if step.is_capped(event.direction) and not event.reply:
        move.give_up(step, progress, f"{step.name}_dead_lettered")
    elif by or not move.stuck:  # its deadline goes on running and sends it again
        move.stuck = True
        move.note("stuck", event.step, event.direction, detail=detail)


def _compensate_asked(move: Move, event: CompensateAsked) -> None:
    if move.pivot_passed:
        raise IllegalTransition(
            "the pivot is passed: from here the saga only goes forward; `retry` asks again for"
            " what it waits for"
        )
    if move.state.ended:
        raise IllegalTransition(f"the saga has ended as {move.state}")
    move.note("compensate_asked", detail=f"{event.actor}: {event.reason}")
    if move.compensate_asked or move.state is State.COMPENSATING:
        return
    move.compensate_asked = True
    if gate := move.before.waiting_at():
        move.close(gate, event.reason)
        return
    for name, progress in move.before.steps.items():
        if progress.status is Status.SENT:
            move.give_up(move.definition.by_name[name], progress, event.reason)
            return
        if progress.status is Status.FENCING:
            return  # the fence's answer decides
    move.turn(event.reason)  # it has not begun


def _gate_decided(move: Move, event: GateDecided) -> None:
    """One decides; whoever comes later, for whatever reason, is told that it is decided."""
    _, progress = move.of(event.step)
    if progress.status is not Status.WAITING:
        raise IllegalTransition(f"{event.step} waits for nobody")
    said = f"{event.actor}: {event.reason}"
    if event.approved:
        move.note("approved", event.step, detail=said)
        move.steps[event.step] = replace(progress, status=Status.OPEN)
        move.state = State.RUNNING
        move.advance()
    else:
        move.note("rejected", event.step, detail=said)
        move.close(event.step, "rejected")


def _retry_asked(move: Move, event: RetryAsked) -> None:
    """The same messages again, under the same attempts; each gets a new deadline."""
    if move.state.ended:
        raise IllegalTransition(f"the saga has ended as {move.state}: nothing is awaited")
    if gate := move.before.waiting_at():
        raise IllegalTransition(f"it waits for a person at {gate}: approve or reject it")
    legs = move.before.timed_legs()
    if not legs:
        raise IllegalTransition(
            "it has not begun: the dead letter that was to start it may be redriven"
        )
    move.note("retry_asked", detail=f"{event.actor}: {event.reason}")
    for (name, direction), attempt in legs.items():
        move.ask(name, direction, attempt)


def _resolved(move: Move, event: Resolved) -> None:
    """Only what is asked for without end, and never the pivot: that is not for guessing."""
    step, progress = move.of(event.step)
    if step.kind is Kind.PIVOT:
        raise IllegalTransition(
            f"{step.name} is the pivot: whether it happened only {step.participant} can say,"
            " and nobody may say it for them; it is asked without end"
        )
    retriable = step.kind is Kind.RETRIABLE and progress.status is Status.SENT
    if not retriable and progress.status is not Status.UNDOING:
        may_turn = move.state is State.RUNNING and progress.status is Status.SENT
        hint = "; compensate the saga, then its undo may be" if may_turn else ""
        raise IllegalTransition(
            f"{step.name} is {progress.status}: only an undo that is asked for, or a step after"
            f" the pivot, is resolved by hand{hint}"
        )
    direction = FORWARD if retriable else COMPENSATING
    move.note("resolved", step.name, direction, detail=f"{event.actor}: {event.reason}")
    move.steps[step.name] = replace(progress, status=Status.RESOLVED)
    move.stuck = False
    if retriable:
        move.advance()
    else:
        move.compensate()
