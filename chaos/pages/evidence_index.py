"""docs/evidence/README.md: which pages there are, from their results.

Owns: that page. Must not know: what is on the others.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from chaos.pages.page import table


def index(folder: Path, parts: Mapping[str, str]) -> str:
    rows = [(f"[{name}]({name}.md)", says, *_told(folder / f"{name}.json"))
            for name, says in parts.items()]  # fmt: skip
    return (
        "\n\n".join(
            [
                "# Evidence",
                "What the claims of the README rest on, as it came out: nothing here is written by"
                " hand. `make evidence` makes all of it again, `chaos evidence PART` a part. Each"
                " page has its commit, seed and command; beside it lies the whole result as JSON.",
                table(("part", "what it shows", "result", "commit", "at", "took"), rows),
            ]
        )
        + "\n"
    )


def _told(result: Path) -> tuple[str, ...]:
    if not result.exists():
        return ("not made yet", "", "", "")
    found = json.loads(result.read_text())
    changed = " with uncommitted changes" if found["uncommitted_changes"] else ""
    took = f"{found['seconds']:.0f} s"
    return (found["verdict"], f"`{found['commit']}`{changed}", found["at"], took)
