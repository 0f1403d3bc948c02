"""decide(): the rules as stories, then every input to every reachable instance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from common.messages.envelope import Command, Direction, Fence, Outcome
from common.messages.errors import IllegalTransition
from common.messages.shop import inventory, order, payment
from orchestrator.engine.decide import command_for, decide
from orchestrator.engine.definition import COMPENSATING, FORWARD, Definition, Kind, Step
from orchestrator.engine.inputs import (
    CompensateAsked,
    DeadLettered,
    GateDecided,
    ReplyArrived,
    Resolved,
    RetryAsked,
    Started,
    TimedOut,
)
from orchestrator.engine.instance import Instance, Progress, State, Status
from orchestrator.sagas.order import ORDER_SAGA, ORDER_SAGA_V1
from tests.support.explore import Transition, explore
from tests.support.story import DATA, POLICY, SAGA, ask, fence, given, undo

SETTLED = {Status.REFUSED, Status.UNDONE, Status.FENCED, Status.OPEN, Status.RESOLVED}

# --- the way forward -----------------------------------------------------------------------


def test_an_order_goes_forward_step_by_step() -> None:
    (
        given(ORDER_SAGA)
        .started()
        .expect(ask("reserve_stock"))
        .expect_status(create_order=Status.DONE)
        .done("reserve_stock")
        .expect(ask("charge_payment"))
        .done("charge_payment")
        .expect(ask("dispatch_stock"))
        .done("dispatch_stock")
        .expect(ask("confirm_order"))
        .done("confirm_order")
        .expect_nothing()
        .expect_state(State.COMPLETED)
        .expect_logged("done", "completed")
    )


def test_a_saga_starts_once() -> None:
    given(ORDER_SAGA).started().expect_illegal(Started(SAGA, DATA), "starts once")


def test_nothing_but_a_start_makes_an_instance() -> None:
    with pytest.raises(IllegalTransition, match="never started"):
        decide(ORDER_SAGA, POLICY, None, CompensateAsked("ops", "why not"))


# --- the way back --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("refuser", "back"),
    [
        ("reserve_stock", []),
        ("charge_payment", ["reserve_stock"]),
        ("dispatch_stock", ["charge_payment", "reserve_stock"]),
    ],
)
def test_a_refusal_undoes_what_was_done_in_reverse(refuser: str, back: list[str]) -> None:
    story = given(ORDER_SAGA).awaiting(refuser).refused(refuser, "no")
    for step in back:
        story.expect(undo(step)).expect_state(State.COMPENSATING, reason="no").undone(step)
    story.expect(undo("create_order")).undone("create_order").expect_nothing()
    story.expect_state(State.COMPENSATED, reason="no").expect_logged("done", "compensated")


def test_the_reason_names_the_step_when_a_refusal_gives_none() -> None:
    story = given(ORDER_SAGA).awaiting("charge_payment")
    story.replied("charge_payment", Outcome.REFUSED)
    story.expect_state(State.COMPENSATING, reason="charge_payment_refused")


def test_an_undo_holds_up_the_next_until_its_first_deadline() -> None:
    (
        given(ORDER_SAGA)
        .awaiting("dispatch_stock")
        .refused("dispatch_stock", "no")
        .expect(undo("charge_payment"))
        .timed_out("charge_payment", COMPENSATING)
        .expect(undo("charge_payment", attempt=2), undo("reserve_stock"))
        .timed_out("charge_payment", COMPENSATING)
        .expect(undo("charge_payment", attempt=3))
    )


def test_reject_order_waits_for_every_other_undo() -> None:
    (
        given(ORDER_SAGA)
        .awaiting("dispatch_stock")
        .refused("dispatch_stock", "no")
        .timed_out("charge_payment", COMPENSATING)
        .undone("reserve_stock")
        .expect_nothing()  # the refund is not confirmed: the customer is not informed yet
        .timed_out("charge_payment", COMPENSATING)
        .expect(undo("charge_payment", attempt=3))
        .undone("charge_payment")
        .expect(undo("create_order"))
    )


def test_an_undo_is_resent_without_end_and_stuck_past_its_sla() -> None:
    (
        given(ORDER_SAGA)
        .awaiting("charge_payment")
        .refused("charge_payment", "no")
        .timed_out("reserve_stock", COMPENSATING, times=50)
        .expect(undo("reserve_stock", attempt=51))
        .expect_state(State.COMPENSATING, stuck=False)
        .timed_out("reserve_stock", COMPENSATING, past_sla=True)
        .expect(undo("reserve_stock", attempt=52))
        .expect_state(State.COMPENSATING, stuck=True)
        .expect_logged("timed_out", "stuck", "sent")
        .timed_out("reserve_stock", COMPENSATING, past_sla=True)
        .expect_logged("timed_out", "sent")  # logged once
        .undone("reserve_stock")
        .expect_state(State.COMPENSATING, stuck=False)
    )


def test_a_retriable_step_is_resent_and_stuck_past_its_sla() -> None:
    (
        given(ORDER_SAGA)
        .awaiting("confirm_order")
        .timed_out("confirm_order", times=50)
        .expect(ask("confirm_order", attempt=51))
        .timed_out("confirm_order", past_sla=True)
        .expect_state(State.RUNNING, stuck=True)
        .done("confirm_order")
        .expect_state(State.COMPLETED, stuck=False)
    )


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.FENCED])
def test_an_undo_cannot_be_refused(outcome: Outcome) -> None:
    story = given(ORDER_SAGA).awaiting("charge_payment").refused("charge_payment", "no")
    input_ = ReplyArrived("reserve_stock", COMPENSATING, outcome)
    story.expect_illegal(input_, "undo of reserve_stock cannot be refused")


# --- a timeout: unknown, never failed ------------------------------------------------------


def test_a_step_out_of_attempts_is_undone_first() -> None:
    (
        given(ORDER_SAGA)
        .awaiting("charge_payment")
        .timed_out("charge_payment")
        .expect(ask("charge_payment", attempt=2))
        .timed_out("charge_payment")
        .expect(undo("charge_payment"))
        .expect_state(State.COMPENSATING, reason="charge_payment_timed_out")
        .undone("charge_payment")
        .expect(undo("reserve_stock"))
    )


def test_a_step_may_have_attempts_of_its_own() -> None:
    patient = replace(POLICY, attempts=3)
    steps = (Step("a", Kind.COMPENSATABLE, "x", order.ConfirmOrder, order.RejectOrder,
                  policy=patient),)  # fmt: skip
    story = given(Definition("own", 1, steps)).started().timed_out("a", times=2)
    story.expect(ask("a", attempt=3)).timed_out("a").expect(undo("a"))


def test_rule_06_the_deadline_of_an_older_attempt_is_ignored() -> None:
    (
        given(ORDER_SAGA)
        .awaiting("charge_payment")
        .timed_out("charge_payment")
        .expect_ignored(TimedOut("charge_payment", FORWARD, attempt=1))
        .done("charge_payment")
        .expect_ignored(TimedOut("charge_payment", FORWARD, attempt=2))
    )


# --- the gate ------------------------------------------------------------------------------


def test_a_gate_is_open_unless_policy_wants_approval() -> None:
    story = given(ORDER_SAGA).awaiting("reserve_stock").done("reserve_stock")
    story.expect(ask("charge_payment")).expect_status(approve_order=Status.OPEN)
    story.expect_state(State.RUNNING).expect_logged("done", "sent")


def test_a_parked_saga_goes_on_when_a_person_approves() -> None:
    (
        given(ORDER_SAGA)
        .parked("approve_order")
        .expect_nothing()
        .expect_state(State.WAITING)
        .expect_status(approve_order=Status.WAITING)
        .expect_logged("done", "parked")
        .approved("approve_order")
        .expect(ask("charge_payment"))
        .expect_state(State.RUNNING)
        .expect_logged("approved", "sent")
    )


def test_a_rejection_undoes_what_was_done() -> None:
    story = given(ORDER_SAGA).parked("approve_order").rejected("approve_order")
    story.expect(undo("reserve_stock")).expect_state(State.COMPENSATING, reason="rejected")
    story.expect_logged("rejected", "turned", "sent")
    story.undone("reserve_stock").undone("create_order")
    story.expect_state(State.COMPENSATED, reason="rejected")


def test_a_gate_that_expires_is_a_refusal() -> None:
    story = given(ORDER_SAGA).parked("approve_order").timed_out("approve_order")
    story.expect(undo("reserve_stock")).expect_state(State.COMPENSATING, reason="expired")
    story.expect_logged("expired", "turned", "sent")
    story.expect_illegal(GateDecided("approve_order", True, "ops", "late"), "waits for no decision")


@pytest.mark.parametrize("approved", [True, False])
@pytest.mark.parametrize("first", ["approved", "rejected"])
def test_a_gate_is_decided_once(first: str, approved: bool) -> None:
    story = given(ORDER_SAGA).parked("approve_order")
    getattr(story, first)("approve_order")
    again = GateDecided("approve_order", approved, "ops", "me too")
    story.expect_illegal(again, "approve_order waits for no decision")
    story.expect_ignored(TimedOut("approve_order", FORWARD, 0))


def test_compensation_asked_while_it_is_parked_turns_it() -> None:
    story = given(ORDER_SAGA).parked("approve_order").asked_to_compensate("cancelled")
    story.expect(undo("reserve_stock")).expect_state(State.COMPENSATING, reason="cancelled")
    story.expect_illegal(GateDecided("approve_order", True, "ops", "late"), "waits for no decision")


def test_no_message_opens_a_gate() -> None:
    story = given(ORDER_SAGA).parked("approve_order")
    for outcome in Outcome:
        story.expect_ignored(ReplyArrived("approve_order", FORWARD, outcome))
    before = story.instance
    story.dead("approve_order").expect_nothing().expect_logged("dead_lettered")
    assert story.instance == before


def test_a_decision_at_a_gate_that_does_not_wait_is_illegal() -> None:
    story = given(GATES).parked("boss").policy_asks(owner="so it does by now")
    story.expect_illegal(GateDecided("owner", True, "ops", "x"), "owner was never sent")
    story.approved("boss").expect_state(State.WAITING).expect_status(owner=Status.WAITING)
    story.expect_illegal(GateDecided("boss", True, "ops", "x"), "boss waits for no decision")


def test_a_gate_that_was_approved_is_settled_on_the_way_back() -> None:
    story = given(ORDER_SAGA).parked("approve_order").approved("approve_order")
    story.refused("charge_payment", "card_declined").expect(undo("reserve_stock"))
    story.undone("reserve_stock").undone("create_order")
    story.expect_state(State.COMPENSATED).expect_status(approve_order=Status.OPEN)


# --- what a person may do ------------------------------------------------------------------


def test_a_retry_is_the_same_message_and_uses_up_no_attempt() -> None:
    (
        given(ORDER_SAGA)
        .awaiting("charge_payment")
        .asked_to_retry()
        .expect(ask("charge_payment"))
        .expect_logged("retry_asked", "sent")
        .asked_to_retry()
        .asked_to_retry()
        .timed_out("charge_payment")
        .expect(ask("charge_payment", attempt=2))
    )


def test_a_retry_of_a_fenced_pivot_repeats_only_the_fence() -> None:
    story = given(ORDER_SAGA).awaiting("dispatch_stock").timed_out("dispatch_stock", times=2)
    story.asked_to_retry().expect(fence("dispatch_stock"))


def test_a_saga_that_awaits_nothing_is_not_retried() -> None:
    asked = RetryAsked("ops", "now")
    given(ORDER_SAGA).completed().expect_illegal(asked, "ended as COMPLETED")
    given(ORDER_SAGA).parked("approve_order").expect_illegal(asked, "approve or reject it")


def test_compensation_goes_on_after_an_undo_is_resolved() -> None:
    (
        given(ORDER_SAGA)
        .awaiting("dispatch_stock")
        .refused("dispatch_stock", "no")
        .expect(undo("charge_payment"))
        .timed_out("charge_payment", COMPENSATING, past_sla=True)
        .expect_state(State.COMPENSATING, stuck=True)
        .resolved("charge_payment")
        .expect_nothing()  # the next undo went out when this one's first deadline passed
        .expect_status(charge_payment=Status.RESOLVED)
        .expect_state(State.COMPENSATING, stuck=False)
        .expect_ignored(ReplyArrived("charge_payment", COMPENSATING, Outcome.DONE))
        .undone("reserve_stock")
        .expect(undo("create_order"))
        .resolved("create_order")
        .expect_logged("resolved", "compensated")
        .expect_state(State.COMPENSATED, reason="no")
    )


def test_resolving_a_step_after_the_pivot_completes_the_saga() -> None:
    story = given(ORDER_SAGA).awaiting("confirm_order").resolved("confirm_order")
    story.expect_nothing().expect_state(State.COMPLETED).expect_logged("resolved", "completed")


def test_pivot_fence_and_refusable_steps_cannot_be_resolved() -> None:
    pivot = Resolved("dispatch_stock", "ops", "looks shipped")
    (
        given(ORDER_SAGA)
        .awaiting("dispatch_stock")
        .expect_illegal(pivot, "is the pivot")
        .timed_out("dispatch_stock", times=2)
        .expect_illegal(pivot, "is the pivot")
        .expect_illegal(Resolved("reserve_stock", "ops", "why"), "is done: only an undo")
        .expect_illegal(Resolved("confirm_order", "ops", "why"), "was never sent")
    )
    charge = Resolved("charge_payment", "ops", "paid in cash")
    given(ORDER_SAGA).awaiting("charge_payment").expect_illegal(charge, "compensate the saga")


# --- rules of the protocol -----------------------------------------------------------------


def test_rule_01_no_undo_while_the_pivot_is_unknown() -> None:
    (
        given(ORDER_SAGA)
        .awaiting("dispatch_stock")
        .timed_out("dispatch_stock", times=2)
        .expect(fence("dispatch_stock"))
        .timed_out("dispatch_stock", COMPENSATING, times=9)
        .expect(fence("dispatch_stock", attempt=10))
        .timed_out("dispatch_stock", COMPENSATING, past_sla=True)
        .expect(fence("dispatch_stock", attempt=11))
        .expect_state(State.RUNNING, stuck=True)
        .dead("dispatch_stock", COMPENSATING)
        .expect_nothing()
        .asked_to_compensate()
        .expect_nothing()
        .fence_says("dispatch_stock", Outcome.FENCED)
        .expect(undo("charge_payment"))
        .expect_state(State.COMPENSATING, reason="dispatch_stock_timed_out", stuck=False)
    )


def test_rule_01_compensate_with_the_pivot_awaited_only_fences() -> None:
    (
        given(ORDER_SAGA)
        .awaiting("dispatch_stock")
        .asked_to_compensate("customer_called")
        .expect(fence("dispatch_stock"))
        .expect_state(State.RUNNING)
        .fence_says("dispatch_stock", Outcome.FENCED)
        .expect(undo("charge_payment"))
        .expect_state(State.COMPENSATING, reason="customer_called")
    )


@pytest.mark.parametrize("direction", Direction)
def test_rule_01_a_pivot_that_was_done_after_all_goes_forward(direction: Direction) -> None:
    (
        given(ORDER_SAGA)
        .awaiting("dispatch_stock")
        .asked_to_compensate()
        .replied("dispatch_stock", Outcome.DONE, direction)
        .expect(ask("confirm_order"))
        .done("confirm_order")
        .expect_state(State.COMPLETED)
    )


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.FENCED])
def test_rule_01_a_pivot_under_its_fence_may_still_say_no_itself(outcome: Outcome) -> None:
    (
        given(ORDER_SAGA)
        .awaiting("dispatch_stock")
        .timed_out("dispatch_stock", times=2)
        .replied("dispatch_stock", outcome)
        .expect(undo("charge_payment"))
        .expect_ignored(ReplyArrived("dispatch_stock", COMPENSATING, Outcome.FENCED))
    )


def test_rule_01_the_pivot_is_not_resent_once_it_is_fenced() -> None:
    (
        given(ORDER_SAGA)
        .awaiting("dispatch_stock")
        .asked_to_compensate()
        .expect_ignored(TimedOut("dispatch_stock", FORWARD, attempt=1))
    )


def test_the_fence_cannot_be_refused() -> None:
    story = given(ORDER_SAGA).awaiting("dispatch_stock").asked_to_compensate()
    input_ = ReplyArrived("dispatch_stock", COMPENSATING, Outcome.REFUSED)
    story.expect_illegal(input_, "fence of dispatch_stock cannot be refused")


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.FENCED])
def test_a_retriable_step_cannot_be_refused(outcome: Outcome) -> None:
    story = given(ORDER_SAGA).awaiting("confirm_order")
    story.expect_illegal(ReplyArrived("confirm_order", FORWARD, outcome), "cannot be refused")


def test_compensate_past_the_pivot_is_illegal() -> None:
    asked = CompensateAsked("ops", "too late")
    given(ORDER_SAGA).awaiting("confirm_order").expect_illegal(asked, "only goes forward")
    given(ORDER_SAGA).completed().expect_illegal(asked, "only goes forward")


def test_compensate_before_the_pivot_undoes_the_awaited_first() -> None:
    (
        given(ORDER_SAGA)
        .awaiting("charge_payment")
        .asked_to_compensate("customer_called")
        .expect(undo("charge_payment"))
        .expect_state(State.COMPENSATING, reason="customer_called")
        .asked_to_compensate("again")
        .expect_nothing()
        .expect_state(State.COMPENSATING, reason="customer_called")
    )


def test_compensate_after_the_end_is_refused() -> None:
    story = given(ORDER_SAGA).awaiting("reserve_stock").refused("reserve_stock", "no")
    story.undone("create_order").expect_illegal(CompensateAsked("ops", "x"), "ended as COMPENSATED")


def test_rule_03_a_reply_that_is_not_awaited_is_only_logged() -> None:
    (
        given(ORDER_SAGA)
        .awaiting("charge_payment")
        .expect_ignored(ReplyArrived("reserve_stock", FORWARD, Outcome.DONE))
        .expect_ignored(ReplyArrived("charge_payment", COMPENSATING, Outcome.DONE))
        .timed_out("charge_payment", times=2)
        .expect_ignored(ReplyArrived("charge_payment", FORWARD, Outcome.DONE))  # undone anyway
        .expect_ignored(ReplyArrived("charge_payment", FORWARD, Outcome.REFUSED))
        .expect_illegal(ReplyArrived("confirm_order", FORWARD, Outcome.DONE), "never sent")
    )


def test_rule_08_a_dead_forward_command_is_unknown_and_undone() -> None:
    (
        given(ORDER_SAGA)
        .awaiting("charge_payment")
        .dead("charge_payment")
        .expect(undo("charge_payment"))
        .expect_state(State.COMPENSATING, reason="charge_payment_dead_lettered", stuck=False)
    )


def test_rule_08_a_dead_reply_is_stuck_and_resent() -> None:
    (
        given(ORDER_SAGA)
        .awaiting("charge_payment")
        .reply_dead("charge_payment")
        .expect_nothing()
        .expect_state(State.RUNNING, stuck=True)
        .timed_out("charge_payment")
        .expect(ask("charge_payment", 2))
    )


def test_rule_08_a_dead_pivot_is_fenced() -> None:
    (
        given(ORDER_SAGA)
        .awaiting("dispatch_stock")
        .dead("dispatch_stock")
        .expect(fence("dispatch_stock"))
        .expect_state(State.RUNNING, stuck=False)
        .fence_says("dispatch_stock", Outcome.FENCED)
        .expect_state(State.COMPENSATING, reason="dispatch_stock_dead_lettered")
    )


@pytest.mark.parametrize(
    ("awaiting", "dead", "direction"),
    [
        ("charge_payment", "reserve_stock", COMPENSATING),
        ("dispatch_stock", "dispatch_stock", COMPENSATING),
        ("confirm_order", "confirm_order", FORWARD),
    ],
    ids=["undo", "fence", "retriable"],
)
def test_rule_08_any_other_dead_leg_is_stuck_and_still_resent(
    awaiting: str, dead: str, direction: Direction
) -> None:
    story = given(ORDER_SAGA).awaiting(awaiting)
    if awaiting == "charge_payment":
        story.refused("charge_payment", "no")
    elif awaiting == "dispatch_stock":
        story.asked_to_compensate()
    story.dead(dead, direction).expect_nothing()
    assert story.instance.stuck
    assert (dead, direction) in story.instance.timed_legs()  # its deadline goes on running
    again = ask(dead, attempt=2) if direction is FORWARD else undo(dead, attempt=2)
    story.timed_out(dead, direction).expect(again)


def test_rule_08_a_dead_start_makes_a_stuck_instance() -> None:
    story = given(ORDER_SAGA).start_dead().expect_nothing().expect_state(State.RUNNING, stuck=True)
    assert story.instance.timed_legs() == {}
    story.start_dead().expect_nothing().expect_state(State.RUNNING, stuck=True)


def test_rule_08_a_later_start_begins_it() -> None:
    (
        given(ORDER_SAGA)
        .start_dead()
        .when(Started(SAGA, DATA))
        .expect(ask("reserve_stock"))
        .expect_state(State.RUNNING, stuck=False)
        .expect_illegal(Started(SAGA, DATA), "starts once")
    )


def test_rule_08_compensated_it_never_begins() -> None:
    (
        given(ORDER_SAGA)
        .start_dead()
        .asked_to_compensate()
        .expect(undo("create_order"))
        .when(Started(SAGA, DATA))
        .expect_nothing()
        .expect_logged("ignored")
        .undone("create_order")
        .expect_state(State.COMPENSATED)
        .when(Started(SAGA, DATA))
        .expect_nothing()
        .expect_state(State.COMPENSATED)
    )


def test_rule_08_a_dead_start_of_a_saga_that_began_is_only_noted() -> None:
    story = given(ORDER_SAGA).awaiting("charge_payment")
    before = story.instance
    story.start_dead().expect_nothing().expect_logged("dead_lettered")
    assert story.instance == before


def test_a_discarded_undo_or_retriable_step_is_stuck() -> None:
    story = given(ORDER_SAGA).awaiting("confirm_order").dead("confirm_order")
    story.when(DeadLettered("confirm_order", FORWARD, "gone for good", discarded_by="ann"))
    story.expect_nothing().expect_state(State.RUNNING, stuck=True)
    story.expect_logged("discarded", "stuck")
    assert story.decision.log[-1].detail == "ann: gone for good"


def test_rule_08_a_dead_letter_not_awaited_changes_nothing() -> None:
    story = given(ORDER_SAGA).awaiting("charge_payment")
    before = story.instance
    story.dead("reserve_stock").expect_nothing().expect_logged("dead_lettered")
    assert story.instance == before


# --- what is sent --------------------------------------------------------------------------


def test_commands_are_filled_from_the_data_and_the_reason() -> None:
    story = given(ORDER_SAGA).awaiting("dispatch_stock")
    fenced = story.asked_to_compensate("customer_called").decision.sends[0]
    assert command_for(ORDER_SAGA, story.instance, fenced) == Fence()
    assert command_for(ORDER_SAGA, story.instance, ask("charge_payment")) == payment.ChargePayment(
        customer="ada", total=700, currency="EUR"
    )
    assert command_for(
        ORDER_SAGA, story.instance, undo("create_order")
    ) == order.RejectOrder(reason="customer_called")  # fmt: skip


class Rebuke(Command):
    reason: str


def test_the_reason_of_the_data_is_not_that_of_turning_back() -> None:
    steps = (replace(ORDER_SAGA.steps[1], command=Rebuke),)
    instance = replace(given(ORDER_SAGA).started().instance, data={"reason": "late again"})
    rebuke = command_for(Definition("own", 1, steps), instance, ask("reserve_stock"))
    assert rebuke == Rebuke(reason="late again")


@pytest.mark.parametrize("send", [ask("create_order"), undo("confirm_order")])
def test_a_step_without_a_command_cannot_be_sent(send: object) -> None:
    story = given(ORDER_SAGA).started()
    with pytest.raises(IllegalTransition, match="nothing to send"):
        command_for(ORDER_SAGA, story.instance, send)  # type: ignore[arg-type]


# --- how long an answer may take -----------------------------------------------------------

JITTERS = (0.0, 0.25, 0.999)


@pytest.mark.parametrize("jitter", JITTERS)
def test_a_capped_steps_deadline_grows_to_the_backoff_cap(
    jitter: float,
) -> None:
    waits = [POLICY.patience(n, capped=True, jitter=jitter) for n in range(1, 2000)]
    assert waits[0] == POLICY.timeout_seconds
    assert waits[1] == POLICY.timeout_seconds + jitter * POLICY.backoff_first_seconds
    assert waits[2] == POLICY.timeout_seconds + jitter * POLICY.backoff_first_seconds * 2
    assert waits == sorted(waits)
    assert waits[-1] == POLICY.timeout_seconds + jitter * POLICY.backoff_cap_seconds


@pytest.mark.parametrize("jitter", JITTERS)
def test_an_uncapped_steps_deadline_stays_under_the_resend_cap(jitter: float) -> None:
    waits = [POLICY.patience(n, capped=False, jitter=jitter) for n in range(1, 2000)]
    assert waits[0] == POLICY.timeout_seconds
    assert waits == sorted(waits)
    assert waits[-1] == (POLICY.resend_cap_seconds if jitter else POLICY.timeout_seconds)
    hasty = replace(POLICY, resend_cap_seconds=2)
    assert hasty.patience(1, capped=False, jitter=jitter) == 2


# --- every input to every reachable instance -----------------------------------------------

HOLIDAY = Definition(  # no door, two retriable steps
    "holiday",
    1,
    (
        Step("flight", Kind.COMPENSATABLE, "a", inventory.ReserveStock, inventory.ReleaseStock),
        Step("hotel", Kind.COMPENSATABLE, "b", inventory.ReserveStock, inventory.ReleaseStock),
        Step("car", Kind.COMPENSATABLE, "c", inventory.ReserveStock, inventory.ReleaseStock),
        Step("visa", Kind.PIVOT, "d", inventory.DispatchStock),
        Step("tickets", Kind.RETRIABLE, "a", order.ConfirmOrder),
        Step("letter", Kind.RETRIABLE, "e", order.ConfirmOrder),
    ),
)
NO_PIVOT = Definition("no_pivot", 1, HOLIDAY.steps[:2])
GATES = Definition(  # two in a row, and one that is the last step of all
    "gates",
    1,
    (HOLIDAY.steps[0], Step("boss", Kind.GATE, "ops"), Step("owner", Kind.GATE, "ops"),
     HOLIDAY.steps[1], Step("auditor", Kind.GATE, "ops")),
)  # fmt: skip

every_definition = pytest.mark.parametrize(
    "definition",
    [ORDER_SAGA, ORDER_SAGA_V1, HOLIDAY, NO_PIVOT, GATES],
    ids=lambda d: f"{d.name}_v{d.version}",
)


def transitions(definition: Definition) -> tuple[Transition, ...]:
    return explore(definition, POLICY)


def taken(definition: Definition) -> Iterator[Transition]:
    return (t for t in transitions(definition) if t.decision is not None)


def reachable(definition: Definition) -> Iterator[Instance]:
    return (t.after for t in taken(definition))


def status_of(instance: Instance, step: str) -> Status | None:
    progress = instance.steps.get(step)
    return progress.status if progress else None


ILLEGAL = "raises"
IGNORED = "ignored"
C, G, P, R = Kind
# What a reply makes of the step it is about. Where nothing is said the reply is not awaited.
REPLIES: dict[tuple[Kind, Status, Direction, Outcome], Status | str] = {
    (C, Status.SENT, FORWARD, Outcome.DONE): Status.DONE,
    (C, Status.SENT, FORWARD, Outcome.REFUSED): Status.REFUSED,
    (C, Status.SENT, FORWARD, Outcome.FENCED): Status.FENCED,
    (C, Status.UNDOING, COMPENSATING, Outcome.DONE): Status.UNDONE,
    (C, Status.UNDOING, COMPENSATING, Outcome.REFUSED): ILLEGAL,
    (C, Status.UNDOING, COMPENSATING, Outcome.FENCED): ILLEGAL,
    (P, Status.SENT, FORWARD, Outcome.DONE): Status.DONE,
    (P, Status.SENT, FORWARD, Outcome.REFUSED): Status.REFUSED,
    (P, Status.SENT, FORWARD, Outcome.FENCED): Status.FENCED,
    (P, Status.FENCING, FORWARD, Outcome.DONE): Status.DONE,
    (P, Status.FENCING, FORWARD, Outcome.REFUSED): Status.REFUSED,
    (P, Status.FENCING, FORWARD, Outcome.FENCED): Status.FENCED,
    (P, Status.FENCING, COMPENSATING, Outcome.DONE): Status.DONE,
    (P, Status.FENCING, COMPENSATING, Outcome.REFUSED): ILLEGAL,
    (P, Status.FENCING, COMPENSATING, Outcome.FENCED): Status.FENCED,
    (R, Status.SENT, FORWARD, Outcome.DONE): Status.DONE,
    (R, Status.SENT, FORWARD, Outcome.REFUSED): ILLEGAL,
    (R, Status.SENT, FORWARD, Outcome.FENCED): ILLEGAL,
}
# What the latest deadline makes of it: (before the last attempt, at the last attempt).
DEADLINES: dict[tuple[Kind, Status, Direction], tuple[Status, Status]] = {
    (C, Status.SENT, FORWARD): (Status.SENT, Status.UNDOING),
    (C, Status.UNDOING, COMPENSATING): (Status.UNDOING, Status.UNDOING),
    (P, Status.SENT, FORWARD): (Status.SENT, Status.FENCING),
    (P, Status.FENCING, COMPENSATING): (Status.FENCING, Status.FENCING),
    (R, Status.SENT, FORWARD): (Status.SENT, Status.SENT),
    (G, Status.WAITING, FORWARD): (Status.REFUSED, Status.REFUSED),
}
# What a dead letter makes of it: its status, and whether the instance is stuck.
DEAD: dict[tuple[Kind, Status, Direction], tuple[Status, bool]] = {
    (C, Status.SENT, FORWARD): (Status.UNDOING, False),
    (C, Status.UNDOING, COMPENSATING): (Status.UNDOING, True),
    (P, Status.SENT, FORWARD): (Status.FENCING, False),
    (P, Status.FENCING, COMPENSATING): (Status.FENCING, True),
    (R, Status.SENT, FORWARD): (Status.SENT, True),
}


def became(t: Transition, step: str) -> Status | str | None:
    """Return the status of the step after the input, or that it was illegal or ignored."""
    if t.decision is None:
        return ILLEGAL
    if t.decision.log[0].kind == "ignored":
        assert (t.after, t.decision.sends, len(t.decision.log)) == (t.before, (), 1)
        return IGNORED
    return status_of(t.after, step)


def expect_table(
    definition: Definition, table_row: type[ReplyArrived] | type[TimedOut] | type[DeadLettered]
) -> Iterator[tuple[Transition, Kind, Status]]:
    """Yield the transitions of one kind of input; check that those of unsent steps are illegal."""
    for t in transitions(definition):
        if isinstance(t.input_, table_row):
            status = status_of(t.before, t.input_.step)
            if status is None:
                assert t.decision is None, t
            else:
                yield t, definition.by_name[t.input_.step].kind, status


@every_definition
def test_every_reply_makes_of_its_step_what_the_table_says(definition: Definition) -> None:
    for t, kind, status in expect_table(definition, ReplyArrived):
        assert isinstance(t.input_, ReplyArrived)
        expected = REPLIES.get((kind, status, t.input_.direction, t.input_.outcome), IGNORED)
        if expected is Status.DONE and kind is Kind.PIVOT:
            assert t.after.pivot_passed, t
        assert became(t, t.input_.step) == expected, t


@every_definition
def test_every_deadline_makes_of_its_step_what_the_table_says(definition: Definition) -> None:
    for t, kind, status in expect_table(definition, TimedOut):
        assert isinstance(t.input_, TimedOut)
        progress = t.before.steps[t.input_.step]
        latest = progress.attempt if t.input_.direction is FORWARD else progress.undo_attempt
        row = DEADLINES.get((kind, status, t.input_.direction))
        if row is None or t.input_.attempt != latest:
            assert became(t, t.input_.step) == IGNORED, t
            continue
        assert became(t, t.input_.step) == row[latest >= POLICY.attempts], t
        uncapped = kind is Kind.RETRIABLE or t.input_.direction is COMPENSATING
        assert t.after.stuck == (t.before.stuck or (t.input_.past_sla and uncapped)), t


@every_definition
def test_every_dead_letter_makes_of_its_step_what_the_table_says(definition: Definition) -> None:
    for t, kind, status in expect_table(definition, DeadLettered):
        assert isinstance(t.input_, DeadLettered)
        row = DEAD.get((kind, status, t.input_.direction))
        expected, stuck = row or (status, False)
        assert became(t, t.input_.step) == expected, t
        assert t.after.stuck == (t.before.stuck or stuck), t
        if row is None:
            assert t.after == t.before, t


@every_definition
def test_every_compensate_asked_does_what_its_state_allows(definition: Definition) -> None:
    for t in transitions(definition):
        if not isinstance(t.input_, CompensateAsked):
            continue
        before = {name: progress.status for name, progress in t.before.steps.items()}
        if t.before.pivot_passed or t.before.state.ended:
            assert t.decision is None, t
        elif gate := t.before.waiting_at():
            assert status_of(t.after, gate) is Status.REFUSED, t
            assert t.after.state is not State.WAITING, t
            assert t.after.compensate_asked, t
        elif t.before.state is State.COMPENSATING or Status.FENCING in before.values():
            assert t.decision is not None, t
            assert not t.decision.sends, t
            recorded = t.before.compensate_asked or t.before.state is State.RUNNING
            assert t.after == replace(t.before, compensate_asked=recorded), t
        else:
            ((step, _),) = t.before.awaited()
            pivot = definition.by_name[step].kind is Kind.PIVOT
            assert status_of(t.after, step) is (Status.FENCING if pivot else Status.UNDOING), t
            assert t.decision is not None, t
            assert t.decision.sends == (undo(step),), t
            assert t.after.compensate_asked, t


@every_definition
def test_every_gate_decision_counts_only_where_the_saga_waits(
    definition: Definition,
) -> None:
    for t in transitions(definition):
        if not isinstance(t.input_, GateDecided):
            continue
        if t.input_.step != t.before.waiting_at():
            assert t.decision is None, t
        elif t.input_.approved:
            assert status_of(t.after, t.input_.step) is Status.OPEN, t
            assert t.after.state not in (State.COMPENSATING, State.COMPENSATED), t
        else:
            assert status_of(t.after, t.input_.step) is Status.REFUSED, t
            assert (t.after.state, t.after.reason) == (State.COMPENSATING, "rejected"), t


@every_definition
def test_every_retry_sends_what_is_awaited_and_changes_nothing(definition: Definition) -> None:
    for t in transitions(definition):
        if isinstance(t.input_, RetryAsked):
            legs = {} if t.before.waiting_at() else t.before.timed_legs()
            assert (t.decision is not None) == bool(legs), t
            if t.decision is not None:
                assert {(s.step, s.direction): s.attempt for s in t.decision.sends} == legs, t
                assert t.after == t.before, t


@every_definition
def test_every_resolve_settles_uncapped_legs_never_the_pivot(
    definition: Definition,
) -> None:
    for t in transitions(definition):
        if not isinstance(t.input_, Resolved):
            continue
        name, legs = t.input_.step, t.before.awaited()
        step = definition.by_name.get(name)
        may = step is not None and step.kind is not Kind.PIVOT
        may = may and any(leg[0] == name and not step.is_capped(leg[1]) for leg in legs if step)
        assert (t.decision is not None) == may, t
        if may:
            assert status_of(t.after, name) is Status.RESOLVED, t
            assert not t.after.stuck, t
            assert not any(leg[0] == name for leg in t.after.awaited()), t


@every_definition
def test_a_parked_saga_sends_nothing_and_awaits_no_reply(definition: Definition) -> None:
    for t in taken(definition):
        gates = {n for n, p in t.after.steps.items() if p.status is Status.WAITING}
        assert (t.after.state is State.WAITING) == bool(gates), t
        if gates:
            assert t.decision is not None
            assert (t.decision.sends, t.after.awaited(), len(gates)) == ((), {}, 1), t


@every_definition
def test_every_start_of_a_known_saga_is_illegal(definition: Definition) -> None:
    assert all(t.decision is None for t in transitions(definition) if isinstance(t.input_, Started))


@every_definition
def test_rule_01_the_barrier_holds_everywhere(definition: Definition) -> None:
    for t in taken(definition):
        fencing = {n for n, p in t.after.steps.items() if p.status is Status.FENCING}
        if fencing:
            assert t.after.state is State.RUNNING, t
            assert t.decision is not None, t
            assert {s.step for s in t.decision.sends} <= fencing, t
            others = {p.status for n, p in t.after.steps.items() if n not in fencing}
            assert others <= {Status.DONE, Status.OPEN}, t


@every_definition
def test_rule_02_a_passed_pivot_excludes_compensation(definition: Definition) -> None:
    pivots = {s.name for s in definition.steps if s.kind is Kind.PIVOT}
    for t in taken(definition):
        assert t.after.pivot_passed == any(
            status_of(t.after, pivot) is Status.DONE for pivot in pivots
        ), t
        assert t.after.pivot_passed or not t.before.pivot_passed, t
        if t.after.pivot_passed:
            assert t.after.state in (State.RUNNING, State.COMPLETED), t


@every_definition
def test_rule_02_an_end_means_every_sent_step_is_settled(definition: Definition) -> None:
    ends = set()
    for instance in reachable(definition):
        statuses = {p.status for p in instance.steps.values()}
        if instance.state is State.COMPENSATED:
            assert statuses <= SETTLED, instance
        if instance.state is State.COMPLETED:
            gates = {s.name for s in definition.steps if s.kind is Kind.GATE}
            assert all(
                p.status in ((Status.OPEN,) if name in gates else (Status.DONE, Status.RESOLVED))
                for name, p in instance.steps.items()
            ), instance
            assert len(instance.steps) == len(definition.steps), instance
        if instance.state.ended:
            assert not instance.awaited(), instance
            assert not instance.stuck, instance
            ends.add(instance.state)
    assert ends == {State.COMPLETED, State.COMPENSATED}


@every_definition
def test_rule_02_what_is_sent_is_marked_and_the_reverse(definition: Definition) -> None:
    for t in taken(definition):
        assert t.decision is not None
        if isinstance(t.input_, RetryAsked):
            continue  # repeats what is marked
        marked = set()
        for name, after in t.after.steps.items():
            before = t.before.steps.get(name, Progress(Status.SENT, attempt=0))
            if after.attempt != before.attempt:
                marked.add(ask(name, after.attempt))
                assert after.attempt == before.attempt + 1, t
            if after.undo_attempt != before.undo_attempt:
                marked.add(undo(name, after.undo_attempt))
                assert after.undo_attempt == before.undo_attempt + 1, t
        assert marked == set(t.decision.sends), t
        assert len(marked) == len(t.decision.sends), t
        logged = {
            (e.step, e.direction, e.attempt) for e in t.decision.log if e.kind == "sent"
        }  # fmt: skip
        assert logged == {(s.step, s.direction, s.attempt) for s in marked}, t


@every_definition
def test_every_first_undo_finds_later_steps_settled_or_overdue(definition: Definition) -> None:
    names = [step.name for step in definition.steps]
    for t in taken(definition):
        assert t.decision is not None
        for send in t.decision.sends:
            kind = definition.by_name[send.step].kind
            if send.direction is FORWARD or send.attempt > 1 or kind is Kind.PIVOT:
                continue
            assert t.after.state is State.COMPENSATING, t
            for later in names[names.index(send.step) + 1 :]:
                progress = t.after.steps.get(later)
                overdue = progress is not None and progress.undo_attempt > 1
                settled = progress is None or progress.status in SETTLED
                assert settled or (overdue and not definition.by_name[send.step].at_the_door), t


@every_definition
def test_every_forward_command_finds_all_before_it_done(definition: Definition) -> None:
    names = [step.name for step in definition.steps]
    for t in taken(definition):
        assert t.decision is not None
        for send in t.decision.sends:
            if send.direction is FORWARD:
                before = names[: names.index(send.step)]
                assert {status_of(t.after, name) for name in before} <= {
                    Status.DONE,
                    Status.OPEN,
                    Status.RESOLVED,
                }, t
                assert t.after.state is State.RUNNING, t


@every_definition
def test_every_living_saga_has_a_deadline(definition: Definition) -> None:
    for instance in reachable(definition):
        assert bool(instance.timed_legs()) is not instance.state.ended, instance
        if gate := instance.waiting_at():
            assert instance.timed_legs() == {(gate, FORWARD): 0}, instance
        else:
            assert instance.timed_legs().items() <= instance.awaited().items(), instance


@every_definition
def test_an_ended_saga_does_not_change(definition: Definition) -> None:
    for t in taken(definition):
        if t.before.state.ended:
            assert t.decision is not None
            assert t.after == t.before, t
            assert t.decision.sends == (), t


@every_definition
def test_every_turn_gives_a_reason(definition: Definition) -> None:
    for instance in reachable(definition):
        if instance.state in (State.COMPENSATING, State.COMPENSATED):
            assert instance.reason, instance
        if instance.state is State.COMPLETED:
            assert instance.reason is None, instance
