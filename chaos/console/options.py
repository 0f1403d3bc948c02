"""Options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

from chaos.runtime import Style

Kind = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        envvar="RUNTIME",
        help="docker or native (processes). Default: docker where an engine answers.",
    ),
]
StyleOption = Annotated[
    Style,
    typer.Option(
        envvar="STYLE",
        help="Who says what is next: the orchestrator, or, choreographed, each service by itself.",
    ),
]
Seed = Annotated[int, typer.Option(help="Decides what is left to chance.")]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout; all else goes to stderr.")
]
Name = Annotated[str, typer.Option(help="The stack's name.")]
