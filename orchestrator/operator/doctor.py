"""Find what is wrong with processes, queues and schemas, and what to do about it.

`Doctor` looks, at the broker, the database and every process that answers; `diagnose()` is pure
and turns what was seen into findings, each with its remedy.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from common.messages.contracts import ProcessQuery, ProcessView
from common.messages.errors import BrokerGone, Infrastructure
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
from orchestrator.operator.queries import Queries, SagaStatus
from orchestrator.operator.stuck import OVERDUE_SECONDS
from orchestrator.runtime.census import COUNTED
from orchestrator.runtime.loading import participants_of, queues_of

NOT_FOUND, PRECONDITION_FAILED = 404, 406

ORCHESTRATOR = {
    "orchestrator": "python -m orchestrator",
    "operator": "python -m orchestrator operator",
}
# The services of this repository by the participant that each is or stands in front of.
OURS: Mapping[str, Mapping[str, str]] = {
    "order": {"order": "python -m order_svc worker", "door": "python -m order_svc door"},
    "payment": {"payment": "python -m payment_svc"},
    "inventory": {"inventory": "python -m inventory_svc"},
}
ASKED = ("order", "inventory", "payment")  # by the operator's API: stock, accounts, the audit


@dataclass(frozen=True)
class Expected:
    """The services, queues and definitions that should exist, as follows from the definitions."""

    services: Mapping[str, str]  # each with the command that starts a process of it
    queues: Sequence[Queue]
    definitions: Sequence[str]  # as `order v2`


def expected(definitions: Sequence[Definition]) -> Expected:
    """Derive what should exist from the deployed definitions."""
    services, queues = dict(ORCHESTRATOR), list(queues_of(definitions))
    for participant in participants_of(definitions):
        other = f"whatever serves {commands_of(participant)}, as its own README says"
        services |= OURS.get(participant, {participant: other})
        if participant in ASKED:
            queues += query_queue(queries_of(participant))
    return Expected(services, queues, [f"{d.name} v{d.version}" for d in definitions])


@dataclass(frozen=True)
class QueueSeen:
    """A queue as the broker has it; `difference` is the broker's text on arguments that differ."""

    name: str
    exists: bool
    difference: str | None = None
    ready: int = 0
    consumers: int = 0


@dataclass(frozen=True)
class Finding:
    """Something wrong. An error keeps sagas from going on; a warning needs a person's attention."""

    severity: Literal["error", "warning"]
    about: str
    what: str
    remedy: str


@dataclass(frozen=True)
class SystemStatus:
    """Everything the doctor saw. None: it could not be read, and `problems` says why."""

    expected: Expected
    processes: Sequence[ProcessView] | None
    queues: Sequence[QueueSeen] | None
    sagas: SagaStatus | None
    problems: Sequence[Finding] = ()


class Doctor:
    """Looks at the whole system. `seconds` is how long processes have to answer."""

    def __init__(
        self,
        broker: Broker,
        queries: Queries,
        definitions: Sequence[Definition],
        seconds: float,
    ) -> None:
        self._broker = broker
        self._queries = queries
        self._expected = expected(definitions)
        self._seconds = seconds

    async def look(self) -> SystemStatus:
        """Read whatever can be read; what cannot be reached is a finding."""
        problems: list[Finding] = []
        processes = queues = sagas = None
        try:
            processes, queues = await asyncio.gather(self._processes(), self._queues())
        except Infrastructure as error:
            remedy = "see that RabbitMQ runs and that SAGAPROOF_AMQP_URL names it"
            problems.append(Finding("error", "broker", f"out of reach: {error}", remedy))
        try:
            sagas = await self._queries.status(OVERDUE_SECONDS, self._expected.definitions)
        except Infrastructure as error:
            remedy = "see that Postgres runs and that SAGAPROOF_POSTGRES_DSN names it"
            problems.append(Finding("error", "database", f"out of reach: {error}", remedy))
        return SystemStatus(self._expected, processes, queues, sagas, problems)

    async def _processes(self) -> list[ProcessView]:
        answers = await ask_everybody(self._broker, PROCESSES, ProcessQuery(), self._seconds)
        processes = [answer for answer in answers if isinstance(answer, ProcessView)]
        return sorted(processes, key=lambda p: (p.service, p.process))

    async def _queues(self) -> list[QueueSeen]:
        return [await self._queue(queue) for queue in self._expected.queues]

    async def _queue(self, queue: Queue) -> QueueSeen:
        """Declare a queue that exists again, as every process does at start, and see the answer.

        The broker closes the channel to refuse, hence one for each queue. A missing queue is not
        made.
        """
        channel = await self._broker.channel()
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
    """Cut the broker's text to what differs: `inequivalent arg ... current is 'drop-head'`."""
    match = re.search("inequivalent.*'", refusal)
    return match[0] if match else refusal


