"""SQL against a stack's database: as the judge, who may only read, or in a service's role."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, LiteralString, NamedTuple, TypeAlias
from uuid import UUID

import psycopg

from chaos.judge.snapshot import EVER, SAGAS
from chaos.runtime import Endpoints, Style
from chaos.waiting import WITHIN_SECONDS, until

Session: TypeAlias = psycopg.Connection[tuple[Any, ...]]


class End(NamedTuple):
    """An order's final status, with the reason of a rejection."""

    status: str
    reason: str | None = None


CONFIRMED = End("CONFIRMED")
RETURNED = End("RETURNED")


def rejected(reason: str) -> End:
    return End("REJECTED", reason)


class Database:
    """The tables of all services."""

    def __init__(self, endpoints: Endpoints, style: Style) -> None:
        self._endpoints = endpoints
        self.sagas = SAGAS[style]
        self.ever = EVER[style]

    def rows(
        self, query: LiteralString, *parameters: object, **named: object
    ) -> list[tuple[Any, ...]]:
        """Run a query as the judge."""
        with psycopg.connect(self._endpoints.judge_dsn, autocommit=True) as connection:
            return connection.execute(query, named or parameters).fetchall()

    @contextmanager
    def session(self, role: str) -> Iterator[Session]:
        """Open a transaction in a service's role, rolled back at the end."""
        with psycopg.connect(self._endpoints.service_dsns[role]) as connection:
            yield connection
            connection.rollback()

    def ends(self, order_ids: Iterable[UUID], within: float = WITHIN_SECONDS) -> dict[UUID, End]:
        """Wait until the sagas of all orders, and of their returns, have ended; return the ends."""
        wanted = list(order_ids)

        def ended() -> dict[UUID, End] | None:
            rows = self.rows(
                f"""
                select order_id, status, o.reason
                from order_svc.customer_order o join {self.ever} as i
                  on i.saga_id = o.order_id and i.ended_at is not null
                where order_id = any(%s) and status <> 'RETURN_PENDING'
                """,  # noqa: S608 - one of two names of ours
                wanted,
            )
            return {row[0]: End(*row[1:]) for row in rows} if len(rows) == len(wanted) else None

        return until(ended, f"the sagas of {len(wanted)} orders end", within)

    def steps(self, saga_ids: Iterable[UUID]) -> list[dict[str, str]]:
        """Return each saga's steps with their status; empty for a saga that has not begun."""
        rows = self.rows(
            f"""
            select coalesce(steps, '{{}}')
            from unnest(%s::uuid[]) as wanted (saga_id)
            left join {self.ever} as i using (saga_id)""",  # noqa: S608 - one of two names of ours
            list(saga_ids),
        )
        return [{step: entry["status"] for step, entry in steps.items()} for (steps,) in rows]

    def alive(self) -> list[UUID]:
        """Return the sagas that have not ended."""
        rows = self.rows(f"select saga_id from {self.sagas} where ended_at is null")  # noqa: S608 - one of two names of ours
        return [saga_id for (saga_id,) in rows]
