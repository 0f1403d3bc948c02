"""A drill of docs/add-a-saga.md as its reader would type it, and of the trip on the same stack."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.runtime import choose
from chaos.runtime.stack import read_plan_file
from chaos.scenarios.scene import Scene
from chaos.stack.system import System
from examples.trip.tests.scenario import KILLS
from tests.servers import chosen_for_stacks
from tests.support.reader import ROOT, commands, run, state_directory

FILE_OR_FENCE = re.compile(
    r"^`(tour/[^`]+)`\n\n```\w+\n(.*?)^```|^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL
)
BY_HAND = (".venv/bin/python", "oslo=", "quito=", ".venv/bin/saga", "until", ".venv/bin/chaos kill")
WANTED = {  # command, by its beginning, to words its output must hold
    ".venv/bin/python -m orchestrator check tour.saga:TOUR": "book_flight, compensatable: flight",
    ".venv/bin/python -m pytest": "1 passed",
    ".venv/bin/saga doctor": "nothing wrong",
    ".venv/bin/saga show $eve": "sold out",
    ".venv/bin/saga show $ann": "COMPLETED",
    ".venv/bin/saga show $bob": "COMPLETED",
    ".venv/bin/saga show $oslo": "COMPENSATED",
    ".venv/bin/saga show $quito": "COMPLETED",
}


def written_and_typed(document: str) -> list[str]:
    """Return a document's commands; a file it shows becomes a command that writes it."""
    found: list[str] = []
    for path, content, block in FILE_OR_FENCE.findall((ROOT / document).read_text()):
        if path:
            found.append(f"mkdir -p $(dirname {path}); cat > {path} <<'END'\n{content}END")
        else:
            found.extend(commands(block))
    return found


@pytest.fixture
def state_dir() -> Iterator[Path]:
    with state_directory() as directory:
        yield directory


@pytest.fixture
def tour() -> Iterator[None]:
    """Let the document write tour/ where its reader would, and remove it at the end."""
    directory = ROOT / "tour"
    if directory.exists():
        pytest.skip("there is a tour/ here already, which the drill would overwrite")
    yield
    shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("tour")
def test_a_saga_added_by_the_document_beside_the_trip(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Use one stack, the document's own: it runs the trip's services and one more."""
    walk = written_and_typed("docs/add-a-saga.md")
    by_hand = [c for c in written_and_typed("examples/trip/README.md") if c.startswith(BY_HAND)]
    typed = [c for c in walk if "chaos down" not in c] + by_hand
    monkeypatch.setenv("SAGAPROOF_STATE_DIR", str(state_dir))
    runtime = choose(chosen_for_stacks())
    try:
        printed = dict(zip(typed, run(typed, state_dir), strict=False))
        output = {
            key: "".join(out for command, out in printed.items() if command.startswith(key))
            for key in WANTED
        }
        assert {key: words for key, words in WANTED.items() if words not in output[key]} == {}, (
            output
        )
        system = System(read_plan_file(ROOT / "tour/plan.json"), runtime, runtime.endpoints())
        KILLS.play(scene := Scene(system, "trips", seed=7, count=60))
        system.verdict()
        system.close()
    finally:
        runtime.down()
    assert scene.under_way
    assert scene.others == {"trip completed": 39, "trip sold_out": 21}  # one car was gone