def diagnose(status: SystemStatus) -> list[Finding]:
    """Return what is wrong, errors first."""
    findings = list(status.problems)
    if status.processes is not None:
        findings += _processes(status.processes, status.expected)
    if status.queues is not None:
        findings += _queues(status.queues, status.expected)
    if status.sagas is not None:
        findings += _sagas(status.sagas)
        findings += _dead_letters(status.sagas)
    return sorted(findings, key=lambda finding: finding.severity)


def _processes(processes: Sequence[ProcessView], expected: Expected) -> Iterator[Finding]:
    answered = {process.service for process in processes}
    for service, start in expected.services.items():
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
                "the process retries by itself; if this stays, repair what it names, or restart it",
            )
    if process.applied is None:
        yield Finding(
            "error",
            about,
            "its database did not answer",
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


def _queues(queues: Sequence[QueueSeen], expected: Expected) -> Iterator[Finding]:
    for queue in queues:
        about, start = f"queue {queue.name}", expected.services[queue.name.partition(".")[0]]
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
            continue  # then it has no consumer either
        if queue.consumers == 0:
            if is_dead_letter_queue(queue.name):  # of any service
                start = expected.services["orchestrator"]
            yield Finding(
                "error",
                about,
                f"it has no consumer; {queue.ready} messages wait in it",
                f"start a process of its service: {start}",
            )


def _dead_letters(sagas: SagaStatus) -> Iterator[Finding]:
    if sagas.dead_letters:
        yield Finding(
            "warning",
            "dead letters",
            f"{sagas.dead_letters} are open: messages that could not be handled",
            "saga dead-letters list shows why; once the cause is gone, redrive them, and discard"
            " those that can never be handled, with a reason",
        )


def _sagas(sagas: SagaStatus) -> Iterator[Finding]:
    if sagas.stuck:
        yield Finding(
            "warning",
            "sagas",
            f"{sagas.stuck} are stuck: past their SLA, or no orchestrator can decide about them",
            "saga stuck shows why, and what to type",
        )
    if sagas.undeployed:
        yield Finding(
            "error",
            "sagas",
            f"some began under a version that is not deployed: {', '.join(sagas.undeployed)}",
            "deploy a release that has it: they resume by themselves; saga stuck lists them",
        )
    if sagas.never_archived:
        kept = (
            f"{'at least ' * (count == COUNTED)}{count} of {definition}"
            for definition, count in sagas.never_archived.items()
        )
        yield Finding(
            "warning",
            "sagas",
            "some have ended under a version that is not deployed, and are never archived:"
            f" {', '.join(kept)}",
            "deploy a release that has these versions, and keep them in it until it has archived"
            " all of theirs",
        )
    if sagas.unjudgeable:
        yield Finding(
            "error",
            "sagas",
            f"{sagas.unjudgeable} cannot be decided by this release",
            "saga stuck shows why; deploy a release that can: they resume by themselves",
        )
    if sagas.overdue:
        yield Finding(
            "error",
            "sagas",
            f"the deadlines of {sagas.overdue} passed over {OVERDUE_SECONDS:.0f} s ago"
            " and no orchestrator has checked them",
            "see that an orchestrator is ready: it checks none before its outbox is flushed"
            " and its queue was seen empty",
        )
