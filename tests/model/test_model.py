"""The order holds under every order of events, in either style. Without any one guard it does not:
that is a drill, tests/drills/test_model_guards.py."""

from __future__ import annotations

import pytest

from tests.model.styles import explore_style


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("style", "states", "ends"),  # fewer would mean that something is left out
    [("orchestrated", 500_000, 100_000), ("choreographed", 10_000, 1_000)],
)
def test_the_order_is_right_in_every_order_of_events(style: str, states: int, ends: int) -> None:
    found = explore_style(style)
    print(f"{found.states} states, {found.transitions} transitions, {found.seconds} s")
    assert found.wrong is None, "\n".join(found.trace)
    assert found.states > states
    assert found.ends > ends
