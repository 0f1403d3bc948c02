"""Taking dead letters in: from every dead-letter queue into a table, and into their sagas.

Both happen in one transaction, committed before the ack; a redelivery changes nothing. A dead
letter is stored whatever it holds. Must not know: SQL, what a saga makes of a dead letter.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

from common.kit import failpoints, log
from common.kit.failpoints import Commit, Point
from common.kit.health import Health
from common.messages.envelope import Key
from common.messages.errors import BadDeploy, Infrastructure, Poison
from common.messages.topology import dead_letter_queue, work_queue
from common.transport.broker import Broker, Consumer, Delivery
from orchestrator.dead_letters import store
from orchestrator.dead_letters.letter import DeadLetter, dead_letters_of
from orchestrator.engine.inputs import DeadLettered
from orchestrator.runtime.arrivals import take_dead_start
from orchestrator.runtime.batch import Batch
from orchestrator.runtime.service import Service

logger = log.get("dead_letters")

PREFETCH = 100  # deliveries in one transaction; each may be as large as the broker allows
ABOUT_NOTHING = ("unknown_saga", "unknown_definition", "illegal_transition")


class Intake:
    """The consumer of one queue's dead letters. Any number may run."""

    def __init__(
        self, queue: str, service: Service, broker: Broker, health: Health, stop: asyncio.Event
    ) -> None:
        self._queue = queue
        self._service = service
        self._broker = broker
        self._health = health
        self._stop = stop

    @property
    def name(self) -> str:
        return dead_letter_queue(self._queue)

    async def run(self) -> None:
        channel = await self._broker.channel()
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await channel.declare(work_queue(self._queue))
            consumer = await channel.consume(self.name, PREFETCH)
            stopping.add_done_callback(lambda _: consumer.interrupt())
            self._health.set(self.name, None)
            while not self._stop.is_set():
                await consumer.arrival()
                await self.take_in(consumer)
        finally:
            stopping.cancel()
            channel.close()

    async def take_in(self, consumer: Consumer) -> None:
        """Store all that is waiting, one by one if the batch raises, then ack."""
        deliveries: list[Delivery] = []
        while len(deliveries) < PREFETCH and (one := consumer.take_waiting()) is not None:
            deliveries.append(one)
        letters = [
            letter for d in deliveries for letter in dead_letters_of(self._queue, d.body, d.headers)
        ]
        if not letters:
            return
        try:
            await self._keep(letters)
        except Infrastructure:
            raise
        except Exception:  # any defect: it may concern one of them only
            logger.exception("dead_letters.retried_one_by_one", queue=self._queue)
            for letter in letters:
                await self._keep_alone(letter)
        failpoints.reach(Point.INTAKE_BEFORE_ACK, _keys(letters))
        consumer.channel.ack([delivery.tag for delivery in deliveries])
        failpoints.reach(Point.INTAKE_AFTER_ACK, _keys(letters))

    async def _keep_alone(self, letter: DeadLetter) -> None:
        """Store a dead letter even if its saga cannot decide it."""
        try:
            await self._keep([letter])
        except Infrastructure:
            raise
        except Exception:
            logger.exception("dead_letter.saga_not_told", letter_id=letter.letter_id)
            try:
                await self._keep([letter], decide=False)
            except Infrastructure:
                raise
            except Exception as error:
                raise BadDeploy(f"dead letter {letter.letter_id} cannot be kept") from error

    async def _keep(self, letters: Sequence[DeadLetter], *, decide: bool = True) -> None:
        sagas = [letter.key.saga_id for letter in letters if decide and letter.key]
        async with self._service.batch(Commit.INTAKE, sagas) as batch:
            batch.tx.keys = _keys(letters)
            # After the locks: a replica that has stored the same dead letter has then committed.
            known = await store.last_occasions(batch.tx, [letter.letter_id for letter in letters])
            new = {
                (letter.letter_id, letter.occasion): letter
                for letter in letters
                if known.get(letter.letter_id) != letter.occasion
            }.values()
            for letter in new:
                if decide and letter.key:
                    _decide(batch, letter, letter.key)
            times = Counter(letter.letter_id for letter in new)
            counted = [
                (letter, times[letter.letter_id])
                for letter in {letter.letter_id: letter for letter in new}.values()
            ]
            store.keep(batch.tx, counted)
        for letter, count in counted:
            about = letter.about
            logger.warning(
                "dead_letter.kept",
                queue=letter.queue,
                reason=letter.reason,
                times=count,
                saga_id=about.saga_id,
                step=about.step,
                direction=about.direction,
                letter_id=letter.letter_id,
            )


def _decide(batch: Batch, letter: DeadLetter, key: Key) -> None:
    """Decide a dead letter; one about no known saga or step is stored and leads to nothing."""
    if batch.is_archived(key.saga_id):
        logger.info("dead_letter.about_nothing", letter_id=letter.letter_id, why="archived")
        return
    try:
        if letter.start is not None:
            take_dead_start(batch, key.saga_id, letter.start, letter.reason)
        else:
            dead = DeadLettered(key.step, key.direction, letter.reason, letter.about.reply)
            batch.apply(key.saga_id, dead)
    except Poison as nothing:
        if nothing.reason not in ABOUT_NOTHING:
            raise
        logger.info("dead_letter.about_nothing", letter_id=letter.letter_id, why=str(nothing))


def _keys(letters: Sequence[DeadLetter]) -> list[Key]:
    return [letter.key for letter in letters if letter.key is not None]
