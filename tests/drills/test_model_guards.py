"""Without any one guard the order is not right in every order of events."""

from __future__ import annotations

import pytest

from tests.model.guards import GUARDS
from tests.model.styles import explore_style
from tests.support.without import Entry, Guard


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("style", "guard"),
    [
        pytest.param(style, guard, id=f"{style}: {guard.name}")
        for style, guards in GUARDS.items()
        for guard in guards
    ],
)
def test_without_this_guard_it_is_not(style: str, guard: Guard | Entry) -> None:
    with guard.removed():
        found = explore_style(style)
    print(f"{found.wrong}:", *found.trace, sep="\n  ")
    assert found.wrong is not None
