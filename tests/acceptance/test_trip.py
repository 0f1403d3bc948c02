"""The example's scenario, as `chaos run` plays it."""

from __future__ import annotations

import os
from pathlib import Path

from chaos.judge import Verdict
from chaos.runner import Runner
from examples.trip.tests.scenario import KILLS
from tests.servers import chosen_for_stacks


def test_trips_flow_beside_orders_and_both_survive_their_participants(tmp_path: Path) -> None:
    name = f"trip-{os.getpid()}"
    runner = Runner(chosen_for_stacks(), tmp_path, seed=7, orders=60, say=print, name=name)
    try:
        result = runner.play(KILLS)
    finally:
        runner.close()
    assert result.problems == []
    assert result.verdict is Verdict.PASS
    assert result.under_way
    assert result.ends["trip completed"] == 40  # there are no more cars
    assert result.ends["trip sold_out"] == 20
