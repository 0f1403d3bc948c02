"""Two of the guards, taken out of the running system: somebody notices. All: `make guards`, which
also plays each load with every guard in place."""

from __future__ import annotations

import os

import pytest

from chaos.guards.table import GUARDS, Bench, Guard
from chaos.runtime.native.install import missing

HERE = ("fence", "stock-constraint")  # no others come to rest as soon


@pytest.mark.skipif(bool(missing()), reason="an entry module of its own: native servers only")
@pytest.mark.parametrize("guard", [g for g in GUARDS if g.name in HERE], ids=lambda g: g.name)
def test_without_this_guard_somebody_notices(guard: Guard) -> None:
    played = Bench(print, seed=7, name=f"guards-{os.getpid()}").without(guard)
    assert guard.is_missed_by(played), played
