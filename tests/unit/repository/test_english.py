"""The language of the code: docstrings, names of tests and classes, and the size of packages.

Ruff holds the form of a docstring (D205, D400, D401, D404); these tests hold its words. Each rule
stands here because the code once broke it hundreds of times.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
LONGEST_TEST_NAME = 60
MOST_ENTRIES = 14

# A machine is not a person, and each of these has a word of the field (docs/glossary.md).
NEVER = re.compile(
    r"\b(whoever|nobody|somebody|hears?|heard|stands? still|sets? aside|suspicion|saboteurs?"
    r"|elders?|condemns?|(?<!dead )(?<!dead-)letters?)\b",
    re.IGNORECASE,
)

# A docstring opens with an imperative (a function) or a noun phrase (a class, a module).
FRAGMENT = re.compile(
    r"(What|Who|Whom|Whose|Whoever|Whatever|Whether|Which|Why|Where|When|How|Of|Or|So|Also"
    r"|Likewise|Those|The same|Nobody|Somebody|Everybody|Until)\b"
)

# A class name belongs to one module of each of these. Chaos looks at the system from outside and
# shares no code with it, so its records have the same nouns; a test's double is named after what
# it stands for.
WORLDS = {
    "the system": ("common", "orchestrator", "order_svc", "payment_svc", "inventory_svc"),
    "chaos": ("chaos",),
    "the tests": ("tests",),
}
# These may share a name all the same, each for its reason.
SHARED = {
    "World": "each model, and each test of properties, has a world of its own",
    "Stage": "a stage for many tests, and one for the operator's, which stands on it",
    "Service": "the double of a service that a consumer's test, or a choreography's, needs",
}


@dataclass(frozen=True)
class Docstring:
    """One docstring of the repository, and where it stands."""

    place: str
    text: str

    @property
    def flat(self) -> str:
        return " ".join(self.text.split())


def sources() -> dict[str, ast.Module]:
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return {name: ast.parse((ROOT / name).read_text()) for name in listed.stdout.split()}


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.Module]:
    return sources()


@pytest.fixture(scope="module")
def docstrings(trees: dict[str, ast.Module]) -> list[Docstring]:
    return [found for name, tree in trees.items() for found in _docstrings(name, tree)]


def _docstrings(name: str, tree: ast.Module) -> Iterator[Docstring]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield Docstring(f"{name}:{getattr(node, 'lineno', 1)}", text)


def test_no_docstring_has_a_word_of_the_old_dialect(docstrings: list[Docstring]) -> None:
    found = [(d.place, word.group()) for d in docstrings if (word := NEVER.search(d.flat))]
    assert found == []


def test_no_docstring_opens_with_a_fragment(docstrings: list[Docstring]) -> None:
    found = [(d.place, d.text.splitlines()[0]) for d in docstrings if FRAGMENT.match(d.text)]
    assert found == []


def test_names_of_tests_are_short(trees: dict[str, ast.Module]) -> None:
    names = {
        node.name
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    tests = {name for name in names if name.startswith("test_")}
    assert len(tests) > 500
    assert {name: len(name) for name in tests if len(name) > LONGEST_TEST_NAME} == {}


@pytest.mark.parametrize("world", WORLDS)
def test_no_two_modules_share_a_class_name(world: str, trees: dict[str, ast.Module]) -> None:
    defined: defaultdict[str, set[str]] = defaultdict(set)
    for name, tree in trees.items():
        if name.startswith(tuple(f"{top}/" for top in WORLDS[world])):
            for node in ast.walk(tree):
                if isinstance(node, ast.ClassDef):
                    defined[node.name].add(name)
    shared = {name: sorted(places) for name, places in defined.items() if len(places) > 1}
    assert {name: places for name, places in shared.items() if name not in SHARED} == {}


def test_no_package_has_more_entries_than_fit_a_glance(trees: dict[str, ast.Module]) -> None:
    entries: defaultdict[str, set[str]] = defaultdict(set)
    for name in trees:
        parts = name.split("/")
        for depth in range(1, len(parts)):
            entries["/".join(parts[:depth])].add(parts[depth])
    sizes = Counter({package: len(names - {"__init__.py"}) for package, names in entries.items()})
    assert {package: size for package, size in sizes.items() if size > MOST_ENTRIES} == {}
