"""The native runtime with real servers and stand-in services."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pika
import pika.exceptions
import psycopg
import pytest

from chaos.runtime import SERVERS_ONLY, SERVICES, Plan, ProcessStatus, StackError
from chaos.runtime.native.runtime import NativeRuntime
from chaos.runtime.processes import identity
from chaos.runtime.stack import CHECKOUT, Stack
from chaos.waiting import until

pytestmark = pytest.mark.acceptance

DUMMIES = dict.fromkeys(SERVICES, "tests.support.dummy_service")
CHAOS = (sys.executable, "-m", "chaos")
LOOPBACK = "0100007F"  # as /proc/net/tcp writes 127.0.0.1
LISTENING = "0A"


def of(runtime: NativeRuntime, process: str) -> ProcessStatus:
    return next(status for status in runtime.status() if status.name == process)


def until_ready(runtime: NativeRuntime, process: str) -> None:
    until(lambda: of(runtime, process).ready, f"{process} ready")


def everything(runtime: NativeRuntime) -> list[tuple[int, str | None]]:
    """Every process of a stack, told apart from any that gets its pid later."""
    return [(status.pid, identity(status.pid)) for status in runtime.status() if status.pid]


def alive(processes: list[tuple[int, str | None]]) -> list[int]:
    return [pid for pid, known in processes if identity(pid) == known]


def marked(stack: Stack) -> list[int]:
    """Processes that carry the stack's mark, whoever recorded them."""
    mark = f"SAGAPROOF_STACK={stack.directory}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and identity(int(entry.name)):
            try:
                if mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue
    return found


def name_for(purpose: str) -> str:
    return f"test-{os.getpid()}-{purpose}"


@pytest.fixture(scope="module", autouse=True)
def native() -> Iterator[None]:
    """Also what the command, started without --runtime, runs on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNTIME", "native")
        yield


@pytest.fixture(scope="module")
def stack() -> Iterator[NativeRuntime]:
    """One stack that the tests share; each leaves it ready."""
    runtime = NativeRuntime(name_for("shared"))
    plan = Plan({"payment": 2}, {"step_timeout_seconds": "0.5"}, DUMMIES)
    runtime.up(plan, tethered=True)
    yield runtime
    runtime.down()
    assert not Stack(runtime.name).directory.exists()
    assert marked(Stack(runtime.name)) == []


@pytest.fixture
def other() -> Iterator[NativeRuntime]:
    """A stack of the test's own, not up."""
    runtime = NativeRuntime(name_for("other"))
    yield runtime
    runtime.down()


def test_everything_is_ready_and_was_given_what_it_needs(stack: NativeRuntime) -> None:
    statuses = stack.status()
    services = {*SERVICES, "payment-2"}
    assert {status.name for status in statuses} == services | {"postgres", "rabbitmq", "epmd"}
    assert all(status.ready and status.state == "running" for status in statuses)

    given = json.loads(next(stack.logs("payment-2")))
    endpoints = stack.endpoints()
    assert given["SAGAPROOF_PROCESS"] == "payment-2"
    assert given["SAGAPROOF_STEP_TIMEOUT_SECONDS"] == "0.5"
    assert given["SAGAPROOF_AMQP_URL"] == endpoints.amqp_url
    assert given["SAGAPROOF_POSTGRES_DSN"] == endpoints.service_dsns["payment_svc"]
    assert endpoints.http_urls["payment-2"].endswith(given["SAGAPROOF_HEALTH_PORT"])
    door = json.loads(next(stack.logs("door")))
    assert endpoints.door_url.endswith(door["SAGAPROOF_DOOR_PORT"])


def test_nothing_listens_but_on_the_loopback_address(stack: NativeRuntime) -> None:
    endpoints = stack.endpoints()
    urls = (endpoints.amqp_url, endpoints.management_url, endpoints.judge_dsn, endpoints.door_url)
    ours = {urlsplit(url).port for url in urls}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = [row[1].split(":") for row in rows if row[3] == LISTENING]
    addresses = {int(port, 16): address for address, port in listening}
    assert {port: addresses[port] for port in addresses if port in ours} == dict.fromkeys(
        (port for port in ours if port), LOOPBACK
    )


