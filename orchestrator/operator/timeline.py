"""A saga's timeline told in words, for someone who has not read the code. Pure.

Owns: one sentence for each kind of entry in the saga log. Must not know: where it is shown.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime

from orchestrator.engine.decide import Entry
from orchestrator.engine.definition import COMPENSATING, Definition, Kind, Step


def tell(definition: Definition | None, entry: Entry, at: datetime) -> str:
    """What happened, as a sentence. What belongs to a version that is not deployed here is shown as
    it stands."""
    if entry.entry == "undeployed":
        return "stands still: nobody knows the version under which it began; deployed, it goes on"
    if entry.entry == "unjudgeable":
        return f"stands still, this release cannot judge it: {entry.detail}"
    if definition is None:
        return _as_it_stands(entry)
    if entry.entry == "started":
        return _started(definition, entry, at)
    step = definition.by_name.get(entry.step or "")
    if step is not None and (of_step := _OF_A_STEP.get(entry.entry)):
        return of_step(step, entry)
    if entry.step is None and (of_saga := _OF_THE_SAGA.get(entry.entry)):
        return of_saga(definition, entry)
    return _as_it_stands(entry)


def _as_it_stands(entry: Entry) -> str:
    return " ".join(filter(None, (entry.entry, entry.step, entry.direction, entry.detail)))


def words(name: str) -> str:
    """`reserve_stock`, `ReserveStock` and `out_of_stock (sku tea)` as one would say them."""
    identifier, space, rest = name.partition(" ")
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", identifier.replace("_", " ")).lower()
    return f"{spaced}{space}{rest}"


def _asked(step: Step, entry: Entry) -> str:
    """What the participant was asked to do."""
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
            f"asks {step.participant} {again}what is not known: if you have not done"
            f" {words(step.name)}, never do; tell me which"
        )
    return f"asks {step.participant} {again}to undo {words(step.name)}: {_asked(step, entry)}"


def _done(step: Step, entry: Entry) -> str:
    said = words(entry.detail or "done")
    if step.kind is Kind.PIVOT:
        if entry.direction is COMPENSATING:
            said = f"too late to stop it, {words(step.name)} was done"
        return f"{step.participant}: {said}. No way back from here, only forward"
    if entry.direction is COMPENSATING and "nothing_to_undo" in said:
        return f"{step.participant}: nothing to undo, and should it still come it will be refused"
    return f"{step.participant}: {said}"


def _fenced(step: Step, entry: Entry) -> str:
    if entry.direction is COMPENSATING:
        return f"{step.participant}: {words(step.name)} was not done and never will be"
    return f"{step.participant}: too late, {words(step.name)} was undone before it came; not done"


def _timed_out(step: Step, entry: Entry) -> str:
    return (
        f"no answer from {step.participant} in time (attempt {entry.attempt}):"
        f" {_asked(step, entry)} may or may not have been done"
    )


def _ignored(step: Step, entry: Entry) -> str:
    what = words(entry.detail or f"an answer to {_asked(step, entry)}")
    return f"{step.participant}: {what}. Nobody waits for that any more: noted and ignored"


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
        f"parked at {words(step.name)}, for a person to decide: {e.detail or 'policy asks'}"
    ),
    "approved": lambda step, e: f"{words(step.name)}: approved by {e.detail}",
    "rejected": lambda step, e: f"{words(step.name)}: rejected by {e.detail}",
    "expired": lambda step, _: f"{words(step.name)}: nobody decided in time",
    "held": lambda step, e: (
        f"an answer to {_asked(step, e)} is kept for a process that knows this version: {e.detail}"
    ),
    "resolved": lambda step, e: f"{_asked(step, e)} is seen to by hand: resolved by {e.detail}",
    "dead_lettered": lambda step, e: (
        f"{_asked(step, e)} could not be handled by {step.participant} and was set aside"
        f" as a dead letter: {words(e.detail or 'no reason given')}"
    ),
    "discarded": lambda step, e: (
        f"the dead letter of {_asked(step, e)} was discarded by {e.detail or 'somebody'}"
    ),
    "stuck": lambda step, e: (
        f"{_asked(step, e)} is overdue: wants a person's eye, and is asked for all the same"
    ),
}
_OF_THE_SAGA: dict[str, Callable[[Definition, Entry], str]] = {
    "turned": lambda _, e: (
        f"no way forward, {words(e.detail or 'no reason given')}:"
        " what was done is undone, the last step first"
    ),
    "dead_lettered": lambda _, e: (
        f"what was to start it could not be handled: {words(e.detail or 'no reason given')}"
    ),
    "stuck": lambda _, __: "it has not begun: wants a person's eye",
    "retry_asked": lambda _, e: f"asked to send again what is awaited, by {e.detail}",
    "cancel_refused": lambda _, e: f"too late to cancel it for {e.detail}",
    "compensate_asked": lambda _, e: f"asked to undo it all by {e.detail}",
    "action_done": lambda _, e: f"by hand: {e.detail}",
    "action_refused": lambda _, e: f"by hand, and refused: {e.detail}",
    "completed": lambda _, __: "COMPLETED: every step is done",
    "compensated": lambda _, e: (
        f"COMPENSATED: all that was done is undone ({words(e.detail or 'no reason given')})"
    ),
}
