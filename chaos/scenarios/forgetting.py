"""The scenario of sagas that ended, are archived and forgotten, and then come again.

Owns: having everything of old sagas repeated in the middle of new ones. Must not know: how they are
forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from chaos.load.workload import Ask
from chaos.scenarios.scene import NATURAL, Scene, scenario
from chaos.scenarios.situations import ARCHIVED, until_forgotten
from chaos.stack.broker import command
from chaos.waiting import ExperimentError, until
from common.messages.contracts import StartSaga
from common.messages.envelope import Direction, Envelope, Fenced, Key, Reply
from common.messages.shop.inventory import (
    ReleaseStock,
    ReserveStock,
    StockDispatched,
    StockReserved,
)
from common.messages.shop.order import OrderAccepted
from common.messages.shop.payment import ChargePayment, RefundPayment
from common.messages.topology import (
    ORCHESTRATOR_COMMANDS,
    commands_of,
    dead_letter_queue,
    events_of,
)

EVIDENCE_GONE = "evidence_gone"


class Old(NamedTuple):
    """An archived order, of which no participant keeps a row."""

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
    dead = system.dead_letters()

    with system.door.placing(later) as placed:
        until(lambda: len(system.db.alive()) >= 1, "new sagas are under way")
        scene.under_way = len(system.db.alive())
        for queue, envelopes in sent.items():
            system.broker.send(queue, envelopes)
        if system.style == "orchestrated":
            system.broker.send(ORCHESTRATOR_COMMANDS, map(_start, olds))
        else:
            unknown = _event(uuid4(), datetime.now(UTC), {}, "dispatch_stock", StockDispatched())
            system.broker.send(events_of("order"), [unknown])
        if system.door.place(asks) != orders:
            raise ExperimentError("the same keys were answered with other orders")
    expected = {(dead_letter_queue(q), EVIDENCE_GONE): len(them) for q, them in sent.items()}
    if system.style == "choreographed":
        expected[dead_letter_queue(events_of("order")), "unknown_saga"] = 1
    scene.explained |= expected.keys()
    until(
        lambda: {kind: system.dead_letters()[kind] - dead[kind] for kind in expected} == expected,
        "everything old is dead-lettered, and told apart from an unknown saga's",
    )
    if system.db.ends(orders) != ends:
        raise ExperimentError("an old order has another end than it had")
    new = placed.result()
    scene.expect([*orders, *new], *NATURAL)
    system.db.ends(new)
    until_forgotten(system, new)


def _olds(scene: Scene, orders: Sequence[UUID], asks: Sequence[Ask]) -> list[Old]:
    issued = dict(scene.system.db.rows(ARCHIVED[scene.system.style], list(orders)))
    return [
        Old(order, issued[order], OrderAccepted(order_id=order, total=1, **ask.body))
        for order, ask in zip(orders, asks, strict=True)
    ]


def _commands(olds: Sequence[Old]) -> dict[str, list[Envelope]]:
    """Return every command a participant may have been sent, as old as it was."""
    sent: dict[str, list[Envelope]] = {commands_of(name): [] for name in ("inventory", "payment")}
    for order, issued, accepted in olds:
        charge = ChargePayment(customer=accepted.customer, total=1, currency=accepted.currency)
        sent[commands_of("inventory")] += [
            _aged(command(order, "reserve_stock", ReserveStock(lines=accepted.lines)), issued),
            _aged(command(order, "reserve_stock", ReleaseStock()), issued),
        ]
        sent[commands_of("payment")] += [
            _aged(command(order, "charge_payment", charge), issued),
            _aged(command(order, "charge_payment", RefundPayment()), issued),
        ]
    return sent


def _events(olds: Sequence[Old]) -> dict[str, list[Envelope]]:
    """Return every event a service reacts to, in both directions."""
    sent: dict[str, list[Envelope]] = {name: [] for name in ("inventory", "payment", "order")}
    for order, issued, accepted in olds:
        event = partial(
            _event, order, issued, {**accepted.model_dump(mode="json"), "reason": "old"}
        )
        fenced = event("dispatch_stock", Fenced(), Direction.COMPENSATING)
        sent["inventory"] += [event("create_order", accepted), fenced]
        sent["payment"] += [event("reserve_stock", StockReserved()), fenced]
        sent["order"] += [event("dispatch_stock", StockDispatched())]
    return {events_of(name): events for name, events in sent.items()}


def _event(
    order: UUID,
    issued: datetime,
    about: dict[str, Any],
    step: str,
    body: Reply,
    direction: Direction = Direction.FORWARD,
) -> Envelope:
    return Envelope.of_reply(Key(order, step, direction), body, issued_at=issued, about=about)


def _start(old: Old) -> Envelope:
    start = StartSaga(definition="order", data=old.accepted.model_dump(mode="json"))
    return command(old.order_id, "start", start)


def _aged(envelope: Envelope, issued_at: datetime) -> Envelope:
    return envelope.model_copy(update={"first_issued_at": issued_at})


FORGETTING = (
    scenario(
        "old-comes-again",
        "What ended is archived and forgotten within seconds; then all of it comes again, in the"
        " middle of new orders.",
        _old_comes_again, *NATURAL,
        fault="every old command and event is repeated once its evidence is gone",
        profile="forgetful", orders=120,
    ),
)  # fmt: skip
