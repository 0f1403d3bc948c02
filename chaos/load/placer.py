"""Places orders at the door, many at once, and records requests and answers in the history."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any

import httpx

from chaos.judge.history import Answered, Asked, CustomerKey, History, Refused, Unknown
from chaos.load.workload import Ask
from chaos.runtime import Endpoints

BULK = 25  # orders in one request
IN_FLIGHT = 8  # requests
ANSWER_SECONDS = 10.0
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 1.0
ACCEPTED = 202
TOO_MANY_REQUESTS = 429
SERVER_ERROR = 500

Answers = dict[int, Answered | Refused]  # by line


async def place_orders(
    endpoints: Endpoints,
    asks: Sequence[Ask],
    history: History,
    *,
    run: int,
    deadline_seconds: float,
    progress: Callable[[int], None] = lambda _: None,
) -> Answers:
    """Repeat every order until it is answered or the time is up; return the answers there are.

    `progress` is called with the number of answers so far.
    """
    answers: Answers = {}
    async with httpx.AsyncClient(
        base_url=endpoints.door_url, headers=endpoints.door_headers,
        timeout=ANSWER_SECONDS, trust_env=False,
    ) as client:  # fmt: skip

        async def place(bulk: Sequence[Ask]) -> None:
            for ask in bulk:
                history.record(Asked(run=run, line=ask.number, key=ask.key, body=ask.body))
            pause = FIRST_PAUSE_SECONDS
            while True:
                for event in await _post(client, bulk, run):
                    history.record(event)
                    if not isinstance(event, Unknown):
                        answers[event.line] = event
                progress(len(answers))
                bulk = [ask for ask in bulk if ask.number not in answers]
                if not bulk:
                    return
                await asyncio.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

        with suppress(TimeoutError):
            async with asyncio.timeout(deadline_seconds):
                await _overlapping(asks, place)
    return answers


async def _overlapping(
    asks: Sequence[Ask], place: Callable[[Sequence[Ask]], Coroutine[Any, Any, None]]
) -> None:
    """Place bulks at once, but for those that share a key: which content comes first is known."""
    under_way: dict[asyncio.Task[None], set[CustomerKey]] = {}
    async with asyncio.TaskGroup() as group:
        for n in range(0, len(asks), BULK):
            bulk = asks[n : n + BULK]
            keys = {ask.customer_key for ask in bulk}
            while len(under_way) >= IN_FLIGHT or any(keys & k for k in under_way.values()):
                await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                under_way = {t: k for t, k in under_way.items() if not t.done()}
            under_way[group.create_task(place(bulk))] = keys


async def _post(
    client: httpx.AsyncClient, bulk: Sequence[Ask], run: int
) -> list[Answered | Refused | Unknown]:
    """Send one request; a broken one may or may not have arrived."""
    orders = [{**ask.body, "idempotency_key": ask.key} for ask in bulk]
    try:
        response = await client.post("/orders/bulk", json={"orders": orders})
    except httpx.TransportError as error:
        return [Unknown(run=run, line=ask.number, why=repr(error)) for ask in bulk]
    if response.status_code >= SERVER_ERROR or response.status_code == TOO_MANY_REQUESTS:
        why = f"{response.status_code}: {response.text[:200]}"
        return [Unknown(run=run, line=ask.number, why=why) for ask in bulk]
    results = response.raise_for_status().json()["results"]
    return [_event(run, ask.number, result) for ask, result in zip(bulk, results, strict=True)]


def _event(run: int, line: int, result: dict[str, Any]) -> Answered | Refused | Unknown:
    status: int = result["http_status"]
    if status == ACCEPTED:
        return Answered(run=run, line=line, status=status, body=result["order"])
    if status < SERVER_ERROR:
        return Refused(run=run, line=line, status=status, body=result["problem"])
    return Unknown(run=run, line=line, why=str(result["problem"]))
