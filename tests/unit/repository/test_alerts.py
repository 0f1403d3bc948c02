"""Alert rules name only metrics and labels that a process exposes, and each has its runbook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from prometheus_client import REGISTRY, Counter, Gauge, Histogram

import common.kit.metrics
import orchestrator.runtime.metrics
from orchestrator.runtime.metrics import Durations

ROOT = Path(__file__).parents[3]
(GROUP,) = yaml.safe_load((ROOT / "deploy" / "alerts.yml").read_text())["groups"]
RULES: dict[str, dict[str, Any]] = {rule["alert"]: rule for rule in GROUP["rules"]}
FROM_PROMETHEUS = {"instance", "job", "le"}  # labels that it adds itself


def exposed() -> dict[str, set[str]]:
    """Return the name of every sample that a process serves, with its labels."""
    found: dict[str, set[str]] = {}
    names: tuple[str, ...]
    for module in (common.kit.metrics, orchestrator.runtime.metrics):
        for metric in vars(module).values():
            match metric:
                case Counter():
                    names, labels = (f"{metric._name}_total",), metric._labelnames
                case Gauge():
                    names, labels = (metric._name,), metric._labelnames
                case Histogram():
                    names, labels = _histogram(metric._name), metric._labelnames
                case Durations():
                    names, labels = _histogram(metric._name), tuple(metric._labels)
                case _:
                    continue
            found |= {name: {*labels} for name in names}
    return found


def _histogram(name: str) -> tuple[str, ...]:
    return tuple(f"{name}_{part}" for part in ("bucket", "count", "sum"))


def test_what_the_rules_may_name_is_what_is_served() -> None:
    """Compare `exposed()` with what the library itself lists."""
    served = {family.name for family in REGISTRY.collect() if family.name.startswith("sagaproof")}
    named = {re.sub("_(total|bucket|count|sum)$", "", name) for name in exposed()}
    assert named == served


@pytest.mark.parametrize("alert", RULES)
def test_a_rule_names_what_there_is(alert: str) -> None:
    expression, there = RULES[alert]["expr"], exposed()
    named = set(re.findall(r"\bsagaproof_\w+", expression))
    assert named <= there.keys()
    assert named or expression.startswith("up{")
    labels: set[str] = set().union(*(there[name] for name in named), FROM_PROMETHEUS)
    by = re.findall(r"\bby \(([^)]*)\)", expression)
    wanted = {label.strip() for group in by for label in group.split(",")}
    wanted |= set(re.findall(r"[{,]\s*(\w+)\s*=", expression))
    shown = set(re.findall(r"\$labels\.(\w+)", RULES[alert]["annotations"]["summary"]))
    assert wanted <= labels
    assert shown <= wanted | (FROM_PROMETHEUS if not by else set())


@pytest.mark.parametrize("alert", RULES)
def test_an_alert_has_its_page_in_the_runbook(alert: str) -> None:
    rule = RULES[alert]
    assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in ("page", "ticket")
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor == alert.lower()
    assert re.search(rf"^## {alert}$", (ROOT / page).read_text(), re.MULTILINE)


def test_the_runbook_has_no_alert_that_does_not_exist() -> None:
    page = (ROOT / "docs" / "runbook.md").read_text()
    told = set(re.findall(r"^## ([A-Z][a-z]+(?:[A-Z][a-z]+)+)$", page, re.MULTILINE))
    assert told == set(RULES)
