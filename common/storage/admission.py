"""The admission rules: which command may act, which is a repeat, which came too late. Pure.

They decide which inbox rows a batch must claim, and whether each command acts, in delivery order.
One unique row per (saga, step, direction) gives idempotence, null compensation and protection
against late actions (rules 10 and 11):

- a command acts only if its row was claimed by this very transaction;
- an undo claims its action's row as well. If there was none, the claim is the
  *tombstone*: nothing to undo, and the action, should it still come, is refused;
- rows of sagas that ended long ago are forgotten, so a command as old and without a row does not
  act (rule 18).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from common.messages.envelope import Direction, Fenced, Key, Outcome, PivotDone, Reply
from common.messages.errors import Poison

EVIDENCE_GONE = "evidence_gone"  # the reason by which such a command is dead-lettered


@dataclass(frozen=True, slots=True)
class Row:
    """An inbox row: the outcome, and the encoded reply that every repeat gets again."""

    outcome: Outcome
    reply: str | None


@dataclass(frozen=True, slots=True)
class First:
    """The command acts. For an undo, `action` is its action's row: a tombstone if it never ran."""

    action: Row | None = None


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The command is a repeat: send the stored reply again. A fenced row: it came too late."""

    row: Row


def claims(keys: Iterable[Key]) -> list[Key]:
    """Return all rows the batch must claim, its own and those of undone actions, in one order.

    Two statements, own rows first and the others after, deadlocked two replicas (rule 10).
    """
    wanted: set[Key] = set()
    for key in keys:
        wanted.add(key)
        if key.direction is Direction.COMPENSATING:
            wanted.add(key.action)
    return sorted(wanted)


def fence_answer(action: Row | None) -> Reply:
    """Answer a fence by its pivot's row: whether the pivot was done is never guessed."""
    return PivotDone() if action is not None and action.outcome is Outcome.DONE else Fenced()


class InboxView:
    """One batch's view of the inbox, kept up to date in memory while the batch is decided."""

    def __init__(
        self,
        claimed: Collection[Key],
        known: Mapping[Key, Row],
        forgotten_until: datetime | None = None,
    ) -> None:
        self._claimed = frozenset(claimed)
        self._known = dict(known)
        self._forgotten_until = forgotten_until

    def admit(
        self, key: Key, tombstone: Callable[[Key], Row], issued_at: datetime | None = None
    ) -> First | Duplicate:
        """Decide whether the next command acts; `tombstone` makes the row of an undone action.

        `issued_at` is when it was *first* issued; None: its row is never forgotten. Raises Poison
        for a command without a row that is as old as the forgotten ones: it may have been done.
        """
        row = self._known.get(key)
        if row is not None:
            return Duplicate(row)
        if issued_at and self._forgotten_until and issued_at <= self._forgotten_until:
            raise Poison(
                EVIDENCE_GONE,
                f"first issued at {issued_at.isoformat()}; sagas of until"
                f" {self._forgotten_until.isoformat()} are forgotten",
            )
        if key not in self._claimed:
            raise AssertionError(f"{key} is neither claimed nor known: its evidence is gone")
        if key.direction is Direction.FORWARD:
            return First()
        if key.action not in self._known:
            if key.action not in self._claimed:
                raise AssertionError(f"{key.action} is neither claimed nor known: evidence is gone")
            self._known[key.action] = tombstone(key.action)
        return First(action=self._known[key.action])

    def record_reply(self, key: Key, row: Row) -> None:
        """Record the row of a command that acted; every repeat is answered from it."""
        self._known[key] = row

    def rows_to_write(self) -> dict[Key, Row]:
        """Return the claimed rows to write."""
        return {key: self._known[key] for key in self._claimed if key in self._known}

    def unused_claims(self) -> list[Key]:
        """Return the claims to delete: their commands wrote nothing, and may be sent again."""
        return [key for key in self._claimed if key not in self._known]
