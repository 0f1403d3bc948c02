"""Retry and isolate: find the messages that make a batch fail, and give each member an outcome.

A batch that fails is handled again one message at a time. While a server is down the batch is kept
and retried: it is not the messages' fault (rule 13). A message that was returned to the queue more
than once may have killed the process; it runs alone, and the attempt is counted and committed
first, so that it is found (rule 14, ADR 5).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar, cast

from common.kit import log, metrics
from common.kit.daemon import Backoff
from common.kit.failpoints import Commit
from common.kit.health import Health
from common.kit.settings import Settings
from common.messages.envelope import Envelope, Unreadable
from common.messages.errors import Infrastructure, Poison
from common.storage.db import Database
from common.transport.bad_deploy import BadDeployDetector
from common.transport.broker import Channel
from common.transport.dead_letter import Dead

logger = log.get("consumer")

T = TypeVar("T")
R = TypeVar("R")
EXHAUSTED = "exhausted"


@dataclass(frozen=True, slots=True)
class Handled:
    """The message was handled, in a committed transaction."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Handling raised an unexpected error; the message may be retried."""


@dataclass(eq=False, slots=True)
class Member(Generic[T]):
    """One message of a delivery, what the service parsed it to, and what became of it."""

    message: Envelope | Unreadable
    item: T | None = None
    alone: bool = False
    outcome: Handled | Failed | Dead | None = None

    @property
    def envelope(self) -> Envelope:
        """Return the message, which could be read."""
        return cast("Envelope", self.message)


class Retry(Generic[T]):
    """Handles members of one queue, and reports what it finds to the bad-deploy detector."""

    def __init__(
        self,
        queue: str,
        handle: Callable[[Sequence[T]], Awaitable[bool]],
        detector: BadDeployDetector,
        *,
        db: Database,
        settings: Settings,
        health: Health,
        stop: asyncio.Event,
    ) -> None:
        self._queue = queue
        self._handle = handle
        self._detector = detector
        self._db = db
        self._settings = settings
        self._health = health
        self._stop = stop

    async def handle_batch(self, channel: Channel, members: Sequence[Member[T]]) -> None:
        """Attempt each member once: together, or one by one if that raises. Suspects run alone."""
        together = [member for member in members if not member.alone]
        if together:
            try:
                await self._handle_members(channel, together)
            except Infrastructure:
                raise
            except Exception:  # whichever it is, one by one spares the others
                logger.warning(
                    "batch.retried_one_by_one",
                    queue=self._queue, envelopes=len(together), exc_info=True,
                )  # fmt: skip
                for member in together:
                    await self._handle_one(channel, member)
        await self.handle_individually(channel, [member for member in members if member.alone])

    async def handle_individually(self, channel: Channel, members: Sequence[Member[T]]) -> None:
        """Attempt each member once, alone, after counting and committing the attempt."""
        for member in members:
            counting = partial(self._count_try, member.envelope)
            tries = await self._retry_while_unavailable(channel, [member], counting)
            if tries > self._settings.solo_tries:
                member.outcome = Dead(EXHAUSTED, f"{self._settings.solo_tries} tries alone")
                continue
            await self._handle_one(channel, member)
            if not isinstance(member.outcome, Failed):
                await self.forget_tries(channel, member)

    async def forget_tries(self, channel: Channel, member: Member[T]) -> None:
        """Remove the count of a message's attempts."""
        forgetting = partial(self._forget_tries, member.envelope)
        await self._retry_while_unavailable(channel, [member], forgetting)

    def report_health(self) -> None:
        verdict = self._detector.verdict(_now())
        self._health.set(self._queue, verdict and f"bad deploy: {verdict}")

    async def _handle_one(self, channel: Channel, member: Member[T]) -> None:
        try:
            await self._handle_members(channel, [member])
        except Infrastructure:
            raise
        except Poison as poison:
            member.outcome = Dead(poison.reason, str(poison))
        except Exception as error:
            logger.warning(
                "envelope.failed", queue=self._queue, **member.envelope.log_fields, exc_info=True
            )
            self._detector.record_failure(member.envelope.key, error, _now())
            member.outcome = Failed()

    async def _handle_members(self, channel: Channel, members: Sequence[Member[T]]) -> None:
        handling = partial(self._handle, [cast("T", member.item) for member in members])
        handlers_ran = await self._retry_while_unavailable(channel, members, handling)
        keys = [member.envelope.key for member in members]
        self._detector.record_success(keys, _now(), handlers_ran=handlers_ran)
        for member in members:
            member.outcome = Handled()

    async def _retry_while_unavailable(
        self, channel: Channel, members: Sequence[Member[T]], act: Callable[[], Awaitable[R]]
    ) -> R:
        """Retry until no server is down, or raise Infrastructure: BrokerGone, or at shutdown."""
        backoff = Backoff.of_retries(self._settings, self._stop)
        about = members[0].envelope.log_fields if len(members) == 1 else {}
        while True:
            channel.check()
            try:
                with log.about(queue=self._queue, envelopes=len(members), **about):
                    result = await act()
            except Infrastructure as error:
                logger.warning(
                    "batch.held", queue=self._queue, envelopes=len(members), error=str(error),
                    **about,
                )  # fmt: skip
                self._health.set(self._queue, str(error))
                metrics.HELD.labels(self._queue).inc()
                if self._stop.is_set():
                    raise
                await backoff.pause()
            else:
                self.report_health()
                return result

    async def _count_try(self, envelope: Envelope) -> int:
        async with self._db.transaction(Commit.TRIES) as tx:
            tx.keys = [envelope.key]
            [(tries,)] = await tx.fetch(
                "insert into solo_tries as t (saga_id, step, direction, reply, tries)"
                " values (%s, %s, %s, %s, 1) on conflict (saga_id, step, direction, reply)"
                " do update set tries = t.tries + 1 returning tries",
                (*envelope.key, envelope.outcome is not None),
            )
        return int(tries)

    async def _forget_tries(self, envelope: Envelope) -> None:
        async with self._db.transaction(Commit.TRIES_DONE) as tx:
            tx.keys = [envelope.key]
            tx.queue_write(
                "delete from solo_tries where (saga_id, step, direction, reply) = (%s, %s, %s, %s)",
                (*envelope.key, envelope.outcome is not None),
            )


def _now() -> float:
    return asyncio.get_running_loop().time()
