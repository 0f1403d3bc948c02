"""`python -m tests.previous_release MODULE [ARGUMENT...]`: a process of the release before, until
its stack says that it is to be of this one; then what `python -m MODULE ARGUMENT...` would run.

The release before knows one version of the order saga, ships no migration of LATEST, and has a
defect that this one mends: goods that are BRITTLE it cannot put back. Its stack says so in the
database's own setting RELEASED, a list of processes: a process looks once, when it starts. Where a
service's latest migration is not of LATEST, its code needs it: its elder is itself.
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


def grow_younger() -> None:
    """For as long as this process lives."""
    whole = db.shipped_migrations

    def shipped(*directories: Path) -> dict[str, str]:
        return {name: sql for name, sql in whole(*directories).items() if name not in LATEST}

    for module in (db, process):
        mock.patch.object(module, "shipped_migrations", shipped).start()
    os.environ["SAGAPROOF_DEFINITIONS"] = DEFINITIONS
    mock.patch.object(Stock, "release", _release_what_is_not_brittle(Stock.release)).start()


def _release_what_is_not_brittle(
    release: Callable[[Stock, UUID], StockReleased],
) -> Callable[[Stock, UUID], StockReleased]:
    def stumble(stock: Stock, saga_id: UUID) -> StockReleased:
        held = stock.reservations.get(saga_id)
        if (
            held
            and held.status is ReservationStatus.HELD
            and any(s.endswith(BRITTLE) for s in held.lines)
        ):
            raise KeyError(BRITTLE)
        return release(stock, saga_id)

    return stumble


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m tests.previous_release MODULE [ARGUMENT...]")
    sys.argv = sys.argv[1:]
    if not is_released():
        grow_younger()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
