"""The order saga holds under every order of events. Without any one guard it does not: that is a
drill, tests/drills/test_model_guards.py."""

from __future__ import annotations

import pytest

from tests.model.explore import explore


@pytest.mark.timeout(300)
def test_the_order_saga_is_right_in_every_order_of_events() -> None:
    found = explore()
    print(f"{found.states} states, {found.transitions} transitions, {found.seconds} s")
    assert found.wrong is None, "\n".join(found.trace)
    assert found.states > 500_000  # fewer would mean that something is left out
    assert found.ends > 100_000
