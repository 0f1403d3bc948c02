"""Postgres: the pool, the one transaction helper, migrations, and whose fault an error is.

A transaction is pipelined, with a sync before Python goes on (rule 12).
"""

from __future__ import annotations

import hashlib
import re
from collections import namedtuple
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, LiteralString, NamedTuple, cast

import psycopg
from psycopg_pool import AsyncConnectionPool

from common.kit import failpoints, log
from common.kit.failpoints import Commit
from common.kit.settings import Settings
from common.messages.envelope import Key
from common.messages.errors import ConstraintViolated, Infrastructure, SagaproofError

logger = log.get("db")

Params = Sequence[Any] | Mapping[str, Any]
Write = tuple[LiteralString, Sequence[Any]]

# Not the message's fault (rule 13): connection, rollback, resources, intervention, system, and the
# codes that rule 12's own time limits and a migration under a cached plan raise.
_INFRASTRUCTURE_CLASSES = ("08", "40", "53", "55", "57", "58")
_INFRASTRUCTURE_CODES = ("25P03", "25P04", "0A000")


def translate(error: psycopg.Error) -> SagaproofError | psycopg.Error:
    """Turn a driver's error into one of ours; a defect of the statement stays as it is."""
    state = error.sqlstate
    if state is None and isinstance(error, psycopg.ProgrammingError | psycopg.DataError):
        return error  # the driver would not send it, to any server
    if state is None or state[:2] in _INFRASTRUCTURE_CLASSES or state in _INFRASTRUCTURE_CODES:
        return Infrastructure(f"postgres {state or 'connection'}: {error}")
    if state[:2] == "23":
        return ConstraintViolated(error.diag.constraint_name or state, str(error))
    return error


class OutboxRow(NamedTuple):
    """An encoded envelope in the outbox. Rows sort by destination, then oldest first."""

    destination: str
    id: int
    envelope: str


@dataclass
class QueuedQuery:
    """A query, and its rows once its transaction has synced: named tuples of its columns."""

    sql: LiteralString
    params: Any
    rows: list[Any] = field(default_factory=list)


def _named(cursor: psycopg.AsyncCursor[Any]) -> Callable[[Sequence[Any]], Any]:
    """Make rows that are read by the names of their columns; one without a name by its place."""
    result = cursor.pgresult
    if result is None:
        return tuple
    return _row_class(tuple(result.fname(n) or b"" for n in range(result.nfields)))


@lru_cache(1000)
def _row_class(names: tuple[bytes, ...]) -> Callable[[Sequence[Any]], Any]:
    row = namedtuple("Row", [name.decode() for name in names], rename=True)  # type: ignore[misc]
    return cast("Callable[[Sequence[Any]], Any]", row._make)


# "update inbox i set ..." writes inbox; "do update set" and "for update" name no table.
_WRITTEN = re.compile(r"\b(?:insert into|(?<!do )(?<!for )update|delete from)\s+(\w+)")


@lru_cache(1000)
def written_tables(sql: str) -> frozenset[str]:
    return frozenset(_WRITTEN.findall(sql))


