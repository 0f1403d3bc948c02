"""Two of the guards, taken out of the running system: the judge or a constraint notices.

All: `make guards`, which also plays each trial with every guard in place.
"""

from __future__ import annotations

import os

import pytest

from chaos.guards.proof import Played, Proof, Prover
from chaos.guards.table import GUARDS, Guard
from chaos.runtime.native.install import missing

HERE = ("fence", "stock-constraint")  # no others come to rest as soon


@pytest.mark.skipif(bool(missing()), reason="an entry module of its own: native servers only")
@pytest.mark.parametrize("guard", [g for g in GUARDS if g.name in HERE], ids=lambda g: g.name)
def test_the_removal_of_a_guard_is_noticed(guard: Guard) -> None:
    played = Prover(print, seed=7, name=f"guards-{os.getpid()}").without(guard)
    assert Proof(guard, played, Played((), None, 0.0)).noticed, played
