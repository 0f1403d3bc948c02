"""`saga`, as an operator types it, against a running stack."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any
from uuid import UUID

from chaos.load.shop import PLENTY, shop
from chaos.load.workload import Ask
from chaos.stack.database import CONFIRMED, rejected
from chaos.stack.system import System
from chaos.waiting import WITHIN_SECONDS, until
from tests.support.saga import COMMAND, saga
from tests.support.stages import on

pytestmark = on("impatient")


def words_of(ask: Ask) -> list[str]:
    """Return the order as arguments of `saga order`."""
    lines = [f"--line={line['sku']}={line['quantity']}" for line in ask.body["lines"]]
    body = ask.body
    return ["order", f"--customer={body['customer']}", *lines, f"--key={ask.key}"]


def place(system: System, ask: Ask, code: int = 0) -> UUID:
    """Place it by `saga order`, and again at the door, which records it for the judge."""
    order = json.loads(saga(system, *words_of(ask), "--json", code=code))
    assert system.door.place([ask]) == [UUID(order["order_id"])]
    return UUID(order["order_id"])


def test_show_tells_an_order_from_start_to_end(system: System) -> None:
    here = system.stock_up(shop("cli-one", stock={"tea": 3}, accounts={"ann": PLENTY}))
    confirmed = place(system, here.order("ann", tea=2))
    refused = place(system, here.order("ann", tea=2), code=1)
    assert system.db.ends([confirmed, refused]) == {
        confirmed: CONFIRMED, refused: rejected("out_of_stock"),
    }  # fmt: skip

    story = saga(system, "show", str(refused))
    said = [
        f"{here.customer('ann')} orders 2 x {here.sku('tea')} for 2.00 EUR",
        "asks inventory to reserve stock",
        f"inventory refuses: out of stock (sku {here.sku('tea')}, wanted 2, available 1)",
        "compensates, out of stock: what was done is undone, the last step first",
        "asks order to undo create order: reject order",
        "order: order rejected",
        "COMPENSATED: all that was done is undone (out of stock)",
    ]
    places = [story.find(line) for line in said]
    assert -1 not in places, story
    assert places == sorted(places), story
    assert "From here on the saga only goes forward" in saga(system, "show", str(confirmed)[:13])

    listed = saga(system, "list", "--customer", here.customer("ann"), "--reason", "out_of_stock")
    assert str(refused)[:8] in listed
    assert str(confirmed)[:8] not in listed
    assert saga(system, "stock", here.sku("tea")).split()[-5:-1] == ["1", "0", "2", "3"]
    assert here.customer("ann") in saga(system, "accounts", here.customer("ann"))
    system.verdict()


def test_a_file_placed_twice_counts_the_same(system: System, tmp_path: Path) -> None:
    here = system.stock_up(shop("cli-file", stock={"tea": 50}, accounts={"ann": PLENTY, "bob": 0}))
    asks = [here.order("ann", tea=1) for _ in range(20)] + [here.order("bob", tea=1)]
    file = tmp_path / "orders.jsonl"
    lines = [json.dumps({"idempotency_key": ask.key, **ask.body}) for ask in asks]
    file.write_text("\n".join([*lines, lines[0], "{"]))
    first, second = (
        json.loads(saga(system, "orders", "place", str(file), "--json", code=1)) for _ in range(2)
    )
    assert first == second
    assert (first["orders"], first["repeats"]) == (21, 1)
    assert first["ends"] == {"confirmed": 20, "insufficient_funds": 1}
    assert [bad["line"] for bad in first["bad"]] == [23]
    system.door.place(asks)  # so that the judge knows of them
    system.verdict()


def test_following_a_saga_while_payment_is_down(system: System) -> None:
    """Undo the unanswered charge once payment is back to say that it never happened."""
    here = system.stock_up(shop("cli-silent", stock={"tea": 5}, accounts={"ann": PLENTY}))
    system.processes.stop("payment")
    (order_id,) = system.door.place([here.order("ann", tea=2)])
    until(lambda: system.db.steps([order_id])[0], "the saga begins")
    diagnosis: Any = json.loads(saga(system, "doctor", "--json", code=1))
    assert {"service payment", "queue payment.commands"} <= {
        finding["about"] for finding in diagnosis["findings"]
    }

    with subprocess.Popen(
        [COMMAND, "show", str(order_id), "--follow"],
        env={**os.environ, **system.endpoints.environment},
        stdout=subprocess.PIPE,
        text=True,
    ) as following:
        until(
            lambda: system.db.steps([order_id])[0]["charge_payment"] == "undoing",
            "the saga turns",
        )
        system.processes.start("payment")
        story, _ = following.communicate(timeout=WITHIN_SECONDS)
    assert following.returncode == 0
    said = [
        "no answer from payment in time (attempt 1): charge payment may or may not",
        "asks payment again (attempt 2) to charge payment",
        "compensates, charge payment timed out",
        "asks payment to undo charge payment: refund payment",
        "inventory: stock released",
        "order: order rejected",
        "COMPENSATED: all that was done is undone (charge payment timed out)",
    ]
    assert [line for line in said if line not in story] == [], story
    assert json.loads(saga(system, "doctor", "--json"))["ok"] is True
    system.verdict()
