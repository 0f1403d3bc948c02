"""SIGKILL at fifty seeded moments of one order flow. To repeat one: pytest -k seed17."""

from __future__ import annotations

import random
import time
from statistics import median

import pytest

from chaos.load.shop import PLENTY, shop
from chaos.load.workload import Ask
from chaos.stack.system import System
from tests.support.stages import IN_THE_FLOW, Stage, on

pytestmark = on("impatient")

SEEDS = 50


def orders(system: System, name: str) -> list[Ask]:
    """Stock a shop and return a few orders, two of which will be compensated."""
    here = shop(
        name,
        stock={"tea": 50, "rare": 1},
        accounts={"ann": PLENTY, "eve": PLENTY},
        declined=["eve"],
    )
    system.stock_up(here)
    return [
        *(here.order("ann", tea=1) for _ in range(6)),
        here.order("ann", tea=1, rare=2),
        here.order("eve", tea=1),
    ]


@pytest.fixture(scope="module")
def flow_seconds(stage: Stage) -> float:
    """Measure how long the flow takes without a kill."""
    system, seconds = stage.system(), []
    for n in range(3):
        asks = orders(system, f"calm-{n}")
        began = time.monotonic()
        system.db.ends(system.door.place(asks))
        seconds.append(time.monotonic() - began)
    return median(seconds)


@pytest.mark.parametrize("seed", range(SEEDS), ids=lambda seed: f"seed{seed}")
def test_a_kill_at_any_moment_of_the_flow_changes_no_outcome(
    system: System, flow_seconds: float, seed: int
) -> None:
    dice = random.Random(seed)
    victim = dice.choice(IN_THE_FLOW)
    moment = dice.uniform(0, flow_seconds)
    print(f"seed {seed}: SIGKILL to {victim} after {moment:.3f} of {flow_seconds:.3f} s")
    asks = orders(system, f"seed-{seed}")

    with system.door.placing(asks) as placed:
        time.sleep(moment)  # no waiting for anything: this is the experiment
        system.processes.kill(victim)
        system.processes.start(victim)
    system.db.ends(placed.result())
    system.interim_verdict()


def test_after_all_kills_everything_comes_to_rest(system: System) -> None:
    system.verdict()
