"""Real participants without a broker, for tests that give them batches directly.

Owns: their composition, and queries of what they wrote. Must not know: any of their rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from common.messages.envelope import Envelope, Reply
from common.messages.shop.inventory import ReceiveStock
from common.messages.shop.payment import Deposit, OpenAccount
from common.participant.participant import Participant, Store
from common.storage.db import Database
from inventory_svc.handlers import HANDLERS as INVENTORY
from inventory_svc.store import InventoryStore
from payment_svc.handlers import HANDLERS as PAYMENT
from payment_svc.store import PaymentStore
from tests.integration.mail import command
from tests.integration.waiting import Rows

Replies = list[Reply | None]


def payment(db: Database, store: Store[Any] | None = None) -> Participant[Any]:
    return Participant(db, store or PaymentStore(), PAYMENT)


def inventory(db: Database, store: Store[Any] | None = None) -> Participant[Any]:
    return Participant(db, store or InventoryStore(), INVENTORY)


async def consume(participant: Participant[Any], *envelopes: Envelope) -> bool:
    """Handle the envelopes as one batch, in this order."""
    return await participant.handle([participant.parse(envelope) for envelope in envelopes])


async def handle(participant: Participant[Any], *envelopes: Envelope) -> Replies:
    """Handle the envelopes as one batch and return the replies."""
    return await participant.answer([participant.parse(envelope) for envelope in envelopes])


async def open_account(db: Database, customer: str, balance: int, number: int = 9000) -> None:
    account = OpenAccount(customer=customer, currency="EUR")
    deposit = Deposit(customer=customer, currency="EUR", amount=balance)
    await handle(
        payment(db),
        command(account, UUID(int=number), reply_to=None),
        command(deposit, UUID(int=number), reply_to=None),
    )


async def receive_stock(db: Database, number: int = 8000, **quantities: int) -> None:
    commands: Sequence[Envelope] = [
        command(ReceiveStock(sku=sku, quantity=quantity), UUID(int=number + index), reply_to=None)
        for index, (sku, quantity) in enumerate(quantities.items())
    ]
    await handle(inventory(db), *commands)


def sent(judge: Rows, schema: str) -> list[Envelope]:
    """List the messages in a service's outbox, in order."""
    rows = judge.execute(f"select envelope from {schema}.outbox order by id".encode())
    return [Envelope.model_validate_json(str(envelope)) for (envelope,) in rows]


def balance(judge: Rows, customer: str) -> object:
    rows = judge.execute("select balance from payment_svc.account where customer = %s", (customer,))
    return rows.fetchall()[0][0]


def transfers(judge: Rows, saga_id: UUID) -> list[object]:
    """List the kinds of a saga's transfers, sorted."""
    rows = judge.execute(
        "select kind from payment_svc.transfer where saga_id = %s order by kind", (saga_id,)
    )
    return [kind for (kind,) in rows]


def stock(judge: Rows, sku: str) -> tuple[object, ...]:
    """Return a SKU's on_hand, held and dispatched."""
    rows = judge.execute(
        "select on_hand, held, dispatched from inventory_svc.stock where sku = %s", (sku,)
    )
    return rows.fetchall()[0]


def inbox(judge: Rows, schema: str, saga_id: UUID) -> dict[str, object]:
    """Return outcome by direction, for a saga with one step here."""
    query = f"select direction, outcome from {schema}.inbox where saga_id = %s"
    return {str(d): outcome for d, outcome in judge.execute(query.encode(), (saga_id,))}
