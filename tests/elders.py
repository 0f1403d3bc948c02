"""`python -m tests.elders MODULE [ARGUMENT...]`: a process of the release before, until its stack
says that it is to be of this one; then what `python -m MODULE ARGUMENT...` would run.

The release before knows one version of the order saga, and ships no migration of LATEST. Its stack
says so in the database's own setting RELEASED, a list of processes: a process looks once, when it
starts. Where a service's latest migration is not of LATEST, its code needs it: its elder is itself.
"""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from unittest import mock

import psycopg

from common import db, process

RELEASED = "sagaproof.released"
LATEST = ("orchestrator/0012_discarded", "inventory_svc/0005_returns")
DEFINITIONS = "orchestrator.order_saga:ORDER_SAGA_V1,orchestrator.return_saga:RETURN_SAGA"


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


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: python -m tests.elders MODULE [ARGUMENT...]")
    sys.argv = sys.argv[1:]
    if not is_released():
        grow_younger()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
