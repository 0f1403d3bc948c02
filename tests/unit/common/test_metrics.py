"""Labels have few values, whatever is written into them."""

from __future__ import annotations

from orchestrator.runtime.metrics import OTHER, Bounded


def test_what_a_person_writes_is_no_label() -> None:
    bounded = Bounded(most=3)
    assert [bounded(word) for word in ("Bob: I know better", "é", "a" * 60, "", None)] == [
        OTHER
    ] * 5
    assert [bounded(word) for word in ("a", "b_2", "c", "d", "a", "e")] == [
        "a", "b_2", "c", OTHER, "a", OTHER,
    ]  # fmt: skip
