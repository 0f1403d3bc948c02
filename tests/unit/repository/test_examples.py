"""The committed example files are what the generator writes, and hold what their README says."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from chaos.load.model import ENDS, Foreseen, foresee
from chaos.load.workload import Ask, BadLine, Catalogue, parse_catalogue, parse_orders

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return parse_catalogue((EXAMPLES / "catalogue.json").read_text())


@pytest.fixture(scope="module")
def lines() -> list[Ask | BadLine]:
    return list(parse_orders((EXAMPLES / "orders.jsonl").read_text().splitlines()))


@pytest.fixture(scope="module")
def asks(lines: list[Ask | BadLine]) -> list[Ask]:
    return [line for line in lines if isinstance(line, Ask)]


@pytest.fixture(scope="module")
def foreseen(catalogue: Catalogue, asks: list[Ask]) -> Foreseen:
    return foresee(catalogue, asks)


def test_the_files_are_what_the_generator_writes() -> None:
    command = [sys.executable, str(EXAMPLES / "generate.py"), "--seed", "7", "--check"]
    assert subprocess.run(command, check=False).returncode == 0


def test_the_readme_says_what_a_run_must_end_with(
    lines: list[Ask | BadLine], asks: list[Ask], foreseen: Foreseen
) -> None:
    text = (EXAMPLES / "README.md").read_text()
    table = dict(re.findall(r"^\| `?([a-z_ ]+?)`? \| (\d[\d.]*) \|", text, re.M))
    assert table == {
        "lines": str(len(lines)),
        "cannot be sent": str(len(lines) - len(asks)),
        "refused at the door": str(len(foreseen.wrong)),
        "conflicts": str(len(foreseen.conflicts)),
        "repeats": str(len(foreseen.repeats)),
        "orders": str(len(foreseen.ends)),
        **{end: str(foreseen.bounds[end]) for end in ENDS},
    }


def test_the_readme_names_each_wrong_line(lines: list[Ask | BadLine], foreseen: Foreseen) -> None:
    text = (EXAMPLES / "README.md").read_text()
    table = {int(line): why for line, why in re.findall(r"^\| (\d+) \| (.+) \|$", text, re.M)}
    unsendable = {line.number: line.why for line in lines if isinstance(line, BadLine)}
    assert table == foreseen.wrong | unsendable


def test_there_is_enough_of_everything(
    catalogue: Catalogue, lines: list[Ask | BadLine], foreseen: Foreseen
) -> None:
    assert len(foreseen.ends) >= 2_000
    assert len(catalogue.products) == 500
    assert len(foreseen.repeats) >= 40
    assert len(foreseen.conflicts) >= 15
    assert len({line.why.split(" at ")[0] for line in lines if isinstance(line, BadLine)}) >= 2
    assert all(foreseen.bounds[end].at_least > 0 for end in ENDS)


def test_popularity_falls_like_a_zipf_curve(asks: list[Ask]) -> None:
    lines = [line for ask in asks for line in ask.body.get("lines", [])]
    times = Counter(line["sku"] for line in lines)
    assert times["sku-001"] > 2 * times["sku-003"] > 4 * times["sku-011"] > 0
    assert {len(ask.body.get("lines", [])) for ask in asks} == {0, 1, 2, 3, 4, 5}


def test_about_two_in_a_hundred_cards_are_declined(asks: list[Ask], catalogue: Catalogue) -> None:
    declined = {a.customer for a in catalogue.accounts if a.card == "declined"}
    share = sum(ask.body.get("customer") in declined for ask in asks) / len(asks)
    assert 0.01 < share < 0.03


def test_what_the_order_of_arrival_does_not_change_is_exact(foreseen: Foreseen) -> None:
    for end in ("not_stocked", "card_declined", "unknown_account"):
        assert foreseen.bounds[end].at_least == foreseen.bounds[end].at_most
