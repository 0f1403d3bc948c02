"""`python -m tests.model`: explore every order of events, or show what breaks without a guard."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tests.model.explore import Explored
from tests.model.guards import GUARDS
from tests.model.styles import explore_style


def model(
    without: Annotated[
        str | None,
        typer.Option(help="Take out the guard whose name contains this, or `all`, one by one."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Drive the real deciding code and the real fence through every order of events.

    The order saga in both styles, and the choreographed return, on a network that repeats,
    reorders, delays and loses without bound; with timeouts, dead letters, cancellations and
    operators at any moment, and refusals wherever they are possible. Takes some seconds. Exits
    with 1 if something is wrong (or, without a guard, if nothing is).
    """
    if without is None:
        whole = {style: explore_style(style) for style in GUARDS}
        _print(whole) if json_ else _show(whole)
        raise typer.Exit(1 if any(found.wrong for found in whole.values()) else 0)
    chosen = {
        f"{style}: {guard.name}": (style, guard)
        for style, guards in GUARDS.items()
        for guard in guards
        if without == "all" or without in guard.name
    }
    if not chosen:
        names = sorted({guard.name for guards in GUARDS.values() for guard in guards})
        raise typer.BadParameter(f"no guard is called {without}: " + "; ".join(names))
    broken = {}
    for name, (style, guard) in chosen.items():
        with guard.removed():
            broken[name] = explore_style(style)
    if json_:
        _print(broken)
    else:
        _table(broken) if without == "all" else _show(broken)
    raise typer.Exit(0 if all(found.wrong for found in broken.values()) else 1)


def _print(all_found: dict[str, Explored]) -> None:
    print(json.dumps({name: asdict(found) for name, found in all_found.items()}, indent=1))


def _show(all_found: dict[str, Explored]) -> None:
    for name, found in all_found.items():
        print(
            f"{name}: {found.states:,} states, {found.transitions:,} transitions, at most"
            f" {found.depth} deep, {found.ends:,} of them ended; {found.seconds} s"
        )
        print(f"wrong: {found.wrong}" if found.wrong else "nothing is wrong")
        for number, words in enumerate(found.trace):
            print(f"{number:4}  {words}")


def _table(broken: dict[str, Explored]) -> None:
    table = Table("without this guard", "what breaks", "after")
    for name, found in broken.items():
        table.add_row(name, found.wrong or "NOTHING", f"{len(found.trace) - 1} events")
    Console().print(table)


if __name__ == "__main__":
    typer.run(model)
