"""Each entry of the saga log as a sentence, for someone who has not read the code. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

from orchestrator.engine.definition import COMPENSATING, Definition, Kind, Step
from orchestrator.engine.saga_log import Entry, EntryKind


def describe(definition: Definition | None, entry: Entry, at: datetime) -> str:
    """Say what happened. An entry of a version that is not deployed here is shown unchanged."""
    if entry.kind == EntryKind.UNDEPLOYED:
        return "blocked: its definition version is not deployed; resumes once it is"
    if entry.kind == EntryKind.UNJUDGEABLE:
        return f"blocked: this release cannot decide about it: {entry.detail}"
    if definition is None:
        return _unchanged(entry)
    if entry.kind == EntryKind.STARTED:
        return _started(definition, entry, at)
    step = definition.by_name.get(entry.step or "")
    if step is not None and (of_step := _OF_A_STEP.get(entry.kind)):
        return of_step(step, entry)
    if entry.step is None and (of_saga := _OF_THE_SAGA.get(entry.kind)):
        return of_saga(definition, entry)
    return _unchanged(entry)


def _unchanged(entry: Entry) -> str:
    return " ".join(filter(None, (entry.kind, entry.step, entry.direction, entry.detail)))


def words(name: str) -> str:
    """Spell out a name: `reserve_stock`, `ReserveStock` and `out_of_stock (sku tea)`."""
    identifier, space, rest = name.partition(" ")
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", identifier.replace("_", " ")).lower()
    return f"{spaced}{space}{rest}"


def _asked(step: Step, entry: Entry) -> str:
    """Name what the participant was asked to do."""
    if entry.direction is not COMPENSATING:
        return words(step.name)
    if step.kind is Kind.PIVOT:
        return f"the fence of {words(step.name)}"
    return words(step.undo.__name__) if step.undo else f"undo {words(step.name)}"


def _sent(step: Step, entry: Entry) -> str:
    again = f"again (attempt {entry.attempt}) " if (entry.attempt or 1) > 1 else ""
    if entry.direction is not COMPENSATING:
        return f"asks {step.participant} {again}to {_asked(step, entry)}"
    if step.kind is Kind.PIVOT:
        return (
            f"asks {step.participant} {again}whether {words(step.name)} was done; if not, it must"
            " never be"
        )
    return f"asks {step.participant} {again}to undo {words(step.name)}: {_asked(step, entry)}"


def _done(step: Step, entry: Entry) -> str:
    said = words(entry.detail or "done")
    if step.kind is Kind.PIVOT:
        if entry.direction is COMPENSATING:
            said = f"too late to stop it: {words(step.name)} was done"
        return f"{step.participant}: {said}. From here on the saga only goes forward"
    if entry.direction is COMPENSATING and "nothing_to_undo" in said:
        return f"{step.participant}: nothing to undo; if the command still arrives, it is refused"
    return f"{step.participant}: {said}"


def _fenced(step: Step, entry: Entry) -> str:
    if entry.direction is COMPENSATING:
        return f"{step.participant}: {words(step.name)} was not done and never will be"
    return f"{step.participant}: not done, {words(step.name)} was undone before it arrived"


def _timed_out(step: Step, entry: Entry) -> str:
    return (
        f"no answer from {step.participant} in time (attempt {entry.attempt}):"
        f" {_asked(step, entry)} may or may not have been done"
    )


def _ignored(step: Step, entry: Entry) -> str:
    what = words(entry.detail or f"an answer to {_asked(step, entry)}")
    return f"{step.participant}: {what}. No longer awaited: ignored"


def _started(definition: Definition, entry: Entry, at: datetime) -> str:
    first = definition.steps[0]
    begun = "the saga begins"
    if first.at_the_door:
        begun += f"; {words(first.name)} was done at the door"
    if entry.detail:
        seconds = (at - datetime.fromisoformat(entry.detail)).total_seconds()
        begun += f", {seconds:.3f} s before" if first.at_the_door else f" after {seconds:.3f} s"
    return begun


_OF_A_STEP: dict[str, Callable[[Step, Entry], str]] = {
    "sent": _sent,
    "done": _done,
    "refused": lambda step, e: (
        f"{step.participant} refuses: {words(e.detail or 'no reason given')}"
    ),
    "fenced": _fenced,
    "timed_out": _timed_out,
    "ignored": _ignored,
    "parked": lambda step, e: (
        f"parked at {words(step.name)} for a person to decide: {e.detail or 'policy'}"
    ),
    "approved": lambda step, e: f"{words(step.name)}: approved by {e.detail}",
    "rejected": lambda step, e: f"{words(step.name)}: rejected by {e.detail}",
    "expired": lambda step, _: f"{words(step.name)}: expired without a decision",
    "held": lambda step, e: (
        f"a reply to {_asked(step, e)} is kept until its version is deployed: {e.detail}"
    ),
    "resolved": lambda step, e: f"{_asked(step, e)} was done by hand: resolved by {e.detail}",
    "dead_lettered": lambda step, e: (
        f"{step.participant} could not handle {_asked(step, e)}; it is a dead letter:"
        f" {words(e.detail or 'no reason given')}"
    ),
    "discarded": lambda step, e: (
        f"the dead letter of {_asked(step, e)} was discarded by {e.detail or 'an operator'}"
    ),
    "stuck": lambda step, e: (
        f"stuck: {_asked(step, e)} is overdue; it is still retried, and needs a person's attention"
    ),
}
_OF_THE_SAGA: dict[str, Callable[[Definition, Entry], str]] = {
    "turned": lambda _, e: (
        f"compensates, {words(e.detail or 'no reason given')}:"
        " what was done is undone, the last step first"
    ),
    "dead_lettered": lambda _, e: (
        f"the message that starts it could not be handled: {words(e.detail or 'no reason given')}"
    ),
    "stuck": lambda _, __: "stuck: it has not begun; needs a person's attention",
    "retry_asked": lambda _, e: f"retried by {e.detail}: what is awaited is sent again",
    "cancel_refused": lambda _, e: f"too late to cancel it for {e.detail}",
    "compensate_asked": lambda _, e: f"compensation asked for by {e.detail}",
    "action_done": lambda _, e: f"intervention: {e.detail}",
    "action_refused": lambda _, e: f"intervention, refused: {e.detail}",
    "completed": lambda _, __: "COMPLETED: every step is done",
    "compensated": lambda _, e: (
        f"COMPENSATED: all that was done is undone ({words(e.detail or 'no reason given')})"
    ),
}
