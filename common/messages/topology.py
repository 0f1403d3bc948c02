"""Queues and dead-letter queues as data. Pure.

Owns: names and arguments. Messages go through the default exchange, so a destination is
a queue's name; only events, and what asks every process, go through exchanges of their own. Which
queues there are follows from what is deployed: every consumer declares its own. Must not know: a
driver, or who consumes what.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

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
    """A fanout: what is published to it reaches every queue bound at that moment. A direct one:
    every queue bound under the same key."""

    name: str
    kind: Literal["fanout", "direct"] = "fanout"


def dead_letter_queue(name: str) -> str:
    return f"{name}.dead"


def is_dead_letter_queue(name: str) -> bool:
    return name.endswith(".dead")


def commands_of(participant: str) -> str:
    """The queue a participant takes its commands from."""
    return f"{participant}.commands"


def events_of(service: str) -> str:
    """The queue of all events a service reacts to; it binds it to EVENTS under their types."""
    return f"{service}.events"


def event_of(type_: str) -> str:
    """The destination of an event: whoever reacts to its type."""
    return f"{EVENTS.name}/{type_}"


def route(destination: str) -> tuple[str, str]:
    """Exchange and routing key."""
    if destination.startswith(event_of("")):
        return EVENTS.name, destination.removeprefix(event_of(""))
    return "", destination


def queries_of(service: str) -> str:
    """The queue a service takes questions from."""
    return f"{service}.queries"


def is_private_reply_queue(name: str) -> bool:
    """Return whether a queue is a caller's temporary reply queue, which may no longer exist.

    Any other is a service's queue, or an event: messages for it wait until it exists.
    """
    ours = name.endswith(".commands") or name.startswith(("orchestrator.", event_of("")))
    return not ours


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
EVENTS = Exchange("events", "direct")  # of the choreographed style
