"""`saga audit`: compare what services hold with how sagas ended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

from orchestrator.cli.client import ASK_AGAIN_SECONDS, Api, No, Operator, Unanswered, again
from orchestrator.cli.output import Exit, Json, Output, parse_duration, words

ALL_IDS = 2**128  # ids are spread evenly, so the last one compared shows the progress


def audit(
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Leave out sagas that ended earlier: 1d (ago), or 2026-01-31T12:00+01:00.",
        ),
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Leave out sagas that began then or later.")
    ] = None,
    grace: Annotated[
        str, typer.Option(metavar="TIME", help="How long an order may wait for its saga to begin.")
    ] = "5m",
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """Compare all ended sagas with what each service holds.

    Print every drift:

    \b
    orphan charge                money was taken, and there is no saga
    leaked hold                  stock is held for a saga that has ended
    missing refund               the saga was compensated, the money not refunded
    pending without saga         an order waits too long for its saga to begin
    return pending without saga  no saga will ever release an order's lock
    refund without return        money was refunded without a completed return
    restock without return       goods are back, their order was not given back
    return without refund        an order was given back, its money not refunded
    return without restock       an order was given back, its goods are not back
    effect without instance      anything else done without a saga
    effect missing               a service lacks what the saga says it did
    wrong end                    a service's state contradicts the saga's end

    Safe at any time: it only reads, and skips sagas under way. Exit code 1 if any drift was found.

    \b
    saga audit
    saga audit --since 1d
    saga audit --since 2026-01-01T00:00Z --until 2026-02-01T00:00Z --json
    """  # fmt: skip
    output = Output(as_json)
    wanted = {
        "since": _moment(since), "until": _moment(until), "grace": parse_duration(grace),
    }  # fmt: skip
    drift: list[dict[str, Any]] = []
    compared = skipped = 0
    for page in _pages(Api("operator", operator, output), wanted):
        compared, skipped = compared + page["compared"], skipped + page["skipped"]
        drift += page["drift"]
    if as_json:
        output.json({"compared": compared, "skipped": skipped, "drift": drift})
    else:
        _report(output, compared, skipped, drift)
    raise typer.Exit(Exit.NO if drift else Exit.YES)


def _pages(api: Api, wanted: Mapping[str, object]) -> Iterator[Any]:
    columns = (TextColumn("{task.description:>8}"), BarColumn(), TaskProgressColumn())
    with Progress(*columns, console=api.output.err, transient=True) as progress:
        task = progress.add_task("compared", total=1.0)
        after: dict[str, object] = {}
        while True:
            page = _ask(api, {**wanted, **after})
            yield page
            if page["next"] is None:
                return
            after = {"after": page["next"]}
            progress.update(task, completed=int(page["next"].replace("-", ""), 16) / ALL_IDS)


def _ask(api: Api, parameters: Mapping[str, object]) -> Any:
    """Get a page, repeating the request so that one lost answer does not end a long audit."""
    given = {name: value for name, value in parameters.items() if value is not None}
    try:
        return again(lambda: api.ask("GET", "/audit", params=given), ASK_AGAIN_SECONDS)
    except No as no:
        api.output.fail(Exit.NO, str(no), no.remedy)
    except Unanswered as error:
        api.output.fail(Exit.NO_ANSWER, str(error), error.remedy)


def _report(output: Output, compared: int, skipped: int, drift: list[dict[str, Any]]) -> None:
    if drift:
        columns = ("drift", "saga", "step", "what")
        keys = ("drift", "saga_id", "step")
        output.table(
            columns, ([*(words(str(each[key])) for key in keys), each["what"]] for each in drift)
        )
        output.line()
        for kind, remedy in {each["drift"]: each["remedy"] for each in drift}.items():
            output.line(f"{words(kind)}: {remedy}")
        output.line()
    left = f"; {skipped:,} under way or of another kind were left out" if skipped else ""
    style = "bold red" if drift else "green"
    output.line(f"{compared:,} sagas compared{left}: {len(drift):,} in drift", style)


def _moment(text: str | None) -> str | None:
    """Convert a time, or how long ago, to ISO format. Raises BadParameter."""
    if text is None:
        return None
    try:
        return (datetime.now(UTC) - timedelta(seconds=parse_duration(text))).isoformat()
    except typer.BadParameter:
        pass
    try:
        return datetime.fromisoformat(text).astimezone().isoformat()
    except ValueError as error:
        remedy = "write 90s, 5m, 2h or 1d (ago), or a time: 2026-01-31T12:00+01:00"
        raise typer.BadParameter(f"{text!r}: {remedy}") from error
