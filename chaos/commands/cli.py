"""`chaos`, the experimenter's command: bring a stack up, break it, look at it, take it down.

Owns: options, and what is printed. Progress and errors go to stderr, results to stdout.
Must not know: how a runtime does any of it.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from pydantic import TypeAdapter
from rich.console import Console
from rich.table import Table

from chaos.commands.bench_command import bench
from chaos.commands.compare_command import compare
from chaos.commands.demo_command import demo
from chaos.commands.evidence_command import evidence
from chaos.commands.guards_command import guards
from chaos.commands.isolation_command import isolation
from chaos.commands.matrix_command import matrix
from chaos.commands.run_command import list_scenarios, report, run, storm
from chaos.console.options import Kind, StyleOption
from chaos.load.catalogue import CatalogueError, load_catalogue
from chaos.load.workload import parse_catalogue
from chaos.runtime import APIS, Endpoints, Plan, ProcessStatus, StackError, choose, names
from chaos.runtime.base import Runtime
from chaos.runtime.stack import read_plan_file

CATALOGUE = Path("examples/catalogue.json")
CATALOGUE_SECONDS = 60.0
ENDED_BY_SIGNAL = 128  # plus its number, as shells say it

stderr = Console(stderr=True)
stdout = Console()


class Chaos(typer.Typer):
    """An app that prints a line instead of a traceback, and cleans up after SIGTERM and SIGHUP."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, _leave)
        try:
            return super().__call__(*args, **kwargs)
        except StackError as error:
            stderr.print("[bold red]error:[/]", end=" ")
            stderr.print(str(error), markup=False, highlight=False, soft_wrap=True)
            sys.exit(1)


def _leave(number: int, _: FrameType | None) -> NoReturn:
    raise SystemExit(ENDED_BY_SIGNAL + number)


app = Chaos(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Start the order saga with its servers, break it, and check that every invariant holds."
    " A stack is Postgres, RabbitMQ and the service processes, on free ports of 127.0.0.1;"
    " several can live side by side (--name).",
)

Name = Annotated[
    str | None, typer.Option("--name", help="Which stack. Default: this checkout's own.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, with every endpoint.")]
Process = Annotated[
    str, typer.Argument(help="order, door, payment, payment-2, postgres, rabbitmq ..")
]
KeepLogs = Annotated[bool, typer.Option("--keep-logs", help="Leave the logs where they are.")]


@app.command()
def up(
    replicas: Annotated[
        list[str], typer.Option(metavar="SERVICE=N", help="e.g. payment=2; repeatable.")
    ] = [],  # noqa: B006  typer copies it
    settings: Annotated[
        list[str],
        typer.Option(
            "--set", metavar="NAME=VALUE", help="e.g. STEP_TIMEOUT_SECONDS=0.5; repeatable."
        ),
    ] = [],  # noqa: B006
    plan_file: Annotated[
        Path | None,
        typer.Option(
            "--plan",
            metavar="FILE",
            help="A plan as JSON: settings, replicas, and services of your own."
            " See examples/trip/plan.json.",
        ),
    ] = None,
    style: StyleOption = "orchestrated",
    servers_only: Annotated[
        bool, typer.Option("--servers-only", help="Postgres and RabbitMQ, no services.")
    ] = False,
    runtime: Kind = None,
    name: Name = None,
    as_json: Json = False,
) -> None:
    """Bring a stack up and return when all of it is ready.

    Installs PostgreSQL and RabbitMQ where they are missing, if this is Debian or Ubuntu and
    you are root; otherwise says what to install. If it fails or you interrupt it, nothing is left.
    """
    if servers_only and replicas:
        raise StackError("--servers-only starts no services: leave --replicas out")
    base = read_plan_file(plan_file) if plan_file else Plan()
    asked = {key: _number(value) for key, value in _pairs("--replicas", replicas)}
    plan = replace(
        base,
        replicas=dict.fromkeys(base.all_services, 0)
        if servers_only
        else {**base.replicas, **asked},
        settings={**base.settings, **dict(_pairs("--set", settings))},
        style=style,
    )
    stack = choose(runtime, name)
    with stderr.status("looking around") as spinner:

        def tell(stage: str) -> None:
            stderr.print(stage, highlight=False, soft_wrap=True)  # a spinner leaves nothing behind
            spinner.update(stage)

        stack.up(plan, progress=tell)
    _show(stack, as_json=as_json)


@app.command()
def down(
    everything: Annotated[
        bool, typer.Option("--all", help="Every stack of yours, and logs that were kept.")
    ] = False,
    runtime: Kind = None,
    name: Name = None,
    keep_logs: KeepLogs = False,
) -> None:
    """Stop a stack in order and remove what it left, also after a crash."""
    for each in names(runtime) if everything else [name]:
        stack = choose(runtime, each)
        with stderr.status(f"taking {stack.name} down"):
            stack.down(keep_logs=keep_logs)


