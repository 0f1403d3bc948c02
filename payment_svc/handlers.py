"""The handlers of payment's commands. Pure: each unpacks a message and asks the domain."""

from __future__ import annotations

from common.messages.envelope import Command
from common.messages.shop.payment import (
    AccountOpened,
    CardDeclined,
    ChargePayment,
    Deposit,
    Deposited,
    InsufficientFunds,
    NothingToRefund,
    OpenAccount,
    OrderRefunded,
    PaymentCharged,
    PaymentRefunded,
    RefundOrder,
    RefundPayment,
    UnknownAccount,
)
from common.participant.participant import Handler, Work
from payment_svc.domain import AccountKey, Ledger


def charge_payment(
    ledger: Ledger, work: Work[ChargePayment]
) -> PaymentCharged | CardDeclined | InsufficientFunds | UnknownAccount:
    command = work.command
    account = AccountKey(command.customer, command.currency)
    return ledger.charge(work.saga_id, work.step, account, command.total)


def refund_payment(ledger: Ledger, work: Work[RefundPayment]) -> PaymentRefunded:
    return ledger.refund(work.saga_id, work.step)


def refund_order(ledger: Ledger, work: Work[RefundOrder]) -> OrderRefunded | NothingToRefund:
    return ledger.refund_order(work.saga_id, work.step, work.command.order_id)


def open_account(ledger: Ledger, work: Work[OpenAccount]) -> AccountOpened:
    command = work.command
    return ledger.open_account(AccountKey(command.customer, command.currency), command.card)


def deposit(ledger: Ledger, work: Work[Deposit]) -> Deposited | UnknownAccount:
    command = work.command
    account = AccountKey(command.customer, command.currency)
    return ledger.deposit(work.saga_id, work.step, account, command.amount)


HANDLERS: dict[type[Command], Handler] = {
    ChargePayment: charge_payment,
    RefundPayment: refund_payment,
    RefundOrder: refund_order,
    OpenAccount: open_account,
    Deposit: deposit,
}
