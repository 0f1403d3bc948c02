"""`saga list` and `saga show`: saga instances and their timelines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import groupby
from typing import Annotated, Any

import typer

from orchestrator.cli.client import Api, Door, No, Operator, Unanswered
from orchestrator.cli.options import PAGE, After, Limit, OlderThan, Step
from orchestrator.cli.output import (
    Exit,
    Json,
    Output,
    age,
    duration,
    moment,
    money,
    parse_duration,
    short,
    words,
)
from orchestrator.engine.instance import State

FOLLOW_SECONDS = 0.5
BEGINS_WITHIN_SECONDS = 10.0  # an order that was just placed has no saga yet
STYLES = {
    "refused": "red", "fenced": "red", "turned": "bold yellow", "timed_out": "yellow",
    "stuck": "bold red", "dead_lettered": "bold red", "ignored": "dim", "sent": "",
    "parked": "bold yellow", "approved": "bold green", "rejected": "bold red", "expired": "red",
    "done": "green", "completed": "bold green", "compensated": "bold magenta",
}  # fmt: skip


def list_(
    state: Annotated[
        State | None, typer.Option(case_sensitive=False, help="Only sagas in this state.")
    ] = None,
    step: Step = None,
    older_than: OlderThan = None,
    customer: Annotated[str | None, typer.Option(help="Only sagas of this customer.")] = None,
    reason: Annotated[
        str | None, typer.Option(help="Only sagas compensated for this reason: out_of_stock.")
    ] = None,
    stuck: Annotated[bool, typer.Option("--stuck", help="Only stuck sagas.")] = False,
    limit: Limit = 50,
    after: After = None,
    operator: Operator = None,
    as_json: Json = False,
) -> None:
    """List sagas, newest first.

    \b
    saga list --stuck
    saga list --step charge_payment --older-than 5m
    saga list --state COMPENSATED --reason out_of_stock
    """
    output = Output(as_json)
    page = Api("operator", operator, output).get(
        "/sagas",
        state=state,
        step=step,
        older_than=parse_duration(older_than) if older_than else None,
        customer=customer,
        reason=reason,
        stuck=stuck,
        limit=limit,
        after=after,
    )
    if as_json:
        output.json(page)
        return
    if not page["sagas"]:
        output.line("no such saga")
        return
    columns = ("saga", "state", "customer", "#started", "#took", "reason", "waits for")
    output.table(columns, (_row(saga) for saga in page["sagas"]))
    output.more(page)


def _row(saga: dict[str, Any]) -> tuple[object, ...]:
    ended = saga["ended_at"]
    return (
        short(saga["saga_id"]),
        f"{saga['state']} (stuck)" if saga["stuck_since"] else saga["state"],
        saga["data"].get("customer"),
        f"{age(saga['started_at'])} ago",
        age(saga["started_at"], ended) if ended else "",
        words(saga["reason"] or ""),
        "; ".join(awaited(each) for each in saga["awaits"]),
    )


def awaited(each: dict[str, Any]) -> str:
    what = words(each["step"])
    if each["participant"] == "orchestrator":
        left = (moment(each["deadline"]) - datetime.now(UTC)).total_seconds()
        return f"a person: {what}, expires in {duration(left)} (saga approve, saga reject)"
    if each["direction"] == "compensating":
        what = f"the undo of {what}"
    due = (moment(each["deadline"]) - datetime.now(UTC)).total_seconds()
    when = f"due in {duration(due)}" if due > 0 else f"overdue for {duration(-due)}"
    return f"{each['participant']}: {what}, attempt {each['attempt']}, {when}"


def show(
    saga_id: Annotated[
        str, typer.Argument(metavar="ID", help="The order's id, or its first digits (at least 4).")
    ],
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            "-f",
            help="Print what happens until the saga ends. Wait ten seconds"
            " for one that has not begun.",
        ),
    ] = False,
    operator: Operator = None,
    door: Door = None,
    as_json: Json = False,
) -> None:
    """Print the timeline of one saga.

    It shows what was sent, answered, refused and undone, and by which process. Times are seconds
    since the saga began. The process is the participant that answered, or the orchestrator that
    decided.

    \b
    saga show 3f2a91c4
    saga show 3f2a91c4 --follow
    """
    output = Output(as_json)
    api = Api("operator", operator, output)
    saga = _find(api, saga_id, door, BEGINS_WITHIN_SECONDS if follow else 0)
    entries = _timeline(api, saga["saga_id"], follow=follow)
    if not as_json:
        _print(api, saga, entries if follow else _counted(entries))
    elif follow:
        for entry in entries:
            output.json(entry, indent=None)
    else:
        output.json({"saga": saga, "timeline": list(entries)})


def _find(api: Api, saga_id: str, door: str | None, within: float) -> Any:
    deadline = time.monotonic() + within
    try:
        while True:
            try:
                return api.ask("GET", f"/sagas/{saga_id}")
            except No as no:
                if no.status != 404 or time.monotonic() > deadline:
                    raise
            time.sleep(FOLLOW_SECONDS)
    except Unanswered as error:
        api.output.fail(Exit.NO_ANSWER, str(error), error.remedy)
    except No as no:
        if no.status == 404 and door and (order := _order(door, saga_id, api.output)):
            api.output.fail(
                Exit.NO,
                f"order {saga_id} is {order['status']}, and its saga has not begun"
                f" {age(order['placed_at'])} after it was placed",
                "it begins by itself once fewer sagas are running: try again in a moment;"
                " if that does not help, `saga doctor` shows what is wrong",
            )
        api.output.fail(Exit.NO, str(no), no.remedy)


def _order(door: str, order_id: str, output: Output) -> Any:
    try:
        return Api("door", door, output).ask("GET", f"/orders/{order_id}")
    except (No, Unanswered):
        return None  # the caller then reports that there is no such saga


def _timeline(api: Api, saga_id: str, *, follow: bool) -> Iterator[dict[str, Any]]:
    after = 0
    while True:
        page = api.get(f"/sagas/{saga_id}/timeline", after=after, limit=PAGE)
        yield from page["entries"]
        after = page["next"]
        if page["ended"] or (not follow and len(page["entries"]) < PAGE):
            return
        if len(page["entries"]) < PAGE:
            time.sleep(FOLLOW_SECONDS)


def _counted(entries: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Fold an entry that repeats, as many late answers after an outage, into one."""
    for (_, told, _), same in groupby(entries, lambda e: (e["entry"], e["told"], e["answered_by"])):
        first, *others = same
        yield {**first, "told": f"{told} ({len(others) + 1} times)"} if others else first


