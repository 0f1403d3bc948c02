"""The claim rules: what may act, what is a repeat, what came too late. Pure.

Owns: which inbox rows a batch must claim, and what the inbox says to each command
in delivery order. One unique row per (saga, step, direction) gives idempotence,
null compensation and protection against late actions (design.md, 5.4):

- a command acts only if its row was claimed by this very transaction;
- an undo claims its action's row as well. If nobody had it, the claim is the
  *tombstone*: nothing to undo, and the action, should it still come, is refused;
- rows of sagas that ended long ago are forgotten, so what is as old and has no row does not act.

Must not know: SQL, the broker, what any command means.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from common.messages.envelope import Direction, Fenced, Key, Outcome, PivotDone, Reply
from common.messages.errors import Poison

EVIDENCE_GONE = "evidence_gone"  # the reason by which such a command is set aside


@dataclass(frozen=True, slots=True)
class Row:
    """A settled inbox row: the outcome, and the encoded reply that every repeat gets again."""

    outcome: Outcome
    reply: str | None


@dataclass(frozen=True, slots=True)
class First:
    """Act. `action` is, for an undo, what is known of its action; a tombstone if it never ran."""

    action: Row | None = None


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Do not act: give the stored reply again. A fenced row means the action came too late."""

    row: Row


def claims(keys: Iterable[Key]) -> list[Key]:
    """All rows the batch must claim, own and fence claims together, in one order for everybody.

    Two statements, own rows first and fence rows after, deadlocked two replicas (rule 10).
    """
    wanted: set[Key] = set()
    for key in keys:
        wanted.add(key)
        if key.direction is Direction.COMPENSATING:
            wanted.add(key.action)
    return sorted(wanted)


def fence_answer(action: Row | None) -> Reply:
    """Told apart by the action's own row: the pivot is never guessed (design.md, 5.6)."""
    return PivotDone() if action is not None and action.outcome is Outcome.DONE else Fenced()


class Fence:
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
        """What to do with the next command; `tombstone` makes the row laid for what never ran.

        `issued_at` is when it was *first* issued; None: its evidence is never forgotten. Raises
        Poison for what is unknown and as old as what was forgotten: it may have been done.
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

    def settle(self, key: Key, row: Row) -> None:
        """The command acted; this is what every repeat of it will hear."""
        self._known[key] = row

    def settled(self) -> dict[Key, Row]:
        """The claimed rows with what to keep of them."""
        return {key: self._known[key] for key in self._claimed if key in self._known}

    def given_back(self) -> list[Key]:
        """Claims whose command left nothing behind: their rows go, and the key is free again."""
        return [key for key in self._claimed if key not in self._known]
