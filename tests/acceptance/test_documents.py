"""The commands in the documents work, run in their order on one stack."""

from __future__ import annotations

import re

import pytest

from tests.support.reader import ROOT, blocks, commands, run, state_directory

DOCUMENTS = ("README.md", "docs/operations.md", "docs/runbook.md")  # each goes on from the last


def typed() -> list[str]:
    """List the commands of all documents; the stack goes down last."""
    found = [c for document in DOCUMENTS for block in blocks(document) for c in commands(block)]
    found = [c for c in found if not c.startswith("make ")]
    last = [c for c in found if "chaos down" in c]
    return [c for c in found if c not in last] + last


@pytest.mark.timeout(400)
def test_the_commands_in_readme_operations_and_runbook_work() -> None:
    with state_directory() as directory:
        said = run(typed(), directory)
    first_order = next(out for c, out in zip(typed(), said, strict=False) if "curl" in c)
    assert '"order_id"' in first_order, first_order


@pytest.mark.parametrize(
    "document",
    [str(p.relative_to(ROOT)) for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]],
)
def test_every_make_target_a_document_names_is_there(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)(?:[A-Z]+=\w+ )*make ([a-z-]+)", (ROOT / document).read_text()))
    assert named <= targets
