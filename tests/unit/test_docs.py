"""Pages that follow from the code are what the code says."""

from __future__ import annotations

import pytest

from common.settings import Settings
from docs.generate import HERE, PAGES


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_current(name: str) -> None:
    assert (HERE / name).read_text() == PAGES[name](), "run `python -m docs.generate`"


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
