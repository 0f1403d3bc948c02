"""Tests of choreography: reactions, the fence without an orchestrator, progress."""

from __future__ import annotations

import random
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.messages.envelope import Direction, Envelope, Fenced, Key, Outcome
from common.messages.errors import Poison
from common.messages.shop.inventory import StockReserved
from common.messages.shop.order import CancelAsked, OrderAccepted, ReturnAccepted
from common.messages.shop.payment import PaymentCharged
from common.participant.reactions import react
from inventory_svc.choreography import REACTIONS as INVENTORY
from order_svc.choreography.progress import ORDER, OUTLINES, RETURN, Outline, SagaProgress
from order_svc.choreography.reactions import CONSUMED
from order_svc.choreography.reactions import REACTIONS as ORDERS
from payment_svc.choreography import REACTIONS as PAYMENT
from tests.support.choreography import (
    LISTENERS,
    NOON,
    ORDER_ID,
    World,
    but_for_one,
    played,
    until,
    waiting,
)

# --- the story -----------------------------------------------------------------------------


def test_an_order_goes_from_service_to_service_and_is_confirmed() -> None:
    world = played(World())
    assert (world.status, world.moves, world.goods) == ("CONFIRMED", ["CHARGE"], "DISPATCHED")
    assert world.progress.state == "COMPLETED"
    assert set(world.progress.statuses().values()) == {"done"}


@pytest.mark.parametrize(
    ("world", "reason", "goods"),
    [
        (World(stock=1), "out_of_stock", None),
        (World(card="declined"), "card_declined", "RELEASED"),
        (World(balance=199), "insufficient_funds", "RELEASED"),
    ],
    ids=["stock", "card", "funds"],
)
def test_a_refusal_is_fenced_then_undone_then_rejected(
    world: World, reason: str, goods: str | None
) -> None:
    played(world)
    assert (world.status, world.reason) == ("REJECTED", reason)
    assert (world.moves, world.goods) == ([], goods)
    assert (world.progress.state, world.progress.reason) == ("COMPENSATED", reason)


def test_nothing_is_undone_before_the_pivots_owner_answers() -> None:
    """Payment does not answer, and CancelAsked is under way to the inventory."""
    world = World()
    until(world, "payment", "StockReserved")
    world.time_out(attempts=1)
    assert world.progress.statuses()["dispatch_stock"] == "fencing"
    asked = waiting(world, "inventory", "CancelAsked")
    assert world.goods == "HELD"
    world.deliver(asked)
    assert (world.progress.fenced, world.goods) == (False, "HELD")
    played(world)
    assert (world.status, world.reason) == ("REJECTED", "charge_payment_timed_out")
    assert world.goods == "RELEASED"


def test_an_early_charge_is_refunded_and_a_late_one_not_made() -> None:
    for late in (False, True):
        world = World()
        charge = until(world, "payment", "StockReserved")
        if late:
            held = world.under_way.pop(charge)
            world.time_out(attempts=1)
            world.drain()
            world.under_way.append(held)
        else:
            world.time_out(attempts=1)
        world.drain()
        assert world.status == "REJECTED"
        assert world.moves == ([] if late else ["CHARGE", "REFUND"])


def test_cancelling_after_the_goods_have_left_comes_too_late() -> None:
    world = World()
    until(world, "order", "StockDispatched")
    world.lose(0)
    world.time_out(attempts=1)
    world.drain()
    assert (world.status, world.moves, world.goods) == ("CONFIRMED", ["CHARGE"], "DISPATCHED")
    assert world.progress.reason is None


def test_an_order_is_rejected_after_both_others_confirmed() -> None:
    world = World(card="declined")
    refunded = until(world, "order", "PaymentRefunded")
    assert (world.status, world.progress.statuses()["create_order"]) == ("PENDING", "done")
    world.deliver(refunded)
    assert world.status == "REJECTED"


# --- the customer wants it no more ---------------------------------------------------------


def test_an_order_cancelled_before_its_pivot_is_undone() -> None:
    world = World()
    until(world, "payment", "StockReserved")
    world.cancel()
    assert world.progress.statuses()["dispatch_stock"] == "fencing"
    played(world)
    assert (world.status, world.reason) == ("REJECTED", "cancelled")
    assert (world.goods, world.moves.count("CHARGE")) == ("RELEASED", world.moves.count("REFUND"))
    assert world.progress.state == "COMPENSATED"


