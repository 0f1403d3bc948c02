"""The guards that can be taken out of the running system: the table and the code agree."""

from __future__ import annotations

import subprocess
import sys

import pytest

from chaos.guards.proof import Played, Proof, Witness
from chaos.guards.table import GUARDS, Guard
from chaos.guards.trials import TRIALS
from chaos.judge.verdict import Verdict
from common.storage import outbox
from inventory_svc import store as inventory_store
from tests.mutants.table import CHANGED, MUTANTS

NOTHING = Played((), None, 1.0)
FENCE = next(guard for guard in GUARDS if guard.name == "fence")
CHARGED = Played((Witness("the judge: rejected costs nothing", "order 1"),), None, 1.0)
STUCK = Played((Witness("not at rest after 20 s", "saga 1"),), None, 1.0)


def test_the_table_and_the_mutants_know_the_same_guards() -> None:
    assert {name for guard in GUARDS for name in guard.out} == set(MUTANTS)
    assert {guard.under for guard in GUARDS} == set(TRIALS)
    assert len({guard.name for guard in GUARDS}) == len(GUARDS)


def test_a_process_is_run_as_ever_but_by_the_mutants() -> None:
    door = next(guard for guard in GUARDS if "door" in guard.of).entry()["door"]
    assert FENCE.entry() == {"payment": "tests.mutants fence payment_svc"}
    assert door == "tests.mutants stored-reply order_svc door"


@pytest.mark.parametrize("name", MUTANTS)
def test_a_guard_is_where_it_is_taken_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has moved raises."""
    touched = [(guard.owner, guard.function) for guard in CHANGED]
    for owner, attribute in (*touched, (outbox, "append"), (inventory_store, "_STOCK")):
        monkeypatch.setattr(owner, attribute, getattr(owner, attribute))  # put back afterwards
    MUTANTS[name]()


def test_a_process_without_an_unknown_guard_does_not_start() -> None:
    words = [sys.executable, "-m", "tests.mutants", "manners", "payment_svc"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode != 0
    assert "no guard 'manners'" in done.stderr


@pytest.mark.parametrize(
    ("guard", "without", "control", "verdict"),
    [
        (FENCE, CHARGED, NOTHING, Verdict.PASS),
        (FENCE, NOTHING, NOTHING, Verdict.FAIL),  # no one noticed
        (FENCE, STUCK, NOTHING, Verdict.FAIL),  # not by whom it must be
        (FENCE, CHARGED, STUCK, Verdict.FAIL),  # the load harms with the guard, too
        (FENCE, CHARGED, Played((), "it never came to that", 1.0), Verdict.FAIL),
    ],
)
def test_a_proof_needs_its_witness_and_a_clean_control(
    guard: Guard, without: Played, control: Played, verdict: Verdict
) -> None:
    assert Proof(guard, without, control).verdict is verdict
