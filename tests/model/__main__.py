"""`python -m tests.model`: explore everything, or show what breaks without a guard."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tests.model.explore import Explored, explore
from tests.model.guards import GUARDS


def model(
    without: Annotated[
        str | None,
        typer.Option(help="Take out the guard whose name contains this, or `all`, one by one."),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Drive the real decide() and the real fence through every order of events there is.

    The order saga on a network that repeats, reorders, delays and loses without bound; silence,
    dead letters and an operator at any moment; refusals wherever they are possible. Takes about
    half a minute. Exits with 1 if something is wrong (or, without a guard, if nothing is).
    """
    if without is None:
        found = explore()
        print(json.dumps(asdict(found))) if json_ else _show(found)
        raise typer.Exit(1 if found.wrong else 0)
    guards = [g for g in GUARDS if without == "all" or without in g.name]
    if not guards:
        raise typer.BadParameter(f"no guard is called {without}: " + "; ".join(map(str, GUARDS)))
    broken = {}
    for guard in guards:
        with guard.removed():
            broken[guard.name] = explore()
    if json_:
        print(json.dumps({name: asdict(found) for name, found in broken.items()}, indent=1))
    elif len(broken) == 1:
        _show(next(iter(broken.values())))
    else:
        _table(broken)
    raise typer.Exit(0 if all(found.wrong for found in broken.values()) else 1)


def _show(found: Explored) -> None:
    print(
        f"{found.states:,} states, {found.transitions:,} transitions, at most {found.depth} deep, "
        f"{found.ends:,} of them ended; {found.seconds} s"
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
