"""Without any one guard the order saga is not right in every order of events."""

from __future__ import annotations

import pytest

from tests.model.explore import explore
from tests.model.guards import GUARDS
from tests.support.without import Guard


@pytest.mark.timeout(300)
@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_without_this_guard_it_is_not(guard: Guard) -> None:
    with guard.removed():
        found = explore()
    print(f"{found.wrong}:", *found.trace, sep="\n  ")
    assert found.wrong is not None
