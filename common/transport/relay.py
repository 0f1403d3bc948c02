"""The relay: from the outbox to the broker (rule 16).

It packs rows for one queue into deliveries, publishes them, and removes a row only when the broker
has confirmed it (a crash in between means a duplicate, by design). Rows that its process has just
committed are published at once, without reading them; any process of a service also relays what
another left behind (ADR 25).
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from common.kit import failpoints, log, metrics
from common.kit.daemon import wait_for
from common.kit.failpoints import Point
from common.kit.health import Health
from common.kit.settings import Settings
from common.messages.envelope import MAX_PACKED, Key, key_of, pack
from common.messages.topology import EVENTS, is_private_reply_queue, route
from common.storage import outbox
from common.storage.db import Database, OutboxRow
from common.transport.broker import Broker, Channel, Fate, Publication

logger = log.get("relay")

# At most four bytes each: far below every broker's limit, so that packing cannot make poison.
MAX_DELIVERY_CHARACTERS = 262_144
# Rows younger than that are left to the process that committed them, unless a row may be left over.
CARRIED_SECONDS = 1.0
REMOVE_WITHIN_SECONDS = 0.1  # of their confirm: so that some leave together


class Relay:
    """The relay of a process: it publishes the rows given to `carry()`, and any left over."""

    def __init__(
        self, db: Database, broker: Broker, settings: Settings, health: Health, stop: asyncio.Event
    ) -> None:
        self._db = db
        self._broker = broker
        self._settings = settings
        self._health = health
        self._stop = stop
        self._wanted = asyncio.Event()
        self._look_at = 0.0  # of the loop's time
        self._carried: list[OutboxRow] = []  # committed, not published yet
        self._confirmed: list[OutboxRow] = []  # of what was carried, not removed yet
        self._paused: dict[str, tuple[float, int]] = {}  # destination: (until, failures)
        self._declared_on: Channel | None = None  # where EVENTS was declared
        # Since we last connected a look left nothing behind, and nothing has failed after it
        # (rule 6).
        self.flushed = False
        self._doubts = 0

    def carry(self, rows: Sequence[OutboxRow]) -> None:
        """Take rows that a transaction of this process has just committed, to publish them."""
        if len(self._carried) + len(rows) > self._settings.relay_rows:
            self._doubt()  # the broker is slow: they wait in the outbox
        else:
            self._carried += rows
        self._wanted.set()

    def wake(self) -> None:
        """Look for rows now."""
        self._look_at = 0.0
        self._wanted.set()

    def _doubt(self) -> None:
        """Make the next look take rows of any age: some may be left over."""
        self.flushed = False
        self._doubts += 1
        self._look_at = 0.0

    async def run(self) -> None:
        channel = await self._broker.channel()
        clock = asyncio.get_running_loop().time
        try:
            self._health.set("relay", None)
            self._look_at = 0.0
            while not self._stop.is_set():
                self._wanted.clear()
                await self.carry_on(channel)
                if clock() >= self._look_at:
                    self._look_at = clock() + self._poll_seconds()
                    if await self.run_once(channel) >= self._settings.relay_rows:
                        self._look_at = 0.0
                await wait_for(self._wanted, self._look_at - clock())
            await self.carry_on(channel)
            await self.run_once(channel)
        finally:
            self._doubt()
            channel.close()

    def _poll_seconds(self) -> float:
        jitter = random.uniform(0.8, 1.2)  # noqa: S311 - replicas should not look all at once
        return self._settings.relay_poll_seconds * jitter

    async def carry_on(self, channel: Channel) -> None:
        """Publish what was committed since the last time, all at once."""
        paused = self._resting()
        rows = sorted(row for row in self._carried if row.destination not in paused)
        self._carried.clear()
        if rows:
            gone = await self._publish(channel, rows)
            failpoints.reach(Point.RELAY_AFTER_CONFIRM, _keys(gone))
            self._confirmed += gone
            soon = asyncio.get_running_loop().time() + REMOVE_WITHIN_SECONDS
            self._look_at = min(self._look_at, soon)

    async def run_once(self, channel: Channel) -> int:
        """Remove confirmed rows, and relay waiting ones; return how many of these."""
        paused, doubts = self._resting(), self._doubts
        confirmed, gone = self._confirmed, list[OutboxRow]()
        async with self._db.transaction(None) as tx:
            await outbox.remove(tx, confirmed)
            # Longer than the wait for confirms below; other relays skip the rows locked meanwhile.
            patience = self._settings.confirm_timeout_seconds + 1
            age = CARRIED_SECONDS if self.flushed else 0.0
            rows = await outbox.take(tx, self._settings.relay_rows, paused, patience, age)
            if rows:
                taken = {row.id for row in rows}
                self._carried = [row for row in self._carried if row.id not in taken]
                gone = await self._publish(channel, rows)
                await outbox.remove(tx, gone)
                failpoints.reach(Point.RELAY_AFTER_CONFIRM, _keys(gone))
        self._confirmed = self._confirmed[len(confirmed) :]
        if not paused and doubts == self._doubts and len(rows) < self._settings.relay_rows:
            self.flushed = True
        if confirmed or gone:
            failpoints.reach(Point.RELAY_AFTER_COMMIT, _keys([*confirmed, *gone]))
            metrics.RELAYED.inc(len(confirmed) + len(gone))
        return len(gone)

    def _resting(self) -> list[str]:
        now = asyncio.get_running_loop().time()
        return [destination for destination, (until, _) in self._paused.items() if until > now]

    async def _publish(self, channel: Channel, rows: Sequence[OutboxRow]) -> list[OutboxRow]:
        packed = list(pack_rows(rows))
        routes = [route(group[0].destination) for group in packed]
        if self._declared_on is not channel and any(exchange for exchange, _ in routes):
            # Publishing to a missing queue returns the message; to a missing exchange it ends the
            # channel.
            await channel.declare_exchange(EVENTS)
            self._declared_on = channel
        failpoints.reach(Point.RELAY_BEFORE_PUBLISH, _keys(rows))
        fates = await channel.publish(
            [
                Publication(key, pack(r.envelope for r in group), exchange=exchange)
                for group, (exchange, key) in zip(packed, routes, strict=True)
            ],
            self._settings.confirm_timeout_seconds,
            sent=lambda: failpoints.reach(Point.RELAY_AFTER_PUBLISH, _keys(rows)),
        )
        gone: list[OutboxRow] = []
        failed: dict[
            str, tuple[Fate, int]
        ] = {}  # by destination, which rests once however much was refused
        for group, fate in zip(packed, fates, strict=True):
            if self._may_go(group, fate):
                gone.extend(group)
            else:
                destination = group[0].destination
                failed[destination] = fate, len(group) + failed.get(destination, (fate, 0))[1]
        for destination in {row.destination for row in gone} - failed.keys():
            self._paused.pop(destination, None)
        for destination, (fate, envelopes) in failed.items():
            self._rest(destination, fate, envelopes)
        return gone

    def _may_go(self, group: Sequence[OutboxRow], fate: Fate) -> bool:
        destination = group[0].destination
        if fate is Fate.RETURNED and is_private_reply_queue(destination):
            # A private queue that is gone; asking again gives the stored reply again.
            logger.warning(
                "relay.reply_undeliverable", destination=destination, envelopes=len(group)
            )
            return True
        return fate is Fate.CONFIRMED

    def _rest(self, destination: str, fate: Fate, envelopes: int) -> None:
        self._doubt()
        metrics.NOT_DELIVERED.labels(fate.value).inc()
        _, failures = self._paused.get(destination, (0.0, 0))
        pause = min(
            self._settings.retry_cap_seconds, self._settings.retry_first_seconds * 2**failures
        )
        until = asyncio.get_running_loop().time() + pause
        self._paused[destination] = (until, min(failures + 1, 16))
        logger.warning(
            "relay.not_delivered",
            destination=destination, fate=fate.value, envelopes=envelopes, pause_seconds=pause,
        )  # fmt: skip


def _keys(rows: Iterable[OutboxRow]) -> Iterator[Key]:
    return (key_of(row.envelope) for row in rows)


def pack_rows(rows: Iterable[OutboxRow]) -> Iterator[list[OutboxRow]]:
    """Group rows into deliveries: one destination each, at most 64 envelopes, not too large."""
    for _, group in groupby(rows, key=lambda row: row.destination):
        packed: list[OutboxRow] = []
        size = 0
        for row in group:
            if packed and (
                len(packed) == MAX_PACKED or size + len(row.envelope) > MAX_DELIVERY_CHARACTERS
            ):
                yield packed
                packed, size = [], 0
            packed.append(row)
            size += len(row.envelope)
        yield packed
