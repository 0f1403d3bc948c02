"""The one loop shape: every daemon is a coroutine that runs until a server fails it.

Owns: starting over with backoff after Infrastructure, and stopping in good order.
Anything else that escapes a daemon is a defect and ends the process, loudly.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from common.kit import log
from common.kit.health import Health
from common.kit.settings import Settings
from common.messages.errors import BadDeploy, Infrastructure

logger = log.get("daemon")

T = TypeVar("T")


class Backoff:
    """Pauses that double up to a cap, with full jitter; a success starts them over."""

    def __init__(self, first_seconds: float, cap_seconds: float, stop: asyncio.Event) -> None:
        self._first = first_seconds
        self._cap = cap_seconds
        self._stop = stop
        self._failures = 0

    @classmethod
    def of_retries(cls, settings: Settings, stop: asyncio.Event) -> Backoff:
        return cls(settings.retry_first_seconds, settings.retry_cap_seconds, stop)

    def reset(self) -> None:
        self._failures = 0

    async def pause(self) -> bool:
        """Wait for the pause or for shutdown; return whether to go on."""
        ceiling = min(self._cap, self._first * 2**self._failures)
        self._failures = min(self._failures + 1, 16)
        return not await wait_for(self._stop, random.uniform(ceiling / 4, ceiling))  # noqa: S311 - not a secret


async def wait_for(event: asyncio.Event, seconds: float) -> bool:
    """Wait for the event with a deadline; return whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
    return event.is_set()


async def unless(stop: asyncio.Event, awaited: Coroutine[Any, Any, T]) -> T | None:
    """Return the result, or None at shutdown, which cancels what was awaited."""
    task = asyncio.create_task(awaited)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([task, stopping], return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        task.cancel()
        stopping.cancel()


async def keep_running(
    name: str,
    run: Callable[[], Awaitable[None]],
    settings: Settings,
    health: Health,
    stop: asyncio.Event,
) -> None:
    """Run the daemon until shutdown; after a server's failure, run it again with backoff.

    `run` sets its own check in `health` once it works, and returns when `stop` is set.
    """
    backoff = Backoff.of_retries(settings, stop)
    # Doubling, since each attempt returns the deliveries in hand, and the broker counts that.
    pauses = Backoff(settings.bad_deploy_pause_seconds, settings.bad_deploy_pause_cap_seconds, stop)
    while not stop.is_set():
        started = asyncio.get_running_loop().time()
        try:
            await run()
        except BadDeploy as error:
            health.set(name, f"bad deploy: {error}")
            logger.exception("daemon.bad_deploy", daemon=name)
            lasted = asyncio.get_running_loop().time() - started
            if error.some_handled or lasted > settings.bad_deploy_pause_seconds:
                pauses.reset()
            await pauses.pause()
        except Infrastructure as error:
            health.set(name, str(error))
            logger.warning("daemon.interrupted", daemon=name, error=str(error))
            if asyncio.get_running_loop().time() - started > settings.retry_cap_seconds:
                backoff.reset()
            await backoff.pause()
