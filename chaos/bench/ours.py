"""Our side: orders as PlaceOrder commands, so many in flight, each replaced when its saga ends.

Owns: the closed loop and what is read off it. Must not know: how the services work. An order's
time runs from before it is published until its end is seen committed in the table of
sagas, both by this process's clock; the looking adds up to `LOOK_SECONDS`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from typing import LiteralString
from uuid import UUID

import pika
import psycopg
from pika.adapters.blocking_connection import BlockingChannel

from chaos.bench import meter
from chaos.bench.figures import Measured
from chaos.bench.workload import CURRENCY, BenchOrder
from chaos.judge.snapshot import SAGAS
from chaos.runtime import Endpoints
from common.messages.envelope import MAX_PACKED, Direction, Envelope, Key, pack, saga_id_for
from common.messages.shop.order import PlaceOrder
from common.messages.shop.values import Line
from common.messages.topology import commands_of

# How often ended sagas are looked for, by sagas in flight: a look must cost little beside the work.
# One alone is never looked for before that share of the shortest time so far.
LOOK_SECONDS = {1: 0.001, 20: 0.004}
LOOK_SELDOM_SECONDS = 0.05
NOT_BEFORE = 0.8
STUCK_SECONDS = 60.0
WARM_UP, RAMP = 0.5, 0.2  # shares of the measured time, before it; then all is under way

_ENDED: LiteralString = """
select saga_id, state from {sagas}
 where saga_id = any(%b::uuid[]) and ended_at is not null"""


class NotConfirmedError(Exception):
    """An order did not end as every order of a bench must."""


@dataclass
class Loop:
    """A closed loop. `ended` holds (when, latency) of every saga seen to end, in seconds."""

    channel: BlockingChannel
    db: psycopg.Connection[tuple[object, ...]]
    orders: Iterator[BenchOrder]
    look_seconds: float
    flying: dict[UUID, float] = field(default_factory=dict)
    ended: list[tuple[float, float]] = field(default_factory=list)
    looks: int = 0
    style: str = "orchestrated"

    def launch(self, count: int) -> None:
        """Publish so many more orders, packed as the relay would."""
        commands = [_command(order) for order in islice(self.orders, count)]
        for first in range(0, len(commands), MAX_PACKED):
            envelopes = commands[first : first + MAX_PACKED]
            now = time.monotonic()
            self.flying.update((envelope.saga_id, now) for envelope in envelopes)
            self.channel.basic_publish(
                "",
                commands_of("order"),
                pack(e.encode() for e in envelopes),
                pika.BasicProperties(content_type="application/json", delivery_mode=2),
            )

    def look(self) -> int:
        """Return how many have ended since the last look."""
        query = _ENDED.format(sagas=SAGAS[self.style])
        rows = self.db.execute(query, [list(self.flying)]).fetchall()
        self.looks += 1
        now = time.monotonic()
        for saga_id, state in rows:
            assert isinstance(saga_id, UUID)  # noqa: S101 - for the type checker
            if state != "COMPLETED":
                raise NotConfirmedError(f"saga {saga_id} ended {state}")
            self.ended.append((now, now - self.flying.pop(saga_id)))
        return len(rows)

    def run(self, seconds: float) -> None:
        """Keep as many in flight as there are, for so long."""
        until = time.monotonic() + seconds
        while (now := time.monotonic()) < until:
            if ended := self.look():
                self.launch(ended)
                self.channel.connection.process_data_events(0)
                if len(self.flying) == 1:
                    time.sleep(min(latency for _, latency in self.ended) * NOT_BEFORE)
            time.sleep(max(0.0, self.look_seconds - (time.monotonic() - now)))

    def land(self) -> None:
        """Wait for the last of them."""
        until = time.monotonic() + STUCK_SECONDS
        while self.flying:
            if time.monotonic() > until:
                raise NotConfirmedError(f"{len(self.flying)} sagas do not end")
            self.look()
            time.sleep(self.look_seconds)


def measure(
    endpoints: Endpoints,
    processes: Mapping[str, int],
    orders: Iterator[BenchOrder],
    in_flight: int,
    seconds: float,
    style: str = "orchestrated",
) -> Measured:
    """Measure for `seconds`, after a warm-up. The CPU time of `processes`, name to pid, is read."""
    with _loop(endpoints, orders, in_flight, style) as loop:
        loop.launch(in_flight)
        loop.run(seconds * WARM_UP)
        loop.land()
        meter.settle()
        warm, looks = len(loop.ended), loop.looks
        before = _read(endpoints, processes, style)
        loop.launch(in_flight)
        loop.run(seconds * RAMP)
        began = time.monotonic()
        loop.run(seconds)
        over = time.monotonic()
        loop.land()
        cpu, looks = meter.cpu_seconds(processes), loop.looks - looks
        meter.settle()
        after = replace(_read(endpoints, processes, style), cpu=cpu)
    steady = [latency for at, latency in loop.ended if began <= at <= over]
    spent = meter.cost(before, after, len(loop.ended) - warm, own_commits=looks)
    return Measured(len(steady), over - began, steady, asdict(spent))


@contextmanager
def _loop(
    endpoints: Endpoints, orders: Iterator[BenchOrder], in_flight: int, style: str
) -> Iterator[Loop]:
    with (
        pika.BlockingConnection(pika.URLParameters(endpoints.amqp_url)) as connection,
        psycopg.connect(endpoints.judge_dsn, autocommit=True) as db,
    ):
        look = LOOK_SECONDS.get(in_flight, LOOK_SELDOM_SECONDS)
        yield Loop(connection.channel(), db, orders, look, style=style)


def _read(endpoints: Endpoints, processes: Mapping[str, int], style: str) -> meter.Reading:
    database = endpoints.superuser_dsn.rpartition("/")[2]
    return meter.Reading(
        cpu=meter.cpu_seconds(processes),
        commits=meter.commits(endpoints.superuser_dsn, database),
        envelopes=meter.envelopes(endpoints.superuser_dsn, style),
        deliveries=meter.deliveries(endpoints.management_url),
    )


def _command(order: BenchOrder) -> Envelope:
    lines = tuple(Line(sku=sku, quantity=quantity) for sku, quantity in order.lines)
    body = PlaceOrder(
        customer=order.customer, idempotency_key=order.key, currency=CURRENCY, lines=lines
    )
    saga_id = saga_id_for(order.customer, order.key)
    key = Key(saga_id, "create_order", Direction.FORWARD)
    return Envelope.command(key, body, issued_at=datetime.now(UTC), reply_to=None)
