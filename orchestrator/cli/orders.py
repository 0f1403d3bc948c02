"""`saga order` and `saga orders place`: place orders at the customers' door and wait for them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from orchestrator.cli.client import ASK_AGAIN_SECONDS, Api, Door, No, Unanswered, again
from orchestrator.cli.orders_file import BadLine, FileLine, NotAnOrdersFile, parse_line, read
from orchestrator.cli.output import Exit, Json, Output, age, money, words

POLL_SECONDS = 0.2
BULK = 200  # orders in one request
TOO_LARGE, CONFLICT, ACCEPTED = 413, 409, 202
PENDING = "PENDING"


def order(
    customer: Annotated[str, typer.Option(help="The customer who orders.")],
    line: Annotated[
        list[str], typer.Option(metavar="SKU=QTY", help="A line of the order; repeatable.")
    ],
    currency: Annotated[str, typer.Option(help="The currency to pay in.")] = "EUR",
    key: Annotated[
        str | None,
        typer.Option(help="Idempotency key: with the same key an order is placed only once."),
    ] = None,
    wait: Annotated[float, typer.Option(min=0, help="Seconds to wait for the order's end.")] = 30,
    door: Door = None,
    as_json: Json = False,
) -> None:
    """Place one order, wait for its end, and print it.

    \b
    saga order --customer c-001 --line sku-001=2 --line sku-009=1
    saga order --customer c-002 --line sku-005=1 --currency USD --key today-1
    """
    output = Output(as_json)
    api = Api("door", door, output)
    try:
        lines = [parse_line(text) for text in line]
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    key = key or str(uuid4())
    try:
        placed = again(
            lambda: api.ask(
                "POST",
                "/orders",
                json={"customer": customer, "currency": currency, "lines": lines},
                headers={"Idempotency-Key": key},
            ),
            ASK_AGAIN_SECONDS,
        )
    except No as no:
        output.fail(Exit.NO, str(no), no.remedy)
    except Unanswered as error:
        remedy = (
            f"the order may or may not have been placed: repeat with --key {key}, which is safe"
        )
        output.fail(Exit.NO_ANSWER, str(error), remedy)
    if not as_json:
        output.say(
            f"order {placed['order_id']} placed, {money(placed['total'], placed['currency'])}"
        )
    deadline = time.monotonic() + wait
    while (view := api.get(f"/orders/{placed['order_id']}"))["status"] == PENDING:
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)
    _print_end(output, view)


def _print_end(output: Output, view: dict[str, Any]) -> None:
    if output.as_json:
        output.json(view)
    elif view["status"] == "CONFIRMED":
        output.line(f"CONFIRMED after {age(view['placed_at'], view['settled_at'])}", "bold green")
    elif view["status"] == PENDING:
        output.line(f"still PENDING after {age(view['placed_at'])}", "bold yellow")
        output.line(f"see what it waits for: saga show {view['order_id']}")
    else:
        output.line(f"REJECTED: {words(view['reason'])}", "bold red")
        output.line(f"see why: saga show {view['order_id']}")
    ends = {"CONFIRMED": Exit.YES, PENDING: Exit.NOT_ENDED}
    raise typer.Exit(ends.get(view["status"], Exit.NO))


@dataclass
class FileTally:
    """The result of each line of a file."""

    lines: int = 0
    bad: list[BadLine] = field(default_factory=list)  # by line number
    repeats: int = 0
    unplaced: list[int] = field(default_factory=list)  # lines without an answer
    pending: list[str] = field(default_factory=list)  # order ids
    orders: set[str] = field(default_factory=set)
    ends: Counter[str] = field(default_factory=Counter)

    def take(self, line: FileLine, result: dict[str, Any]) -> None:
        if result["http_status"] != ACCEPTED:
            problem = result["problem"]
            place = f"{problem['field']}: " if problem.get("field") else ""
            what = f"{words(problem['error'])}: {place}{problem['remedy']}"
            self.bad.append(BadLine(line.number, what))
            return
        order_id = result["order"]["order_id"]
        if order_id in self.orders:
            self.repeats += 1
        else:
            self.orders.add(order_id)
            self.pending.append(order_id)

    @property
    def document(self) -> dict[str, Any]:
        return {
            "lines": self.lines,
            "orders": len(self.orders),
            "repeats": self.repeats,
            "ends": dict(self.ends.most_common()),
            "pending": self.pending,
            "bad": [{"line": bad.number, "what": bad.what} for bad in self.bad],
            "unplaced": self.unplaced,
        }

    @property
    def exit(self) -> Exit:
        if self.unplaced:
            return Exit.NO_ANSWER
        if self.pending:
            return Exit.NOT_ENDED
        return Exit.NO if self.bad else Exit.YES


def place(
    file: Annotated[
        Path, typer.Argument(exists=True, dir_okay=False, help="JSON lines, or CSV if named .csv.")
    ],
    wait: Annotated[
        float,
        typer.Option(min=0, help="Seconds to wait for the orders' ends, once all are placed."),
    ] = 300,
    door: Door = None,
    as_json: Json = False,
) -> None:
    """Place every order of a file, wait for their ends, and count them.

    A wrong line is reported by its number, and the rest are placed. Running it twice is safe:
    each line has an idempotency key, so the same order is never placed again.

    \b
    JSONL  {"idempotency_key": "k-1", "customer": "c-001", "currency": "EUR",
            "lines": [{"sku": "sku-001", "quantity": 2}]}
    CSV    idempotency_key,customer,currency,lines
           k-1,c-001,EUR,sku-001=2 sku-009=1

    \b
    saga orders place examples/orders.jsonl

    Exit code 0: every line was placed and its order has ended, confirmed or rejected. 1: some
    lines could not be placed. 3: the door did not answer for some. 4: some have not ended yet.
    """
    output = Output(as_json)
    api = Api("door", door, output)
    try:
        lines = list(read(file))
    except (OSError, NotAnOrdersFile) as error:
        output.fail(Exit.NO, f"{file}: {error}", "see saga orders place --help for the two forms")
    tally = FileTally(lines=len(lines), bad=[line for line in lines if isinstance(line, BadLine)])
    with _progress(output) as progress:
        _place_all(api, [line for line in lines if isinstance(line, FileLine)], tally, progress)
        _settle_all(api, tally, time.monotonic() + wait, progress)
    tally.bad.sort(key=lambda bad: bad.number)
    if as_json:
        output.json(tally.document)
    else:
        _report(output, tally)
    raise typer.Exit(tally.exit)


def _progress(output: Output) -> Progress:
    columns = (TextColumn("{task.description:>8}"), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=output.err, transient=True)


def _place_all(api: Api, lines: Sequence[FileLine], tally: FileTally, progress: Progress) -> None:
    task = progress.add_task("placed", total=len(lines))
    for start in range(0, len(lines), BULK):
        _place_some(api, lines[start : start + BULK], tally, progress, task)


def _place_some(
    api: Api, lines: Sequence[FileLine], tally: FileTally, progress: Progress, task: TaskID
) -> None:
    """Send one request, or its halves if that is too large.

    Lines are sent in the order of the file: of two with one key and different content the first
    counts.
    """
    request = {"orders": [line.order for line in lines]}
    try:
        answer = again(lambda: api.ask("POST", "/orders/bulk", json=request), ASK_AGAIN_SECONDS)
    except Unanswered as error:
        api.output.say(f"lines {lines[0].number} to {lines[-1].number}: {error}")
        tally.unplaced.extend(line.number for line in lines)
    except No as no:
        if no.status == TOO_LARGE and len(lines) > 1:
            middle = len(lines) // 2
            _place_some(api, lines[:middle], tally, progress, task)
            _place_some(api, lines[middle:], tally, progress, task)
            return
        tally.bad.extend(BadLine(line.number, f"{words(str(no))}: {no.remedy}") for line in lines)
    else:
        for line, result in zip(lines, answer["results"], strict=True):
            tally.take(line, result)
    progress.advance(task, len(lines))


def _settle_all(api: Api, tally: FileTally, deadline: float, progress: Progress) -> None:
    """Poll each order until it has ended, or the deadline passes."""
    task = progress.add_task("ended", total=len(tally.pending))
    while tally.pending:
        waiting = []
        for order_id in tally.pending:
            view = _ended(api, order_id)
            if view is None:
                waiting.append(order_id)
            else:
                tally.ends[view["reason"] or view["status"].lower()] += 1
                progress.advance(task)
        tally.pending = waiting
        if waiting and time.monotonic() >= deadline:
            return
        if waiting:
            time.sleep(POLL_SECONDS)


def _ended(api: Api, order_id: str) -> Any:
    try:
        view = api.ask("GET", f"/orders/{order_id}")
    except (Unanswered, No):
        return None  # polled again; reported as pending in the end
    return None if view["status"] == PENDING else view


def _report(output: Output, tally: FileTally) -> None:
    for bad in tally.bad:
        output.line(f"line {bad.number}: {bad.what}", "red")
    if tally.bad:
        output.line()
    rows: list[tuple[int, str]] = [(tally.lines, "lines")]
    if tally.bad:
        rows.append((len(tally.bad), "of them not placed: see above"))
    if tally.repeats:
        rows.append((tally.repeats, "repeats: the same order with the same key, placed once"))
    if tally.unplaced:
        rows.append((len(tally.unplaced), "without an answer: run this again, it is safe"))
    rows.append((len(tally.orders), "orders, and how they ended:"))
    confirmed = tally.ends.pop("confirmed", 0)
    rows.append((confirmed, "  confirmed"))
    rows += [(count, f"  rejected: {words(reason)}") for reason, count in tally.ends.most_common()]
    if tally.pending:
        rows.append((len(tally.pending), "  still pending: saga list shows what they wait for"))
    output.table(("#", ""), rows)
