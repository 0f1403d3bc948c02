"""Faults of messages: what waits for a process is repeated, shuffled, delayed, lost or poison.

A queue is drained while its consumer is stopped, and put back changed, message ids kept.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from chaos.faults.nemesis import Nemesis, Unreachable
from chaos.faults.poison import NOT_JSON, assorted
from chaos.stack.system import System
from chaos.waiting import until
from common.messages.envelope import Direction, Envelope
from common.messages.topology import commands_of, dead_letter_queue, events_of

FLOOD = 500


@dataclass
class Tampering(Unreachable):
    """A stop of the target, before whose start `queue` (or its own) is changed."""

    seed: int
    queue: str = ""
    moved: int = field(default=0, init=False)  # messages put back in another way

    def heal(self, system: System) -> None:
        queue = self.queue or system.broker.inputs(self.target)[0]
        taken = system.broker.take(queue)
        self.moved = len(taken)
        system.broker.send(queue, self.changed(taken))
        super().heal(system)

    @abstractmethod
    def changed(self, taken: Sequence[Envelope]) -> list[Envelope]: ...


class Duplicate(Tampering):
    says = "every message that waits for {target} comes three times"

    def changed(self, taken: Sequence[Envelope]) -> list[Envelope]:
        return [envelope for envelope in taken for _ in range(3)]


class Reorder(Tampering):
    says = "the messages that wait for {target} come in another order"

    def changed(self, taken: Sequence[Envelope]) -> list[Envelope]:
        return random.Random(self.seed).sample(taken, len(taken))


class DelayPastUndo(Tampering):
    says = "every command that waits for {target} is delayed past its undo"

    def changed(self, taken: Sequence[Envelope]) -> list[Envelope]:
        return sorted(taken, key=lambda e: e.direction is not Direction.COMPENSATING)


class Lose(Tampering):
    says = "every command forward that waits for {target} is lost"

    def changed(self, taken: Sequence[Envelope]) -> list[Envelope]:
        return [envelope for envelope in taken if envelope.direction is Direction.COMPENSATING]


class Poisoned(Tampering):
    """Commands of an unknown type."""

    says = "every command that waits for {target} is garbled"

    def changed(self, taken: Sequence[Envelope]) -> list[Envelope]:
        return [envelope.model_copy(update={"type": "Garbled"}) for envelope in taken]

    @property
    def explained(self) -> frozenset[tuple[str, str]]:
        queues = commands_of(self.target), events_of(self.target)
        return frozenset((dead_letter_queue(queue), "unknown_type") for queue in queues)


@dataclass
class Requeue(Nemesis):
    """A shuffle of queues. `target` names processes, with commas; those not there are left out."""

    seed: int
    says = "all queues of {target} are drained and everything put back, shuffled, ids kept"
    moved: int = field(default=0, init=False)

    def inject(self, system: System) -> None:
        for process in self._processes(system):
            system.runtime.stop(process)

    def heal(self, system: System) -> None:
        dice = random.Random(self.seed)
        for process in self._processes(system):
            for queue in system.broker.inputs(process):
                taken = system.broker.take(queue)
                self.moved += len(taken)
                system.broker.send(queue, dice.sample(taken, len(taken)))
        for process in self._processes(system):
            system.processes.revive(process)

    def _processes(self, system: System) -> list[str]:
        return [process for process in self.target.split(",") if process in system.processes.names]


@dataclass
class Poison(Nemesis):
    """Poison on the queue `target`; it is healed once all is dead-lettered."""

    says = "poison of every kind on {target}, a megabyte of junk among it"
    _wanted: Counter[tuple[str, str]] = field(default_factory=Counter, init=False, repr=False)

    def inject(self, system: System) -> None:
        deliveries = self._deliveries()
        self._wanted = Counter(map(self._dead, deliveries)) + system.dead_letters()
        system.broker.send_raw(self.target, *(body for _, body in deliveries))

    def heal(self, system: System) -> None:
        until(
            lambda: system.dead_letters() >= self._wanted,
            f"all poison on {self.target} is dead-lettered",
        )

    @property
    def explained(self) -> frozenset[tuple[str, str]]:
        return frozenset(map(self._dead, self._deliveries()))

    def _dead(self, delivery: tuple[str, bytes]) -> tuple[str, str]:
        return dead_letter_queue(self.target), delivery[0]

    def _deliveries(self) -> list[tuple[str, bytes]]:
        return assorted(self.target, uuid4())


class PoisonFlood(Poison):
    says = f"{FLOOD} deliveries of junk on {{target}}"

    def _deliveries(self) -> list[tuple[str, bytes]]:
        return [(NOT_JSON, b"tea, please")] * FLOOD
