"""Honest participants, shared by both models: they remember what they did, and may refuse.

Owns: how a participant handles one command behind the real fence, and which effects are always
wrong. Must not know: who sent the command, nor how the reply travels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

from common.messages.envelope import Direction, Fenced, Key, Outcome
from common.storage import admission
from common.storage.admission import Duplicate, Row

CAN_REFUSE = frozenset({"reserve_stock", "charge_payment", "dispatch_stock", "refund_order"})

T = TypeVar("T")


class Violation(Exception):
    """Something happened that must never happen."""


class Local(NamedTuple):
    """One step at its participant: its two inbox rows, how often it ran and was undone."""

    action: Row | None = None
    undo: Row | None = None
    acted: int = 0
    undone: int = 0


class Numbered(Generic[T]):
    """A two-way numbering of things, so that a world can be a few small integers."""

    def __init__(self, things: Iterable[T] = ()) -> None:
        self._numbers: dict[T, int] = {}
        self._things: list[T] = []
        for thing in things:
            self(thing)

    def __call__(self, thing: T) -> int:
        if thing not in self._numbers:
            self._numbers[thing] = len(self._things)
            self._things.append(thing)
        return self._numbers[thing]

    def __getitem__(self, number: int) -> T:
        return self._things[number]

    def bits(self, things: Iterable[T]) -> int:
        bits = 0
        for thing in things:
            bits |= 1 << self(thing)
        return bits

    def of(self, bits: int) -> Iterator[T]:
        while bits:
            lowest = bits & -bits
            yield self._things[lowest.bit_length() - 1]
            bits ^= lowest


def handled(local: Local, key: Key, pivot: str) -> list[tuple[str, Local, Outcome | None]]:
    """Return each way to handle a command: words, the participant after it, its reply.

    Raises Violation if the fence breaks.
    """
    action = key.action
    undo = key._replace(direction=Direction.COMPENSATING)
    known = {k: row for k, row in ((action, local.action), (undo, local.undo)) if row is not None}
    wanted = admission.claims([key])
    rows = {k: row for k, row in known.items() if k in wanted}
    gate = admission.InboxView([k for k in wanted if k not in known], rows)

    def settled_as(
        outcome: Outcome, words: str, changed: Local = local
    ) -> tuple[str, Local, Outcome | None]:
        gate.record_reply(key, Row(outcome, "said"))
        settled = gate.rows_to_write()
        after = changed._replace(
            action=settled.get(action, local.action), undo=settled.get(undo, local.undo)
        )
        return words, after, outcome

    try:
        verdict = gate.admit(key, _tombstone)
    except AssertionError as refused:
        raise Violation(f"the fence has no rows for {key.step}: {refused}") from refused
    if isinstance(verdict, Duplicate):
        stored = verdict.row
        return [("a duplicate", local, stored.outcome if stored.reply is not None else None)]
    if key.direction is Direction.FORWARD:
        no = [settled_as(Outcome.REFUSED, "refused")] if key.step in CAN_REFUSE else []
        return [settled_as(Outcome.DONE, "done", local._replace(acted=local.acted + 1)), *no]
    if key.step == pivot:
        outcome = admission.fence_answer(verdict.action).outcome
        return [settled_as(outcome, f"the pivot is {outcome}")]
    if verdict.action is not None and verdict.action.outcome is Outcome.DONE:
        return [settled_as(Outcome.DONE, "undone", local._replace(undone=local.undone + 1))]
    return [settled_as(Outcome.DONE, "nothing to undo")]


def _tombstone(_: Key) -> Row:
    return Row(Outcome.FENCED, Fenced().reason)


def wrong_effects(locals_: Mapping[str, Local], pivot: str) -> str | None:
    """Return what is wrong with the effects, whatever state the saga is in, or None."""
    for name, local in locals_.items():
        if local.acted > 1 or local.undone > local.acted:
            return f"{name} was done {local.acted} times and undone {local.undone} times"
    undone = sorted(name for name, local in locals_.items() if local.undone)
    if locals_[pivot].acted and undone:
        return f"the pivot was done, and {', '.join(undone)} is undone"
    return None
