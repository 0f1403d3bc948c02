"""The crash matrix, as much of it as meets every failpoint and every leg. All: `make matrix`."""

from __future__ import annotations

import os
import random
from contextlib import closing

import pytest

from chaos.commands.matrix_command import FAILURES
from chaos.matrix.cells import CHARGE, Cell, covering, possible
from chaos.matrix.matrix import Matrix, sample
from chaos.runtime import choose
from chaos.runtime.native.install import missing
from common.kit.failpoints import Point

SEED = 7
FROZEN = (Cell("payment", Point.BATCH_BEFORE_COMMIT, CHARGE),)


@pytest.mark.skipif(bool(missing()), reason="a failpoint is armed by a file: native servers only")
@pytest.mark.timeout(600)
def test_death_at_every_failpoint_and_with_every_step_in_hand() -> None:
    cells = covering(possible(), random.Random(SEED))
    runtime = choose("native", f"matrix-{os.getpid()}")
    with closing(Matrix(runtime, print, FAILURES)) as matrix:
        problems = [run for run in matrix.run(cells, sample(cells, 0.3, SEED)) if run.problem]
        problems += [run for run in matrix.freeze(FROZEN) if run.problem]
    assert problems == []
