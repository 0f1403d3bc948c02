"""One suite for both runtimes, with real servers and stand-in services; then what only one has.

Docker's part is skipped where no engine answers (and that is a failure with SAGAPROOF_NO_SKIPS).
"""

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

from chaos.runtime import SERVERS, SERVERS_ONLY, SERVICES, Plan, StackError, choose
from chaos.runtime.base import Runtime
from chaos.runtime.native.runtime import NativeRuntime
from chaos.runtime.processes import identity
from chaos.runtime.stack import CHECKOUT, Stack
from chaos.waiting import until
from tests.servers import chosen
from tests.support.runtimes import leftovers, marked, name_for, status_of, until_ready

STAND_INS = dict.fromkeys(SERVICES, "tests.support.dummy_service")
CHAOS = (sys.executable, "-m", "chaos")
LOOPBACK = "0100007F"  # as /proc/net/tcp writes 127.0.0.1
LISTENING = "0A"

DOCKER = pytest.param(
    "docker",
    marks=[
        pytest.mark.skipif(chosen() != "docker", reason="no Docker engine, or RUNTIME=native"),
        pytest.mark.timeout(300),  # the first one builds the image
    ],
)
on_both = pytest.mark.parametrize("kind", ["native", DOCKER], indirect=True, scope="module")
on_native = pytest.mark.parametrize("kind", ["native"], indirect=True, scope="module")


@pytest.fixture(scope="module", autouse=True)
def native_by_default() -> Iterator[None]:
    """Let the command, started without --runtime, choose native servers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RUNTIME", "native")
        yield


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def stack(kind: str) -> Iterator[Runtime]:
    """Bring up one stack that the tests share; each leaves it ready."""
    runtime = choose(kind, name_for("shared"))
    services = SERVICES if kind == "native" else ("payment", "inventory")  # others are real
    entry = {service: STAND_INS[service] for service in services}
    runtime.up(Plan({"payment": 2}, {"step_timeout_seconds": "0.5"}, entry), tethered=True)
    yield runtime
    runtime.down(keep_logs=True)
    assert any("database system is ready" in line for line in runtime.logs("postgres"))
    with pytest.raises(StackError, match="is not up"):
        runtime.status()
    runtime.down()
    assert leftovers(runtime) == []


@pytest.fixture
def other(kind: str) -> Iterator[Runtime]:
    """Name a stack of the test's own, not up."""
    runtime = choose(kind, name_for("other"))
    yield runtime
    runtime.down()


def everything(runtime: Runtime) -> list[tuple[int, str | None]]:
    """List every process of a stack, told apart from any that gets its pid later."""
    return [(status.pid, identity(status.pid)) for status in runtime.status() if status.pid]


def alive(processes: list[tuple[int, str | None]]) -> list[int]:
    return [pid for pid, known in processes if identity(pid) == known]


# --- either runtime ------------------------------------------------------------------------


@on_both
def test_everything_is_ready_and_was_given_its_settings(stack: Runtime) -> None:
    statuses = stack.status()
    assert {s.name for s in statuses} - {"epmd"} == {*SERVERS, *SERVICES, "payment-2"}
    assert all(status.ready and status.state == "running" for status in statuses)
    given = json.loads(next(stack.logs("payment-2")))
    assert given["SAGAPROOF_PROCESS"] == "payment-2"
    assert given["SAGAPROOF_STEP_TIMEOUT_SECONDS"] == "0.5"


@on_both
def test_postgres_is_durable_and_its_roles_are_kept_apart(stack: Runtime) -> None:
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


@on_both
def test_a_killed_service_comes_back(stack: Runtime) -> None:
    before = status_of(stack, "orchestrator")
    stack.kill("orchestrator")
    until_ready(stack, "orchestrator")
    after = status_of(stack, "orchestrator")
    assert after.pid != before.pid
    assert after.restarts == before.restarts + 1


