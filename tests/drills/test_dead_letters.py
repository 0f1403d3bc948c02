"""The dead letter of a release that cannot undo a step: from intake to end, by CLI."""

from __future__ import annotations

from uuid import UUID

from chaos.load.shop import PLENTY, shop
from chaos.scenarios.rolling import Replace, release
from chaos.stack.database import CONFIRMED, rejected
from chaos.stack.system import System
from chaos.waiting import until
from common.messages.topology import commands_of, dead_letter_queue
from tests.support.saga import saga
from tests.support.stages import on
from tests.support.stuck import is_stuck

pytestmark = on("defective")

INVENTORY = commands_of("inventory")
EXPLAINED = [(dead_letter_queue(INVENTORY), "exhausted")]
DECLINED = rejected("card_declined")


def stumble(system: System, name: str) -> tuple[UUID, str]:
    """Place an order whose release of stock fails; return it and its dead letter's id."""
    system.processes.stop("inventory")
    release(system)
    system.processes.start("inventory")
    stock = {"tea": 50, "cup.brittle": 50}
    here = shop(name, stock=stock, accounts={"ann": PLENTY, "eve": PLENTY}, declined=["eve"])
    system.stock_up(here)
    (order,) = system.door.place([here.order("eve", **{"cup.brittle": 1})])
    listed = is_stuck(system, "the undo of reserve_stock is a dead letter: exhausted", order)
    assert "redrive the dead letter" in listed

    neighbours = system.door.place([here.order(who, tea=1) for who in ("ann", "eve", "ann")])
    assert list(system.db.ends(neighbours).values()) == [CONFIRMED, DECLINED, CONFIRMED]
    assert system.db.steps([order])[0]["reserve_stock"] == "undoing"
    ((letter,),) = system.db.rows(
        "select letter_id from orchestrator.dead_letter where saga_id = %s", order
    )
    shown = saga(system, "dead-letters", "show", str(letter))
    assert f"from {INVENTORY}" in shown
    assert f"ReleaseStock (reserve stock): the undo of reserve stock of {order}" in shown
    assert "exhausted: 5 tries alone" in shown
    return order, str(letter)


def mend(system: System) -> None:
    """Replace inventory by the current release."""
    new = Replace("inventory")
    new.inject(system)
    new.heal(system)


def is_over(system: System, order: UUID) -> None:
    assert system.db.ends([order]) == {order: DECLINED}
    assert "nothing is stuck" in saga(system, "stuck")
    assert "no open dead letter" in saga(system, "dead-letters", "list")
    saga(system, "audit")
    system.verdict(EXPLAINED)


def test_a_redrive_before_the_fix_comes_back_and_one_after_ends(system: System) -> None:
    order, letter = stumble(system, "redriven")
    saga(system, "dead-letters", "redrive", letter, "--why", "perhaps it helps")
    until(
        lambda: "dead-lettered 2 times" in saga(system, "dead-letters", "show", letter),
        "it is dead-lettered again",
    )
    mend(system)
    assert system.db.steps([order])[0]["reserve_stock"] == "undoing"  # not retried by itself
    saga(system, "dead-letters", "redrive", letter, "--why", "mended")
    is_over(system, order)


def test_a_discarded_letter_shows_its_reason_and_can_be_retried(system: System) -> None:
    order, letter = stumble(system, "discarded")
    saga(system, "dead-letters", "discard", letter, "--why", "it is asked for anew tomorrow")
    is_stuck(system, "is a dead letter: ", order)
    is_stuck(system, "it is asked for anew tomorrow", order)
    saga(system, "dead-letters", "redrive", letter, "--why", "too late")
    mend(system)
    assert system.db.steps([order])[0]["reserve_stock"] == "undoing"  # not retried by itself
    saga(system, "retry", str(order), "--reason", "mended")
    is_over(system, order)
    shown = saga(system, "dead-letters", "show", letter)
    assert "discarded" in shown
    assert "it is asked for anew tomorrow" in shown
