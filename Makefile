# Everything a newcomer types. Each target sets up what it needs first.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
bin := .venv/bin
PYTHON ?= python3

.PHONY: help setup demo test quick drill large model matrix guards evidence bench compare isolation check docs clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 10

setup: .venv/ready ## make .venv with everything in it, at the pinned versions

.venv/ready: pyproject.toml constraints.txt scripts/venv
	@PYTHON=$(PYTHON) scripts/venv
	@touch $@

demo: setup ## a stack comes up, real orders flow, processes are killed, the verdict is printed
	@$(bin)/chaos demo

test: setup ## the whole suite
	@$(bin)/pytest

quick: setup ## unit tests and the model, on two cores (under a minute)
	@$(bin)/pytest -q -n 2 --dist loadfile tests/unit examples tests/model

drill: setup ## what CI breaks: some matrix cells, scenarios, guards, containers (10 minutes)
	@$(bin)/pytest tests/drills

large: setup ## a hundred thousand of something (minutes)
	@$(bin)/pytest tests/large

model: setup ## every order of events, with the real decide() and fence (some seconds)
	@$(bin)/python -m tests.model

matrix: setup ## kill every process at every failpoint with every step in hand (25 minutes)
	@$(bin)/chaos matrix

guards: setup ## take each guard out of the running system; what breaks, what detects it (10 minutes)
	@$(bin)/chaos guards

evidence: setup ## run all experiments, write docs/evidence (50 minutes; commit first)
	@$(bin)/chaos evidence

bench: .venv/bench ## our saga beside DBOS: speed, cost, docs/performance.md (8 minutes, alone)
	@$(bin)/chaos bench

compare: setup ## orchestrated beside choreographed; docs/choreography.md (5 minutes, alone)
	@$(bin)/chaos compare

isolation: setup ## anomalies with and without countermeasures; docs/isolation.md (8 minutes)
	@$(bin)/chaos isolation

.venv/bench: .venv/ready
	@$(bin)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	@touch $@

check: setup ## ruff, mypy, import-linter, the language, and that the generated pages are current
	@$(bin)/ruff check .
	@$(bin)/ruff format --check .
	@$(bin)/mypy
	@$(bin)/lint-imports
	@$(bin)/pytest -q tests/unit/repository/test_english.py
	@$(bin)/python examples/generate.py --seed 7 --check
	@$(bin)/python -m docs.generate --check

docs: setup ## write the pages that follow from the code
	@$(bin)/python -m docs.generate

clean: ## remove what make made; stacks are ended by `chaos down --all`
	rm -rf .venv build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
