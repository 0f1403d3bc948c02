"""Questions over a real broker: a deadline, and no trace left (common/transport/query.py)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from common.kit.settings import Settings
from common.messages.contracts import SagaQuery, SagaView
from common.messages.envelope import Answer, Query
from common.messages.errors import Infrastructure, NoAnswer, Poison
from common.messages.topology import ORCHESTRATOR_QUERIES
from common.process.process import Process
from common.transport.broker import Publication
from common.transport.query import Asker
from tests.integration.conftest import MakeSettings
from tests.integration.mail import Management, mail, saga
from tests.integration.waiting import FAST, eventually, reports, running

QUESTION = SagaQuery(saga_id=saga(1))
Respond = Callable[[Any], Any]


class Unheard(Query):
    """No process answers this."""


@asynccontextmanager
async def asking(settings: Settings) -> AsyncIterator[Asker]:
    process = Process(settings, "queries")
    asker = Asker(process.broker, settings, process.health, process.stop)
    process.add("queries", asker.run)
    async with running(process, "queries"):
        await eventually(lambda: reports(process, "queries") == "ok")
        yield asker


@asynccontextmanager
async def answering(settings: Settings, respond: Respond) -> AsyncIterator[Process]:
    process = Process(settings)
    process.answer(ORCHESTRATOR_QUERIES, {SagaQuery: respond})
    async with running(process, ORCHESTRATOR_QUERIES):
        await eventually(lambda: reports(process, ORCHESTRATOR_QUERIES) == "ok")
        yield process


async def found(query: SagaQuery) -> SagaView:
    return SagaView(saga_id=query.saga_id, found=True)


async def test_a_hundred_queries_at_once_get_their_own_answers(
    settings: MakeSettings,
) -> None:
    made = settings("orchestrator", **FAST, query_timeout_seconds=30)
    async with answering(made, found), asking(settings("order_svc", query_timeout_seconds=30)) as a:
        assert await a.ask(ORCHESTRATOR_QUERIES, QUESTION) == SagaView(saga_id=saga(1), found=True)
        questions = [SagaQuery(saga_id=saga(n)) for n in range(100)]
        answers = await asyncio.gather(*(a.ask(ORCHESTRATOR_QUERIES, q) for q in questions))
        assert answers == [SagaView(saga_id=q.saga_id, found=True) for q in questions]


async def test_nobody_answers_before_the_deadline(settings: MakeSettings) -> None:
    async with asking(settings("order_svc", query_timeout_seconds=0.2)) as asker:
        with pytest.raises(NoAnswer):
            await asker.ask(ORCHESTRATOR_QUERIES, QUESTION)
    async with asking(settings("order_svc", query_timeout_seconds=20)) as asker:
        with pytest.raises(NoAnswer, match="returned"):
            await asker.ask("nobody.listens.here", QUESTION)


async def test_no_broker_is_no_answer(settings: MakeSettings) -> None:
    made = settings("order_svc")
    process = Process(made)
    asker = Asker(process.broker, made, process.health, process.stop)
    with pytest.raises(NoAnswer, match="out of reach"):
        await asker.ask(ORCHESTRATOR_QUERIES, QUESTION)


async def test_an_answer_after_the_deadline_is_dropped(settings: MakeSettings) -> None:
    late = asyncio.Event()

    async def slow(query: SagaQuery) -> SagaView:
        if query == QUESTION:
            await late.wait()
        return await found(query)

    made = settings("orchestrator", **FAST, query_timeout_seconds=30)
    async with answering(made, slow), asking(settings("order_svc", query_timeout_seconds=0.5)) as a:
        with pytest.raises(NoAnswer):
            await a.ask(ORCHESTRATOR_QUERIES, QUESTION)
        late.set()
        other = SagaQuery(saga_id=saga(2))
        answer = await eventually(lambda: answered(a, other))
        assert answer == SagaView(saga_id=saga(2), found=True)
        assert a._open == {}


async def answered(asker: Asker, query: Query) -> Answer | None:
    try:
        return await asker.ask(ORCHESTRATOR_QUERIES, query)
    except NoAnswer:
        return None


async def test_a_question_past_its_deadline_is_not_answered_any_more(
    settings: MakeSettings,
) -> None:
    """Else a burst of questions would be worked off long after everybody has left."""
    asked: list[SagaQuery] = []

    async def respond(query: SagaQuery) -> SagaView:
        asked.append(query)
        return await found(query)

    made = settings("orchestrator", **FAST, query_timeout_seconds=0.3)
    async with mail(made) as post, asking(made) as asker:
        with pytest.raises(NoAnswer):
            await asker.ask(ORCHESTRATOR_QUERIES, QUESTION)
        await eventually(lambda: gone(post.ready(ORCHESTRATOR_QUERIES)))
        async with answering(made, respond):
            other = SagaQuery(saga_id=saga(2))
            await eventually(lambda: answered(asker, other))
        assert QUESTION not in asked


async def gone(count: Any) -> bool:
    return bool(await count == 0)


async def test_an_asker_comes_back_from_a_lost_connection(
    settings: MakeSettings, management: Management
) -> None:
    made = settings("orchestrator", **FAST)
    async with answering(made, found), asking(settings("order_svc", **FAST)) as asker:
        await eventually(lambda: len(management.connections()) == 2)
        management.close_connections()
        await eventually(lambda: answered(asker, QUESTION))


async def test_a_query_is_retried_during_an_outage_until_its_deadline(
    settings: MakeSettings,
) -> None:
    outage = [Infrastructure("no database")] * 3

    async def respond(query: SagaQuery) -> SagaView:
        if outage:
            raise outage.pop()
        return await found(query)

    made = settings("orchestrator", **FAST, query_timeout_seconds=20)
    async with answering(made, respond), asking(made) as asker:
        assert await asker.ask(ORCHESTRATOR_QUERIES, QUESTION)


@pytest.mark.parametrize("error", [Poison("unknown_version"), RuntimeError("a bug")], ids=repr)
async def test_a_question_that_cannot_be_answered_stops_nobody(
    settings: MakeSettings, error: Exception
) -> None:
    """For example about an instance whose definition only other replicas have."""

    async def respond(query: SagaQuery) -> SagaView:
        if query == QUESTION:
            raise error
        return await found(query)

    made = settings("orchestrator", **FAST, query_timeout_seconds=0.5)
    async with answering(made, respond), asking(made) as asker:
        with pytest.raises(NoAnswer):
            await asker.ask(ORCHESTRATOR_QUERIES, QUESTION)
        await eventually(lambda: answered(asker, SagaQuery(saga_id=saga(2))))


async def test_what_nobody_can_read_stops_nobody(settings: MakeSettings) -> None:
    made = settings("orchestrator", **FAST, query_timeout_seconds=0.5)

    async with mail(made) as post, answering(made, found), asking(made) as asker:
        await post.send_raw(ORCHESTRATOR_QUERIES, b"not json", b'{"type": "Nonsense", "body": {}}')
        with pytest.raises(NoAnswer):
            await asker.ask(ORCHESTRATOR_QUERIES, Unheard())
        await eventually(lambda: answered(asker, SagaQuery(saga_id=saga(2))))


async def test_an_answer_of_a_newer_version_does_not_stop_its_asker(
    settings: MakeSettings,
) -> None:
    """Old and new versions run side by side; the old one only has no answer."""
    made = settings("orchestrator", **FAST, query_timeout_seconds=0.5)
    replies = [b"not json", b'{"type": "SagaView", "version": 99, "body": {}}']
    process = Process(made)
    async with mail(made), asking(made) as asker, running(process, "relay"):
        channel = await process.broker.channel()
        consumer = await channel.consume(ORCHESTRATOR_QUERIES, 10)
        for reply in replies:
            asked = asyncio.create_task(answered(asker, QUESTION))
            question = await consumer.take()
            publication = Publication(
                question.reply_to or "",
                reply,
                correlation_id=question.correlation_id,
                expires_seconds=5,
            )
            await channel.publish([publication], 10)
            assert await asked is None
        channel.close()
        async with answering(made, found):
            await eventually(lambda: answered(asker, QUESTION))
