"""`python -m orchestrator.cli` is `saga` where no script is installed, as in the image."""

from __future__ import annotations

from orchestrator.cli import app

if __name__ == "__main__":
    app(prog_name="saga")
