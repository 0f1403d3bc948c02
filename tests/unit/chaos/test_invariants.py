"""Each invariant passes on a clean case and catches each violation planted in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid5

import pytest

from chaos.judge.case import (
    Accepted,
    Account,
    Case,
    Claim,
    DeadLetter,
    Delivery,
    Facts,
    Instance,
    Line,
    Order,
    Reservation,
    Return,
    Snapshot,
    Stock,
    Transfer,
)
from chaos.judge.invariants import AT_REST, INVARIANTS
from chaos.judge.verdict import Finding, Verdict, judge, name_of, overall, tally

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SPACE = UUID(int=7)


def an_id(name: str) -> UUID:
    return uuid5(SPACE, name)


SHOP = "shop:revenue"
LINES = (Line("tea", 2), Line("cup", 1))  # 2 x 300 + 1 x 400 = 1000


def order(name: str, status: str, reason: str | None = None) -> Order:
    return Order(
        order_id=an_id(name),
        customer="ann",
        idempotency_key=name,
        currency="EUR",
        lines=LINES,
        prices=(300, 400),
        total=1000,
        status=status,
        reason=reason,
        placed_at=NOON,
        settled_at=None if status == "PENDING" else NOON + timedelta(seconds=1),
    )


def transfer(name: str, kind: str, saga: str, refund_of: str | None = None) -> Transfer:
    step = "deposit" if kind == "DEPOSIT" else "charge_payment"
    sides = {
        "DEPOSIT": ("world:deposits", "ann"),
        "CHARGE": ("ann", SHOP),
        "REFUND": (SHOP, "ann"),
    }
    amount = 5000 if kind == "DEPOSIT" else 1000
    of = an_id(refund_of) if refund_of else None
    return Transfer(an_id(name), kind, an_id(saga), step, *sides[kind], amount, "EUR", of)


def instance(name: str, state: str, **steps: str) -> Instance:
    return Instance(an_id(name), "order", state, steps, state == "COMPLETED")


ALL_DONE = dict.fromkeys(
    ("create_order", "reserve_stock", "charge_payment", "dispatch_stock", "confirm_order"), "done"
)
ORDERS = (
    order("good", "CONFIRMED"),
    order("none-left", "REJECTED", "out_of_stock"),
    order("declined", "REJECTED", "card_declined"),
    order("late", "REJECTED", "timed_out"),  # charged, and refunded again
    order("parked", "PENDING"),
    order("back", "RETURNED"),
)
SNAPSHOT = Snapshot(
    orders=ORDERS,
    stock=(Stock("tea", 6, 2, 2, 10), Stock("cup", 3, 1, 1, 5)),
    deliveries=(
        Delivery(an_id("delivery-1"), "receive_stock", "tea", 10),
        Delivery(an_id("delivery-2"), "receive_stock", "cup", 5),
    ),
    reservations=(
        Reservation(an_id("good"), "reserve_stock", "DISPATCHED", LINES),
        Reservation(an_id("declined"), "reserve_stock", "RELEASED", LINES),
        Reservation(an_id("late"), "reserve_stock", "RELEASED", LINES),
        Reservation(an_id("parked"), "reserve_stock", "HELD", LINES),
        Reservation(an_id("back"), "reserve_stock", "RETURNED", LINES),
    ),
    accounts=(Account("ann", "EUR", 4000),),
    transfers=(
        transfer("t-deposit", "DEPOSIT", "deposit-1"),
        transfer("t-good", "CHARGE", "good"),
        transfer("t-late", "CHARGE", "late"),
        transfer("t-refund", "REFUND", "late", refund_of="t-late"),
        transfer("t-back", "CHARGE", "back"),
        transfer("t-returned", "REFUND", "return", refund_of="t-back"),
    ),
    ledger={
        ("world:deposits", "EUR"): -5000,
        ("ann", "EUR"): 4000,
        (SHOP, "EUR"): 1000,
    },
    instances=(
        instance("good", "COMPLETED", **ALL_DONE),
        instance("none-left", "COMPENSATED", create_order="undone", reserve_stock="refused"),
        instance(
            "declined",
            "COMPENSATED",
            create_order="undone",
            reserve_stock="undone",
            charge_payment="refused",
        ),
        instance(
            "late",
            "COMPENSATED",
            create_order="undone",
            reserve_stock="undone",
            charge_payment="undone",
            dispatch_stock="fenced",
        ),
        instance(
            "parked",
            "WAITING",
            create_order="done",
            reserve_stock="done",
            approve_order="waiting",
        ),
        instance("back", "COMPLETED", **ALL_DONE),
        instance("return", "COMPLETED", open_return="done", refund_order="done"),
        instance("undone", "COMPENSATED", open_return="undone", refund_order="refused"),
    ),
    returns=(
        Return(an_id("return"), an_id("back"), "first", "FINISHED", None),
        Return(an_id("undone"), an_id("good"), "first", "CLOSED", "nothing_to_refund"),
    ),
    claims=(),
    outboxes={"orchestrator": 0, "order_svc": 0, "payment_svc": 0, "inventory_svc": 0},
    dead_letters=(DeadLetter("payment.commands.dead", "planted", "late"),),
)
FACTS = Facts(
    prices={"tea": 300, "cup": 400},
    received={"tea": 10, "cup": 5},
    deposited={("ann", "EUR"): 5000},
    accepted={
        o.order_id: Accepted(o.order_id, o.customer, o.idempotency_key, "EUR", o.lines, o.total)
        for o in ORDERS
    },
    refused=frozenset({("ann", "nonsense")}),
    unknown=frozenset({("ann", "cut off")}),
    healed=(NOON + timedelta(milliseconds=500),),
    returns=frozenset({an_id("return"), an_id("undone")}),
    returns_asked=frozenset({(an_id("back"), "first"), (an_id("good"), "first")}),
    explained=frozenset({("payment.commands.dead", "planted")}),
)
CLEAN = Case(SNAPSHOT, FACTS)

Plant = Callable[[Case], Case]


def see(**changes: object) -> Plant:
    """Replace the rows of tables."""
    return lambda case: replace(case, snapshot=replace(case.snapshot, **changes))  # type: ignore[arg-type]


def one(kind: str, position: int, **changes: object) -> Plant:
    """Change one row of a table."""

    def plant(case: Case) -> Case:
        rows = list(getattr(case.snapshot, kind))
        rows[position] = replace(rows[position], **changes)
        return see(**{kind: tuple(rows)})(case)

    return plant


def more(kind: str, *rows: object) -> Plant:
    return lambda case: see(**{kind: (*getattr(case.snapshot, kind), *rows)})(case)


def fewer(kind: str, position: int) -> Plant:
    def plant(case: Case) -> Case:
        rows = getattr(case.snapshot, kind)
        return see(**{kind: rows[:position] + rows[position + 1 :]})(case)

    return plant


GOOD, NONE_LEFT, DECLINED, LATE, PARKED = range(5)  # positions in orders and instances
HELD_FOR_PARKED = 3  # and in reservations
HELD = Reservation(an_id("none-left"), "reserve_stock", "HELD", LINES)
PHANTOM = order("phantom", "CONFIRMED")

BACK, RETURN = 5, 6  # the order given back, and the instance of its return
CHARGED_BACK, REFUNDED = 4, 5  # its transfers
RETURNED = 4  # its reservation

PLANTED: dict[str, dict[str, Plant]] = {
    "returned is refunded and restocked once": {
        "no refund": fewer("transfers", REFUNDED),
        "no charge": fewer("transfers", CHARGED_BACK),
        "refunded by another": one("transfers", REFUNDED, saga_id=an_id("undone")),
        "goods not back": one("reservations", RETURNED, status="DISPATCHED"),
        "by no return": one("returns", 0, status="CLOSED"),
    },
    "every return has its saga": {
        "no instance": fewer("instances", RETURN),
        "other end": one("instances", RETURN, state="COMPENSATED"),
        "still open": one("returns", 1, status="OPEN"),
    },
    "every saga has its order": {
        "return of nothing": one("returns", 1, order_id=an_id("none")),
        "saga of no order": more("instances", instance("phantom", "COMPLETED", **ALL_DONE)),
    },
    "nothing is lost": {
        "a return that is not there": fewer("returns", 1),
        "a return without end": one("returns", 1, status="OPEN"),
        "still pending": one("orders", GOOD, status="PENDING"),
        "vanished": fewer("orders", GOOD),
        "confirmed and rejected both": more(
            "orders", replace(ORDERS[GOOD], status="REJECTED", reason="declined")
        ),
        "pending and not parked": one("instances", PARKED, state="RUNNING"),
    },
    "nothing is unexpected": {
        "a return without request": more(
            "returns", Return(an_id("x"), an_id("good"), "x", "CLOSED", "no")
        ),
        "a charge without order": more("transfers", transfer("t-9", "CHARGE", "phantom")),
        "a reservation without order": more(
            "reservations", replace(HELD, saga_id=an_id("phantom"))
        ),
        "an order without request": more("orders", PHANTOM),
        "a refused order was written": more("orders", order("nonsense", "PENDING")),
    },
    "nothing is duplicated": {
        "two returns for one key": more(
            "returns", Return(an_id("x"), an_id("back"), "first", "CLOSED", "no")
        ),
        "a charge": more("transfers", transfer("t-8", "CHARGE", "good")),
        "a reservation": more("reservations", SNAPSHOT.reservations[0]),
        "a delivery": more("deliveries", SNAPSHOT.deliveries[0]),
        "an order under one key": more("orders", replace(ORDERS[GOOD], order_id=an_id("twin"))),
        "an instance": more("instances", SNAPSHOT.instances[0]),
    },
    "refunds match their charge": {
        "of another order's return": one("transfers", REFUNDED, saga_id=an_id("undone")),
        "no charge": fewer("transfers", 2),
        "names none": one("transfers", 3, refund_of=None),
        "of a deposit": one("transfers", 3, refund_of=an_id("t-deposit")),
        "two of one charge": more(
            "transfers", transfer("t-6", "REFUND", "late", refund_of="t-late")
        ),
        "another amount": one("transfers", 3, amount=999),
        "to another": one("transfers", 3, credit="bob"),
        "another saga": one("transfers", 3, saga_id=an_id("good")),
    },
    "confirmed is charged once": {
        "no charge": fewer("transfers", 1),
        "two charges": more("transfers", transfer("t-2", "CHARGE", "good")),
        "too little": one("transfers", 1, amount=999),
        "other currency": one("transfers", 1, currency="USD"),
        "another's account": one("transfers", 1, debit="bob"),
        "charged and refunded": more(
            "transfers", transfer("t-3", "REFUND", "good", refund_of="t-good")
        ),
    },
    "confirmed is dispatched once": {
        "no reservation": fewer("reservations", 0),
        "only held": one("reservations", 0, status="HELD"),
        "released": one("reservations", 0, status="RELEASED"),
        "twice": more("reservations", Reservation(an_id("good"), "again", "DISPATCHED", LINES)),
        "a line short": one("reservations", 0, lines=LINES[:1]),
        "a piece too many": one("reservations", 0, lines=(Line("tea", 3), Line("cup", 1))),
    },
    "rejected costs nothing": {
        "charge not refunded": fewer("transfers", 3),
        "half refunded": one("transfers", 3, amount=500),
        "charged though refused": more("transfers", transfer("t-4", "CHARGE", "declined")),
    },
    "rejected keeps no stock": {
        "still held": more("reservations", HELD),
        "dispatched": one("reservations", 1, status="DISPATCHED"),
    },
    "rejected says why": {
        "no reason": one("orders", DECLINED, reason=None),
        "reason on a confirmed one": one("orders", GOOD, reason="declined"),
    },
    "totals are exact": {
        "total off by one": one("orders", GOOD, total=1001),
        "price off by one": one("orders", GOOD, prices=(301, 400)),
        "not the price list's": one("orders", GOOD, prices=(100, 800)),
    },
    "accepted stands as asked": {
        "vanished": fewer("orders", GOOD),
        "another customer": one("orders", GOOD, customer="bob"),
        "another currency": one("orders", GOOD, currency="USD"),
        "other lines": one("orders", GOOD, lines=LINES[::-1][:1]),
        "another total": one("orders", GOOD, total=1),
    },
    "one charge per order": {
        "two on one order": more("transfers", transfer("t-5", "CHARGE", "late")),
    },
    "ledger is balanced": {
        "entries do not sum to zero": see(ledger={**SNAPSHOT.ledger, (SHOP, "EUR"): 999}),
        "money from nowhere": one("accounts", 0, balance=4001),
        "another currency": see(ledger={**SNAPSHOT.ledger, (SHOP, "USD"): 5, ("ann", "USD"): -5}),
        "a deposit booked twice": see(
            ledger={("world:deposits", "EUR"): -10000, ("ann", "EUR"): 9000, (SHOP, "EUR"): 1000},
            accounts=(Account("ann", "EUR", 9000),),
        ),
    },
    "accounts match the ledger": {
        "balance is not the sum of entries": one("accounts", 0, balance=3999),
        "overdrawn": see(
            accounts=(Account("ann", "EUR", -1),), ledger={**SNAPSHOT.ledger, ("ann", "EUR"): -1}
        ),
        "deposit missing": fewer("transfers", 0),
        "deposited twice": more("transfers", transfer("t-7", "DEPOSIT", "deposit-2")),
        "entries without an account": see(ledger={**SNAPSHOT.ledger, ("bob", "EUR"): 0}),
    },
    "stock is conserved": {
        "a piece vanished": one("stock", 0, on_hand=5),
        "a delivery booked twice": more(
            "deliveries", Delivery(an_id("again"), "receive_stock", "tea", 10)
        ),
        "received too much": one("stock", 0, received=20, on_hand=16),
        "a SKU without stock row": fewer("stock", 1),
        "oversold": one("stock", 0, on_hand=-1, held=9),
    },
    "stock matches reservations": {
        "held without reservation": one("stock", 0, held=3, on_hand=5),
        "held, not booked": more("reservations", HELD),
        "dispatched too much": one("stock", 0, dispatched=3, on_hand=5),
    },
    "compensated is settled": {
        "an undo is missing": one(
            "instances", DECLINED, steps={"create_order": "undone", "reserve_stock": "done"}
        ),
        "an undo is under way": one(
            "instances", DECLINED, steps={"create_order": "undone", "reserve_stock": "undoing"}
        ),
        "after the pivot": one("instances", LATE, pivot_passed=True),
    },
    "completed is done": {
        "a step is open": one("instances", GOOD, steps={**ALL_DONE, "confirm_order": "sent"}),
        "before the pivot": one("instances", GOOD, pivot_passed=False),
    },
    "parked holds its stock and no money": {
        "nothing held": fewer("reservations", HELD_FOR_PARKED),
        "released": one("reservations", HELD_FOR_PARKED, status="RELEASED"),
        "held too little": one("reservations", HELD_FOR_PARKED, lines=LINES[:1]),
        "charged": more("transfers", transfer("t-10", "CHARGE", "parked")),
        "confirmed": one("orders", PARKED, status="CONFIRMED"),
    },
    "inboxes hold no claim": {
        "committed undecided": more(
            "claims", Claim("payment_svc", an_id("good"), "charge_payment", "forward")
        ),
    },
    "dead letters are explained": {
        "another reason": more("dead_letters", DeadLetter("payment.commands.dead", "odd", "x")),
        "another queue": more("dead_letters", DeadLetter("order.commands.dead", "planted", "")),
    },
    "every order has its saga": {
        "none": fewer("instances", GOOD),
        "still running": one("instances", GOOD, state="RUNNING"),
        "disagrees": one("instances", GOOD, state="COMPENSATED"),
        "pending, and not parked": one("instances", PARKED, state="RUNNING"),
        "two": more("instances", SNAPSHOT.instances[0]),
    },
    "outboxes are empty": {
        "a message is left": see(outboxes={**SNAPSHOT.outboxes, "payment_svc": 1}),
    },
}


def finding(case: Case, name: str) -> Finding:
    return next(f for f in judge(case) if f.invariant == name)


@pytest.mark.parametrize("name", [name_of(check) for check in INVARIANTS])
def test_a_clean_case_passes_and_something_was_looked_at(name: str) -> None:
    found = finding(CLEAN, name)
    assert (found.verdict, found.examples) == (Verdict.PASS, ())
    assert found.looked_at > 0


@pytest.mark.parametrize(
    ("name", "plant"),
    [
        pytest.param(name, plant, id=f"{name}: {what}")
        for name, plants in PLANTED.items()
        for what, plant in plants.items()
    ],
)
def test_a_planted_violation_is_caught(name: str, plant: Plant) -> None:
    case = plant(CLEAN)
    found = finding(case, name)
    assert found.verdict is Verdict.FAIL, found
    assert found.offences >= 1
    assert found.examples
    assert overall(f.verdict for f in judge(case)) is Verdict.FAIL


def test_every_invariant_has_a_planted_violation() -> None:
    assert PLANTED.keys() == {name_of(check) for check in INVARIANTS}


def test_every_invariant_says_what_holds() -> None:
    assert [check for check in INVARIANTS if not check.__doc__] == []


def test_an_unanswered_order_may_stand_or_not() -> None:
    stands = replace(ORDERS[NONE_LEFT], order_id=an_id("cut"), idempotency_key="cut off")
    case = more("orders", stands)(CLEAN)
    case = more("instances", replace(SNAPSHOT.instances[NONE_LEFT], saga_id=an_id("cut")))(case)
    assert overall(f.verdict for f in judge(case)) is Verdict.PASS


def test_what_is_not_at_rest_is_unknown_and_not_a_pass() -> None:
    findings = judge(replace(CLEAN, quiescent=False))
    unknown = {f.invariant for f in findings if f.verdict is Verdict.UNKNOWN}
    assert unknown == {name_of(check) for check in AT_REST}
    assert overall(f.verdict for f in findings) is Verdict.UNKNOWN


def test_a_violation_counts_even_when_not_at_rest() -> None:
    case = replace(fewer("transfers", 1)(CLEAN), quiescent=False)
    assert overall(f.verdict for f in judge(case)) is Verdict.FAIL


def test_a_checker_that_crashes_is_unknown_and_not_a_pass() -> None:
    case = see(outboxes=None)(CLEAN)
    found = finding(case, "outboxes are empty")
    assert found.verdict is Verdict.UNKNOWN
    assert "crashed" in found.examples[0]
    assert overall(f.verdict for f in judge(case)) is Verdict.UNKNOWN


def test_nothing_judged_is_no_pass() -> None:
    assert overall([]) is Verdict.UNKNOWN


def test_examples_are_bounded_and_the_count_is_not() -> None:
    claims = [Claim("order_svc", an_id(str(n)), "confirm_order", "forward") for n in range(99)]
    found = finding(more("claims", *claims)(CLEAN), "inboxes hold no claim")
    assert (found.offences, len(found.examples)) == (99, 5)


def test_the_tally_counts_offences_and_recovered_orders() -> None:
    clean = tally(CLEAN, judge(CLEAN))
    assert clean[:3] == (0, 0, 0)
    assert clean.recovered == 5  # all in flight when the fault healed
    case = one("orders", GOOD, status="PENDING")(CLEAN)
    assert tally(case, judge(case)).lost == 1


def test_the_tally_has_no_number_for_what_was_not_judged() -> None:
    case = replace(CLEAN, quiescent=False)
    assert tally(case, judge(case)).lost is None
