"""What is wrong with processes, queues and schemas, and what to do about it.

Owns: looking (at the broker and at every process that answers), and turning what was seen
into findings, each with its remedy: `diagnose()` is pure. Must not know: HTTP, SQL.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from common.messages.contracts import ProcessQuery, ProcessView
from common.messages.errors import BrokerGone
from common.messages.topology import (
    PROCESSES,
    Queue,
    commands_of,
    is_dead_letter_queue,
    queries_of,
    query_queue,
)
from common.transport.broker import Broker
from common.transport.query import ask_everybody
from orchestrator.engine.definition import Definition
from orchestrator.operator.queries import Standing
from orchestrator.runtime.census import COUNTED
from orchestrator.runtime.loading import participants_of, queues_of

NOT_FOUND, PRECONDITION_FAILED = 404, 406
OVERDUE_SECONDS = 60.0
"""A deadline is judged within a second; one that is long behind has nobody to judge it."""

ORCHESTRATOR = {
    "orchestrator": "python -m orchestrator",
    "operator": "python -m orchestrator operator",
}
# The services of this repository, by the participant that each is or stands before.
OURS: Mapping[str, Mapping[str, str]] = {
    "order": {"order": "python -m order_svc worker", "door": "python -m order_svc door"},
    "payment": {"payment": "python -m payment_svc"},
    "inventory": {"inventory": "python -m inventory_svc"},
}
ASKED = ("order", "inventory", "payment")  # by the operator's API: stock, accounts, the audit


@dataclass(frozen=True)
class Deployed:
    """What ought to be there, as follows from the definitions."""

    services: Mapping[str, str]
    """Each, and what starts a process of it."""
    queues: Sequence[Queue]
    definitions: Sequence[str]
    """As `order v2`."""


def deployed(definitions: Sequence[Definition]) -> Deployed:
    services, queues = dict(ORCHESTRATOR), list(queues_of(definitions))
    for participant in participants_of(definitions):
        theirs = f"whatever serves {commands_of(participant)}, as its own README says"
        services |= OURS.get(participant, {participant: theirs})
        if participant in ASKED:
            queues += query_queue(queries_of(participant))
    return Deployed(services, queues, [f"{d.name} v{d.version}" for d in definitions])


@dataclass(frozen=True)
class QueueSeen:
    """A queue as the broker has it; `difference` is the broker's word for what is not as we say."""

    name: str
    exists: bool
    difference: str | None = None
    ready: int = 0
    consumers: int = 0


@dataclass(frozen=True)
class Finding:
    """Something wrong. An error keeps sagas from going on, a warning wants a person's eye."""

    severity: Literal["error", "warning"]
    about: str
    what: str
    remedy: str


@dataclass(frozen=True)
class House:
    """Everything that was looked at. None: it could not be, and `problems` says why."""

    deployed: Deployed
    processes: Sequence[ProcessView] | None
    queues: Sequence[QueueSeen] | None
    standing: Standing | None
    problems: Sequence[Finding] = ()


async def look_at_broker(
    broker: Broker, deployed: Deployed, seconds: float
) -> tuple[Sequence[ProcessView], Sequence[QueueSeen]]:
    """Raises BrokerGone if it cannot be reached at all."""
    answers, queues = await asyncio.gather(
        ask_everybody(broker, PROCESSES, ProcessQuery(), seconds),
        look_at_queues(broker, deployed.queues),
    )
    processes = [answer for answer in answers if isinstance(answer, ProcessView)]
    return sorted(processes, key=lambda p: (p.service, p.process)), queues


async def look_at_queues(broker: Broker, queues: Sequence[Queue]) -> list[QueueSeen]:
    return [await _look_at(broker, queue) for queue in queues]


async def _look_at(broker: Broker, queue: Queue) -> QueueSeen:
    """By what the broker says when it is declared once more, as every process does at start.

    On a channel that may be lost: the broker closes it to refuse. What is missing is not made.
    """
    channel = await broker.channel()
    seen = QueueSeen(queue.name, exists=False)
    try:
        depth = await channel.depth(queue.name)
        seen = QueueSeen(queue.name, True, None, depth.ready, depth.consumers)
        await channel.declare([queue])
    except BrokerGone as error:
        if error.code == PRECONDITION_FAILED:
            return replace(seen, difference=_difference(str(error)))
        if error.code != NOT_FOUND:
            raise
    finally:
        channel.close()
    return seen


def _difference(refusal: str) -> str:
    """From `inequivalent arg 'x-overflow' for queue` to what it is and what it should be."""
    match = re.search("inequivalent.*'", refusal)
    return match[0] if match else refusal


