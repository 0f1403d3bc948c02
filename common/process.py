"""What every process is made of: settings, log, database, broker, relay, health, a good end.

Owns: starting in order, running the daemons side by side, stopping on SIGTERM within ten
seconds. A composition root fills it; see any service's __main__.py.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from common import log
from common.broker import Broker
from common.consumer import BatchConsumer
from common.daemon import keep_running
from common.db import Database, migrate
from common.envelope import Command
from common.health import Health
from common.participant import Handler, OnDuplicate, Participant, Store
from common.relay import Relay
from common.settings import Settings
from common.topology import commands_of

logger = log.get("process")

COMMON_MIGRATIONS = Path(__file__).parent / "migrations"
STOP_WITHIN_SECONDS = 8.0  # of the ten that whoever stops us waits; then it is cut off, safely


class Process:
    """The parts that daemons share, and the daemons."""

    def __init__(self, settings: Settings, *checks: str) -> None:
        self.settings = settings
        self.stop = asyncio.Event()
        self.health = Health("relay", *checks)
        self.db = Database(settings)
        self.broker = Broker(settings)
        self.relay = Relay(self.db, self.broker, settings, self.health, self.stop)
        self._daemons: dict[str, Callable[[], Awaitable[None]]] = {"relay": self.relay.run}

    def add(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """A daemon of this process; `name` is also its check in /ready."""
        self._daemons[name] = run

    def consumer(
        self,
        queue: str,
        parse: Callable[..., Any],
        handle: Callable[..., Any],
        room: Callable[[], Coroutine[Any, Any, None]] | None = None,
    ) -> BatchConsumer[Any]:
        consumer = BatchConsumer(
            queue,
            parse,
            handle,
            room=room,
            db=self.db,
            broker=self.broker,
            settings=self.settings,
            health=self.health,
            stop=self.stop,
        )
        self.add(queue, consumer.run)
        return consumer

    async def run(self) -> None:
        """Until told to stop, or a daemon dies of a defect, which is raised."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        async with (
            self.db,
            self.health.served(self.settings.health_host, self.settings.health_port),
        ):
            logger.info("process.started")
            gc.freeze()  # what is here stays; batches make many objects and few cycles
            gc.set_threshold(50_000, 20, 20)
            tasks = [
                asyncio.create_task(
                    keep_running(name, run, self.settings, self.health, self.stop), name=name
                )
                for name, run in self._daemons.items()
            ]
            try:
                await self._until_stopped(tasks)
            finally:
                await self.broker.close()
            logger.info("process.stopped")

    async def _until_stopped(self, tasks: list[asyncio.Task[None]]) -> None:
        stopping: asyncio.Task[Any] = asyncio.create_task(self.stop.wait())
        done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
        self.stop.set()
        self.health.set("stopping", "told to stop")
        self.relay.wake()
        # Daemons that wait for the broker have nothing in hand; those with a batch finish it.
        _, pending = await asyncio.wait(tasks, timeout=STOP_WITHIN_SECONDS)
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        for task in done - {stopping}:
            task.result()


def prepare(service: str, migrations: Path, settings: Settings | None = None) -> Settings:
    """Settings from the environment, logs configured, the schema migrated."""
    settings = settings or Settings()  # filled from the environment
    if not settings.process:
        settings = settings.model_copy(update={"process": service})
    log.configure(settings.process, settings.log_level)
    applied = migrate(settings, COMMON_MIGRATIONS, migrations)
    if applied:
        logger.info("schema.migrated", migrations=applied)
    return settings


def run_participant(
    service: str,
    package: Path,
    store: Store[Any],
    handlers: Mapping[type[Command], Handler],
    on_duplicate: Mapping[type[Command], OnDuplicate] | None = None,
) -> None:
    """A participant's whole composition root: its queue against its store and handlers."""
    settings = prepare(service, package / "migrations")

    async def main() -> None:
        queue = commands_of(service)
        process = Process(settings, queue)
        participant = Participant(
            process.db, store, handlers, on_duplicate=on_duplicate, wake=process.relay.wake
        )
        process.consumer(queue, participant.parse, participant.handle)
        await process.run()

    asyncio.run(main())
