"""Run a module as the previous release, unless its stack has released the current one.

Usage: `python -m tests.previous_release MODULE [ARGUMENT...]`. The previous release has one version
of the order saga, lacks the migrations in LATEST, and has a defect that the current one mends: it
cannot put BRITTLE goods back. The database setting RELEASED lists the processes that run the
current release; each reads it once, at its start.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock
from uuid import UUID

import psycopg

from common.messages.shop.inventory import StockReleased
from common.process import process
from common.storage import db
from inventory_svc.domain import ReservationStatus, Stock

RELEASED = "sagaproof.released"
LATEST = ("orchestrator/0014_retention", "inventory_svc/0005_returns")
DEFINITIONS = "orchestrator.sagas.order:ORDER_SAGA_V1,orchestrator.sagas.returns:RETURN_SAGA"
BRITTLE = ".brittle"  # how such a SKU ends


def is_released() -> bool:
    with psycopg.connect(os.environ["SAGAPROOF_POSTGRES_DSN"]) as connection:
        row = connection.execute("select current_setting(%s, true)", (RELEASED,)).fetchone()
    return os.environ["SAGAPROOF_PROCESS"] in ((row and row[0]) or "").split(",")


def become_previous_release() -> None:
    """Patch this process until it ends."""
    whole = db.shipped_migrations

    def shipped(*directories: Path) -> dict[str, str]:
        return {name: sql for name, sql in whole(*directories).items() if name not in LATEST}

    for module in (db, process):
        mock.patch.object(module, "shipped_migrations", shipped).start()
    os.environ["SAGAPROOF_DEFINITIONS"] = DEFINITIONS
    mock.patch.object(Stock, "release", _release_unless_brittle(Stock.release)).start()


def _release_unless_brittle(
    release: Callable[[Stock, UUID], StockReleased],
) -> Callable[[Stock, UUID], StockReleased]:
    def fail_on_brittle(stock: Stock, saga_id: UUID) -> StockReleased:
        held = stock.reservations.get(saga_id)
        if (
            held
            and held.status is ReservationStatus.HELD
            and any(s.endswith(BRITTLE) for s in held.lines)
        ):
            raise KeyError(BRITTLE)
        return release(stock, saga_id)

    return fail_on_brittle


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m tests.previous_release MODULE [ARGUMENT...]")
    sys.argv = sys.argv[1:]
    if not is_released():
        become_previous_release()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
