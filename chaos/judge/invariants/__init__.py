"""What must always hold, as pure functions over the evidence (design.md, section 7). Pure.

Owns: the named invariants. Must not know: how the evidence was gathered, nor any code
of the accused. An invariant is a function whose docstring says what holds; it returns
how many things it looked at and what offends. Those of ALWAYS hold at every moment, also
while sagas run; those of AT_REST only once the system is quiescent.
"""

from __future__ import annotations

from chaos.judge.invariants.looked import Check
from chaos.judge.invariants.messages import (
    dead_letters_are_explained,
    inboxes_hold_no_claim,
    outboxes_are_empty,
)
from chaos.judge.invariants.money import (
    accounts_match_the_ledger,
    ledger_is_balanced,
    one_charge_per_order,
    refunds_match_their_charge,
)
from chaos.judge.invariants.orders import (
    accepted_stands_as_asked,
    confirmed_is_charged_once,
    confirmed_is_dispatched_once,
    rejected_costs_nothing,
    rejected_keeps_no_stock,
    rejected_says_why,
    returned_is_refunded_and_restocked_once,
    totals_are_exact,
)
from chaos.judge.invariants.sagas import (
    compensated_is_settled,
    completed_is_done,
    every_order_has_its_saga,
    every_return_has_its_saga,
    every_saga_has_its_order,
    parked_holds_its_stock_and_no_money,
)
from chaos.judge.invariants.stock import stock_is_conserved, stock_matches_reservations
from chaos.judge.invariants.tallied import (
    nothing_is_duplicated,
    nothing_is_lost,
    nothing_is_unexpected,
)

ALWAYS: tuple[Check, ...] = (
    confirmed_is_charged_once,
    confirmed_is_dispatched_once,
    returned_is_refunded_and_restocked_once,
    rejected_costs_nothing,
    rejected_keeps_no_stock,
    rejected_says_why,
    totals_are_exact,
    accepted_stands_as_asked,
    one_charge_per_order,
    refunds_match_their_charge,
    ledger_is_balanced,
    accounts_match_the_ledger,
    stock_is_conserved,
    stock_matches_reservations,
    compensated_is_settled,
    completed_is_done,
    parked_holds_its_stock_and_no_money,
    every_saga_has_its_order,
    nothing_is_duplicated,
    nothing_is_unexpected,
    inboxes_hold_no_claim,
    dead_letters_are_explained,
)
AT_REST: tuple[Check, ...] = (
    nothing_is_lost,
    every_order_has_its_saga,
    every_return_has_its_saga,
    outboxes_are_empty,
)
INVARIANTS: tuple[Check, ...] = ALWAYS + AT_REST
