"""Dead letters are taken in: from every dead-letter queue into a table, and the saga is told.

Owns: that both are one transaction, committed before the ack, and that a redelivery changes
nothing. Whatever a letter holds, it is kept. Must not know: SQL, what a saga makes of the news.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

from common.kit import failpoints, log
from common.kit.failpoints import Commit, Point
from common.kit.health import Health
from common.messages.envelope import Key
from common.messages.errors import BadDeploy, Infrastructure, Poison
from common.messages.topology import dead_letter_queue, work_queue
from common.storage.db import Database
from common.transport.broker import Broker, Consumer, Delivery
from orchestrator.dead_letters import store
from orchestrator.dead_letters.letter import Letter, letters_of
from orchestrator.engine.inputs import DeadLettered
from orchestrator.runtime.batch import Round
from orchestrator.runtime.service import Service

logger = log.get("dead_letters")

PREFETCH = 100  # letters in one transaction; each may be as large as the broker lets it be
ABOUT_NOTHING = ("unknown_saga", "unknown_definition", "illegal_transition")


class Intake:
    """Of one queue's dead letters. Any number of them may run."""

    def __init__(
        self,
        queue: str,
        service: Service,
        db: Database,
        broker: Broker,
        health: Health,
        stop: asyncio.Event,
    ) -> None:
        self._queue = queue
        self._service = service
        self._db = db
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
        """What is waiting, at once; if that raises, one by one. Acked once it is committed."""
        batch: list[Delivery] = []
        while len(batch) < PREFETCH and (delivery := consumer.take_waiting()) is not None:
            batch.append(delivery)
        letters = [letter for d in batch for letter in letters_of(self._queue, d.body, d.headers)]
        if not letters:
            return
        try:
            await self._keep(letters)
        except Infrastructure:
            raise
        except Exception:  # whatever it is, it is looked at one by one
            logger.exception("dead_letters.retried_one_by_one", queue=self._queue)
            for letter in letters:
                await self._keep_alone(letter)
        failpoints.reach(Point.INTAKE_BEFORE_ACK, _keys(letters))
        consumer.channel.ack([delivery.tag for delivery in batch])
        failpoints.reach(Point.INTAKE_AFTER_ACK, _keys(letters))

    async def _keep_alone(self, letter: Letter) -> None:
        """If its saga cannot be told, it is kept all the same."""
        try:
            await self._keep([letter])
        except Infrastructure:
            raise
        except Exception:
            logger.exception("dead_letter.saga_not_told", letter_id=letter.letter_id)
            try:
                await self._keep([letter], tell=False)
            except Infrastructure:
                raise
            except Exception as error:
                raise BadDeploy(f"dead letter {letter.letter_id} cannot be kept") from error

    async def _keep(self, letters: Sequence[Letter], *, tell: bool = True) -> None:
        async with self._db.transaction(Commit.INTAKE) as tx:
            tx.keys = _keys(letters)
            sagas = [letter.key.saga_id for letter in letters if tell and letter.key]
            round_ = await self._service.open(tx, sagas)
            # After the locks: then whoever took the same letter in before us has committed.
            known = await store.last_times(tx, [letter.letter_id for letter in letters])
            new = {
                (letter.letter_id, letter.set_aside): letter
                for letter in letters
                if known.get(letter.letter_id) != letter.set_aside
            }
            counted: dict[UUID, tuple[Letter, int]] = {}
            for letter in new.values():
                _, before = counted.get(letter.letter_id, (letter, 0))
                counted[letter.letter_id] = (letter, before + 1)
                if tell and letter.key:
                    _tell(round_, letter, letter.key)
            await store.keep(tx, list(counted.values()))
            await round_.save(tx)
        self._service.sent(round_)
        for letter, count in counted.values():
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


def _tell(round_: Round, letter: Letter, key: Key) -> None:
    """Through the front door. A letter about no saga or no step that we know is only kept."""
    if key.saga_id in round_.archived:  # nothing is awaited there any more
        logger.info("dead_letter.about_nothing", letter_id=letter.letter_id, why="archived")
        return
    try:
        if letter.start is not None:
            round_.start_dead_lettered(key.saga_id, letter.start, letter.reason)
        else:
            dead = DeadLettered(key.step, key.direction, letter.reason, letter.about.reply)
            round_.step(key.saga_id, dead)
    except Poison as nothing:
        if nothing.reason not in ABOUT_NOTHING:
            raise
        logger.info("dead_letter.about_nothing", letter_id=letter.letter_id, why=str(nothing))


def _keys(letters: Sequence[Letter]) -> list[Key]:
    return [letter.key for letter in letters if letter.key is not None]
