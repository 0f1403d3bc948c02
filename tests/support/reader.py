"""The commands that documents tell their reader to type, and a shell to run them in.

Owns: extracting commands from pages, running them in order, and the exit status each must have.
Must not know: which pages there are.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers import chosen_for_stacks

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)
STATUS = "status of the line above:"
# By the start of the command; every other one must exit with 0.
STATUSES = {
    ".venv/bin/saga order --customer c-017": 1,  # a declined card
    ".venv/bin/saga orders place examples/orders.jsonl": 1,  # a few of its lines are wrong
    ".venv/bin/python -m orchestrator check tour.saga:TUOR": 1,
}


def blocks(document: str) -> list[str]:
    return FENCE.findall((ROOT / document).read_text())


def commands(block: str) -> Iterator[str]:
    """Yield the commands one by one; a backslash continues a line."""
    for command in re.split(r"(?<!\\)\n", block):
        if command.strip() and not command.lstrip().startswith("#"):
            yield command


def wanted_status(command: str) -> int:
    return next((status for start, status in STATUSES.items() if command.startswith(start)), 0)


@contextmanager
def state_directory() -> Iterator[Path]:
    """Create a directory with a short path (unix sockets) outside any home (servers drop root)."""
    directory = Path(tempfile.mkdtemp(prefix="sp-", dir="/var/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


def run(commands: list[str], state_dir: Path) -> list[str]:
    """Run the commands in one shell; return their outputs, or fail on an unexpected status."""
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
