"""`saga`, as an operator types it, against a running stack."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from chaos.stack.system import System
from chaos.waiting import WITHIN_SECONDS

COMMAND = Path(sys.executable).with_name("saga")


def saga(system: System, *words: str, code: int = 0) -> str:
    """Run `saga WORDS` and return its standard output. Fails unless it exits with `code`."""
    done = subprocess.run(
        [COMMAND, *words],
        env={**os.environ, **system.endpoints.environment},
        capture_output=True,
        text=True,
        timeout=WITHIN_SECONDS,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout
