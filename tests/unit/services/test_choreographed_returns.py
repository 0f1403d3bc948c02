"""Tests of choreographed returns in memory; the pivot of a return is payment's."""

from __future__ import annotations

from itertools import permutations

import pytest

from common.messages.envelope import Direction, Envelope, Fenced, Key, PivotDone
from common.messages.shop.order import ReturnAccepted
from common.participant.reactions import react
from inventory_svc.choreography import REACTIONS as INVENTORY
from order_svc.choreography.progress import RETURN, SagaProgress
from order_svc.choreography.reactions import REACTIONS as ORDERS
from payment_svc.choreography import REACTIONS as PAYMENT
from tests.support.choreography import LISTENERS, NOON, World, but_for_one, played, until

ENDED = ("RETURNED", ["CHARGE", "REFUND"], "RETURNED")
AS_IT_WAS = ("CONFIRMED", ["CHARGE"], "DISPATCHED")


def given_back(world: World, key: str = "r") -> SagaProgress:
    progress = world.give_back(key)
    assert progress is not None
    return progress


def stands(world: World) -> tuple[str, list[str], str | None]:
    return world.status, world.moves, world.goods


def refunded_before(world: World) -> World:
    """Refund the charge under another saga's id."""
    (charge,) = world.ledger.made
    world.ledger.refunded.add(charge.transfer_id)
    return world


def test_a_return_is_refunded_then_restocked_then_finished() -> None:
    world = played(World())
    back = given_back(world)
    assert (world.status, back.statuses()) == (
        "RETURN_PENDING",
        {"open_return": "done", "refund_order": "sent"},
    )
    until(world, "inventory", "OrderRefunded")
    assert (world.moves, world.goods) == (["CHARGE", "REFUND"], "DISPATCHED")
    assert back.statuses()["restock"] == "sent"
    until(world, "order", "Restocked")
    assert (world.status, world.goods) == ("RETURN_PENDING", "RETURNED")
    played(world)
    assert stands(world) == ENDED
    assert (back.state, set(back.statuses().values())) == ("COMPLETED", {"done"})
    assert world.progress.state == "COMPLETED"


def test_an_order_that_is_not_confirmed_cannot_be_returned() -> None:
    world = World()
    until(world, "order", "StockDispatched")
    assert world.give_back() is None
    played(world)
    given_back(world)
    assert world.give_back("another") is None
    played(world)
    assert world.give_back("another") is None
    assert stands(world) == ENDED


def test_who_asks_again_by_the_same_key_begins_no_second_chain() -> None:
    world = played(World())
    assert given_back(world) is given_back(world)
    assert [event.type for _, event in world.under_way] == ["ReturnAccepted"]
    played(world)
    assert world.give_back() is not None
    assert world.under_way == []


def test_after_a_refused_refund_the_order_can_be_returned_again() -> None:
    world = refunded_before(played(World()))
    back = given_back(world)
    played(world)
    assert stands(world) == AS_IT_WAS
    assert (back.state, back.reason) == ("COMPENSATED", "nothing_to_refund")
    assert back.statuses() == {"open_return": "undone", "refund_order": "fenced"}
    assert world.book.returns[back.saga_id].reason == "nothing_to_refund"
    world.ledger.refunded.clear()
    given_back(world, "another")
    played(world)
    assert stands(world) == ENDED


def test_a_refund_that_comes_after_its_fence_is_not_done() -> None:
    world = played(World())
    back = given_back(world)
    held = world.under_way.pop(until(world, "payment", "ReturnAccepted"))
    world.time_out(attempts=1)
    assert back.statuses()["refund_order"] == "fencing"
    assert world.status == "RETURN_PENDING"  # nothing is undone before the reply to the fence
    played(world)
    assert stands(world) == AS_IT_WAS
    assert (back.state, back.reason) == ("COMPENSATED", "refund_order_timed_out")
    world.under_way.append(held)
    played(world)
    assert stands(world) == AS_IT_WAS


def test_asked_to_cancel_too_late_it_goes_forward() -> None:
    world = played(World())
    back = given_back(world)
    world.deliver(until(world, "payment", "ReturnAccepted"))
    while world.under_way:  # OrderRefunded, to both who listen
        world.lose(0)
    world.time_out(attempts=1)
    assert str(back.reason) == "refund_order_timed_out"
    played(world)
    assert stands(world) == ENDED
    assert (back.state, back.reason) == ("COMPLETED", None)


def test_a_timeout_after_the_refund_never_gives_up() -> None:
    world = played(World())
    back = given_back(world)
    until(world, "inventory", "OrderRefunded")
    assert {back.time_out(2, past_sla=True) for _ in range(9)} == {None}
    assert back.stuck


def test_an_event_after_the_refund_implies_it() -> None:
    """The order service may have missed OrderRefunded itself."""
    world = played(World())
    back = given_back(world)
    restocked = until(world, "order", "Restocked")
    back.events.pop(("refund_order", Direction.FORWARD))
    assert (back.pivot_passed, back.capped) == (False, True)
    world.deliver(restocked)
    assert (back.pivot_passed, back.capped) == (True, False)


@pytest.mark.parametrize("type_", sorted(LISTENERS))
def test_a_lost_event_of_a_return_is_published_again(type_: str) -> None:
    for who in LISTENERS[type_]:
        for refused in (False, True):
            world = played(World())
            if refused:
                refunded_before(world)
            back = given_back(world)
            but_for_one(world, who, type_)
            assert back.ended
            assert stands(world) == (AS_IT_WAS if refused else ENDED)


def test_repeated_events_of_the_order_do_not_change_its_return() -> None:
    world = played(World())
    published = len(world.delivered)
    back = given_back(world)
    for number in range(published):
        world.repeat(number)
    played(world)
    for number in range(published):
        world.repeat(number)
    played(world)
    assert stands(world) == ENDED
    assert back.state == "COMPLETED"


def test_the_reply_to_one_sagas_fence_undoes_no_other_saga() -> None:
    of_return = Key(World().book.placed.popitem()[0], "refund_order", Direction.COMPENSATING)
    of_order = of_return._replace(step="dispatch_stock")
    about = {"order_id": str(of_return.saga_id), "reason": "x"}
    led = {
        (body.__name__, key.step): [
            command.type if (command := react(reactions, _event(key, body(), about))) else None
            for reactions in (ORDERS, INVENTORY, PAYMENT)
        ]
        for body in (Fenced, PivotDone)
        for key in (of_order, of_return)
    }
    assert led == {
        ("Fenced", "dispatch_stock"): [None, "ReleaseStock", "RefundPayment"],
        ("PivotDone", "dispatch_stock"): ["ConfirmOrder", None, None],
        ("Fenced", "refund_order"): ["CloseReturn", None, None],
        ("PivotDone", "refund_order"): [None, "Restock", None],
    }


def _event(key: Key, body: Fenced | PivotDone, about: dict[str, str]) -> Envelope:
    return Envelope.of_reply(key, body, issued_at=NOON, about=about)


def test_a_returns_progress_does_not_depend_on_the_event_order() -> None:
    for world in (played(World()), refunded_before(played(World()))):
        back = given_back(world)
        played(world)
        received = [e for who, e in world.delivered if who == "order" and e.saga_id == back.saga_id]
        opened = next(e for _, e in world.delivered if e.type == ReturnAccepted.__name__)
        shown = set()
        for events in permutations(received):
            again = SagaProgress(back.saga_id, RETURN)
            for event in [opened, *events, *events[:2]]:
                again.record(event, 0)
            shown.add((again.state, str(again.statuses())))
        assert shown == {(back.state, str(back.statuses()))}
