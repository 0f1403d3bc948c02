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

from tests.servers import chosen_for_stacks

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "docs/operations.md", "docs/runbook.md")  # each goes on from the last
FENCE = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
STATUS = "status of the line above:"
# Everything else ends well.
STATUSES = {
    ".venv/bin/saga order --customer c-017": 1,  # a declined card
    ".venv/bin/saga orders place examples/orders.jsonl": 1,  # a few of its lines are wrong
}


def blocks(document: str) -> list[str]:
    return FENCE.findall((ROOT / document).read_text())


def commands(block: str) -> Iterator[str]:
    """One by one; a backslash goes on in the next line."""
    for command in re.split(r"(?<!\\)\n", block):
        if command.strip() and not command.lstrip().startswith("#"):
            yield command


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


@pytest.mark.timeout(400)
def test_what_the_readme_and_the_operations_page_say_to_type_works(state_dir: Path) -> None:
    script = "\n".join(rf"{command}{os.linesep}printf '\n{STATUS} %s\n' $?" for command in typed())
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
        for command, output, status in zip(typed(), said[::2], statuses, strict=False)
        if status != wanted_status(command)
    ]
    assert len(statuses) == len(typed()), done.stderr
    assert wrong == [], done.stderr
    first_order = next(out for c, out in zip(typed(), said[::2], strict=False) if "curl" in c)
    assert '"order_id"' in first_order, first_order


@pytest.mark.parametrize(
    "document",
    [str(p.relative_to(ROOT)) for p in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]],
)
def test_every_make_target_a_document_names_is_there(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)(?:[A-Z]+=\w+ )*make ([a-z-]+)", (ROOT / document).read_text()))
    assert named <= targets
