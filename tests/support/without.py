"""Taking a guard out of the real code, for a test or for a process that is to show what breaks.

Owns: changing a function's source, so that a guard which has moved or is gone fails here instead
of being tested no more. Must not know: any guard.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any
from unittest.mock import patch


@dataclass(frozen=True)
class Guard:
    """`owner.function` with each text of `changes` replaced by the other."""

    name: str
    owner: Any
    function: str
    changes: Mapping[str, str]

    @contextmanager
    def removed(self) -> Iterator[None]:
        whole = getattr(self.owner, self.function)
        self.remove()
        try:
            yield
        finally:
            setattr(self.owner, self.function, whole)

    def remove(self) -> None:
        """For as long as this process lives."""
        whole = getattr(self.owner, self.function)
        source = textwrap.dedent(inspect.getsource(whole))
        for there, broken in self.changes.items():
            if source.count(there) != 1:
                raise LookupError(f"guard {self.name!r} is not in {self.function}() as it was")
            source = source.replace(there, broken)
        space = dict(whole.__globals__)
        exec(compile(source, self.name, "exec"), space)
        changed = space[self.function]
        assert isinstance(changed, FunctionType)
        # Its module's own names, so that it calls what everybody else calls.
        changed = FunctionType(changed.__code__, whole.__globals__, whole.__name__)
        changed.__defaults__, changed.__kwdefaults__ = whole.__defaults__, whole.__kwdefaults__
        setattr(self.owner, self.function, changed)


@dataclass(frozen=True)
class Entry:
    """A table that says another thing of one key."""

    name: str
    table: Any
    key: Any
    broken: Any

    @contextmanager
    def removed(self) -> Iterator[None]:
        with patch.dict(self.table, {self.key: self.broken}):
            yield