def test_after_the_pivot_it_only_goes_forward() -> None:
    world = World()
    until(world, "order", "StockDispatched")
    world.cancel()  # the order service has not received StockDispatched yet
    assert world.progress.reason == "cancelled"
    played(world)
    assert (world.status, world.moves, world.goods) == ("CONFIRMED", ["CHARGE"], "DISPATCHED")
    assert world.progress.state == "COMPLETED"
    world.cancel()
    assert not world.under_way


def test_an_unanswered_cancel_is_repeated_without_end() -> None:
    world = World()
    world.cancel()
    while world.under_way:
        world.lose(0)
    assert {world.progress.time_out(1, past_sla=False) for _ in range(5)} == {"cancelled"}
    for _ in range(3):
        world.time_out()
        world.drain()
    assert (world.status, world.reason) == ("REJECTED", "cancelled")


def test_a_saga_given_up_already_is_not_cancelled_as_well() -> None:
    world = World()
    world.time_out(attempts=1)
    world.time_out(attempts=1)
    world.cancel()
    assert (world.progress.cancel_asked, world.progress.attempt) == ("reserve_stock_timed_out", 2)
    played(world)
    assert (world.status, world.reason) == ("REJECTED", "reserve_stock_timed_out")


# --- repeats and losses --------------------------------------------------------------------


@pytest.mark.parametrize("type_", sorted(LISTENERS))
def test_a_lost_event_is_published_again(type_: str) -> None:
    """Lose each event once to each of its consumers, in a confirmed and a rejected order."""
    for card in ("good", "declined"):
        for who in LISTENERS[type_]:
            world = World(card=card)
            but_for_one(world, who, type_)
            assert world.progress.ended
            assert world.status == ("CONFIRMED" if card == "good" else "REJECTED")


def test_a_repeated_event_brings_the_stored_event_again() -> None:
    world = played(World())
    first = world.delivered[0]
    assert first[1].type == "OrderAccepted"
    before = [event for _, event in world.delivered]
    world.repeat(0)
    again = world.under_way[0][1]
    assert again.type == "StockReserved"
    assert again in before
    played(world)
    assert (world.moves, world.goods) == (["CHARGE"], "DISPATCHED")


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(
    seed=st.integers(0, 2**32),
    card=st.sampled_from(["good", "declined"]),
    stock=st.sampled_from([1, 9]),
)
def test_under_any_loss_repeat_and_reordering_all_services_agree(
    seed: int, card: str, stock: int
) -> None:
    dice = random.Random(seed)
    world = World(card=card, stock=stock)
    for _ in range(60):
        match dice.choice("dddddrlscb"):
            case "d" if world.under_way:
                world.deliver(dice.randrange(len(world.under_way)))
            case "r" if world.delivered:
                world.repeat(dice.randrange(len(world.delivered)))
            case "l" if world.under_way:
                world.lose(dice.randrange(len(world.under_way)))
            case "s":
                world.time_out()
            case "c":
                world.cancel()
            case "b":
                world.give_back(dice.choice("xyz"))
        agrees(world, ended=False)
    for _ in range(9):  # nothing is lost any more: deadlines finish every saga
        world.time_out()
        world.drain()
    assert all(progress.ended for progress, _ in world.sagas.values())
    agrees(world, ended=True)


def agrees(world: World, *, ended: bool) -> None:
    """Assert what must hold at every moment, and what must hold in the end."""
    charged = world.moves.count("CHARGE") - world.moves.count("REFUND")
    assert charged in (0, 1)
    if world.status == "CONFIRMED":
        assert (charged, world.goods) == (1, "DISPATCHED")
    if world.status == "REJECTED":
        assert (charged, world.goods in (None, "RELEASED")) == (0, True)
    if world.status == "RETURNED":
        assert (charged, world.moves, world.goods) == (0, ["CHARGE", "REFUND"], "RETURNED")
    if world.goods == "DISPATCHED" and world.status != "RETURN_PENDING":
        assert charged == 1, "goods have left, and their charge is refunded"
    if ended:
        state = "COMPENSATED" if world.status == "REJECTED" else "COMPLETED"
        assert (world.status == "RETURN_PENDING", world.progress.state) == (False, state)
        returned = [p for p, _ in world.sagas.values() if p.outline is RETURN]
        finished = [p for p in returned if p.state == "COMPLETED"]
        assert len(finished) == (world.status == "RETURNED")