@on_both
def test_a_stopped_service_finishes_and_stays_down_until_started(stack: Runtime) -> None:
    stack.stop("inventory")
    stopped = status_of(stack, "inventory")
    assert (stopped.state, stopped.last_exit) == ("stopped", "status 0")
    assert list(stack.logs("inventory"))[-1] == "left when told"
    with pytest.raises(StackError, match="inventory has no process at the moment: it is stopped"):
        stack.kill("inventory")
    stack.start("inventory")
    until_ready(stack, "inventory")


@on_both
def test_a_paused_service_does_nothing_until_resumed(stack: Runtime) -> None:
    stack.pause("order")
    paused = status_of(stack, "order")
    assert (paused.state, paused.ready) == ("paused", False)
    stack.resume("order")
    until_ready(stack, "order")
    assert status_of(stack, "order").pid == paused.pid


@on_both
def test_a_paused_service_can_be_stopped(stack: Runtime) -> None:
    stack.pause("inventory")
    stack.stop("inventory")
    assert list(stack.logs("inventory"))[-1] == "left when told"
    stack.start("inventory")
    until_ready(stack, "inventory")


@on_both
def test_a_paused_service_can_be_killed_and_comes_back(stack: Runtime) -> None:
    before = status_of(stack, "payment-2")
    stack.pause("payment-2")
    stack.kill("payment-2")
    until_ready(stack, "payment-2")
    assert status_of(stack, "payment-2").pid != before.pid
    assert "left when told" not in stack.logs("payment-2")


