"""Pages that follow from the code are what the code says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from chaos.commands.cli import app as chaos
from common.kit.settings import Settings
from docs.generate import PAGES
from docs.rooms import ROOMS, ROOT, modules_by_package
from examples.trip.saga import TRIP
from orchestrator.cli import app as saga
from orchestrator.engine.definition import Definition
from orchestrator.sagas.order import DEFINITIONS
from orchestrator.sagas.returns import RETURN_SAGA

HERE = ROOT / "docs"


@pytest.mark.parametrize("name", PAGES)
def test_a_generated_page_is_current(name: str) -> None:
    assert (ROOT / name).read_text() == PAGES[name](), "run `python -m docs.generate`"


def test_every_package_has_its_place_among_the_rooms() -> None:
    rooms = {room for group in ROOMS.values() for room in group}
    assert rooms == modules_by_package().keys()


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


LINKED = re.compile(r"\[`(test_\w+)`\]\((\S+\.py)\)")


def test_every_claim_about_a_compensation_has_a_test_that_exists() -> None:
    page = (HERE / "compensations.md").read_text()
    linked = LINKED.findall(page)
    assert len(linked) == page.count("`test_") > 30  # none is written otherwise, and passed over
    missing = [
        f"{file}: {test}"
        for test, file in linked
        if not re.search(rf"def {test}\(", (HERE / file).read_text())
    ]
    assert missing == []


def test_no_claim_about_a_compensation_goes_without_a_test() -> None:
    page = (HERE / "compensations.md").read_text()
    rows = re.findall(r"^\| (?!it comes|step).*$", page, re.MULTILINE)
    assert len(rows) > 15
    assert [row for row in rows if not LINKED.search(row)] == []


@pytest.mark.parametrize("definition", [*DEFINITIONS, RETURN_SAGA, TRIP], ids=lambda d: d.name)
def test_every_step_of_every_saga_is_among_the_compensations(definition: Definition) -> None:
    page = (HERE / "compensations.md").read_text()
    told = re.findall(r"`(\w+)`", page)
    for step in definition.steps:
        assert step.name in told
        assert step.undo is None or step.undo.__name__ in told


def test_the_walkthrough_names_functions_that_are_there() -> None:
    page = (HERE / "walkthrough.md").read_text()
    code = "".join((HERE / file).read_text() for file in re.findall(r"\]\((\S+\.py)\)", page))
    named = set(re.findall(r"`(\w+)\(", page))
    assert len(named) > 3
    assert {name for name in named if not re.search(rf"def {name}\(", code)} == set()


def test_every_link_within_the_pages_leads_somewhere() -> None:
    pages = [ROOT / "README.md", *HERE.rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
    links = [
        (page, link)
        for page in pages
        for link in re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", page.read_text())
        if "://" not in link
    ]
    assert len(links) > 500
    assert [(str(page), link) for page, link in links if not (page.parent / link).exists()] == []


FENCED = re.compile(r"^ *```\w*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
TYPED = re.compile(r"(?:^|[$/(] ?)(saga|chaos) ([a-z].*?)(?=  |\||$)", re.MULTILINE)
TOOLS = {"saga": typer.main.get_command(saga), "chaos": typer.main.get_command(chaos)}


def wrong(tool: str, words: list[str]) -> Iterator[str]:
    """Yield the commands and options of a line that the tool does not have."""
    command: Any = TOOLS[tool]
    while (within := getattr(command, "commands", {})) and words and not words[0].startswith("-"):
        name, *words = words
        if name not in within:
            yield name
            return
        command = within[name]
    there = {o for p in command.params for o in (*p.opts, *p.secondary_opts)} | {"--help"}
    yield from (word for word in words if word.startswith("--") and word not in there)


@pytest.mark.parametrize("page", ["README.md", *sorted(p.name for p in HERE.glob("*.md"))])
def test_every_command_and_option_a_page_names_is_there(page: str) -> None:
    text = (HERE.parent / page if page == "README.md" else HERE / page).read_text()
    inline = (" ".join(span.split()) for span in INLINE.findall(FENCED.sub("", text)))
    named = TYPED.findall("\n".join([*FENCED.findall(text), *inline]))
    assert named or page not in ("runbook.md", "operations.md", "README.md")
    assert [
        f"{tool} {line}: {what}"
        for tool, line in named
        for what in wrong(tool, re.split(r"[^\w-]+", line.replace("\\", "")))
    ] == []