# --- progress ------------------------------------------------------------------------------


def test_progress_does_not_depend_on_the_order_of_events() -> None:
    for world in (played(World()), played(World(card="declined"))):
        events = {e.message_id: e for who, e in world.delivered if who == "order"}
        accepted = world.delivered[0][1]
        shown = {_shown([accepted, *order]) for order in permutations(events.values())}
        assert shown == {(world.progress.state, str(world.progress.statuses()))}


def _shown(events: list[Envelope]) -> tuple[str, str]:
    progress = SagaProgress(ORDER_ID, ORDER)
    for event in [*events, *events[:2]]:
        progress.record(event, 0)
    return progress.state, str(progress.statuses())


def test_an_event_implies_all_that_came_before_it() -> None:
    """Progress is right even if an event was missed."""
    world = World()
    world.deliver()  # the goods are held; the order service does not learn it
    world.lose(waiting(world, "order", "StockReserved"))
    until(world, "inventory", "PaymentCharged")
    assert world.progress.statuses() == {
        "create_order": "done",
        "reserve_stock": "done",
        "charge_payment": "done",
        "dispatch_stock": "sent",
    }


def test_only_before_the_pivot_does_a_timeout_give_up() -> None:
    world = World()
    assert [world.progress.time_out(3, past_sla=True) for _ in range(4)] == [
        None,
        None,
        "reserve_stock_timed_out",
        "reserve_stock_timed_out",
    ]
    assert world.progress.stuck  # no answer whether it is cancelled
    sent = World()
    until(sent, "order", "StockDispatched")
    sent.deliver()
    assert {sent.progress.time_out(3, past_sla=False) for _ in range(9)} == {None}


def test_every_event_that_a_step_can_publish_is_consumed() -> None:
    published = {e for outline in OUTLINES.values() for step in outline.steps for e in step.events}
    assert {*INVENTORY, *PAYMENT} - published == {CancelAsked}
    assert {*CONSUMED} == published - {OrderAccepted, ReturnAccepted}
    assert len(CONSUMED) == len(set(CONSUMED))


# --- reactions -----------------------------------------------------------------------------


def test_a_reaction_is_the_command_an_orchestrator_would_send() -> None:
    accepted = next(e for w, e in World().under_way if w == "inventory")
    command = react(INVENTORY, accepted)
    assert command is not None
    assert command.message_id == Key(ORDER_ID, "reserve_stock", Direction.FORWARD).command_id
    assert command.reply_to == "events"
    assert command.first_issued_at == accepted.first_issued_at


def test_a_late_action_that_was_refused_leads_to_nothing() -> None:
    late = Envelope.of_reply(Key(ORDER_ID, "charge_payment", Direction.FORWARD), Fenced(),
                          issued_at=NOON)  # fmt: skip
    assert react(PAYMENT, late) is None
    assert react(INVENTORY, late) is None


def test_an_event_about_too_little_is_poison() -> None:
    key = Key(ORDER_ID, "reserve_stock", Direction.FORWARD)
    with pytest.raises(Poison, match="too little"):
        react(PAYMENT, Envelope.of_reply(key, StockReserved(), issued_at=NOON))


def test_a_command_is_no_event() -> None:
    charge = react(PAYMENT, next(e for w, e in _charged().delivered if e.type == "StockReserved"))
    assert charge is not None
    with pytest.raises(Poison, match="no outcome"):
        react(PAYMENT, charge)


def _charged() -> World:
    world = World()
    until(world, "inventory", PaymentCharged.__name__)
    return world


@pytest.mark.parametrize("outline", OUTLINES.values(), ids=lambda outline: outline.name)
def test_every_refusal_of_a_step_leads_to_the_same(outline: Outline) -> None:
    """Let one refusal of a step stand for all of them in the model."""
    tables = (INVENTORY, PAYMENT, ORDERS)
    for step in outline.steps:
        refusals = [event for event in step.events if event.outcome is Outcome.REFUSED]
        assert len({tuple(table.get(event) for table in tables) for event in refusals}) <= 1
