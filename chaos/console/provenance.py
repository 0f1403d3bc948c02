"""Where a result comes from: the commit, whether it is what is on disk, and the command.

Owns: that, as every result file carries it. Must not know: what the result is of.
"""

from __future__ import annotations

import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from chaos.runtime.stack import CHECKOUT

# What a run leaves in the checkout does not make the next one's code another.
_WRITTEN_BY_RUNS = tuple(
    f":!docs/{page}" for page in ("evidence", "performance.md", "choreography.md", "isolation.md")
)


def provenance(command: Sequence[str]) -> dict[str, Any]:
    return {
        "commit": _git("rev-parse", "--short=12", "HEAD") or "unknown",
        "uncommitted_changes": bool(
            _git("status", "--porcelain", "--untracked-files=no", "--", ".", *_WRITTEN_BY_RUNS)
        ),
        "command": shlex.join(command),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
    }


def _git(*arguments: str) -> str | None:
    """None where there is no repository, as in an unpacked archive."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
