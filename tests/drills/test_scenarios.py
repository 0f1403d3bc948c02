"""A representative part of the table of scenarios, played as `chaos run` plays it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.judge.verdict import Verdict
from chaos.runtime import Style
from chaos.scenarios.runner import Runner
from chaos.scenarios.table import SCENARIOS
from tests.servers import chosen, chosen_for_stacks

SEED = 7
ORDERS = 60

# By profile, so that a stack is brought up for each but once.
HERE = (
    "requeue-shuffled",
    "poisoned-charge",
    "kill-payment-repeatedly",
    "backends-killed",
    "returns-race",
    "return-meets-order",
    "payment-unreachable",
    "charge-after-its-undo",
    "silent-pivot-done",
    "silent-pivot-lost",
    "failing-refund",
    "old-comes-again",
    "cut-payment-postgres",
    "unconfirmed-orchestrator",
    "new-release",
)
CHOREOGRAPHED = (
    "card-declined",
    "duplicate-charge",
    "kill-inventory",
    "returns-race",
    "return-meets-order",
    "kill-participants-in-return",
    "old-comes-again",
)
IN_CONTAINERS = (
    "kill-orchestrator",
    "kill-payment",
    "kill-inventory",
    "off-the-network",
    "parked-through-a-full-stop",
)


def _runner(kind: str, folder: Path, style: Style = "orchestrated") -> Iterator[Runner]:
    name = f"scenarios-{os.getpid()}-{kind}-{style}"
    runner = Runner(kind, folder, seed=SEED, orders=ORDERS, say=print, name=name, style=style)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    yield from _runner(chosen_for_stacks(), tmp_path_factory.mktemp("scenarios"))


@pytest.fixture(scope="module")
def choreographed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("scenarios-choreographed")
    yield from _runner(chosen_for_stacks(), folder, "choreographed")


@pytest.fixture(scope="module")
def in_containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    yield from _runner("docker", tmp_path_factory.mktemp("scenarios-docker"))


def passes(runner: Runner, name: str) -> None:
    result = runner.play(SCENARIOS[name])
    assert result.problems == []
    assert result.verdict is Verdict.PASS
    assert result.under_way, "the fault hit nothing"


@pytest.mark.parametrize("name", HERE)
def test_scenario(here: Runner, name: str) -> None:
    passes(here, name)


@pytest.mark.parametrize("name", CHOREOGRAPHED)
def test_the_same_without_an_orchestrator(choreographed: Runner, name: str) -> None:
    result = choreographed.play(SCENARIOS[name])
    assert (result.problems, result.verdict) == ([], Verdict.PASS)


@pytest.mark.skipif(chosen() != "docker", reason="no Docker engine, or RUNTIME=native")
@pytest.mark.parametrize("name", IN_CONTAINERS)
def test_a_container_is_killed(in_containers: Runner, name: str) -> None:
    passes(in_containers, name)
