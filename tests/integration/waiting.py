"""Waiting for a condition with a deadline, and running the daemons of a process in a test.

Owns: how tests run the parts of a process. Must not know: what any part does.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar, overload

import psycopg
import pytest

from common.kit.daemon import keep_running
from common.kit.settings import Settings
from common.process.process import Process
from common.storage.db import Tx

T = TypeVar("T")
Rows = psycopg.Connection[tuple[object, ...]]

# Settings under which a failure is retried at once.
FAST: dict[str, Any] = {
    "retry_first_seconds": 0.02,
    "retry_cap_seconds": 0.1,
    "relay_poll_seconds": 0.05,
    "reconcile_every_seconds": 0.05,
    "bad_deploy_pause_seconds": 0.3,
}


@overload
async def eventually(
    condition: Callable[[], Awaitable[T]], what: str = "", *, within: float = 15
) -> T: ...
@overload
async def eventually(condition: Callable[[], T], what: str = "", *, within: float = 15) -> T: ...


async def eventually(condition: Callable[[], Any], what: str = "", *, within: float = 15) -> Any:
    """Wait until the condition is true and return its value; fail after `within` seconds."""
    deadline = asyncio.get_running_loop().time() + within
    while True:
        value = condition()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        if asyncio.get_running_loop().time() > deadline:
            raise AssertionError(f"not within {within} s: {what or _source(condition)}")
        await asyncio.sleep(0.01)


def _source(condition: Callable[[], Any]) -> str:
    return inspect.getsource(condition) if inspect.isfunction(condition) else repr(condition)


@asynccontextmanager
async def running(process: Process, *daemons: str) -> AsyncIterator[None]:
    """Run all daemons of the process, or those named, until the block ends.

    A daemon that raises fails the test, as it would end the process.
    """
    async with process.db:
        tasks = [
            asyncio.create_task(
                keep_running(name, run, process.settings, process.health, process.stop), name=name
            )
            for name, run in process._daemons.items()
            if not daemons or name in daemons
        ]
        try:
            yield
        finally:
            process.stop.set()
            process.relay.wake()
            _, left = await asyncio.wait(tasks, timeout=5)
            for task in left:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            await process.broker.close()
        assert [error for error in ended if error is not None] == []


def reports(process: Process, check: str) -> str:
    """Return what /ready reports for one check."""
    checks: Any = process.health.report()["checks"]
    return str(checks.get(check))


async def wired(
    monkeypatch: pytest.MonkeyPatch,
    composition_root: Callable[[Settings], Awaitable[None]],
    settings: Settings,
) -> Process:
    """Return a process as its own composition root composes it, but do not run it."""
    put_together: list[Process] = []

    async def not_run(process: Process) -> None:
        put_together.append(process)

    with monkeypatch.context() as patch:
        patch.setattr(Process, "run", not_run)
        await composition_root(settings)
    return put_together[0]


def lock_waits(admin: Rows, role: str) -> int:
    """Count the sessions of this role that wait for a lock."""
    admin.execute("select pg_stat_clear_snapshot()")  # else a transaction sees no newer session
    rows = admin.execute(
        "select 1 from pg_stat_activity"
        " where datname = current_database() and usename = %s and wait_event_type = 'Lock'",
        (role,),
    )
    return len(rows.fetchall())


def end_sessions(admin: Rows, role: str) -> int:
    """Kill this role's backends, as a crash of the server would; return how many there were."""
    rows = admin.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity"
        " where datname = current_database() and usename = %s",
        (role,),
    )
    return len(rows.fetchall())


async def rows_read(tx: Tx, table: str, doing: Awaitable[T]) -> tuple[T, int]:
    """Return the result and how many rows of this table it read, which load cannot skew.

    The counter includes what this session read just before, so the difference is returned.
    """
    before = await _rows_read(tx, table)
    given = await doing
    return given, await _rows_read(tx, table) - before


async def _rows_read(tx: Tx, table: str) -> int:
    ((read,),) = await tx.fetch(
        "select coalesce(sum(idx_tup_fetch + seq_tup_read), 0)::int from pg_stat_xact_user_tables"
        " where relname = %s and schemaname = current_schema()",
        (table,),
    )
    return int(read)
