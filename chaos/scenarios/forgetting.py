"""The scenario of what ended long ago: it is archived and forgotten, and then comes again.

Owns: having everything of old sagas repeated in the middle of new ones. Must not know: how they are
forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, LiteralString, NamedTuple
from uuid import UUID, uuid4

from chaos.load.workload import Ask
from chaos.runtime import Style
from chaos.scenarios.scene import Scenario, Scene, in_words
from chaos.stack.broker import command
from chaos.stack.database import CONFIRMED, rejected
from chaos.stack.system import System
from chaos.waiting import ExperimentError, until
from common.messages.contracts import (
    ChargePayment,
    OrderAccepted,
    RefundPayment,
    ReleaseStock,
    ReserveStock,
    StartSaga,
    StockDispatched,
    StockReserved,
)
from common.messages.envelope import Direction, Envelope, Fenced, Key, Reply
from common.messages.topology import (
    ORCHESTRATOR_COMMANDS,
    commands_of,
    dead_letter_queue,
    events_of,
)

EVIDENCE_GONE = "evidence_gone"
ENDS = (CONFIRMED, rejected("card_declined"), rejected("out_of_stock"))

# By style: which of these sagas are archived, and when all that was said of each was first issued.
_ARCHIVED: dict[Style, LiteralString] = {
    "orchestrated": """
      select saga_id, to_timestamp((instance->'steps'->'reserve_stock'->>'issued')::float8)
      from orchestrator.saga_archive where saga_id = any(%s)""",
    "choreographed": """
      select saga_id, (progress->>'started_at')::timestamptz
      from order_svc.progress_archive where saga_id = any(%s)""",
}


class Old(NamedTuple):
    """An order of which nothing is known any more but that it was."""

    order_id: UUID
    issued: datetime
    accepted: OrderAccepted


def _old_comes_again(scene: Scene) -> None:
    system, mixed = scene.system, [ask for ask, _ in scene.mixed()]
    asks, later = mixed[::2], mixed[1::2]
    orders = system.door.place(asks)
    ends = system.db.ends(orders)
    until_forgotten(system, orders)
    olds = _olds(scene, orders, asks)
    sent = {**_commands(olds), **(_events(olds) if system.style == "choreographed" else {})}
    set_aside = system.dead_letters()

    with system.door.placing(later) as placed:
        until(lambda: len(system.db.alive()) >= 1, "new sagas are under way")
        scene.under_way = len(system.db.alive())
        for queue, envelopes in sent.items():
            system.broker.send(queue, envelopes)
        if system.style == "orchestrated":
            system.broker.send(ORCHESTRATOR_COMMANDS, map(_start, olds))
        else:
            of_nobody = _event(uuid4(), datetime.now(UTC), {}, "dispatch_stock", StockDispatched())
            system.broker.send(events_of("order"), [of_nobody])
        if system.door.place(asks) != orders:
            raise ExperimentError("the same keys were answered with other orders")
    expected = {(dead_letter_queue(q), EVIDENCE_GONE): len(them) for q, them in sent.items()}
    if system.style == "choreographed":
        expected[dead_letter_queue(events_of("order")), "unknown_saga"] = 1
    scene.explained |= expected.keys()
    until(
        lambda: (
            {kind: system.dead_letters()[kind] - set_aside[kind] for kind in expected} == expected
        ),
        "everything old is set aside, and told apart from what is of nobody",
    )
    if system.db.ends(orders) != ends:
        raise ExperimentError("an old order has another end than it had")
    new = placed.result()
    scene.expect([*orders, *new], *ENDS)
    system.db.ends(new)
    until_forgotten(system, new)


def until_forgotten(system: System, orders: Sequence[UUID]) -> None:
    def forgotten() -> bool:
        archived = system.db.rows(_ARCHIVED[system.style], list(orders))
        [(remembered,)] = system.db.rows(
            """
            select (select count(*) from order_svc.inbox where saga_id = any(%(ids)s))
                   + (select count(*) from inventory_svc.inbox where saga_id = any(%(ids)s))
                   + (select count(*) from payment_svc.inbox where saga_id = any(%(ids)s))""",
            ids=list(orders),
        )
        return (len(archived), remembered) == (len(orders), 0)

    until(forgotten, f"{len(orders)} sagas are archived, and no inbox remembers them")


def _olds(scene: Scene, orders: Sequence[UUID], asks: Sequence[Ask]) -> list[Old]:
    issued = dict(scene.system.db.rows(_ARCHIVED[scene.system.style], list(orders)))
    return [
        Old(order, issued[order], OrderAccepted(order_id=order, total=1, **ask.body))
        for order, ask in zip(orders, asks, strict=True)
    ]


def _commands(olds: Sequence[Old]) -> dict[str, list[Envelope]]:
    """Whatever a participant may have been told, whoever told it; as old as it was."""
    told: dict[str, list[Envelope]] = {commands_of(name): [] for name in ("inventory", "payment")}
    for order, issued, accepted in olds:
        charge = ChargePayment(customer=accepted.customer, total=1, currency=accepted.currency)
        told[commands_of("inventory")] += [
            _aged(command(order, "reserve_stock", ReserveStock(lines=accepted.lines)), issued),
            _aged(command(order, "reserve_stock", ReleaseStock()), issued),
        ]
        told[commands_of("payment")] += [
            _aged(command(order, "charge_payment", charge), issued),
            _aged(command(order, "charge_payment", RefundPayment()), issued),
        ]
    return told


def _events(olds: Sequence[Old]) -> dict[str, list[Envelope]]:
    """What each service reacts to, in both directions."""
    said: dict[str, list[Envelope]] = {name: [] for name in ("inventory", "payment", "order")}
    for order, issued, told in olds:
        event = partial(_event, order, issued, {**told.model_dump(mode="json"), "reason": "old"})
        fenced = event("dispatch_stock", Fenced(), Direction.COMPENSATING)
        said["inventory"] += [event("create_order", told), fenced]
        said["payment"] += [event("reserve_stock", StockReserved()), fenced]
        said["order"] += [event("dispatch_stock", StockDispatched())]
    return {events_of(name): events for name, events in said.items()}


def _event(
    order: UUID,
    issued: datetime,
    about: dict[str, Any],
    step: str,
    body: Reply,
    direction: Direction = Direction.FORWARD,
) -> Envelope:
    return Envelope.event(Key(order, step, direction), body, issued_at=issued, about=about)


def _start(old: Old) -> Envelope:
    start = StartSaga(definition="order", data=old.accepted.model_dump(mode="json"))
    return command(old.order_id, "start", start)


def _aged(envelope: Envelope, issued_at: datetime) -> Envelope:
    return envelope.model_copy(update={"first_issued_at": issued_at})


FORGETTING = (
    Scenario(
        "old-comes-again",
        "What ended is archived and forgotten within seconds; then all of it comes again, in the"
        " middle of new orders.",
        "every old command and event is repeated once its evidence is gone",
        in_words(ENDS),
        _old_comes_again,
        "forgetful",
        orders=120,
    ),
)
