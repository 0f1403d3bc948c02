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
        help="orchestrated, or choreographed: each service reacts to the others' events.",
    ),
]
Seed = Annotated[int, typer.Option(help="Decides everything that is drawn by chance.")]
Seconds = Annotated[float, typer.Option(min=1, help="How long each load is measured.")]
Json = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout; all else goes to stderr.")
]
List = Annotated[bool, typer.Option("--list", help="Only list what there is to choose from.")]
Name = Annotated[str, typer.Option(help="The stack's name.")]
