"""Queries to the other services, and what waits in this one's own queues."""

from __future__ import annotations

from typing import TypeVar

from common.messages.envelope import Answer, Query
from common.messages.shop.inventory import StockPage, StockQuery
from common.messages.shop.payment import AccountsPage, AccountsQuery
from common.messages.topology import ORCHESTRATOR_REPLIES, queries_of
from common.process.process import Process
from common.transport.query import Asker

A = TypeVar("A", bound=Answer)


class Services:
    """Everything the operator's API asks over the broker."""

    def __init__(self, process: Process, asker: Asker) -> None:
        self._process = process
        self._asker = asker

    async def ask(self, service: str, query: Query, expected: type[A]) -> A:
        """Send a query to a service and return its answer. Raises NoAnswer."""
        answer = await self._asker.ask(queries_of(service), query)
        if not isinstance(answer, expected):
            raise TypeError(f"{service} answered {type(answer).__name__} to {query}")
        return answer

    async def stock(self, query: StockQuery) -> StockPage:
        return await self.ask("inventory", query, StockPage)

    async def accounts(self, query: AccountsQuery) -> AccountsPage:
        return await self.ask("payment", query, AccountsPage)

    async def backlog(self) -> str | None:
        """Return what must be sent or read before deadlines may be checked (rule 6), or None."""
        channel = await self._process.broker.channel()
        try:
            waiting = (await channel.depth(ORCHESTRATOR_REPLIES)).ready
        finally:
            channel.close()
        if waiting:
            return f"{waiting} replies wait to be read"
        return None if self._process.relay.flushed else "commands wait to be sent"
