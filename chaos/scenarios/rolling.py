"""The scenario of a new release: every process is replaced while orders flow, one after another.

Owns: the order of replacements, and how sagas that began before must end. Must not know: how a
process of the previous release is made (tests/previous_release.py does it).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from uuid import UUID

import psycopg
from psycopg import sql

from chaos.faults.nemesis import Nemesis
from chaos.scenarios.scene import NATURAL, ORCHESTRATED, PREVIOUS, Scene, scenario
from chaos.stack.system import System
from chaos.waiting import ExperimentError, until

PARTICIPANTS = ("inventory", "payment", "order", "door")  # before those who send them commands
LATEST = {"orchestrator/0014_retention", "inventory_svc/0005_returns"}


def release(system: System, *, add: str | None = None) -> None:
    """Make a process start as the new release next time; without `add`, make none."""
    with psycopg.connect(system.endpoints.superuser_dsn, autocommit=True) as server:
        database, released = server.execute(
            "select current_database(), coalesce(current_setting('sagaproof.released', true), '')"
        ).fetchone() or ("", "")
        server.execute(
            sql.SQL("alter database {} set sagaproof.released = {}").format(
                sql.Identifier(database), sql.Literal(f"{released},{add}" if add else "")
            )
        )


class Replace(Nemesis):
    """Replacement by the new release, which migrates its schema; the others go on beside it."""

    says = "{target} is told to stop, and started as the new release"

    def inject(self, system: System) -> None:
        system.runtime.stop(self.target)
        release(system, add=self.target)

    def heal(self, system: System) -> None:
        system.processes.revive(self.target)


def _replaced(scene: Scene) -> None:
    """Place orders while each process is replaced.

    Some sagas begin under the old version, and wait for payment until every orchestrator of that
    time is gone.
    """
    system = scene.system
    if _unmigrated(system) != LATEST:
        raise ExperimentError("this stack is of the new release already: bring up another")
    participants = list(chain.from_iterable(map(system.processes.replicas, PARTICIPANTS)))
    orchestrators = system.processes.replicas("orchestrator")
    mixed, parts = scene.mixed(), len(participants) + len(orchestrators) + 2
    slices = [mixed[n::parts] for n in range(parts)]
    placed: list[UUID] = []

    def flow(*faults: Nemesis) -> None:
        part = slices.pop()
        with system.door.placing([ask for ask, _ in part]) as orders, scene.struck(*faults):
            pass
        for order, (_, end) in zip(orders.result(), part, strict=True):
            scene.expect([order], end)
            placed.append(order)

    for process in participants:
        flow(Replace(process))
    with scene.payment_waits():
        flow()
        until(lambda: _began_as(system, 1), "sagas of the old version are under way")
        before = _began_as(system, 1)
        scene.under_way = len(before)
        for process in orchestrators:
            flow(Replace(process))
    flow()
    system.db.ends(placed)
    _check(system, before)


def _unmigrated(system: System) -> set[str]:
    """Return the latest migrations that are not applied yet."""
    rows = system.db.rows(
        "select name from orchestrator.schema_migration"
        " union all select name from inventory_svc.schema_migration"
    )
    return LATEST - {name for (name,) in rows}


def _began_as(system: System, version: int) -> list[UUID]:
    """Return the sagas of a version that are under way, past their reservation."""
    rows = system.db.rows(
        "select saga_id from orchestrator.saga_instance where definition = 'order'"
        " and version = %s and ended_at is null and steps ? 'charge_payment'",
        version,
    )
    return [saga_id for (saga_id,) in rows]


def _check(system: System, before: Sequence[UUID]) -> None:
    if missing := _unmigrated(system):
        raise ExperimentError(f"not every schema was migrated: {missing}")
    rows = system.db.rows(
        "select saga_id, version, steps ? 'approve_order' from orchestrator.saga_instance"
        " where definition = 'order'"
    )
    became = {saga_id: version for saga_id, version, _ in rows}
    gated = [saga_id for saga_id, version, gated in rows if version == 1 and gated]
    if gated or any(became[saga_id] != 1 for saga_id in before):
        raise ExperimentError("a saga did not end under the version it began with")
    if set(became.values()) != {1, 2}:
        raise ExperimentError(f"only versions {set(became.values())} began")


ROLLING = (
    scenario(
        "new-release",
        "Every process is replaced while orders flow, participants before orchestrators: the new"
        " ones migrate their schemas, the old ones go on beside them with one version of the"
        " order saga. What began under it ends under it.",
        _replaced, *NATURAL,
        faults=[Replace("every participant"), Replace("every orchestrator")],
        profile=PREVIOUS, styles=ORCHESTRATED,
    ),
)  # fmt: skip