def test_secrets_are_for_the_owner_alone(stack: NativeRuntime) -> None:
    directory = Stack(stack.name).directory
    for secret in ("endpoints.json", "rabbitmq/rabbitmq.conf", "postgres/password"):
        assert (directory / secret).stat().st_mode & 0o077 == 0


def test_postgres_is_durable_and_its_roles_are_kept_apart(stack: NativeRuntime) -> None:
    endpoints = stack.endpoints()
    with psycopg.connect(endpoints.service_dsns["payment_svc"], autocommit=True) as payment:
        for setting in ("fsync", "synchronous_commit"):
            assert payment.execute(f"show {setting}".encode()).fetchone() == ("on",)
        payment.execute("create table ours (n int)")
    with (
        psycopg.connect(endpoints.service_dsns["order_svc"], autocommit=True) as order,
        pytest.raises(psycopg.errors.InsufficientPrivilege),
    ):
        order.execute("select n from payment_svc.ours")
    with psycopg.connect(endpoints.judge_dsn, autocommit=True) as judge:
        assert judge.execute("select n from payment_svc.ours").fetchall() == []
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            judge.execute("insert into payment_svc.ours values (1)")


def test_a_killed_service_comes_back_and_it_is_said(stack: NativeRuntime) -> None:
    before = of(stack, "payment")
    stack.kill("payment")
    until_ready(stack, "payment")
    after = of(stack, "payment")
    assert after.pid != before.pid
    assert (after.restarts, after.last_exit) == (before.restarts + 1, "signal 9")

    said = [json.loads(line) for line in stack.logs("supervisor")]
    death = next(line for line in said if line["event"] == "process.died")
    assert (death["process"], death["pid"]) == ("payment", before.pid)
    assert (death["exit"], death["next_try_seconds"]) == ("signal 9", 0.2)


def test_a_stopped_service_finishes_and_stays_down_until_started(stack: NativeRuntime) -> None:
    stack.stop("inventory")
    assert of(stack, "inventory").state == "stopped"
    assert list(stack.logs("inventory"))[-1] == "left when told"
    with pytest.raises(StackError, match="inventory has no process at the moment: it is stopped"):
        stack.kill("inventory")
    stack.start("inventory")
    until_ready(stack, "inventory")


def test_a_paused_service_does_nothing_until_resumed(stack: NativeRuntime) -> None:
    stack.pause("order")
    status = of(stack, "order")
    assert (status.state, status.ready) == ("paused", False)
    assert Path(f"/proc/{status.pid}/stat").read_text().split()[2] == "T"
    stack.resume("order")
    until_ready(stack, "order")
    assert of(stack, "order").pid == status.pid


def test_a_paused_service_can_be_stopped(stack: NativeRuntime) -> None:
    stack.pause("order")
    stack.stop("order")
    assert list(stack.logs("order"))[-1] == "left when told"
    stack.start("order")
    until_ready(stack, "order")


def test_a_paused_server_does_not_answer(stack: NativeRuntime) -> None:
    stack.pause("postgres")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(stack.endpoints().judge_dsn, connect_timeout=2)
    stack.resume("postgres")
    psycopg.connect(stack.endpoints().judge_dsn, connect_timeout=10).close()


