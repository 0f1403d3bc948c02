"""Queues and dead-letter queues as data. Pure.

Owns: names and arguments. Messages go through the default exchange, so a destination is
a queue's name; only what asks every process goes through an exchange of its own. Which queues
there are follows from what is deployed: every consumer declares its own. Must not know: a driver,
or who consumes what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

DELIVERY_LIMIT = (
    1000  # explicit and high: before RabbitMQ 4.3 every return counts (section 6, rule 14)
)
NEVER = 2**31 - 1  # looking at a dead letter returns it; 4.x would drop it after twenty looks
ORCHESTRATOR_COMMANDS = "orchestrator.commands"  # StartSaga
ORCHESTRATOR_REPLIES = "orchestrator.replies"
ORCHESTRATOR_QUERIES = "orchestrator.queries"


@dataclass(frozen=True)
class Queue:
    name: str
    arguments: Mapping[str, str | int] = field(default_factory=dict)


@dataclass(frozen=True)
class Exchange:
    """A fanout: what is published to it reaches every private queue bound at that moment."""

    name: str


def dead_letter_queue(name: str) -> str:
    return f"{name}.dead"


def is_dead_letter_queue(name: str) -> bool:
    return name.endswith(".dead")


def commands_of(participant: str) -> str:
    """The queue a participant takes its commands from."""
    return f"{participant}.commands"


def queries_of(service: str) -> str:
    """The queue a service takes questions from."""
    return f"{service}.queries"


def is_a_callers(name: str) -> bool:
    """Whether it is the private queue of somebody who asked, and may be gone.

    Any other is a service's: what is for it waits until it is there.
    """
    return not name.endswith(".commands") and name.partition(".")[0] != "orchestrator"


def work_queue(name: str) -> tuple[Queue, Queue]:
    """A quorum queue whose dead letters are kept at least once, and where they go.

    At-least-once dead lettering needs overflow=reject-publish (section 6, rule 17).
    """
    dead = dead_letter_queue(name)
    work = Queue(
        name,
        {
            "x-queue-type": "quorum",
            "x-overflow": "reject-publish",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": dead,
            "x-dead-letter-strategy": "at-least-once",
        },
    )
    return work, Queue(dead, {"x-queue-type": "quorum", "x-delivery-limit": NEVER})


def query_queue(name: str) -> tuple[Queue]:
    """Questions have a deadline of their own: nothing to keep, nothing to dead-letter."""
    return (Queue(name, {"x-queue-type": "classic"}),)


PROCESSES = Exchange("processes")  # each process answers for itself
