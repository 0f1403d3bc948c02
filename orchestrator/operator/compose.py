"""The operator's process: whom its API asks, put together.

Owns: reading the orchestrator's own schema, asking the other services by query over the
broker, looking at the house, and handing on what people decide. Must not know: HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar
from uuid import UUID

from common.messages.contracts import AccountsPage, AccountsQuery, StockPage, StockQuery
from common.messages.envelope import Answer, Query
from common.messages.errors import Infrastructure
from common.messages.topology import ORCHESTRATOR_REPLIES, queries_of
from common.process.process import Process
from common.storage.db import Database
from common.transport.query import Asker
from orchestrator.dead_letters import store
from orchestrator.dead_letters.redrive import Redriver
from orchestrator.dead_letters.store import (
    DeadLetterFilter,
    FullDeadLetter,
    Group,
    StoredDeadLetter,
)
from orchestrator.engine.definition import Definition
from orchestrator.engine.instance import Instance
from orchestrator.operator import doctor, queries, watch_list
from orchestrator.operator.api import Desk, Sources
from orchestrator.operator.audit import ENDS
from orchestrator.operator.auditor import Auditor
from orchestrator.operator.dead_letters import LetterSources
from orchestrator.operator.doctor import Deployed, Finding
from orchestrator.operator.interventions import Hands
from orchestrator.operator.queries import Logged, Parked, Standing, Stuck, StuckWanted, Wanted
from orchestrator.operator.watch_list import Watched
from orchestrator.runtime import actions, census
from orchestrator.runtime.actions import ActionFilter, RecordedAction
from orchestrator.runtime.census import Seen
from orchestrator.runtime.loading import participants_of
from orchestrator.runtime.service import Service

A = TypeVar("A", bound=Answer)


def sources(
    process: Process, asker: Asker, definitions: Sequence[Definition], service: Service
) -> Sources:
    """`service` decides what people ask for, by the front door that replies come by, too."""
    db = process.db
    deployed = doctor.deployed(definitions)

    async def find(saga_id: UUID) -> Seen | None:
        async with db.reading() as tx:
            return await census.find(tx, saga_id)

    async def ids_between(low: UUID, high: UUID, limit: int) -> list[UUID]:
        async with db.reading() as tx:
            return await queries.ids_between(tx, low, high, limit)

    async def page(wanted: Wanted, after: Seen | None, limit: int) -> list[Seen]:
        async with db.reading() as tx:
            return await queries.page(tx, wanted, after, limit)

    async def timeline(saga_id: UUID, after: int, limit: int) -> list[Logged]:
        async with db.reading() as tx:
            return await queries.timeline(tx, saga_id, after, limit)

    async def acts(wanted: ActionFilter, before: int | None, limit: int) -> list[RecordedAction]:
        async with db.reading() as tx:
            return await actions.page(tx, wanted, before, limit)

    async def ask(service: str, query: Query, expected: type[A], /) -> A:
        answer = await asker.ask(queries_of(service), query)
        if not isinstance(answer, expected):
            raise TypeError(f"{service} answered {type(answer).__name__} to {query}")
        return answer

    async def stock(query: StockQuery) -> StockPage:
        return await ask("inventory", query, StockPage)

    async def accounts(query: AccountsQuery) -> AccountsPage:
        return await ask("payment", query, AccountsPage)

    async def house() -> doctor.House:
        return await look_at_house(process, deployed)

    audited = Auditor(db, ask, participants_of(d for d in definitions if d.name in ENDS)).page
    desk, hands = _desk(process, service), _hands(process, service)
    letters = _letters(db, Redriver(db, service))
    return Sources(
        find,
        ids_between,
        page,
        timeline,
        acts,
        stock,
        accounts,
        house,
        audited,
        desk,
        hands,
        letters,
    )


def _hands(process: Process, service: Service) -> Hands:
    async def stuck(wanted: StuckWanted, after: Seen | None, limit: int) -> list[Stuck]:
        async with process.db.reading() as tx:
            return await queries.stuck(tx, wanted, after, limit)

    async def unread() -> str | None:
        channel = await process.broker.channel()
        try:
            waiting = (await channel.depth(ORCHESTRATOR_REPLIES)).ready
        finally:
            channel.close()
        if waiting:
            return f"{waiting} replies wait to be read"
        return None if process.relay.flushed else "commands wait to be sent"

    return Hands(
        stuck, service.retry, service.compensate, service.resolve, service.reconcile, unread
    )


def _desk(process: Process, service: Service) -> Desk:
    db, name = process.db, process.settings.process

    async def waiting(customer: str | None, after: Seen | None, limit: int) -> list[Parked]:
        async with db.reading() as tx:
            return await queries.waiting(tx, customer, after, limit)

    async def decide(
        saga_id: UUID, approved: bool, actor: str, reason: str, gate: str | None
    ) -> Instance:
        return await service.decide_gate(
            saga_id, approved=approved, actor=actor, reason=reason, gate=gate
        )

    async def decided(saga_id: UUID) -> Logged | None:
        async with db.reading() as tx:
            return await queries.decided(tx, saga_id)

    async def watched(after: str | None, limit: int) -> list[Watched]:
        async with db.reading() as tx:
            return await watch_list.page(tx, after, limit)

    async def watch(customer: str, actor: str, reason: str) -> Watched:
        async with db.transaction(None) as tx:
            return await watch_list.add(tx, customer, actor, reason, name)

    async def unwatch(customer: str, actor: str, reason: str) -> bool:
        async with db.transaction(None) as tx:
            return await watch_list.remove(tx, customer, actor, reason, name)

    return Desk(waiting, decide, decided, watched, watch, unwatch)


def _letters(db: Database, desk: Redriver) -> LetterSources:
    async def groups(wanted: DeadLetterFilter, limit: int) -> list[Group]:
        async with db.reading() as tx:
            return await store.groups(tx, wanted, limit)

    async def page(
        wanted: DeadLetterFilter, after: UUID | None, limit: int
    ) -> list[StoredDeadLetter]:
        async with db.reading() as tx:
            return await store.page(tx, wanted, after, limit)

    async def find(letter_id: UUID) -> FullDeadLetter | None:
        async with db.reading() as tx:
            return await store.find(tx, letter_id)

    async def ids_between(low: UUID, high: UUID, limit: int) -> list[UUID]:
        async with db.reading() as tx:
            return await store.ids_between(tx, low, high, limit)

    return LetterSources(groups, page, find, ids_between, desk.settle)


async def look_at_house(process: Process, deployed: Deployed) -> doctor.House:
    """Whatever can be seen; what cannot is a finding of its own."""
    problems: list[Finding] = []
    processes = queues = None
    standing: Standing | None = None
    try:
        seconds = process.settings.query_timeout_seconds
        processes, queues = await doctor.look_at_broker(process.broker, deployed, seconds)
    except Infrastructure as error:
        remedy = "see that RabbitMQ runs and that SAGAPROOF_AMQP_URL names it"
        problems.append(Finding("error", "broker", f"out of reach: {error}", remedy))
    try:
        async with process.db.reading() as tx:
            standing = await queries.standing(tx, doctor.OVERDUE_SECONDS, deployed.definitions)
    except Infrastructure as error:
        remedy = "see that Postgres runs and that SAGAPROOF_POSTGRES_DSN names it"
        problems.append(Finding("error", "database", f"out of reach: {error}", remedy))
    return doctor.House(deployed, processes, queues, standing, problems)
