"""The relay: outbox to broker.

Owns: packing what waits for one queue into deliveries, publishing, and removing a row
only when the broker has confirmed it (a crash in between means a duplicate, by design).
Any process of a service relays what any other left behind. Must not know: what is in
an envelope.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from common import failpoints, log, metrics, outbox
from common.broker import Broker, Channel, Fate, Publication
from common.daemon import wait_for
from common.db import Database
from common.envelope import MAX_PACKED, Key, key_of, pack
from common.failpoints import Point
from common.health import Health
from common.outbox import Waiting
from common.settings import Settings
from common.topology import EVENTS, is_a_callers, route

logger = log.get("relay")

# At most four bytes each: far below every broker's limit, so that packing cannot make poison.
MAX_DELIVERY_CHARACTERS = 262_144


class Relay:
    """One process's relay. `wake()` after a commit; it looks by itself as well."""

    def __init__(
        self, db: Database, broker: Broker, settings: Settings, health: Health, stop: asyncio.Event
    ) -> None:
        self._db = db
        self._broker = broker
        self._settings = settings
        self._health = health
        self._stop = stop
        self._wanted = asyncio.Event()
        self._paused: dict[str, tuple[float, int]] = {}  # destination: (until, failures)
        self.flushed = (
            False  # the outbox was seen empty since we last connected (section 6, rule 6)
        )

    def wake(self) -> None:
        self._wanted.set()

    async def run(self) -> None:
        channel = await self._broker.channel()
        try:
            if self._settings.style == "choreographed":
                # A queue that is not there returns a message; an exchange ends the channel.
                await channel.declare_exchange(EVENTS)
            self._health.set("relay", None)
            while not self._stop.is_set():
                self._wanted.clear()
                if await self.run_once(channel) < self._settings.relay_rows:
                    await wait_for(self._wanted, self._poll_seconds())
        finally:
            self.flushed = False
            channel.close()

    def _poll_seconds(self) -> float:
        jitter = random.uniform(0.8, 1.2)  # noqa: S311 - replicas should not look all at once
        return self._settings.relay_poll_seconds * jitter

    async def run_once(self, channel: Channel) -> int:
        """Relay what waits, once; how many rows were confirmed and removed."""
        now = asyncio.get_running_loop().time()
        paused = [destination for destination, (until, _) in self._paused.items() if until > now]
        async with self._db.transaction() as tx:
            # Longer than the wait for confirms below; other relays skip what we hold meanwhile.
            patience = self._settings.confirm_timeout_seconds + 1
            rows = await outbox.take(tx, self._settings.relay_rows, paused, patience)
            if rows:
                gone = await self._publish(channel, rows)
                await outbox.remove(tx, gone)
                failpoints.reach(Point.RELAY_AFTER_CONFIRM, _keys(gone))
        if not rows:
            self.flushed = self.flushed or not paused
            return 0
        failpoints.reach(Point.RELAY_AFTER_COMMIT, _keys(gone))
        metrics.RELAYED.inc(len(gone))
        return len(gone)

    async def _publish(self, channel: Channel, rows: Sequence[Waiting]) -> list[Waiting]:
        packed = list(pack_rows(rows))
        failpoints.reach(Point.RELAY_BEFORE_PUBLISH, _keys(rows))
        fates = await channel.publish(
            [
                Publication(key, pack(r.envelope for r in group), exchange=exchange)
                for group in packed
                for exchange, key in [route(group[0].destination)]
            ],
            self._settings.confirm_timeout_seconds,
            sent=lambda: failpoints.reach(Point.RELAY_AFTER_PUBLISH, _keys(rows)),
        )
        gone: list[Waiting] = []
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

    def _may_go(self, group: Sequence[Waiting], fate: Fate) -> bool:
        destination = group[0].destination
        if fate is Fate.RETURNED and is_a_callers(destination):
            # A private queue that is gone; asking again gives the stored reply again.
            logger.warning(
                "relay.reply_undeliverable", destination=destination, envelopes=len(group)
            )
            return True
        return fate is Fate.CONFIRMED

    def _rest(self, destination: str, fate: Fate, envelopes: int) -> None:
        self.flushed = False
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


def _keys(rows: Iterable[Waiting]) -> Iterator[Key]:
    return (key_of(row.envelope) for row in rows)


def pack_rows(rows: Iterable[Waiting]) -> Iterator[list[Waiting]]:
    """Rows to deliveries: one destination each, at most 64 envelopes, not too large."""
    for _, group in groupby(rows, key=lambda row: row.destination):
        packed: list[Waiting] = []
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
