"""Queues, dead-letter queues and exchanges as data. Pure.

Messages go through the default exchange, so a destination is a queue's name; only events and
queries to every process go through exchanges of their own. Every consumer declares its own queues.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

DELIVERY_LIMIT = 1000  # explicit and high: before RabbitMQ 4.3 every return counts (rule 14)
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
    """A fanout delivers to every queue bound to it; a direct one to those bound under the key."""

    name: str
    kind: Literal["fanout", "direct"] = "fanout"


def dead_letter_queue(name: str) -> str:
    return f"{name}.dead"


def is_dead_letter_queue(name: str) -> bool:
    return name.endswith(".dead")


def commands_of(participant: str) -> str:
    """Name the queue a participant takes its commands from."""
    return f"{participant}.commands"


def events_of(service: str) -> str:
    """Name the queue of all events a service reacts to; it is bound to EVENTS by their types."""
    return f"{service}.events"


def event_of(type_: str) -> str:
    """Name the destination of an event: all services that react to its type."""
    return f"{EVENTS.name}/{type_}"


def route(destination: str) -> tuple[str, str]:
    """Return the exchange and the routing key of a destination."""
    if destination.startswith(event_of("")):
        return EVENTS.name, destination.removeprefix(event_of(""))
    return "", destination


def queries_of(service: str) -> str:
    """Name the queue a service takes queries from."""
    return f"{service}.queries"


def is_private_reply_queue(name: str) -> bool:
    """Return whether a queue is a caller's temporary reply queue, which may no longer exist.

    Any other is a service's queue, or an event: messages for it wait until it exists.
    """
    ours = name.endswith(".commands") or name.startswith(("orchestrator.", event_of("")))
    return not ours


def work_queue(name: str) -> tuple[Queue, Queue]:
    """Describe a quorum queue with at-least-once dead lettering, and its dead-letter queue.

    At-least-once dead lettering needs overflow=reject-publish (rule 17).
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
    """Describe a queue of queries, which have a deadline: none is kept or dead-lettered."""
    return (Queue(name, {"x-queue-type": "classic"}),)


PROCESSES = Exchange("processes")  # each process answers for itself
EVENTS = Exchange("events", "direct")  # of the choreographed style
