"""Tests that add a real step, a fraud check, to the order saga in either style.

examples/fraud_check holds a patch for each style, and `make compare` counts their lines. Here each
is applied to a copy of the code, and an order passes or fails the new check.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = ("common", "orchestrator", "order_svc", "payment_svc", "inventory_svc", "tests/support")

CHOREOGRAPHED = """
from payment_svc import handlers
from tests.support.choreography import World

for suspicious, end in ((1000, ("CONFIRMED", None)), (1, ("REJECTED", "fraud_suspected"))):
    handlers.SUSPICIOUS = suspicious
    world = World()
    world.drain()
    assert (world.status, world.reason) == end, (world.status, world.reason)
    assert world.progress.ended and "check_fraud" in world.progress.statuses()
    assert world.moves == (["CHARGE"] if end[1] is None else [])
"""

ORCHESTRATED = """
from uuid import UUID
from common.messages.shop.payment import CheckFraud
from common.messages.envelope import Direction, Outcome
from orchestrator import Policy
from orchestrator.engine.decide import decide
from orchestrator.engine.inputs import ReplyArrived, Started
from orchestrator.sagas.order import DEFINITIONS, ORDER_SAGA
from payment_svc.handlers import HANDLERS

assert CheckFraud in HANDLERS and [d.version for d in DEFINITIONS] == [1, 2, 3]
policy = Policy(1, 1, 1, 1, 1, 1)
for outcome, sent in ((Outcome.DONE, "charge_payment"), (Outcome.REFUSED, "reserve_stock")):
    decision = decide(ORDER_SAGA, policy, None, Started(UUID(int=1), {}))
    for step, answer in (("reserve_stock", Outcome.DONE), ("check_fraud", outcome)):
        assert decision.sends[0].step == step
        reply = ReplyArrived(step, Direction.FORWARD, answer, reason="fraud_suspected")
        decision = decide(ORDER_SAGA, policy, decision.instance, reply)
    assert [s.step for s in decision.sends] == [sent], decision.sends
"""


@pytest.mark.parametrize(
    ("style", "script"), [("orchestrated", ORCHESTRATED), ("choreographed", CHOREOGRAPHED)]
)
def test_a_fraud_check_between_reserving_and_charging(
    tmp_path: Path, style: str, script: str
) -> None:
    for package in CODE:
        shutil.copytree(ROOT / package, tmp_path / package)
    (tmp_path / "tests" / "__init__.py").touch()
    patch = ROOT / "examples" / "fraud_check" / f"{style}.patch"
    subprocess.run(["git", "apply", str(patch)], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
