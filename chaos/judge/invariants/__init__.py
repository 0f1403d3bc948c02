"""The invariants: what must always hold, as functions over a case. Pure.

An invariant is a function whose docstring says what holds; it returns how many things it checked
and what offends. Those of ALWAYS hold at every moment, also while sagas run; those of AT_REST only
once the system is quiescent.
"""

from __future__ import annotations

from chaos.judge.invariants import messages, money, orders, sagas, stock, tallied
from chaos.judge.invariants.checked import Check

ALWAYS: tuple[Check, ...] = (
    orders.confirmed_is_charged_once,
    orders.confirmed_is_dispatched_once,
    orders.returned_is_refunded_and_restocked_once,
    orders.rejected_costs_nothing,
    orders.rejected_keeps_no_stock,
    orders.rejected_says_why,
    orders.totals_are_exact,
    orders.accepted_stands_as_asked,
    money.one_charge_per_order,
    money.refunds_match_their_charge,
    money.ledger_is_balanced,
    money.accounts_match_the_ledger,
    stock.stock_is_conserved,
    stock.stock_matches_reservations,
    sagas.compensated_is_settled,
    sagas.completed_is_done,
    sagas.parked_holds_its_stock_and_no_money,
    sagas.every_saga_has_its_order,
    tallied.nothing_is_duplicated,
    tallied.nothing_is_unexpected,
    messages.inboxes_hold_no_claim,
    messages.dead_letters_are_explained,
)
AT_REST: tuple[Check, ...] = (
    tallied.nothing_is_lost,
    sagas.every_order_has_its_saga,
    sagas.every_return_has_its_saga,
    messages.outboxes_are_empty,
)
INVARIANTS: tuple[Check, ...] = ALWAYS + AT_REST
