"""Places orders at the door, many at once, and records requests and answers in the history."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
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

Count = Callable[[int], None]


async def place_orders(
    endpoints: Endpoints,
    asks: Sequence[Ask],
    history: History,
    *,
    run: int,
    deadline_seconds: float,
    heard: Count = lambda _: None,
) -> None:
    """Repeat every order until it is answered or the time is up; the history shows which were not.

    `heard` is called with the number of answers so far. A request waits for those before it that
    hold one of its keys, so that it is known which of two contents comes first. Everything else
    overlaps.
    """
    answered = 0

    def more(count: int) -> None:
        nonlocal answered
        answered += count
        heard(answered)

    bulks = [asks[n : n + BULK] for n in range(0, len(asks), BULK)]
    async with httpx.AsyncClient(
        base_url=endpoints.door_url, headers=endpoints.door_headers,
        timeout=ANSWER_SECONDS, trust_env=False,
    ) as client:  # fmt: skip
        try:
            async with asyncio.timeout(deadline_seconds), asyncio.TaskGroup() as group:
                under_way: dict[asyncio.Task[None], set[CustomerKey]] = {}
                for bulk in bulks:
                    keys = {ask.customer_key for ask in bulk}
                    while len(under_way) >= IN_FLIGHT or any(keys & k for k in under_way.values()):
                        await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                        under_way = {t: k for t, k in under_way.items() if not t.done()}
                    placing = _place(client, bulk, history, run, more)
                    under_way[group.create_task(placing)] = keys
        except TimeoutError:
            return


async def _place(
    client: httpx.AsyncClient, bulk: Sequence[Ask], history: History, run: int, more: Count
) -> None:
    for ask in bulk:
        history.record(Asked(run=run, line=ask.number, key=ask.key, body=ask.body))
    waiting = list(bulk)
    pause = FIRST_PAUSE_SECONDS
    while True:
        answers = await _ask(client, waiting)
        again = [
            ask for ask, a in zip(waiting, answers, strict=True) if not _note(history, run, ask, a)
        ]
        more(len(waiting) - len(again))
        if not again:
            return
        waiting = again
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


async def _ask(client: httpx.AsyncClient, bulk: Sequence[Ask]) -> list[dict[str, Any] | str]:
    """Return the door's result for each, or why there is none."""
    orders = [{**ask.body, "idempotency_key": ask.key} for ask in bulk]
    try:
        response = await client.post("/orders/bulk", json={"orders": orders})
    except httpx.TransportError as error:
        return [repr(error)] * len(bulk)
    if response.status_code >= SERVER_ERROR or response.status_code == TOO_MANY_REQUESTS:
        return [f"{response.status_code}: {response.text[:200]}"] * len(bulk)
    results: list[dict[str, Any] | str] = response.raise_for_status().json()["results"]
    return results


def _note(history: History, run: int, ask: Ask, answer: dict[str, Any] | str) -> bool:
    """Record it, and return whether it is an answer; a broken request may have arrived or not."""
    line = ask.number
    if isinstance(answer, str):
        history.record(Unknown(run=run, line=line, why=answer))
        return False
    status: int = answer["http_status"]
    if status == ACCEPTED:
        history.record(Answered(run=run, line=line, status=status, body=answer["order"]))
    elif status < SERVER_ERROR:
        history.record(Refused(run=run, line=line, status=status, body=answer["problem"]))
    else:
        history.record(Unknown(run=run, line=line, why=str(answer["problem"])))
    return status < SERVER_ERROR