@on_both
def test_killed_servers_come_back_with_what_they_held(stack: Runtime) -> None:
    endpoints = stack.endpoints()
    with psycopg.connect(endpoints.superuser_dsn, autocommit=True) as admin:
        admin.execute("create table kept as select 42 as n")
    with pika.BlockingConnection(pika.URLParameters(endpoints.amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        quorum = {"x-queue-type": "quorum"}
        channel.queue_declare("kept", durable=True, arguments=quorum)
        channel.basic_publish("", "kept", b"42", pika.BasicProperties(delivery_mode=2))
    # RabbitMQ records where a new quorum queue's log is half a second after its declaration. Killed
    # before, it has the queue, empty and without a leader (seen on 3.10 and 4.0).
    assert "ok" in stack.rabbitmqctl("eval", "dets:sync(ra_directory_reverse).")

    for server in (s.name for s in stack.status() if s.name in (*SERVERS, "epmd")):
        stack.kill(server)
    until(lambda: all(status.ready for status in stack.status()), "everything is ready again")

    with psycopg.connect(endpoints.superuser_dsn) as admin:
        assert admin.execute("select n from kept").fetchone() == (42,)

    def is_held() -> bool:
        """Fetch the message; a quorum queue raises until it has elected a leader."""
        try:
            with pika.BlockingConnection(pika.URLParameters(endpoints.amqp_url)) as connection:
                return bool(connection.channel().basic_get("kept", auto_ack=True)[2] == b"42")
        except pika.exceptions.AMQPError:
            return False

    until(is_held, "the message is there")
    assert "kept" in stack.rabbitmqctl("--quiet", "list_queues", "name").split()


@on_both
def test_rabbitmqctl_that_fails_is_an_oserror(stack: Runtime) -> None:
    with pytest.raises(OSError, match="rabbitmqctl"):
        stack.rabbitmqctl("no_such_command")


@on_both
def test_a_stack_that_is_up_is_not_brought_up_again(stack: Runtime, kind: str) -> None:
    with pytest.raises(StackError, match="is up already"):
        choose(kind, stack.name).up(SERVERS_ONLY)
    assert all(status.ready for status in stack.status())


@on_both
def test_an_up_that_fails_says_why_and_leaves_nothing(other: Runtime) -> None:
    plan = Plan(entry={**STAND_INS, "payment": "tests.no_such_module"})
    with pytest.raises(StackError, match=r"No module named .*no_such_module"):
        other.up(plan)
    assert leftovers(other) == []


@on_both
def test_a_tethered_stack_ends_with_the_process_that_made_it(other: Runtime, kind: str) -> None:
    program = (
        "import os, signal\n"
        "from chaos.runtime import SERVERS_ONLY, choose\n"
        f"choose({kind!r}, {other.name!r}).up(SERVERS_ONLY, tethered=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=CHECKOUT)
    assert done.returncode == -signal.SIGKILL
    until(lambda: leftovers(other) == [], "the stack is gone")


# --- native only ---------------------------------------------------------------------------


@on_native
def test_a_process_is_given_the_urls_of_its_own_stack(stack: Runtime) -> None:
    given, endpoints = json.loads(next(stack.logs("payment-2"))), stack.endpoints()
    assert given["SAGAPROOF_AMQP_URL"] == endpoints.amqp_url
    assert given["SAGAPROOF_POSTGRES_DSN"] == endpoints.service_dsns["payment_svc"]
    assert endpoints.http_urls["payment-2"].endswith(given["SAGAPROOF_HEALTH_PORT"])
    door = json.loads(next(stack.logs("door")))
    assert endpoints.door_url.endswith(door["SAGAPROOF_DOOR_PORT"])


@on_native
def test_nothing_listens_but_on_the_loopback_address(stack: Runtime) -> None:
    endpoints = stack.endpoints()
    urls = (endpoints.amqp_url, endpoints.management_url, endpoints.judge_dsn, endpoints.door_url)
    ours = {urlsplit(url).port for url in urls}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = [row[1].split(":") for row in rows if row[3] == LISTENING]
    addresses = {int(port, 16): address for address, port in listening}
    assert {port: addresses[port] for port in addresses if port in ours} == dict.fromkeys(
        (port for port in ours if port), LOOPBACK
    )


@on_native
def test_secrets_are_for_the_owner_alone(stack: Runtime) -> None:
    directory = Stack(stack.name).directory
    for secret in ("endpoints.json", "rabbitmq/rabbitmq.conf", "postgres/password"):
        assert (directory / secret).stat().st_mode & 0o077 == 0


@on_native
def test_the_supervisor_logs_a_death_and_the_next_try(stack: Runtime) -> None:
    before = status_of(stack, "door")
    stack.kill("door")
    until_ready(stack, "door")
    assert status_of(stack, "door").last_exit == "signal 9"
    logged = [json.loads(line) for line in stack.logs("supervisor")]
    death = next(line for line in logged if line.get("pid") == before.pid and "exit" in line)
    assert (death["event"], death["process"]) == ("process.died", "door")
    assert (death["exit"], death["next_try_seconds"]) == ("signal 9", 0.2)


@on_native
def test_a_paused_process_is_stopped_by_the_kernel(stack: Runtime) -> None:
    stack.pause("order")
    stat = Path(f"/proc/{status_of(stack, 'order').pid}/stat")
    assert stat.read_text().split()[2] == "T"
    stack.resume("order")
    until_ready(stack, "order")


@on_native
def test_a_paused_server_does_not_answer(stack: Runtime) -> None:
    stack.pause("postgres")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(stack.endpoints().judge_dsn, connect_timeout=2)
    stack.resume("postgres")
    psycopg.connect(stack.endpoints().judge_dsn, connect_timeout=10).close()


@on_native
def test_rabbitmqctl_answers_in_json(stack: Runtime) -> None:
    assert json.loads(stack.rabbitmqctl("--formatter", "json", "eval", "42."))["value"] == 42


@on_native
def test_an_up_that_fails_counts_the_starts(other: Runtime) -> None:
    plan = Plan(entry={**STAND_INS, "payment": "tests.no_such_module"})
    with pytest.raises(StackError, match=r"payment ended 3 times at its start \(status 1\)"):
        other.up(plan)


@on_native
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


@on_native
def test_what_a_dead_supervisor_left_is_swept(other: Runtime) -> None:
    """By the next up, and by the next down."""
    other.up(Plan(entry=STAND_INS))
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


@on_native
def test_the_command_brings_up_shows_and_takes_down(other: Runtime) -> None:
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


def _kill_supervisor(runtime: Runtime) -> None:
    lines = Stack(runtime.name).started.read_text().splitlines()
    pid = int(next(line.split()[1] for line in reversed(lines) if line.startswith("supervisor ")))
    os.kill(pid, signal.SIGKILL)
    until(lambda: identity(pid) is None, "the supervisor is dead")