class Tx:
    """One open transaction.

    A process stopped inside an unsynced pipeline holds its row locks, and no time limit of the
    server frees them (rule 12). So the `queue_` methods run nothing; `sync` and `fetch` run all
    that is queued and wait for it before Python goes on; the last writes leave with the commit.

    Queued writes leave as one statement, since each costs a system call here and a wake-up there.
    Its parts share a snapshot: of two that change one row, Postgres applies only one. So a second
    write to a table is refused unless its caller says why it concerns other rows.

    Rows are passed as arrays, one per column, in binary (`%b`): as text the driver escapes
    every element in Python, which took forty percent of the orchestrator's time.
    """

    def __init__(
        self, connection: psycopg.AsyncConnection[Any], pipeline: psycopg.AsyncPipeline
    ) -> None:
        self.keys: Iterable[Key] = ()
        """The messages in hand, for failpoints. Read only if one is armed, at the commit."""
        self._connection = connection
        self._pipeline = pipeline
        self._writes: list[Write] = []
        self._written: set[str] = set()  # the tables of the queued writes
        self._returning: QueuedQuery | None = None
        self._cursor: psycopg.AsyncCursor[Any] | None = None  # of the last writes sent
        self._queries: list[QueuedQuery] = []
        self._sent: tuple[Sequence[tuple[str, str]], QueuedQuery] | None = None

    def queue_write(
        self, sql: LiteralString, params: Sequence[Any] = (), *, other_rows: str = ""
    ) -> None:
        """Queue a write. Its error is raised by the next sync or by the commit.

        `other_rows` says why it touches no row of the writes queued for the same table.
        """
        self._check_tables(sql, other_rows)
        self._writes.append((sql, params))

    def queue_returning(self, sql: LiteralString, params: Sequence[Any]) -> QueuedQuery:
        """Queue the one write that returns rows. It runs last, and has its rows once it has run."""
        if self._returning is not None:
            raise ValueError("one write at a time may return rows")
        self._check_tables(sql, "")
        self._returning = QueuedQuery(sql, tuple(params))
        return self._returning

    def _check_tables(self, sql: str, other_rows: str) -> None:
        tables = written_tables(sql)
        if not other_rows and (twice := tables & self._written):
            raise ValueError(
                f"two writes to {', '.join(twice)} are queued, which leave as one statement: of two"
                " changes to a row one would be lost. Sync between them, or pass `other_rows`"
            )
        self._written |= tables

    def queue_query(self, sql: LiteralString, params: Params = ()) -> QueuedQuery:
        """Queue a query, which sees what was queued before it; sync to have its rows."""
        self._queries.append(query := QueuedQuery(sql, params))
        return query

    async def plan_by_values(self) -> None:
        """Plan each later query for its values; for conditions that may or may not be there."""
        await self._connection.execute(
            "select set_config('plan_cache_mode', 'force_custom_plan', true)"
        )

    async def fetch(self, sql: LiteralString, params: Params = ()) -> list[Any]:
        """Run all that is queued, then this query. Return its rows as named tuples."""
        query = self.queue_query(sql, params)
        await self.sync()
        return query.rows

    async def sync(self) -> None:
        """Run all that is queued in one round trip: the writes, then each query by itself."""
        if not (self._writes or self._returning or self._queries):
            return
        queries, self._queries = self._queries, []
        await self._send_writes()
        cursors = [
            await self._connection.cursor(row_factory=_named).execute(q.sql, q.params)
            for q in queries
        ]
        await self._pipeline.sync()
        for query, cursor in zip(queries, cursors, strict=True):
            if cursor.description is not None:
                query.rows = await cursor.fetchall()
        await self.fetch_returned()

    async def commit(self) -> None:
        """Send what is queued, and the commit; the end of the pipeline syncs."""
        await self._send_writes()
        await self._connection.execute("commit")

    async def _send_writes(self) -> None:
        if self._returning is not None:
            self._writes.append((self._returning.sql, self._returning.params))
        if self._writes:
            writes, self._writes = self._writes, []
            self._written.clear()
            self._cursor = await self._connection.execute(*joined(writes))

    async def fetch_returned(self) -> None:
        """Read the rows of `queue_returning`, after a sync or the end of the pipeline."""
        if self._returning is not None and self._cursor is not None:
            self._returning.rows = await self._cursor.fetchall()
            self._returning = None

    def sends(self, messages: Sequence[tuple[str, str]], ids: QueuedQuery) -> None:
        """Register (destination, envelope) of each row appended to the outbox, and their ids."""
        self._sent = messages, ids

    def outbox_rows(self) -> list[OutboxRow]:
        """Return the rows appended to the outbox; call it after the commit."""
        if self._sent is None:
            return []
        messages, ids = self._sent
        return [
            OutboxRow(destination, row_id, envelope)
            for (destination, envelope), (row_id,) in zip(messages, ids.rows, strict=True)
        ]


