"""Tests of the ledger's rules: one command after another on one state."""

from __future__ import annotations

from collections import Counter
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.messages.envelope import Command, Direction, Envelope, Key
from common.messages.errors import IllegalTransition, Poison
from common.messages.shop.payment import (
    AccountOpened,
    CardDeclined,
    ChargePayment,
    Deposit,
    Deposited,
    InsufficientFunds,
    OpenAccount,
    PaymentCharged,
    PaymentRefunded,
    RefundPayment,
    UnknownAccount,
)
from common.participant.participant import Work
from payment_svc.domain import SHOP, WORLD, Account, AccountKey, Ledger, Transfer, TransferKind
from payment_svc.handlers import HANDLERS

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
STEPS = {
    ChargePayment: ("charge_payment", Direction.FORWARD),
    RefundPayment: ("charge_payment", Direction.COMPENSATING),
    OpenAccount: ("open_account", Direction.FORWARD),
    Deposit: ("deposit", Direction.FORWARD),
}
ANN = AccountKey("ann", "EUR")


def saga(name: str) -> UUID:
    return uuid5(UUID(int=2), name)


def ask(ledger: Ledger, name: str, command: Command) -> Any:
    key = Key(saga(name), *STEPS[type(command)])
    envelope = Envelope.command(key, command, issued_at=NOON, reply_to=None)
    return HANDLERS[type(command)](ledger, Work(envelope, command))


def charge(total: int, customer: str = "ann", currency: str = "EUR") -> ChargePayment:
    return ChargePayment(customer=customer, total=total, currency=currency)


def charge_id(name: str) -> UUID:
    return uuid5(saga(name), "charge_payment:charge")


def charge_row(name: str, total: int) -> Transfer:
    return Transfer(
        charge_id(name),
        TransferKind.CHARGE,
        saga(name),
        "charge_payment",
        "ann",
        SHOP,
        total,
        "EUR",
    )


def ann_with(balance: int, card: str = "good") -> Ledger:
    return Ledger({ANN: Account(card, balance)})


def test_an_account_is_opened_empty_and_filled_by_deposits() -> None:
    ledger = Ledger()
    opened = ask(ledger, "a", OpenAccount(customer="ann", currency="EUR"))
    assert opened == AccountOpened(customer="ann")
    paid_in = ask(ledger, "b", Deposit(customer="ann", currency="EUR", amount=70))
    assert paid_in == Deposited(customer="ann")
    assert ledger.accounts == {ANN: Account("good", 70)}
    assert [(t.kind, t.debit, t.credit, t.amount) for t in ledger.made] == [
        (TransferKind.DEPOSIT, WORLD, "ann", 70)
    ]


def test_opening_an_account_again_keeps_its_balance() -> None:
    ledger = ann_with(70)
    ask(ledger, "a", OpenAccount(customer="ann", currency="EUR", card="declined"))
    assert ledger.accounts == {ANN: Account("declined", 70)}
    assert ledger.touched == {ANN}


@pytest.mark.parametrize("name", [WORLD, SHOP])
def test_no_customer_can_be_a_side_of_the_ledger(name: str) -> None:
    ledger = Ledger()
    with pytest.raises(Poison):
        ask(ledger, "a", OpenAccount(customer=name, currency="EUR"))
    assert ledger == Ledger()


@pytest.mark.parametrize("total", [0, 69, 70])
def test_a_charge_moves_money_from_the_customer_to_the_shop(total: int) -> None:
    ledger = ann_with(70)
    assert ask(ledger, "a", charge(total)) == PaymentCharged(charge_id=charge_id("a"))
    assert ledger.accounts[ANN].balance == 70 - total
    assert ledger.made == [charge_row("a", total)]
    assert ledger.touched == {ANN}


@pytest.mark.parametrize(
    ("ledger", "command", "refusal"),
    [
        (ann_with(70), charge(71), InsufficientFunds()),
        (ann_with(70, "declined"), charge(1), CardDeclined()),
        (ann_with(70, "declined"), charge(71), CardDeclined()),
        (ann_with(70, "declined"), charge(0), CardDeclined()),
        (ann_with(70), charge(1, customer="bob"), UnknownAccount()),
        (ann_with(70), charge(1, currency="USD"), UnknownAccount()),
        (Ledger(), Deposit(customer="ann", currency="EUR", amount=1), UnknownAccount()),
    ],
)
def test_a_refusal_moves_nothing(ledger: Ledger, command: Command, refusal: object) -> None:
    before = deepcopy(ledger)
    assert ask(ledger, "a", command) == refusal
    assert ledger == before


