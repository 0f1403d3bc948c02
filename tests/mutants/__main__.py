"""`python -m tests.mutants GUARD[,GUARD] MODULE [ARGUMENT...]`: a process without its guards.

Runs what `python -m MODULE ARGUMENT...` would run, from the same code, with the guards taken out
first. `chaos guards` starts processes so; nothing in the services knows of it. It lives with the
tests because chaos may not import a service.
"""

from __future__ import annotations

import runpy
import sys

from tests.mutants.table import MUTANTS

USAGE = "usage: python -m tests.mutants GUARD[,GUARD] MODULE [ARGUMENT...]"

if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(USAGE)
    _, guards, module, *arguments = sys.argv
    for guard in guards.split(","):
        if guard not in MUTANTS:
            sys.exit(f"no guard {guard!r}: choose from {', '.join(MUTANTS)}")
        MUTANTS[guard]()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