def columns(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """Turn rows, of which there is at least one, into the arrays that `unnest` takes."""
    return [list(column) for column in zip(*rows, strict=True)]


def joined(writes: Sequence[Write]) -> Write:
    """Join several writes into one statement."""
    *before, (last, _) = writes
    if not before:
        return writes[0]
    named = ", ".join(f"w{n} as ({sql})" for n, (sql, _) in enumerate(before))
    return f"with {named} {last}", [value for _, params in writes for value in params]


class Database:
    """The process's connections to its own schema.

    After each commit `on_committed` is given the rows that the transaction appended to the outbox.
    """

    def __init__(self, settings: Settings) -> None:
        self.on_committed: Callable[[list[OutboxRow]], None] = lambda _: None
        self._pool = AsyncConnectionPool(
            settings.postgres_dsn.get_secret_value(),
            min_size=1,
            max_size=settings.pool_size,
            timeout=settings.connect_timeout_seconds,
            reconnect_timeout=settings.retry_cap_seconds,
            open=False,
            kwargs={"autocommit": True, **connect_options(settings)},
        )

    async def __aenter__(self) -> Database:
        await self._pool.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()

    @asynccontextmanager
    async def transaction(self, commit: Commit | None) -> AsyncIterator[Tx]:
        """Open a READ COMMITTED transaction: commit at the end, roll back if anything raises.

        `commit` names the failpoints before and after the commit; None has none, for writes that
        send nothing. Raises Infrastructure, also when it is unknown whether the commit succeeded
        (retry, for the claims detect a repeat); ConstraintViolated; or psycopg's own error for a
        defective statement.
        """
        async with self._begun("begin") as tx:
            yield tx
            keys = list(tx.keys) if failpoints.watched() else []
            if commit is not None:
                failpoints.reach(commit.before, keys)
        if commit is not None:
            failpoints.reach(commit.after, keys)
        if rows := tx.outbox_rows():
            self.on_committed(rows)

    def reading(self) -> AbstractAsyncContextManager[Tx]:
        """Open a READ ONLY transaction: Postgres rejects writes and row locks.

        It has no failpoints; a crash here loses nothing.
        """
        return self._begun("begin read only")

    @asynccontextmanager
    async def _begun(self, begin: LiteralString) -> AsyncIterator[Tx]:
        try:
            async with self._pool.connection() as connection:
                async with connection.pipeline() as pipeline:
                    await connection.execute(begin)
                    tx = Tx(connection, pipeline)
                    yield tx
                    await tx.commit()
                await tx.fetch_returned()
        except psycopg.Error as error:
            raise translate(error) from error


# Every statement of ours goes by an index, whatever its values: planned once in a session, since
# planning each anew took a third of the server's time. A plan made while a table was small would
# read all of it for every message. So each list of rows names their keys once more, `= any`:
# whichever of the two a plan begins with, it looks at no other rows.
_PLANS = "-c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c jit=off"


def connect_options(settings: Settings) -> dict[str, Any]:
    """Return the options of every session: time limits, all below the step timeouts (rule 12)."""
    limits = {
        "statement_timeout": settings.statement_timeout_seconds,
        "lock_timeout": settings.lock_timeout_seconds,
        "idle_in_transaction_session_timeout": settings.idle_in_transaction_seconds,
        "tcp_user_timeout": settings.tcp_user_timeout_seconds,
    }
    return {
        "options": " ".join(
            [_PLANS, *(f"-c {name}={round(value * 1000)}" for name, value in limits.items())]
        ),
        "connect_timeout": max(2, round(settings.connect_timeout_seconds)),
        "tcp_user_timeout": round(settings.tcp_user_timeout_seconds * 1000),
        # While waiting for an answer no bytes are unacknowledged: probes make some, so that a
        # connection to a server that is cut off ends soon (by default: in two hours).
        "keepalives_idle": max(1, round(settings.tcp_user_timeout_seconds / 2)),
        "keepalives_interval": max(1, round(settings.tcp_user_timeout_seconds / 4)),
        "application_name": settings.process or "sagaproof",
    }


def shipped_migrations(*directories: Path) -> dict[str, str]:
    """Return the numbered, forward-only migrations of this version, in order: name to SQL."""
    return {
        f"{d.parent.name}/{f.stem}": f.read_text()
        for d in directories
        for f in sorted(d.glob("*.sql"))
    }


async def applied_migrations(tx: Tx) -> list[str]:
    """Return the migrations applied to this schema, by any version."""
    return [row[0] for row in await tx.fetch("select name from schema_migration order by 1")]


def migrate(settings: Settings, *directories: Path) -> list[str]:
    """Apply the shipped migrations that are missing; return their names.

    Any number of processes may start at once: one migrates, the others wait for it.
    Raises SagaproofError if an applied migration was edited afterwards.
    """
    applied: list[str] = []
    options = {**connect_options(settings), "options": ""}  # a migration may take its time
    try:
        with psycopg.connect(settings.postgres_dsn.get_secret_value(), **options) as connection:
            connection.execute(
                "select pg_advisory_xact_lock(hashtext('migrate ' || current_schema()))"
            )
            connection.execute(
                "create table if not exists schema_migration (name text primary key,"
                " checksum text not null, applied_at timestamptz not null default now())"
            )
            known = dict(
                connection.execute("select name, checksum from schema_migration").fetchall()
            )
            for name, sql in shipped_migrations(*directories).items():
                checksum = hashlib.sha256(sql.encode()).hexdigest()
                if name not in known:
                    connection.execute(sql.encode())
                    connection.execute(
                        "insert into schema_migration (name, checksum) values (%s, %s)",
                        (name, checksum),
                    )
                    applied.append(name)
                elif known[name] != checksum:
                    raise SagaproofError(
                        f"migration {name} was changed after it was applied: add a new one instead"
                    )
    except psycopg.Error as error:
        raise translate(error) from error
    return applied
