"""Transactions and their errors (rules 12 and 13), migrations, and roles kept apart."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import LiteralString
from uuid import UUID

import psycopg
import pytest
from pydantic import SecretStr

from chaos.runtime.bootstrap import SERVICES
from common.kit import failpoints
from common.kit.failpoints import ARMINGS, Action, Arming, Commit, Point, Tripped
from common.kit.settings import Settings
from common.messages.envelope import Direction, Key
from common.messages.errors import Infrastructure, SagaproofError
from common.storage import outbox
from common.storage.db import Database, OutboxRow, Tx, connect_options, migrate, written_tables
from common.storage.outbox import Outgoing
from tests.integration.conftest import MakeSettings
from tests.integration.waiting import Rows, end_sessions, eventually, lock_waits

ROLE = "payment_svc"
Act = Callable[[Tx], Awaitable[object]]
DELETE_THING: LiteralString = "delete from thing where id = %s"
TABLE = "create table thing (id int primary key, note text)"


async def make_things(db: Database) -> None:
    async with db.transaction(None) as tx:
        await tx.fetch(TABLE)
        tx.queue_write("insert into thing (id) values (1), (2)")


# --- around the commit ---------------------------------------------------------------------


KEY = Key(UUID(int=1), "charge_payment", Direction.FORWARD)


async def send(db: Database, commit: Commit, last: LiteralString) -> None:
    async with db.transaction(commit) as tx:
        tx.keys = iter([KEY])
        await outbox.append(tx, [Outgoing("c", "{}")])
        await tx.fetch(last)


async def test_outbox_rows_are_handed_on_after_the_commit(settings: MakeSettings) -> None:
    handed: list[OutboxRow] = []
    async with Database(settings(ROLE)) as db:
        db.on_committed = handed.extend
        async with db.transaction(Commit.BATCH) as tx:
            await outbox.append(tx, [Outgoing("b", "{}"), Outgoing("a", "[]")])
            await tx.sync()
            assert handed == []
        assert [(row.destination, row.envelope) for row in handed] == [("b", "{}"), ("a", "[]")]
        with pytest.raises(psycopg.errors.DivisionByZero):
            await send(db, Commit.BATCH, "select 1 / 0")
        assert len(handed) == 2


@pytest.mark.parametrize("commit", Commit, ids=str)
async def test_failpoints_stand_before_and_after_a_commit(
    settings: MakeSettings, tmp_path: Path, commit: Commit
) -> None:
    handed: list[OutboxRow] = []

    async def rows_after_tripping(point: Point) -> int:
        arming = Arming(point, KEY.step, action=Action.RAISE)
        (tmp_path / "payment").write_bytes(ARMINGS.dump_json([arming]))
        with pytest.raises(Tripped):
            await send(db, commit, "select 1")
        async with db.reading() as tx:
            [(rows,)] = await tx.fetch("select count(*) from outbox")
        return int(rows)

    async with Database(settings(ROLE)) as db:
        db.on_committed = handed.extend
        failpoints.watch(tmp_path, "payment")
        try:
            assert await rows_after_tripping(commit.before) == 0
            assert await rows_after_tripping(commit.after) == 1
        finally:
            failpoints.watch(None, "payment")
    assert handed == []  # a process that dies there hands nothing on


# --- rule 13: infrastructure is held, never dead-lettered ----------------------------------


async def is_well(db: Database) -> bool:
    try:
        async with db.transaction(None) as tx:
            return await tx.fetch("select 1") == [(1,)]
    except Infrastructure:
        return False


async def expect_infrastructure(settings: Settings, sqlstate: str, act: Act) -> None:
    async with Database(settings) as db:
        await make_things(db)
        with pytest.raises(Infrastructure, match=sqlstate):
            async with db.transaction(None) as tx:
                await act(tx)
        await eventually(lambda: is_well(db))


async def test_reading_can_neither_write_nor_lock_a_row(settings: MakeSettings) -> None:
    async with Database(settings(ROLE)) as db:
        await make_things(db)
        for defect in ("update thing set note = 'x'", "select from thing for update"):
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                async with db.reading() as tx:
                    await tx.fetch(defect)
        async with db.reading() as tx:
            assert await tx.fetch("select count(*) from thing where note is null") == [(2,)]


async def test_rule_13_a_statement_timeout_is_infrastructure(settings: MakeSettings) -> None:
    async def act(tx: Tx) -> None:
        await tx.fetch("select pg_sleep(5)")

    await expect_infrastructure(settings(ROLE, statement_timeout_seconds=0.1), "57014", act)


async def test_rule_13_a_lock_timeout_is_infrastructure(
    settings: MakeSettings, admin: Rows
) -> None:
    async def act(tx: Tx) -> None:
        with admin.transaction():
            admin.execute("select from payment_svc.thing where id = 1 for update")
            await tx.fetch("select from thing where id = 1 for update")

    await expect_infrastructure(settings(ROLE, lock_timeout_seconds=0.1), "55P03", act)


async def test_rule_13_a_deadlock_is_infrastructure(settings: MakeSettings, admin: Rows) -> None:
    async with Database(settings(ROLE, lock_timeout_seconds=10)) as db:
        await make_things(db)

        async def lock(first: int, second: int) -> None:
            async with db.transaction(None) as tx:
                await tx.fetch("select from thing where id = %s for update", (first,))
                await both.wait()
                await tx.fetch("select from thing where id = %s for update", (second,))

        both = asyncio.Barrier(2)
        ends = await asyncio.gather(lock(1, 2), lock(2, 1), return_exceptions=True)
    (loser,) = [end for end in ends if end is not None]
    assert isinstance(loser, Infrastructure)
    assert "40P01" in str(loser)


async def test_rule_12_a_process_stopped_in_a_transaction_loses_locks(
    settings: MakeSettings, admin: Rows
) -> None:
    """Once resumed, it gets an infrastructure error (25P03)."""

    async def act(tx: Tx) -> None:
        await tx.fetch("select from thing where id = 1 for update")
        sessions = "select from pg_stat_activity where usename = %s and state like 'idle in %%'"
        await eventually(lambda: admin.execute(sessions, (ROLE,)).rowcount == 0)
        admin.execute("select from payment_svc.thing where id = 1 for update nowait")
        await tx.fetch("select 1")

    await expect_infrastructure(settings(ROLE, idle_in_transaction_seconds=0.1), "postgres", act)


async def test_rule_13_a_plan_older_than_a_migration_is_infrastructure(
    settings: MakeSettings, admin: Rows
) -> None:
    async with Database(settings(ROLE, pool_size=2)) as db:
        await make_things(db)
        async with db.transaction(None) as one, db.transaction(None) as other:
            for _ in range(10):  # on every connection, for the driver prepares what it sees often
                await one.fetch("select * from thing")
                await other.fetch("select * from thing")
        admin.execute("alter table payment_svc.thing add column more int")
        with pytest.raises(Infrastructure, match="0A000"):
            async with db.transaction(None) as tx:
                await tx.fetch("select * from thing")


async def test_rule_13_a_killed_backend_is_infrastructure(
    settings: MakeSettings, admin: Rows
) -> None:
    async def act(tx: Tx) -> None:
        await tx.fetch("update thing set note = 'x' returning id")
        assert end_sessions(admin, ROLE)

    await expect_infrastructure(settings(ROLE), "postgres", act)
    assert admin.execute("select from payment_svc.thing where note = 'x'").rowcount == 0


async def test_rule_13_a_server_out_of_reach_is_infrastructure(
    settings: MakeSettings, unused_tcp_port: int
) -> None:
    nowhere = SecretStr(f"postgresql://u:pw@127.0.0.1:{unused_tcp_port}/x")
    made = settings(ROLE, postgres_dsn=nowhere, connect_timeout_seconds=0.3)
    async with Database(made) as db:
        with pytest.raises(Infrastructure, match="connection"):
            async with db.transaction(None):
                raise AssertionError("there is no transaction")
    with pytest.raises(Infrastructure, match="connection"):
        migrate(made)


async def test_rule_12_a_waiting_process_detects_a_server_cut_off(
    settings: MakeSettings,
) -> None:
    """Keepalive probes make unacknowledged bytes.

    The scenario off-the-network cuts a real network, so that they end the connection.
    """
    options = connect_options(settings(ROLE, tcp_user_timeout_seconds=4))
    dsn = settings(ROLE).postgres_dsn.get_secret_value()
    async with await psycopg.AsyncConnection.connect(dsn, **options) as connection:
        with socket.socket(fileno=os.dup(connection.fileno())) as line:
            assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 2
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 1
            assert line.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 4000


async def test_rule_13_an_exhausted_pool_is_infrastructure(settings: MakeSettings) -> None:
    async with Database(settings(ROLE, pool_size=1, connect_timeout_seconds=0.5)) as db:
        await eventually(lambda: is_well(db))
        async with db.transaction(None):
            with pytest.raises(Infrastructure, match="connection"):
                async with db.transaction(None):
                    raise AssertionError("there is no connection left")


async def test_a_defective_statement_is_not_infrastructure(settings: MakeSettings) -> None:
    async with Database(settings(ROLE)) as db:
        with pytest.raises(psycopg.errors.UndefinedTable):
            async with db.transaction(None) as tx:
                await tx.fetch("select from nowhere")
        with pytest.raises(psycopg.errors.UndefinedTable):
            async with db.transaction(None) as tx:
                tx.queue_write("delete from nowhere")  # heard of at the commit


async def test_a_statement_that_cannot_even_be_sent_is_ours_too(settings: MakeSettings) -> None:
    """Held like an outage, it would be held for ever."""
    async with Database(settings(ROLE)) as db:
        with pytest.raises(psycopg.ProgrammingError):
            async with db.transaction(None) as tx:
                await tx.fetch("select %s", ())
        with pytest.raises(psycopg.DataError):
            async with db.transaction(None) as tx:
                await tx.fetch("select %s", ("\0",))


# --- the one transaction helper ------------------------------------------------------------


async def test_a_transaction_is_read_committed_and_all_or_nothing(
    settings: MakeSettings, admin: Rows
) -> None:
    class Change(Exception):
        pass

    async with Database(settings(ROLE)) as db:
        await make_things(db)
        async with db.transaction(None) as tx:
            isolation = await tx.fetch("show transaction_isolation")
            assert isolation == [("read committed",)]

        async def insert_and_fail() -> None:
            async with db.transaction(None) as tx:
                tx.queue_write("insert into thing (id) values (3)")
                await tx.fetch("select 1")
                raise Change

        with pytest.raises(Change):
            await insert_and_fail()
        async with db.transaction(None) as tx:
            assert await tx.fetch("select count(*) from thing") == [(2,)]


async def test_rule_12_no_lock_is_taken_before_the_sync(
    settings: MakeSettings, admin: Rows
) -> None:
    """Queued writes leave with the commit: a process stopped before it holds no lock."""
    async with Database(settings(ROLE)) as db:
        await make_things(db)
        async with db.transaction(None) as tx:
            await tx.fetch("select 1")
            tx.queue_write("update thing set note = 'mine' where id = 1")
            admin.execute("update payment_svc.thing set note = 'theirs' where id = 1")
        async with db.transaction(None) as tx:
            assert await tx.fetch("select note from thing where id = 1") == [("mine",)]


async def test_each_statement_of_a_round_trip_has_its_own_snapshot(
    settings: MakeSettings, admin: Rows
) -> None:
    """The second statement sees what the first waited for; rule 10 depends on it."""
    async with Database(settings(ROLE)) as db:
        await make_things(db)

        async def wait_and_read() -> object:
            async with db.transaction(None) as tx:
                tx.queue_query(
                    "insert into thing (id) values (3) on conflict do nothing returning id"
                )
                read = tx.queue_query("select note from thing where id = 3")
                await tx.sync()
                return read.rows

        with admin.transaction():
            admin.execute("insert into payment_svc.thing (id, note) values (3, 'theirs')")
            reading = asyncio.create_task(wait_and_read())
            await eventually(lambda: lock_waits(admin, ROLE))
        assert await reading == [("theirs",)]


async def test_the_writes_of_a_transaction_leave_as_one_statement(
    settings: MakeSettings,
) -> None:
    async with Database(settings(ROLE)) as db:
        await make_things(db)
        async with db.transaction(None) as tx:
            tx.queue_write("insert into thing select * from unnest(%b::int[])", ([3, 4],))
            other_rows = "1 is changed, 2 is deleted, 3 and 4 are new"
            change, delete = "update thing set note = 'new' where id = %s", DELETE_THING
            tx.queue_write(change, (1,), other_rows=other_rows)
            tx.queue_write(delete, (2,), other_rows=other_rows)
        async with db.transaction(None) as tx:
            rows = await tx.fetch("select id, note from thing order by id")
    assert rows == [(1, "new"), (3, None), (4, None)]


async def test_a_second_write_to_a_table_is_refused_before_a_sync(settings: MakeSettings) -> None:
    async with Database(settings(ROLE)) as db:
        await make_things(db)
        async with db.transaction(None) as tx:
            tx.queue_write("insert into thing (id) values (3)")
            with pytest.raises(ValueError, match="two writes to thing"):
                tx.queue_write(DELETE_THING, (3,))
            with pytest.raises(ValueError, match="two writes to thing"):
                tx.queue_returning(DELETE_THING + " returning id", (3,))
            await tx.sync()
            tx.queue_write(DELETE_THING, (3,))
        async with db.reading() as tx:
            assert await tx.fetch("select id from thing order by id") == [(1,), (2,)]


@pytest.mark.parametrize(
    ("sql", "tables"),
    [
        ("insert into a (x) select x from b on conflict (x) do update set x = 1", {"a"}),
        ("with c as (delete from a returning x) update b set x = c.x from c", {"a", "b"}),
        ("delete from a where id in (select id from b for update skip locked)", {"a"}),
        ("select x from a for update", set()),
    ],
)
def test_the_tables_that_a_statement_writes_are_read_from_it(sql: str, tables: set[str]) -> None:
    assert written_tables(sql) == tables


# --- migrations ----------------------------------------------------------------------------


def scripts(directory: Path, **files: str) -> Path:
    """Write the migrations of a service, each named `<service>/<file>`."""
    migrations = directory / "svc" / "migrations"
    migrations.mkdir(parents=True, exist_ok=True)
    for name, sql in files.items():
        (migrations / f"{name}.sql").write_text(sql)
    return migrations


def test_migrations_are_applied_once_and_in_order(
    settings: MakeSettings, judge: Rows, tmp_path: Path
) -> None:
    first = scripts(tmp_path, m0001="create table thing (id int)")
    assert migrate(settings(ROLE), first) == ["svc/m0001"]
    both = scripts(tmp_path, m0002="insert into thing select 1; insert into thing select 2")
    assert migrate(settings(ROLE), both) == ["svc/m0002"]
    assert migrate(settings(ROLE), both) == []
    assert judge.execute("select count(*) from payment_svc.thing").fetchall() == [(2,)]


def test_any_number_of_processes_may_migrate_at_once(
    settings: MakeSettings, judge: Rows, tmp_path: Path
) -> None:
    slow = scripts(
        tmp_path, m0001="create table thing (id int)", m0002="select pg_sleep(0.2)", m0003="select"
    )
    with ThreadPoolExecutor(4) as pool:
        applied = list(pool.map(lambda _: migrate(settings(ROLE), slow), range(4)))
    assert sorted(map(len, applied)) == [0, 0, 0, 3]
    assert judge.execute("select from payment_svc.thing").fetchall() == []


def test_a_migration_that_was_edited_afterwards_is_refused(
    settings: MakeSettings, judge: Rows, tmp_path: Path
) -> None:
    migrate(settings(ROLE), scripts(tmp_path, m0001="create table thing (id int)"))
    edited = scripts(tmp_path, m0001="create table thing (id bigint)", m0002="create table t ()")
    with pytest.raises(SagaproofError, match="svc/m0001 was changed"):
        migrate(settings(ROLE), edited)
    assert judge.execute("select to_regclass('payment_svc.t')").fetchall() == [(None,)]


def test_a_migration_that_fails_leaves_nothing_behind(
    settings: MakeSettings, judge: Rows, tmp_path: Path
) -> None:
    broken = scripts(tmp_path, m0001="create table thing (id int)", m0002="create nonsense")
    with pytest.raises(psycopg.errors.SyntaxError):
        migrate(settings(ROLE), broken)
    assert judge.execute("select to_regclass('payment_svc.thing')").fetchall() == [(None,)]


# --- one role per schema ----------------- -------------------------------------------------


@pytest.mark.parametrize("role", SERVICES)
def test_a_role_is_kept_out_of_every_other_schema(settings: MakeSettings, role: str) -> None:
    with psycopg.connect(settings(role).postgres_dsn.get_secret_value(), autocommit=True) as own:
        assert own.execute("select count(*) from inbox").fetchall() == [(0,)]
        for schema in set(SERVICES) - {role}:
            for statement in (
                f"select from {schema}.inbox",
                f"delete from {schema}.outbox",
                f"create table {schema}.intruder (id int)",
            ):
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    own.execute(statement.encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            own.execute("create table public.intruder (id int)")


def test_the_judge_may_read_everything_and_write_nothing(judge: Rows) -> None:
    tables = judge.execute(
        "select schemaname || '.' || tablename from pg_tables where schemaname = any(%s)",
        (list(SERVICES),),
    ).fetchall()
    assert len(tables) > 4 * len(SERVICES)
    for (table,) in tables:
        judge.execute(f"select from {table}".encode())
        for statement in (f"delete from {table}", f"insert into {table} default values"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                judge.execute(statement.encode())
    for schema in SERVICES:
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            judge.execute(f"create table {schema}.intruder (id int)".encode())
