"""Progress of a run at the terminal, and how long each phase took.

Owns: the lines and bars. Must not know: what is being run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

from rich.console import Console
from rich.markdown import Markdown
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from chaos.judge.verdict import Verdict

COLOURS = {Verdict.PASS: "green", Verdict.FAIL: "bold red", Verdict.UNKNOWN: "bold yellow"}


@dataclass
class Stage:
    """The terminal during one run."""

    console: Console
    began: datetime = field(default_factory=lambda: datetime.now(UTC))
    seconds: dict[str, float] = field(default_factory=dict)  # by phase

    @classmethod
    def on(cls, *, stderr: bool = False) -> Stage:
        """Begin a run at the terminal; on stderr if stdout is for JSON."""
        return cls(Console(stderr=stderr, highlight=False))

    def say(self, what: str) -> None:
        at = (datetime.now(UTC) - self.began).total_seconds()
        self.console.print(f"[dim]{at:6.1f} s[/]  {escape(what)}", soft_wrap=True)

    def show(self, markdown: str) -> None:
        self.console.print(Markdown(markdown))

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Callable[[int, str], None]]:
        """Show a progress bar; yield the function that moves it and puts a note on it."""
        columns = (
            TextColumn("          {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", style="dim", markup=False),
        )
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(what, total=total, note="")
            yield lambda done, note: progress.update(task, completed=done, note=note)


def list_names(rows: Iterable[tuple[str, str]]) -> None:
    """Print names, each with what it stands for beneath it. A name is typed, so it stays whole."""
    console = Console(highlight=False)
    for name, says in rows:
        console.print(f"[bold]{escape(name)}[/]", soft_wrap=True)
        console.print(Padding(escape(says), (0, 0, 0, 4)))
