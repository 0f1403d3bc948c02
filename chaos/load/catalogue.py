"""Creates products, stock, accounts (and orders) by idempotent commands over the broker.

Loading the same catalogue again changes nothing: a row's saga id is made from the row, so its
command is the same message.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import uuid5

import pika
from pika.adapters.blocking_connection import BlockingChannel

from chaos.load.workload import Ask, Catalogue
from common.messages.envelope import (
    MAX_PACKED,
    ORDERS,
    Command,
    Direction,
    Envelope,
    Key,
    Outcome,
    Unreadable,
    pack,
    saga_id_for,
    unpack,
)
from common.messages.shop.inventory import ReceiveStock
from common.messages.shop.order import ListProduct, PlaceOrder
from common.messages.shop.payment import Deposit, OpenAccount
from common.messages.topology import commands_of

REPLIES = "chaos.catalogue.replies"
"""Durable and left in place: a reply whose queue is gone would stay in its outbox for ever."""

RESEND_SECONDS = 3.0


class CatalogueError(Exception):
    """A service refused a row of the catalogue, or did not answer in time."""


class Row(NamedTuple):
    queue: str
    envelope: Envelope


def load_catalogue(amqp_url: str, catalogue: Catalogue, *, deadline_seconds: float) -> int:
    """Return the number of rows once all are answered. Raises CatalogueError."""
    deadline = time.monotonic() + deadline_seconds
    phases = (list(_rows(catalogue)), list(_deposits(catalogue)))
    with _connected(amqp_url) as channel:
        return sum(1 for rows in phases for _ in _answered(channel, rows, deadline))


def place_by_command(
    amqp_url: str, asks: Sequence[Ask], *, deadline_seconds: float
) -> list[dict[str, Any]]:
    """Return the order service's answer to each. Raises CatalogueError."""
    deadline = time.monotonic() + deadline_seconds
    rows = [_order(ask) for ask in asks]
    with _connected(amqp_url) as channel:
        bodies = {row.envelope.message_id: body for row, body in _answered(channel, rows, deadline)}
    return [bodies[row.envelope.message_id] for row in rows]


@contextmanager
def _connected(amqp_url: str) -> Iterator[BlockingChannel]:
    with pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare(REPLIES, durable=True)
        yield channel


def _answered(
    channel: BlockingChannel, rows: list[Row], deadline: float
) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Yield each row with the answer once its command is done; resend what is not answered."""
    waiting = {row.envelope.message_id: row for row in rows}
    while waiting:
        if time.monotonic() > deadline:
            late = next(iter(waiting.values())).envelope
            raise CatalogueError(
                f"{len(waiting)} rows are not answered in time, among them {late.type} {late.body}"
            )
        _publish(channel, waiting.values())
        for reply in _replies(channel, min(deadline, time.monotonic() + RESEND_SECONDS)):
            row = waiting.pop(reply.in_reply_to, None) if reply.in_reply_to else None
            if row is None:
                continue  # to an older loader, or a second answer after a resend
            if reply.outcome is not Outcome.DONE:
                asked, reason = row.envelope, reply.body.get("reason")
                raise CatalogueError(f"{asked.type} {asked.body} is {reply.outcome}: {reason}")
            yield row, reply.body
            if not waiting:
                break


def _publish(channel: BlockingChannel, rows: Iterable[Row]) -> None:
    by_queue: dict[str, list[str]] = {}
    for row in rows:
        by_queue.setdefault(row.queue, []).append(row.envelope.encode())
    properties = pika.BasicProperties(content_type="application/json", delivery_mode=2)
    for queue, encoded in by_queue.items():
        for n in range(0, len(encoded), MAX_PACKED):
            delivery = pack(encoded[n : n + MAX_PACKED])
            channel.basic_publish("", queue, delivery, properties, mandatory=True)


def _replies(channel: BlockingChannel, until: float) -> Iterator[Envelope]:
    try:
        for method, _, body in channel.consume(REPLIES, auto_ack=True, inactivity_timeout=0.1):
            if method is not None:
                for member in unpack(body):
                    if isinstance(member, Unreadable):
                        raise CatalogueError(f"a reply cannot be read: {member.reason}")
                    yield member
            if time.monotonic() > until:
                return
    finally:
        channel.cancel()


def _rows(catalogue: Catalogue) -> Iterator[Row]:
    for p in catalogue.products:
        product = ListProduct(sku=p.sku, price=p.price, currency=p.currency)
        yield _row("order", "list_product", (p.sku, p.price, p.currency), product)
    for s in catalogue.stock:
        stock = ReceiveStock(sku=s.sku, quantity=s.quantity)
        yield _row("inventory", "receive_stock", (s.sku, s.delivery), stock)
    for a in catalogue.accounts:
        account = OpenAccount.model_validate(
            {"customer": a.customer, "currency": a.currency, "card": a.card}
        )
        yield _row("payment", "open_account", (a.customer, a.currency, a.card), account)


def _deposits(catalogue: Catalogue) -> Iterator[Row]:
    """Yield what needs the accounts to be there."""
    for d in catalogue.deposits:
        deposit = Deposit(customer=d.customer, currency=d.currency, amount=d.amount)
        yield _row("payment", "deposit", (d.customer, d.currency, d.reference), deposit)


def _row(participant: str, step: str, row: tuple[str | int, ...], command: Command) -> Row:
    saga_id = uuid5(ORDERS, "\x1f".join(("catalogue", step, *map(str, row))))
    return _command(participant, Key(saga_id, step, Direction.FORWARD), command)


def _order(ask: Ask) -> Row:
    order = PlaceOrder.model_validate({**ask.body, "idempotency_key": ask.key})
    saga_id = saga_id_for(order.customer, order.idempotency_key)
    return _command("order", Key(saga_id, "create_order", Direction.FORWARD), order)


def _command(participant: str, key: Key, command: Command) -> Row:
    envelope = Envelope.command(key, command, issued_at=datetime.now(UTC), reply_to=REPLIES)
    return Row(commands_of(participant), envelope)
