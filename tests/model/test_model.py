"""Both styles hold in every order of events; without any one guard they do not."""

from __future__ import annotations

import pytest

from tests.model.guards import GUARDS
from tests.model.styles import explore_style
from tests.support.without import Entry, Guard


@pytest.mark.parametrize(
    ("style", "states", "ends"),  # fewer would mean that the model leaves something out
    [("orchestrated", 3_000, 200), ("choreographed", 15_000, 1_300)],
)
def test_the_order_is_right_in_every_order_of_events(style: str, states: int, ends: int) -> None:
    found = explore_style(style)
    assert found.wrong is None, "\n".join(found.trace)
    assert found.states > states
    assert found.ends > ends


@pytest.mark.parametrize(
    ("style", "guard"),
    [
        pytest.param(style, guard, id=f"{style}: {guard.name}")
        for style, guards in GUARDS.items()
        for guard in guards
    ],
)
def test_without_this_guard_the_model_finds_a_violation(style: str, guard: Guard | Entry) -> None:
    with guard.removed():
        found = explore_style(style)
    print(f"{found.wrong}:", *found.trace, sep="\n  ")
    assert found.wrong is not None
