"""What a reader of the documents would type is typed, in their order, on a stack of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.runtime import choose
from chaos.runtime.stack import read_plan_file
from chaos.scene import Scene
from chaos.system import System
from examples.trip.tests.scenario import KILLS
from tests.servers import chosen_for_stacks

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/operations.md", "docs/runbook.md")  # each goes on from the last
FENCE = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
STATUS = "status of the line above:"
# Everything else ends well.
STATUSES = {
    ".venv/bin/saga order --customer c-017": 1,  # a declined card
    ".venv/bin/saga orders place examples/orders.jsonl": 1,  # a few of its lines are wrong
    ".venv/bin/python -m orchestrator check tour.saga:TUOR": 1,
}
FILE_OR_FENCE = re.compile(
    r"^`(tour/[^`]+)`\n\n```\w+\n(.*?)^```|^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL
)
BY_HAND = (".venv/bin/python", "trip=", ".venv/bin/saga", "until", ".venv/bin/chaos kill")
WANTED = {  # of what is typed, by how it begins
    ".venv/bin/python -m orchestrator check tour.saga:TOUR": "book_flight, compensatable: flight",
    ".venv/bin/python -m pytest": "1 passed",
    ".venv/bin/saga doctor": "nothing wrong",
    "until .venv/bin/saga show $eve": "sold out",
    "until .venv/bin/saga show $ann": "COMPLETED",
    "until .venv/bin/saga show $bob": "COMPLETED",
    "until .venv/bin/saga show $trip": "COMPENSATED",
}


def blocks(document: str) -> list[str]:
    return FENCE.findall((ROOT / document).read_text())


def commands(block: str) -> Iterator[str]:
    """One by one; a backslash goes on in the next line."""
    for command in re.split(r"(?<!\\)\n", block):
        if command.strip() and not command.lstrip().startswith("#"):
            yield command


def written_and_typed(document: str) -> list[str]:
    """Its files become commands that write them."""
    found: list[str] = []
    for path, content, block in FILE_OR_FENCE.findall((ROOT / document).read_text()):
        if path:
            found.append(f"mkdir -p $(dirname {path}); cat > {path} <<'END'\n{content}END")
        else:
            found.extend(commands(block))
    return found


def typed() -> list[str]:
    """Of all documents; the stack goes down last."""
    found = [c for document in DOCUMENTS for block in blocks(document) for c in commands(block)]
    found = [c for c in found if not c.startswith("make ")]
    last = [c for c in found if "chaos down" in c]
    return [c for c in found if c not in last] + last


def wanted_status(command: str) -> int:
    return next((status for start, status in STATUSES.items() if command.startswith(start)), 0)


@pytest.fixture
def state_dir() -> Iterator[Path]:
    """Not in a home: the servers drop root. And short: it holds unix sockets."""
    directory = Path(tempfile.mkdtemp(prefix="sp-", dir="/var/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def run(commands: list[str], state_dir: Path) -> list[str]:
    """What each said. Fails with what did not end as it should."""
    script = "\n".join(rf"{command}{os.linesep}printf '\n{STATUS} %s\n' $?" for command in commands)
    done = subprocess.run(
        ["bash"],
        input=script,
        cwd=ROOT,
        env={
            **os.environ,
            "RUNTIME": chosen_for_stacks(),
            "SAGAPROOF_STATE_DIR": str(state_dir),
        },
        capture_output=True,
        text=True,
        timeout=380,
    )
    said = re.split(rf"^{STATUS} (\d+)$", done.stdout, flags=re.MULTILINE)
    statuses = [int(status) for status in said[1::2]]
    wrong = [
        f"$ {command}\n{output}status {status}"
        for command, output, status in zip(commands, said[::2], statuses, strict=False)
        if status != wanted_status(command)
    ]
    assert len(statuses) == len(commands), done.stderr
    assert wrong == [], done.stderr
    return said[::2]


@pytest.mark.timeout(400)
def test_what_the_readme_and_the_operations_page_say_to_type_works(state_dir: Path) -> None:
    said = run(typed(), state_dir)
    first_order = next(out for c, out in zip(typed(), said, strict=False) if "curl" in c)
    assert '"order_id"' in first_order, first_order


@pytest.fixture
def tour() -> Iterator[None]:
    """What the reader of docs/add-a-saga.md writes, where he writes it; gone at the end."""
    directory = ROOT / "tour"
    if directory.exists():
        pytest.skip("there is a tour/ here already, which is somebody's work")
    yield
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("tour")
def test_a_saga_is_added_by_the_book_and_the_example_is_played_and_broken_beside_it(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All on one stack, the page's own: its services are the trip's and one more."""
    walk = written_and_typed("docs/add-a-saga.md")
    by_hand = [c for c in written_and_typed("examples/trip/README.md") if c.startswith(BY_HAND)]
    commands = [c for c in walk if "chaos down" not in c] + by_hand
    monkeypatch.setenv("SAGAPROOF_STATE_DIR", str(state_dir))
    runtime = choose(chosen_for_stacks())
    try:
        said = dict(zip(commands, run(commands, state_dir), strict=False))
        told = {key: "".join(out for c, out in said.items() if c.startswith(key)) for key in WANTED}
        assert {key: words for key, words in WANTED.items() if words not in told[key]} == {}, told
        system = System(read_plan_file(ROOT / "tour/plan.json"), runtime, runtime.endpoints())
        KILLS.play(scene := Scene(system, "trips", seed=7, count=60))
        system.verdict()
        system.close()
    finally:
        runtime.down()
    assert scene.under_way
    assert scene.others == {"trip completed": 39, "trip sold_out": 21}  # one car was gone


@pytest.mark.parametrize(
    "document",
    [str(p.relative_to(ROOT)) for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]],
)
def test_every_make_target_a_document_names_is_there(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)(?:[A-Z]+=\w+ )*make ([a-z-]+)", (ROOT / document).read_text()))
    assert named <= targets