@app.command()
def status(runtime: Kind = None, name: Name = None, as_json: Json = False) -> None:
    """Show each process, asked for its readiness now, and the addresses of the stack."""
    _show(choose(runtime, name), as_json=as_json)


@app.command()
def logs(
    process: Process,
    lines: Annotated[int | None, typer.Option("-n", "--lines", help="Only the last N.")] = None,
    runtime: Kind = None,
    name: Name = None,
) -> None:
    """Print a process's log, over all its restarts. `supervisor` is the stack's own."""
    for line in deque(choose(runtime, name).logs(process), maxlen=lines):
        typer.echo(line)


def _signal_command(verb: str, says: str) -> None:
    @app.command(verb, help=says)
    def command(process: Process, runtime: Kind = None, name: Name = None) -> None:
        getattr(choose(runtime, name), verb)(process)


for _verb, _says in {
    "kill": "SIGKILL a process. It is restarted, with backoff.",
    "pause": "SIGSTOP a process: it keeps its connections and locks, and does nothing.",
    "resume": "SIGCONT a paused process.",
    "stop": "SIGTERM a process. It stays down until `chaos start`.",
    "start": "Start a stopped process, or one that waits to be restarted.",
}.items():
    _signal_command(_verb, _says)


@app.command()
def catalogue(
    file: Annotated[Path, typer.Argument(help="Products, stock, accounts, deposits.")] = CATALOGUE,
    amqp_url: Annotated[
        str | None, typer.Option(help="A broker other than the stack's, e.g. compose's.")
    ] = None,
    runtime: Kind = None,
    name: Name = None,
) -> None:
    """Load products, stock and accounts, and wait for every answer.

    Loading the same catalogue again changes nothing.
    """
    try:
        content = parse_catalogue(file.read_text())
        broker = amqp_url or choose(runtime, name).endpoints().amqp_url
        rows = load_catalogue(broker, content, deadline_seconds=CATALOGUE_SECONDS)
    except (OSError, ValueError, CatalogueError) as error:
        raise StackError(f"{file}: {error}") from error
    typer.echo(f"{rows} rows of {file.name} answered")


@app.command()
def env(runtime: Kind = None, name: Name = None) -> None:
    """Print the addresses and tokens of the stack's APIs for a shell: eval "$(chaos env)"."""
    for variable, value in choose(runtime, name).endpoints().environment.items():
        typer.echo(f"export {variable}={value}")


@app.command(context_settings={"ignore_unknown_options": True})
def rabbitmqctl(
    arguments: Annotated[list[str], typer.Argument(help="What rabbitmqctl is to be given.")],
    runtime: Kind = None,
    name: Name = None,
) -> None:
    """Run rabbitmqctl on the stack's broker.

    \b
    chaos rabbitmqctl list_queues name messages
    """
    try:
        typer.echo(choose(runtime, name).rabbitmqctl(*arguments), nl=False)
    except OSError as error:
        raise StackError(str(error)) from error


app.command(rich_help_panel="Experiments")(demo)
app.command("list", rich_help_panel="Experiments")(list_scenarios)
for _experiment in (run, storm, report, matrix, guards, evidence):
    app.command(rich_help_panel="Experiments")(_experiment)
for _measurement in (bench, compare, isolation):
    app.command(rich_help_panel="Measurements")(_measurement)


def _pairs(option: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    for text in texts:
        if "=" not in text:
            raise StackError(f"{option} {text}: write NAME=VALUE")
    return [(key, value) for key, _, value in (text.partition("=") for text in texts)]


def _number(text: str) -> int:
    if not text.isdecimal():
        raise StackError(f"{text!r} is not a number of replicas")
    return int(text)


def _show(stack: Runtime, *, as_json: bool) -> None:
    endpoints, processes = stack.endpoints(), stack.status()
    if as_json:
        shown = {
            "name": stack.name,
            "endpoints": TypeAdapter(Endpoints).dump_python(endpoints, mode="json"),
            "processes": TypeAdapter(list[ProcessStatus]).dump_python(list(processes)),
        }
        typer.echo(json.dumps(shown, indent=2))
        return
    table = Table("process", "state", "ready", "pid", "restarts", "last exit", title=stack.name)
    for process in processes:
        table.add_row(
            process.name,
            process.state,
            "yes" if process.ready else "no",
            str(process.pid or "-"),
            str(process.restarts),
            process.last_exit or "-",
        )
    stdout.print(table)
    places = {
        **{api: endpoints.http_urls.get(api, "none") for api in APIS},
        "judge": endpoints.judge_dsn,
        "rabbitmq": endpoints.amqp_url,
        "management": endpoints.management_url,
        "logs": endpoints.log_dir,
    }
    for what, where in places.items():
        stdout.print(f"{what:>11}  {where}", highlight=False, soft_wrap=True)
