"""Each finding of the doctor, and its remedy."""

from __future__ import annotations

from dataclasses import replace

import pytest

from common.messages.contracts import Check, ProcessView
from orchestrator.operator.doctor import Finding, QueueSeen, SystemStatus, diagnose, expected
from orchestrator.operator.queries import SagaStatus
from orchestrator.runtime.census import COUNTED
from orchestrator.sagas.order import ORDER_SAGA

EXPECTED = expected([ORDER_SAGA])
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
    for service in EXPECTED.services
]
WELL = [QueueSeen(queue.name, True, consumers=1) for queue in EXPECTED.queues]
HEALTHY = SystemStatus(EXPECTED, PROCESSES, WELL, SagaStatus(alive=3, stuck=0, overdue=0))

NEVER_ARCHIVED = {"order v1": 3, "trip v1": COUNTED}


def with_process(**changes: object) -> SystemStatus:
    """Change the payment process."""
    changed = [
        view.model_copy(update=changes) if view.process == "payment" else view for view in PROCESSES
    ]
    return replace(HEALTHY, processes=changed)


def with_queue(name: str, **changes: object) -> SystemStatus:
    assert name in [queue.name for queue in WELL]
    queues = [replace(q, **changes) if q.name == name else q for q in WELL]  # type: ignore[arg-type]
    return replace(HEALTHY, queues=queues)


def the_finding(status: SystemStatus) -> Finding:
    (finding,) = diagnose(status)
    assert finding.remedy
    return finding


def test_a_healthy_system_has_no_findings() -> None:
    assert diagnose(HEALTHY) == []


@pytest.mark.parametrize(
    ("status", "severity", "about", "what", "remedy"),
    [
        (
            replace(HEALTHY, processes=[p for p in PROCESSES if p.service != "payment"]),
            "error", "service payment", "no process of it answers", "python -m payment_svc",
        ),
        (
            with_process(ready=False, checks=(Check(name="relay", problem="broker gone"),)),
            "error", "process payment", "relay: broker gone", "retries by itself",
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
            "error", "queue inventory.queries", "no consumer; 4 messages wait",
            "python -m inventory_svc",
        ),
        (
            with_queue("payment.commands.dead", consumers=0, ready=2),
            "error", "queue payment.commands.dead", "no consumer; 2 messages wait",
            "python -m orchestrator",
        ),
        (
            replace(HEALTHY, sagas=SagaStatus(alive=3, stuck=0, overdue=0, dead_letters=7)),
            "warning", "dead letters", "7 are open", "saga dead-letters list",
        ),
        (
            replace(HEALTHY, sagas=SagaStatus(alive=3, stuck=1, overdue=0)),
            "warning", "sagas", "1 are stuck", "saga stuck",
        ),
        (
            replace(HEALTHY, sagas=SagaStatus(alive=3, stuck=0, overdue=2)),
            "error", "sagas", "deadlines of 2", "orchestrator is ready",
        ),
        (
            replace(HEALTHY, sagas=SagaStatus(3, 0, 0, undeployed=["order v9"])),
            "error", "sagas", "not deployed: order v9", "deploy a release that has it",
        ),
        (
            replace(HEALTHY, sagas=SagaStatus(3, 0, 0, never_archived=NEVER_ARCHIVED)),
            "warning", "sagas", "never archived: 3 of order v1, at least 10000 of trip v1",
            "has these versions",
        ),
        (
            replace(HEALTHY, sagas=SagaStatus(alive=3, stuck=0, overdue=0, unjudgeable=2)),
            "error", "sagas", "2 cannot be decided", "saga stuck",
        ),
    ],
)  # fmt: skip
def test_each_finding(
    status: SystemStatus, severity: str, about: str, what: str, remedy: str
) -> None:
    finding = the_finding(status)
    assert (finding.severity, finding.about) == (severity, about)
    assert what in finding.what
    assert remedy in finding.remedy


def test_what_cannot_be_read_is_the_only_finding() -> None:
    gone = Finding("error", "broker", "out of reach", "see that RabbitMQ runs")
    assert diagnose(SystemStatus(EXPECTED, None, None, None, [gone])) == [gone]


def test_errors_come_first() -> None:
    status = replace(HEALTHY, sagas=SagaStatus(3, 0, 0, dead_letters=1), processes=PROCESSES[1:])
    assert [finding.severity for finding in diagnose(status)] == ["error", "warning"]
