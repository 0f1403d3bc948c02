"""docs/whats-here.md: every package and module in a line.

Owns: what each package is for. What a module is for, its own docstring says; whether it is pure,
the contract in pyproject.toml.
"""

from __future__ import annotations

import ast
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
GENERATED = "<!-- written by `python -m docs.generate`; edit docs/rooms.py or the docstrings -->"

# In each group from the outside in: a package imports only those below it.
ROOMS: Mapping[str, Mapping[str, str]] = {
    "common: what every service stands on, without any business": {
        "common": "the names that the author of a saga or a service imports",
        "common/http": "what both HTTP APIs share",
        "common/process": "a process: its daemons, its health, its end",
        "common/participant": "a service that executes commands",
        "common/transport": "RabbitMQ: consuming, publishing, asking",
        "common/storage": "Postgres: transactions, inbox, outbox, fence",
        "common/kit": "settings, log, metrics, health, failpoints",
        "common/messages": "messages, and what they say",
        "common/messages/shop": "the messages of the shop, by service",
    },
    "orchestrator: the saga engine, and the operator's tools": {
        "orchestrator": "the names that the author of a definition imports",
        "orchestrator/cli": "the command `saga`; it speaks HTTP to the two APIs and nothing else",
        "orchestrator/operator": "the operator's API",
        "orchestrator/dead_letters": "dead letters: taking them in, redriving, discarding",
        "orchestrator/runtime": "the engine over Postgres and RabbitMQ",
        "orchestrator/sagas": "the sagas of this repository, as tables",
        "orchestrator/engine": "what a saga is, and what each input leads to; pure",
    },
    "The services": {
        "order_svc": "the price list and the orders",
        "order_svc/door": "the customers' API",
        "order_svc/choreography": "the style without an orchestrator",
        "inventory_svc": "stock and reservations",
        "payment_svc": "accounts and the ledger",
    },
    "chaos: starts, breaks, loads and judges the system from outside": {
        "chaos": "the command `chaos`",
        "chaos/commands": "one module a command",
        "chaos/pages": "the HTML and Markdown that runs leave",
        "chaos/guards": "each guard taken out of the running system",
        "chaos/matrix": "a kill at every failpoint with every step in hand",
        "chaos/bench": "how fast it is, beside other ways to do the same",
        "chaos/scenarios": "named situations, played and judged",
        "chaos/console": "what the commands share on a terminal",
        "chaos/faults": "faults, each with `inject()` and `heal()`",
        "chaos/stack": "a running stack, seen from outside",
        "chaos/load": "orders, and a model of what must become of them",
        "chaos/runtime": "starts, stops, kills and pauses a stack",
        "chaos/runtime/docker": "by Docker Compose",
        "chaos/runtime/native": "by plain processes",
        "chaos/judge": "what must hold, and whether it does; imports nothing that it judges",
        "chaos/judge/invariants": "the invariants, by noun",
    },
}

OTHERS = """## Everything else

| directory | what it is |
|---|---|
| `tests/unit/` | tests without servers |
| `tests/model/` | `make model`: the code that decides, driven through every order of events |
| `tests/integration/` | tests on a real Postgres and RabbitMQ |
| `tests/acceptance/` | tests on whole stacks |
| `tests/drills/` | `make drill`: what CI breaks besides |
| `tests/large/` | `make large`: a hundred thousand of something |
| `tests/golden/` | the wire form of every message |
| `tests/mutants/` | processes with a guard taken out |
| `tests/support/` | what several kinds of tests share |
| `examples/` | the demo's orders; [`trip/`](../examples/trip/README.md), a saga of your own |
| `deploy/` | roles, broker configuration, alert rules |
| `docs/` | these pages; `generate.py` writes those that follow from the code |

## Who may import whom

import-linter holds it in `make check`; the contracts are in `pyproject.toml`:

{contracts}
"""


def whats_here() -> str:
    """Return the page, made from ROOMS, the modules' docstrings and the import contracts."""
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    contracts = linter["contracts"]
    (pure,) = (c["source_modules"] for c in contracts if c["name"].startswith("pure modules"))
    names = ";\n".join(f"- {contract['name']}" for contract in contracts)
    return "\n".join(
        [
            "# What's here",
            "",
            GENERATED,
            "",
            "One table a package, from the outside in: a package imports only those below it.",
            "A *pure* module imports no driver, web framework, clock, environment or randomness.",
            "",
            *_groups(frozenset(pure)),
            OTHERS.format(contracts=f"{names}."),
        ]
    )


def _groups(pure: frozenset[str]) -> Iterator[str]:
    modules = modules_by_package()
    for group, rooms in ROOMS.items():
        yield from (f"## {group}", "")
        for room, purpose in rooms.items():
            yield from (f"### `{room}/`: {purpose}", "")
            if modules.get(room):
                yield from ("| module | | what it is |", "|---|---|---|")
                yield from (_row(room, module, pure) for module in modules[room])
                yield ""


def _row(room: str, module: str, pure: frozenset[str]) -> str:
    path = f"{room}/{module}"
    first, _, _ = (ast.get_docstring(ast.parse((ROOT / path).read_text())) or "").partition("\n")
    dotted = path.removesuffix(".py").replace("/", ".")
    is_pure = any(dotted == name or dotted.startswith(f"{name}.") for name in pure)
    said = first.removesuffix(" Pure.").removesuffix(".").replace("|", "\\|")
    return f"| [`{module}`](../{path}) | {'pure' if is_pure else ''} | {said} |"


def modules_by_package() -> dict[str, list[str]]:
    """Return the modules of each package of ROOMS' groups, as git lists them."""
    tops = sorted({room.partition("/")[0] for rooms in ROOMS.values() for room in rooms})
    command = ["git", "ls-files", "--", *(f"{top}/*.py" for top in tops)]
    listed = subprocess.run(  # noqa: S603 - a constant command
        command, cwd=ROOT, capture_output=True, text=True, check=True
    )
    packages: dict[str, list[str]] = {}
    for name in listed.stdout.split():
        package, _, module = name.rpartition("/")
        modules = packages.setdefault(package, [])
        if module != "__init__.py":
            modules.append(module)
    return packages
