"""`python -m orchestrator.cli` is `saga`, where nothing is installed: in the image, say."""

from __future__ import annotations

from orchestrator.cli import app

if __name__ == "__main__":
    app(prog_name="saga")
