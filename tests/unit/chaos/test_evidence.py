"""The pages in docs/evidence: real ones say where they come from and nothing that is not theirs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from chaos.commands.evidence_command import FOLDER, PARTS
from chaos.matrix.cells import combinations, impossible
from chaos.pages import evidence_pages
from chaos.pages.evidence_index import index
from chaos.pages.page import head, table
from chaos.scenarios.table import SCENARIOS

WRITTEN = [path for path in sorted(FOLDER.glob("*")) if path.name != "README.md"]
NOT_OURS = {
    "a path of somebody's machine": r"/(?:work|tmp|root|home|opt|usr|var|mnt|Users)/",
    "an address with a password": r"\w+://[^/\s\"`]*:[^/\s\"`]*@",
    "an address": r"\b(?:postgresql|amqps?|https?)://|\b127\.0\.0\.1\b|\blocalhost\b",
    "a package registry": r"(?i)\b(?:pypi|artifactory|nexus|registry|index-url)\b",
    "a password": r"(?i)\b(?:password|secret|token|cookie)\b\W{1,4}\w{12,}",
}
ABOUT = {
    "command": "chaos evidence model --seed 7",
    "commit": "0123456789ab",
    "uncommitted_changes": False,
    "seed": 7,
    "at": "2026-01-01T00:00:00+00:00",
    "python": "3.11.7",
    "seconds": 12.3,
}


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_a_page_holds_nothing_of_the_machine_it_was_made_on(path: Path) -> None:
    text = path.read_text()
    assert [what for what, pattern in NOT_OURS.items() if re.search(pattern, text)] == []


@pytest.mark.parametrize("path", [p for p in WRITTEN if p.suffix == ".md"], ids=lambda p: p.name)
def test_a_page_says_which_commit_and_is_what_its_result_says(path: Path) -> None:
    result = json.loads(path.with_suffix(".json").read_text())
    assert re.fullmatch(r"[0-9a-f]{12}", result["commit"])
    assert not result["uncommitted_changes"], "commit your changes, then run it again"
    assert head(result) in path.read_text()
    assert PARTS[path.stem].page(result) == path.read_text()


@pytest.mark.skipif(not WRITTEN, reason="no evidence yet")
def test_the_index_is_what_the_results_say() -> None:
    says = {name: part.says for name, part in PARTS.items()}
    assert (FOLDER / "README.md").read_text() == index(FOLDER, says)


@pytest.mark.parametrize(
    "text",
    [
        "see /tmp/wt/x.log", "amqp://me:secret@broker/", "http://127.0.0.1:80", "pypi.example",
        "password: correcthorsebattery",
    ],
)  # fmt: skip
def test_what_must_not_be_on_a_page_would_be_found(text: str) -> None:
    assert [what for what, pattern in NOT_OURS.items() if re.search(pattern, text)]


def test_uncommitted_changes_are_said() -> None:
    assert "uncommitted" not in head(ABOUT)
    assert "uncommitted" in head({**ABOUT, "uncommitted_changes": True})


def test_a_cell_keeps_its_row_whole() -> None:
    assert table(("a", "b"), [("x|y", "one\ntwo")]).splitlines()[-1] == "| x\\|y | one two |"


def test_every_scenario_of_a_group_is_there() -> None:
    named = [name for group in evidence_pages.GROUPS.values() for name in group]
    assert set(named) <= set(SCENARIOS)
    assert len(named) == len(set(named))


def test_every_impossible_combination_is_counted_with_its_reason() -> None:
    rows = impossible()
    counted = sum(int(str(row["combinations"])) for row in rows)
    assert counted == sum(cell.impossible is not None for cell in combinations())
    assert all(row["reason"] for row in rows)
