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
# Younger rows are left to the process that committed them, unless a row may be left over.
OWN_SECONDS = 1.0
REMOVE_WITHIN_SECONDS = 0.1  # of their confirm: so that some leave together


class Relay:
    """The relay of a process: publishes rows given to `enqueue()`, and polls for leftover ones."""

    def __init__(
        self, db: Database, broker: Broker, settings: Settings, health: Health, stop: asyncio.Event
    ) -> None:
        self._db = db
        self._broker = broker
        self._settings = settings
        self._health = health
        self._stop = stop
        self._wanted = asyncio.Event()
        self._next_poll_at = 0.0  # of the loop's time
        self._unpublished: list[OutboxRow] = []  # committed by this process
        self._confirmed: list[OutboxRow] = []  # to remove with the next poll
        self._paused: dict[str, tuple[float, int]] = {}  # destination: (until, failures)
        # True once a full poll on this connection found no leftover row, until the next failure
        # (rule 6).
        self.flushed = False
        self._distrusted = 0  # how often

    def enqueue(self, rows: Sequence[OutboxRow]) -> None:
        """Take rows that a transaction of this process has just committed, to publish at once."""
        if len(self._unpublished) + len(rows) > self._settings.relay_rows:
            self._distrust_outbox()  # the broker is slow: a poll will find them
        else:
            self._unpublished += rows
        self._wanted.set()

    def wake(self) -> None:
        """Poll now."""
        self._next_poll_at = 0.0
        self._wanted.set()

    def _distrust_outbox(self) -> None:
        """Poll now, for rows of any age: some may be left over."""
        self.flushed = False
        self._distrusted += 1
        self._next_poll_at = 0.0

    async def run(self) -> None:
        channel = await self._broker.channel()
        clock = asyncio.get_running_loop().time
        try:
            # A missing queue returns a message; a missing exchange would end the channel.
            await channel.declare_exchange(EVENTS)
            self._health.set("relay", None)
            self._next_poll_at = 0.0
            while not self._stop.is_set():
                self._wanted.clear()
                await self.publish_now(channel)
                if clock() >= self._next_poll_at:
                    self._next_poll_at = clock() + self._poll_seconds()
                    if await self.poll(channel) >= self._settings.relay_rows:
                        self._next_poll_at = 0.0
                await wait_for(self._wanted, self._next_poll_at - clock())
            await self.publish_now(channel)
            await self.poll(channel)
        finally:
            self._distrust_outbox()
            channel.close()

    def _poll_seconds(self) -> float:
        jitter = random.uniform(0.8, 1.2)  # noqa: S311 - replicas should not look all at once
        return self._settings.relay_poll_seconds * jitter

    async def publish_now(self, channel: Channel) -> None:
        """Publish what this process committed since the last time."""
        paused = self._paused_now()
        rows = sorted(row for row in self._unpublished if row.destination not in paused)
        self._unpublished.clear()
        if rows:
            done = await self._publish(channel, rows)
            failpoints.reach(Point.RELAY_AFTER_CONFIRM, _keys(done))
            self._confirmed += done
            soon = asyncio.get_running_loop().time() + REMOVE_WITHIN_SECONDS
            self._next_poll_at = min(self._next_poll_at, soon)

    async def poll(self, channel: Channel) -> int:
        """Remove confirmed rows, and relay waiting ones; return how many of these."""
        paused, distrusted = self._paused_now(), self._distrusted
        confirmed, done = self._confirmed, list[OutboxRow]()
        async with self._db.transaction(None) as tx:
            await outbox.remove(tx, confirmed)
            # Longer than the wait for confirms below; other relays skip the rows locked meanwhile.
            patience = self._settings.confirm_timeout_seconds + 1
            age = OWN_SECONDS if self.flushed else 0.0
            rows = await outbox.take(tx, self._settings.relay_rows, paused, patience, age)
            if rows:
                taken = {row.id for row in rows}
                self._unpublished = [row for row in self._unpublished if row.id not in taken]
                done = await self._publish(channel, rows)
                await outbox.remove(tx, done)
                failpoints.reach(Point.RELAY_AFTER_CONFIRM, _keys(done))
        self._confirmed = self._confirmed[len(confirmed) :]
        if not paused and distrusted == self._distrusted and len(rows) < self._settings.relay_rows:
            self.flushed = True
        if confirmed or done:
            failpoints.reach(Point.RELAY_AFTER_COMMIT, _keys([*confirmed, *done]))
            metrics.RELAYED.inc(len(confirmed) + len(done))
        return len(done)

    def _paused_now(self) -> list[str]:
        now = asyncio.get_running_loop().time()
        return [destination for destination, (until, _) in self._paused.items() if until > now]

    async def _publish(self, channel: Channel, rows: Sequence[OutboxRow]) -> list[OutboxRow]:
        packed = list(pack_rows(rows))
        routes = [route(group[0].destination) for group in packed]
        failpoints.reach(Point.RELAY_BEFORE_PUBLISH, _keys(rows))
        fates = await channel.publish(
            [
                Publication(key, pack(r.envelope for r in group), exchange=exchange)
                for group, (exchange, key) in zip(packed, routes, strict=True)
            ],
            self._settings.confirm_timeout_seconds,
            sent=lambda: failpoints.reach(Point.RELAY_AFTER_PUBLISH, _keys(rows)),
        )
        done: list[OutboxRow] = []
        failed: dict[str, tuple[Fate, int]] = {}  # each destination is paused once
        for group, fate in zip(packed, fates, strict=True):
            if self._is_done(group, fate):
                done.extend(group)
            else:
                destination = group[0].destination
                failed[destination] = fate, len(group) + failed.get(destination, (fate, 0))[1]
        for destination in {row.destination for row in done} - failed.keys():
            self._paused.pop(destination, None)
        for destination, (fate, envelopes) in failed.items():
            self._pause_destination(destination, fate, envelopes)
        return done

    def _is_done(self, group: Sequence[OutboxRow], fate: Fate) -> bool:
        destination = group[0].destination
        if fate is Fate.RETURNED and is_private_reply_queue(destination):
            # The queue is gone; whoever asks again gets the stored reply again.
            logger.warning(
                "relay.reply_undeliverable", destination=destination, envelopes=len(group)
            )
            return True
        return fate is Fate.CONFIRMED

    def _pause_destination(self, destination: str, fate: Fate, envelopes: int) -> None:
        self._distrust_outbox()
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
