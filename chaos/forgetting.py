"""The scenario of what ended long ago: it is archived and forgotten, and then comes again.

Owns: having everything of old sagas repeated in the middle of new ones. Must not know: how they are
forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from uuid import UUID

from chaos.mailbox import command
from chaos.scene import Scenario, Scene, in_words
from chaos.system import CONFIRMED, ExperimentError, System, rejected, until
from chaos.workload import Ask
from common.contracts import (
    ChargePayment,
    Line,
    RefundPayment,
    ReleaseStock,
    ReserveStock,
    StartSaga,
)
from common.envelope import Envelope
from common.topology import ORCHESTRATOR_COMMANDS, commands_of, dead_letter_queue

EVIDENCE_GONE = "evidence_gone"
ENDS = (CONFIRMED, rejected("card_declined"), rejected("out_of_stock"))


def _old_comes_again(scene: Scene) -> None:
    system, mixed = scene.system, [ask for ask, _ in scene.mixed()]
    asks, later = mixed[::2], mixed[1::2]
    old = system.place(asks)
    ends = system.ends(old)
    until_forgotten(system, old)
    to_inventory, to_payment = list(_to_inventory(scene, old, asks)), list(_to_payment(scene, old))
    set_aside = system.dead_letters()

    with system.placing(later) as placed:
        until(lambda: len(system.alive()) >= 1, "new sagas are under way")
        scene.under_way = len(system.alive())
        system.mail.send(commands_of("inventory"), to_inventory)
        system.mail.send(commands_of("payment"), to_payment)
        system.mail.send(ORCHESTRATOR_COMMANDS, _starts(old, asks))
        if system.place(asks) != old:
            raise ExperimentError("the same keys were answered with other orders")
    for participant, sent in (("inventory", to_inventory), ("payment", to_payment)):
        queue = (dead_letter_queue(commands_of(participant)), EVIDENCE_GONE)
        scene.explained.add(queue)
        until(
            lambda queue=queue, sent=sent: (  # type: ignore[misc]
                system.dead_letters()[queue] - set_aside[queue] == len(sent)
            ),
            f"every old command to {participant} is set aside",
        )
    if system.ends(old) != ends:
        raise ExperimentError("an old order has another end than it had")
    new = placed.result()
    scene.expect([*old, *new], *ENDS)
    system.ends(new)
    until_forgotten(system, new)


def until_forgotten(system: System, orders: Sequence[UUID]) -> None:
    def forgotten() -> bool:
        rows = system.rows(
            """
            select (select count(*) from orchestrator.saga_archive where saga_id = any(%(ids)s)),
                   (select count(*) from order_svc.inbox where saga_id = any(%(ids)s))
                   + (select count(*) from inventory_svc.inbox where saga_id = any(%(ids)s))
                   + (select count(*) from payment_svc.inbox where saga_id = any(%(ids)s))""",
            ids=list(orders),
        )
        return rows == [(len(orders), 0)]

    until(forgotten, f"{len(orders)} sagas are archived, and no inbox remembers them")


def _issued(scene: Scene, orders: Sequence[UUID]) -> dict[UUID, datetime]:
    """When each saga first asked for its stock: as old as any of its commands."""
    rows = scene.system.rows(
        "select saga_id, (instance->'steps'->'reserve_stock'->>'issued')::float8"
        " from orchestrator.saga_archive where saga_id = any(%(ids)s)",
        ids=list(orders),
    )
    return {saga_id: datetime.fromtimestamp(issued, UTC) for saga_id, issued in rows}


def _to_inventory(scene: Scene, orders: Sequence[UUID], asks: Sequence[Ask]) -> Iterator[Envelope]:
    issued = _issued(scene, orders)
    for order, ask in zip(orders, asks, strict=True):
        lines = tuple(Line(**line) for line in ask.body["lines"])
        for body in (ReserveStock(lines=lines), ReleaseStock()):
            yield _aged(command(order, "reserve_stock", body), issued[order])


def _to_payment(scene: Scene, orders: Sequence[UUID]) -> Iterator[Envelope]:
    issued = _issued(scene, orders)
    charge = ChargePayment(customer=f"{scene.name}.ann", total=1, currency="EUR")
    for order in orders:
        for body in (charge, RefundPayment()):
            yield _aged(command(order, "charge_payment", body), issued[order])


def _starts(orders: Sequence[UUID], asks: Sequence[Ask]) -> list[Envelope]:
    return [
        command(
            order,
            "start",
            StartSaga(definition="order", data={**ask.body, "order_id": str(order), "total": 1}),
        )
        for order, ask in zip(orders, asks, strict=True)
    ]


def _aged(envelope: Envelope, issued_at: datetime) -> Envelope:
    return envelope.model_copy(update={"first_issued_at": issued_at})


FORGETTING = (
    Scenario(
        "old-comes-again",
        "What ended is archived and forgotten within seconds; then all of it comes again, in the"
        " middle of new orders.",
        "every old command is repeated once its evidence is gone",
        in_words(ENDS),
        _old_comes_again,
        "forgetful",
        orders=120,
    ),
)
