"""A repeated message has its effect once; a lost one is sent again."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from uuid import UUID

from chaos.judge.history import Answered, Refused
from chaos.load.model import foresee
from chaos.load.outcome import outcome_of, what_changed
from chaos.load.shop import PLENTY, shop
from chaos.load.workload import Ask, Catalogue, parse_catalogue, parse_orders
from chaos.stack.database import CONFIRMED
from chaos.stack.system import System
from chaos.waiting import until
from tests.support.stages import on

pytestmark = on("plain")

EXAMPLES = Path(__file__).parents[2] / "examples"
LINES = (1900, 2130)  # among them wrong ones, repeats and a conflict


def test_a_repeated_command_charges_once_and_logs_the_skip(system: System) -> None:
    here = system.stock_up(shop("again", stock={"tea": 5}, accounts={"ann": PLENTY}))
    system.processes.stop("payment")
    (order_id,) = system.door.place([here.order("ann", tea=1)])
    (command,) = until(lambda: system.broker.take("payment.commands"), "the charge is asked for")
    assert (command.type, command.saga_id) == ("ChargePayment", order_id)

    system.broker.send("payment.commands", [command, command])
    system.processes.start("payment")
    assert system.db.ends([order_id]) == {order_id: CONFIRMED}
    system.broker.send("payment.commands", [command])

    skips = until(lambda: _skips(system, order_id, at_least=2), "both repeats are skipped")
    assert {(s["step"], s["message_id"]) for s in skips} == {
        ("charge_payment", str(command.message_id))
    }
    # Each repeat was answered with the stored reply, which was no longer awaited.
    until(lambda: len(_log(system, order_id, "ignored")) >= 2, "both replies are ignored")
    moves = system.db.rows("select kind from payment_svc.transfer where saga_id = %s", order_id)
    assert moves == [("CHARGE",)]
    assert system.db.ends([order_id]) == {order_id: CONFIRMED}
    system.verdict()


def _skips(system: System, order_id: UUID, at_least: int) -> list[dict[str, str]] | None:
    logged = system.processes.logged("payment", "command.duplicate")
    skips = [line for line in logged if line["saga_id"] == str(order_id)]
    return skips if len(skips) >= at_least else None


def _log(system: System, saga_id: UUID, entry: str) -> list[tuple[object, ...]]:
    return system.db.rows(
        "select step from orchestrator.saga_log where saga_id = %s and entry = %s", saga_id, entry
    )


def test_a_lost_start_is_resent_and_the_saga_runs_once(system: System) -> None:
    here = system.stock_up(shop("lost", stock={"tea": 50}, accounts={"ann": PLENTY}))
    system.processes.stop("orchestrator")
    orders = system.door.place([here.order("ann", tea=1) for _ in range(5)])
    lost = {
        c.saga_id for c in until(lambda: system.broker.take("orchestrator.commands"), "a start")
    }
    assert lost <= set(orders)
    asked_before = len(system.processes.logged("order", "starter.asked_again"))
    until(
        lambda: len(system.processes.logged("order", "starter.asked_again")) > asked_before,
        "the order service asks again",
    )
    system.processes.start("orchestrator")

    assert set(system.db.ends(orders).values()) == {CONFIRMED}
    until(lambda: _known(system, orders), "the order service has heard that the sagas are known")
    started = system.db.rows(
        "select saga_id from orchestrator.saga_log where entry = 'started' and saga_id = any(%s)",
        orders,
    )
    assert sorted(saga_id for (saga_id,) in started) == sorted(orders)
    system.verdict()


def _known(system: System, order_ids: list[UUID]) -> bool:
    rows = system.db.rows(
        "select saga_known from order_svc.customer_order where order_id = any(%s)", order_ids
    )
    return all(known for (known,) in rows)


def test_a_file_placed_twice_only_changes_the_count_of_repeats(
    system: System,
) -> None:
    asks, catalogue = _example()
    system.load(catalogue)
    foreseen = foresee(catalogue, asks)
    assert foreseen.wrong
    assert foreseen.repeats
    assert foreseen.conflicts
    reactions: dict[tuple[int, int], Answered | Refused] = {}
    snapshots = []
    for run in (1, 2):
        answers = system.door.place_file(asks)
        reactions |= {(run, ask.number): a for ask, a in zip(asks, answers, strict=True)}
        system.db.ends({UUID(a.body["order_id"]) for a in answers if isinstance(a, Answered)})
        system.verdict()
        snapshots.append(system.snapshot())
    for run, snapshot in enumerate(snapshots, 1):
        outcome = outcome_of(run, asks, foreseen, reactions, snapshot)
        assert outcome.deviations == ()
        misfits = [count for count in (*outcome.answers, *outcome.ends) if not count.fits]
        assert misfits == []
    assert what_changed(*snapshots) == []


def _example() -> tuple[list[Ask], Catalogue]:
    """Parse some lines of the example file, and its catalogue."""
    with (EXAMPLES / "orders.jsonl").open(encoding="utf-8") as lines:
        parsed = list(parse_orders(islice(lines, *LINES)))
    catalogue = parse_catalogue((EXAMPLES / "catalogue.json").read_text("utf-8"))
    return [line for line in parsed if isinstance(line, Ask)], catalogue
