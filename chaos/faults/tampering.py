"""Faults of messages: what waits for a process is repeated, shuffled, held up, lost or poison.

Owns: draining a queue whose consumer is away and putting it back changed, ids kept. Must not
know: what any message means.
"""

from __future__ import annotations

import random
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from chaos.faults.nemesis import Nemesis
from chaos.faults.poison import NOT_JSON, assorted
from chaos.stack.system import System
from chaos.waiting import until
from common.messages.envelope import Direction, Envelope
from common.messages.topology import commands_of, dead_letter_queue, events_of

FLOOD = 500


@dataclass
class Tampering(Nemesis):
    """The consumer is away while its queue fills; before it returns, the queue is changed.
    `target` is a process whose queue is `queue`."""

    seed: int
    queue: str = ""
    moved: int = field(default=0, init=False)  # envelopes put back in another way

    def inject(self, system: System) -> None:
        system.runtime.stop(self.target)

    def heal(self, system: System) -> None:
        queue = self.queue or system.broker.inputs(self.target)[0]
        taken = system.broker.take(queue)
        self.moved = len(taken)
        system.broker.send(queue, self.changed(taken))
        system.processes.revive(self.target)

    @abstractmethod
    def changed(self, taken: Sequence[Envelope]) -> list[Envelope]: ...


@dataclass
class Duplicate(Tampering):
    says = "every message that waits for {target} comes three times"

    def changed(self, taken: Sequence[Envelope]) -> list[Envelope]:
        return [envelope for envelope in taken for _ in range(3)]


@dataclass
class Reorder(Tampering):
    says = "the messages that wait for {target} come in another order"

    def changed(self, taken: Sequence[Envelope]) -> list[Envelope]:
        return random.Random(self.seed).sample(taken, len(taken))


@dataclass
class DelayPastUndo(Tampering):
    says = "every command that waits for {target} is delayed past its undo"

    def changed(self, taken: Sequence[Envelope]) -> list[Envelope]:
        return sorted(taken, key=lambda e: e.direction is not Direction.COMPENSATING)


@dataclass
class Lose(Tampering):
    says = "every command forward that waits for {target} is lost"

    def changed(self, taken: Sequence[Envelope]) -> list[Envelope]:
        return [envelope for envelope in taken if envelope.direction is Direction.COMPENSATING]


@dataclass
class Poisoned(Tampering):
    """Of a type that nobody knows."""

    says = "every command that waits for {target} is garbled"

    def changed(self, taken: Sequence[Envelope]) -> list[Envelope]:
        return [envelope.model_copy(update={"type": "Garbled"}) for envelope in taken]

    @property
    def explained(self) -> frozenset[tuple[str, str]]:
        queues = commands_of(self.target), events_of(self.target)
        return frozenset((dead_letter_queue(queue), "unknown_type") for queue in queues)


@dataclass
class Requeue(Nemesis):
    """`target` names the processes, with commas; those of them that the stack has."""

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
    """`target` is a queue. Healed once all of it is set aside."""

    says = "poison of every kind on {target}, a megabyte of junk among it"
    _wanted: Counter[tuple[str, str]] = field(default_factory=Counter, init=False, repr=False)

    def inject(self, system: System) -> None:
        deliveries = self._deliveries()
        dead = dead_letter_queue(self.target)
        self._wanted = Counter((dead, reason) for reason, _ in deliveries) + system.dead_letters()
        system.broker.send_raw(self.target, *(body for _, body in deliveries))

    def heal(self, system: System) -> None:
        until(
            lambda: system.dead_letters() >= self._wanted,
            f"all poison on {self.target} is set aside",
        )

    def _deliveries(self) -> list[tuple[str, bytes]]:
        return assorted(self.target, uuid4())

    @property
    def explained(self) -> frozenset[tuple[str, str]]:
        dead = dead_letter_queue(self.target)
        return frozenset((dead, reason) for reason, _ in self._deliveries())


@dataclass
class PoisonFlood(Poison):
    says = f"{FLOOD} deliveries of junk on {{target}}"

    def _deliveries(self) -> list[tuple[str, bytes]]:
        return [(NOT_JSON, b"tea, please")] * FLOOD
