"""What the doctor makes of what was seen: each finding, and its remedy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.messages.contracts import Check, ProcessView
from orchestrator.operator.doctor import Finding, House, QueueSeen, deployed, diagnose
from orchestrator.operator.queries import Standing
from orchestrator.runtime.census import COUNTED
from orchestrator.sagas.order import ORDER_SAGA

DEPLOYED = deployed([ORDER_SAGA])
PROCESSES = [
    ProcessView(
        process=service,
        service=service,
        release="1",
        ready=True,
        checks=(Check(name="relay"),),
        shipped=("common/0001", "mine/0001"),
        applied=("common/0001", "mine/0001"),
    )
    for service in DEPLOYED.services
]
WELL = [QueueSeen(queue.name, True, consumers=1) for queue in DEPLOYED.queues]
HOUSE = House(DEPLOYED, PROCESSES, WELL, Standing(alive=3, stuck=0, overdue=0))


def with_process(**changes: object) -> House:
    """The payment process is different."""
    changed = [
        view.model_copy(update=changes) if view.process == "payment" else view for view in PROCESSES
    ]
    return replace(HOUSE, processes=changed)


def with_queue(name: str, **changes: object) -> House:
    assert name in [queue.name for queue in WELL]
    queues = [replace(q, **changes) if q.name == name else q for q in WELL]  # type: ignore[arg-type]
    return replace(HOUSE, queues=queues)


def the_finding(house: House) -> Finding:
    (finding,) = diagnose(house)
    assert finding.remedy
    return finding


def test_a_house_in_order_has_no_findings() -> None:
    assert diagnose(HOUSE) == []


@pytest.mark.parametrize(
    ("house", "severity", "about", "what", "remedy"),
    [
        (
            replace(HOUSE, processes=[p for p in PROCESSES if p.service != "payment"]),
            "error", "service payment", "no process of it answers", "python -m payment_svc",
        ),
        (
            with_process(ready=False, checks=(Check(name="relay", problem="broker gone"),)),
            "error", "process payment", "relay: broker gone", "tries again",
        ),
        (with_process(applied=None), "error", "process payment", "database", "Postgres"),
        (
            with_process(applied=("common/0001",)),
            "error", "process payment", "lacks mine/0001", "restart it",
        ),
        (
            with_process(applied=("common/0001", "mine/0001", "mine/0002")),
            "warning", "process payment", "mine/0002", "newer release",
        ),
        (with_process(release="2"), "warning", "processes", "1, 2", "finish the deploy"),
        (
            with_queue("payment.commands", exists=False),
            "error", "queue payment.commands", "missing", "python -m payment_svc",
        ),
        (
            with_queue("payment.commands.dead", exists=False),
            "error", "queue payment.commands.dead", "nowhere to go", "python -m payment_svc",
        ),
        (
            with_queue("order.commands", difference="inequivalent arg 'x-overflow'"),
            "error", "queue order.commands", "inequivalent arg 'x-overflow'",
            "`rabbitmqctl delete_queue order.commands`",
        ),
        (
            with_queue("inventory.queries", consumers=0, ready=4),
            "error", "queue inventory.queries", "nobody consumes it; 4 wait",
            "python -m inventory_svc",
        ),
        (
            with_queue("payment.commands.dead", consumers=0, ready=2),
            "error", "queue payment.commands.dead", "nobody consumes it; 2 wait",
            "python -m orchestrator",
        ),
        (
            replace(HOUSE, standing=Standing(alive=3, stuck=0, overdue=0, dead_letters=7)),
            "warning", "dead letters", "7 are open", "saga dead-letters list",
        ),
        (
            replace(HOUSE, standing=Standing(alive=3, stuck=1, overdue=0)),
            "warning", "sagas", "1 are stuck", "saga stuck",
        ),
        (
            replace(HOUSE, standing=Standing(alive=3, stuck=0, overdue=2)),
            "error", "sagas", "deadlines of 2", "orchestrator is ready",
        ),
        (
            replace(HOUSE, standing=Standing(alive=3, stuck=0, overdue=0, undeployed=["order v9"])),
            "error", "sagas", "not deployed: order v9", "deploy a release that has it",
        ),
        (
            replace(
                HOUSE, standing=Standing(3, 0, 0, kept={"order v1": 3, "trip v1": COUNTED})
            ),
            "warning", "sagas", "never archived: 3 of order v1, at least 10000 of trip v1",
            "has these versions",
        ),
        (
            replace(HOUSE, standing=Standing(alive=3, stuck=0, overdue=0, unjudgeable=2)),
            "error", "sagas", "2 cannot be judged", "saga stuck",
        ),
    ],
)  # fmt: skip
def test_each_finding(house: House, severity: str, about: str, what: str, remedy: str) -> None:
    finding = the_finding(house)
    assert (finding.severity, finding.about) == (severity, about)
    assert what in finding.what
    assert remedy in finding.remedy


def test_what_could_not_be_looked_at_is_a_finding_and_nothing_else_is_made_up() -> None:
    gone = Finding("error", "broker", "out of reach", "see that RabbitMQ runs")
    assert diagnose(House(DEPLOYED, None, None, None, [gone])) == [gone]


def test_errors_come_first() -> None:
    house = replace(HOUSE, standing=Standing(3, 0, 0, dead_letters=1), processes=PROCESSES[1:])
    assert [finding.severity for finding in diagnose(house)] == ["error", "warning"]