def test_the_last_of_the_money_goes_to_the_first_of_a_batch() -> None:
    ledger = ann_with(100)
    assert isinstance(ask(ledger, "a", charge(60)), PaymentCharged)
    assert ask(ledger, "b", charge(60)) == InsufficientFunds()
    assert ledger.accounts[ANN].balance == 40


def test_a_second_charge_of_one_saga_is_a_defect() -> None:
    ledger = ann_with(100)
    ask(ledger, "a", charge(10))
    before = deepcopy(ledger)
    with pytest.raises(IllegalTransition):
        ask(ledger, "a", charge(10))
    assert ledger == before


def test_a_refund_is_a_transfer_of_its_own() -> None:
    ledger = ann_with(10)
    ledger.charges[saga("a")] = charge_row("a", 60)
    assert ask(ledger, "a", RefundPayment()) == PaymentRefunded()
    assert ledger.accounts[ANN].balance == 70
    (refund,) = ledger.made
    assert refund == Transfer(
        uuid5(charge_id("a"), "refund"),
        TransferKind.REFUND,
        saga("a"),
        "charge_payment",
        SHOP,
        "ann",
        60,
        "EUR",
        refund_of=charge_id("a"),
    )


def test_refunded_money_can_be_spent_by_the_next_of_the_batch() -> None:
    ledger = ann_with(60)
    ask(ledger, "a", charge(60))
    assert ask(ledger, "a", RefundPayment()) == PaymentRefunded()
    assert isinstance(ask(ledger, "b", charge(60)), PaymentCharged)
    assert [t.kind for t in ledger.made] == [
        TransferKind.CHARGE,
        TransferKind.REFUND,
        TransferKind.CHARGE,
    ]


def test_a_declined_card_still_takes_its_refund() -> None:
    ledger = ann_with(0, "declined")
    ledger.charges[saga("a")] = charge_row("a", 60)
    assert ask(ledger, "a", RefundPayment()) == PaymentRefunded()
    assert ledger.accounts[ANN].balance == 60


def test_without_a_charge_there_is_nothing_to_undo() -> None:
    ledger = ann_with(70)
    before = deepcopy(ledger)
    assert ask(ledger, "a", RefundPayment()) == PaymentRefunded(nothing_to_undo=True)
    assert ledger == before


CUSTOMERS = st.sampled_from(["ann", "bob"])
CURRENCIES = st.sampled_from(["EUR", "USD"])
COMMANDS = st.one_of(
    st.builds(
        OpenAccount,
        customer=CUSTOMERS,
        currency=CURRENCIES,
        card=st.sampled_from(["good", "declined"]),
    ),
    st.builds(Deposit, customer=CUSTOMERS, currency=CURRENCIES, amount=st.integers(1, 90)),
    st.builds(ChargePayment, customer=CUSTOMERS, currency=CURRENCIES, total=st.integers(0, 60)),
    st.just(RefundPayment()),
)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), COMMANDS), max_size=60))
def test_the_ledger_balances_and_no_account_is_overdrawn(
    script: list[tuple[str, Command]],
) -> None:
    ledger = Ledger()
    asked: set[tuple[str, type[Command]]] = set()
    for name, command in script:
        refunded = (name, RefundPayment) in asked and isinstance(command, RefundPayment)
        charged = saga(name) in ledger.charges and isinstance(command, ChargePayment)
        if refunded or charged:
            continue  # the inbox lets none of these through
        ask(ledger, name, command)
        asked.add((name, type(command)))
        entries: Counter[AccountKey] = Counter()
        for t in ledger.made:
            entries[AccountKey(t.debit, t.currency)] -= t.amount
            entries[AccountKey(t.credit, t.currency)] += t.amount
        for currency in ("EUR", "USD"):
            assert sum(n for key, n in entries.items() if key.currency == currency) == 0
        for key, account in ledger.accounts.items():
            assert account.balance == entries[key] >= 0
        assert len(
            {t.transfer_id for t in ledger.made if t.kind is not TransferKind.DEPOSIT}
        ) == sum(t.kind is not TransferKind.DEPOSIT for t in ledger.made)