def _print(api: Api, saga: dict[str, Any], entries: Iterator[dict[str, Any]]) -> None:
    output = api.output
    output.line(f"saga {saga['saga_id']} ({saga['definition']})", "bold")
    output.line(_about(saga["data"]))
    output.line()
    output.line(f"{'seconds':>9}  {'process':<14} what happened", "dim")
    began = moment(saga["started_at"])
    for entry in entries:
        seconds = (moment(entry["at"]) - began).total_seconds()
        process = entry["answered_by"] or entry["process"]
        style = STYLES.get(entry["entry"], "")
        output.line(f"{seconds:+9.3f}  {process:<14} {entry['told']}", style)
    output.line()
    for line in _summary(api.get(f"/sagas/{saga['saga_id']}")):  # read again, as it is now
        output.line(line)


def _about(data: dict[str, Any]) -> str:
    """Describe what the saga was started with."""
    try:
        lines = ", ".join(f"{line['quantity']} x {line['sku']}" for line in data["lines"])
        return f"{data['customer']} orders {lines} for {money(data['total'], data['currency'])}"
    except (KeyError, TypeError):
        return ", ".join(f"{name} {value}" for name, value in data.items())


def _summary(saga: dict[str, Any]) -> Iterator[str]:
    yield ", ".join(f"{words(s['step'])}: {words(s['status'])}" for s in saga["steps"])
    if saga["ended_at"]:
        reason = f", {words(saga['reason'])}" if saga["reason"] else ""
        yield f"{saga['state']} after {age(saga['started_at'], saga['ended_at'])}{reason}"
        return
    yield f"{saga['state']} for {age(saga['started_at'])}"
    for each in saga["awaits"]:
        yield f"waits for {awaited(each)}"
    if saga["stuck_since"]:
        yield f"STUCK for {age(saga['stuck_since'])}: `saga stuck` shows why, and what to type"
