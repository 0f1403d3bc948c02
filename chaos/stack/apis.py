"""Requests to the two HTTP APIs; orders and returns are recorded in the history for the judge."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import httpx

from chaos.judge.history import Answered, Asked, History, Refused, ReturnAnswered, ReturnAsked
from chaos.load.catalogue import place_by_command
from chaos.load.placer import place_orders
from chaos.load.workload import Ask
from chaos.runtime import Endpoints
from chaos.waiting import WITHIN_SECONDS, ExperimentError, until

RETURNS_AT_ONCE = 8  # requests
TOO_MANY_REQUESTS = 429
BECAUSE = {"reason": "the experiment wants it"}


class Door:
    """The customer API."""

    def __init__(self, endpoints: Endpoints, history: History) -> None:
        self._endpoints = endpoints
        self._history = history
        self._runs = itertools.count(1)

    def get(self, path: str) -> Any:
        return self._request("GET", path).raise_for_status().json()

    def post(self, ask: Ask) -> httpx.Response:
        """POST /orders, once."""
        run = next(self._runs)
        self._history.record(Asked(run=run, line=ask.number, key=ask.key, body=ask.body))
        response = self._request("POST", "/orders", ask.key, json=ask.body)
        if response.is_server_error:
            raise ExperimentError(response.text)
        kind = Answered if response.is_success else Refused
        status, body = response.status_code, response.json()
        self._history.record(kind(run=run, line=ask.number, status=status, body=body))
        return response

    def place_file(self, asks: Sequence[Ask]) -> list[Answered | Refused]:
        """Place orders in bulk, repeating until each has an answer; return the answers in order."""
        run = next(self._runs)
        placing = place_orders(
            self._endpoints, asks, self._history, run=run, deadline_seconds=WITHIN_SECONDS
        )
        answers = asyncio.run(placing)
        unanswered = [ask.key for ask in asks if ask.number not in answers]
        if unanswered:
            raise ExperimentError(
                f"no answer to {len(unanswered)} orders, among them {unanswered[0]}"
            )
        return [answers[ask.number] for ask in asks]

    def place(self, asks: Sequence[Ask]) -> list[UUID]:
        """Place orders in bulk, all of which must be accepted; return their ids."""
        answers = self.place_file(asks)
        refused = [answer.body for answer in answers if isinstance(answer, Refused)]
        if refused:
            raise ExperimentError(f"{len(refused)} orders refused, among them {refused[0]}")
        return [UUID(answer.body["order_id"]) for answer in answers]

    @contextmanager
    def placing(self, asks: Sequence[Ask]) -> Iterator[Future[list[UUID]]]:
        """Place orders while the block runs."""
        with ThreadPoolExecutor(1) as pool:
            placed = pool.submit(self.place, asks)
            yield placed
            placed.result()

    def place_by_command(self, asks: Sequence[Ask]) -> list[UUID]:
        """Place orders by command over the broker, all of which must be accepted."""
        run = next(self._runs)
        for ask in asks:
            self._history.record(Asked(run=run, line=ask.number, key=ask.key, body=ask.body))
        amqp_url = self._endpoints.amqp_url
        answers = place_by_command(amqp_url, asks, deadline_seconds=WITHIN_SECONDS)
        for ask, body in zip(asks, answers, strict=True):
            self._history.record(Answered(run=run, line=ask.number, status=202, body=body))
        return [UUID(body["order_id"]) for body in answers]

    def give_back(self, orders: Sequence[UUID], *keys: str) -> list[UUID | None]:
        """Return each order once per key, all at once, repeating until there is an answer.

        The result is each return's id, or None for a refusal.
        """
        wanted = [(order, key) for order in orders for key in keys]
        with ThreadPoolExecutor(RETURNS_AT_ONCE) as pool:
            return list(pool.map(self._give_back, *zip(*wanted, strict=True)))

    def _give_back(self, order: UUID, key: str) -> UUID | None:
        self._history.record(ReturnAsked(order_id=str(order), key=key))

        def answered() -> httpx.Response | None:
            try:
                response = self._request("POST", f"/orders/{order}/returns", key)
            except httpx.TransportError:
                return None
            again = response.is_server_error or response.status_code == TOO_MANY_REQUESTS
            return None if again else response

        response = until(answered, f"the door says whether order {order} may go back")
        status, return_id = response.status_code, response.json().get("return_id")
        self._history.record(
            ReturnAnswered(order_id=str(order), key=key, status=status, return_id=return_id)
        )
        return UUID(return_id) if return_id else None

    def cancel(self, order_id: UUID) -> httpx.Response:
        """POST /orders/{id}/cancel, once, as the order's customer."""
        return self._request("POST", f"/orders/{order_id}/cancel")

    def _request(
        self, method: str, path: str, key: str | None = None, **more: Any
    ) -> httpx.Response:
        headers = self._endpoints.door_headers
        if key:
            headers["Idempotency-Key"] = key
        url = self._endpoints.door_url + path
        return httpx.request(
            method, url, headers=headers, timeout=WITHIN_SECONDS, trust_env=False, **more
        )


class Operator:
    """The operator API."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints

    def decide(self, verb: str, saga_id: UUID) -> httpx.Response:
        """Approve or reject a parked saga, once."""
        return self.post(f"/sagas/{saga_id}/{verb}", BECAUSE)

    def post(self, path: str, body: Mapping[str, str]) -> httpx.Response:
        return httpx.post(
            f"{self._endpoints.http_urls['operator']}{path}",
            json=dict(body),
            headers={"Authorization": f"Bearer {self._endpoints.operator_token}"},
            timeout=WITHIN_SECONDS,
            trust_env=False,
        )
