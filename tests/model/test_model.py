"""The order saga holds under every order of events; and without any one guard it does not."""

from __future__ import annotations

import pytest

from tests.model.explore import explore
from tests.model.guards import GUARDS
from tests.support.without import Guard


@pytest.mark.timeout(300)
def test_the_order_saga_is_right_in_every_order_of_events() -> None:
    found = explore()
    print(f"{found.states} states, {found.transitions} transitions, {found.seconds} s")
    assert found.wrong is None, "\n".join(found.trace)
    assert found.states > 500_000  # fewer would mean that something is left out
    assert found.ends > 100_000


@pytest.mark.timeout(300)
@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_without_this_guard_it_is_not(guard: Guard) -> None:
    with guard.removed():
        found = explore()
    print(f"{found.wrong}:", *found.trace, sep="\n  ")
    assert found.wrong is not None