def diagnose(house: House) -> list[Finding]:
    """What is wrong, errors first."""
    findings = list(house.problems)
    if house.processes is not None:
        findings += _processes(house.processes, house.deployed)
    if house.queues is not None:
        findings += _queues(house.queues, house.deployed)
    if house.standing is not None:
        findings += _sagas(house.standing)
        findings += _dead_letters(house.standing)
    return sorted(findings, key=lambda finding: finding.severity)


def _processes(processes: Sequence[ProcessView], deployed: Deployed) -> Iterator[Finding]:
    answered = {process.service for process in processes}
    for service, start in deployed.services.items():
        if service not in answered:
            yield Finding(
                "error",
                f"service {service}",
                "no process of it answers: none runs, or none reaches the broker",
                f"start one: {start}. If one runs, its log says what it waits for",
            )
    for process in processes:
        yield from _process(process)
    releases = {process.release for process in processes}
    if len(releases) > 1:
        yield Finding(
            "warning",
            "processes",
            f"several releases run side by side: {', '.join(sorted(releases))}",
            "finish the deploy: restart those of the older release",
        )


def _process(process: ProcessView) -> Iterator[Finding]:
    about = f"process {process.process}"
    for check in process.checks:
        if check.problem is not None:
            yield Finding(
                "error",
                about,
                f"{check.name}: {check.problem}",
                "it tries again by itself; if this stays, repair what it names, or restart it",
            )
    if process.applied is None:
        yield Finding(
            "error",
            about,
            "its database did not answer it",
            "see that Postgres runs and that SAGAPROOF_POSTGRES_DSN of this process names it",
        )
        return
    if missing := [name for name in process.shipped if name not in process.applied]:
        yield Finding(
            "error",
            about,
            f"its schema lacks {', '.join(missing)}",
            "restart it: it migrates its own schema when it starts",
        )
    if unknown := [name for name in process.applied if name not in process.shipped]:
        yield Finding(
            "warning",
            about,
            f"its schema has {', '.join(unknown)}, which this release does not know",
            "it is older than its schema: restart it from the newer release",
        )


def _queues(queues: Sequence[QueueSeen], deployed: Deployed) -> Iterator[Finding]:
    for queue in queues:
        about, start = f"queue {queue.name}", deployed.services[queue.name.partition(".")[0]]
        if not queue.exists:
            what = "it is missing"
            if is_dead_letter_queue(queue.name):
                what += ": dead letters have nowhere to go, and stay where they are"
            yield Finding("error", about, what, f"restart what declares it: {start}")
            continue
        if queue.difference is not None:
            yield Finding(
                "error",
                about,
                f"it was declared with other arguments: {queue.difference}",
                f"stop what consumes it, see that it is empty (it has {queue.ready} ready), then"
                f" `rabbitmqctl delete_queue {queue.name}` and start what declares it: {start}",
            )
            continue  # that nobody consumes it follows from it
        if queue.consumers == 0:
            if is_dead_letter_queue(queue.name):  # whosever they are
                start = deployed.services["orchestrator"]
            yield Finding(
                "error",
                about,
                f"nobody consumes it; {queue.ready} wait in it",
                f"start a process of its service: {start}",
            )


def _dead_letters(standing: Standing) -> Iterator[Finding]:
    if standing.dead_letters:
        yield Finding(
            "warning",
            "dead letters",
            f"{standing.dead_letters} are open: messages that could not be handled",
            "saga dead-letters list says why; once the cause is gone, redrive them; what can never"
            " be handled, discard with a reason",
        )


def _sagas(standing: Standing) -> Iterator[Finding]:
    if standing.stuck:
        yield Finding(
            "warning",
            "sagas",
            f"{standing.stuck} are stuck: past their SLA, or nobody can judge them",
            "saga stuck says why, and what to type",
        )
    if standing.undeployed:
        yield Finding(
            "error",
            "sagas",
            f"some began under a version that is not deployed: {', '.join(standing.undeployed)}",
            "deploy a release that has it: they go on by themselves; saga stuck lists them",
        )
    if standing.kept:
        kept = (
            f"{'at least ' * (count == COUNTED)}{count} of {definition}"
            for definition, count in standing.kept.items()
        )
        yield Finding(
            "warning",
            "sagas",
            "some have ended under a version that is not deployed, and are never archived:"
            f" {', '.join(kept)}",
            "deploy a release that has these versions, and keep them in it until it has archived"
            " all of theirs",
        )
    if standing.unjudgeable:
        yield Finding(
            "error",
            "sagas",
            f"{standing.unjudgeable} cannot be judged by this release",
            "saga stuck says why; deploy a release that can: they go on by themselves",
        )
    if standing.overdue:
        yield Finding(
            "error",
            "sagas",
            f"the deadlines of {standing.overdue} passed over {OVERDUE_SECONDS:.0f} s ago"
            " and nobody judged them",
            "see that an orchestrator is ready: it judges none before its outbox is flushed"
            " and its queue was seen empty",
        )
