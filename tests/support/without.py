"""Removing a guard from the real code, for a test or a process that shows what then breaks.

Owns: the change of a function's source; a guard that moved or is gone fails loudly here. Must not
know: any guard.
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
    """A function and the replacements in its source that remove the guard."""

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
        """Replace the function until this process ends."""
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
        # With its module's own globals, so that later patches of them apply to it too.
        changed = FunctionType(changed.__code__, whole.__globals__, whole.__name__)
        changed.__defaults__, changed.__kwdefaults__ = whole.__defaults__, whole.__kwdefaults__
        setattr(self.owner, self.function, changed)


@dataclass(frozen=True)
class Entry:
    """A guard that is one entry of a table; `broken` takes its place."""

    name: str
    table: Any
    key: Any
    broken: Any

    @contextmanager
    def removed(self) -> Iterator[None]:
        with patch.dict(self.table, {self.key: self.broken}):
            yield
