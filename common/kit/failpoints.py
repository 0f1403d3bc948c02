"""Failpoints: named points before and after every commit, publish, confirm and ack.

Tests and chaos kill, pause or fail a process there. A no-op unless the process was given a
directory in which points are armed, by a file of its own name: a list of `Arming`, which act one
after another.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from pydantic import TypeAdapter

from common.messages.envelope import Direction, Key


class Point(StrEnum):
    """A point where a process may die. The messages in hand say for which step it is reached."""

    BATCH_BEFORE_COMMIT = "batch.before_commit"
    BATCH_AFTER_COMMIT = "batch.after_commit"
    BATCH_BEFORE_ACK = "batch.before_ack"
    BATCH_AFTER_ACK = "batch.after_ack"
    RELAY_BEFORE_PUBLISH = "relay.before_publish"
    RELAY_AFTER_PUBLISH = "relay.after_publish"  # on its way, not confirmed
    RELAY_AFTER_CONFIRM = "relay.after_confirm"  # confirmed, its row not removed
    RELAY_AFTER_COMMIT = "relay.after_commit"
    RECONCILER_BEFORE_COMMIT = "reconciler.before_commit"
    RECONCILER_AFTER_COMMIT = "reconciler.after_commit"
    STARTER_BEFORE_COMMIT = "starter.before_commit"
    STARTER_AFTER_COMMIT = "starter.after_commit"
    TRIES_BEFORE_COMMIT = "tries.before_commit"  # the count before a message runs alone
    TRIES_AFTER_COMMIT = "tries.after_commit"
    TRIES_DONE_BEFORE_COMMIT = "tries_done.before_commit"  # the removal of that count
    TRIES_DONE_AFTER_COMMIT = "tries_done.after_commit"
    DEAD_LETTER_BEFORE_PUBLISH = "dead_letter.before_publish"
    DEAD_LETTER_AFTER_PUBLISH = "dead_letter.after_publish"
    DEAD_LETTER_AFTER_CONFIRM = "dead_letter.after_confirm"
    INTAKE_BEFORE_COMMIT = "intake.before_commit"  # dead letters, by the orchestrator
    INTAKE_AFTER_COMMIT = "intake.after_commit"
    INTAKE_BEFORE_ACK = "intake.before_ack"
    INTAKE_AFTER_ACK = "intake.after_ack"
    RETENTION_BEFORE_COMMIT = "retention.before_commit"  # archiving sagas that ended long ago
    RETENTION_AFTER_COMMIT = "retention.after_commit"
    INTERVENTION_BEFORE_COMMIT = "deed.before_commit"  # an operator's action; the step is its name
    INTERVENTION_AFTER_COMMIT = "deed.after_commit"


class Commit(StrEnum):
    """The transactions that may write, by the failpoints before and after their commit."""

    BATCH = "batch"
    RECONCILER = "reconciler"
    STARTER = "starter"
    TRIES = "tries"
    TRIES_DONE = "tries_done"
    INTAKE = "intake"
    RETENTION = "retention"
    INTERVENTION = "deed"

    @property
    def before(self) -> Point:
        return Point(f"{self}.before_commit")

    @property
    def after(self) -> Point:
        return Point(f"{self}.after_commit")


class Action(StrEnum):
    KILL = "kill"
    """SIGKILL: no cleanup."""
    PAUSE = "pause"
    """SIGSTOP, until a SIGCONT."""
    RAISE = "raise"
    """An exception, as a defect raises it."""


@dataclass(frozen=True)
class Arming:
    """An action at the n-th hit of a point by a message of this step and direction; None: any."""

    point: Point
    step: str | None = None
    direction: Direction | None = None
    hit: int = 1
    action: Action = Action.KILL

    def fits(self, point: Point, key: Key) -> bool:
        return (
            point is self.point
            and self.step in (None, key.step)
            and self.direction in (None, key.direction)
        )


ARMINGS = TypeAdapter(list[Arming])


class Tripped(Exception):
    """The exception of a failpoint that was armed to raise."""


class _Armory:
    """The file that arms this process; it is looked for whenever a point is reached."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._hits = 0

    def reach(self, point: Point, keys: Iterable[Key]) -> None:
        try:
            arming, *later = ARMINGS.validate_json(self._file.read_bytes())
        except FileNotFoundError:
            return
        if not any(arming.fits(point, key) for key in keys):
            return
        self._hits += 1
        if self._hits < arming.hit:
            return
        self._hits = 0
        self._disarm(later)
        _act(arming)

    def _disarm(self, later: list[Arming]) -> None:
        """Remove the arming before it acts, or the restarted process would die of it again."""
        if later:
            rest = self._file.with_suffix(".rest")
            rest.write_bytes(ARMINGS.dump_json(later))
            rest.replace(self._file)
        else:
            self._file.unlink()


def _act(arming: Arming) -> None:
    match arming.action:
        case Action.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Action.PAUSE:
            os.kill(os.getpid(), signal.SIGSTOP)
        case Action.RAISE:
            raise Tripped(arming.point)


_armory: _Armory | None = None


def watch(directory: Path | None, process: str) -> None:
    """Let `directory/process` arm points from now on; None: nothing does."""
    global _armory
    _armory = _Armory(directory / process) if directory is not None else None


def watched() -> bool:
    """Return whether any point may be armed."""
    return _armory is not None


def reach(point: Point, keys: Iterable[Key]) -> None:
    """Act if the point is armed for one of `keys`, which is read only if any point may be."""
    if _armory is not None:
        _armory.reach(point, keys)
