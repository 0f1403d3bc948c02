"""The inbox's claims on a real Postgres (rules 4, 10 and 11)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import pytest
import pytest_asyncio

from common.messages.envelope import Direction, Key, Outcome
from common.storage import inbox
from common.storage.admission import Duplicate, First, InboxView, Row
from common.storage.db import Database, Tx
from tests.integration.conftest import MakeSettings
from tests.integration.mail import saga
from tests.integration.waiting import Rows, eventually, lock_waits

ACTION = Key(saga(1), "charge_payment", Direction.FORWARD)
UNDO = ACTION._replace(direction=Direction.COMPENSATING)
DONE = Row(Outcome.DONE, '{"a": "reply"}')
TOMBSTONE = Row(Outcome.FENCED, '{"too": "late"}')

pytestmark = pytest.mark.usefixtures("nothing_left_claimed")


@pytest_asyncio.fixture
async def db(settings: MakeSettings) -> AsyncIterator[Database]:
    async with Database(settings("payment_svc")) as db:
        yield db


def tombstone(_: Key) -> Row:
    return TOMBSTONE


def no_tombstone(key: Key) -> Row:
    raise AssertionError(f"no tombstone is to be laid for {key}")


async def claim(tx: Tx, keys: Sequence[Key]) -> InboxView:
    claiming = inbox.Claim(tx, keys)
    await tx.sync()
    return claiming.view()


async def settle(db: Database, key: Key, row: Row = DONE) -> None:
    """One transaction that handles the command."""
    async with db.transaction(None) as tx:
        view = await claim(tx, [key])
        assert isinstance(view.admit(key, tombstone), First)
        view.record_reply(key, row)
        await inbox.keep(tx, view)


class RolledBack(Exception):
    pass


async def peek(db: Database, key: Key) -> First | Duplicate:
    """Return the verdict on a command, which is then not handled."""
    with suppress(RolledBack):
        async with db.transaction(None) as tx:
            verdict = (await claim(tx, [key])).admit(key, tombstone)
            raise RolledBack
    return verdict


async def test_a_first_command_acts_and_its_duplicate_does_not(
    db: Database,
) -> None:
    await settle(db, ACTION)
    assert await peek(db, ACTION) == Duplicate(DONE)
    assert await peek(db, ACTION) == Duplicate(DONE)


async def test_a_reply_that_nobody_wanted_is_a_duplicate_too(db: Database) -> None:
    await settle(db, ACTION, Row(Outcome.DONE, None))
    assert await peek(db, ACTION) == Duplicate(Row(Outcome.DONE, None))


async def test_rule_11_the_key_is_saga_step_and_direction(db: Database) -> None:
    await settle(db, ACTION)
    for other in (
        ACTION._replace(saga_id=saga(2)),
        ACTION._replace(step="reserve_stock"),
    ):
        assert await peek(db, other) == First()
    assert await peek(db, UNDO) == First(action=DONE)


async def test_an_undo_before_its_action_leaves_a_tombstone(db: Database) -> None:
    await settle(db, UNDO)
    assert await peek(db, ACTION) == Duplicate(TOMBSTONE)
    assert await peek(db, UNDO) == Duplicate(DONE)


async def test_rule_10_a_claim_waits_for_an_uncommitted_row(db: Database, admin: Rows) -> None:
    """A claim-and-read in a single statement saw nothing beside an uncommitted action."""
    async with db.transaction(None) as tx:
        view = await claim(tx, [ACTION])
        undo = asyncio.create_task(peek(db, UNDO))
        await eventually(lambda: lock_waits(admin, "payment_svc"))
        assert isinstance(view.admit(ACTION, no_tombstone), First)
        view.record_reply(ACTION, DONE)
        await inbox.keep(tx, view)
    assert await undo == First(action=DONE)


async def test_rule_10_a_claim_that_was_rolled_back_is_free_again(
    db: Database, admin: Rows
) -> None:
    async def act_and_fail() -> None:
        async with db.transaction(None) as tx:
            await claim(tx, [ACTION])
            waiting.set()
            await eventually(lambda: lock_waits(admin, "payment_svc"))
            raise RolledBack

    waiting = asyncio.Event()
    failing = asyncio.create_task(act_and_fail())
    await waiting.wait()
    assert await peek(db, ACTION) == First()
    with pytest.raises(RolledBack):
        await failing


async def test_a_claim_is_given_back_if_nothing_is_kept(db: Database, judge: Rows) -> None:
    async with db.transaction(None) as tx:
        view = await claim(tx, [ACTION, ACTION._replace(saga_id=saga(2))])
        view.record_reply(ACTION, DONE)
        await inbox.keep(tx, view)
    assert judge.execute("select saga_id from payment_svc.inbox").fetchall() == [(saga(1),)]
    assert await peek(db, ACTION._replace(saga_id=saga(2))) == First()


async def test_a_batch_is_claimed_once_however_often_it_names_a_key(
    db: Database, judge: Rows
) -> None:
    async with db.transaction(None) as tx:
        view = await claim(tx, [ACTION, UNDO, ACTION, UNDO])
        assert isinstance(view.admit(UNDO, tombstone), First)
        view.record_reply(UNDO, DONE)
        assert view.admit(ACTION, no_tombstone) == Duplicate(TOMBSTONE)
        await inbox.keep(tx, view)
    rows = judge.execute("select direction, outcome from payment_svc.inbox").fetchall()
    assert sorted(rows) == [("compensating", "done"), ("forward", "fenced")]


async def test_rows_of_others_are_never_rewritten(db: Database, judge: Rows) -> None:
    """Only what this transaction claimed is settled by it."""
    await settle(db, ACTION)
    before = judge.execute("select * from payment_svc.inbox").fetchall()
    await settle(db, UNDO)
    after = judge.execute("select * from payment_svc.inbox where direction = 'forward'").fetchall()
    assert after == before
    assert before[0][-1] < datetime.now(UTC)  # type: ignore[operator]
