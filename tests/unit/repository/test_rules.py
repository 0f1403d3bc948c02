"""docs/rules.md: every rule that is cited stands there, and what is said to hold it exists."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from chaos.guards.table import GUARDS as RUNNING
from tests.model.guards import GUARDS as MODEL

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "rules.md").read_text()
RULES = {int(number) for number in re.findall(r"^### Rule (\d+)\.", PAGE, re.MULTILINE)}
SECTIONS = dict(enumerate(re.split(r"^### Rule \d+\.", PAGE, flags=re.MULTILINE)[1:], start=1))

CITED = re.compile(r"\brules? (\d+)(?:(?:,| and| to|, and) (\d+))*", re.IGNORECASE)
OUTSIDE = re.compile(r"\bsection \d|\b(?:design|next|plain-english)\.md|shared design", re.I)
# Applied migrations are never edited: deployed schemas hold their checksums (common/storage/db.py).
APPLIED = re.compile(r"/migrations/\d+_\w+\.sql$")


def texts() -> dict[str, str]:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    kinds = (".py", ".md", ".sql", ".yml", ".yaml", ".toml", ".patch", "Makefile", "Dockerfile")
    return {name: (ROOT / name).read_text() for name in listed if name.endswith(kinds)}


def test_every_rule_that_is_cited_is_there() -> None:
    unknown = [
        f"{name}: {cited.group()}"
        for name, text in texts().items()
        for cited in CITED.finditer(text)
        if not {int(number) for number in re.findall(r"\d+", cited.group())} <= RULES
    ]
    assert unknown == []


def test_no_document_outside_the_repository_is_cited() -> None:
    outside = [
        f"{name}: {cited.group()}"
        for name, text in texts().items()
        for cited in OUTSIDE.finditer(text)
        if not APPLIED.search(name) and not name.endswith("test_rules.py")
    ]
    assert outside == []


def test_the_rules_are_numbered_without_a_hole() -> None:
    assert sorted(RULES) == list(range(1, 21))


def test_every_rule_has_a_counterexample_and_tests_that_exist() -> None:
    for number, section in SECTIONS.items():
        named = re.findall(r"\[`(test_\w+)`\]\(\.\./(\S+\.py)\)", section)
        assert named, f"rule {number} names no test"
        assert len(named) == section.count("`test_"), f"rule {number} names one without a link"
        assert "*Counterexample.*" in section, f"rule {number} has no counterexample"
        missing = [
            f"{path}::{test}"
            for test, path in named
            if not (ROOT / path).exists() or f"def {test}(" not in (ROOT / path).read_text()
        ]
        assert missing == [], f"rule {number}"


def test_every_guard_that_a_rule_names_is_there() -> None:
    model = {guard.name for guards in MODEL.values() for guard in guards}
    running = {guard.name for guard in RUNNING}
    for kind, names in (("model", model), ("running", running)):
        listed = re.findall(rf"^- Guards, {kind}: ((?:.+\n)(?:  .+\n)*)", PAGE, re.MULTILINE)
        named = {name for line in listed for name in re.findall(r"`([^`]+)`", line)}
        assert named
        assert named - names == set(), kind
