"""Arming failpoints from outside: a directory with a file for each process that is to act."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from common.kit.failpoints import ARMINGS, Arming


class Armory:
    """The armed failpoints of one stack, whose processes find them by `settings`."""

    def __init__(self) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="sagaproof-failpoints-"))

    @property
    def settings(self) -> dict[str, str]:
        return {"failpoint_dir": str(self._directory)}

    def arm(self, process: str, *planned: Arming) -> None:
        """Let a process act on the failpoints, one after another."""
        file = self._directory / process
        whole = file.with_suffix(".new")
        whole.write_bytes(ARMINGS.dump_json(list(planned)))
        whole.replace(file)

    def has_acted(self, process: str) -> bool:
        """Return whether a process has acted on all it was armed with."""
        return not (self._directory / process).exists()

    def disarm(self) -> None:
        for file in self._directory.iterdir():
            file.unlink()

    def close(self) -> None:
        shutil.rmtree(self._directory)
