"""The audit log: written in the transaction of the intervention, never changed, and read."""

from __future__ import annotations

import asyncio
from typing import LiteralString

import pytest

from common.messages.errors import ConstraintViolated, IllegalTransition, Infrastructure
from common.messages.shop.inventory import StockDispatched
from common.storage.db import Database
from orchestrator.runtime import actions
from orchestrator.runtime.actions import ActionFilter, OperatorAction
from tests.integration.mail import saga
from tests.integration.orchestrating import (
    ROLE,
    TO_THE_PIVOT,
    commands,
    give,
    give_each,
    logged,
    reply,
    service,
    start,
    state,
)
from tests.integration.waiting import Rows, eventually, lock_waits

CALLED = OperatorAction("ada", "compensate", "customer called", saga(1))


async def written(db: Database, wanted: ActionFilter | None = None) -> list[OperatorAction]:
    async with db.transaction(None) as tx:
        found = await actions.page(tx, wanted or ActionFilter(), None, 100)
    assert all(recorded.process == "orchestrator-test" for recorded in found)
    return [recorded.action for recorded in found]


async def test_an_action_is_recorded_with_what_it_does(db: Database, judge: Rows) -> None:
    await give(service(db), start(1))
    instance = await service(db).compensate(saga(1), "ada", "customer called")
    assert instance.compensate_asked
    assert await written(db) == [CALLED]
    assert state(judge) == ("COMPENSATING", "customer called")
    assert logged(judge)[2:4] == ["compensate_asked", "turned"]


async def test_a_refused_action_is_recorded_and_does_nothing_else(
    db: Database, judge: Rows
) -> None:
    await give_each(service(db), *TO_THE_PIVOT, reply(1, "dispatch_stock", StockDispatched()))
    before, sent = state(judge), commands(judge)
    with pytest.raises(IllegalTransition, match="pivot is passed"):
        await service(db).compensate(saga(1), "ada", "customer called")
    (tried,) = await written(db)
    why = tried.detail or ""
    assert why.startswith("the pivot is passed: from here the saga only goes forward")
    assert tried == CALLED.refused(why)
    assert (state(judge), commands(judge)) == (before, sent)
    details = judge.execute(
        "select detail from orchestrator.saga_log where entry = 'action_refused'"
    ).fetchall()
    assert details == [(f"ada: compensate (customer called): {why}",)]


async def test_gate_decisions_are_recorded_the_late_ones_too(
    db: Database,
) -> None:
    await give(service(db), start(1))
    with pytest.raises(IllegalTransition):
        await service(db).decide_gate(saga(1), approved=True, actor="ada", reason="known to us")
    (tried,) = await written(db)
    assert tried == OperatorAction("ada", "approve", "known to us", saga(1)).refused(
        "it waits at no gate"
    )


async def test_an_action_and_its_effect_commit_together(
    db: Database, judge: Rows, admin: Rows
) -> None:
    await give(service(db), start(1))
    with admin.transaction():  # the log cannot be written for now
        admin.execute("lock table orchestrator.operator_action in share mode")
        asked = asyncio.create_task(service(db).compensate(saga(1), "ada", "customer called"))
        await eventually(lambda: lock_waits(admin, ROLE) == 1)
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where wait_event_type = 'Lock' and usename = 'orchestrator'"
        )
        await eventually(asked.done)
    with pytest.raises(Infrastructure):
        await asked
    assert state(judge) == ("RUNNING", None)
    assert (await written(db), logged(judge)) == ([], ["started", "sent"])


@pytest.mark.parametrize(
    "rewrite",
    [
        "update operator_action set reason = 'another'",
        "delete from operator_action",
        "truncate operator_action",
        "delete from operator_action where false",
    ],
)
async def test_the_audit_log_only_grows_even_for_its_owner(
    db: Database, rewrite: LiteralString
) -> None:
    async with db.transaction(None) as tx:
        actions.record(tx, [CALLED], "orchestrator-test")
    with pytest.raises(ConstraintViolated) as violated:
        async with db.transaction(None) as tx:
            tx.queue_write(rewrite)
    assert violated.value.constraint == "operator_action_only_grows"
    assert await written(db) == [CALLED]


async def test_actions_are_found_newest_first_and_in_pages(db: Database) -> None:
    done = [
        CALLED,
        OperatorAction("bob", "retry", "payment is back", saga(2)),
        OperatorAction(
            "bob", "redrive", "deployed the fix", about="letter 7", detail="12 redriven"
        ),
        CALLED.refused("too late"),
    ]
    async with db.transaction(None) as tx:
        actions.record(tx, done, "orchestrator-test")
    assert await written(db) == done[::-1]
    assert await written(db, ActionFilter(saga_id=saga(1))) == [done[3], done[0]]
    assert await written(db, ActionFilter(actor="bob", action="retry")) == [done[1]]
    assert await written(db, ActionFilter(outcome="refused")) == [done[3]]
    async with db.transaction(None) as tx:
        first = await actions.page(tx, ActionFilter(), None, 3)
        rest = await actions.page(tx, ActionFilter(), first[-1].id, 3)
    assert [recorded.action for recorded in (*first, *rest)] == done[::-1]
