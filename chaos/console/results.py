"""Result files: what was found, and the commit and command that it comes from.

Owns: where a result comes from, as every result file says it. Must not know: what was found.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from chaos.runtime.stack import CHECKOUT

BUILD = Path("build")
# Pages that a run writes do not make the next run's code another.
_WRITTEN_BY_RUNS = tuple(
    f":!docs/{page}" for page in ("evidence", "performance.md", "choreography.md", "isolation.md")
)


def provenance(*command: object) -> dict[str, Any]:
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD") or "unknown",
        "uncommitted_changes": bool(
            _git("status", "--porcelain", "--untracked-files=no", "--", ".", *_WRITTEN_BY_RUNS)
        ),
        "command": shlex.join(["chaos", *map(str, command)]),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
    }


def machine() -> dict[str, Any]:
    """Say what else may have been at work: read it before anything is measured."""
    return {"cores": os.cpu_count(), "load_before": round(os.getloadavg()[1], 1)}


def keep(result: Mapping[str, Any], file: Path, *, as_json: bool = False) -> None:
    """Write a result to its file, and to stdout for a machine that reads it."""
    text = json.dumps(result, indent=1, default=str)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")
    if as_json:
        print(text)


def _git(*arguments: str) -> str | None:
    """Ask git; None where there is no repository, as in an unpacked archive."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
