"""The comparison's page says what was measured, and nothing else in figures."""

from __future__ import annotations

from typing import Any

from chaos.commands.compare_command import _added_step
from chaos.pages.measurement_pages import choreography, styles
from chaos.runtime import STYLES


def measured(number: int) -> dict[str, Any]:
    spent = {"envelopes": number, "deliveries": 0.5, "commits": 0.25, "cpu_ms": {}}
    load = {"sagas_per_second": 900.0, "p50_ms": 12.5, "p99_ms": 40.0, "per_saga": spent}
    return {
        "loads": {"1": load},
        "compensation_ms": 30.0,
        "recovery_seconds": 2.0,
        "search": {
            "asked": [("queue inventory.events", "0")],
            "until_known_who_is_next": 3,
            "queries": 7,
        },
    }


RESULT: dict[str, Any] = {
    "commit": "abc",
    "at": "2026-01-01",
    "command": "chaos compare",
    "cores": 2,
    "load_before": 0.1,
    "uncommitted_changes": True,
    "added_step": {style: _added_step(style) for style in STYLES},
    "orchestrated": measured(9),
    "choreographed": measured(5),
}


def test_both_styles_stand_beside_each_other() -> None:
    table = styles(RESULT).splitlines()
    assert table[0] == "| | orchestrated | choreographed |"
    assert "| envelopes per order, 1 in flight | 9.00 | 5.00 |" in table
    assert all(line.count("|") == 4 for line in table)


def test_the_page_shows_provenance_and_every_question() -> None:
    text = choreography(RESULT)
    assert "with uncommitted changes" in text
    assert text.count("1. queue inventory.events: 0") == 2


def test_an_added_step_is_counted_by_its_patch() -> None:
    assert _added_step("orchestrated")["files"] == 3
    assert _added_step("choreographed")["files"] == 5
