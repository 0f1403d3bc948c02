"""A dead letter of a defect, on a whole stack: a release that cannot undo a step of one order.
From its taking in to its end, by what an operator types."""

from __future__ import annotations

from uuid import UUID

from chaos.load.shop import PLENTY, shop
from chaos.scenarios.rolling import Replace, release
from chaos.stack.database import CONFIRMED, rejected
from chaos.stack.system import System
from chaos.waiting import until
from common.messages.topology import commands_of, dead_letter_queue
from tests.support.profiles import on
from tests.support.saga import saga
from tests.support.stuck import is_stuck

pytestmark = on("defective")

INVENTORY = commands_of("inventory")
EXPLAINED = [(dead_letter_queue(INVENTORY), "exhausted")]
DECLINED = rejected("card_declined")


def stumble(system: System, name: str) -> tuple[UUID, str]:
    """An order that is declined, and whose stock cannot be released; and the letter of it."""
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
    """Inventory is of this release."""
    new = Replace("inventory")
    new.inject(system)
    new.heal(system)


def is_over(system: System, order: UUID) -> None:
    assert system.db.ends([order]) == {order: DECLINED}
    assert "nothing is stuck" in saga(system, "stuck")
    assert "no open dead letter" in saga(system, "dead-letters", "list")
    saga(system, "audit")
    system.verdict(EXPLAINED)


def test_redriven_too_early_it_comes_back_and_once_mended_it_ends_its_saga(system: System) -> None:
    order, letter = stumble(system, "redriven")
    saga(system, "dead-letters", "redrive", letter, "--why", "perhaps it helps")
    until(
        lambda: "dead-lettered 2 times" in saga(system, "dead-letters", "show", letter),
        "it is set aside again",
    )
    mend(system)
    assert system.db.steps([order])[0]["reserve_stock"] == "undoing"  # nobody asked
    saga(system, "dead-letters", "redrive", letter, "--why", "mended")
    is_over(system, order)


def test_discarded_with_a_reason_its_saga_says_so_and_is_asked_for_anew(system: System) -> None:
    order, letter = stumble(system, "discarded")
    saga(system, "dead-letters", "discard", letter, "--why", "it is asked for anew tomorrow")
    is_stuck(system, "is a dead letter: ", order)
    is_stuck(system, "it is asked for anew tomorrow", order)
    saga(system, "dead-letters", "redrive", letter, "--why", "too late")
    mend(system)
    assert system.db.steps([order])[0]["reserve_stock"] == "undoing"  # nobody asked
    saga(system, "retry", str(order), "--reason", "mended")
    is_over(system, order)
    shown = saga(system, "dead-letters", "show", letter)
    assert "discarded" in shown
    assert "it is asked for anew tomorrow" in shown
