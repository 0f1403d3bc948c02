"""Commands, replies and queries of the payment service."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from common.messages.contracts import Limit
from common.messages.envelope import Answer, Command, Done, Message, Query, Refusal, Undo
from common.messages.shop.values import Currency, Minor, Name


class ChargePayment(Command):
    customer: Name
    total: Minor
    currency: Currency


class PaymentCharged(Done):
    charge_id: UUID


class CardDeclined(Refusal):
    reason: Literal["card_declined"] = "card_declined"


class InsufficientFunds(Refusal):
    reason: Literal["insufficient_funds"] = "insufficient_funds"


class UnknownAccount(Refusal):
    reason: Literal["unknown_account"] = "unknown_account"


class RefundPayment(Undo):
    """Undoes ChargePayment; what to refund is read from the charge, not from the message."""


class PaymentRefunded(Done):
    nothing_to_undo: bool = False


class RefundOrder(Command):
    """The pivot of a return: the whole charge of an order, once."""

    order_id: UUID


class OrderRefunded(Done):
    pass


class NothingToRefund(Refusal):
    reason: Literal["nothing_to_refund"] = "nothing_to_refund"


class OpenAccount(Command):
    customer: Name
    currency: Currency
    card: Literal["good", "declined"] = "good"


class AccountOpened(Done):
    customer: str


class Deposit(Command):
    customer: Name
    currency: Currency
    amount: Annotated[int, Field(ge=1, le=10**15)]


class Deposited(Done):
    customer: str


class AccountsQuery(Query):
    """A page of accounts by customer and currency, from behind `after` on."""

    customer: Name | None = None
    after: tuple[Name, Currency] | None = None
    limit: Limit = 100


class AccountRow(Message):
    customer: str
    currency: str
    card: str
    balance: Minor


class AccountsPage(Answer):
    rows: tuple[AccountRow, ...]
    more: bool
