"""The pages in docs/evidence: real ones say where they come from and nothing that is not theirs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from chaos.commands.evidence_command import FOLDER, PARTS
from chaos.pages import evidence_pages as pages
from chaos.pages.render import render
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
    "verdict": "pass",
    "passed": 0,
    "guards": [],
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


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_a_page_names_its_commit_and_passed(path: Path) -> None:
    found = pages.HEAD.search(path.read_text())
    assert found
    assert found["verdict"] == "pass"
    assert re.fullmatch(r"`[0-9a-f]{12}`", found["commit"]), "commit your changes, then run again"


def test_every_part_has_a_page_and_is_in_the_index() -> None:
    assert {path.stem for path in WRITTEN} == set(PARTS)
    says = {name: part.says for name, part in PARTS.items()}
    assert (FOLDER / "README.md").read_text() == pages.index(FOLDER, says)


@pytest.mark.parametrize(
    "text",
    [
        "see /tmp/wt/x.log", "amqp://me:secret@broker/", "http://127.0.0.1:80", "pypi.example",
        "password: correcthorsebattery",
    ],
)  # fmt: skip
def test_what_must_not_be_on_a_page_would_be_found(text: str) -> None:
    assert [what for what, pattern in NOT_OURS.items() if re.search(pattern, text)]


@pytest.mark.parametrize(("changed", "commit"), [
    (False, "`0123456789ab`"), (True, "`0123456789ab`, **with uncommitted changes**"),
])  # fmt: skip
def test_the_index_reads_what_a_page_says_of_itself(changed: bool, commit: str) -> None:
    page = render("guards.md", result={**ABOUT, "uncommitted_changes": changed})
    found = pages.HEAD.search(page)
    assert found
    assert found.groups() == ("pass", commit, "2026-01-01T00:00:00+00:00", "12 s")


def test_a_cell_keeps_its_row_whole() -> None:
    page = render("index.md", rows=[("x|y", "one\ntwo")])
    assert page.splitlines()[-1] == "| x\\|y | one two |"


def test_every_scenario_of_a_group_is_there() -> None:
    named = [name for group in pages.GROUPS.values() for name in group]
    assert set(named) <= set(SCENARIOS)
    assert len(named) == len(set(named))
