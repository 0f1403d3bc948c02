"""The parts of every process: settings, log, database, broker, relay, health, shutdown.

A process starts its parts in order, runs its daemons side by side, and stops on SIGTERM within ten
seconds. A composition root fills it; see any service's __main__.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.kit import failpoints, log
from common.kit.daemon import keep_running
from common.kit.health import Health
from common.kit.settings import Settings
from common.messages.contracts import Check, ProcessQuery, ProcessView
from common.messages.envelope import Answer, Command, Query
from common.messages.errors import Infrastructure, SagaproofError
from common.messages.topology import PROCESSES, Exchange, Queue, commands_of, events_of, queries_of
from common.participant.participant import Handler, OnDuplicate, Participant, Store
from common.participant.reactions import Listener, Reactions
from common.process.gauges import Watch
from common.storage.db import Database, Tx, applied_migrations, migrate, shipped_migrations
from common.transport.broker import Broker
from common.transport.consumer import BatchConsumer
from common.transport.query import Answerer, Respond
from common.transport.relay import Relay

logger = log.get("process")

COMMON_MIGRATIONS = Path(__file__).parents[1] / "migrations"
DISTRIBUTION = "sagaproof"
Reader = Callable[[Tx, Any], Awaitable[Answer]]
STOP_WITHIN_SECONDS = 8.0  # of the ten before SIGKILL; then daemons are cancelled, safely


class Process:
    """The daemons of a process, and the parts they share."""

    def __init__(self, settings: Settings, *checks: str) -> None:
        self.settings = settings
        self.stop = asyncio.Event()
        self.health = Health("relay", *checks)
        self.db = Database(settings)
        self.broker = Broker(settings)
        self.relay = Relay(self.db, self.broker, settings, self.health, self.stop)
        self.db.on_committed = self.relay.enqueue
        self.watch = Watch(self.db, settings, self.health, self.stop)
        self._daemons: dict[str, Callable[[], Awaitable[None]]] = {
            "relay": self.relay.run,
            "watch": self.watch.run,
        }

    def add(self, name: str, run: Callable[[], Awaitable[None]]) -> None:
        """Add a daemon; `name` is also its check in /ready."""
        self._daemons[name] = run

    def consumer(
        self,
        queue: str,
        parse: Callable[..., Any],
        handle: Callable[..., Awaitable[bool]],
        wait_for_capacity: Callable[[], Coroutine[Any, Any, None]] | None = None,
        others: Sequence[Queue] = (),
        events: Sequence[str] = (),
    ) -> BatchConsumer[Any]:
        consumer = BatchConsumer(
            queue,
            parse,
            handle,
            wait_for_capacity=wait_for_capacity,
            others=others,
            events=events,
            db=self.db,
            broker=self.broker,
            settings=self.settings,
            health=self.health,
            stop=self.stop,
        )
        self.add(queue, consumer.run)
        return consumer

    def answer(self, source: str | Exchange, responders: Mapping[type[Query], Respond]) -> None:
        """Answer the queries of this queue or exchange."""
        name = source if isinstance(source, str) else source.name
        self.health.set(name, "not started")
        answerer = Answerer(source, responders, self.broker, self.settings, self.health, self.stop)
        self.add(name, answerer.run)

    def answer_from(self, queue: str, readers: Mapping[type[Query], Reader]) -> None:
        """Answer the queries of this queue from the database, each in a READ ONLY transaction."""

        def reading(read: Reader) -> Respond:
            async def respond(query: Query) -> Answer:
                async with self.db.reading() as tx:
                    return await read(tx, query)

            return respond

        self.answer(queue, {query: reading(read) for query, read in readers.items()})

    def announce(self, service: str, migrations: Path) -> None:
        """Answer ProcessQuery, by which `saga doctor` finds the processes."""
        shipped = tuple(shipped_migrations(COMMON_MIGRATIONS, migrations))

        async def view(_: ProcessQuery) -> ProcessView:
            applied: tuple[str, ...] | None = None
            with contextlib.suppress(Infrastructure, TimeoutError):  # then None says so
                # Time enough is left for the answer to be in time.
                async with asyncio.timeout(self.settings.query_timeout_seconds / 2):
                    async with self.db.reading() as tx:
                        applied = tuple(await applied_migrations(tx))
            return ProcessView(
                process=self.settings.process,
                service=service,
                release=_release(),
                ready=self.health.ready,
                checks=tuple(Check(name=n, problem=p) for n, p in self.health.checks.items()),
                shipped=shipped,
                applied=applied,
            )

        self.answer(PROCESSES, {ProcessQuery: view})

    async def run(self) -> None:
        """Run until shutdown, or until a daemon dies of a defect, which is raised."""
        self.health.set("watch", "not started")
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop.set)
        async with (
            self.db,
            self.health.served(self.settings.health_host, self.settings.health_port),
        ):
            logger.info("process.started")
            gc.freeze()  # the modules stay; batches make many objects and few cycles
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


def _release() -> str:
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"  # run from a checkout that was never installed


def prepare(
    service: str, migrations: Path, check: Callable[[Settings], object] = lambda _: None
) -> Settings:
    """Read the settings from the environment, configure the logs, migrate the schema.

    `check` validates the settings before anything else; its SagaproofError ends the process.
    """
    settings = _from_environment()
    try:
        check(settings)
    except SagaproofError as error:
        raise SystemExit(str(error)) from None
    if not settings.process:
        settings = settings.model_copy(update={"process": service})
    log.configure(settings.process, settings.log_level)
    failpoints.watch(settings.failpoint_dir, settings.process)
    applied = migrate(settings, COMMON_MIGRATIONS, migrations)
    if applied:
        logger.info("schema.migrated", migrations=applied)
    return settings


def _from_environment() -> Settings:
    """Read the settings, or exit with a line for each that is missing or wrong."""
    try:
        return Settings()
    except ValidationError as error:
        wrong = ((each["loc"][0], each["msg"]) for each in error.errors())
        lines = [f"SAGAPROOF_{str(name).upper()}: {what}" for name, what in wrong]
    except OSError as error:
        lines = [f"a file that holds a secret: {error}"]
    raise SystemExit("\n".join(lines))


def run_participant(
    service: str,
    package: Path,
    store: Store[Any],
    handlers: Mapping[type[Command], Handler],
    on_duplicate: Mapping[type[Command], OnDuplicate] | None = None,
    responders: Mapping[type[Query], Reader] | None = None,
    reactions: Reactions | None = None,
) -> None:
    """Run a participant: consume its queues with its store and handlers.

    In the choreographed style it also consumes the events it reacts to.
    """
    migrations = package / "migrations"
    settings = prepare(service, migrations)

    async def main() -> None:
        queue = commands_of(service)
        process = Process(settings, queue)
        process.announce(service, migrations)
        participant = Participant(
            process.db, store, handlers, on_duplicate=on_duplicate, process=settings.process
        )
        process.consumer(queue, participant.parse, participant.handle)
        if reactions and settings.style == "choreographed":
            listener = Listener(participant, reactions)
            types = [event.__name__ for event in reactions]
            process.consumer(events_of(service), listener.parse, listener.handle, events=types)
        if responders:
            process.answer_from(queries_of(service), responders)
        await process.run()

    asyncio.run(main())
