"""Pages that follow from the code; `--check` fails if one is no longer true.

    python -m docs.generate            write them
    python -m docs.generate --check    exit 1 and name the pages that differ

Owns: docs/order-saga.md, from the definition and from exploring decide() itself;
docs/configuration.md, from the settings class; the sizes in README.md, counted. docs/whats-here.md
is made by docs/rooms.py.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from pydantic.fields import FieldInfo

from common.kit.settings import SECRETS, Policy, Settings
from common.messages.envelope import Direction, Message, Outcome, Refusal
from docs.rooms import ROOT, whats_here
from orchestrator.engine.definition import Definition, Kind
from orchestrator.engine.inputs import GateDecided, Input, ReplyArrived, TimedOut
from orchestrator.engine.instance import State
from orchestrator.sagas.order import ORDER_SAGA
from orchestrator.sagas.returns import RETURN_SAGA
from tests.support.explore import Transition, explore

GENERATED = "<!-- written by `python -m docs.generate`; edit that -->\n"

# Which refusals a participant's handler can return (common/messages/shop).
REFUSALS = {
    "create_order": ("OrderInvalid", "KeyReused"),
    "reserve_stock": ("OutOfStock", "NotStocked"),
    "charge_payment": ("CardDeclined", "InsufficientFunds", "UnknownAccount"),
    "dispatch_stock": ("ReservationNotHeld",),
    "refund_order": ("NothingToRefund",),
}


def order_saga() -> str:
    transitions = tuple(explore(ORDER_SAGA, _POLICY))
    return "\n".join(
        [
            "# The order saga",
            "",
            GENERATED,
            "## Steps",
            "",
            *_step_table(ORDER_SAGA),
            "",
            "Commands go to the participant's queue, `<participant>.commands`; replies come to",
            "`orchestrator.replies`. The first step is done at the door, in the transaction that",
            "accepts the order.",
            "",
            "## The return saga",
            "",
            "A confirmed order is returned by `POST /orders/ID/returns`. The refund comes first,",
            "as it may be refused; a new attempt is a new saga.",
            "",
            *_step_table(RETURN_SAGA),
            "",
            "## States of an instance",
            "",
            "Every transition that any input can cause, found by trying them all on `decide()`.",
            "",
            "```mermaid",
            *_states(ORDER_SAGA, transitions),
            "```",
            "",
            "## A step's status",
            "",
            "```mermaid",
            *_statuses(ORDER_SAGA, transitions),
            "```",
            "",
        ]
    )


def _step_table(definition: Definition) -> Iterator[str]:
    yield "| # | step | kind | participant | command | can refuse with | undo |"
    yield "|---|---|---|---|---|---|---|"
    for number, step in enumerate(definition.steps, start=1):
        command = step.command.__name__ if step.command else "*done at the door*"
        if step.kind is Kind.GATE:
            command = "*a person, when policy asks*"
        undo = "Fence" if step.kind is Kind.PIVOT else step.undo.__name__ if step.undo else "–"
        refusals = ", ".join(_reason(name) for name in REFUSALS.get(step.name, ())) or "never"
        if step.kind is Kind.GATE:
            refusals = "rejected, expired"
        cells = (number, f"`{step.name}`", step.kind, step.participant, command, refusals, undo)
        yield f"| {' | '.join(str(cell) for cell in cells)} |"


def _reason(name: str) -> str:
    refusal = Message.registry[name, 1]
    assert issubclass(refusal, Refusal)  # noqa: S101 - a mistake in the table above
    return str(refusal.model_fields["reason"].default)


_POLICY = Policy(
    timeout_seconds=1,
    attempts=2,
    backoff_first_seconds=1,
    backoff_cap_seconds=1,
    resend_cap_seconds=1,
    stuck_after_seconds=1,
)


def _states(definition: Definition, transitions: Iterable[Transition]) -> Iterator[str]:
    edges: dict[tuple[str, str], set[str]] = {}
    for transition in transitions:
        before, after = transition.before.state, transition.after.state
        if before is not after:
            edges.setdefault((before, after), set()).add(
                _cause(transition.input_, definition, after)
            )
    yield "stateDiagram-v2"
    yield "  [*] --> RUNNING: started"
    for (source, target), causes in sorted(edges.items()):
        yield f"  {source} --> {target}: {', '.join(sorted(causes))}"
    for end in sorted({target for _, target in edges} - {source for source, _ in edges}):
        yield f"  {end} --> [*]"


def _statuses(definition: Definition, transitions: Iterable[Transition]) -> Iterator[str]:
    edges: dict[tuple[str, str], set[Kind]] = {}
    for transition in transitions:
        for name, now in transition.after.steps.items():
            was = transition.before.steps.get(name)
            if was is not None and was.status is not now.status:
                kind = definition.by_name[name].kind
                edges.setdefault((was.status, now.status), set()).add(kind)
    yield "stateDiagram-v2"
    yield "  [*] --> sent"
    yield "  [*] --> open: a gate at which policy does not ask"
    yield "  [*] --> waiting: a gate at which policy asks"
    for (source, target), kinds in sorted(edges.items()):
        alone = kinds & {Kind.PIVOT, Kind.GATE} if len(kinds) == 1 else ()
        yield f"  {source} --> {target}" + "".join(f": the {kind} only" for kind in alone)


def _cause(input_: Input, definition: Definition, target: State) -> str:
    if isinstance(input_, ReplyArrived):
        pivot = definition.by_name[input_.step].kind is Kind.PIVOT
        if input_.direction is Direction.COMPENSATING:
            return "fence laid" if pivot else "last undo confirmed"
        if target is State.WAITING:
            return "policy asks at the gate"
        return "last step done" if input_.outcome is Outcome.DONE else "refusal"
    if isinstance(input_, TimedOut):
        gate = definition.by_name[input_.step].kind is Kind.GATE
        return "expired" if gate else "attempts exhausted"
    if isinstance(input_, GateDecided):
        return "approved" if input_.approved else "rejected"
    return {
        "DeadLettered": "dead letter",
        "CompensateAsked": "compensation asked",
        "Resolved": "last step resolved",
    }[type(input_).__name__]


def configuration() -> str:
    return "\n".join(
        [
            "# Configuration",
            "",
            GENERATED,
            "Every process reads its settings from the environment when it starts. If one is",
            "missing or wrong, it says which and does not start. Times are in seconds.",
            "",
            "Settings that hold secrets have no default. Each can be read from a file instead:",
            "`SAGAPROOF_POSTGRES_DSN_FILE` names the file that holds the value.",
            "",
            "| variable | default | what it is |",
            "|---|---|---|",
            *(_setting(name, field) for name, field in Settings.model_fields.items()),
            "",
            "The `saga` command reads the URLs of the two APIs from `SAGAPROOF_DOOR_URL` and",
            "`SAGAPROOF_OPERATOR_URL` (or its options `--door` and `--operator`), and their",
            "credentials from `SAGAPROOF_DOOR_KEY` and `SAGAPROOF_OPERATOR_TOKEN` (or",
            "`saga --door-key` and `saga --token`, before the command).",
            "",
        ]
    )


def _setting(name: str, field: FieldInfo) -> str:
    default = "*required*" if field.is_required() else f"`{field.default}`".replace("``", "")
    if name in SECRETS and not field.is_required():
        default = "*required by its API*"
    return f"| `SAGAPROOF_{name.upper()}` | {default} | {field.description} |"


CORE = (
    "orchestrator/engine",
    "orchestrator/runtime",
    "common/participant",
    "common/transport",
    "common/storage",
    "payment_svc",
)
SIZE = re.compile(r"^(\| \d+ \| \[`(\S+)`\]\(\S+\) \| )[\d,]+(?= \|)")
TOTAL = re.compile(r"^(\| \| in all \| )[\d,]+(?= \|)")
CORE_TOTAL = re.compile(r"(?<=come to some )[\d,]+(?= lines; the aim)")


def readme() -> str:
    """Return README.md with the sizes of the core counted anew.

    A file's size is rounded to tens, and a total is the sum of its rows; that of the whole core is
    rounded to hundreds. Exact sizes would make every commit change this page.
    """
    lines, total = [], 0
    modules = [path for room in CORE for path in (ROOT / room).glob("*.py")]
    text = CORE_TOTAL.sub(f"{_lines(*modules, to=100):,}", (ROOT / "README.md").read_text())
    for line in text.splitlines():
        if row := SIZE.match(line):
            size = _lines(ROOT / row[2], to=10)
            total += size
            line = SIZE.sub(rf"\g<1>{size:,}", line)
        elif TOTAL.match(line):
            line = TOTAL.sub(rf"\g<1>{total:,}", line)
            total = 0
        lines.append(line)
    return "\n".join(lines) + "\n"


def _lines(*paths: Path, to: int) -> int:
    exact = sum(len(path.read_text().splitlines()) for path in paths)
    return (exact + to // 2) // to * to


PAGES: Mapping[str, Callable[[], str]] = {
    "docs/order-saga.md": order_saga,
    "docs/configuration.md": configuration,
    "docs/whats-here.md": whats_here,
    "README.md": readme,
}


def main(check: bool) -> int:
    stale = [name for name, page in PAGES.items() if _read(ROOT / name) != page()]
    if check:
        for name in stale:
            print(f"{name} is not what the code says: run `python -m docs.generate`")
        return 1 if stale else 0
    for name in stale:
        (ROOT / name).write_text(PAGES[name]())
        print(f"{name} written")
    return 0


def _read(path: Path) -> str | None:
    return path.read_text() if path.exists() else None


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
