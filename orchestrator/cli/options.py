"""Options and arguments that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

PAGE = 1000  # the most rows in one answer of the API

SagaId = Annotated[
    str, typer.Argument(metavar="ID", help="The saga's id, or its first digits (at least 4).")
]
Reason = Annotated[str, typer.Option(help="The reason; the audit log keeps it with your name.")]
Step = Annotated[
    str | None,
    typer.Option(metavar="STEP", help="Only sagas that wait for this step: charge_payment."),
]
OlderThan = Annotated[
    str | None, typer.Option(metavar="TIME", help="Only sagas started longer ago: 90s, 5m, 2h, 1d.")
]
Limit = Annotated[int, typer.Option(min=1, max=PAGE, help="The most rows to print.")]
After = Annotated[
    str | None,
    typer.Option(metavar="KEY", help="Start after this one: printed below the last page."),
]
