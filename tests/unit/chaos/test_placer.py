"""Placing orders through a door that fails now and then: every order is answered, none changed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from chaos.judge.history import Answered, Asked, Event, History, Refused, Unknown
from chaos.load.placer import BULK, place_orders
from chaos.load.workload import Ask
from chaos.runtime import Endpoints

KEY = "the-key-of-the-door"


class FlakyDoor:
    """Accepts what has customer ann; its first `outages` requests end in a 503."""

    def __init__(self, outages: int) -> None:
        self.outages = outages
        self.requests: list[list[str]] = []  # the keys of each request that was served
        self.busy: set[str] = set()
        self.overlapped: set[str] = set()  # keys that were under way twice at once

    async def bulk(self, request: Request) -> Response:
        assert request.headers["authorization"] == f"Bearer {KEY}"
        if self.outages:
            self.outages -= 1
            return PlainTextResponse("starting", 503)
        orders = (await request.json())["orders"]
        keys = [order["idempotency_key"] for order in orders]
        self.overlapped |= self.busy & set(keys)
        self.busy |= set(keys)
        await asyncio.sleep(0.01)  # long enough for others to overlap, if they may
        self.busy -= set(keys)
        self.requests.append(keys)
        return JSONResponse({"results": [self._result(order) for order in orders]})

    def _result(self, order: dict[str, Any]) -> dict[str, Any]:
        key = order["idempotency_key"]
        if order.get("customer") == "ann":
            body = {"order_id": f"id of {key}", "total": 1}
            return {"idempotency_key": key, "http_status": 202, "order": body}
        problem = {"error": "invalid_order", "remedy": "be ann"}
        return {"idempotency_key": key, "http_status": 422, "problem": problem}


@pytest.fixture
async def door(request: pytest.FixtureRequest) -> AsyncIterator[tuple[FlakyDoor, str]]:
    flaky = FlakyDoor(outages=getattr(request, "param", 0))
    app = Starlette(routes=[Route("/orders/bulk", flaky.bulk, methods=["POST"])])
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    serving = asyncio.create_task(server.serve())
    async with asyncio.timeout(10):
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield flaky, f"http://127.0.0.1:{port}"
    server.should_exit = True
    await serving


def asks(count: int) -> list[Ask]:
    return [Ask(n, f"k-{n}", {"customer": "ann"}) for n in range(1, count + 1)]


async def place(url: str, what: list[Ask], path: Path, seconds: float = 10) -> list[Event]:
    with closing(History(path / "history.jsonl")) as history:
        counts: list[int] = []
        await place_orders(
            Endpoints("", "", {}, "", "", {"door": url}, {}, path, KEY, ""), what, history,
            run=1, deadline_seconds=seconds, progress=counts.append,
        )  # fmt: skip
        assert counts == sorted(counts)
        return history.events


def lines(events: list[Event], kind: type[Asked | Answered | Refused | Unknown]) -> list[int]:
    return sorted(e.line for e in events if isinstance(e, kind))


async def test_every_order_is_asked_and_answered_once(
    door: tuple[FlakyDoor, str], tmp_path: Path
) -> None:
    flaky, url = door
    events = await place(url, asks(3 * BULK + 1), tmp_path)
    everything = list(range(1, 3 * BULK + 2))
    assert lines(events, Asked) == lines(events, Answered) == everything
    assert sorted(map(len, flaky.requests)) == [1, BULK, BULK, BULK]


async def test_a_refusal_is_an_answer_for_its_line_alone(
    door: tuple[FlakyDoor, str], tmp_path: Path
) -> None:
    _, url = door
    what = [*asks(2), Ask(3, "k-3", {"customer": "bob"})]
    events = await place(url, what, tmp_path)
    assert lines(events, Answered) == [1, 2]
    assert lines(events, Refused) == [3]


@pytest.mark.parametrize("door", [3], indirect=True)
async def test_an_outage_is_unknown_and_asked_again_with_the_same_keys(
    door: tuple[FlakyDoor, str], tmp_path: Path
) -> None:
    _, url = door
    events = await place(url, asks(2), tmp_path)
    assert lines(events, Unknown) == [1, 1, 1, 2, 2, 2]
    assert lines(events, Answered) == [1, 2]
    assert lines(events, Asked) == [1, 2], "it stays one asking"


async def test_requests_that_share_a_key_do_not_overlap(
    door: tuple[FlakyDoor, str], tmp_path: Path
) -> None:
    flaky, url = door
    what = asks(BULK)
    repeats = [Ask(BULK + n, "k-1", {"customer": "ann"}) for n in range(1, 2 * BULK + 1)]
    await place(url, what + repeats, tmp_path)
    assert flaky.overlapped == set()
    assert flaky.requests[0][0] == "k-1"
    assert len(flaky.requests[0]) == BULK


async def test_no_door_at_all_ends_with_the_deadline(tmp_path: Path) -> None:
    events = await place("http://127.0.0.1:9", asks(1), tmp_path, seconds=0.5)
    assert lines(events, Answered) == []
    assert set(lines(events, Unknown)) == {1}