def test_killed_servers_come_back_with_what_they_held(stack: NativeRuntime) -> None:
    endpoints = stack.endpoints()
    with psycopg.connect(endpoints.superuser_dsn, autocommit=True) as admin:
        admin.execute("create table kept as select 42 as n")
    with pika.BlockingConnection(pika.URLParameters(endpoints.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        quorum = {"x-queue-type": "quorum"}
        channel.queue_declare("kept", durable=True, arguments=quorum)
        channel.basic_publish("", "kept", b"42", pika.BasicProperties(delivery_mode=2))
    # RabbitMQ writes down that a new quorum queue is its own only half a second later. Killed
    # before, it starts the queue anew, empty and without a leader.
    assert "ok" in stack.rabbitmqctl("eval", "dets:sync(ra_directory_reverse).")

    for server in ("postgres", "rabbitmq", "epmd"):
        stack.kill(server)
    for server in ("postgres", "rabbitmq", "epmd"):
        until_ready(stack, server)

    with psycopg.connect(endpoints.superuser_dsn) as admin:
        assert admin.execute("select n from kept").fetchone() == (42,)

    def is_held() -> bool:
        """A quorum queue first elects its leader; asked meanwhile, it errs."""
        try:
            with pika.BlockingConnection(pika.URLParameters(endpoints.amqp_url)) as connection:
                return bool(connection.channel().basic_get("kept", auto_ack=True)[2] == b"42")
        except pika.exceptions.AMQPError:
            return False

    until(is_held, "the message is there")
    assert json.loads(stack.rabbitmqctl("--formatter", "json", "eval", "42."))["value"] == 42


def test_rabbitmqctl_that_fails_is_an_oserror(stack: NativeRuntime) -> None:
    with pytest.raises(OSError, match="rabbitmqctl"):
        stack.rabbitmqctl("no_such_command")


def test_what_is_up_is_not_brought_up_again(stack: NativeRuntime) -> None:
    with pytest.raises(StackError, match="is up already"):
        NativeRuntime(stack.name).up(SERVERS_ONLY)
    assert all(status.ready for status in stack.status())


def test_an_up_that_fails_says_why_and_leaves_nothing(other: NativeRuntime) -> None:
    plan = Plan(entry={**DUMMIES, "payment": "tests.acceptance.no_such_module"})
    with pytest.raises(StackError) as raised:
        other.up(plan)
    assert "payment ended 3 times at its start (status 1)" in str(raised.value)
    assert "No module named tests.acceptance.no_such_module" in str(raised.value)
    assert not Stack(other.name).directory.exists()
    assert marked(Stack(other.name)) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_up_that_is_interrupted_leaves_nothing(other: NativeRuntime, number: int) -> None:
    """Killed, `up` cannot clean up; the supervisor notices and does."""
    stack = Stack(other.name)
    command = subprocess.Popen(
        [*CHAOS, "up", "--servers-only", "--name", other.name],
        cwd=CHECKOUT,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: len(marked(stack)) > 2, "its servers are being started")
    command.send_signal(number)
    assert command.wait() != 0
    until(lambda: not stack.directory.exists(), "the directory is gone")
    assert marked(stack) == []


def test_what_a_dead_supervisor_left_is_swept(other: NativeRuntime) -> None:
    """By the next up, and by the next down."""
    other.up(Plan(entry=DUMMIES))
    left = everything(other)
    _kill_supervisor(other)
    assert len(alive(left)) == len(left)
    with pytest.raises(StackError, match="is not up"):
        other.status()

    other.up(SERVERS_ONLY)
    assert alive(left) == []
    left = everything(other)
    _kill_supervisor(other)
    other.down()
    assert alive(left) == []
    assert marked(Stack(other.name)) == []
    assert not Stack(other.name).directory.exists()


def test_a_tethered_stack_ends_with_who_brought_it_up(other: NativeRuntime) -> None:
    program = (
        "import os, signal\n"
        "from chaos.runtime import SERVERS_ONLY, choose\n"
        f"choose('native', {other.name!r}).up(SERVERS_ONLY, tethered=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT)
    until(lambda: not Stack(other.name).directory.exists(), "the stack is gone")
    assert marked(Stack(other.name)) == []


def test_the_command_brings_up_shows_and_takes_down(other: NativeRuntime) -> None:
    def chaos(*words: str) -> subprocess.CompletedProcess[str]:
        command = [*CHAOS, *words, "--name", other.name]
        return subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True)

    assert chaos("status").returncode == 1
    up = chaos("up", "--servers-only", "--json")
    assert up.returncode == 0, up.stderr
    shown = json.loads(up.stdout)
    assert json.loads(chaos("status", "--json").stdout)["endpoints"] == shown["endpoints"]
    assert {process["name"] for process in shown["processes"]} == {"postgres", "rabbitmq", "epmd"}

    again = chaos("up", "--servers-only")
    assert (again.returncode, again.stdout) == (1, "")
    assert "is up already: `chaos down` first" in again.stderr

    assert chaos("down", "--keep-logs").returncode == 0
    assert "database system is ready" in chaos("logs", "postgres").stdout
    assert chaos("down").returncode == 0
    assert not Stack(other.name).directory.exists()


def _kill_supervisor(runtime: NativeRuntime) -> None:
    lines = Stack(runtime.name).started.read_text().splitlines()
    pid = int(next(line.split()[1] for line in reversed(lines) if line.startswith("supervisor ")))
    os.kill(pid, signal.SIGKILL)
    until(lambda: identity(pid) is None, "the supervisor is dead")
