"""Options and arguments that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

PAGE = 1000  # the most that the API gives at once

SagaId = Annotated[str, typer.Argument(metavar="ID", help="Its id, or how it begins (4 digits).")]
Reason = Annotated[str, typer.Option(help="Why; stays on record, with your name.")]
Step = Annotated[
    str | None, typer.Option(metavar="STEP", help="Whose answer is awaited: charge_payment.")
]
OlderThan = Annotated[
    str | None, typer.Option(metavar="TIME", help="Begun longer ago: 90s, 5m, 2h, 1d.")
]
Limit = Annotated[int, typer.Option(min=1, max=PAGE, help="How many.")]
After = Annotated[
    str | None, typer.Option(metavar="KEY", help="The next page: the one below it says.")
]
